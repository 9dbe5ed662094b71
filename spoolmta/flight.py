"""What is on its way to a program: rows that were given to a pipe, and how far the program has read.

Laws. A position is settled when the program has read the whole row before it, and not before; the settled position only
goes forward, row by row as they were given. What is not settled is given again to the program that comes next.
"""

from __future__ import annotations

from collections import deque
from typing import Any

Position = dict[str, Any]
"""A position in a log (`log.Follower.position`); an empty one is its beginning."""


class Flight:
    """Rows since one start of a program. `settled` is the position behind the last row that it has read, `rows` how
    many it has read."""

    def __init__(self, settled: Position) -> None:
        self.settled = settled
        self.rows = 0
        self.done = 0
        """Bytes that were read, of all that were given."""
        self._given = 0
        self._ends: deque[tuple[int, Position]] = deque()

    def __repr__(self) -> str:
        return f"Flight({self.done} of {self._given} bytes, {len(self._ends)} rows)"

    def give(self, size: int, position: Position | None = None) -> None:
        """So many more bytes are given; with a position they end a row."""
        self._given += size
        if position is not None:
            self._ends.append((self._given, position))

    def read(self, unread: int) -> bool:
        """All that was given is read, but for so many bytes. Whether that is more than before, or everything."""
        done = self._given - unread
        is_forward = done > self.done or not unread
        self.done = max(self.done, done)
        while self._ends and self._ends[0][0] <= self.done:
            self.settled = self._ends.popleft()[1]
            self.rows += 1
        return is_forward

    def go_on_to(self, position: Position) -> None:
        """There is nothing more before this position; all that was given must be read."""
        self.settled = position

    @property
    def is_over(self) -> bool:
        return not self._ends
