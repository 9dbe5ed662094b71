"""The sessions of one VMTA: when one is opened, and when it has to end. No mail is looked at here but to count it."""

from __future__ import annotations

import math

from spoolmta import concurrency
from spoolmta.action import Action, Close, Open, VmtaLimits
from spoolmta.agenda import Agenda
from spoolmta.limits import CONNECTIONS, RECIPIENTS
from spoolmta.sharing import FAIR_SHARE, Partners
from spoolmta.site import Group, Queue, Session, Site
from spoolmta.sources import Sources


class Sessions:
    """`all` are the open and the opening ones, by number. `starved` are the sites that wait for a free one of the
    VMTA, or of those with whom it shares them (`partners`). `is_saturated`: our own processor is what holds us up.
    `draining`: none is opened any more. Nobody asks the partners again before `refused_until`."""

    def __init__(self, vmta: VmtaLimits, agenda: Agenda[Queue | Site], sources: Sources, partners: Partners) -> None:
        self.vmta = vmta
        self.partners = partners
        self.refused_until = 0.0
        self._refused = ""
        self.all: dict[int, Session] = {}
        self.starved: dict[Site, None] = {}
        self.draining = False
        self.is_saturated = False
        self.newest = 0
        self._agenda = agenda
        self._sources = sources
        self._idle_sites: dict[Site, None] = {}

    def __repr__(self) -> str:
        return f"Sessions({len(self.all)}, {len(self.starved)} sites starved)"

    def open(self, site: Site, wanting: list[Group], now: float, most: int, actions: list[Action]) -> bool:
        """Open sessions for mail that has none coming, within the limits of the site and the VMTA. True if the
        VMTA's limit keeps the site from having more."""
        room, site.hold = concurrency.room(site, now, self.is_saturated)
        if site.calm_until > now:
            self._agenda.arm(site.calm_until, site)
        allowed = site.limits.allowance(RECIPIENTS, now) - site.opening
        free = most if most or self.starved else self.free(now)
        for group in sorted(wanting, key=lambda group: len(group.sessions)):
            wanted = int(min(room, allowed, self._useful(group, room, now)))
            for _ in range(wanted):
                if free < 1:
                    self._starve(site)
                    return True
                if not self._begin(site, group, now, actions):
                    return self.refused_until > now
                room, allowed, free = room - 1, allowed - 1, free - 1
        return False

    def _useful(self, group: Group, room: int, now: float) -> int:
        """How many sessions more, up to `room`, would speed up the group's mail."""
        carries = concurrency.carries(group.site)
        if carries <= 1:
            return group.demand(room + group.opening) - group.opening
        waiting = group.demand(math.ceil((len(group.sessions) + room) * carries))
        wanted = concurrency.useful(waiting, carries, map(self.all.__getitem__, group.sessions), now)
        if wanted < room:
            self._agenda.arm(now + concurrency.HANGS, group.site)
        return wanted

    def _begin(self, site: Site, group: Group, now: float, actions: list[Action]) -> bool:
        """Begin one session, unless the rate of connections or the source addresses forbid it."""
        force = site.limits.force
        pause, held = site.limits.wait(CONNECTIONS, now, 1)
        if site.opened_at + force.smtp_out_rampup_interval > now:
            pause, held = site.opened_at + force.smtp_out_rampup_interval - now, "smtp-out-rampup-interval"
        if pause > 0:
            site.hold = held.replace("_", "-")
            self._agenda.arm(now + pause, site)
            return False
        sources, again, held = self._sources.choose(site, now)
        if sources is None:
            site.hold = held
            if again < math.inf:
                self._agenda.arm(again, site)
            return False
        if self._is_refused(site, now):
            return False
        self.newest += 1
        session = self.all[self.newest] = Session(self.newest, group, sources)
        for source in sources:
            site.by_source[source] = site.by_source.get(source, 0) + 1
        site.limits.take(CONNECTIONS, now, 1, sources)
        site.opened_at = now
        site.sessions.add(session.number)
        group.sessions.add(session.number)
        group.opening += 1
        found = group.backlog.peek()
        assert found is not None
        actions.append(Open(session.number, site.key, found[0].queue.domain, sources))
        return True

    def _is_refused(self, site: Site, now: float) -> bool:
        """Whether those with whom the VMTA shares its connections have all there are; else one more is counted."""
        pause, self._refused = self.partners.open()
        if pause:
            self.refused_until = now + pause
            self._starve(site)
        return pause > 0

    def _starve(self, site: Site) -> None:
        site.hold = self._refused or "max-smtp-out of the VMTA"
        self.starved.setdefault(site)
        for other in self._idle_sites:  # their idle sessions are closed to make room
            self._agenda.mark(other)

    def free(self, now: float) -> float:
        """Sessions the VMTA may still open, as far as it knows."""
        limit = self.vmta.max_smtp_out
        free = limit - len(self.all) if limit else math.inf
        return min(free, 0.0) if self.refused_until > now else free

    def yield_to_others(self) -> bool:
        """What is idle is closed, if others want what this VMTA has beyond its part; whether there is any."""
        if not self._idle_sites or not self._is_wanted():
            return False
        for site in self._idle_sites:
            self._agenda.mark(site)
        return True

    def _is_wanted(self) -> bool:
        return self.partners.has_connections and self.partners.is_wanted()

    def close_idle(self, site: Site, now: float, actions: list[Action]) -> None:
        """Close what has been idle for connection-idle-timeout; at once when others wait for its place, or when no
        domain goes there any more."""
        make_room = self.draining or (self.starved and site not in self.starved) or self._is_wanted()
        timeout = 0.0 if make_room or site.is_crowded else site.limits.force.connection_idle_timeout
        again = math.inf
        for group in [*site.groups.values()]:
            patience = timeout if group.queues else 0.0
            while group.idle and group.idle[0].idle_since + patience <= now:  # the longest idle is the first
                session = group.idle.popleft()
                self.forget(session)
                actions.append(Close(session.number))
            if group.idle:
                again = min(again, group.idle[0].idle_since + patience)
        if again < math.inf:
            self._idle_sites[site] = None
            self._agenda.arm(again, site)
        else:
            self._idle_sites.pop(site, None)

    def is_spent(self, session: Session, now: float) -> bool:
        """Whether a session has to end: it carried what it may, others wait for its place, or there are more than
        there may be since a reload or in back-off."""
        site = session.group.site
        force = site.limits.force
        limit = force.max_msg_per_connection
        waits = bool(self.starved) or site.is_crowded or self._is_wanted()
        return (
            (limit > 0 and session.sent >= limit)
            or (waits and (session.sent >= FAIR_SHARE or self._is_outranked(site)))
            or len(site.sessions) > force.max_smtp_out
            or self.free(now) < 0
            or (bool(site.condition.disabled) and any(one in site.condition.disabled for one in session.sources))
        )

    def _is_outranked(self, site: Site) -> bool:
        if not site.policy.allow_priority_interruption:
            return False
        return any(other.policy.queue_priority > site.policy.queue_priority for other in self.starved)

    def make_idle(self, session: Session, now: float) -> None:
        session.idle_since = now
        session.group.idle.append(session)
        self._agenda.mark(session.group.site)

    def forget(self, session: Session) -> None:
        group = session.group
        del self.all[session.number]
        self.partners.close_one()
        group.site.sessions.discard(session.number)
        group.sessions.discard(session.number)
        group.opening -= session.opening
        for source in session.sources:
            group.site.by_source[source] -= 1
        group.site.forget(group)
        self._agenda.mark(group.site)
