"""Limits that several VMTAs share: the connections and rates of a pool, the connections of the whole machine.

Every process counts by itself what it has of a limit, and takes more only under the limit's lock. Nobody can take back
what another has, so who is refused though it has less than an even part leaves word that it wants some: for a moment
(WANTED_FOR) those with more than their part open nothing, close what is idle, and end sessions that have carried a fair
number of messages.

Laws. What all have is never above the limit. Where two want more than there is, both come to have an even part, or all
they want; who wants nothing takes nothing away from the others.
"""

from __future__ import annotations

import math
from typing import Protocol

FAIR_SHARE = 100
"""Messages a session may carry while others wait for its place."""
WANTED_FOR = 1.0
"""Seconds for which a word that somebody wants some is believed; who still wants some says so again."""
AGAIN = 0.2
"""Seconds, and up to half as much more or less, after which somebody who was refused a connection asks again."""


class Partners(Protocol):
    """The shared limits of one VMTA. `has_rates`, `has_connections`: whether there are any of that kind."""

    has_rates: bool
    has_connections: bool

    def open(self) -> tuple[float, str]:
        """Count one connection more: (0, ""), or seconds after which to ask again and the directive that forbids it."""
        ...

    def close_one(self) -> None:
        """One connection less."""
        ...

    def is_wanted(self) -> bool:
        """Whether others want some of what this VMTA has beyond its part."""
        ...

    def most(self) -> float:
        """The most recipients that can ever go at once."""
        ...

    def take(self, recipients: int, size: int) -> tuple[float, str]:
        """Count a message to so many recipients, of so many bytes: as `open`."""
        ...

    def give_back(self, size: int, age: float) -> None:
        """So many bytes, taken `age` seconds ago, were not delivered after all."""
        ...


class Alone:
    """A VMTA that shares no limit."""

    has_rates = False
    has_connections = False

    def open(self) -> tuple[float, str]:
        return 0.0, ""

    def close_one(self) -> None:
        pass

    def is_wanted(self) -> bool:
        return False

    def most(self) -> float:
        return math.inf

    def take(self, recipients: int, size: int) -> tuple[float, str]:  # noqa: ARG002
        return 0.0, ""

    def give_back(self, size: int, age: float) -> None:
        pass


ALONE = Alone()


def part(limit: int, users: int) -> int:
    """The even part of a limit, at least 1."""
    return max(1, limit // max(1, users))


def may_have(limit: int, total: int, own: int, users: int, *, is_wanted: bool) -> bool:
    """Whether somebody who has `own` of `total` may take one more; `users` have some or want some."""
    return total < limit and not (is_wanted and own >= part(limit, users))


def may_want(limit: int, own: int, users: int) -> bool:
    """Whether somebody who was refused may leave word: he has less than his part."""
    return own < part(limit, users)
