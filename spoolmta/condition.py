"""What is known of a site beyond its mail, and outlives its sessions and the process: failures, the mode, what a rule
or the operator changed, and until when. It is kept in `state/<vmta>`.

    normal --enter_backoff--> backoff --leave_backoff--> normal                      (at once)
                                 ^    --leave_backoff--> recovering --steps--> normal  (backoff-recovery-interval)
                                 +------ enter_backoff ------+

`in_force` is the site's policy with all of this applied: what the scheduler obeys.

Laws. No change without a signal or a time that has come; `tick` at `next_time` changes something, before it nothing.
In back-off no limit is looser than in normal mode; each step of a recovery is at least as loose as the one before,
and the last is normal. Every change of mode is an event with its reason.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import msgspec

from spoolmta import config, response
from spoolmta.model import Change, DomainPolicy, Rate

MAX_REMEMBERED = 10_000
"""Conditions of sites without mail that are kept; the oldest go first."""
NORMAL, BACKOFF, RECOVERING = "normal", "backoff", "recovering"
MAX_EVENTS = 10
MAX_STEPS = 10
"""Doublings after which a limit counts as recovered where the normal one is unlimited."""
FOREVER = 0.0
"""As `until`: until something else ends it."""

_BACKED_OFF = {
    "max_smtp_out": "backoff_max_smtp_out",
    "max_msg_rate": "backoff_max_msg_rate",
    "max_connect_rate": "backoff_max_connect_rate",
    "max_data_volume_rate": "backoff_max_data_volume_rate",
}


class Override(msgspec.Struct):
    """One limit that a rule set: to `value`, or to `factor` of what it is but not below `floor`. Both are as they stand
    in the configuration ("" for none), for the state file."""

    field: str
    until: float
    reason: str
    value: str = ""
    factor: float = 0.0
    floor: str = ""

    @staticmethod
    def of(change: Change, until: float, reason: str) -> Override:
        value = config.unparse(change.field, change.value) if change.value is not None else ""
        floor = config.unparse(change.field, change.floor) if change.floor is not None else ""
        return Override(change.field, until, reason, value, change.factor, floor)

    def change(self) -> Change:
        value = config.parse_setting(self.field, self.value) if self.value else None
        return Change(
            self.field, value, self.factor, config.parse_setting(self.field, self.floor) if self.floor else None
        )


class EventKind(enum.Enum):
    """What an event is about, for those who do not want to hear of everything."""

    BACKOFF = "backoff"
    RECOVERING = "recovering"
    NORMAL = "normal"
    SOURCE_DISABLED = "source disabled"
    SOURCE_ENABLED = "source enabled"
    OTHER = "other"

    __hash__ = object.__hash__


class Event(msgspec.Struct, omit_defaults=True):
    """Something that changed, when (Unix seconds) and why; `address` where it is about a source address."""

    time: float
    text: str
    kind: EventKind = EventKind.OTHER
    address: str = ""


class Hold(msgspec.Struct):
    """Something that is held until a time (FOREVER: until somebody lets it go), and why."""

    until: float
    reason: str


class Condition(msgspec.Struct, omit_defaults=True):
    """Times are Unix seconds. `blocked_until`: nothing is opened before. `window`: sessions the site seems to bear, 0
    where that is not known. `disabled`: source addresses that are not used here. `events` are the last of `noted`, of
    which the first `told` have been told to the operator."""

    failures: int = 0
    blocked_until: float = 0.0
    reason: str = ""
    last_reply: str = ""
    mode: str = NORMAL
    mode_reason: str = ""
    mode_until: float = FOREVER
    step: int = 0
    next_step: float = 0.0
    paused: Hold | None = None
    overrides: list[Override] = []
    disabled: dict[str, Hold] = {}
    window: float = 0.0
    events: list[Event] = []
    noted: int = 0
    told: int = 0

    def is_ordinary(self, now: float) -> bool:
        """Whether nothing would be lost if this were forgotten."""
        return not (
            self.failures
            or self.blocked_until > now
            or self.mode != NORMAL
            or self.paused
            or self.overrides
            or self.disabled
            or self.window
            or self.noted > self.told
        )

    def note(self, now: float, text: str, kind: EventKind = EventKind.OTHER, address: str = "") -> None:
        self.noted += 1
        self.events.append(Event(now, text, kind, address))
        del self.events[:-MAX_EVENTS]

    def tell(self) -> list[Event]:
        """The events that nobody has been told of yet, as far as they are remembered; now they are told."""
        fresh = min(self.noted - self.told, len(self.events))
        self.told = self.noted
        return self.events[-fresh:] if fresh > 0 else []


class Memory:
    """Conditions of sites that have no mail now. At `next_time`, or after it, one of them has something to `tick`."""

    def __init__(self) -> None:
        self._conditions: dict[str, Condition] = {}
        self.next_time = math.inf

    def __repr__(self) -> str:
        return f"Memory({self._conditions})"

    def of(self, key: str) -> Condition:
        """The condition of a site, to be changed; `tidy` afterwards."""
        return self._conditions.setdefault(key, Condition())

    def take(self, key: str) -> Condition:
        """The condition of a site that gets mail."""
        return self._conditions.pop(key, None) or Condition()

    def put(self, key: str, condition: Condition) -> None:
        self._conditions[key] = condition
        self.next_time = min(self.next_time, next_time(condition))
        while len(self._conditions) > MAX_REMEMBERED:
            del self._conditions[next(iter(self._conditions))]

    def tidy(self, key: str, now: float) -> None:
        """Forget what need not be remembered."""
        state = self._conditions.get(key)
        if state is not None and state.is_ordinary(now):
            del self._conditions[key]
        elif state is not None:
            self.next_time = min(self.next_time, next_time(state))

    def all(self) -> dict[str, Condition]:
        return self._conditions


def enter_backoff(condition: Condition, policy: DomainPolicy, now: float, reason: str, duration: float = 0.0) -> bool:
    """Enter back-off, or start its time over; True if the mode changed. `duration` 0: backoff-to-normal-after."""
    changed = condition.mode != BACKOFF
    length = duration or policy.backoff_to_normal_after
    condition.mode, condition.step = BACKOFF, 0
    condition.mode_until = now + length if length < math.inf else FOREVER
    if changed or reason:
        condition.mode_reason = reason
    if changed:
        condition.note(now, f"backoff: {reason}", EventKind.BACKOFF)
    return changed


def leave_backoff(condition: Condition, policy: DomainPolicy, now: float, reason: str) -> bool:
    """Leave back-off: at once, or step by step; True if the mode changed."""
    if condition.mode != BACKOFF:
        return False
    condition.mode_until, condition.mode_reason = FOREVER, reason
    if policy.backoff_recovery_interval > 0:
        condition.mode, condition.step = RECOVERING, 1
        condition.next_step = now + policy.backoff_recovery_interval
        condition.note(now, f"recovering: {reason}", EventKind.RECOVERING)
        _end_recovery(condition, policy, now)
    else:
        condition.mode, condition.step = NORMAL, 0
        condition.note(now, f"normal: {reason}", EventKind.NORMAL)
    return True


def set_normal(condition: Condition, now: float, reason: str) -> bool:
    """Back to normal at once, from whatever mode."""
    if condition.mode == NORMAL:
        return False
    condition.mode, condition.step, condition.mode_until, condition.mode_reason = NORMAL, 0, FOREVER, reason
    condition.note(now, f"normal: {reason}", EventKind.NORMAL)
    return True


def pause(condition: Condition, now: float, reason: str, until: float = FOREVER) -> None:
    condition.paused = Hold(until, reason)
    condition.note(now, f"paused: {reason}")


def resume(condition: Condition, now: float, reason: str) -> bool:
    if condition.paused is None:
        return False
    condition.paused = None
    condition.note(now, f"resumed: {reason}")
    return True


def set_limit(condition: Condition, now: float, override: Override) -> None:
    """A rule or the operator changes a limit; another change of the same one takes its place."""
    condition.overrides = [old for old in condition.overrides if old.field != override.field]
    condition.overrides.append(override)
    condition.note(now, f"{override.field.replace('_', '-')} changed: {override.reason}")


def disable_source(condition: Condition, now: float, address: str, reason: str, until: float = FOREVER) -> bool:
    """Do not use a source address here; True if that is new."""
    is_new = address not in condition.disabled
    condition.disabled[address] = Hold(until, reason)
    if is_new:
        condition.note(now, f"source {address} disabled: {reason}", EventKind.SOURCE_DISABLED, address)
    return is_new


def enable_source(condition: Condition, now: float, address: str, reason: str) -> bool:
    if condition.disabled.pop(address, None) is None:
        return False
    condition.note(now, f"source {address} enabled: {reason}", EventKind.SOURCE_ENABLED, address)
    return True


def tick(condition: Condition, policy: DomainPolicy, now: float) -> bool:
    """Do what has become due; True if anything changed."""
    changed = False
    if condition.mode == BACKOFF and is_over(condition.mode_until, now):
        changed = leave_backoff(condition, policy, now, "its time is over")
    while condition.mode == RECOVERING and condition.next_step <= now:
        condition.step += 1
        condition.next_step += max(policy.backoff_recovery_interval, 0.001)
        changed = True
        _end_recovery(condition, policy, now)
    if condition.paused is not None and is_over(condition.paused.until, now):
        changed = resume(condition, now, "its time is over")
    for address in [address for address, hold in condition.disabled.items() if is_over(hold.until, now)]:
        changed = enable_source(condition, now, address, "its time is over")
    for old in [old for old in condition.overrides if is_over(old.until, now)]:
        condition.overrides.remove(old)
        condition.note(now, f"{old.field.replace('_', '-')} as configured: its time is over")
        changed = True
    return changed


def next_time(condition: Condition) -> float:
    """When `tick` has something to do, infinity if nothing is awaited."""
    times = [hold.until for hold in condition.disabled.values()]
    times += [override.until for override in condition.overrides]
    if condition.mode == BACKOFF:
        times.append(condition.mode_until)
    if condition.mode == RECOVERING:
        times.append(condition.next_step)
    if condition.paused is not None:
        times.append(condition.paused.until)
    return min((time for time in times if time != FOREVER), default=math.inf)


def is_over(until: float, now: float) -> bool:
    return until != FOREVER and until <= now


def goes_to(policy: DomainPolicy, condition: Condition) -> str:
    """The VMTA or pool that takes a site's mail instead, "" for none. While limits climb back there is none: only mail
    that is sent can tell whether it is time."""
    in_backoff = policy.backoff_reroute_to_virtual_mta if condition.mode == BACKOFF else ""
    return in_backoff or policy.reroute_to_virtual_mta


def in_force(policy: DomainPolicy, condition: Condition) -> DomainPolicy:
    """The policy with the mode and the overrides applied. The rates of back-off hold beside the normal ones."""
    changes: dict[str, Any] = {}
    if condition.mode != NORMAL:
        for field, backed_off in _BACKED_OFF.items():
            changes[field] = _grown(getattr(policy, field), getattr(policy, backed_off), condition.step)
        if condition.mode == BACKOFF:
            changes["retry_after"] = policy.backoff_retry_after
    changed = msgspec.structs.replace(policy, **changes) if changes else policy
    return response.apply(changed, [override.change() for override in condition.overrides])


def _grown(normal: Any, backed_off: Any, step: int) -> Any:
    """A limit of back-off after some doublings, never looser than the normal one."""
    if isinstance(normal, Rate):
        if step > MAX_STEPS or backed_off.count == math.inf:
            return normal
        grown = Rate(backed_off.count * 2**step, backed_off.period)
        return normal if grown.count / grown.period >= normal.count / normal.period else grown
    return min(normal, backed_off * 2**step)


def _end_recovery(condition: Condition, policy: DomainPolicy, now: float) -> None:
    """A recovery is over when no limit is tighter than normal."""
    if all(
        _grown(getattr(policy, field), getattr(policy, backed_off), condition.step) == getattr(policy, field)
        for field, backed_off in _BACKED_OFF.items()
    ):
        set_normal(condition, now, "recovered")
