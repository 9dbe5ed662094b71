"""What to do now: which domain to look up, which connection to open, which message to put on it.

`Scheduler.step(now)` looks at the clock it is given and nothing else, returns actions, and says when it wants to
be asked again. Whoever performs the actions reports back (`located`, `opened`, `finished`, ...).

    names      wait in the Queue of their domain: in its lines, ready, or `waiting` for their due time
    a Queue    is new -> being located -> located (it belongs to a Group of a Site), or condemned (its mail is given
               back with the failure), or it waits for the next look-up
    a Site     is what shares limits at the receiving end; it is open, paused, or blocked until a time after a failure
    a Session  is opening -> idle <-> busy -> gone

Laws. Limits are never exceeded: sessions of a site, of a source address, of the VMTA, messages of a session,
recipients, connections and bytes in any window of a rate. A name is in exactly one place: waiting, ready, or on one
session; it leaves by exactly one action (Assign, Reject, Expire). `wake_at` is in the future. A blocked site opens
nothing, but its open sessions go on (a receiver that refuses our 21st connection still takes mail on the 20 others);
after a failure one session goes first, the others follow its success. Sites that wait for a free session of the VMTA
get one in turn, those of a higher queue-priority first. A report about a session that is already gone is ignored.
`now` is Unix seconds from a clock that does not jump.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

from spoolmta import concurrency, condition, entry
from spoolmta.action import Action, Assign, Close, Expire, Locate, Reject, VmtaLimits
from spoolmta.agenda import Agenda
from spoolmta.limits import CellsFor, Limits
from spoolmta.metering import Meter
from spoolmta.model import DomainPolicy, Failure
from spoolmta.sessions import Sessions
from spoolmta.site import Group, Queue, Site
from spoolmta.sites import Chance, Sites
from spoolmta.sources import Sources

BATCH = 500
"""Names given back in one step; the rest follows in the next turn of the loop, so that a big condemned queue does
not hold up the others."""
SOON = 0.001
OUR_PAUSE = 60.0
"""Seconds a site waits when a session could not be begun for want of something of our own."""

Policies = Callable[[str, str], DomainPolicy]
"""The complete policy for (site, domain); that of a site itself for (site, site)."""


class Scheduler:
    """All queues, sites and sessions of one VMTA. `chance` gives numbers from 0 to 1, `cells_for` the memory in which
    rates outlive the process."""

    def __init__(
        self,
        vmta: VmtaLimits = VmtaLimits(),  # noqa: B008  (a frozen value)
        chance: Chance = lambda: 0.0,
        cells_for: CellsFor = lambda _: None,
    ) -> None:
        self.queues: dict[str, Queue] = {}
        self._chance = chance
        self._cells_for = cells_for
        self._agenda: Agenda[Queue | Site] = Agenda()
        self._decided: list[Action] = []
        self._doomed: deque[Reject] = deque()
        self._meter = Meter(Limits("*", vmta.policy, vmta.policy, cells_for, 0.0))
        self.sources = Sources(vmta.sources)
        self.known = Sites(self._agenda, self.sources, chance, cells_for)
        self._sessions = Sessions(vmta, self._agenda, self.sources)
        self.size = 0

    def __repr__(self) -> str:
        return (
            f"Scheduler(size={self.size}, sessions={len(self._sessions.all)}, queues={self.queues}, sites={self.sites})"
        )

    @property
    def sites(self) -> dict[str, Site]:
        return self.known.by_key

    @property
    def sessions(self) -> int:
        return len(self._sessions.all)

    @property
    def draining(self) -> bool:
        return self._sessions.draining

    def set_saturated(self, is_saturated: bool) -> None:
        """Whether our own processor, and not the receivers, holds us up: more sessions would only cost more then."""
        self._sessions.is_saturated = is_saturated

    def site_of(self, domain: str) -> str:
        """The site a domain's mail goes to; as long as that is not known, the domain by itself."""
        queue = self.queues.get(domain)
        return queue.group.site.key if queue is not None and queue.group is not None else domain

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
                self._agenda.arm(due, queue)
        else:
            self._make_ready(queue, name, now)

    def located(
        self, domain: str, site_key: str, policies: Policies, now: float, hosts: frozenset[str] = frozenset()
    ) -> None:
        """The domain's site is known, and the hosts that take its mail there; it goes there from now on."""
        queue = self.queues.get(domain)
        if queue is None:
            return
        site = self.sites.get(site_key) or self.known.make(site_key, policies(site_key, site_key), now)
        group = site.groups.get(hosts)
        if group is None:
            group = site.groups[hosts] = Group(site, hosts)
        queue.locating, queue.group, queue.failure = False, group, None
        queue.set_policy(policies(site_key, domain), site.policy, self._cells_for(f"{site_key} {domain}"), now)
        group.queues.add(queue)
        self._list(queue)
        self._agenda.mark(site)

    def unlocated(self, domain: str, now: float, until: float, reason: str, bounce_after: float) -> None:
        """The look-up failed for now; it is tried again at `until`. What has waited for bounce-after is given up."""
        queue = self.queues.get(domain)
        if queue is not None:
            queue.locating, queue.retry_at, queue.reason = False, until, reason
            old = queue.withdraw_ready(lambda name: entry.is_older(name, now - bounce_after))
            self.size -= len(old)
            self._decided += [Expire(domain, name, reason) for name in old]
            self._agenda.mark(queue)

    def condemned(self, domain: str, failure: Failure, until: float) -> None:
        """The domain takes no mail: what waits is rejected, and so is what comes until `until`."""
        queue = self.queues.get(domain)
        if queue is not None:
            queue.locating, queue.retry_at, queue.failure, queue.reason = False, until, failure, failure.text
            self._agenda.mark(queue)

    def opened(self, number: int, now: float, source: str = "") -> None:
        """The session is ready for its first message; it comes from `source`."""
        session = self._sessions.all.get(number)
        if session is not None and session.opening:
            session.opening = False
            session.group.opening -= 1
            site = session.group.site
            if len(session.sources) > 1:
                for other in session.sources:
                    if other != source:
                        site.by_source[other] -= 1
                session.sources = (source,)
            self._sessions.make_idle(session, now)

    def open_failed(self, number: int, now: float, reason: str, *, ours: bool = False, unbound: str = "") -> bool:
        """No session could be opened. The site is not blamed where we could not even begin (`ours`; a source address
        that is `unbound` is set aside), or where it serves us on others and may want no more. True if this is news."""
        session = self._sessions.all.get(number)
        if session is None:
            return False
        self._sessions.forget(session)
        site = session.group.site
        if unbound:
            return self.sources.set_aside(unbound, now)
        if ours:
            return self.known.block(site, now, reason, OUR_PAUSE)
        if len(site.sessions) > site.opening:
            return concurrency.narrow(site, number, self._sessions.newest, now, self._chance)
        return self.known.block(site, now, reason, None)

    def finished(
        self, number: int, now: float, *, answered: bool, reusable: bool, delivered: bool = False, reason: str = ""
    ) -> bool:
        """The session's message is done (its entry settled or added again). A session that breaks before it has had
        any answer counts as a failure of the site; True if that is news."""
        session = self._sessions.all.get(number)
        if session is None:
            return False
        site = session.group.site
        self._release(self._meter.let_go(session, now, delivered))
        if answered:
            session.answered += 1
            self._on_answer(site, now, delivered)
        if not reusable:
            self._sessions.forget(session)
            return session.answered == 0 and self.known.block(site, now, reason, None)
        if self._sessions.is_spent(session):
            self._sessions.forget(session)
            self._decided.append(Close(number))
        else:
            self._sessions.make_idle(session, now)
        return False

    def _on_answer(self, site: Site, now: float, delivered: bool) -> None:
        state = site.condition
        if state.failures:
            state.failures, state.reason = 0, ""
            self._agenda.mark(site)
        concurrency.widen(site)
        if delivered and state.mode == condition.BACKOFF and site.policy.backoff_to_normal_after_delivery:
            condition.leave_backoff(state, site.policy, now, "a message was delivered")
            self._refresh(site, now)

    def lost(self, number: int, now: float = 0.0) -> None:
        """A session is gone, with what it carried."""
        session = self._sessions.all.get(number)
        if session is not None:
            self._release(self._meter.let_go(session, now, False))
            if session in session.group.idle:
                session.group.idle.remove(session)
            self._sessions.forget(session)

    def drain(self) -> None:
        """Assign and open nothing more; idle sessions are closed."""
        self._sessions.draining = True
        for site in self.sites.values():
            self._agenda.mark(site)

    def reconfigure(self, vmta: VmtaLimits, policies: Policies, now: float) -> None:
        """New limits for all; a rate that did not change keeps its window."""
        self._sessions.vmta = vmta
        self._meter.whole.set_policy(vmta.policy, vmta.policy, now)
        self.sources.set_addresses(vmta.sources)
        for key, site in self.sites.items():
            site.policy = policies(key, key)
            self._refresh(site, now)
            for queue in self.queues_of(key):
                queue.set_policy(policies(key, queue.domain), site.policy, None, now)

    # What outlives a site's mail

    def changed(self, key: str, now: float) -> None:
        """The condition of a site was changed from outside: by a rule, or by the operator."""
        site = self.sites.get(key)
        if site is not None:
            self._refresh(site, now)
        else:
            self.known.memory.tidy(key, now)

    def defer(self, key: str, now: float, reason: str) -> bool:
        """Put a site into retry now, as if an attempt had failed."""
        site = self.sites.get(key)
        return site is not None and self.known.block(site, now, reason, None)

    def hasten(self, key: str, now: float) -> None:
        """Try a site again now, with all the mail that waits for its time."""
        state = self.known.condition_of(key)
        state.blocked_until = min(state.blocked_until, now)
        for queue in self.queues_of(key):
            if queue.failure is None:
                queue.retry_at = 0.0
            names, queue.waiting = queue.waiting, []
            for _, name in sorted(names):
                self._make_ready(queue, name, now)
            self._agenda.mark(queue)
        self.changed(key, now)

    def withdraw(self, domain: str, is_meant: Callable[[str], bool], failure: Failure | None = None) -> list[str]:
        """Take names out of a queue, unless they are being sent; with a failure, they are given back with it."""
        queue = self.queues.get(domain)
        if queue is None:
            return []
        if queue.group is not None:
            for line in queue.lines.values():
                queue.group.backlog.remove(line)
        taken = queue.withdraw(is_meant)
        self.size -= len(taken)
        if failure is not None:
            self._doomed.extend(Reject(domain, name, failure) for name in taken)
        self._list(queue)
        self._agenda.mark(queue)
        return taken

    def queues_of(self, key: str) -> list[Queue]:
        """The queues of a site; of a domain whose site is not known yet, its own."""
        site = self.sites.get(key)
        if site is not None:
            return [queue for group in site.groups.values() for queue in group.queues]
        queue = self.queues.get(key)
        return [queue] if queue is not None and queue.group is None else []

    def next_due(self) -> float:
        """When the first waiting mail or blocked site wants attention, infinity if nothing waits."""
        if self._doomed:
            return 0.0
        times = [queue.waiting[0][0] for queue in self.queues.values() if queue.waiting]
        times += [queue.ready_at for queue in self.queues.values() if queue.has_ready]
        return min(times, default=math.inf)

    # The decision

    def step(self, now: float) -> tuple[list[Action], float]:
        """The actions to perform now, and when to ask again at the latest."""
        actions, self._decided = self._decided, []
        for _ in range(min(BATCH, len(self._doomed))):
            actions.append(self._doomed.popleft())
        self._agenda.ring(now)
        while self._agenda or (self._sessions.starved and self._sessions.free() > 0):
            if not self._agenda:
                site = max(self._sessions.starved, key=lambda site: site.policy.queue_priority)
                del self._sessions.starved[site]
                self._serve_site(site, now, actions, 1)
                continue
            item = self._agenda.take()
            if isinstance(item, Queue):
                self._serve_queue(item, now, actions)
            else:
                self._serve_site(item, now, actions)
        wake = now + SOON if self._doomed else self._agenda.next_time()
        return actions, max(wake, now + SOON)

    def _serve_queue(self, queue: Queue, now: float, actions: list[Action]) -> None:
        while queue.waiting and queue.waiting[0][0] <= now:
            name = heapq.heappop(queue.waiting)[1]
            if queue.group is not None and self._is_too_old(queue, name, now):
                self.size -= 1
                actions.append(Expire(queue.domain, name, queue.group.site.condition.reason))
            else:
                self._make_ready(queue, name, now)
        if queue.waiting:
            self._agenda.arm(queue.waiting[0][0], queue)
        if queue.group is not None:
            if queue.held_until and queue.held_until <= now:
                queue.held_until = 0.0
                self._list(queue)
            self._agenda.mark(queue.group.site)
        elif not queue.has_ready:
            if not queue.waiting and not queue.locating:
                self._drop(queue)
        elif queue.failure is not None and queue.retry_at > now:
            rejected = queue.take_ready(BATCH)
            self.size -= len(rejected)
            actions += [Reject(queue.domain, name, queue.failure) for name in rejected]
            self._agenda.arm(now + SOON, queue)
        elif queue.retry_at > now:
            self._agenda.arm(queue.retry_at, queue)
        elif not queue.locating and not self.draining:
            queue.locating, queue.failure = True, None
            actions.append(Locate(queue.domain))

    def _serve_site(self, site: Site, now: float, actions: list[Action], most: int = 0) -> None:
        """What can be done for a site now; `most` is how many sessions it may open because its turn has come."""
        state = site.condition
        if (due := condition.next_time(state)) <= now:
            self._refresh(site, now)
        elif due < math.inf:
            self._agenda.arm(due, site)  # an item has one timer, which may have rung for something else
        is_blocked = state.blocked_until > now or state.paused is not None
        site.hold = ""
        if is_blocked:
            site.hold = "pause" if state.paused is not None else "retry-after"
            self._expire_blocked(site, now, actions)
        wanting = [] if state.paused is not None or self.draining else self._assign(site, now, actions)
        site.is_crowded = any(not group.sessions for group in wanting)
        if is_blocked or not wanting or not self._sessions.open(site, wanting, now, most, actions):
            self._sessions.starved.pop(site, None)
        self._sessions.close_idle(site, now, actions)
        if not site.sessions and not site.has_mail:
            self._retire(site, now)

    def _assign(self, site: Site, now: float, actions: list[Action]) -> list[Group]:
        """Give ready mail to idle sessions; the groups that could use more sessions (none if a rate holds the site)."""
        groups = deque(group for group in site.groups.values() if group.backlog)
        wanting: list[Group] = []
        while groups:
            group = groups[0]
            found = group.backlog.peek()
            if found is None:
                groups.popleft()
                continue
            queue, name = found[0].queue, found[1]
            if self._is_too_old(queue, name, now):
                self._take(group)
                actions.append(Expire(queue.domain, name, site.condition.reason))
                continue
            count = entry.recipients(name)
            most = self._meter.at_once(site, count)
            pause, held = self._meter.pause(site, most, name, now)
            if pause > 0:
                site.hold = held
                self._agenda.arm(now + pause, site)
                return []
            if queue.is_limited and self._hold(queue, most, now):
                continue
            session, pause = self._meter.idle_session(group, most, now)
            if session is None:
                if pause:
                    self._agenda.arm(now + pause, site)
                wanting.append(groups.popleft())
                continue
            self._take(group)
            self._meter.charge(session, queue, most, name, now)
            actions.append(Assign(session.number, queue.domain, name, most if most < count else 0))
            groups.rotate(-1)
        return wanting

    def _hold(self, queue: Queue, count: int, now: float) -> bool:
        """Whether a domain's own limits keep its mail back, which then lets that of the other domains pass."""
        until = queue.may_go_at(now, count)
        if until <= now or queue.group is None:
            return False
        queue.held_until = until
        for line in queue.lines.values():
            queue.group.backlog.remove(line)
        if until < math.inf:
            self._agenda.arm(until, queue)
        return True

    def _release(self, queue: Queue | None) -> None:
        """One of a domain's messages is done: another may go."""
        if queue is not None and queue.held_until == math.inf:
            queue.held_until = 0.0
            self._list(queue)
            self._agenda.mark(queue)

    def _is_too_old(self, queue: Queue, name: str, now: float) -> bool:
        """Whether an entry that has been tried has waited for bounce-after; one that was not gets its try."""
        return ":" in name and entry.is_older(name, now - queue.bounce_after) and entry.state(name)[0] > 0

    def _expire_blocked(self, site: Site, now: float, actions: list[Action]) -> None:
        """Give up what has waited too long behind a failure or a pause, tried or not."""
        expired, again = site.take_expired(now)
        self.size -= len(expired)
        actions += [Expire(domain, name, site.condition.reason) for domain, name in expired]
        if site.condition.blocked_until > now:
            again = min(again, site.condition.blocked_until)
        if again < math.inf:
            self._agenda.arm(again, site)

    # Bookkeeping

    def _take(self, group: Group) -> None:
        group.backlog.take()
        self.size -= 1

    def _list(self, queue: Queue) -> None:
        """Its ready mail takes part in its group, unless the domain's own limits hold it."""
        if queue.group is None or queue.held_until:
            return
        for line in queue.lines.values():
            if line.names:
                queue.group.backlog.push(line)

    def _make_ready(self, queue: Queue, name: str, now: float) -> None:
        line = queue.line_of(name)
        line.names.append(name)
        if queue.group is None:
            self._agenda.mark(queue)
            return
        site = queue.group.site
        if not queue.held_until:
            queue.group.backlog.push(line)
        if site.condition.blocked_until > now:
            if site.policy.retry_upon_new_mail and ":" not in name:
                site.condition.blocked_until = now
            elif len(line.names) > 1 and not queue.group.idle:
                return  # nothing changes for a blocked site
        self._agenda.mark(site)

    def _refresh(self, site: Site, now: float) -> None:
        """The site's condition or policy has changed, or its time has come."""
        self.known.refresh(site, now)
        for group in site.groups.values():
            for session in [session for session in group.idle if self._sessions.is_spent(session)]:
                group.idle.remove(session)
                self._sessions.forget(session)
                self._decided.append(Close(session.number))
        self._agenda.mark(site)

    def _retire(self, site: Site, now: float) -> None:
        """Forget a site without mail and sessions, once its rates do not need it; its condition is remembered."""
        for group in [*site.groups.values()]:
            for queue in [queue for queue in group.queues if not queue.waiting and not queue.has_ready]:
                group.queues.discard(queue)
                self._drop(queue)
            if not group.queues:
                del site.groups[group.hosts]
        if site.groups:
            return
        if site.limits.busy_until() > now:
            self._agenda.arm(site.limits.busy_until(), site)
            return
        self.known.forget(site, now)

    def _drop(self, queue: Queue) -> None:
        self.queues.pop(queue.domain, None)
        self._agenda.forget(queue)
