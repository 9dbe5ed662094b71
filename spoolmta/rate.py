"""How fast and how soon again: the limiter of a rate, and the pauses after failures. No clock: `now` is an argument."""

from __future__ import annotations

import math
from collections.abc import MutableSequence

from spoolmta.model import Rate

BUCKETS = 64
LONGEST_ASKED = 3600.0
"""Seconds; what servers ask us to wait is hardly ever more, and tried again too early is no harm."""
_NEWEST, _NEXT, _SUM, _WIDTH, _RING = 0, 1, 2, 3, 4
CELLS = _RING + BUCKETS + 1
"""How many numbers a limiter remembers: given as memory that outlives the process, the rate holds over its restarts."""

Cells = MutableSequence[float]


class RateLimiter:
    """At most `count` in every window of `period` seconds, and at least 95 % of it when there is demand.

    Counts lie in 64 buckets of a period; a window is charged the whole of its oldest, partly covered bucket, so it
    is never above the limit and at most 1/64 below. A pace (one every period/count seconds, up to a second ahead)
    keeps a minute's mail from going out in the minute's first second.

    All it knows lies in `cells` (CELLS numbers, zero at first): the number of the newest bucket, when the next one
    may go, the sum of the buckets, their width, and the buckets in a ring.
    """

    __slots__ = ("_ahead", "_cells", "_width", "rate")

    def __init__(self, rate: Rate, cells: Cells | None = None) -> None:
        self.rate = rate
        self._cells: Cells = [0.0] * CELLS if cells is None else cells
        self._width = rate.period / BUCKETS
        self._ahead = min(1.0, rate.period / 20)

    def __repr__(self) -> str:
        return f"RateLimiter({self.rate}, sum={self._cells[_SUM]}, next={self._cells[_NEXT]})"

    def set_rate(self, rate: Rate, now: float) -> None:
        """A new limit. What was counted stays, as far as it can: with another period, as if it had been just now."""
        self.rate = rate
        self._cells[_NEXT] = min(self._cells[_NEXT], now)
        self._width = rate.period / BUCKETS
        self._ahead = min(1.0, rate.period / 20)

    def wait(self, now: float, count: float) -> float:
        """Seconds until `count` more are allowed; 0 if they are now. More than the whole limit is allowed when
        nothing else is in the window, because it would otherwise wait for ever."""
        if self.rate.count == math.inf:
            return 0.0
        number = self._advance(now)
        cells = self._cells
        pause = max(0.0, cells[_NEXT] - self._ahead - now)
        excess = cells[_SUM] + count - self.rate.count
        oldest = number - BUCKETS
        while excess > 0 and oldest <= number:
            amount = cells[_RING + oldest % (BUCKETS + 1)]
            if amount:
                excess -= amount
                pause = max(pause, (oldest + BUCKETS + 1) * self._width - now)
            oldest += 1
        return pause

    def allowance(self, now: float) -> float:
        """How many more, one by one, could go now; never less than 1, for `wait` has the last word."""
        if self.rate.count == math.inf:
            return math.inf
        self._advance(now)
        paced = (now + self._ahead - self._cells[_NEXT]) * self.rate.count / self.rate.period + 1.0
        return max(1.0, min(self.rate.count - self._cells[_SUM], paced))

    def busy_until(self) -> float:
        """When the window will be empty and this limiter as good as a new one."""
        if not self._cells[_SUM]:
            return -math.inf
        return max(self._cells[_NEXT], (self._cells[_NEWEST] + BUCKETS + 1) * self._width)

    def take(self, now: float, count: float) -> None:
        """Count them as sent now."""
        if self.rate.count == math.inf:
            return
        number = self._advance(now)
        cells = self._cells
        cells[_RING + number % (BUCKETS + 1)] += count
        cells[_SUM] += count
        cells[_NEXT] = max(now, cells[_NEXT]) + count * self.rate.period / self.rate.count

    def give_back(self, taken: float, now: float, count: float) -> None:
        """What was taken at `taken` has not been used; nothing happens if that has left the window already."""
        if self.rate.count == math.inf:
            return
        number, then = self._advance(now), math.floor(taken / self._width)
        place = _RING + then % (BUCKETS + 1)
        if number - BUCKETS <= then <= number and self._cells[place] >= count:
            self._cells[place] -= count
            self._cells[_SUM] -= count
            self._cells[_NEXT] -= count * self.rate.period / self.rate.count

    def _advance(self, now: float) -> int:
        """Let go of what has left the window; the number of the bucket of `now`."""
        cells = self._cells
        number = math.floor(now / self._width)
        newest = int(cells[_NEWEST])
        if newest == number and cells[_WIDTH] == self._width:
            return number
        if cells[_WIDTH] != self._width or newest > number:
            self._start_over(now, number)  # another period, or a clock that was set back: what is known counts as now
        elif number - newest > BUCKETS:
            if cells[_SUM]:
                self._empty()
        else:
            for passed in range(newest + 1, number + 1):
                place = _RING + passed % (BUCKETS + 1)
                if cells[place]:
                    cells[_SUM] -= cells[place]
                    cells[place] = 0.0
        cells[_NEWEST] = number
        return number

    def _start_over(self, now: float, number: int) -> None:
        total = self._cells[_SUM]
        self._empty()
        self._cells[_WIDTH] = self._width
        self._cells[_SUM] = self._cells[_RING + number % (BUCKETS + 1)] = total
        self._cells[_NEXT] = min(self._cells[_NEXT], now)

    def clear(self) -> None:
        """Forget all that was counted."""
        self._cells[_NEXT] = 0.0
        self._empty()

    def _empty(self) -> None:
        self._cells[_SUM] = 0.0
        for place in range(_RING, CELLS):
            self._cells[place] = 0.0


def is_remembered(cells: Cells, now: float) -> bool:
    """Whether what a limiter left still counts at `now`. Numbers that no limiter can have written do not."""
    total, width, newest = cells[_SUM], cells[_WIDTH], cells[_NEWEST]
    if not (total > 0 and 0 < width < math.inf and math.isfinite(newest) and math.isfinite(cells[_NEXT])):
        return False
    return (newest + BUCKETS + 1) * width > now


def pick(schedule: tuple[float, ...], failures: int) -> float:
    """The pause after the given number of failures in a row (1, 2, ...): the list's value, the last one repeats."""
    return schedule[min(max(failures, 1), len(schedule)) - 1]


def next_due(schedule: tuple[float, ...], attempts: int, now: float, expires: float) -> float:
    """When a deferred recipient is tried again: after its pause, but not later than its expiry (it is given up
    then). Law: between now and expires."""
    return max(now, min(now + pick(schedule, attempts), expires))


def believed(due: float, pauses: tuple[float, ...], now: float) -> float:
    """The due time of an entry that is found in the queue: at once, if no pause is so long. It was written by another
    clock then: the machine's has been set back since."""
    return due if due <= now + max(LONGEST_ASKED, *pauses) else now
