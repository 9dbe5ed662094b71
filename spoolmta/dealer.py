"""Deals out the mail of pools: asks who is free, whose turn it is (`dealing`), and keeps count over all processes.

A member is passed over where it has left a marker (`markers`) for one of the message's domains. Where that leaves
nobody, all count as free: mail waits at its own member rather than nowhere. A member in back-off, which only a delivery
may end, gets a message every PROBE seconds; without that it would wait for ever for the mail that is kept from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from spoolmta import dealing
from spoolmta.markers import Board, Marker
from spoolmta.model import Config, Pool, Struct
from spoolmta.spool.layout import Layout
from spoolmta.tally import LAST_DAY, NUMBER, Tally

PROBE = 60.0
"""Seconds between two messages to a member that is passed over but must be tried, for each site, pool and process."""


class Dealt(Struct, frozen=True):
    """Who takes a message; `pool` is "" where it was not dealt out."""

    vmta: str
    pool: str = ""


class Dealer:
    """One for each process that puts mail into the queues of VMTAs."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self._config = config
        self._board = Board(layout)
        self._tally = Tally(layout.tally)
        self._probed: dict[tuple[str, str, str], float] = {}

    def __repr__(self) -> str:
        return f"Dealer({self._tally}, {self._board})"

    def reconfigure(self, config: Config) -> None:
        self._config = config

    def close(self) -> None:
        self._tally.close()

    def deal(self, name: str, domains: Iterable[str], now: float) -> Dealt:
        """The VMTA for a message to these domains: `name` itself, or a member of the pool of that name. `now` is in
        Unix seconds."""
        pool = self._config.pools.get(name)
        if pool is None:
            return Dealt(name)
        wanted = [*domains]
        free = [self._is_free(name, member, wanted, now) for member in pool.virtual_mta]
        return Dealt(self._choose(pool, wanted, free if any(free) else [True] * len(free), now), name)

    def has_other(self, pool: Pool, member: str, domain: str, now: float) -> bool:
        """Whether a member other than this one is free for a domain."""
        return any(other != member and self._is_free(pool.name, other, [domain], now) for other in pool.virtual_mta)

    def pass_on(self, pool: Pool, member: str, domain: str, now: float) -> str:
        """The member that takes a waiting message over from this one; "" if no other is free."""
        free = [other != member and self._is_free(pool.name, other, [domain], now) for other in pool.virtual_mta]
        return self._choose(pool, [domain], free, now) if any(free) else ""

    def _choose(self, pool: Pool, domains: list[str], free: list[bool], now: float) -> str:
        members = [*pool.virtual_mta]
        today = day_of(now)
        with self._tally.locked():
            cells = [self._tally.cells(f"owed {pool.name} {member}", today) for member in members]
            owed = [cell[NUMBER] for cell in cells]
            chosen = dealing.choose([*pool.virtual_mta.values()], owed, free)
            for cell, credit in zip(cells, owed, strict=True):
                cell[NUMBER], cell[LAST_DAY] = credit, today
        self._note_probe(pool.name, members[chosen], domains, now)
        return members[chosen]

    def _is_free(self, pool: str, member: str, domains: list[str], now: float) -> bool:
        marker = self._board.standing_against(pool, member, domains, now)
        if marker is None:
            return True
        return marker.is_probed and now - self._probed.get((pool, member, marker.site), marker.since) >= PROBE

    def _note_probe(self, pool: str, member: str, domains: list[str], now: float) -> None:
        marker: Marker | None = self._board.standing_against(pool, member, domains, now)
        if marker is not None:
            self._probed[pool, member, marker.site] = now


def day_of(now: float) -> int:
    """The day of a time, local: it changes at local midnight, as days do in the configuration."""
    local = time.localtime(now)
    return (int(now) + local.tm_gmtoff) // 86_400
