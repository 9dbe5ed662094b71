"""A spool without a running system: messages taken in, worked on and counted by calling the steps one by one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spoolmta import message
from spoolmta.model import Outcome
from spoolmta.spool import audit, intake
from spoolmta.spool.intake import Acceptor, Claimed
from spoolmta.spool.layout import prepare
from spoolmta.spool.partition import Loaded, Partition

ROOT = Path(__file__).resolve().parents[2]


class Spool:
    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.root.mkdir(exist_ok=True)
        self.layout = prepare(str(root))
        self._count = 0

    def drop(self, *recipients: str, body: str = "hello") -> str:
        """A whole file in `pickup/`; its path."""
        self._count += 1
        lines = ["x-sender: from@sender.test", *(f"x-receiver: {r}" for r in recipients), f"Subject: {self._count}", ""]
        path = self.root / "pickup" / f"{os.getpid()}-{self._count}.eml"
        path.write_bytes("\n".join([*lines, body, ""]).encode())
        return str(path)

    def claim(self, acceptor: Acceptor, *recipients: str, vmta: str = "one", body: str = "hello") -> Claimed:
        path = self.drop(*recipients, body=body)
        data = Path(path).read_bytes()
        claimed = acceptor.incoming.describe(data, message.parse(data), vmta, "pickup")
        assert acceptor.incoming.claim(path, claimed)
        return claimed

    def take(self, *recipients: str, vmta: str = "one", body: str = "hello") -> list[str]:
        """The whole way in, for one message, but for the sync (no power cut here): the hints."""
        acceptor = Acceptor(self.layout, "pickup")
        claimed = self.claim(acceptor, *recipients, vmta=vmta, body=body)
        acceptor.journal.append(intake.journal_lines([claimed]))
        hints = acceptor.incoming.enqueue(claimed)
        acceptor.close()
        return hints

    def recover(self) -> tuple[int, list[str]]:
        """What the intake process does first: how many messages it carried on with, what it quarantined."""
        acceptor = Acceptor(self.layout, "pickup")
        found, quarantined, locks = acceptor.recover()
        for path, claimed in found:
            intake.enqueue(self.layout, path, claimed)
        for folder in {os.path.dirname(path) for path, _ in found}:
            os.rmdir(folder)
        for lock in locks:
            os.close(lock)
        acceptor.close()
        return len(found), quarantined

    @contextmanager
    def partition(self, vmta: str = "one") -> Iterator[Partition]:
        partition = Partition(self.layout, vmta)
        try:
            yield partition
        finally:
            partition.close()

    def files(self, *parts: str) -> list[Path]:
        return sorted(path for path in self.root.joinpath(*parts).rglob("*") if not path.is_dir())

    def queued(self) -> list[Path]:
        return self.files("queue")

    def audit(self) -> audit.Audit:
        return audit.audit(self.layout)

    def check_balance(self, accepted: int, **counts: int) -> None:
        result = self.audit()
        assert result.balanced, result
        assert result.accepted == accepted, result
        assert {name: getattr(result, name) for name in counts} == counts, result


def deliver(partition: Partition, domain: str, name: str, loaded: Loaded, outcome: Outcome = Outcome.DELIVERED) -> None:
    """Settle all recipients that are left, and let the entry go with the next sync."""
    for recipient in loaded.recipients:
        partition.settle(loaded, recipient, outcome)
    partition.remove(domain, name)


def reap(partition: Partition) -> int:
    """Write, and do what waits, as after a sync that began now."""
    partition.flush()
    return partition.reap(time.monotonic_ns())


def run(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A real process that runs a piece of Python with this checkout first on its path."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Something mounted at `path` for a while; the test is skipped where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting a filesystem needs root")
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def small_disk(path: Path, size: str = "1m", inodes: int = 200) -> Iterator[Path]:
    with mounted(path, "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "tmpfs"):
        yield path


def fill(folder: Path) -> Path:
    """Use up all room there is; remove the file to have it again."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        for block in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * block)
            except OSError:
                pass
    return path


def fill_inodes(folder: Path) -> None:
    number = 0
    try:
        while True:
            (folder / f"empty{number}").touch()
            number += 1
    except OSError:
        pass
