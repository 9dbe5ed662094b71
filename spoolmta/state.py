"""What a delivery process leaves: in `state/<vmta>` when it wants to be woken and what is known of its sites, in
`rates/<vmta>` the windows of its rates. The mail itself is in the queue; an unreadable state counts as none.

The rates lie in a file that is mapped into memory and changed in place. What is written there survives the process by
itself, however it ends (the kernel has it), and a power cut as far as the last sync of the spool, which is half a
second ago at most while mail goes out. So no rate is exceeded by a restart, and none costs a system call.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from typing import cast

import msgspec

from spoolmta import disk, trigger
from spoolmta.condition import Condition
from spoolmta.rate import CELLS, Cells, is_remembered
from spoolmta.spool.layout import Layout
from spoolmta.switch import Order

_SLOT = 1 + CELLS
_BYTES = 8 * _SLOT
_FIRST_SLOTS = 16


class State(msgspec.Struct, frozen=True):
    """`wake` is in Unix seconds, 0 for never. `counts` are those of response rules (`trigger.State`). `orders` stand
    for sites that come later; `domains` are the sites of domains with mail, where a domain is not one by itself.
    `alerted`: when whom a mail about queues was sent to (`alert.Gathering`)."""

    wake: float
    sites: dict[str, Condition]
    counts: trigger.State = msgspec.field(default_factory=trigger.State)
    orders: list[Order] = []
    domains: dict[str, str] = {}
    alerted: dict[str, float] = {}


def load(layout: Layout, vmta: str) -> State:
    """The state a process left."""
    try:
        with open(layout.state(vmta), "rb") as file:
            return msgspec.json.decode(file.read(), type=State)
    except (FileNotFoundError, msgspec.MsgspecError):
        return State(0.0, {})


def save(layout: Layout, vmta: str, left: State) -> None:
    """Leave the state, durably; `wake` infinity for never."""
    if left.wake == math.inf:
        left = msgspec.structs.replace(left, wake=0.0)
    disk.replace(layout.state(vmta), msgspec.json.encode(left))


class Rates:
    """The memory of limiters by name, in one file: slots of a name's hash and its cells. `now` in Unix seconds: slots
    whose window is empty by then are used again. Without room on the disk, or a
    descriptor, there is no memory, and rates hold as long as the process lives."""

    def __init__(self, path: str, now: float) -> None:
        self._now = now
        self._maps: list[memoryview[float]] = []
        self._slots: dict[int, Cells] = {}
        self._empty: list[tuple[memoryview[float], int]] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(self._file).st_size
        self._size = size if size % _BYTES == 0 else 0
        self._map(0, self._size)

    def __repr__(self) -> str:
        return f"Rates({len(self._slots)} limiters, {len(self._empty)} slots free)"

    def cells(self, name: str) -> Cells | None:
        """The memory of the limiter of this name, as it was left; None if there is none."""
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True) or 1
        found = self._slots.get(digest)
        if found is not None:
            return found
        if not self._empty and not self._grow():
            return None
        numbers, slot = self._empty.pop()
        names = numbers.cast("B").cast("q")
        names[slot * _SLOT] = digest
        names.release()
        found = self._slots[digest] = _cells(numbers, slot)
        for place in range(CELLS):
            found[place] = 0.0
        return found

    def _grow(self) -> bool:
        """Twice as many slots. The room is allocated: a write into a hole of a mapped file on a full disk would end the
        process."""
        size = max(2 * self._size, _FIRST_SLOTS * _BYTES)
        try:
            os.posix_fallocate(self._file, self._size, size - self._size)
            self._map(self._size, size)
        except OSError:
            return False
        self._size = size
        return True

    def _map(self, begin: int, end: int) -> None:
        """Map the file up to `end` and look at what lies behind `begin`; earlier mappings stay, limiters hold them."""
        if end == begin:
            return
        memory = mmap.mmap(self._file, end)
        numbers, names = memoryview(memory).cast("d"), memoryview(memory).cast("q")
        self._maps.append(numbers)
        for slot in range(begin // _BYTES, end // _BYTES):
            cells = _cells(numbers, slot)
            if names[slot * _SLOT] and is_remembered(cells, self._now):
                self._slots[names[slot * _SLOT]] = cells
            else:
                self._empty.append((numbers, slot))
        names.release()

    def close(self) -> None:
        """The mappings go with the process."""
        os.close(self._file)


def _cells(numbers: memoryview[float], slot: int) -> Cells:
    return cast(Cells, numbers[slot * _SLOT + 1 : (slot + 1) * _SLOT])
