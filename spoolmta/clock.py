"""The time by which mail waits and ages: that of day when the system started, advanced by a clock that does not jump.

All processes of a system inherit it, and operators' commands follow it while the system runs: when the machine's clock
is set, nothing changes about when an entry is due, how old it is, or when a sleeping VMTA is woken. The log and the
names of its files go by the time of day. After a restart a due time that no pause can have made is not believed
(`rate.believed`).
"""

from __future__ import annotations

import time

_OFFSET_NS = time.time_ns() - time.monotonic_ns()


def told() -> bytes:
    """What a process that is no child needs to go by this clock."""
    return b"%d\n" % _OFFSET_NS


def follow(told: bytes) -> None:
    """Go by another process's clock from now on."""
    global _OFFSET_NS
    _OFFSET_NS = int(told)


def now() -> float:
    """Unix seconds."""
    return now_ns() / 1e9


def now_ns() -> int:
    return time.monotonic_ns() + _OFFSET_NS
