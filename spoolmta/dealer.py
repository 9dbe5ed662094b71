"""Who takes a message: a member of its pool, a cold VMTA, the one that takes what is over a plan. Counted exactly, over
all processes that put mail into queues.

    the member of a pool    whose turn it is (`dealing`), who has left no marker (`markers`) for one of the message's
                            domains, and whose plan has room. Where that leaves nobody, all count as free: mail waits at
                            its own member rather than nowhere
    its cold VMTA           the first messages of a day; several take turns
    over its plan           the VMTA `overflow`, and so on

A member in a back-off that only a delivery may end gets a message every PROBE seconds; without that it would wait for
ever for the mail that is kept from it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from spoolmta import dealing, warming
from spoolmta.markers import Board
from spoolmta.model import Config, Pool
from spoolmta.spool.layout import Layout
from spoolmta.tally import FIRST_DAY, LAST_DAY, NUMBER, Tally
from spoolmta.warming import Hosts, Plans

PROBE = 60.0
"""Seconds between two messages to a member that is passed over but must be tried, for each site, pool and process."""


class Dealt(msgspec.Struct, frozen=True):
    """Who takes a message; `pool` is "" where it was not dealt out. `counted` are the numbers it was counted in."""

    vmta: str
    pool: str = ""
    counted: tuple[str, ...] = ()


class Dealer:
    """One for each process that puts mail into the queues of VMTAs. `hosts_of` tells a domain's mail hosts; it is asked
    only where something is counted for sites."""

    def __init__(self, config: Config, layout: Layout, hosts_of: Callable[[str], Hosts]) -> None:
        self._hosts_of = hosts_of
        self._board = Board(layout)
        self._tally = Tally(layout.tally)
        self._probed: dict[tuple[str, str, str], float] = {}
        self.reconfigure(config)

    def __repr__(self) -> str:
        return f"Dealer({self._tally}, {self._board})"

    def reconfigure(self, config: Config) -> None:
        self._config = config
        self._plans = warming.plans_of(config)

    def close(self) -> None:
        self._tally.close()

    def deal(self, name: str, domains: Iterable[str], now: float) -> Dealt:
        """Who takes a message to these domains that is for the VMTA or pool `name`. `now` is in Unix seconds."""
        pool = self._config.pools.get(name)
        if pool is None and name not in self._plans:
            return Dealt(name)
        with self._round([name] if pool is None else pool.virtual_mta, [*domains], now) as turn:
            if pool is not None:
                free = [turn.is_free(name, member) for member in pool.virtual_mta]
                name = turn.choose(pool, free if any(free) else [True] * len(free))
            name = turn.overflow(turn.cold(name))
            return Dealt(name, pool.name if pool is not None else "", turn.count(name))

    def take_back(self, dealt: Dealt, now: float) -> None:
        """The message was not taken in after all: it counts for nobody."""
        today = day_of(now)
        with self._tally.locked() if dealt.counted else contextlib.nullcontext():
            for name in dealt.counted:
                cells = self._tally.cells(name, today)
                if cells[LAST_DAY] == today and cells[NUMBER] > 0:
                    cells[NUMBER] -= 1

    def has_other(self, pool: Pool, member: str, domain: str, now: float) -> bool:
        """Whether a member other than this one is free for a domain."""
        with self._round(pool.virtual_mta, [domain], now) as turn:
            return any(other != member and turn.is_free(pool.name, other) for other in pool.virtual_mta)

    def pass_on(self, pool: Pool, member: str, domain: str, now: float) -> Dealt | None:
        """The member that takes a waiting message over from this one; None if no other is free."""
        with self._round(pool.virtual_mta, [domain], now) as turn:
            free = [other != member and turn.is_free(pool.name, other) for other in pool.virtual_mta]
            if not any(free):
                return None
            target = turn.choose(pool, free)
            return Dealt(target, pool.name, turn.count(target))

    @contextlib.contextmanager
    def _round(self, names: Iterable[str], domains: list[str], now: float) -> Iterator[_Turn]:
        """One decision among these VMTAs. What must be asked of others is asked before the lock is taken."""
        hosts: dict[str, Hosts] = {}
        today = day_of(now)
        is_counted = any(name in self._plans and self._plans[name].counts(today) for name in names)
        for domain in domains if is_counted else ():
            if not all(plans.is_fixed(domain) for plans in self._plans.values()):
                hosts[domain] = self._hosts_of(domain)
        with self._tally.locked():
            yield _Turn(self._plans, self._board, self._tally, self._probed, domains, hosts, now)


class _Turn:
    """One message's decision, while the numbers are locked."""

    def __init__(
        self,
        plans: dict[str, Plans],
        board: Board,
        tally: Tally,
        probed: dict[tuple[str, str, str], float],
        domains: list[str],
        hosts: dict[str, Hosts],
        now: float,
    ) -> None:
        self._plans, self._board, self._tally, self._probed = plans, board, tally, probed
        self._domains, self._hosts, self._now = domains, hosts, now
        self._today = day_of(now)
        self._cold: tuple[str, ...] = ()

    def is_free(self, pool: str, member: str) -> bool:
        marker = self._board.standing_against(pool, member, self._domains, self._now)
        if marker is not None:
            last = self._probed.get((pool, member, marker.site), marker.since)
            if not marker.is_probed or self._now - last < PROBE:
                return False
        return self._full(member) is None

    def choose(self, pool: Pool, free: list[bool]) -> str:
        """The member whose turn it is."""
        chosen = self._next(f"owed {pool.name}", pool.virtual_mta, free)
        marker = self._board.standing_against(pool.name, chosen, self._domains, self._now)
        if marker is not None:
            self._probed[pool.name, chosen, marker.site] = self._now
        return chosen

    def cold(self, name: str) -> str:
        """The cold VMTA for a message that is for `name`, as long as it has had few enough today; else `name`."""
        plans = self._plans.get(name)
        counts = [self._cold_counts(plans, cold) for cold in plans.cold] if plans is not None else []
        free = [found is not None for found in counts]
        if plans is None or not any(free):
            return name
        chosen = self._next(f"turn {name}", dict.fromkeys(plans.cold, 1), free)
        self._cold = counts[plans.cold.index(chosen)] or ()
        return chosen

    def _cold_counts(self, plans: Plans, cold: str) -> tuple[str, ...] | None:
        """The numbers in which a message would count that goes to a cold VMTA; None if one of them is used up."""
        found: dict[str, None] = {}
        for domain in self._domains:
            bounds = plans.bounds("max_cold_virtual_mta_msg", domain, self._hosts.get(domain))
            for key, plan in (bounds or {}).items():
                name = f"cold {cold} {key}"
                first_day = self._tally.cells(name, self._today)[FIRST_DAY]
                if self._had(name) >= warming.of_cold(plan, first_day, self._today):
                    return None
                found[name] = None
            if not bounds:
                return None
        return tuple(found)

    def overflow(self, name: str) -> str:
        """Where a message goes whose VMTA has had what its plan allows; the configuration has no circles."""
        while over := self._full(name):
            name, self._cold = over, ()
        return name

    def _full(self, vmta: str) -> str | None:
        """Who takes what is over, if a VMTA's plan has no room for the message; None if it has."""
        plans = self._plans.get(vmta)
        if plans is None or plans.are_over(self._today):
            return None
        for domain in self._domains:
            bounds = plans.bounds("warm_up", domain, self._hosts.get(domain))
            if bounds is None:
                return plans.any_overflow
            for key, plan in bounds.items():
                if self._had(f"warm {vmta} {key}") >= warming.of_plan(plan, self._today):
                    return str(plan.overflow)
        return None

    def count(self, vmta: str) -> tuple[str, ...]:
        """Count the message for who takes it; the numbers it is counted in."""
        names = dict.fromkeys(self._cold)
        plans = self._plans.get(vmta)
        if plans is not None and not plans.are_over(self._today):
            for domain in self._domains:
                bounds = plans.bounds("warm_up", domain, self._hosts.get(domain)) or {}
                names |= dict.fromkeys(f"warm {vmta} {key}" for key in bounds)
        for name in names:
            had = self._had(name)
            cells = self._tally.cells(name, self._today)
            cells[NUMBER], cells[LAST_DAY] = had + 1, self._today
        return tuple(names)

    def _had(self, name: str) -> int:
        """What has been counted today."""
        cells = self._tally.cells(name, self._today)
        return cells[NUMBER] if cells[LAST_DAY] == self._today else 0

    def _next(self, prefix: str, weights: dict[str, int], free: list[bool]) -> str:
        members = [*weights]
        cells = [self._tally.cells(f"{prefix} {member}", self._today) for member in members]
        owed = [cell[NUMBER] for cell in cells]
        chosen = dealing.choose([*weights.values()], owed, free)
        for cell, credit in zip(cells, owed, strict=True):
            cell[NUMBER], cell[LAST_DAY] = credit, self._today
        return members[chosen]


def day_of(now: float) -> int:
    """The day of a time, local, counted from 1970-01-01: it changes at local midnight."""
    return (int(now) + time.localtime(now).tm_gmtoff) // 86_400
