"""Whether a process gets less of the processor than it could use: then it, and not the receivers, holds mail up.

Linux counts for each thread how long it ran and how long it was ready and had to wait for its turn
(`/proc/self/schedstat`). Both together are the share of the time in which it had something to do. Where a thousand
processes have a little to do each, this is small, and the wait is many times as long as the work.
"""

from __future__ import annotations

import contextlib
import os
import time

PERIOD = 0.1
SHARE = 0.8
"""Of the time; below it there are moments in which nothing is to be done."""
CROWD = 5
"""So many times as long as it ran it waited, where so many others want the processor. Among the processes of 8 VMTAs
the pickup process waits twice as long as it runs, among those of 300 ten times."""
CROWDED_SHARE = 0.05
"""Of the time, at least, waited for: a few milliseconds behind somebody else are no crowd."""

AHEAD = 15
"""Steps of niceness: 30 times the share of another process."""
WHILE = 10.0
LONG_PERIOD = 0.5
"""Seconds of crowd before precedence is taken: in a shorter time there is one now and then among eight VMTAs too."""


class Processor:
    """Looks at most every `period` seconds. Of the thread that makes it, which has to be the process's first."""

    def __init__(self, period: float = PERIOD) -> None:
        self._period = period
        self.is_saturated = self.is_crowded = False
        try:
            self._descriptor = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = -1
        self._looked_at = time.monotonic()
        self._ran, self._waited = self._read()

    def __repr__(self) -> str:
        return f"Processor(saturated={self.is_saturated}, crowded={self.is_crowded})"

    def look(self) -> None:
        now = time.monotonic()
        passed = now - self._looked_at
        if passed >= self._period:
            ran, waited = self._read()
            work, wait = ran - self._ran, waited - self._waited
            self.is_saturated = work + wait > SHARE * passed
            self.is_crowded = wait > CROWDED_SHARE * passed and wait > CROWD * work
            self._looked_at, self._ran, self._waited = now, ran, waited

    def _read(self) -> tuple[float, float]:
        """Seconds it ran and waited; none waited where the system does not tell."""
        if self._descriptor < 0:
            return time.process_time(), 0.0
        ran, waited, _ = os.pread(self._descriptor, 100, 0).split()
        return int(ran) / 1e9, int(waited) / 1e9

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Precedence:
    """A process that comes before the others where these crowd it out, as far as it may (`process.may_go_ahead`).

    Among 300 delivery processes that all have something to do the pickup process got a tenth of the time it wanted:
    mail lay in its folder, came to each VMTA message by message, and cost twice as much. Among eight it finds more at
    once, and its syncs cover more, when it has to wait now and then.
    """

    def __init__(self, seconds: float = WHILE) -> None:
        self._seconds = seconds
        self._processor = Processor(LONG_PERIOD)
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)
        self._until = 0.0

    def __repr__(self) -> str:
        return f"Precedence(until={self._until}, {self._processor})"

    def tend(self) -> None:
        """Take precedence in a crowd, for a while: whether it is one still can only be seen without."""
        self._processor.look()
        now = time.monotonic()
        if self._until and now >= self._until:
            self._until = 0.0
            self._set(self._niceness)
        elif not self._until and self._processor.is_crowded:
            self._until = now + self._seconds
            self._set(max(-20, self._niceness - AHEAD))

    def _set(self, niceness: int) -> None:
        for thread in os.listdir(
            "/proc/self/task"
        ):  # Linux has it for each, and the one that syncs must not wait either
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(thread), niceness)

    def close(self) -> None:
        self._processor.close()
