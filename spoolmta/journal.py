"""What was accepted and what was settled: the truth that recovery and audit read.

Text, one line an event, written with one `write` a turn:

    A <id> <vmta> <recipients>      intake: a message was accepted (written before the sync that makes it so)
    D|B|E|X <id> <address>          a VMTA: the recipient was delivered, bounced, expired, deleted
    Q <id> @<domain> <recipients>   a VMTA: the entry was quarantined, with so many unsettled recipients
    A <id> <vmta> 1                 a VMTA: a report of its own (a DSN), written before the recipients it settles
    N <id> @<domain> <times>        a VMTA: the sender was told so many times that the entry is delayed
    c<letter> <id> <address>        copied from another VMTA's journal by a move: known here, counted there
    T <letter>=<count> ...          totals of lines that compaction took out; the first line

Laws. An id is counted as accepted once, however often it stands there (recovery may say it again). A recipient
of an id is settled once: the first line counts. A line that is not of these forms (a torn block after a power
cut) is skipped; a last line without its end is cut off by the owner when it opens the file.
Compaction keeps the lines of entries that still lie in the spool and adds the others to the totals.
"""

from __future__ import annotations

import ctypes
import errno
from collections import Counter
from collections.abc import Collection

from spoolmta import disk
from spoolmta.address import NotAnAddress, split
from spoolmta.errors import SpoolError, SyncFailed
from spoolmta.model import Outcome

ACCEPTED = "A"
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
SETTLED = frozenset(outcome.value for outcome in Outcome)
COMPACT_AT = 16 << 20
"""Bytes after which a journal is compacted: about 200,000 lines, read back in 0.2 s at a restart."""


def escape(address: str) -> str:
    """An address as one word of a line: space and % (and what is not printable) as %XX of its UTF-8 bytes."""
    if address.isprintable() and " " not in address and "%" not in address:
        return address
    return "".join(
        ch
        if ch.isprintable() and ch not in " %"
        else "".join(f"%{b:02X}" for b in ch.encode("utf-8", "surrogateescape"))
        for ch in address
    )


def folder(address: str) -> str:
    """The domain folder of an escaped address (what is escaped stands before the @, or is nothing we wrote)."""
    domain = address.rpartition("@")[2]
    if not domain.startswith("["):
        return domain
    try:
        return split("x@" + domain)[2]
    except NotAnAddress:
        return domain


def accepted_line(entry_id: str, vmta: str, recipients: int) -> str:
    return f"A {entry_id} {vmta} {recipients}\n"


def settled_line(outcome: Outcome, entry_id: str, address: str) -> str:
    return f"{outcome.value} {entry_id} {escape(address)}\n"


def told_line(entry_id: str, domain: str, times: int) -> str:
    return f"N {entry_id} @{domain} {times}\n"


def quarantined_line(entry_id: str, domain: str, recipients: int) -> str:
    return f"Q {entry_id} @{domain} {recipients}\n"


def copied_line(letter: str, entry_id: str, address: str, count: int) -> str:
    """What another VMTA's journal says of an (escaped) address."""
    return f"c{letter} {entry_id} {address}" + (f" {count}\n" if letter == "Q" else "\n")


class Record:
    """A journal read back: `totals` of compacted lines by letter, `accepted` id to recipients, `settled`
    id to {address (escaped, or @domain): (letter, count, copied)}, `told` id to {@domain: times}."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.accepted: dict[str, int] = {}
        self.settled: dict[str, dict[str, tuple[str, int, bool]]] = {}
        self.told: dict[str, dict[str, int]] = {}

    def addresses(self, entry_id: str) -> set[str]:
        """The escaped addresses of an id that are settled."""
        return set(self.settled.get(entry_id, ()))

    def read_line(self, line: str) -> None:
        words = line.split(" ")
        letter = words[0]
        if letter == "T":
            for word in words[1:]:
                key, _, total = word.partition("=")
                if total.isascii() and total.isdigit():
                    self.totals[key] += int(total)
        elif letter == ACCEPTED and len(words) == 4 and words[3].isascii() and words[3].isdigit():
            self.accepted[words[1]] = int(words[3])
        elif letter in SETTLED and len(words) == 3:
            self.settled.setdefault(words[1], {}).setdefault(words[2], (letter, 1, False))
        elif letter == "Q" and len(words) == 4 and words[3].isascii() and words[3].isdigit():
            self.settled.setdefault(words[1], {}).setdefault(words[2], ("Q", int(words[3]), False))
        elif letter == "N" and len(words) == 4 and words[3].isascii() and words[3].isdigit():
            self.told.setdefault(words[1], {})[words[2]] = int(words[3])
        elif letter[:1] == "c" and letter[1:] in SETTLED and len(words) in (3, 4):
            count = int(words[3]) if len(words) == 4 and words[3].isascii() and words[3].isdigit() else 1
            self.settled.setdefault(words[1], {}).setdefault(words[2], (letter[1:], count, True))


def read(path: str) -> Record:
    """Read a journal; one that does not exist is empty. A partial last line is ignored."""
    record = Record()
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                if line.endswith("\n") and "\0" not in line:
                    record.read_line(line[:-1])
    except FileNotFoundError:
        pass
    return record


class Journal:
    """The one writer of a journal file: `append` in the turn, `compact` now and then."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = disk.AppendFile(path)
        self._file.cut_partial_line()
        self._size = self._file.size
        self._limit = COMPACT_AT

    def append(self, lines: str) -> None:
        """Append whole lines; SpoolError when the disk refuses (they are kept and written first next time)."""
        data = lines.encode("utf-8", "surrogateescape")
        self._size += len(data)
        self._file.append(data)

    def sync(self) -> None:
        self._file.sync()

    @property
    def has_rest(self) -> bool:
        """Whether lines wait for room on the disk."""
        return self._file.has_rest

    @property
    def is_long(self) -> bool:
        return self._size > self._limit

    def compact(self, living: Collection[str]) -> None:
        """Rewrite the journal: lines of ids in `living` stay, the others become totals. Durable when it returns;
        a crash at any moment leaves the old file or the new one. On a full disk everything stays as it is."""
        if self._file.has_rest:
            return
        try:
            disk.replace(self.path, _compacted(read(self.path), living))
            give_back_memory()
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
            if not is_full or isinstance(error, SyncFailed):
                raise SpoolError(f"cannot compact {self.path}: {error.strerror}") from error
        finally:
            if not self._file.is_at(self.path):
                old, self._file = self._file, disk.AppendFile(self.path)
                old.close()
        self._size = self._file.size
        self._limit = max(COMPACT_AT, 2 * self._size)

    def close(self) -> None:
        self._file.close()


def give_back_memory() -> None:
    """What a journal took while it was read (15 MB for 10) is scattered, and stays with the process otherwise: 4 MB of
    it, each time in other places. Where the C library is not glibc nothing is done."""
    if _trim is not None:
        _trim(0)


def _compacted(record: Record, living: Collection[str]) -> bytes:
    totals = record.totals
    lines: list[str] = []
    for entry_id, count in record.accepted.items():
        if entry_id in living:
            lines.append(f"A {entry_id} - {count}\n")
        else:
            totals[ACCEPTED] += count
    for entry_id, addresses in record.settled.items():
        for address, (outcome, count, copied) in addresses.items():
            if entry_id in living:
                tail = f" {count}" if outcome == "Q" else ""
                lines.append(f"{'c' if copied else ''}{outcome} {entry_id} {address}{tail}\n")
            elif not copied:
                totals[outcome] += count
    lines += [told_line(id_, at[1:], n) for id_ in living for at, n in record.told.get(id_, {}).items()]
    head = "T " + " ".join(f"{letter}={totals[letter]}" for letter in sorted(totals)) + "\n" if totals else ""
    return (head + "".join(lines)).encode("utf-8", "surrogateescape")
