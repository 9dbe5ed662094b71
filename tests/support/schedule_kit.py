"""Schedulers for tests, without chance."""

from __future__ import annotations

from spoolmta.action import VmtaLimits
from spoolmta.model import DomainPolicy
from spoolmta.schedule import Policies, Scheduler


def scheduler(limit: int = 0, sources: tuple[str, ...] = ()) -> Scheduler:
    """Every jitter is zero."""
    return Scheduler(VmtaLimits(limit, sources=sources))


def everywhere(policy: DomainPolicy) -> Policies:
    """The same policy for every site and domain."""
    return lambda _site, _domain: policy
