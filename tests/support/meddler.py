"""Somebody who changes the configuration and gives orders at random, with the commands an operator has."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Sequence

from tests.support.mta import Mta

POOL = "shared"
"""The pool whose members change."""


class Meddler(threading.Thread):
    """Reloads, pauses, resumes, moves, hurries, until told to stop; then everything goes its way again. A command may
    be refused, as when what it asks is just being killed, but never fail."""

    def __init__(self, mta: Mta, vmtas: Sequence[str], domains: Sequence[str], ports: Sequence[str], seed: int) -> None:
        super().__init__()
        self._mta, self._vmtas, self._domains, self._ports = mta, vmtas, domains, ports
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self._base = mta.config_file.read_text()
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failures: list[str] = []
        self._write(vmtas)

    def run(self) -> None:
        while not self._over.wait(self._chance.uniform(0.0, 0.2)):
            self._chance.choice((self._reload, self._reload, self._pause, self._resume, self._move, self._retry))()

    def stop(self) -> None:
        self._over.set()
        self.join()
        self._write(self._vmtas)
        for command in (("reload",), ("queue", "resume", "*/*"), ("queue", "retry", "*/*")):
            self._mta.wait_for(lambda: self._mta.command(*command).returncode == 0)  # noqa: B023

    def _write(self, members: Sequence[str], more: str = "") -> None:
        weights = ", ".join(f"{name} = {self._chance.randint(1, 5)}" for name in members)
        new = self._mta.config_file.with_suffix(".new")
        new.write_text(f"{self._base}\n[pool.{POOL}]\nvirtual-mta = {{ {weights} }}\n{more}")
        os.rename(new, self._mta.config_file)

    def _reload(self) -> None:
        """Other members of the pool, limits of a VMTA, another host for a domain."""
        chance = self._chance
        domain = f'[domain."{chance.choice(self._domains)}"]\n'
        limits = f'[vmta.{chance.choice(self._vmtas)}.domain."*"]\nmax-smtp-out = {chance.randint(8, 20)}\n'
        more = chance.choice(("", limits, f'{domain}smtp-hosts = ["[{{}}]:{{}}"]\n'))
        host, _, port = chance.choice(self._ports).rpartition(":")
        self._write(chance.sample(self._vmtas, chance.randint(1, len(self._vmtas))), more.format(host, port))
        self._command("reload")

    def _pause(self) -> None:
        self._command("queue", "pause", self._queue())

    def _resume(self) -> None:
        self._command("queue", "resume", self._chance.choice((self._queue(), "*/*")))

    def _retry(self) -> None:
        self._command("queue", "retry", self._queue())

    def _move(self) -> None:
        source, target = self._chance.sample(self._vmtas, 2)
        self._command(
            *("queue", "move", "--yes", "--vmta", source, "--domain", self._chance.choice(self._domains)),
            *("--to", target),
        )

    def _queue(self) -> str:
        return f"{self._chance.choice([*self._domains, '*'])}/{self._chance.choice(self._vmtas)}"

    def _command(self, *words: str) -> None:
        told = self._mta.command(*words)
        name = words[0] if words[0] == "reload" else words[1]
        if told.returncode == 0:
            self.done[name] += 1
        else:
            self.refused[told.stderr.strip()] += 1
        if "Traceback" in told.stderr:
            self.failures.append(f"{words}: {told.stderr}")
