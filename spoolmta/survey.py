"""Looks through the whole queue of a VMTA, where hints were lost or may have been, beside its other work.

A million entries take some seconds: they come in slices, one in each turn of the loop, and the first of them are
delivered meanwhile. All looking takes at most a twentieth of the time, but for the first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

from spoolmta.spool.partition import Partition

log = logging.getLogger("spoolmta")

SLICE = 0.01
"""Seconds of a turn, at most about twice as many."""
REST = 0.25


class Survey:
    """`add` gets what was not known yet: domain, name, due time, and now."""

    def __init__(
        self, partition: Partition, add: Callable[[str, str, int, float], None], clock: Callable[[], float]
    ) -> None:
        self._partition, self._add, self._clock = partition, add, clock
        self._parts: Iterator[list[tuple[str, str, int]]] | None = None
        self._took = 0.0
        self._next_at = 0.0
        self.is_wanted = True
        self.is_complete = False
        """Whether every entry that lay there at the start is known."""

    def __repr__(self) -> str:
        return f"Survey(wanted={self.is_wanted}, under way={self._parts is not None}, next at {self._next_at})"

    def work(self) -> bool:
        """A slice, if it is time; whether the next turn should follow at once."""
        begun = now = self._clock()
        if self._parts is None:
            if not self.is_wanted or now < self._next_at:
                return False
            self.is_wanted, self._parts, self._took = False, self._partition.scan_in_parts(), 0.0
        try:
            for part in self._parts:
                for domain, name, due in part:
                    self._add(domain, name, due, now)
                now = self._clock()
                if now > begun + SLICE:
                    self._took += now - begun
                    return True
        except OSError as error:  # the rest is found later
            log.error("%s; looking again in a second", error)
            self.is_wanted, self._parts, self._next_at = True, None, self._clock() + 1.0
            return False
        self._parts = None
        if not self.is_complete:
            self.is_complete = True
            self._partition.forget_settled()
        self._next_at = self._clock() + max(REST, 20 * (self._took + self._clock() - begun))
        return False

    @property
    def next_at(self) -> float:
        """When `work` has something to do, infinity if nobody wants it."""
        return self._next_at if self.is_wanted else math.inf
