"""One VMTA's part of the queue, `queue/<vmta>/`, worked on by one process at a time (it holds the folder's lock).

| an entry lies in | and means | next |
|---|---|---|
| `new/<entry>` | never tried | settled, deferred or quarantined |
| `cur/<entry>:1,<attempts>,<due>` | waits for its due time | the same |
| either, and all its recipients are in the journal | done; to be removed after the next sync | gone |
| `corrupt/<entry>` | failed its own size or checksum | left to a person |

Account, journal, then remove: the journal line of a settled recipient is written in the turn in which its reply was
read; the entry is removed (or renamed, if only some recipients are settled) when a sync has finished that began after
that write. Without this order a power cut loses the row and the entry but not the delivery.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from spoolmta import disk, entry, journal, message
from spoolmta.errors import MessageRefused, SpoolError
from spoolmta.journal import Journal
from spoolmta.model import EntryName, Outcome, Parsed, Recipient
from spoolmta.spool.intake import incoming_path, put, quarantine
from spoolmta.spool.layout import Layout

KEEP_EMPTY = 3600.0
"""Seconds an empty domain folder is kept: making and removing three folders costs 280 microseconds."""
PART = 1000
"""Entries of a large domain that a scan gives at once."""


class Loaded(msgspec.Struct, frozen=True):
    """An entry read and checked: who is still to be served, and the bytes."""

    name: EntryName
    parsed: Parsed
    data: bytes
    recipients: list[Recipient]


class NotReady(Exception):
    """The entry may not be touched yet: links of its message are still being made."""


class Gone(Exception):
    """The entry is not there, or not any more after quarantine; `reason` is empty if it just was not there."""

    def __init__(self, reason: str = "", recipients: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.recipients = recipients


class _Pending(msgspec.Struct, frozen=True):
    """What is done after a sync that began later than `since`."""

    since: int
    entry_id: str
    action: Callable[[], None]


class _Hold:
    """An entry that waits for reports of its recipients: how many, and what is done with it then."""

    __slots__ = ("actions", "reports")

    def __init__(self) -> None:
        self.reports = 0
        self.actions: list[Callable[[], None]] = []


class Partition:
    """The queue of one VMTA. Methods named for a change of state do the one rename (or removal) it is."""

    def __init__(self, layout: Layout, vmta: str, lock: int | None = None) -> None:
        """`lock` is a descriptor that holds the lock of the folder, if the caller has it; the partition closes it."""
        self.layout = layout
        self.vmta = vmta
        self.path = f"{layout.queue}/{vmta}"
        lock = take(layout, vmta) if lock is None else lock
        if lock is None:
            raise SpoolError(f"queue {vmta} is being worked on by another process")
        self._lock = lock
        self._journal = Journal(layout.journal(vmta))
        # By domain. Names are keys: a thousand of them take 26 KB, and 64 KB in a set.
        self._known: dict[str, dict[str, None]] = {}
        self.known = 0
        record = journal.read(self._journal.path)
        self._settled = {id_: set(addresses) for id_, addresses in record.settled.items()}
        self._told = record.told
        self._learned = {id_ for id_, known in record.settled.items() if any(one[2] for one in known.values())}
        self._unfound = (self._settled.keys() | self._told.keys()) - self._learned
        self._is_renewed = False
        self._lines: list[str] = []
        self._after_flush: list[tuple[str, Callable[[], None]]] = []
        self._pending: deque[_Pending] = deque()
        self._held: dict[tuple[str, str], _Hold] = {}
        self._done: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        return f"Partition({self.vmta}, known={self.known}, pending={len(self._pending)}, lines={len(self._lines)})"

    # Finding entries

    def scan(self) -> Iterator[tuple[str, str, int]]:
        """Entries on disk that were not known yet, oldest first within a domain: (domain, name, due)."""
        return itertools.chain.from_iterable(self.scan_in_parts())

    def scan_in_parts(self) -> Iterator[list[tuple[str, str, int]]]:
        """The same in parts, empty ones too: who has something else to do in between may find an entry gone that comes
        late, and what came meanwhile is not told again."""
        for domain in self._list(self.path):
            found = []
            for folder in ("new", "cur"):
                found += self._list(f"{self.path}/{domain}/{folder}")
            found.sort()
            for begin in range(0, len(found), PART):
                part = found[begin : begin + PART]
                dues = [(domain, name, self.add(domain, name)) for name in part]
                yield [(domain, name, due) for domain, name, due in dues if due is not None]
            if not found:
                if domain not in self._known:
                    self._remove_if_long_empty(domain)
                yield []

    def forget_settled(self) -> None:
        """After the first scan: what the journal says of entries that are not there any more need not be kept, but
        for those that may still be on their way here from another VMTA."""
        for entry_id in self._unfound:
            self._settled.pop(entry_id, None)
            self._told.pop(entry_id, None)
        self._unfound = set()

    def add(self, domain: str, name: str) -> int | None:
        """Make an entry known (from a scan or a hint); its due time, or None if it was known or is no entry."""
        known = self._known.get(domain)
        if known is None:
            known = self._known[domain] = {}
        elif name in known:
            return None
        try:
            due = entry.state(name)[1]
        except ValueError:
            due = 0
        known[name] = None
        self.known += 1
        if self._unfound:
            self._unfound.discard(entry.entry_id(name))
        return due

    def place(self, domain: str, name: str) -> str:
        return f"{self.path}/{domain}/{'cur' if ':' in name else 'new'}/{name}"

    # Working on one entry

    def load(self, domain: str, name: str) -> Loaded:
        """Read an entry and check it against its name. Raises NotReady, or Gone (quarantined if it was damaged;
        its recipients are then settled in the journal)."""
        path = self.place(domain, name)
        try:
            parts = entry.parse_name(name)
            if parts.folder and os.path.lexists(incoming_path(self.layout, parts, self.vmta)):
                raise NotReady
            data = disk.read_guarded(path, parts.size)
            if len(data) != parts.size or zlib.crc32(data) != parts.crc:
                raise ValueError("size or checksum differs from its name")
            parsed = message.parse(data, domain)
        except FileNotFoundError:
            self._forget(domain, name)
            raise Gone from None
        except (ValueError, MessageRefused) as error:
            raise self._quarantine(domain, name, str(error)) from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EIO, errno.EISDIR, errno.EACCES, errno.ENXIO):
                raise
            raise self._quarantine(domain, name, error.strerror or "cannot be read") from None
        settled = self._settled.get(parts.id)
        if settled is not None and not self._is_renewed:
            self._renew_journal()
        recipients = [
            recipient
            for recipient in parsed.envelope.recipients
            if recipient.domain == domain and (settled is None or journal.escape(recipient.address) not in settled)
        ]
        return Loaded(parts, parsed, data, recipients)

    def settle(self, loaded: Loaded, recipient: Recipient, outcome: Outcome) -> None:
        """Note that a recipient is done; written by the next `flush`."""
        self._lines.append(journal.settled_line(outcome, loaded.name.id, recipient.address))

    def remove(self, domain: str, name: str) -> None:
        """All recipients are settled: the entry goes after the next sync."""

        def action() -> None:
            disk.remove(self.place(domain, name))
            self._forget(domain, name)
            self._forget_addresses(entry.entry_id(name), domain)
            self._done.discard((domain, name))

        self._done.add((domain, name))
        self._after_lines(domain, name, action)

    def defer(self, domain: str, name: str, due: int, done: list[Recipient], then: Callable[[str], None]) -> None:
        """Some recipients remain: the entry waits in `cur/` for `due`. With recipients settled in this attempt
        (`done`), the rename waits for the sync like a removal does. `then` gets the new name."""
        attempts = entry.state(name)[0] + 1
        target = entry.with_state(name, attempts, due)

        def action() -> None:
            then(self._rename(domain, name, target))

        if done:
            addresses = {journal.escape(recipient.address) for recipient in done}
            self._settled.setdefault(entry.entry_id(name), set()).update(addresses)
            self._after_lines(domain, name, action)
        else:
            action()

    def keep(self, loaded: Loaded, done: list[Recipient]) -> None:
        """Some recipients are settled without an attempt: the entry stays as it is, for the others."""
        addresses = {journal.escape(recipient.address) for recipient in done}
        self._settled.setdefault(loaded.name.id, set()).update(addresses)

    def learn(self, lines: Iterable[tuple[str, str, str, int]]) -> None:
        """What another VMTA has settled of entries that move here: (id, escaped address, letter, count). Written by
        the next `flush`."""
        for entry_id, address, letter, count in lines:
            self._settled.setdefault(entry_id, set()).add(address)
            self._learned.add(entry_id)
            self._unfound.discard(entry_id)
            self._lines.append(journal.copied_line(letter, entry_id, address, count))

    def move(self, domain: str, name: str, target: str, known: Collection[str]) -> int:
        """Give an entry to another VMTA, which has learned that the `known` addresses of it are settled; how many
        recipients go along. Raises NotReady if more is settled by now, or its links are still being made; Gone."""
        parts = entry.parse_name(name)
        settled = {one for one in self._settled.get(parts.id, ()) if journal.folder(one) == domain}
        is_arriving = parts.folder and os.path.lexists(incoming_path(self.layout, parts, self.vmta))
        is_held = (domain, parts.id) in self._held or (domain, name) in self._done
        if is_arriving or is_held or not settled <= set(known):
            raise NotReady
        goal = f"{self.layout.queue}/{target}/{domain}/{'cur' if ':' in name else 'new'}/{name}"
        try:
            put(disk.rename, self.place(domain, name), goal)
        except FileNotFoundError:
            raise Gone from None
        finally:
            self._forget(domain, name)
        self._forget_addresses(parts.id, domain)
        return max(0, parts.recipients - len(settled))

    def _after_lines(self, domain: str, name: str, action: Callable[[], None]) -> None:
        """Do it after the sync that follows the entry's lines, and those lines after the reports it is held for."""
        entry_id = entry.entry_id(name)
        hold = self._held.get((domain, entry_id)) if self._held else None
        if hold is None:
            self._after_flush.append((entry_id, action))
        else:
            hold.actions.append(action)

    # Reports of our own

    def accept(self, entry_id: str, place: Callable[[], None], *, is_known: bool = False) -> None:
        """Accept a message of our own making: its journal line (unless it has one), and after the sync of that `place`
        puts it into the queue."""
        if not is_known:
            self._lines.append(journal.accepted_line(entry_id, self.vmta, 1))
        self._after_flush.append((entry_id, place))

    def give_up(self, path: str, entry_id: str, reason: str) -> None:
        """Put a damaged message of our own making aside, after the sync of the line that says so."""
        self._lines.append(journal.quarantined_line(entry_id, "*", 1))

        def action() -> None:
            quarantine(self.layout, path, f"{self.vmta}: {reason}")

        self._after_flush.append((entry_id, action))

    def told(self, domain: str, entry_id: str) -> int:
        """How often the sender was told that an entry is delayed."""
        return self._told.get(entry_id, {}).get(f"@{domain}", 0)

    def tell(self, domain: str, entry_id: str, times: int) -> None:
        """Note that the sender was told so many times."""
        self._told.setdefault(entry_id, {})[f"@{domain}"] = times
        self._lines.append(journal.told_line(entry_id, domain, times))

    def entries(self) -> Iterator[tuple[str, str]]:
        """The entries that are known, (domain, name): who takes long over it gets some that are gone by then."""
        for domain in tuple(self._known):
            for name in tuple(self._known.get(domain, ())):
                yield domain, name

    def is_done(self, domain: str, name: str) -> bool:
        """Whether all recipients of an entry are settled, and it only waits to be removed."""
        return (domain, name) in self._done

    def hold(self, domain: str, entry_id: str) -> None:
        """Leave an entry where it is, whatever is decided of it, until `release`: some of its recipients are settled
        only when the report of it is durable."""
        self._held.setdefault((domain, entry_id), _Hold()).reports += 1

    def release(self, domain: str, entry_id: str) -> None:
        """One report of an entry is durable, and the lines of its recipients are noted."""
        hold = self._held[domain, entry_id]
        hold.reports -= 1
        if not hold.reports:
            del self._held[domain, entry_id]
            self._after_flush += [(entry_id, action) for action in hold.actions]

    def _rename(self, domain: str, name: str, target: str) -> str:
        """Give an entry its next name. On a full disk it keeps the old one: then only the due time is forgotten by a
        restart, not the message."""
        try:
            try:
                disk.rename(self.place(domain, name), self.place(domain, target))
            except FileNotFoundError:
                os.mkdir(f"{self.path}/{domain}/cur", 0o750)
                disk.rename(self.place(domain, name), self.place(domain, target))
        except FileExistsError:
            pass  # `cur` was there: the entry itself is gone; the next load says so
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT):
                raise
            return name
        self._forget(domain, name)
        self.add(domain, target)
        return target

    def _quarantine(self, domain: str, name: str, reason: str) -> Gone:
        """Put a damaged entry aside, after the next sync; what is unsettled of it is settled as quarantined. A name
        without an id was never accepted by us, and is put aside only."""
        if not os.path.lexists(self.place(domain, name)):
            self._forget(domain, name)
            return Gone()
        id_ = entry.entry_id(name)
        try:
            entry.parse_name(f"{id_},S=0,C=00000000,J=0")
            count = entry.recipients(name)
        except ValueError:
            id_, count = "", 1
        settled = self._settled.setdefault(id_, set())
        count = max(0, count - sum(1 for address in settled if journal.folder(address) == domain))
        if id_:
            self._lines.append(journal.quarantined_line(id_, domain, count))

        def action() -> None:
            try:
                quarantine(self.layout, self.place(domain, name), f"{self.vmta}/{domain}: {reason}")
            except FileNotFoundError:
                pass
            self._forget(domain, name)
            self._forget_addresses(id_, domain)

        self._after_flush.append((id_, action))
        return Gone(reason, count)

    def hand_over(self, domain: str, name: str, target: str, new_name: str = "") -> bool:
        """Give an entry to another VMTA by one rename, under a new name if there is one. False, and it stays, where
        links of its message are still being made, a report of it is being written, or some of its recipients are
        settled: the other's process may have read its journal already."""
        try:
            parts = entry.parse_name(name)
        except ValueError:
            return False
        is_linked = parts.folder and os.path.lexists(incoming_path(self.layout, parts, self.vmta))
        is_part_done = any(journal.folder(address) == domain for address in self._settled.get(parts.id, ()))
        if is_linked or is_part_done or (domain, parts.id) in self._held or (domain, name) in self._done:
            return False
        folder = "cur" if ":" in name else "new"
        goal = f"{self.layout.queue}/{target}/{domain}/{folder}/{new_name or name}"
        try:
            put(disk.rename, self.place(domain, name), goal)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            return False
        self._forget(domain, name)
        self._forget_addresses(parts.id, domain)
        return True

    # Durability

    @property
    def is_dirty(self) -> bool:
        return bool(self._lines or self._after_flush or self._journal.has_rest)

    def flush(self) -> None:
        """Write the journal lines of this turn; what waits for their sync is now counted from here. Raises SpoolError
        (nothing is forgotten)."""
        if self._lines or self._journal.has_rest:
            lines, self._lines = "".join(self._lines), []
            self._journal.append(lines)
        now = time.monotonic_ns()
        for entry_id, action in self._after_flush:
            self._pending.append(_Pending(now, entry_id, action))
        self._after_flush = []

    @property
    def waiting_since(self) -> int | None:
        """Since when (monotonic nanoseconds) the oldest removal waits for a sync."""
        return self._pending[0].since if self._pending else None

    def reap(self, synced: int) -> int:
        """Do what a sync that began at `synced` has made safe; how many entries."""
        count = 0
        while self._pending and self._pending[0].since < synced:
            self._pending.popleft().action()
            count += 1
        return count

    def tend_journal(self) -> None:
        """Compact the journal when it has grown long."""
        if self._journal.is_long and not self._lines:
            self._compact_journal()

    def _compact_journal(self) -> None:
        pending = {pending.entry_id for pending in self._pending} | {id_ for id_, _ in self._after_flush}
        held = {id_ for _, id_ in self._held}
        self._journal.compact(pending | held | self._settled.keys() | self._told.keys())

    def _renew_journal(self) -> None:
        """Something is here of which a process before this one has settled a part, or all. What it wrote is written
        anew, once, before anything is done on the strength of it: if a failed sync ended that process, the next sync
        would not write the same pages again."""
        self._is_renewed = True
        self._compact_journal()

    def sync_journal(self) -> None:
        self._journal.sync()

    def close(self) -> None:
        self._journal.close()
        os.close(self._lock)

    def _forget(self, domain: str, name: str) -> None:
        known = self._known.get(domain)
        if known is not None and name in known:
            del known[name]
            self.known -= 1
            if not known:
                del self._known[domain]

    def _forget_addresses(self, entry_id: str, domain: str) -> None:
        """What is known of a message in one domain; its entries in other domains may still wait."""
        if entry_id in self._told:
            self._told[entry_id].pop(f"@{domain}", None)
            if not self._told[entry_id]:
                del self._told[entry_id]
        rest = {address for address in self._settled.pop(entry_id, ()) if journal.folder(address) != domain}
        if rest:
            self._settled[entry_id] = rest

    def _list(self, path: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(path) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _remove_if_long_empty(self, domain: str) -> None:
        path = f"{self.path}/{domain}"
        try:
            if time.time() - os.stat(f"{path}/new").st_mtime < KEEP_EMPTY:
                return
            for folder in ("cur", "new", ""):
                if os.path.isdir(f"{path}/{folder}"):
                    os.rmdir(f"{path}/{folder}")
        except OSError:
            pass  # somebody put mail there: it stays


def take(layout: Layout, vmta: str) -> int | None:
    """The lock of a VMTA's queue, or None while somebody works on it (a process whose parent died finishes before it
    lets go, and so does an operator's command)."""
    path = f"{layout.queue}/{vmta}"
    os.makedirs(path, exist_ok=True)
    return disk.lock_folder(path)
