"""Entries of a VMTA's queue come to its scheduler: named by hints, or found by scans where hints were lost or may have
been. The directory is the truth: what is known already is not taken twice."""

from __future__ import annotations

from collections.abc import Callable

from spoolmta import rate
from spoolmta.control import SCAN, HintReader
from spoolmta.model import DomainPolicy
from spoolmta.rerouting import Rerouting
from spoolmta.schedule import Scheduler
from spoolmta.spool.partition import Partition
from spoolmta.survey import Survey


class Inflow:
    """`hints` is the VMTA's FIFO; what holds for a domain's mail, and the process's clock."""

    def __init__(
        self,
        hints: int,
        partition: Partition,
        scheduler: Scheduler,
        rerouting: Rerouting,
        policy: Callable[[str], DomainPolicy],
        now: Callable[[], float],
    ) -> None:
        self._hints = HintReader(hints)
        self._partition, self._scheduler, self._rerouting = partition, scheduler, rerouting
        self._policy, self._now = policy, now
        self.survey = Survey(partition, self._find, now)

    def __repr__(self) -> str:
        return f"Inflow({self._partition.vmta}, {self.survey})"

    @property
    def descriptor(self) -> int:
        return self._hints.descriptor

    def read_hints(self) -> bool:
        """Whether there were any."""
        hints = self._hints.read()
        for hint in hints:
            if hint == SCAN:
                self.survey.is_wanted = True
                continue
            parts = hint.split("/")
            if len(parts) == 3:
                self.add(parts[0], parts[2])
        return bool(hints)

    def add(self, domain: str, name: str) -> None:
        """An entry that has come, unless it is known."""
        due = self._partition.add(domain, name)
        if due is not None:
            self._take(domain, name, due, self._now())

    def _find(self, domain: str, name: str, due: float, now: float) -> None:
        if due > now:
            due = rate.believed(due, self._policy(domain).retry_recipients_after, now)
        self._take(domain, name, due, now)

    def _take(self, domain: str, name: str, due: float, now: float) -> None:
        if not self._rerouting.takes(domain, name, now):
            self._scheduler.add(domain, name, due, now)
