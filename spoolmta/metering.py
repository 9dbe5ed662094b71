"""Charging a message to every rate that counts it: of the site, of its source address, of the domain, of the VMTA.

Recipients count when they are tried, connections when they are begun. Bytes count when they are sent and are given back
if they were not delivered, so that a volume is never exceeded by what is still under way.
"""

from __future__ import annotations

import math

from spoolmta import entry
from spoolmta.limits import BYTES, RECIPIENTS, Limits
from spoolmta.sharing import ALONE, Partners
from spoolmta.site import Group, Queue, Session, Site


class Meter:
    """`whole` are the limits of the VMTA, `partners` those that it shares with others."""

    def __init__(self, whole: Limits, partners: Partners = ALONE) -> None:
        self.whole = whole
        self._partners = partners

    def __repr__(self) -> str:
        return f"Meter({self.whole})"

    def is_free(self, site: Site) -> bool:
        """Whether no rate holds at a site at all: most of the time, and the road of every message."""
        return site.limits.is_unlimited and self.whole.is_unlimited and not self._partners.has_rates

    def at_once(self, site: Site, count: int) -> int:
        """How many of so many recipients may ever go at once: a message to more than a rate allows goes in parts."""
        most = min(site.limits.most(RECIPIENTS), self.whole.most(RECIPIENTS), count)
        return math.floor(min(most, self._partners.most()) if self._partners.has_rates else most)

    def pause(self, site: Site, count: int, name: str, now: float) -> tuple[float, str]:
        """Seconds for which a rate of the site or of the VMTA keeps a message back, and which one."""
        for limits, owner in ((site.limits, ""), (self.whole, " of the VMTA")):
            if limits.is_unlimited:
                continue
            for kind in (RECIPIENTS, BYTES):
                pause, held = limits.wait(kind, now, count if kind is RECIPIENTS else entry.size(name))
                if pause > 0:
                    return pause, (f"max-smtp-{held[4:]}" if owner else held).replace("_", "-") + owner
        return 0.0, ""

    def idle_session(self, group: Group, count: int, name: str, now: float) -> tuple[Session | None, float]:
        """An idle session whose source address may send the message to so many recipients; else how long until one may
        (0: there is no idle one)."""
        limits = group.site.limits
        if not limits.has_source_rates:
            return (group.idle.pop() if group.idle else None), 0.0
        pauses = [0.0]
        for session in reversed(group.idle):
            pause = 0.0
            for source in session.sources:
                pause = max(pause, limits.wait_at(source, RECIPIENTS, now, count))
                pause = max(pause, limits.wait_at(source, BYTES, now, entry.size(name)))
            if not pause:
                group.idle.remove(session)
                return session, 0.0
            pauses.append(pause)
        return None, max(pauses)

    def take_shared(self, session: Session, count: int, name: str) -> tuple[float, str]:
        """Count the message in the rates that are shared; (0, "") if it may go, else the session is idle again."""
        if not self._partners.has_rates:
            return 0.0, ""
        pause, held = self._partners.take(count, entry.size(name))
        if pause:
            session.group.idle.append(session)
        return pause, held

    def charge(self, session: Session, queue: Queue, count: int, name: str, now: float) -> None:
        """The message goes out on the session."""
        session.sent += 1
        session.queue, session.taken = queue, now
        queue.active += 1
        if queue.own_limiter is not None:
            queue.own_limiter.take(now, count)
        if self.is_free(session.group.site):
            return
        session.size = entry.size(name)
        for limits in (session.group.site.limits, self.whole):
            if not limits.is_unlimited:
                limits.take(RECIPIENTS, now, count, session.sources)
                limits.take(BYTES, now, session.size, session.sources)

    def let_go(self, session: Session, now: float, delivered: bool) -> Queue | None:
        """The session's message is done, whatever became of it; its queue, if it had one."""
        queue, session.queue = session.queue, None
        if queue is not None:
            queue.active -= 1
        if session.size and not delivered:
            for limits in (session.group.site.limits, self.whole):
                limits.give_back(BYTES, session.taken, now, session.size, session.sources)
            if self._partners.has_rates:
                self._partners.give_back(session.size, now - session.taken)
        session.size = 0
        return queue
