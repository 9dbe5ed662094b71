"""Names that wait for their time, in little memory: 16 bytes each beside the name.

The youngest are a heap of tuples. When there are RUN of them they become a run: sorted, the last one first, its times
in an array. A second heap knows the head of each run. So a name is moved once, whatever there are, and nothing ever
holds up the loop.

Laws. What is pushed is taken exactly once, the first due first, and of those due together the first by name.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Iterator

RUN = 64


class _Run:
    """What is left of a run behind its head; the next one is the last."""

    __slots__ = ("dues", "names")

    def __init__(self, items: list[tuple[float, str]]) -> None:
        self.dues = array("d", [due for due, _ in items])
        self.names = [name for _, name in items]


class Waiting:
    """Iterating gives the names, in no order."""

    __slots__ = ("_heads", "_size", "_young")

    def __init__(self) -> None:
        self._young: list[tuple[float, str]] = []
        self._heads: list[tuple[float, str, _Run]] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"Waiting({self._size} names, the first due at {self.first_due})"

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        for _, name in self._young:
            yield name
        for _, name, run in self._heads:
            yield name
            yield from run.names

    @property
    def first_due(self) -> float:
        """Infinity if nothing waits."""
        due = self._young[0][0] if self._young else math.inf
        return min(due, self._heads[0][0]) if self._heads else due

    def push(self, due: float, name: str) -> None:
        self._size += 1
        heapq.heappush(self._young, (due, name))
        if len(self._young) >= RUN:
            run = _Run(sorted(self._young, reverse=True))
            self._young = []
            heapq.heappush(self._heads, (run.dues.pop(), run.names.pop(), run))

    def pop(self) -> str:
        """The first, taken. IndexError if there is none."""
        if not self._heads or (self._young and self._young[0] < self._heads[0]):
            name = heapq.heappop(self._young)[1]
        else:
            _, name, run = self._heads[0]
            if run.names:
                heapq.heapreplace(self._heads, (run.dues.pop(), run.names.pop(), run))
            else:
                heapq.heappop(self._heads)
        self._size -= 1
        return name

    def take(self, is_meant: Callable[[str], bool]) -> list[str]:
        """The names that are meant, the first due first, taken."""
        if not any(map(is_meant, self)):
            return []
        every, taken = [(self.first_due, self.pop()) for _ in range(self._size)], []
        for due, name in every:
            if is_meant(name):
                taken.append(name)
            else:
                self.push(due, name)
        return taken
