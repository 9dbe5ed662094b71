"""How many files and sockets a process may have open, and who of it may have how many.

What sessions, questions to name servers and FIFOs take must leave enough to read mail and to write down what became of
it: a process without a descriptor can do neither.
"""

from __future__ import annotations

import resource

OWN = 32
"""For the process itself: its loop, its files, its maps, and a message to read."""
SESSIONS, QUESTIONS, FIFOS = 2, 8, 4
"""Each may have one part in so many of the rest. Sessions that say goodbye hold theirs while others are opened."""


def raise_limit() -> None:
    """One FIFO a VMTA, and the connections: take what the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share(parts: int, most: int) -> int:
    """How many one of those may have open, `most` at best."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, (soft - OWN) // parts))
