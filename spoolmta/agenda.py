"""What to look at: things that changed, and things whose time has come."""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Agenda(Generic[Item]):
    """Items are looked at once for all that happened to them. An item has one time: the earliest asked for."""

    def __init__(self) -> None:
        self._marked: dict[Item, None] = {}
        self._timers: list[tuple[float, int, Item]] = []
        self._numbers = 0
        self._armed: dict[Item, float] = {}

    def __repr__(self) -> str:
        return f"Agenda({len(self._marked)} marked, {len(self._armed)} armed)"

    def __bool__(self) -> bool:
        return bool(self._marked)

    def mark(self, item: Item) -> None:
        """Look at it in this step."""
        self._marked[item] = None

    def arm(self, time: float, item: Item) -> None:
        """Look at it at `time`, or earlier if it is armed for earlier."""
        armed = self._armed.get(item)
        if armed is None or time < armed:
            self._armed[item] = time
            self._numbers += 1
            heapq.heappush(self._timers, (time, self._numbers, item))
            if len(self._timers) > 2 * len(self._armed) + 1000:  # most are out of date
                self._timers = [(time, number, item) for number, (item, time) in enumerate(self._armed.items())]
                heapq.heapify(self._timers)

    def ring(self, now: float) -> None:
        """Mark what has become due."""
        while self._timers and self._timers[0][0] <= now:
            time, _, item = heapq.heappop(self._timers)
            if self._armed.get(item) == time:
                del self._armed[item]
                self._marked[item] = None

    def take(self) -> Item:
        return self._marked.popitem()[0]

    def forget(self, item: Item) -> None:
        self._armed.pop(item, None)

    def next_time(self) -> float:
        return self._timers[0][0] if self._timers else math.inf
