"""Which ready message of a site goes on which idle session: fairness, rates and domains' own limits, in one loop.

What has waited too long where nothing is assigned, behind a failure, a pause or with its job, is given up here as well.

Laws. A message leaves the backlog by exactly one action, Assign or Expire. One that a rate of the whole site keeps back
keeps the site's others back too, so that none overtakes; one that its domain's own limits keep back does not.
"""

from __future__ import annotations

import math

from spoolmta import entry
from spoolmta.action import Action, Assign, Expire
from spoolmta.agenda import Agenda
from spoolmta.metering import Meter
from spoolmta.site import Group, Queue, Site

JOB_IS_HELD = "the job is paused"


class Assignment:
    """Puts mail on sessions, within what the `meter` allows; what has to wait for a time is armed in the `agenda`."""

    def __init__(self, agenda: Agenda[Queue | Site], meter: Meter) -> None:
        self._agenda = agenda
        self._meter = meter

    def __repr__(self) -> str:
        return f"Assignment({self._meter})"

    def assign(self, site: Site, now: float, actions: list[Action]) -> list[Group]:
        """Give ready mail to idle sessions; the groups that could use more sessions (none if a rate holds the site)."""
        groups = [group for group in site.groups.values() if group.backlog]
        wanting: list[Group] = []
        turn = 0
        while groups:
            turn %= len(groups)
            group = groups[turn]
            found = group.backlog.peek()
            if found is None:
                del groups[turn]
                continue
            queue, name = found[0].queue, found[1]
            if ":" in name and queue.is_too_old(name, now):
                group.backlog.take()
                actions.append(Expire(queue.domain, name, site.condition.reason))
                continue
            count = most = entry.recipients(name)
            if not self._meter.is_free(site):
                most = self._meter.at_once(site, count)
                pause, held = self._meter.pause(site, most, name, now)
                if pause > 0:
                    site.hold = held
                    self._agenda.arm(now + pause, site)
                    return []
            if queue.is_limited and self._hold(queue, most, now):
                continue
            session, pause = self._meter.idle_session(group, most, name, now)
            if session is None:
                if pause:
                    self._agenda.arm(now + pause, site)
                wanting.append(group)
                del groups[turn]
                continue
            pause, site.hold = self._meter.take_shared(session, most, name)
            if pause:
                self._agenda.arm(now + pause, site)
                return []
            group.backlog.take()
            self._meter.charge(session, queue, most, name, now)
            actions.append(Assign(session.number, queue.domain, name, most if most < count else 0))
            turn += 1
        return wanting

    def _hold(self, queue: Queue, count: int, now: float) -> bool:
        """Whether a domain's own limits keep its mail back, which then lets that of the other domains pass."""
        until = queue.may_go_at(now, count)
        if until <= now:
            return False
        queue.hold(until)
        if until < math.inf:
            self._agenda.arm(until, queue)
        return True

    def expire_blocked(self, site: Site, now: float, actions: list[Action]) -> None:
        """Give up what has waited too long behind a failure or a pause, tried or not."""
        expired, again = site.take_expired(now)
        actions += [Expire(domain, name, site.condition.reason) for domain, name in expired]
        if site.condition.blocked_until > now:
            again = min(again, site.condition.blocked_until)
        if again < math.inf:
            self._agenda.arm(again, site)

    def expire_held(self, queue: Queue, now: float, actions: list[Action]) -> None:
        """Give up what has waited too long with its job, tried or not."""
        expired = queue.take_expired_held(now)
        actions += [Expire(queue.domain, name, JOB_IS_HELD) for name in expired]
        if (again := queue.held_expiry) < math.inf:
            self._agenda.arm(again, queue)
