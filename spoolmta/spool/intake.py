"""How mail gets into the queue: claimed by one rename, made durable for many at once, linked where it belongs.

| a file lies in | and means | after a crash |
|---|---|---|
| `pickup/` | not ours yet | found by the next scan |
| `incoming/<role>.<pid>/<entry>,V=<vmta>` | claimed; accepted once its journal line is synced | recovery carries on |
| `incoming/` and `queue/` (one inode) | links to its domains are being made | recovery makes the missing ones |
| `queue/<vmta>/<domain>/new/` | committed | the VMTA's scan finds it |

Order, for a batch: claims (renames), journal lines, one sync, accounting rows, renames or links into the queue, hints.
While one batch is synced the next is claimed, and the one before it goes into the queue.
Doing the last steps twice writes the same names, because the id is fixed by the claim.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from spoolmta import clock, disk, entry, journal, message
from spoolmta.errors import MessageRefused, SpoolError
from spoolmta.journal import Journal
from spoolmta.model import EntryName, Parsed
from spoolmta.spool.layout import Layout


class Claimed(msgspec.Struct, frozen=True):
    """A message in the incoming folder: its name there (taken apart), the domains it goes to with the number of
    recipients in each, what it parsed to, and the values of header fields that its accounting row shows."""

    name: EntryName
    file: str
    domains: dict[str, int]
    parsed: Parsed
    shown: tuple[str, ...] = ()


class Ids:
    """Message ids of one process: unique over time, processes, machines."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._pid = os.getpid()
        self._sequence = 0

    def make(self) -> str:
        self._sequence += 1
        seconds, rest = divmod(clock.now_ns(), 1_000_000_000)
        return entry.make_id(seconds, rest // 1000, self._pid, self._sequence, self._node)


class Incoming:
    """The incoming folder of this process, locked for as long as it lives."""

    def __init__(self, layout: Layout, role: str, ids: Ids) -> None:
        self._layout = layout
        self._ids = ids
        self._notes: list[str] = []
        self.name, self._lock = _own_folder(layout, f"{role}.{os.getpid()}")
        self.path = f"{layout.incoming}/{self.name}"

    def __repr__(self) -> str:
        return f"Incoming({self.name})"

    def describe(
        self,
        data: bytes,
        parsed: Parsed,
        vmta: str,
        source: str,
        *,
        pool: str = "",
        priority: int = 50,
        shown: tuple[str, ...] = (),
    ) -> Claimed:
        """Name a message; nothing is touched yet."""
        domains: dict[str, int] = {}
        for recipient in parsed.envelope.recipients:
            domains[recipient.domain] = domains.get(recipient.domain, 0) + 1
        name = EntryName(
            id=self._ids.make(),
            size=len(data),
            crc=zlib.crc32(data),
            job=entry.job_hash(parsed.envelope.job),
            recipients=len(parsed.envelope.recipients) if len(domains) == 1 else 1,
            source=source,
            pool=pool,
            priority=priority,
            folder=self.name if len(domains) > 1 else "",
            vmta=vmta,
        )
        return Claimed(name, entry.format_name(name), domains, parsed, shown)

    def claim(self, path: str, claimed: Claimed) -> bool:
        """Take a file by one rename; False if it is gone (somebody else took it)."""
        try:
            disk.rename(path, f"{self.path}/{claimed.file}")
        except FileNotFoundError:
            return False
        return True

    def write(self, data: bytes, claimed: Claimed, original: str = "", status: os.stat_result | None = None) -> None:
        """Take a message by writing a copy, whole before it has its name. Of what file it is a copy is noted beside
        it, so that recovery can remove an original that was not removed any more, and it is not taken twice."""
        if status is not None:
            note = f"{self.path}/{_COPY}{claimed.name.id}"
            disk.write_new(note, os.fsencode(f"{status.st_ino} {status.st_ctime_ns} {original}"))
            self._notes.append(note)
        temporary = f"{self.path}/.tmp.{claimed.name.id}"
        disk.write_new(temporary, data)
        disk.rename(temporary, f"{self.path}/{claimed.file}")

    def take_notes(self) -> list[str]:
        """Paths of the notes of all copies since the last call: to be removed when the originals are."""
        notes, self._notes = self._notes, []
        return notes

    def enqueue(self, claimed: Claimed) -> list[str]:
        """Move a durable claim into the queue. Returns the hints, `<domain>/new/<entry>`."""
        return enqueue(self._layout, f"{self.path}/{claimed.file}", claimed)

    def is_empty(self) -> bool:
        return not os.listdir(self.path)

    def close(self) -> None:
        """Leave; the folder goes if nothing is in it, else recovery will find it."""
        try:
            os.rmdir(self.path)
        except OSError:
            pass
        os.close(self._lock)


def _own_folder(layout: Layout, base: str) -> tuple[str, int]:
    """Make and lock an incoming folder that was not there before: in a container the process of the last life had our
    pid too, and what it left is for recovery. Somebody else's recovery may lock or remove ours before we lock it."""
    for number in range(1000):
        name = f"{base}.{number}" if number else base
        path = f"{layout.incoming}/{name}"
        try:
            os.mkdir(path, 0o750)
            lock = disk.lock_folder(path)
        except (FileExistsError, FileNotFoundError):
            continue
        if lock is not None:
            if os.path.exists(path):
                return name, lock
            os.close(lock)
    raise SpoolError(f"{layout.incoming}/{base} is in use, and so are all names like it")


def enqueue(layout: Layout, path: str, claimed: Claimed) -> list[str]:
    """Rename (one domain) or link (several) an incoming file into `queue/<vmta>/<domain>/new/`."""
    name = claimed.name
    if len(claimed.domains) == 1:
        (domain,) = claimed.domains
        file = claimed.file.removesuffix(f",V={name.vmta}")
        try:
            put(disk.rename, path, f"{layout.queue}/{name.vmta}/{domain}/new/{file}")
        except FileExistsError:
            os.unlink(path)
        return [f"{domain}/new/{file}"]
    hints = []
    for domain, recipients in claimed.domains.items():
        file = entry.format_name(msgspec.structs.replace(name, recipients=recipients, vmta=""))
        try:
            put(disk.link, path, f"{layout.queue}/{name.vmta}/{domain}/new/{file}")
        except FileExistsError:
            pass  # linked before a crash
        hints.append(f"{domain}/new/{file}")
    os.unlink(path)
    return hints


def incoming_path(layout: Layout, name: EntryName, vmta: str) -> str:
    """Where a message for several domains lies while its links are being made: as long as this name exists, nobody
    touches its queue entries."""
    file = entry.format_name(msgspec.structs.replace(name, recipients=1, vmta=vmta, attempts=0, due=0, rerouted=""))
    return f"{layout.incoming}/{name.folder}/{file}"


TRIES = 20
"""Far more than a race for a folder can take."""


def put(place: Callable[[str, str], None], source: str, target: str) -> None:
    """Rename or link into a domain folder, making it where it is missing (its VMTA removes folders long empty). That
    the target exists is only said of the target: who hears it takes the message for enqueued."""
    for _ in range(TRIES):
        try:
            return place(source, target)
        except FileNotFoundError:
            try:
                os.makedirs(os.path.dirname(target), exist_ok=True)
            except (FileNotFoundError, FileExistsError):
                pass  # removed between two steps of making it, or found there and removed before it was looked at
    return place(source, target)


def journal_lines(batch: list[Claimed]) -> str:
    """The accepted lines of a batch."""
    return "".join([journal.accepted_line(c.name.id, c.name.vmta, sum(c.domains.values())) for c in batch])


def refuse(layout: Layout, path: str, reason: str, ids: Ids) -> str:
    """Move a file to `bad/` whole, with one line of reason; the name it got. A name that is taken or too long there
    becomes an id. The reason is written first, so no file lies there unexplained."""
    base = os.path.basename(path)
    stem = base.removesuffix(".eml")
    if (
        len(os.fsencode(stem)) > 240
        or os.path.lexists(f"{layout.bad}/{stem}.eml")
        or os.path.lexists(f"{layout.bad}/{stem}.reason")
    ):
        stem = ids.make()
    disk.write_new(f"{layout.bad}/{stem}.reason", (reason + "\n").encode("utf-8", "replace"))
    try:
        _move(path, f"{layout.bad}/{stem}.eml")
    except OSError:
        disk.remove(f"{layout.bad}/{stem}.reason")
        raise
    return f"{stem}.eml"


def _move(path: str, target: str) -> None:
    """Rename; from another filesystem copy, and remove the file once its copy is safe."""
    try:
        return disk.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    source = os.open(path, disk.GUARDED)
    try:
        disk.write_new(target, b"")
        with open(target, "wb") as copy:
            while data := os.read(source, 1 << 20):
                copy.write(data)
        disk.sync_path(target)
        os.unlink(path)
    except OSError:
        disk.remove(target)
        raise
    finally:
        os.close(source)


_COPY = ".copy."


class Recovered(msgspec.Struct):
    """What recovery found: messages to carry on with, damaged files with what is wrong, notes of copies by their
    originals, removed leftovers."""

    claimed: list[tuple[str, Claimed]]
    damaged: list[tuple[str, str]]
    notes: list[str]
    removed: int = 0

    def remove_originals(self) -> None:
        """Remove the originals of what was copied and is safe now, if they are still the files they were."""
        safe = {claimed.name.id for _, claimed in self.claimed}
        for note in self.notes:
            if note.partition(_COPY)[2] in safe:
                _remove_original(note)
            disk.remove(note)


def _remove_original(note: str) -> None:
    with open(note, "rb") as file:
        inode, changed, path = [*os.fsdecode(file.read()).split(" ", 2), "", "", ""][:3]
    try:
        status = os.lstat(path)
        if f"{status.st_ino} {status.st_ctime_ns}" == f"{inode} {changed}":
            os.unlink(path)
    except OSError:
        pass  # gone, or not ours to remove: as it would have been without the crash


def find_orphans(layout: Layout) -> list[tuple[str, int]]:
    """Incoming folders whose process is gone, each locked by us now: (path, lock descriptor)."""
    orphans = []
    for folder in sorted(os.listdir(layout.incoming)):
        path = f"{layout.incoming}/{folder}"
        try:
            lock = disk.lock_folder(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if lock is not None:
            orphans.append((path, lock))
    return orphans


def examine(folder: str) -> Recovered:
    """Look at every file of an orphan folder: a whole one is carried on with, any other is to be quarantined (it was
    claimed from somebody, so it is kept); half-written copies, which nobody was told of, are removed. The whole ones
    are written anew: if it was a failed sync that ended their process, syncing the same file again would prove
    nothing (the kernel calls its pages clean)."""
    recovered = Recovered([], [], [])
    for file in sorted(os.listdir(folder)):
        path = f"{folder}/{file}"
        if file.startswith(".tmp."):
            os.unlink(path)
            recovered.removed += 1
            continue
        if file.startswith(_COPY):
            recovered.notes.append(path)
            continue
        try:
            name = entry.parse_name(file)
            with open(os.open(path, disk.GUARDED), "rb") as stream:
                data = stream.read()
            if not name.vmta or len(data) != name.size or zlib.crc32(data) != name.crc:
                raise ValueError("size or checksum differs from its name")
            parsed = message.parse(data)
            _write_anew(path, data)
        except (ValueError, MessageRefused, OSError) as error:
            recovered.damaged.append((path, str(error)))
            continue
        domains: dict[str, int] = {}
        for recipient in parsed.envelope.recipients:
            domains[recipient.domain] = domains.get(recipient.domain, 0) + 1
        recovered.claimed.append((path, Claimed(name, file, domains, parsed)))
    return recovered


def _write_anew(path: str, data: bytes) -> None:
    """Replace a file by a new one with the same bytes; not one that has links in the queue already."""
    if os.stat(path).st_nlink == 1:
        temporary = f"{os.path.dirname(path)}/.tmp.{os.path.basename(path)[:200]}"
        disk.write_new(temporary, data)
        os.rename(temporary, path)


def claimed_ids(layout: Layout) -> set[str]:
    """Ids of the messages in all incoming folders."""
    ids: set[str] = set()
    for folder in os.listdir(layout.incoming):
        try:
            ids.update(entry.entry_id(name) for name in os.listdir(f"{layout.incoming}/{folder}"))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return {id_ for id_ in ids if not id_.startswith(".")}


def quarantine(layout: Layout, path: str, reason: str) -> str:
    """Move a damaged file to `corrupt/`, with a reason (unless the disk is full); its name there."""
    base = os.path.basename(path).partition(":")[0]
    number = 0
    while True:
        name = f"{base}.{number}" if number else base
        try:
            disk.rename(path, f"{layout.root}/corrupt/{name}")
        except FileExistsError:
            number += 1
            continue
        break
    try:
        disk.replace(f"{layout.root}/corrupt/{name}.reason", (reason + "\n").encode("utf-8", "replace"))
    except OSError:
        pass
    return name


class Acceptor:
    """An intake process's way into the queue: a batch of claims is journalled, becomes durable with one sync, and is
    put where the VMTAs find it. The sync goes on beside the work of its caller, one at a time. Owns the intake journal
    `<role>.0.log`."""

    def __init__(self, layout: Layout, role: str) -> None:
        self.layout = layout
        self.ids = Ids(os.uname().nodename)
        self.committer = disk.Committer(layout.root)
        self.journal = Journal(layout.journal(f"{role}.0"))
        self.incoming = Incoming(layout, role, self.ids)
        self._syncer = ThreadPoolExecutor(1)
        self._sync: Future[int] | None = None

    def begin(self, batch: list[Claimed]) -> None:
        """Journal the claims of a batch and begin to make both durable."""
        assert self._sync is None
        self.journal.append(journal_lines(batch))
        self._sync = self._syncer.submit(self.committer.sync)

    @property
    def is_syncing(self) -> bool:
        return self._sync is not None and not self._sync.done()

    def finish(self) -> int:
        """Wait until the batch that was begun is durable. Returns when its sync began. Raises SpoolError: then none of
        them is accepted."""
        assert self._sync is not None
        sync, self._sync = self._sync, None
        return sync.result()

    def tend_journal(self) -> None:
        """Compact the journal when it has grown long; between batches, when nothing is in the incoming folder."""
        if self.journal.is_long:
            self.journal.compact(claimed_ids(self.layout))

    def recover(self) -> tuple[list[tuple[str, Claimed]], list[str], list[int]]:
        """Take over what dead intake processes left: the files to enqueue (journalled and durable now), what was
        quarantined, and the locks to hold until they are enqueued."""
        found: list[tuple[str, Claimed]] = []
        damaged: list[tuple[str, str]] = []
        notes: list[Recovered] = []
        locks, empty = [], []
        for folder, lock in find_orphans(self.layout):
            try:
                recovered = examine(folder)
            except FileNotFoundError:
                os.close(lock)  # its process has just left
                continue
            found += recovered.claimed
            damaged += recovered.damaged
            notes.append(recovered)
            locks.append(lock)
            if not recovered.claimed:
                empty.append(folder)
        if found or damaged:
            known = journal.read(self.journal.path).accepted
            missing = [claimed for _, claimed in found if claimed.name.id not in known]
            lost = [entry.entry_id(os.path.basename(path)) for path, _ in damaged]
            lines = [journal.quarantined_line(id_, "*", known[id_]) for id_ in lost if id_ in known]
            self.journal.append(journal_lines(missing) + "".join(lines))
            self.journal.compact(claimed_ids(self.layout))  # written anew, like the files: see `examine`
            self.committer.sync()
        for recovered in notes:
            recovered.remove_originals()
        quarantined = [quarantine(self.layout, path, reason) for path, reason in damaged]
        for folder in empty:
            os.rmdir(folder)
        return found, quarantined, locks

    def close(self) -> None:
        self._syncer.shutdown()
        self.incoming.close()
        self.journal.close()
        self.committer.close()
