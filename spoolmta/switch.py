"""What an operator switches at queues, and the orders that stand for queues which come later.

A switch is applied to the condition of each queue it names. One that names many by a wildcard (`*/news`) also stands
as an order: it is applied to a queue that gets its first mail afterwards, until its time is over, until its opposite
is given for the same pattern or a wider one, and not to what its opposite was given for since.

A job may be paused and resumed too: that is an order which stands for all sites (`*`) and touches the condition of
none; which jobs are held now is read off the orders.

Laws. A switch changes what it names and nothing else. Giving it twice is giving it once. After a switch and its
opposite for the same pattern no order is left of it. An order for a job is ended by one for that job only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from spoolmta import condition
from spoolmta.condition import FOREVER, Condition, is_over
from spoolmta.model import DomainPolicy

PAUSE, RESUME, BACKOFF, NORMAL, DISABLE, ENABLE = "pause", "resume", "backoff", "normal", "disable", "enable"
_ENDS = {RESUME: PAUSE, NORMAL: BACKOFF, ENABLE: DISABLE}
"""What ends what."""
OF_JOBS = (PAUSE, RESUME)
EVERYWHERE = "*"
SWITCHES = frozenset((*_ENDS, *_ENDS.values()))


class Switch(msgspec.Struct, frozen=True):
    """One thing to do to a queue. `until` in Unix seconds, FOREVER (0) for no end; `address` is the source address
    of `disable` and `enable`; `job` the hash of the job that is paused or resumed, `job_name` what people call it."""

    do: str
    reason: str
    until: float = FOREVER
    address: str = ""
    job: str = ""
    job_name: str = ""


class Order(msgspec.Struct):
    """A switch that stands for every site a pattern matches, except those of some patterns."""

    pattern: str
    switch: Switch
    exempt: list[str] = []


def apply(state: Condition, policy: DomainPolicy, now: float, switch: Switch) -> bool:
    """Apply a switch to the condition of one site; True if that changed anything."""
    before = state.mode, state.mode_until, state.paused, dict(state.disabled)
    if switch.do == PAUSE:
        if state.paused is None or state.paused.until != switch.until or state.paused.reason != switch.reason:
            condition.pause(state, now, switch.reason, switch.until)
    elif switch.do == RESUME:
        condition.resume(state, now, switch.reason)
    elif switch.do == BACKOFF:
        condition.enter_backoff(state, policy, now, switch.reason, switch.until - now if switch.until else 0.0)
    elif switch.do == NORMAL:
        condition.set_normal(state, now, switch.reason)
    elif switch.do == DISABLE:
        condition.disable_source(state, now, switch.address, switch.reason, switch.until)
    elif switch.do == ENABLE:
        condition.enable_source(state, now, switch.address, switch.reason)
    return before != (state.mode, state.mode_until, state.paused, state.disabled)


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern, in which `*` is any text."""
    return _compiled(pattern).fullmatch(name) is not None


def is_pattern(text: str) -> bool:
    return "*" in text


def order(orders: list[Order], pattern: str, switch: Switch) -> list[Order]:
    """The standing orders once a switch has been given for a pattern (or one name)."""
    kind = _ENDS.get(switch.do, switch.do)
    begins = kind == switch.do
    left: list[Order] = []
    for old in orders:
        if (old.switch.do, old.switch.address, old.switch.job) != (kind, switch.address, switch.job):
            left.append(old)
        elif matches(pattern, old.pattern):
            continue  # the new one says what holds there now
        elif begins:
            exempt = [other for other in old.exempt if not matches(pattern, other)]
            left.append(Order(old.pattern, old.switch, exempt))
        else:
            left.append(Order(old.pattern, old.switch, [*(e for e in old.exempt if e != pattern), pattern]))
    if begins and is_pattern(pattern):
        left.append(Order(pattern, switch))
    return left


def standing(orders: Iterable[Order], site: str, now: float) -> list[Switch]:
    """What stands for a site now, in the order in which it was given."""
    return [
        old.switch
        for old in orders
        if not old.switch.job
        and not is_over(old.switch.until, now)
        and matches(old.pattern, site)
        and not any(matches(other, site) for other in old.exempt)
    ]


def order_job(orders: list[Order], switch: Switch, now: float) -> tuple[list[Order], bool]:
    """The standing orders once a job is paused or resumed, and whether that changed anything."""
    left = in_force(order(orders, EVERYWHERE, switch), now)
    return left, held_jobs(left, now).get(switch.job) != held_jobs(orders, now).get(switch.job)


def held_jobs(orders: Iterable[Order], now: float) -> dict[str, Switch]:
    """The jobs that are paused now, by their hashes, and what paused each."""
    return {old.switch.job: old.switch for old in in_force(orders, now) if old.switch.job}


def next_release(orders: Iterable[Order], now: float) -> float:
    """When the first of these pauses is over, infinity if none has an end."""
    return min((held.until for held in held_jobs(orders, now).values() if held.until != FOREVER), default=math.inf)


def in_force(orders: Iterable[Order], now: float) -> list[Order]:
    """The orders whose time is not over."""
    return [old for old in orders if not is_over(old.switch.until, now)]


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
