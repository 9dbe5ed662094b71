"""One page of memory shared by all processes, made before the first fork.

It holds what everybody must see at once and nobody must wait for: when the last sync began, the generation
of the accounting files and of the configuration, and a row of counters for each process role. Every cell is
an aligned 64-bit integer written by one process (the sync stamp by whoever synced; an older value written
over a newer one only delays a removal). The supervisor clears the gauges of a dead process.
"""

from __future__ import annotations

import enum
import mmap
import time
from collections.abc import Iterable


class Cell(enum.IntEnum):
    """The columns of a row. The first ones are cleared when the process dies; those behind QUEUED only grow."""

    PID = 0
    CONNECTIONS = 1
    LOG_GENERATION = 2
    CONFIG_GENERATION = 3
    READY = 4
    TROUBLE = 5
    QUEUED = 6
    MESSAGES = 7
    ACCEPTED = 8
    DELIVERED = 9
    BOUNCED = 10
    DEFERRED = 11
    EXPIRED = 12
    QUARANTINED = 13
    REFUSED = 14
    LEFT_ALONE = 15
    BYTES = 16
    RESTARTS = 17
    DELETED = 18
    UNSIGNED = 19


_WIDTH = len(Cell)
_CLEARED = Cell.QUEUED
_HEADER = 8
_SYNC, _LOG, _CONFIG, _FAILED = 0, 1, 2, 3


class Row:
    """The cells of one role: `row.add(Cell.DELIVERED, 1)`. One writer only."""

    __slots__ = ("_cells", "_offset")

    def __init__(self, cells: memoryview, offset: int) -> None:
        self._cells = cells
        self._offset = offset

    def __getitem__(self, cell: Cell) -> int:
        return int(self._cells[self._offset + cell])

    def __setitem__(self, cell: Cell, value: int) -> None:
        self._cells[self._offset + cell] = value

    def add(self, cell: int, amount: int) -> None:
        self._cells[self._offset + cell] += amount

    def clear_gauges(self) -> None:
        for cell in range(_CLEARED):
            self._cells[self._offset + cell] = 0

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{cell.name}={self[cell]}' for cell in Cell)})"


class Page:
    """The page itself. `rows` is how many roles it has room for; names get their rows in order of asking."""

    def __init__(self, rows: int) -> None:
        self._map = mmap.mmap(-1, (_HEADER + rows * _WIDTH) * 8)
        self._cells = memoryview(self._map).cast("q")
        self._capacity = rows
        self._names: dict[str, int] = {}

    def row(self, name: str) -> Row:
        """The row of a role, made at the first asking (by the supervisor, before the fork that needs it)."""
        if name not in self._names and len(self._names) >= self._capacity:
            raise OverflowError(f"no row left for {name}")
        index = self._names.setdefault(name, len(self._names))
        return Row(self._cells, _HEADER + index * _WIDTH)

    def has_room(self, names: Iterable[str]) -> bool:
        """Whether all these names have a row or would get one."""
        return len(self._names.keys() | set(names)) <= self._capacity

    def names(self) -> list[str]:
        return list(self._names)

    @property
    def synced(self) -> int:
        """When the newest finished sync of the spool began (monotonic nanoseconds)."""
        return int(self._cells[_SYNC])

    def publish_sync(self, began: int) -> None:
        self._cells[_SYNC] = began

    @property
    def failed_sync(self) -> int:
        """When the last sync of the spool failed (Unix nanoseconds); 0 if none has. What anybody wrote before may
        not be on the disk, and no later sync will write it."""
        return int(self._cells[_FAILED])

    def note_failed_sync(self) -> None:
        self._cells[_FAILED] = time.time_ns()

    @property
    def log_generation(self) -> int:
        return int(self._cells[_LOG])

    def next_log_generation(self) -> int:
        self._cells[_LOG] += 1
        return self.log_generation

    @property
    def config_generation(self) -> int:
        return int(self._cells[_CONFIG])

    def next_config_generation(self) -> int:
        self._cells[_CONFIG] += 1
        return self.config_generation
