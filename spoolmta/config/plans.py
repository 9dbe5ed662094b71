"""What warming up looks like: numbers of messages day by day."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

from spoolmta import address
from spoolmta.config.values import MAX_NUMBER, BadValue, Kind, number, shown, toml, wrong
from spoolmta.model import Setting, Vmta, WarmUp

MAX_DAYS = 400
EPOCH = datetime.date(1970, 1, 1)
EXAMPLE = '{ start = 2026-12-01, plan = [50, 100, 200], overflow = "warm" }'

_PER_DAY = re.compile(r"([0-9]{1,12})/(?:d|day)")


def _read_per_day(value: object) -> tuple[int, ...]:
    """`"50/day"`, or a list of them: for the first day, the second, ..., and the last for all that follow."""
    listed = value if isinstance(value, list) else [value]
    if not 1 <= len(listed) <= MAX_DAYS:
        raise wrong(f'messages a day, like "50/day", or a list of up to {MAX_DAYS} of them', value)
    found = [_PER_DAY.fullmatch(item) if isinstance(item, str) else None for item in listed]
    for item, one in zip(listed, found, strict=True):
        if one is None:
            raise wrong('messages a day, like "50/day"', item)
    return tuple(int(one[1]) for one in found if one is not None)


def _write_per_day(value: object) -> str:
    assert isinstance(value, tuple)
    return toml([f"{count}/day" for count in value])


def _read_warm_up(value: object) -> WarmUp:
    if not isinstance(value, dict) or value.keys() != {"start", "plan", "overflow"}:
        raise BadValue(f"expected start, plan and overflow, like {EXAMPLE}, got {shown(value)}")
    start, plan, overflow = value["start"], value["plan"], value["overflow"]
    if not isinstance(start, datetime.date) or isinstance(start, datetime.datetime):
        raise BadValue(f"start is a date without quotes, like 2026-12-01, got {shown(start)}")
    if not isinstance(plan, list) or not 1 <= len(plan) <= MAX_DAYS:
        raise BadValue(
            f"plan is a list of up to {MAX_DAYS} numbers of messages, like [50, 100, 200], got {shown(plan)}"
        )
    if not isinstance(overflow, str) or not overflow:
        raise BadValue(f'overflow is the VMTA that takes what is over, like "warm", got {shown(overflow)}')
    count = number(50, 0, MAX_NUMBER)
    return WarmUp((start - EPOCH).days, tuple(count.read(item) for item in plan), overflow)


def _write_warm_up(value: object) -> str:
    assert isinstance(value, WarmUp)
    start = EPOCH + datetime.timedelta(days=value.start)
    return f"{{ start = {start}, plan = {toml(list(value.plan))}, overflow = {toml(value.overflow)} }}"


def wrong_overflows(vmtas: dict[str, Vmta]) -> Iterator[tuple[tuple[str, int], str]]:
    """What is wrong with where the mail over plans goes: (file and line, words). Mail must not go round in a circle."""
    for vmta in vmtas.values():
        for setting, warm_up in _plans(vmta):
            place = setting.file, setting.line
            if warm_up.overflow not in vmtas:
                yield place, f'overflow: there is no VMTA "{address.show(warm_up.overflow)}"'
            elif vmta.name in _reached(vmtas, warm_up.overflow):
                yield place, f'overflow: what is over "{vmta.name}" would come back to it from "{warm_up.overflow}"'


def _plans(vmta: Vmta) -> Iterator[tuple[Setting, WarmUp]]:
    for layer in vmta.layers:
        for table in layer:
            setting = table.settings.get("warm_up")
            if setting is not None and isinstance(setting.value, WarmUp):
                yield setting, setting.value


def _reached(vmtas: dict[str, Vmta], name: str) -> set[str]:
    """The VMTAs to which mail for one may go on, itself among them."""
    found: set[str] = set()
    following = [name]
    while following:
        one = following.pop()
        if one not in found and one in vmtas:
            found.add(one)
            following += [warm_up.overflow for _, warm_up in _plans(vmtas[one])]
    return found


PER_DAY = Kind(_read_per_day, _write_per_day)
WARM_UP = Kind(_read_warm_up, _write_warm_up)
