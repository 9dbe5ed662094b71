"""How fast and how soon again: the limiter of a rate, and the pauses after failures. No clock: `now` is an argument."""

from __future__ import annotations

import math
from collections import deque

from spoolmta.model import Rate


class RateLimiter:
    """At most `count` in every window of `period` seconds, and at least 95 % of it when there is demand.

    Counts lie in 64 buckets of a period; a window is charged the whole of its oldest, partly covered bucket, so it
    is never above the limit and at most 1/64 below. A pace (one every period/count seconds, up to a second ahead)
    keeps a minute's mail from going out in the minute's first second.
    """

    BUCKETS = 64

    __slots__ = ("_ahead", "_buckets", "_next", "_sum", "_width", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._width = rate.period / self.BUCKETS
        self._buckets: deque[list[float]] = deque()
        self._sum = 0.0
        self._ahead = min(1.0, rate.period / 20)
        self._next = -math.inf

    def __repr__(self) -> str:
        return f"RateLimiter({self.rate}, sum={self._sum}, next={self._next}, buckets={list(self._buckets)})"

    def wait(self, now: float, count: int) -> float:
        """Seconds until `count` more are allowed; 0 if they are now. More than the whole limit is allowed when
        nothing else is in the window, because it would otherwise wait for ever."""
        if self.rate.count == math.inf:
            return 0.0
        oldest = math.floor(now / self._width) - self.BUCKETS
        while self._buckets and self._buckets[0][0] < oldest:
            self._sum -= self._buckets.popleft()[1]
        pause = max(0.0, self._next - self._ahead - now)
        excess = self._sum + count - self.rate.count
        for number, amount in self._buckets:
            if excess <= 0:
                break
            excess -= amount
            pause = max(pause, (number + self.BUCKETS + 1) * self._width - now)
        return pause

    def allowance(self, now: float) -> float:
        """How many more, one by one, could go now; never less than 1, for `wait` has the last word."""
        if self.rate.count == math.inf:
            return math.inf
        paced = (now + self._ahead - self._next) * self.rate.count / self.rate.period + 1.0
        return max(1.0, min(self.rate.count - self._sum, paced))

    def busy_until(self) -> float:
        """When the window will be empty and this limiter as good as a new one."""
        return max(self._next, (self._buckets[-1][0] + self.BUCKETS + 1) * self._width) if self._buckets else -math.inf

    def take(self, now: float, count: int) -> None:
        """Count them as sent now."""
        if self.rate.count == math.inf:
            return
        number = math.floor(now / self._width)
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append([number, 0.0])
        self._buckets[-1][1] += count
        self._sum += count
        self._next = max(now, self._next) + count * self.rate.period / self.rate.count


def pick(schedule: tuple[float, ...], failures: int) -> float:
    """The pause after the given number of failures in a row (1, 2, ...): the list's value, the last one repeats."""
    return schedule[min(max(failures, 1), len(schedule)) - 1]


def next_due(schedule: tuple[float, ...], attempts: int, now: float, expires: float) -> float:
    """When a deferred recipient is tried again: after its pause, but not later than its expiry (it is given up
    then). Law: between now and expires."""
    return max(now, min(now + pick(schedule, attempts), expires))
