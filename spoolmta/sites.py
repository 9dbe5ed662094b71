"""The sites of one VMTA: those with mail or sessions, and what is remembered of the others."""

from __future__ import annotations

import math
from collections.abc import Callable

from spoolmta import condition
from spoolmta.agenda import Agenda
from spoolmta.condition import Condition, Event, Memory
from spoolmta.limits import CellsFor, Limits
from spoolmta.model import DomainPolicy
from spoolmta.rate import pick
from spoolmta.site import Queue, Site
from spoolmta.sources import Sources

JITTER = 0.05
"""Up to so much is added to a site's pause, so that what failed together does not come back together."""

Chance = Callable[[], float]
"""Numbers from 0 to 1."""
Policies = Callable[[str, str], DomainPolicy]
"""The complete policy for (site, domain); that of a site itself for (site, site)."""


class Sites:
    """`by_key` are those that have mail or sessions now."""

    def __init__(self, agenda: Agenda[Queue | Site], sources: Sources, chance: Chance, cells_for: CellsFor) -> None:
        self.by_key: dict[str, Site] = {}
        self.memory = Memory()
        self._agenda = agenda
        self._sources = sources
        self._chance = chance
        self._cells_for = cells_for
        self.news: list[tuple[str, Event]] = []
        """What happened to which site, to be told to the operator; whoever tells it empties the list."""

    def __repr__(self) -> str:
        return f"Sites({self.by_key}, {self.memory})"

    def make(self, key: str, policy: DomainPolicy, now: float) -> Site:
        """A site that gets mail, in the condition it was left in."""
        state = self.memory.take(key)
        condition.tick(state, policy, now)
        self.tell(key, state)
        limits = Limits(key, policy, condition.in_force(policy, state), self._cells_for, now)
        site = self.by_key[key] = Site(key, policy, state, limits)
        site.tick_at = condition.next_time(state)
        self._agenda.arm(min(site.tick_at, max(now, state.blocked_until)), site)
        return site

    def condition_of(self, key: str) -> Condition:
        """The condition of a site, to be looked at or changed; `refresh` it, or tidy the memory, afterwards."""
        site = self.by_key.get(key)
        return site.condition if site is not None else self.memory.of(key)

    def conditions(self, now: float) -> dict[str, Condition]:
        """What outlives the process: all that is not as it would be anyway."""
        every = self.memory.all() | {site.key: site.condition for site in self.by_key.values()}
        return {key: state for key, state in every.items() if not state.is_ordinary(now)}

    def block(self, site: Site, now: float, reason: str, pause: float | None, asked: float = 0.0) -> bool:
        """Hold a site after a failure: for `pause` seconds, or if that is None (a failure of its own) for as long as it
        asked, or by its retry-after. Sessions that fail while it is blocked belong to the same failure; True if it is
        a new one."""
        self._agenda.mark(site)
        state = site.condition
        if state.blocked_until > now:
            return False
        state.reason = reason
        if pause is None:
            state.failures += 1
            pause = asked or pick(site.limits.force.retry_after, state.failures)
        state.blocked_until = now + pause * (1 + JITTER * self._chance())
        return True

    def absolve(self, site: Site) -> None:
        """What has failed or was learned there was about hosts to which nobody goes any more."""
        state = site.condition
        state.failures, state.blocked_until, state.reason, state.window = 0, 0.0, "", 0.0
        site.calm_until = 0.0

    def refresh(self, site: Site, now: float) -> None:
        """The site's condition or policy has changed, or its time has come."""
        state = site.condition
        condition.tick(state, site.policy, now)
        if site.policy.backoff_upon_all_sources_disabled and self._sources.are_all_disabled(site):
            condition.enter_backoff(state, site.policy, now, "all source addresses are disabled")
        self.tell(site.key, state)
        site.limits.set_policy(site.policy, condition.in_force(site.policy, state), now)
        site.tick_at = condition.next_time(state)
        self._agenda.mark(site)

    def tell(self, key: str, state: Condition) -> None:
        """Its events since the last time are news."""
        self.news += [(key, event) for event in state.tell()]

    def tick_remembered(self, policies: Policies, now: float) -> None:
        """Do what has become due at sites that have no mail, and tell what nobody has been told of."""
        self.memory.next_time = math.inf
        for key, state in [*self.memory.all().items()]:
            if condition.next_time(state) <= now:
                condition.tick(state, policies(key, key), now)
            self.tell(key, state)
            self.memory.tidy(key, now)

    def forget(self, site: Site, now: float) -> None:
        """A site has neither mail nor sessions any more."""
        if not site.condition.is_ordinary(now):
            self.memory.put(site.key, site.condition)
        if self.by_key.get(site.key) is site:
            del self.by_key[site.key]
        self._agenda.forget(site)
