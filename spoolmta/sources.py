"""From which of the VMTA's addresses a connection comes: they take turns, per connection.

An address is passed over where it is disabled for the site (by a rule or the operator), has as many connections there
as `source-ip-max-smtp-out` allows, may open none yet by `source-ip-max-connect-rate`, or cannot be bound at all. That
last is our own fault: it is set aside for every site, for a minute.
"""

from __future__ import annotations

import math

from spoolmta.limits import CONNECTIONS, limit_of
from spoolmta.site import Site

SET_ASIDE = 60.0


class Sources:
    """The addresses of one VMTA; none means that the system chooses."""

    def __init__(self, addresses: tuple[str, ...] = ()) -> None:
        self._families: list[list[str]] = []
        self._aside: dict[str, float] = {}
        self.set_addresses(addresses)

    def __repr__(self) -> str:
        return f"Sources({self._families}, aside={self._aside})"

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        v4, v6 = [a for a in addresses if ":" not in a], [a for a in addresses if ":" in a]
        self._families = [family for family in (v4, v6) if family]

    def set_aside(self, address: str, now: float) -> bool:
        """An address could not be bound; True if that is news."""
        is_news = self._aside.get(address, 0.0) <= now
        self._aside[address] = now + SET_ASIDE
        return is_news

    def choose(self, site: Site, now: float) -> tuple[tuple[str, ...] | None, float, str]:
        """(addresses, at most one of each IP version; when to ask again; what holds it). None: there is none now."""
        if not self._families:
            return (), 0.0, ""
        chosen = []
        again, held = math.inf, ""
        for family in self._families:
            for _ in range(len(family)):
                family.append(family.pop(0))
                until, reason = self._held(site, family[-1], now)
                if until <= now:
                    chosen.append(family[-1])
                    break
                if until < again or not held:
                    again, held = until, reason
        return (tuple(chosen), 0.0, "") if chosen else (None, again, held)

    def are_all_disabled(self, site: Site) -> bool:
        disabled = site.condition.disabled
        return bool(self._families) and all(address in disabled for family in self._families for address in family)

    def _held(self, site: Site, address: str, now: float) -> tuple[float, str]:
        """Until when an address cannot be used at a site, and why; not after `now` if it can."""
        if address in site.condition.disabled:
            return math.inf, f"source {address} is disabled"
        if self._aside.get(address, 0.0) > now:
            return self._aside[address], f"source {address} cannot be bound"
        policy = site.limits.force
        if site.by_source.get(address, 0) >= limit_of(policy.source_ip_max_smtp_out, address, math.inf):
            return math.inf, "source-ip-max-smtp-out"
        pause = site.limits.wait_at(address, CONNECTIONS, now, 1)
        return now + pause, "source-ip-max-connect-rate" if pause else ""
