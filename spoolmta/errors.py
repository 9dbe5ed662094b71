"""Errors a person reads: one class per exit status (sysexits.h), the message is the whole sentence."""

from __future__ import annotations


class SpoolmtaError(Exception):
    """A failure with a sentence for the operator; `exit_status` is what the command line returns."""

    exit_status = 70


class UsageError(SpoolmtaError):
    """The command was called wrongly (EX_USAGE)."""

    exit_status = 64


class DataError(SpoolmtaError):
    """Input that cannot be what it claims to be (EX_DATAERR)."""

    exit_status = 65


class MessageRefused(DataError):
    """A dropped file that is not a message we can send; the text is the line of reason in `bad/`."""


class UnavailableError(SpoolmtaError):
    """Something needed is not there, for example no running server (EX_UNAVAILABLE)."""

    exit_status = 69


class SpoolError(SpoolmtaError):
    """The disk said no (EX_IOERR)."""

    exit_status = 74


class TemporaryError(SpoolmtaError):
    """It may work later (EX_TEMPFAIL)."""

    exit_status = 75


class ConfigError(SpoolmtaError):
    """The configuration is wrong (EX_CONFIG). `problems` holds every `file:line: key: what`, in file order."""

    exit_status = 78

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))


class SyncFailed(OSError):
    """A file was written, but not made durable: whatever the errno says, it is no matter of room."""
