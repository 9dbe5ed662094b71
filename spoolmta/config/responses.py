"""The values of a `[[response]]` table, and whether together they make a rule that can do something."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from spoolmta import pattern
from spoolmta.config.rates import RATE_UNITS
from spoolmta.config.values import BadValue, Kind, shown, wrong
from spoolmta.model import AT_ONCE, UNLIMITED, Change, Rate, ResponseAction, ResponseRule, Stage, Trigger

MAX_COUNT = 10_000
"""A count in a window keeps the time of each match, for each queue."""

_TRIGGER = re.compile(r"(?:([0-9]{1,3}(?:\.[0-9]{1,3})?)% of )?([0-9]{1,6})/([0-9]{0,6})([a-z]{1,4})")
_STAGES = {("eod" if stage is Stage.EOD else stage.value): stage for stage in Stage}
_ACTIONS = {action.value: action for action in ResponseAction}

_APART = (
    (ResponseAction.BACKOFF, ResponseAction.NORMAL),
    (ResponseAction.SKIP_MX, ResponseAction.BOUNCE_QUEUE),
    (ResponseAction.BOUNCE_RCPT, ResponseAction.BOUNCE_QUEUE),
    (ResponseAction.DEFER_QUEUE, ResponseAction.BOUNCE_QUEUE),
    (ResponseAction.PAUSE, ResponseAction.BOUNCE_QUEUE),
    (ResponseAction.PAUSE, ResponseAction.DEFER_QUEUE),
)
"""What cannot be done both. The first two pairs are PowerMTA's."""

_LASTING = frozenset(
    {
        ResponseAction.BACKOFF,
        ResponseAction.DISABLE_SOURCE_IP,
        ResponseAction.DEFER_QUEUE,
        ResponseAction.PAUSE,
        ResponseAction.SET,
    }
)


def build(fields: Mapping[str, Any], provider: str, file: str, line: int) -> ResponseRule:
    """One rule from the fields of its table. Raises BadValue where they contradict each other."""
    actions = frozenset(fields["actions"])
    for first, second in _APART:
        if first in actions and second in actions:
            raise BadValue(f'the actions "{first.value}" and "{second.value}" cannot go together')
    if ("changes" in fields) != (ResponseAction.SET in actions):
        raise BadValue('the action "set" and a table like set = { max-smtp-out = 2 } go together')
    if "duration" in fields and not actions & _LASTING:
        raise BadValue(f'"for" says how long something lasts, and {_listed(fields["actions"])} is over at once')
    stages = fields.get("stages", ())
    if ResponseAction.BOUNCE_RCPT in actions and stages and Stage.RCPT not in stages:
        raise BadValue('the action "bounce-rcpt" is for replies to RCPT, and the stage "rcpt" is not there')
    names = ("reply", "stages", "actions", "trigger", "changes", "duration")
    content = repr([provider, *[fields.get(name) for name in names]])
    return ResponseRule(id=f"{zlib.crc32(content.encode()):08x}", provider=provider, file=file, line=line, **fields)


def _listed(actions: tuple[ResponseAction, ...]) -> str:
    return " and ".join(f'"{action.value}"' for action in actions)


def _several(read_one: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    """One value, or a list of them without repetitions."""

    def read(value: object) -> tuple[Any, ...]:
        if value == []:
            raise BadValue("the list is empty")
        found = [read_one(item) for item in (value if isinstance(value, list) else [value])]
        for item in found:
            if found.count(item) > 1:
                raise BadValue("the same thing is there twice")
        return tuple(found)

    return read


def _read_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise wrong(r"a regular expression in single quotes, like '^421 .*\[TSS04\]'", value)
    try:
        pattern.compiled(value)
    except pattern.BadPattern as error:
        raise BadValue(f"{shown(value)}: {error}") from None
    return value


def _one_of(words: Mapping[str, Any]) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        if not isinstance(value, str) or value not in words:
            raise wrong(f"one of {', '.join(words)}, or a list of them", value)
        return words[value]

    return read


def _read_trigger(value: object) -> Trigger:
    expected = '"at once", a count in a time like "10/1h", or a share like "5% of 200/1h"'
    if value == "at once":
        return AT_ONCE
    found = _TRIGGER.fullmatch(value) if isinstance(value, str) else None
    unit = RATE_UNITS.get(found[4]) if found else None
    if found is None or unit is None or found[3].strip("0") == "" != found[3]:
        raise wrong(expected, value)
    count, share = int(found[2]), float(found[1] or 0) / 100
    if not 1 <= count <= MAX_COUNT:
        raise BadValue(f"the count of a trigger is from 1 to {MAX_COUNT}, got {count}")
    if found[1] is not None and not 0 < share <= 1:
        raise BadValue(f"the share of a trigger is above 0% and at most 100%, got {found[1]}%")
    return Trigger(count, float(unit * int(found[3] or 1)), share)


def changes(kinds: Mapping[str, Kind], field_of: Callable[[str], str]) -> Kind:
    """The kind of a `set` table over those directives of `kinds` that are limits or pauses."""
    pauses = ("retry-after", "retry-recipients-after")
    limits = {key: kind for key, kind in kinds.items() if key.startswith("max-") or key in pauses}

    def read(value: object) -> tuple[Change, ...]:
        if not isinstance(value, dict) or not value:
            example = 'set = { max-smtp-out = 2, max-msg-rate = { factor = 0.5, floor = "10/m" } }'
            raise wrong(f"a table like {example}", value)
        return tuple(_read_change(key, written, limits, field_of) for key, written in value.items())

    return Kind(read)


def _read_change(key: str, written: object, limits: Mapping[str, Kind], field_of: Callable[[str], str]) -> Change:
    if key not in limits:
        raise BadValue(f'"{shown(key)[1:-1]}" cannot be set by a rule; these can: {", ".join(limits)}')
    try:
        if not isinstance(written, dict):
            return Change(field_of(key), limits[key].read(written))
        factor, floor = written.get("factor"), limits[key].read(written.get("floor"))
    except BadValue as error:
        raise BadValue(f"{key}: {error}") from None
    if written.keys() != {"factor", "floor"} or not isinstance(floor, (int, Rate)):
        raise BadValue(f'{key}: expected a value, or for a limit a table like {{ factor = 0.5, floor = "10/m" }}')
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1:
        raise BadValue(f"{key}: expected a factor between 0 and 1, like 0.5, got {shown(factor)}")
    if floor in (0, UNLIMITED):
        raise BadValue(f"{key}: a floor that is no limit would undo it")
    return Change(field_of(key), factor=float(factor), floor=floor)


PATTERNS: Kind = Kind(_several(_read_pattern))
STAGES: Kind = Kind(_several(_one_of(_STAGES)))
ACTIONS: Kind = Kind(_several(_one_of(_ACTIONS)))
TRIGGER: Kind = Kind(_read_trigger)
