"""Where everything in the spool lies, and the checks before anybody works in it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat

import msgspec

from spoolmta import disk
from spoolmta.errors import ConfigError, SpoolError

FORMAT = 1
FOLDERS = ("pickup", "bad", "incoming", "queue", "corrupt", "journal", "accounting", "pipes", "run", "state", "rates")


class Layout(msgspec.Struct, frozen=True):
    """The paths below one spool directory."""

    root: str

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    @property
    def bad(self) -> str:
        return self.root + "/bad"

    @property
    def incoming(self) -> str:
        return self.root + "/incoming"

    @property
    def queue(self) -> str:
        return self.root + "/queue"

    @property
    def run(self) -> str:
        return self.root + "/run"

    def journal(self, name: str) -> str:
        return f"{self.root}/journal/{name}.log"

    def state(self, name: str) -> str:
        return f"{self.root}/state/{name}"

    @property
    def tally(self) -> str:
        """No VMTA's state can be named so: names do not begin with a dot."""
        return self.root + "/state/.tally"

    def pool(self, name: str) -> str:
        return f"{self.root}/state/pool/{name}"

    def rates(self, vmta: str) -> str:
        return f"{self.root}/rates/{vmta}"

    def common(self, name: str) -> str:
        """What several processes share of a limit; no VMTA is named so."""
        return f"{self.root}/rates/.{name}"

    def fifo(self, vmta: str) -> str:
        return f"{self.root}/run/{vmta}.fifo"

    @property
    def lock(self) -> str:
        return self.root + "/run/lock"

    @property
    def clock(self) -> str:
        """What the clock of the running system is."""
        return self.root + "/run/clock"

    @property
    def control(self) -> str:
        return self.root + "/run/control"

    def control_of(self, vmta: str) -> str:
        return f"{self.root}/run/{vmta}.control"


def prepare(root: str) -> Layout:
    """Check the spool and make what is missing below it. Raises ConfigError (78) for a spool that is not there or of
    a newer format, SpoolError (74) for one that cannot be written."""
    if not os.path.isdir(root):
        raise ConfigError(f"the spool directory {root} does not exist; make it, owned by the user that runs spoolmta")
    check_format(root)
    layout = Layout(root)
    try:
        for folder in FOLDERS:
            path = layout.path(folder)
            if not os.path.isdir(path):
                try:
                    os.mkdir(path, 0o750)
                except FileExistsError:
                    continue  # another command makes them too
                if folder == "pickup":
                    # Droppers of the group may add files; what they add keeps the group (design, section 3).
                    os.chmod(path, 0o2770)
        if not os.path.exists(layout.path("format")):
            disk.replace(layout.path("format"), f"{FORMAT}\n".encode())
        probe = layout.path("run", f"probe.{os.getpid()}.{secrets.token_hex(4)}")
        disk.write_new(probe, b"")
        os.unlink(probe)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and all(os.path.isdir(layout.path(f)) for f in FOLDERS):
            return layout  # full: no reason not to deliver what is queued
        raise SpoolError(f"the spool directory {root} cannot be written: {error.strerror}") from error
    return layout


def check_format(root: str) -> None:
    """Refuse a spool written by a newer version: we would not know what its names mean."""
    try:
        with open(os.path.join(root, "format"), encoding="ascii", errors="replace") as file:
            text = file.read(32).strip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SpoolError(f"the spool directory {root} cannot be read: {error.strerror}") from error
    if not (text.isascii() and text.isdigit()) or int(text) > FORMAT:
        raise ConfigError(
            f"the spool {root} has format {text!r}, newer than {FORMAT}, the newest this version knows; "
            "run the version of spoolmta that wrote it"
        )


def holds_mail(path: str) -> bool:
    """Whether there is any entry in a VMTA's part of the queue."""
    try:
        for domain in os.listdir(path):
            for folder in ("new", "cur"):
                with (
                    contextlib.suppress(FileNotFoundError, NotADirectoryError),
                    os.scandir(f"{path}/{domain}/{folder}") as names,
                ):
                    if next(names, None) is not None:
                        return True
    except NotADirectoryError:
        pass
    return False


def is_private(path: str) -> bool:
    """Whether only members of its group may write into a folder (a pickup folder open to all lets anybody send)."""
    return not os.stat(path).st_mode & stat.S_IWOTH
