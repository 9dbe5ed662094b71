"""Mail that goes to another VMTA instead: reroute-to-virtual-mta always, backoff-reroute-to-virtual-mta in back-off.

    an entry comes (a hint, a scan)        -> it goes on before the scheduler knows of it
    a domain's site becomes known          -> so does what has waited for that
    back-off begins, or an entry is due again there -> so does what waits

What a session carries is finished. An entry remembers who has passed it on (`entry.rerouted`): chains are allowed, and
no entry comes to a VMTA that has passed it on already. Where it could only go there it stays, and is sent from here
within the limits that hold. Of members of a pool those count that want mail for the domain (`standing`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from spoolmta import condition, entry
from spoolmta.model import Config, DomainPolicy
from spoolmta.passage import BATCH, Choose, Passage
from spoolmta.schedule import Scheduler

log = logging.getLogger("spoolmta")

_ORDINARY = condition.Condition()


class Rerouting:
    """Of one VMTA; `tend` about once a second, and when the mode of a site has changed. `policy` is what holds for a
    domain."""

    def __init__(
        self, config: Config, scheduler: Scheduler, passage: Passage, policy: Callable[[str], DomainPolicy], vmta: str
    ) -> None:
        self._scheduler, self._passage, self._policy, self._vmta = scheduler, passage, policy, vmta
        self._told: set[tuple[str, str]] = set()
        self.reconfigure(config)

    def __repr__(self) -> str:
        return f"Rerouting({self._vmta}, {self.is_used})"

    def reconfigure(self, config: Config) -> None:
        vmta = config.vmtas.get(self._vmta)
        layers = (config.domains, *(vmta.layers if vmta is not None else ()))
        fields = ("reroute_to_virtual_mta", "backoff_reroute_to_virtual_mta")
        self.is_used = any(field in table.settings for layer in layers for table in layer for field in fields)
        self._pools = config.pools

    def takes(self, domain: str, name: str, now: float) -> bool:
        """Whether an entry that has just come goes on to another VMTA; then it has gone."""
        target = self._target(domain) if self.is_used else ""
        if not target or entry.was_rerouted_by(name, target) or self._scheduler.is_held(name):
            return False
        return bool(self._passage.give(domain, name, self._choose(domain, target, now), now, is_marked=True))

    def take_all(self, domain: str, now: float) -> int:
        """Pass on what waits for a domain, if it goes elsewhere; how many entries."""
        target = self._target(domain) if self.is_used else ""
        is_held = self._scheduler.is_held  # where its job is paused it stays: elsewhere that may not be so
        names = [name for name in self._passage.waiting(domain) if not is_held(name)] if target else []
        going = [name for name in names if not entry.was_rerouted_by(name, target)]
        if len(going) < len(names) and (domain, target) not in self._told:
            self._told.add((domain, target))
            log.warning(
                "%s: mail for %s goes round in a loop of reroute-to-virtual-mta: what %s has passed on already is sent"
                " from here",
                self._vmta,
                domain,
                target,
            )
        if not going:
            return 0
        choose = self._choose(domain, target, now)
        return self._passage.pass_on(domain, {*going[:BATCH]}, choose, now, is_marked=True)

    def tend(self, now: float) -> bool:
        """Pass on what has come to wait where it should not; True if anything went."""
        if not self.is_used:
            return False
        return sum(self.take_all(domain, now) for domain in [*self._scheduler.queues]) > 0

    def _target(self, domain: str) -> str:
        """The VMTA or pool that takes a domain's mail instead, "" for none."""
        site, known = self._scheduler.site_of(domain), self._scheduler.known
        state = known.by_key[site].condition if site in known.by_key else known.memory.all().get(site, _ORDINARY)
        target = condition.goes_to(self._policy(domain), state)
        return target if target != self._vmta else ""

    def _choose(self, domain: str, target: str, now: float) -> Choose:
        pool, dealer = self._pools.get(target), self._passage.dealer
        if pool is not None:
            return lambda: dealer.pass_on(pool, self._vmta, domain, now)
        return lambda: dealer.deal(target, [domain], now)
