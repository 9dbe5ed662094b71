"""The limits of a site as they hold now: rates of recipients, connections and bytes, for the site and for each source
address, each with its window. They follow the policy in force (`condition.in_force`).

The normal rate of a directive always counts and always holds. In back-off, and where a rule has set a rate, a second
one holds beside it, which begins to count when it begins to hold: mail that went out before is no reason to wait.

Laws. `wait` says 0 only if no rate forbids it; what is taken counts in all of them.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from spoolmta.model import UNLIMITED, DomainPolicy, Rate
from spoolmta.rate import Cells, RateLimiter

CellsFor = Callable[[str], Cells | None]
"""The memory of a limiter by its name; None for memory that does not outlive the process."""

RECIPIENTS, CONNECTIONS, BYTES = "max_msg_rate", "max_connect_rate", "max_data_volume_rate"
KINDS = (RECIPIENTS, CONNECTIONS, BYTES)


class Limits:
    """All limiters of one site. `normal` is its policy, `force` what holds of it now."""

    __slots__ = (
        "_by_source",
        "_cells_for",
        "_key",
        "_limiters",
        "_strict",
        "force",
        "has_source_rates",
        "is_unlimited",
        "normal",
    )

    def __init__(self, key: str, normal: DomainPolicy, force: DomainPolicy, cells_for: CellsFor, now: float) -> None:
        self._key = key
        self._cells_for = cells_for
        self._limiters: dict[str, RateLimiter] = {}
        self._strict: dict[str, RateLimiter] = {}
        self._by_source: dict[tuple[str, str], RateLimiter] = {}
        self.normal = self.force = normal
        self.has_source_rates = False
        self.is_unlimited = True
        self.set_policy(normal, force, now, is_start=True)

    def __repr__(self) -> str:
        return f"Limits({self._key}, {self._limiters}, {self._strict})"

    def set_policy(self, normal: DomainPolicy, force: DomainPolicy, now: float, *, is_start: bool = False) -> None:
        """A rate that did not change keeps its window, also one that got another limit. `is_start`: what a stricter
        rate remembers is from before a restart, and counts."""
        self.normal, self.force = normal, force
        self.has_source_rates = any(getattr(normal, f"source_ip_{kind}") for kind in KINDS)
        for kind in KINDS:
            self._follow(self._limiters, kind, getattr(normal, kind), now, keep=True)
            strict = getattr(force, kind)
            self._follow(
                self._strict, kind, UNLIMITED if strict == getattr(normal, kind) else strict, now, keep=is_start
            )
        self.is_unlimited = not (self._limiters or self._strict or self.has_source_rates)
        for (source, kind), limiter in list(self._by_source.items()):
            rate = limit_of(getattr(normal, f"source_ip_{kind}"), source, UNLIMITED)
            if rate.count == math.inf:
                del self._by_source[source, kind]
            elif limiter.rate != rate:
                limiter.set_rate(rate, now)

    def wait(self, kind: str, now: float, count: float) -> tuple[float, str]:
        """(seconds until `count` more may go, 0 if they may now; the directive that forbids it)."""
        limiter = self._limiters.get(kind)
        pause = limiter.wait(now, count) if limiter is not None else 0.0
        held = kind if pause else ""
        strict = self._strict.get(kind)
        if strict is not None:
            longer = strict.wait(now, count)
            if longer > pause:
                pause, held = longer, f"backoff_{kind}" if self._is_backed_off(kind) else kind
        return pause, held

    def wait_at(self, source: str, kind: str, now: float, count: float) -> float:
        """Seconds until a source address may."""
        limiter = self._at(source, kind)
        return limiter.wait(now, count) if limiter is not None else 0.0

    def take(self, kind: str, now: float, count: float, sources: Iterable[str] = ()) -> None:
        for limiter in self._counting(kind, sources):
            limiter.take(now, count)

    def give_back(self, kind: str, taken: float, now: float, count: float, sources: Iterable[str] = ()) -> None:
        """What was taken at `taken` was not used."""
        for limiter in self._counting(kind, sources):
            limiter.give_back(taken, now, count)

    def allowance(self, kind: str, now: float) -> float:
        """How many more, one by one, could go now."""
        found = [limiter.allowance(now) for limiter in self._counting(kind, ())]
        return min(found, default=math.inf)

    def busy_until(self) -> float:
        """When all windows are empty."""
        every = [*self._limiters.values(), *self._strict.values(), *self._by_source.values()]
        return max((limiter.busy_until() for limiter in every), default=-math.inf)

    def most(self, kind: str) -> float:
        """The most that can ever go at once."""
        return min((limiter.rate.count for limiter in self._counting(kind, ())), default=math.inf)

    def _counting(self, kind: str, sources: Iterable[str]) -> Iterable[RateLimiter]:
        found = [table[kind] for table in (self._limiters, self._strict) if kind in table]
        if self.has_source_rates:
            found += [limiter for source in sources if (limiter := self._at(source, kind)) is not None]
        return found

    def _at(self, source: str, kind: str) -> RateLimiter | None:
        found = self._by_source.get((source, kind))
        if found is None and source:
            rate = limit_of(getattr(self.normal, f"source_ip_{kind}"), source, UNLIMITED)
            if rate.count < math.inf:
                found = self._by_source[source, kind] = RateLimiter(rate, self._memory(f"{kind} {source}"))
        return found

    def _is_backed_off(self, kind: str) -> bool:
        return bool(getattr(self.normal, f"backoff_{kind}").count < math.inf)

    def _follow(self, table: dict[str, RateLimiter], kind: str, rate: Rate, now: float, *, keep: bool) -> None:
        limiter = table.get(kind)
        if rate.count == math.inf:
            table.pop(kind, None)
        elif limiter is None:
            limiter = RateLimiter(rate, self._memory(kind if table is self._limiters else f"strict {kind}"))
            if not keep:
                limiter.clear()
            table[kind] = limiter
        elif limiter.rate != rate:
            limiter.set_rate(rate, now)

    def _memory(self, name: str) -> Cells | None:
        return self._cells_for(f"{self._key} {name}")


@lru_cache(maxsize=4096)
def limit_of(limits: tuple[tuple[str, Any], ...], source: str, otherwise: Any) -> Any:
    """What `source-ip-...` says for an address: the network with the longest prefix it lies in."""
    address = ipaddress.ip_address(source)
    fitting = [
        (network.prefixlen, limit)
        for text, limit in limits
        if (network := ipaddress.ip_network(text)).version == address.version and address in network
    ]
    return max(fitting, key=lambda found: found[0])[1] if fitting else otherwise
