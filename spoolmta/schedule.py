"""What to do now: which domain to look up, which connection to open, which message to put on it.

`Scheduler.step(now)` looks at the clock it is given and nothing else, returns actions, and says when it wants to
be asked again. Whoever performs the actions reports back (`located`, `opened`, `finished`, ...).

    names      wait in the Queue of their domain: in its lines, ready (or held with their job), or `waiting` for their
               due time
    a Queue    is new -> being located -> located (it belongs to a Group of a Site), or condemned (its mail is given
               back with the failure), or it waits for the next look-up
    a Site     is what shares limits at the receiving end; it is open, paused, or blocked until a time after a failure
    a Session  is opening -> idle <-> busy -> gone

Laws. Limits are never exceeded: sessions of a site, of a source address, of the VMTA, messages of a session,
recipients, connections and bytes in any window of a rate. A name is in exactly one place: waiting, ready, or on one
session; it leaves by exactly one action (Assign, Reject, Expire), a held one only by Expire. `wake_at` is in the
future. A blocked site opens nothing, but its open sessions go on (a receiver that refuses our 21st connection still
takes mail on the 20 others); after a failure one session goes first, the others follow its success. Sites that wait for
a free session of the VMTA get one in turn, those of a higher queue-priority first. A report about a session that is
already gone is ignored. `now` is Unix seconds from a clock that does not jump.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from functools import partial

from spoolmta import concurrency, condition, entry
from spoolmta.action import Action, Close, Expire, Locate, Reject, VmtaLimits
from spoolmta.agenda import Agenda
from spoolmta.assignment import Assignment
from spoolmta.limits import CellsFor, Limits
from spoolmta.metering import Meter
from spoolmta.model import DomainPolicy, Failure
from spoolmta.sessions import Sessions
from spoolmta.sharing import AGAIN, ALONE, Partners
from spoolmta.site import Queue, Session, Site
from spoolmta.sites import Chance, Policies, Sites
from spoolmta.sources import Sources

BATCH = 500
"""Names given back in one step; the rest follows in the next turn of the loop, so that a big condemned queue does
not hold up the others."""
SOON = 0.001
OUR_PAUSE = 60.0
"""Seconds a site waits when a session could not be begun for want of something of our own."""


class Scheduler:
    """All queues, sites and sessions of one VMTA. `chance` gives numbers from 0 to 1, `cells_for` the memory in which
    rates outlive the process."""

    def __init__(
        self,
        vmta: VmtaLimits = VmtaLimits(),  # noqa: B008  (a frozen value)
        chance: Chance = lambda: 0.0,
        cells_for: CellsFor = lambda _: None,
        partners: Partners = ALONE,
    ) -> None:
        self.queues: dict[str, Queue] = {}
        self._held_jobs: set[str] = set()
        self._chance = chance
        self._cells_for = cells_for
        self._agenda: Agenda[Queue | Site] = Agenda()
        self._decided: list[Action] = []
        self._doomed: deque[Reject] = deque()
        self._meter = Meter(Limits("*", vmta.policy, vmta.policy, cells_for, 0.0), partners)
        self.sources = Sources(vmta.sources)
        self.known = Sites(self._agenda, self.sources, chance, cells_for)
        self._sessions = Sessions(vmta, self._agenda, self.sources, partners)
        self._assignment = Assignment(self._agenda, self._meter)

    def __repr__(self) -> str:
        return (
            f"Scheduler(size={self.size}, sessions={len(self._sessions.all)}, queues={self.queues}, sites={self.sites})"
        )

    @property
    def sites(self) -> dict[str, Site]:
        return self.known.by_key

    @property
    def size(self) -> int:
        """Names that wait here, ready or not: counted one by one."""
        return sum(len(queue) for queue in self.queues.values())

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
        queue = self.queues.get(domain) or self.queues.setdefault(domain, Queue(domain, self._held_jobs))
        if due > now:
            queue.waiting.push(due, name)
            self._agenda.arm(due, queue)
        else:
            self._make_ready(queue, name, now)

    def located(
        self,
        domain: str,
        site_key: str,
        policies: Policies,
        now: float,
        mx: frozenset[str] = frozenset(),
        terms: frozenset[str] = frozenset(),
    ) -> None:
        """The domain's site is known, and with whom it shares sessions there; its mail goes there from now on."""
        queue = self.queues.get(domain)
        if queue is None:
            return
        site = self.sites.get(site_key) or self.known.make(site_key, policies(site_key, site_key), now)
        group = site.group_of(mx, terms)
        queue.locating, queue.group, queue.failure = False, group, None
        queue.set_policy(policies(site_key, domain), site.policy, self._cells_for(f"{site_key} {domain}"), now)
        group.queues.add(queue)
        queue.list_ready()
        self._agenda.mark(queue)

    def unlocated(self, domain: str, now: float, until: float, reason: str, bounce_after: float) -> None:
        """The look-up failed for now; it is tried again at `until`. What has waited for bounce-after is given up."""
        queue = self.queues.get(domain)
        if queue is not None:
            queue.locating, queue.retry_at, queue.reason, queue.bounce_after = False, until, reason, bounce_after
            old = queue.withdraw_ready(lambda name: entry.is_older(name, now - bounce_after))
            self._decided += [Expire(domain, name, reason) for name in old]
            self._agenda.mark(queue)

    def condemned(self, domain: str, failure: Failure, until: float, bounce_after: float) -> None:
        """The domain takes no mail: what waits is rejected, and so is what comes until `until`. What is held with its
        job may still wait for bounce-after."""
        queue = self.queues.get(domain)
        if queue is not None:
            queue.locating, queue.retry_at, queue.failure, queue.reason = False, until, failure, failure.text
            queue.bounce_after = bounce_after
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

    def open_failed(
        self, number: int, now: float, reason: str, *, ours: bool = False, unbound: str = "", asked: float = 0.0
    ) -> bool:
        """No session could be opened. The site is not blamed where we could not even begin (`ours`; a source that is
        `unbound` is set aside), or where it serves us on others and may want no more. True if this is news. `asked`:
        seconds for which it asked us to wait."""
        session = self._sessions.all.get(number)
        if session is None:
            return False
        self._sessions.forget(session)
        site = session.group.site
        if unbound:
            return self.sources.set_aside(unbound, now)
        if ours:
            return self.known.block(site, now, reason, OUR_PAUSE)
        if not session.group.queues:  # nobody goes to these hosts any more
            return False
        if len(site.sessions) > site.opening:
            return concurrency.narrow(site, number, self._sessions.newest, now, self._chance)
        return self.known.block(site, now, reason, None, asked)

    def put_off(self, number: int, now: float, held: str) -> None:
        """No session could be opened, because of a limit of its hosts that is shared with others."""
        session = self._sessions.all.get(number)
        if session is not None:
            self._sessions.forget(session)
            site = session.group.site
            concurrency.rest(site, now + AGAIN * (0.5 + self._chance()), held)

    def finished(
        self, number: int, now: float, *, answered: bool, reusable: bool, delivered: bool = False, reason: str = ""
    ) -> bool:
        """The session's message is done (its entry settled or added again). A session that breaks before it has had
        any answer counts as a failure of the site; True if that is news."""
        session = self._sessions.all.get(number)
        if session is None:
            return False
        site = session.group.site
        self._release(session, now, delivered)
        if answered:
            session.answered += 1
            if not self._sessions.is_saturated:  # else it is our own pace
                concurrency.note_pace(site, now - session.taken)
            self._on_answer(site, now, delivered)
        if not reusable:
            is_failure = session.answered == 0 and bool(session.group.queues)
            self._sessions.forget(session)
            return is_failure and self.known.block(site, now, reason, None)
        if self._sessions.is_spent(session, now):
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
            self._release(session, now, False)
            if session in session.group.idle:
                session.group.idle.remove(session)
            self._sessions.forget(session)

    def yield_to_others(self) -> bool:
        """Now and then: let those who share limits with this VMTA have what it does not use. Whether there is any."""
        return self._sessions.yield_to_others()

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
                self._agenda.mark(queue)

    def move(self, queues: list[Queue]) -> None:
        """These queues go elsewhere from now on: each is located anew. What is being sent goes on where it is; the
        sessions they leave carry what other domains have for them, and end."""
        for queue in queues:
            queue.retry_at, queue.failure, queue.reason = 0.0, None, ""
            self._agenda.mark(queue)
            if queue.group is not None:
                site = queue.group.site
                queue.leave()
                if not any(group.queues for group in site.groups.values()):
                    self.known.absolve(site)
                self._agenda.mark(site)

    # What outlives a site's mail

    def changed(self, key: str, now: float) -> None:
        """The condition of a site was changed from outside: by a rule, or by the operator."""
        site = self.sites.get(key)
        if site is not None:
            self._refresh(site, now)
        else:
            self.known.tell(key, self.known.memory.of(key))
            self.known.memory.tidy(key, now)

    def policy_of(self, key: str) -> DomainPolicy:
        """The policy of a site, without what holds of it for now; the defaults for one that has no mail."""
        site = self.sites.get(key)
        return site.policy if site is not None else DomainPolicy()

    def defer(self, key: str, now: float, reason: str, pause: float | None = None) -> bool:
        """Put a site into retry now, as if an attempt had failed, or for `pause` seconds."""
        site = self.sites.get(key)
        return site is not None and self.known.block(site, now, reason, pause)

    def hasten(self, key: str, now: float, is_meant: Callable[[str, str], bool] = lambda _domain, _name: True) -> None:
        """Try a site again now, with all the mail that waits for its time and is meant, by domain and name."""
        state = self.known.condition_of(key)
        state.blocked_until = min(state.blocked_until, now)
        for queue in self.queues_of(key):
            if queue.failure is None:
                queue.retry_at = 0.0
            for name in queue.take_waiting(partial(is_meant, queue.domain)):
                self._make_ready(queue, name, now)
            self._agenda.mark(queue)
        self.changed(key, now)

    def hold_jobs(self, jobs: Collection[str]) -> bool:
        """Hold the mail of these jobs and of no others, also what comes later; whether that is news. What is being sent
        is finished."""
        if self._held_jobs == set(jobs):
            return False
        self._held_jobs.clear()
        self._held_jobs.update(jobs)
        for queue in self.queues.values():
            if queue.hold_jobs():
                self._agenda.mark(queue)
        return True

    @property
    def has_held(self) -> bool:
        """Whether any mail is held with its job now, or will be when its time has come."""
        return bool(self._held_jobs) and any(queue.has_held or queue.waiting for queue in self.queues.values())

    def is_held(self, name: str) -> bool:
        return bool(self._held_jobs) and entry.flow(name)[1] in self._held_jobs

    def withdraw(self, domain: str, is_meant: Callable[[str], bool], failure: Failure | None = None) -> list[str]:
        """Take names out of a queue, unless they are being sent; with a failure, they are given back with it."""
        queue = self.queues.get(domain)
        if queue is None:
            return []
        queue.unlist()
        taken = queue.withdraw(is_meant)
        if failure is not None:
            self._doomed.extend(Reject(domain, name, failure) for name in taken)
        queue.list_ready()
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
        times = [queue.waiting.first_due for queue in self.queues.values()]
        times += [queue.ready_at for queue in self.queues.values() if queue.is_wanting]
        if self._held_jobs:
            times += [queue.held_expiry for queue in self.queues.values()]
        return min(times, default=math.inf)

    # The decision

    def step(self, now: float) -> tuple[list[Action], float]:
        """The actions to perform now, and when to ask again at the latest."""
        actions, self._decided = self._decided, []
        for _ in range(min(BATCH, len(self._doomed))):
            actions.append(self._doomed.popleft())
        self._agenda.ring(now)
        while self._agenda or (self._sessions.starved and self._sessions.free(now) > 0):
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
        if self._sessions.starved and self._sessions.refused_until > now:
            wake = min(wake, self._sessions.refused_until)
        return actions, max(wake, now + SOON)

    def _serve_queue(self, queue: Queue, now: float, actions: list[Action]) -> None:
        while queue.waiting.first_due <= now:
            name = queue.waiting.pop()
            if queue.group is not None and queue.is_too_old(name, now):
                actions.append(Expire(queue.domain, name, queue.group.site.condition.reason))
            else:
                self._make_ready(queue, name, now)
        if queue.waiting:
            self._agenda.arm(queue.waiting.first_due, queue)
        if self._held_jobs:
            self._assignment.expire_held(queue, now, actions)
        if queue.group is not None:
            if queue.held_until and queue.held_until <= now:
                queue.held_until = 0.0
                queue.list_ready()
            elif now < queue.held_until < math.inf:  # it has one time, and was looked at for something else
                self._agenda.arm(queue.held_until, queue)
            self._agenda.mark(queue.group.site)
        elif not queue.is_wanting:
            if queue.is_empty and not (queue.locating or queue.active):
                self._drop(queue)
        elif queue.failure is not None and queue.retry_at > now and queue.has_ready:
            rejected = queue.take_ready(BATCH)
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
        if site.tick_at <= now:
            self._refresh(site, now)
        if site.tick_at < math.inf:  # an item has one time, so all that is awaited is armed whenever it is served
            self._agenda.arm(site.tick_at, site)
        is_blocked = state.blocked_until > now or state.paused is not None
        site.hold = ""
        if is_blocked:
            site.hold = "pause" if state.paused is not None else "retry-after"
            self._assignment.expire_blocked(site, now, actions)
        wanting = [] if state.paused is not None or self.draining else self._assignment.assign(site, now, actions)
        site.is_crowded = len(site.groups) > 1 and any(not group.sessions for group in wanting)
        if is_blocked or not wanting or not self._sessions.open(site, wanting, now, most, actions):
            self._sessions.starved.pop(site, None)
        self._sessions.close_idle(site, now, actions)
        if not site.sessions and not site.has_mail:
            self._retire(site, now)

    def _release(self, session: Session, now: float, delivered: bool) -> None:
        """The session's message is done: another of its domain may go."""
        queue = self._meter.let_go(session, now, delivered)
        if queue is not None and queue.held_until == math.inf:
            queue.held_until = 0.0
            queue.list_ready()
            self._agenda.mark(queue)
        elif queue is not None and queue.group is not session.group:  # it was moved, and may be empty
            self._agenda.mark(queue)

    # Bookkeeping

    def _make_ready(self, queue: Queue, name: str, now: float) -> None:
        line = queue.line_of(name)
        line.names.append(name)
        if queue.group is None or line.is_held:
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
        for group in [*site.groups.values()]:
            for session in [session for session in group.idle if self._sessions.is_spent(session, now)]:
                group.idle.remove(session)
                self._sessions.forget(session)
                self._decided.append(Close(session.number))

    def _retire(self, site: Site, now: float) -> None:
        """Forget a site without mail and sessions, once its rates and its calm do not need it; its condition is
        remembered."""
        for queue in site.take_empty():
            self._drop(queue)
        if site.groups:
            return
        needed_until = max(site.limits.busy_until(), site.calm_until)
        if needed_until > now:
            self._agenda.arm(needed_until, site)
        else:
            self.known.forget(site, now)

    def _drop(self, queue: Queue) -> None:
        self.queues.pop(queue.domain, None)
        self._agenda.forget(queue)
