"""The keys with which one VMTA signs, read by its own process: its own first, then those of all."""

from __future__ import annotations

from collections.abc import Sequence

from spoolmta import dkim
from spoolmta.dkim import Key
from spoolmta.model import Answer, Config, DomainKey, Failure, FailureKind, Stage


class Keyring:
    """`sources` are those whose messages may choose a key, `files` is whether any key is configured, `trouble` why one
    cannot be used: then mail waits, for without a signature it would be taken for forged."""

    def __init__(self, config: Config, vmta: str) -> None:
        self.trouble = ""
        self.sources = frozenset(name for name, source in config.sources.items() if source.process_x_dkim_options)
        groups = [group for group in (config.vmtas[vmta].domain_keys, config.domain_keys) if group]
        self.files = bool(groups)
        self.keys = [self._read(group) for group in groups]

    def __repr__(self) -> str:
        return f"Keyring({sum(map(len, self.keys))} keys, {self.trouble!r})"

    @property
    def refusal(self) -> Answer:
        """What recipients hear who wait for a key."""
        return Answer(Stage.MAIL, Failure(FailureKind.LOCAL, self.trouble))

    def _read(self, files: Sequence[DomainKey]) -> list[Key]:
        found = []
        for file in files:
            try:
                with open(file.path, "rb") as stream:
                    found.append(dkim.key_of(file.selector, file.domain, stream.read()))
            except (OSError, dkim.BadKey) as error:
                text = error.strerror if isinstance(error, OSError) else str(error)
                self.trouble = f"the key {file.path} cannot be used: {text}"
        return found
