"""Whether a process gets less of the processor than it could use: then it, and not the receivers, holds mail up.

Linux counts for each thread how long it ran and how long it was ready and had to wait for its turn
(`/proc/self/schedstat`). Both together are the share of the time in which it had something to do.
"""

from __future__ import annotations

import os
import time

PERIOD = 0.1
SHARE = 0.8
"""Of the time; below it there are moments in which nothing is to be done."""


class Processor:
    """Looks at most every PERIOD. Of the thread that makes it, which has to be the process's first."""

    def __init__(self) -> None:
        self.is_saturated = False
        try:
            self._descriptor = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = -1
        self._looked_at, self._busy = time.monotonic(), self._read()

    def __repr__(self) -> str:
        return f"Processor(saturated={self.is_saturated})"

    def look(self) -> bool:
        now = time.monotonic()
        passed = now - self._looked_at
        if passed >= PERIOD:
            busy = self._read()
            self.is_saturated = busy - self._busy > SHARE * passed
            self._looked_at, self._busy = now, busy
        return self.is_saturated

    def _read(self) -> float:
        """Seconds; without the waiting where the system does not tell."""
        if self._descriptor < 0:
            return time.process_time()
        ran, waited, _ = os.pread(self._descriptor, 100, 0).split()
        return (int(ran) + int(waited)) / 1e9

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
