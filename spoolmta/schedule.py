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
action (Assign, Reject, Expire). `wake_at` is in the future. A blocked site opens nothing, but its open sessions go
on (a receiver that refuses our 21st connection still takes mail on the 20 others); after a failure one session goes
first, the others follow its success. Sites that wait for a free session of the VMTA get one in turn.
A report about a session that is already gone is ignored.
`now` is Unix seconds from a clock that does not jump.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from spoolmta import entry
from spoolmta.model import DomainPolicy, Failure, Struct
from spoolmta.rate import RateLimiter, pick
from spoolmta.site import Queue, Session, Site

BATCH = 500
"""Names given back in one step; the rest follows in the next turn of the loop, so that a big condemned queue does
not hold up the others."""
SOON = 0.001
FAIR_SHARE = 100
"""Messages a session may carry while other sites wait for a free session of the VMTA."""
MAX_REMEMBERED = 10_000
"""Failures of sites without mail that are kept; the oldest go first."""
ENOUGH = 3
"""Sessions a site may have when our own processor is what holds us up (`is_saturated`): one sends while another
waits."""


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
        self._idle_sites: dict[Site, None] = {}
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
            self._make_ready(queue, name, now)

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
            names, queue.ready = queue.ready, deque()
            for name in names:  # all: those that come back from a deferral are older than those before them
                if now >= entry.received(name) + bounce_after:
                    self._decided.append(Expire(domain, name, reason))
                else:
                    queue.ready.append(name)
            self.size -= len(names) - len(queue.ready)
            self._dirty[queue] = None

    def condemned(self, domain: str, failure: Failure, until: float) -> None:
        """The domain takes no mail: what waits is rejected, and so is what comes until `until`."""
        queue = self.queues.get(domain)
        if queue is not None:
            queue.locating, queue.retry_at, queue.failure, queue.reason = False, until, failure, failure.text
            self._dirty[queue] = None

    def opened(self, number: int, now: float) -> None:
        """The session is ready for its first message."""
        session = self._sessions.get(number)
        if session is not None and session.opening:
            session.opening = False
            session.site.opening -= 1
            self._make_idle(session, now)

    def open_failed(self, number: int, now: float, reason: str, *, ours: bool = False) -> bool:
        """No session could be opened. The site is not blamed where we could not even begin (`ours`), or where it serves
        us on others and may want no more: it gets none for a minute. True if this failure is news."""
        session = self._sessions.get(number)
        if session is None:
            return False
        self._forget(session)
        serves_us = len(session.site.sessions) > session.site.opening
        return self._block(session.site, now, reason, 60.0 if ours or serves_us else None)

    def finished(self, number: int, now: float, *, delivered: bool, reusable: bool, reason: str = "") -> bool:
        """The session's message is done (its entry settled or added again). A session that breaks before it has
        delivered anything counts as a failure of the site; True if that is news."""
        session = self._sessions.get(number)
        if session is None:
            return False
        site = session.site
        if delivered:
            session.delivered += 1
            if site.failures:
                site.failures, site.reason = 0, ""
                self._dirty[site] = None
        if not reusable:
            self._forget(session)
            return session.delivered == 0 and self._block(site, now, reason, None)
        if self._is_spent(session):
            self._forget(session)
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
            self._forget(session)

    def drain(self) -> None:
        """Assign and open nothing more; idle sessions are closed."""
        self.draining = True
        for site in self.sites.values():
            self._dirty[site] = None

    def reconfigure(self, max_smtp_out: int, policies: dict[str, DomainPolicy]) -> None:
        """New limits for the sites named; a rate that did not change keeps its window."""
        self.max_smtp_out = max_smtp_out
        for key, policy in policies.items():
            if (site := self.sites.get(key)) is None:
                continue
            if policy.max_msg_rate != site.policy.max_msg_rate:
                site.limiter = RateLimiter(policy.max_msg_rate)
            site.policy = policy
            self._dirty[site] = None
            for session in [session for session in site.idle if self._is_spent(session)]:
                site.idle.remove(session)
                self._forget(session)
                self._decided.append(Close(session.number))

    def remember(self, states: dict[str, tuple[int, float, str]]) -> None:
        """State of sites from before a sleep: failures in a row, blocked until, reason."""
        self._remembered.update(states)
        while len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

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
        while self._dirty or (self._starved and self._free() > 0):
            if not self._dirty:
                site = next(iter(self._starved))
                del self._starved[site]
                self._serve_site(site, now, actions, 1)
                continue
            item, _ = self._dirty.popitem()
            if isinstance(item, Queue):
                self._serve_queue(item, now, actions)
            else:
                self._serve_site(item, now, actions)
        return actions, max(self._timers[0][0], now + SOON) if self._timers else math.inf

    def _serve_queue(self, queue: Queue, now: float, actions: list[Action]) -> None:
        site = queue.site
        while queue.waiting and queue.waiting[0][0] <= now:
            name = heapq.heappop(queue.waiting)[1]
            if site is not None and self._is_too_old(site, name, now):
                self.size -= 1
                actions.append(Expire(queue.domain, name, site.reason))
            else:
                self._make_ready(queue, name, now)
        if queue.waiting:
            self._arm(queue.waiting[0][0], queue)
        if site is not None:
            self._dirty[site] = None
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

    def _serve_site(self, site: Site, now: float, actions: list[Action], most: int = 0) -> None:
        """What can be done for a site now; `most` is how many sessions it may open because its turn has come."""
        is_blocked = site.blocked_until > now
        if is_blocked:
            self._expire_blocked(site, now, actions)
        wants_more = self._assign(site, now, actions) and not is_blocked
        if not wants_more or not self._open(site, now, most, actions):
            self._starved.pop(site, None)
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
            if self._is_too_old(site, name, now):
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

    def _open(self, site: Site, now: float, most: int, actions: list[Action]) -> bool:
        """Open sessions for mail that has none coming, within the limits of the site and the VMTA. True if the
        VMTA's limit keeps the site from having more."""
        room = site.policy.max_smtp_out - len(site.sessions)
        if site.failures:
            room = min(room, 1 - len(site.sessions))
        # Slow start: as many more as are open already. A queue is often empty before a second session is.
        established = len(site.sessions) - site.opening
        room = min(room, (2 if self.is_saturated else max(2, established)) - site.opening)
        if self.is_saturated and established >= ENOUGH:
            return False
        wanted = sum(len(queue.ready) for queue in site.rotation) if len(site.rotation) < 32 else room
        wanted = int(min(room, min(wanted, site.limiter.allowance(now)) - site.opening))
        if wanted <= 0:
            return False
        free = most if most or self._starved else self._free()
        for _ in range(int(min(wanted, free))):
            self._numbers += 1
            self._sessions[self._numbers] = Session(self._numbers, site)
            site.sessions.add(self._numbers)
            site.opening += 1
            actions.append(Open(self._numbers, site.key, site.rotation[0].domain))
        if wanted <= free:
            return False
        self._starved.setdefault(site)
        for other in self._idle_sites:  # their idle sessions are closed to make room
            self._dirty[other] = None
        return True

    def _free(self) -> float:
        """Sessions the VMTA may still open."""
        return self.max_smtp_out - len(self._sessions) if self.max_smtp_out else math.inf

    def _close_idle(self, site: Site, now: float, actions: list[Action]) -> None:
        """Close what has been idle for connection-idle-timeout; at once when others wait for a free session."""
        make_room = self.draining or (self._starved and site not in self._starved)
        timeout = 0.0 if make_room else site.policy.connection_idle_timeout
        while site.idle and site.idle[0].idle_since + timeout <= now:  # the longest idle is the first
            session = site.idle.popleft()
            self._forget(session)
            actions.append(Close(session.number))
        if site.idle:
            self._idle_sites[site] = None
            self._arm(site.idle[0].idle_since + timeout, site)
        else:
            self._idle_sites.pop(site, None)

    def _is_too_old(self, site: Site, name: str, now: float) -> bool:
        """Whether an entry that has been tried has waited for bounce-after; one that was not gets its try."""
        return entry.state(name)[0] > 0 and now >= entry.received(name) + site.policy.bounce_after

    def _expire_blocked(self, site: Site, now: float, actions: list[Action]) -> None:
        """Give up what has waited too long behind a failure, tried or not: the first of each queue, in turn."""
        bounce_after = site.policy.bounce_after
        for queue in site.rotation:
            while queue.ready and now >= entry.received(queue.ready[0]) + bounce_after:
                actions.append(Expire(queue.domain, queue.ready.popleft(), site.reason))
                self.size -= 1
        site.rotation = deque(queue for queue in site.rotation if queue.ready)
        if site.rotation:
            first = min(entry.received(queue.ready[0]) for queue in site.rotation)
            self._arm(min(site.blocked_until, first + bounce_after), site)

    # Bookkeeping

    def _take(self, site: Site, queue: Queue) -> None:
        """Take the first name of a site's first queue; its queues take turns."""
        queue.ready.popleft()
        self.size -= 1
        site.rotation.popleft()
        if queue.ready:
            site.rotation.append(queue)

    def _make_ready(self, queue: Queue, name: str, now: float) -> None:
        queue.ready.append(name)
        site = queue.site
        if site is None:
            self._dirty[queue] = None
            return
        if len(queue.ready) == 1:
            site.rotation.append(queue)
        elif site.blocked_until > now and not site.idle:
            return  # nothing changes for a blocked site
        self._dirty[site] = None

    def _is_spent(self, session: Session) -> bool:
        """Whether a session has to end: it carried what it may, or there are more than there may be since a reload."""
        policy = session.site.policy
        limit = policy.max_msg_per_connection
        return (
            (limit > 0 and session.sent >= limit)
            or (session.sent >= FAIR_SHARE and bool(self._starved))
            or len(session.site.sessions) > policy.max_smtp_out
            or self._free() < 0
        )

    def _make_idle(self, session: Session, now: float) -> None:
        session.idle_since = now
        session.site.idle.append(session)
        self._dirty[session.site] = None

    def _forget(self, session: Session) -> None:
        site = session.site
        del self._sessions[session.number]
        site.sessions.discard(session.number)
        site.opening -= session.opening
        self._dirty[site] = None

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
        """Forget a site without mail and sessions, once its rate does not need it; its failures are remembered."""
        for queue in [queue for queue in site.queues if not queue.waiting]:
            site.queues.discard(queue)
            self._drop(queue)
        if site.queues:
            return
        if site.limiter.busy_until() > now:
            self._arm(site.limiter.busy_until(), site)
            return
        if site.failures or site.blocked_until > now:
            self.remember({site.key: (site.failures, site.blocked_until, site.reason)})
        if self.sites.get(site.key) is site:
            del self.sites[site.key]
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
            if len(self._timers) > 2 * len(self._armed) + 1000:  # most are out of date
                self._timers = [(time, number, item) for number, (item, time) in enumerate(self._armed.items())]
                heapq.heapify(self._timers)
