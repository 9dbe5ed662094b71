"""Messages of our own making (DSNs) on their way into the queue of the VMTA that writes them.

| a report lies in | and means | after a crash |
|---|---|---|
| `queue/<vmta>/.dsn/new/`, no journal line | its recipients are not settled yet | removed: they are tried again |
| `queue/<vmta>/.dsn/cur/`, no journal line | it settles nobody (relayed, delayed) | accepted if it is whole |
| either, with its journal line | accepted | put into the queue |
| `queue/<vmta>/<domain>/new/` | an entry like any other | found by the scan |

The accepted line of a report and the settled lines of its recipients are written with one `write`, the accepted line
first: the report is there if and only if they are settled. And they are written after a sync that began when the report
was whole on disk, so no power cut can keep the lines and lose the report. The names begin with a dot so that nobody
takes the folder for a domain.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable

import msgspec

from spoolmta import address, disk, entry, journal, message
from spoolmta.errors import MessageRefused
from spoolmta.journal import Record
from spoolmta.model import EntryName
from spoolmta.spool.intake import Ids, put
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Partition

FOLDER = ".dsn"
SOURCE = "dsn"
"""The source in the entry name of a report: it is an accounting row's srcType."""


class Staged(msgspec.Struct, frozen=True):
    """A report on disk, not in the queue yet: its name, the domain it goes to, whether recipients wait for it."""

    name: str
    id: str
    domain: str
    settles: bool


class Outbox:
    """The staged reports of one VMTA, worked on by the process that owns its queue. `on_queued` hears of every report
    that has become an entry: (domain, name)."""

    def __init__(self, layout: Layout, partition: Partition, on_queued: Callable[[str, str], None]) -> None:
        self._partition = partition
        self._on_queued = on_queued
        self._journal = layout.journal(partition.vmta)
        self._ids = Ids(os.uname().nodename)
        self.path = f"{partition.path}/{FOLDER}"

    def __repr__(self) -> str:
        return f"Outbox({self.path})"

    def make_id(self) -> str:
        return self._ids.make()

    def stage(self, entry_id: str, data: bytes, recipient: str, *, settles: bool) -> Staged:
        """Write a report beside the queue. OSError if the disk has no room: then nothing of it is there."""
        name = EntryName(id=entry_id, size=len(data), crc=zlib.crc32(data), source=SOURCE)
        staged = Staged(entry.format_name(name), entry_id, address.split(recipient)[2], settles)
        path = self._place(staged)
        try:
            disk.write_new(path, data)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            disk.write_new(path, data)
        return staged

    def accept(self, staged: Staged, *, is_known: bool = False) -> None:
        """Its accepted line is the next one of the journal; when that is durable it goes into the queue. On a full disk
        (the domain's folder may be missing) it stays where it is, and is tried again after every sync."""

        def place() -> None:
            target = f"{self._partition.path}/{staged.domain}/new/{staged.name}"
            try:
                put(disk.rename, self._place(staged), target)
            except FileExistsError:
                disk.remove(self._place(staged))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._partition.accept(staged.id, place, is_known=True)
                return
            self._on_queued(staged.domain, staged.name)

        self._partition.accept(staged.id, place, is_known=is_known)

    def _place(self, staged: Staged) -> str:
        return f"{self.path}/{'new' if staged.settles else 'cur'}/{staged.name}"

    def recover(self) -> list[tuple[Staged, str]]:
        """Carry on with what a dead process left. The reports that are accepted only now, with the address each goes
        to: they need their row."""
        found = [(folder, name) for folder in ("new", "cur") for name in _names(f"{self.path}/{folder}")]
        if not found:
            return []
        record = journal.read(self._journal)
        late = []
        for folder, name in found:
            path = f"{self.path}/{folder}/{name}"
            report = _examine(path, name)
            known = report is not None and report[0] in record.accepted
            if report is None or report[0] in record.settled or (folder == "new" and not known):
                self._leave_out(path, name, record)
                continue
            id_, recipient, data = report
            if not known:
                # A failed sync may have ended its process: the same pages again would prove nothing.
                disk.remove(f"{path}~")
                disk.write_new(f"{path}~", data)
                os.rename(f"{path}~", path)
            staged = Staged(name, id_, address.split(recipient)[2], settles=folder == "new")
            self.accept(staged, is_known=known)
            if not known:
                late.append((staged, recipient))
        return late

    def _leave_out(self, path: str, name: str, record: Record) -> None:
        """Not to be sent. One that was accepted is kept for a person, and is settled so."""
        id_ = entry.entry_id(name)
        if id_ in record.accepted and id_ not in record.settled:
            self._partition.give_up(path, id_, "a report that was damaged before it came into the queue")
        else:
            disk.remove(path)


def _examine(path: str, name: str) -> tuple[str, str, bytes] | None:
    """(id, recipient, bytes) of a whole report."""
    try:
        parts = entry.parse_name(name)
        with open(os.open(path, disk.GUARDED), "rb") as file:
            data = file.read()
        if len(data) != parts.size or zlib.crc32(data) != parts.crc:
            return None
        return parts.id, message.parse(data).envelope.recipients[0].address, data
    except (ValueError, MessageRefused, OSError):
        return None


def staged_ids(layout: Layout) -> set[str]:
    """Ids of the reports that lie beside the queues of all VMTAs."""
    return {
        entry.entry_id(name)
        for vmta in _names(layout.queue)
        for folder in ("new", "cur")
        for name in _names(f"{layout.queue}/{vmta}/{FOLDER}/{folder}")
    }


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
