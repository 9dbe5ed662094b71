"""How a VMTA stands with the pools it is a member of: where it wants no mail, the others are told, and get what waits.

    the condition of a site changes (back-off, a pause, no address left)
        -> a marker in each of its pools, for that site and the domains seen there
        -> what waits there of a pool's mail goes to members that are free, by one rename and a hint each
    the condition is over -> the markers go

What comes later than a marker is a probe, or was dealt out before the marker was read, or is for a domain that was not
known to belong there. So of a domain's mail that goes on which was accepted up to LATE after the domain was listed.
An entry keeps its due time and its attempts; where some of its recipients are settled it stays.
"""

from __future__ import annotations

import itertools
import logging

from spoolmta import entry, markers
from spoolmta.control import HintWriter
from spoolmta.dealer import Dealer
from spoolmta.dealing import Absence, absence
from spoolmta.markers import EVERYWHERE, Marker
from spoolmta.model import Config, Pool
from spoolmta.schedule import Scheduler
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Partition
from spoolmta.warming import Hosts

log = logging.getLogger("spoolmta")

LATE = 2 * markers.FRESH
BATCH = 1000
"""Entries passed on at a time: about 50 ms of work, in which nothing else goes on."""
MAX_DOMAINS = 1000
"""Domains a marker lists; the first ones."""


class Standing:
    """Of one VMTA; `tend` about once a second."""

    def __init__(self, config: Config, layout: Layout, scheduler: Scheduler, partition: Partition) -> None:
        self._layout, self._scheduler, self._partition = layout, scheduler, partition
        self._vmta = partition.vmta
        self._hints = HintWriter(layout.run)
        self._dealer = Dealer(config, layout, self._hosts_of)
        self._left = {pool: markers.read(layout, pool, self._vmta) for pool in markers.pools_of(layout, self._vmta)}
        self._is_told = False
        self.reconfigure(config)

    def __repr__(self) -> str:
        return f"Standing({self._vmta}, {self._left})"

    def reconfigure(self, config: Config) -> None:
        vmta = config.vmtas.get(self._vmta)
        self._addresses = [host.address for host in vmta.source_hosts] if vmta is not None else []
        self._pools = [pool for pool in config.pools.values() if self._vmta in pool.virtual_mta]
        self._dealer.reconfigure(config)

    def close(self) -> None:
        self._dealer.close()
        self._hints.close()

    def tend(self, now: float) -> bool:
        """Bring the markers in step with the sites' conditions and pass on what waits; True if anything went."""
        if not (self._pools or self._left):
            return False
        absences: dict[str, Absence] = {}
        for site, condition in self._scheduler.known.conditions(now).items() if self._pools else ():
            if (away := absence(condition, self._addresses, now)) is not None:
                absences[site] = away
        try:
            self._mark(absences, now)
            self._hints.pay()
            return sum(self._pass_on(pool, now) for pool in self._pools) > 0
        except OSError as error:
            if not self._is_told:
                log.error("%s: the other members of its pools cannot be told: %s", self._vmta, error)
            self._is_told = True
            return False

    def _hosts_of(self, domain: str) -> Hosts:
        """The mail hosts of a domain, as the scheduler was told them."""
        queue = self._scheduler.queues.get(domain)
        return queue.group.mx if queue is not None and queue.group is not None else None

    def _mark(self, absences: dict[str, Absence], now: float) -> None:
        names = {pool.name for pool in self._pools}
        for pool in [*names, *(self._left.keys() - names)]:
            left = self._left.setdefault(pool, {})
            for site in [site for site in left if pool not in names or site not in absences]:
                markers.take_away(self._layout, pool, self._vmta, site)
                del left[site]
            for site, away in absences.items() if pool in names else ():
                marker = self._marker(site, away, left.get(site), now)
                if marker != left.get(site):
                    markers.leave(self._layout, pool, self._vmta, marker)
                    left[site] = marker
            if not left:
                del self._left[pool]

    def _marker(self, site: str, away: Absence, old: Marker | None, now: float) -> Marker:
        """The marker for a site; a domain that is listed stays listed."""
        since, domains = (old.since, old.domains) if old is not None else (now, {})
        seen = [queue.domain for queue in self._scheduler.queues_of(site)] if site != EVERYWHERE else []
        new = [domain for domain in seen if domain not in domains][: max(0, MAX_DOMAINS - len(domains))]
        return Marker(site, away.reason, since, away.until, away.is_probed, domains | dict.fromkeys(new, now))

    def _pass_on(self, pool: Pool, now: float) -> int:
        """Give what waits of a pool's mail behind markers to the others; how many entries."""
        count = 0
        for marker in self._left.get(pool.name, {}).values():
            listed = marker.domains
            if marker.site == EVERYWHERE:
                listed = dict.fromkeys(self._scheduler.queues, marker.since)
            for domain, since in listed.items():
                if (
                    count < BATCH
                    and domain in self._scheduler.queues
                    and self._dealer.has_other(pool, self._vmta, domain, now)
                ):
                    count += self._pass_on_domain(pool, domain, since + LATE, now, BATCH - count)
        return count

    def _pass_on_domain(self, pool: Pool, domain: str, until: float, now: float, most: int) -> int:
        queue = self._scheduler.queues[domain]
        names = itertools.chain(*(line.names for line in queue.lines.values()), (name for _, name in queue.waiting))
        going = (name for name in names if entry.pool(name) == pool.name and entry.is_older(name, until))
        meant = set(itertools.islice(going, most))
        if not meant:
            return 0
        hints: dict[str, list[str]] = {}
        for name in self._scheduler.withdraw(domain, meant.__contains__):
            dealt = self._dealer.pass_on(pool, self._vmta, domain, now)
            if dealt is not None and self._partition.hand_over(domain, name, dealt.vmta):
                hints.setdefault(dealt.vmta, []).append(f"{domain}/{'cur' if ':' in name else 'new'}/{name}")
            else:
                if dealt is not None:
                    self._dealer.take_back(dealt, now)
                self._scheduler.add(domain, name, entry.state(name)[1], now)
        for target, lines in hints.items():
            self._hints.send(target, lines)
            log.info("%s: %d messages for %s went to %s", self._vmta, len(lines), domain, target)
        return sum(map(len, hints.values()))
