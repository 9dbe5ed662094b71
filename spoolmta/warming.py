"""How much mail an address that is warming up may have, for a site and a day.

    cold-virtual-mta    the first messages of a day that are submitted to the warm VMTA go to a cold one, as PowerMTA
                        does it: so many on the cold one's first day for the site, so many on its second, ...
    warm-up             the VMTA's own plan from a date on; what is over goes to another VMTA

Both count messages for each site; where a domain has a number of its own in its site, that holds within the site's.
Where a domain's site is not known for now, no number can be kept to: then the address that warms up gets nothing.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from spoolmta.derived import derived
from spoolmta.model import Config, WarmUp
from spoolmta.policy import PolicyTable

Hosts = frozenset[str] | None
"""The hosts that a domain's MX records name (none for a domain that has none); None if that is not known for now."""


def of_cold(plan: tuple[int, ...], first_day: int, today: int) -> int:
    """Messages of today for a cold VMTA that had its first on `first_day`; the last number of the plan repeats."""
    return plan[max(0, min(today - first_day, len(plan) - 1))]


def of_plan(warm_up: WarmUp, today: int) -> float:
    """Messages of today by a plan: none before it begins, infinity when it is over."""
    day = today - warm_up.start
    if day < 0:
        return 0
    return warm_up.plan[day] if day < len(warm_up.plan) else math.inf


class Plans:
    """The numbers of one VMTA, and its cold ones."""

    def __init__(self, config: Config, vmta: str) -> None:
        self._table = PolicyTable(config, vmta)
        self.cold = config.vmtas[vmta].cold_virtual_mta
        settings = [table.settings.get("warm_up") for layer in config.vmtas[vmta].layers for table in layer]
        self._every = [s.value for s in settings if s is not None and isinstance(s.value, WarmUp)]
        self.any_overflow = self._every[0].overflow if self._every else ""
        self.resolve = functools.lru_cache(maxsize=100_000)(self._table.resolve)
        self._fixed_site_of = functools.lru_cache(maxsize=100_000)(self._table.fixed_site_of)

    def __repr__(self) -> str:
        return f"Plans({self._table!r}, {self.cold})"

    def are_over(self, today: int) -> bool:
        """Whether the VMTA has no plan, or the last day of all of them is past."""
        return all(of_plan(warm_up, today) == math.inf for warm_up in self._every)

    def counts(self, today: int) -> bool:
        """Whether anything is counted for it today."""
        return bool(self.cold) or not self.are_over(today)

    def is_fixed(self, domain: str) -> bool:
        """Whether a domain's site is no matter of its MX hosts."""
        return bool(self._fixed_site_of(domain))

    def site_of(self, domain: str, hosts: Hosts) -> str:
        """The site of a domain; "" if it is not known for now."""
        if fixed := self._fixed_site_of(domain):
            return fixed
        return "" if hosts is None else self._table.site_of(domain, hosts)

    def bounds(self, field: str, domain: str, hosts: Hosts) -> dict[str, Any] | None:
        """What `field` says, by whom it is counted: the site, and the domain where it has a value of its own. Without
        what is empty; None where the site is not known."""
        site = self.site_of(domain, hosts)
        if not site:
            return None
        shared, own = getattr(self.resolve(site, site), field), getattr(self.resolve(site, domain), field)
        found = {site: shared} if own == shared else {site: shared, domain: own}
        return {key: value for key, value in found.items() if value not in ((), WarmUp())}


@derived
def names(config: Config) -> tuple[str, ...]:
    """The VMTAs that have cold ones or plans."""
    return tuple(
        vmta.name
        for vmta in config.vmtas.values()
        if vmta.cold_virtual_mta or any("warm_up" in table.settings for layer in vmta.layers for table in layer)
    )


def plans_of(config: Config) -> dict[str, Plans]:
    """Of each that has any."""
    return {name: Plans(config, name) for name in names(config)}
