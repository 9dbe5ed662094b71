"""What the scheduler knows: the mail of a domain, the receiving end it goes to, the sessions there. No decisions."""

from __future__ import annotations

from collections import deque

from spoolmta.model import DomainPolicy, Failure
from spoolmta.rate import RateLimiter


class Queue:
    """The mail of one domain."""

    __slots__ = ("domain", "failure", "locating", "ready", "reason", "retry_at", "site", "waiting")

    def __init__(self, domain: str) -> None:
        self.domain = domain
        self.ready: deque[str] = deque()
        self.waiting: list[tuple[float, str]] = []
        self.site: Site | None = None
        self.locating = False
        self.retry_at = 0.0
        self.failure: Failure | None = None
        self.reason = ""

    def __repr__(self) -> str:
        site = self.site.key if self.site else None
        return (
            f"Queue({self.domain}, ready={len(self.ready)}, waiting={len(self.waiting)}, site={site}, {self.reason!r})"
        )


class Site:
    """What shares limits at the receiving end, with its open sessions and its state after failures."""

    __slots__ = (
        "blocked_until",
        "failures",
        "idle",
        "key",
        "limiter",
        "opening",
        "policy",
        "queues",
        "reason",
        "rotation",
        "sessions",
    )

    def __init__(self, key: str, policy: DomainPolicy) -> None:
        self.key = key
        self.policy = policy
        self.limiter = RateLimiter(policy.max_msg_rate)
        self.queues: set[Queue] = set()
        self.rotation: deque[Queue] = deque()
        self.sessions: set[int] = set()
        self.idle: deque[Session] = deque()
        self.opening = 0
        self.failures = 0
        self.blocked_until = 0.0
        self.reason = ""

    def __repr__(self) -> str:
        return (
            f"Site({self.key}, sessions={len(self.sessions)}, idle={len(self.idle)}, opening={self.opening}, "
            f"failures={self.failures}, blocked_until={self.blocked_until}, {self.reason!r})"
        )


class Session:
    """One connection, as far as limits are concerned."""

    __slots__ = ("delivered", "idle_since", "number", "opening", "sent", "site")

    def __init__(self, number: int, site: Site) -> None:
        self.number = number
        self.site = site
        self.opening = True
        self.sent = 0
        self.delivered = 0
        self.idle_since = 0.0
