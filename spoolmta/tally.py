"""Numbers by name that all processes count together, and that outlive them: what members of pools are owed, how many
messages a VMTA that is warming up has had today.

One file, mapped into memory by whoever counts: a hash table of slots (the name's hash, a number, the day it was last
used, the day it was first used). Who reads or changes numbers holds a lock, which the kernel takes from a dead process;
a number is changed by one store, so a kill leaves the old one or the new one. What is counted survives a process
by itself, and a power cut as far as the last sync of the spool. A full table is written anew, without what has not been
used for KEEP days, and renamed over the old one.
"""

from __future__ import annotations

import array
import contextlib
import functools
import hashlib
import mmap
import os
from collections.abc import Iterator, MutableSequence
from typing import cast

from spoolmta import disk

NUMBER, LAST_DAY, FIRST_DAY = 0, 1, 2
KEEP = 60
"""Days after which a number that is not used is forgotten; an address that sent nothing for so long is cold again."""
FIRST_SLOTS = 256
MAX_PROBES = 32
_SLOT = 4
_BYTES = 8 * _SLOT


class Tally:
    """The table at `path`; the lock is a file beside it, which is never replaced."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = -1
        self._inode = self._slots = 0
        self._numbers = memoryview(b"").cast("q")
        self._loose: dict[int, list[int]] = {}

    def __repr__(self) -> str:
        return f"Tally({self._path}, {self._slots} slots, {len(self._loose)} beside it)"

    def close(self) -> None:
        """The mapping goes with the process."""
        if self._lock >= 0:
            os.close(self._lock)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else counts meanwhile. Raises OSError where the lock's file is missing and cannot be made."""
        if self._lock < 0:
            self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        with disk.locked(self._lock):
            try:
                is_current = os.stat(self._path).st_ino == self._inode
            except FileNotFoundError:
                is_current = False
            if not is_current:
                self._map()
            yield

    def _map(self) -> None:
        """Map the file as it is now. On a full disk there is none, and each process counts by itself."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            status = os.fstat(file)
            size = status.st_size // _BYTES * _BYTES
            if not size:
                size = FIRST_SLOTS * _BYTES
                # A write into a hole of a mapped file would end the process on a full disk.
                os.posix_fallocate(file, 0, size)
            self._numbers = memoryview(mmap.mmap(file, size)).cast("q")
            self._inode, self._slots = status.st_ino, size // _BYTES
        except OSError:
            self._inode = self._slots = 0
        finally:
            os.close(file)

    def cells(self, name: str, today: int) -> MutableSequence[int]:
        """(number, last day, first day) of a name, to be read and changed while locked; days are counted from anywhere.
        A name that is new has 0 and today."""
        digest = _digest(name)
        place = self._find(digest)
        if place is None and self._slots and self._rebuild(today):
            place = self._find(digest)
        if place is None:
            return self._loose.setdefault(digest, [0, today, today])
        cells = self._numbers[place + 1 : place + _SLOT]
        if not self._numbers[place]:
            cells[NUMBER], cells[LAST_DAY], cells[FIRST_DAY] = 0, today, today
            self._numbers[place] = digest
        return cast(MutableSequence[int], cells)

    def _find(self, digest: int) -> int | None:
        """The place of a hash, or where it belongs; None if the table is too full there."""
        for step in range(min(MAX_PROBES, self._slots)):
            place = (digest + step) % self._slots * _SLOT
            if self._numbers[place] in (digest, 0):
                return place
        return None

    def _rebuild(self, today: int) -> bool:
        """Write the table anew, with room; False on a full disk."""
        every = [self._numbers[place : place + _SLOT].tolist() for place in range(0, self._slots * _SLOT, _SLOT)]
        living = [slot for slot in every if slot[0] and slot[1 + LAST_DAY] >= today - KEEP]
        slots = FIRST_SLOTS
        while slots < 3 * len(living) or (table := _table(living, slots)) is None:
            slots *= 2
        try:
            disk.replace(self._path, table)
        except OSError:
            return False
        self._map()
        return True


@functools.lru_cache(maxsize=100_000)
def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True) or 1


def _table(living: list[list[int]], slots: int) -> bytes | None:
    """The bytes of a table; None if somebody finds no place in it."""
    numbers = array.array("q", bytes(slots * _BYTES))
    for slot in living:
        for step in range(MAX_PROBES // 2):
            place = (slot[0] + step) % slots * _SLOT
            if not numbers[place]:
                numbers[place : place + _SLOT] = array.array("q", slot)
                break
        else:
            return None
    return numbers.tobytes()
