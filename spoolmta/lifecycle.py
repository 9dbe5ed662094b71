"""What a supervisor decides: when to start a process again, whom to wake, what a reload changes.

Laws. A process that dies before it has settled a message is started again after 1, 2, 4, ... 60 seconds; one that
worked starts the pauses over, and is started at once if it is the first death. A clean exit is no death. Equal
configurations differ in nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec

from spoolmta.model import Config

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
AT_ONCE = 8
"""Processes started before the supervisor looks at its questions and signals again: a thousand take a minute."""


class Health(msgspec.Struct, frozen=True):
    """How often in a row a role died without having worked, and when it may start again (0: at once)."""

    deaths: int = 0
    restart_at: float = 0.0


def after_exit(health: Health, *, clean: bool, worked: bool, now: float) -> Health:
    """The health of a role whose process ended. One that works a little and dies, again and again, must not spin."""
    if clean:
        return Health()
    if worked:
        return Health(1, now + FIRST_PAUSE if health.deaths else now)
    pause = min(FIRST_PAUSE * 2.0 ** min(health.deaths, 10), LONGEST_PAUSE)
    return Health(health.deaths + 1, now + pause)


class Change(msgspec.Struct, frozen=True):
    """What a reload does to the VMTAs."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


def difference(old: Config, new: Config) -> Change:
    """VMTAs that came and went."""
    return Change(
        tuple(sorted(new.vmtas.keys() - old.vmtas.keys())), tuple(sorted(old.vmtas.keys() - new.vmtas.keys()))
    )


def needs_restart(old: Config, new: Config) -> list[str]:
    """Changes that a running system cannot take over, as sentences."""
    problems = []
    if old.spool != new.spool:
        problems.append(f"spool.directory changed from {old.spool} to {new.spool}: this needs a restart")
    if old.user != new.user:
        problems.append("user changed: this needs a restart")
    if old.event_loop != new.event_loop:
        problems.append("event-loop changed: this needs a restart")
    return problems


def to_wake(wake_times: dict[str, float], now: float) -> list[str]:
    """Sleeping VMTAs whose time has come, not too many at once; the others are for the next time."""
    return list(itertools.islice((vmta for vmta, at in wake_times.items() if at <= now), AT_ONCE))


def next_event(times: Iterable[float], now: float, longest: float) -> float:
    """Seconds the supervisor may sleep: until the first of the times, at most `longest`, at least 0."""
    return min(max(0.0, min(times, default=now + longest) - now), longest)
