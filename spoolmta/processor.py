"""Whether a process gets less of the processor than it could use: then it, and not the receivers, holds mail up.

Linux counts for each thread how long it ran and how long it was ready and had to wait for its turn
(`/proc/self/schedstat`). Both together are the share of the time in which it had something to do. Where a thousand
processes have a little to do each, this is small, and the wait is many times as long as the work.
"""

from __future__ import annotations

import os
import time

PERIOD = 0.1
SHARE = 0.8
"""Of the time; below it there are moments in which nothing is to be done."""
CROWD = 8
"""So many times as long as it ran it waited, where so many others want the processor."""
CROWDED_SHARE = 0.05
"""Of the time, at least, waited for: a few milliseconds behind somebody else are no crowd."""


class Processor:
    """Looks at most every PERIOD. Of the thread that makes it, which has to be the process's first."""

    def __init__(self) -> None:
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
        if passed >= PERIOD:
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
