"""What to do now: which domain to look up, which connection to open, which message to put on it.

`Scheduler.step(now)` looks at the clock it is given and nothing else, returns actions, and says when it wants to
be asked again. Whoever performs the actions reports back (`located`, `opened`, `finished`, ...).

    names      wait in the Queue of their domain: `ready` (first come, first served) or `waiting` for their due time
    a Queue    is new -> being located -> located (it belongs to a Site), or condemned (its mail is given back
               with the failure), or it waits for the next look-up
    a Site     is what shares limits at the receiving end; it is open, or blocked until a time after a failure
    a Session  is opening -> idle <-> busy -> gone

Laws. Limits are never exceeded: sessions of a site, sessions of the VMTA, messages of a session, recipients in any
window of a rate. A name is in exactly one place: waiting, ready, or on one session; it leaves by exactly one
action (Assign, Reject, Expire). `wake_at` is in the future. A blocked site opens nothing; after a failure one
session goes first, the others follow its success.
`now` is Unix seconds from a clock that does not jump.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from spoolmta import entry
from spoolmta.model import DomainPolicy, Failure, Rate, Struct

BATCH = 500
"""Names given back in one step; the rest follows in the next turn of the loop, so that a big condemned queue does
not hold up the others."""
SOON = 0.001
ENOUGH = 3
"""Sessions a site may have when our own processor is what holds us up (`is_saturated`): one sends while another waits."""


class Locate(Struct, frozen=True):
    """Find the site of a domain; answer with `located`, `unlocated` or `condemned`."""

    domain: str


class Open(Struct, frozen=True):
    """Open a session to a site, found by way of `domain`; answer with `opened` or `open_failed`."""

    session: int
    site: str
    domain: str


class Assign(Struct, frozen=True):
    """Send this entry on this session; answer with `finished`."""

    session: int
    domain: str
    name: str


class Close(Struct, frozen=True):
    """End a session politely; it is already forgotten here."""

    session: int


class Reject(Struct, frozen=True):
    """Settle this entry without trying: its domain takes no mail."""

    domain: str
    name: str
    failure: Failure


class Expire(Struct, frozen=True):
    """This entry has waited for bounce-after; `reason` is why it could not be delivered."""

    domain: str
    name: str
    reason: str


Action = Locate | Open | Assign | Close | Reject | Expire


class RateLimiter:
    """At most `count` in every window of `period` seconds, and at least 95 % of it when there is demand.

    Counts lie in 64 buckets of a period; a window is charged the whole of its oldest, partly covered bucket, so it
    is never above the limit and at most 1/64 below. A pace (one every period/count seconds, up to a second ahead)
    keeps a minute's mail from going out in the minute's first second.
    """

    BUCKETS = 64

    __slots__ = ("_buckets", "_next", "_sum", "_width", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._width = rate.period / self.BUCKETS
        self._buckets: deque[list[float]] = deque()
        self._sum = 0.0
        self._next = -math.inf

    def wait(self, now: float, count: int) -> float:
        """Seconds until `count` more are allowed; 0 if they are now. More than the whole limit is allowed when
        nothing else is in the window, because it would otherwise wait for ever."""
        if self.rate.count == math.inf:
            return 0.0
        oldest = math.floor(now / self._width) - self.BUCKETS
        while self._buckets and self._buckets[0][0] < oldest:
            self._sum -= self._buckets.popleft()[1]
        ahead = min(1.0, self.rate.period / 20)
        pause = max(0.0, self._next - ahead - now)
        excess = self._sum + count - self.rate.count
        for number, amount in self._buckets:
            if excess <= 0:
                break
            excess -= amount
            pause = max(pause, (number + self.BUCKETS + 1) * self._width - now)
        return pause

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
        self.idle: list[Session] = []
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


def pick(schedule: tuple[float, ...], failures: int) -> float:
    """The pause after the given number of failures in a row (1, 2, ...): the list's value, the last one repeats."""
    return schedule[min(max(failures, 1), len(schedule)) - 1]


def next_due(schedule: tuple[float, ...], attempts: int, now: float, expires: float) -> float:
    """When a deferred recipient is tried again: after its pause, but not later than its expiry (it is given up
    then). Law: between now and expires."""
    return max(now, min(now + pick(schedule, attempts), expires))


class Scheduler:
    """All queues, sites and sessions of one VMTA. `max_smtp_out` 0 means no limit over all of them."""

    def __init__(self, max_smtp_out: int = 0) -> None:
        self.max_smtp_out = max_smtp_out
        self.queues: dict[str, Queue] = {}
        self.sites: dict[str, Site] = {}
        self._sessions: dict[int, Session] = {}
        self._numbers = 0
        self._dirty: dict[Queue | Site, None] = {}
        self._starved: dict[Site, None] = {}
        self._timers: list[tuple[float, int, Queue | Site]] = []
        self._timer_numbers = 0
        self._armed: dict[Queue | Site, float] = {}
        self._remembered: dict[str, tuple[int, float, str]] = {}
        self._decided: list[Action] = []
        self.size = 0
        self.draining = False
        self.is_saturated = False

    def __repr__(self) -> str:
        return f"Scheduler(size={self.size}, sessions={len(self._sessions)}, queues={self.queues}, sites={self.sites})"

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    # What is reported to the scheduler

    def add(self, domain: str, name: str, due: float, now: float) -> None:
        """An entry to be delivered: at once, or not before `due`."""
        queue = self.queues.get(domain)
        if queue is None:
            queue = self.queues[domain] = Queue(domain)
        self.size += 1
        if due > now:
            heapq.heappush(queue.waiting, (due, name))
            if queue.waiting[0][1] is name:
                self._arm(due, queue)
        else:
            self._make_ready(queue, name)

    def located(self, domain: str, site_key: str, policy: DomainPolicy, now: float) -> None:
        """The domain's site is known; its mail goes there from now on."""
        queue = self.queues.get(domain)
        if queue is None:
            return
        site = self.sites.get(site_key)
        if site is None:
            site = self.sites[site_key] = Site(site_key, policy)
            site.failures, site.blocked_until, site.reason = self._remembered.pop(site_key, (0, 0.0, ""))
            if site.blocked_until > now:
                self._arm(site.blocked_until, site)
        queue.locating, queue.site, queue.failure = False, site, None
        site.queues.add(queue)
        if queue.ready:
            site.rotation.append(queue)
        self._dirty[site] = None

    def unlocated(self, domain: str, now: float, until: float, reason: str, bounce_after: float) -> None:
        """The look-up failed for now; it is tried again at `until`. What has waited for bounce-after is given up."""
        queue = self.queues.get(domain)
        if queue is not None:
            queue.locating, queue.retry_at, queue.reason = False, until, reason
            self._expire(queue, now, bounce_after, reason, self._decided)
            self._dirty[queue] = None

    def condemned(self, domain: str, failure: Failure, until: float) -> None:
        """The domain takes no mail: what waits is rejected, and so is what comes until `until`."""
        queue = self.queues.get(domain)
        if queue is not None:
            queue.locating, queue.retry_at, queue.failure, queue.reason = False, until, failure, failure.text
            self._dirty[queue] = None

    def opened(self, number: int, now: float) -> None:
        """The session is ready for its first message."""
        session = self._sessions[number]
        session.opening = False
        session.site.opening -= 1
        self._make_idle(session, now)

    def open_failed(self, number: int, now: float, reason: str, *, ours: bool = False) -> bool:
        """No host of the site could be reached, or (`ours`) we could not even begin; then the site is not blamed
        and its mail waits a minute. True if this failure is a new one, False if one of the same cohort."""
        site = self._sessions[number].site
        site.opening -= 1
        self._forget(number)
        return self._block(site, now, reason, 60.0 if ours else None)

    def finished(self, number: int, now: float, *, delivered: bool, reusable: bool, reason: str = "") -> bool:
        """The session's message is done (its entry settled or added again). A session that breaks before it has
        delivered anything counts as a failure of the site; True if that is news."""
        session = self._sessions[number]
        site = session.site
        if delivered:
            session.delivered += 1
            if site.failures:
                site.failures, site.reason = 0, ""
                self._dirty[site] = None
        if not reusable:
            self._forget(number)
            return session.delivered == 0 and self._block(site, now, reason, None)
        limit = site.policy.max_msg_per_connection
        if limit and session.sent >= limit:
            self._forget(number)
            self._decided.append(Close(number))
        else:
            self._make_idle(session, now)
        return False

    def lost(self, number: int) -> None:
        """An idle session is gone."""
        session = self._sessions.get(number)
        if session is not None:
            if session in session.site.idle:
                session.site.idle.remove(session)
            self._forget(number)

    def drain(self) -> None:
        """Assign and open nothing more; idle sessions are closed."""
        self.draining = True
        for site in self.sites.values():
            self._dirty[site] = None

    def reconfigure(self, max_smtp_out: int, policies: dict[str, DomainPolicy]) -> None:
        """New limits for the sites named; a rate that did not change keeps its window."""
        self.max_smtp_out = max_smtp_out
        for key, policy in policies.items():
            site = self.sites[key]
            if policy.max_msg_rate != site.policy.max_msg_rate:
                site.limiter = RateLimiter(policy.max_msg_rate)
            site.policy = policy
            self._dirty[site] = None

    def remember(self, states: dict[str, tuple[int, float, str]]) -> None:
        """State of sites from before a sleep: failures in a row, blocked until, reason."""
        self._remembered.update(states)

    def states(self) -> dict[str, tuple[int, float, str]]:
        """What `remember` takes."""
        states = dict(self._remembered)
        states.update({s.key: (s.failures, s.blocked_until, s.reason) for s in self.sites.values() if s.failures})
        return states

    def next_due(self) -> float:
        """When the first waiting mail or blocked site wants attention, infinity if nothing waits."""
        times = [queue.waiting[0][0] for queue in self.queues.values() if queue.waiting]
        for queue in self.queues.values():
            if queue.ready:
                times.append(queue.site.blocked_until if queue.site else queue.retry_at)
        return min(times, default=math.inf)

    # The decision

    def step(self, now: float) -> tuple[list[Action], float]:
        """The actions to perform now, and when to ask again at the latest."""
        actions, self._decided = self._decided, []
        while self._timers and self._timers[0][0] <= now:
            time, _, item = heapq.heappop(self._timers)
            if self._armed.get(item) == time:
                del self._armed[item]
                self._dirty[item] = None
        while self._dirty:
            item, _ = self._dirty.popitem()
            if isinstance(item, Queue):
                self._serve_queue(item, now, actions)
            else:
                self._serve_site(item, now, actions)
        return actions, self._timers[0][0] if self._timers else math.inf

    def _serve_queue(self, queue: Queue, now: float, actions: list[Action]) -> None:
        while queue.waiting and queue.waiting[0][0] <= now:
            self._make_ready(queue, heapq.heappop(queue.waiting)[1])
        if queue.waiting:
            self._arm(queue.waiting[0][0], queue)
        if queue.site is not None:
            self._dirty[queue.site] = None
            return
        if not queue.ready:
            if not queue.waiting and not queue.locating:
                self._drop(queue)
        elif queue.failure is not None and queue.retry_at > now:
            for _ in range(min(BATCH, len(queue.ready))):
                actions.append(Reject(queue.domain, queue.ready.popleft(), queue.failure))
                self.size -= 1
            self._arm(now + SOON, queue)
        elif queue.retry_at > now:
            self._arm(queue.retry_at, queue)
        elif not queue.locating and not self.draining:
            queue.locating, queue.failure = True, None
            actions.append(Locate(queue.domain))

    def _serve_site(self, site: Site, now: float, actions: list[Action]) -> None:
        if site.blocked_until > now:
            for queue in list(site.rotation):
                self._expire(queue, now, site.policy.bounce_after, site.reason, actions)
                if not queue.ready:
                    site.rotation.remove(queue)
            if site.rotation:
                self._arm(min(site.blocked_until, self._first_expiry(site)), site)
        elif self._assign(site, now, actions):
            self._open(site, actions)
        self._close_idle(site, now, actions)
        if not site.sessions and not site.rotation:
            self._retire(site, now)

    def _assign(self, site: Site, now: float, actions: list[Action]) -> bool:
        """Give ready mail to idle sessions. True if more sessions would help (no rate holds the site)."""
        if self.draining:
            return False
        while site.rotation:
            queue = site.rotation[0]
            name = queue.ready[0]
            attempts, _ = entry.state(name)
            if attempts and now >= entry.received(name) + site.policy.bounce_after:
                self._take(site, queue)
                actions.append(Expire(queue.domain, name, site.reason))
                continue
            recipients = entry.recipients(name)
            pause = site.limiter.wait(now, recipients)
            if pause > 0:
                self._arm(now + pause, site)
                return False
            if not site.idle:
                return True
            session = site.idle.pop()
            self._take(site, queue)
            site.limiter.take(now, recipients)
            session.sent += 1
            actions.append(Assign(session.number, queue.domain, name))
        return False

    def _open(self, site: Site, actions: list[Action]) -> None:
        """Open sessions for mail that has none coming, within the limits of the site and the VMTA."""
        room = site.policy.max_smtp_out - len(site.sessions)
        if site.failures:
            room = min(room, 1 - len(site.sessions))
        wanted = sum(len(queue.ready) for queue in site.rotation) if len(site.rotation) < 32 else room
        # Slow start: as many more as are open already. A queue is often empty before a second session is.
        established = len(site.sessions) - site.opening
        room = min(room, (2 if self.is_saturated else max(2, established)) - site.opening)
        if self.is_saturated and established >= ENOUGH:
            return
        for _ in range(min(room, wanted - site.opening)):
            if self.max_smtp_out and len(self._sessions) >= self.max_smtp_out:
                self._starved[site] = None
                for other in self.sites.values():
                    if other.idle:
                        self._dirty[other] = None
                return
            self._numbers += 1
            self._sessions[self._numbers] = Session(self._numbers, site)
            site.sessions.add(self._numbers)
            site.opening += 1
            actions.append(Open(self._numbers, site.key, site.rotation[0].domain))

    def _close_idle(self, site: Site, now: float, actions: list[Action]) -> None:
        """Close what has been idle for connection-idle-timeout; at once when others wait for a free session."""
        timeout = (
            0.0
            if self.draining or (self._starved and site not in self._starved)
            else site.policy.connection_idle_timeout
        )
        for session in list(site.idle):
            if session.idle_since + timeout <= now:
                site.idle.remove(session)
                self._forget(session.number)
                actions.append(Close(session.number))
            else:
                self._arm(session.idle_since + timeout, site)

    def _expire(self, queue: Queue, now: float, bounce_after: float, reason: str, actions: list[Action]) -> None:
        """Give up what has waited too long behind a failure; first come is first to expire."""
        while queue.ready and now >= entry.received(queue.ready[0]) + bounce_after:
            actions.append(Expire(queue.domain, queue.ready.popleft(), reason))
            self.size -= 1

    def _first_expiry(self, site: Site) -> float:
        return min(entry.received(queue.ready[0]) for queue in site.rotation) + site.policy.bounce_after

    # Bookkeeping

    def _take(self, site: Site, queue: Queue) -> None:
        """Take the first name of a site's first queue; its queues take turns."""
        queue.ready.popleft()
        self.size -= 1
        site.rotation.popleft()
        if queue.ready:
            site.rotation.append(queue)

    def _make_ready(self, queue: Queue, name: str) -> None:
        queue.ready.append(name)
        site = queue.site
        if site is None:
            self._dirty[queue] = None
        else:
            if len(queue.ready) == 1:
                site.rotation.append(queue)
            self._dirty[site] = None

    def _make_idle(self, session: Session, now: float) -> None:
        session.idle_since = now
        session.site.idle.append(session)
        self._dirty[session.site] = None

    def _forget(self, number: int) -> None:
        session = self._sessions.pop(number)
        session.site.sessions.discard(number)
        self._dirty[session.site] = None
        if self._starved:
            self._dirty.update(self._starved)
            self._starved.clear()

    def _block(self, site: Site, now: float, reason: str, pause: float | None) -> bool:
        """Hold a site after a failure. Sessions that fail while it is blocked belong to the same failure."""
        self._dirty[site] = None
        if site.blocked_until > now:
            return False
        site.reason = reason
        if pause is None:
            site.failures += 1
            pause = pick(site.policy.retry_after, site.failures)
        site.blocked_until = now + pause
        return True

    def _retire(self, site: Site, now: float) -> None:
        """Forget a site without mail and sessions; what it failed with is remembered while it matters."""
        if site.failures and site.blocked_until > now:
            self._remembered[site.key] = (site.failures, site.blocked_until, site.reason)
        for queue in [queue for queue in site.queues if not queue.waiting]:
            site.queues.discard(queue)
            self._drop(queue)
        if not site.queues:
            self.sites.pop(site.key, None)
            self._armed.pop(site, None)

    def _drop(self, queue: Queue) -> None:
        self.queues.pop(queue.domain, None)
        self._armed.pop(queue, None)

    def _arm(self, time: float, item: Queue | Site) -> None:
        """Look at an item again at `time`, or earlier if it is armed for earlier."""
        armed = self._armed.get(item)
        if armed is None or time < armed:
            self._armed[item] = time
            self._timer_numbers += 1
            heapq.heappush(self._timers, (time, self._timer_numbers, item))
