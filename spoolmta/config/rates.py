"""What limits look like: rates of recipients, connections and bytes, limits for each source address, times that may
never come."""

from __future__ import annotations

import ipaddress
import math
import re

from spoolmta.config.values import DURATION_UNITS, SIZE_UNITS, BadValue, Kind, duration, shown, toml, wrong
from spoolmta.model import UNLIMITED, Rate

RATE_UNITS = {"d": 86_400, "day": 86_400, "h": 3600, "hr": 3600, "hour": 3600, "m": 60, "min": 60, "s": 1, "sec": 1}

_RATE = re.compile(r"([0-9]{1,12})/([0-9]{0,6})([a-z]{1,4})")
_DATA_RATE = re.compile(r"([0-9]{1,12})([bkmgt]?)/([0-9]{0,6}[a-z]{1,4})", re.IGNORECASE)


def _read_rate(value: object) -> Rate:
    if value == "unlimited":
        return UNLIMITED
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    is_zero = int(found[1]) == 0 if found else value in ("0", 0) and not isinstance(value, bool)
    if is_zero:
        raise BadValue('a rate of 0 would never let anything be sent: expected a rate like "100/15m", or "unlimited"')
    unit = RATE_UNITS.get(found[3]) if found else None
    if found is None or unit is None or (found[2] and int(found[2]) == 0):
        raise wrong('a rate like "100/15m" or "600/h", or "unlimited"', value)
    return Rate(float(found[1]), float(unit * int(found[2] or 1)))


def _write_rate(value: object) -> str:
    assert isinstance(value, Rate)
    if math.isinf(value.count):
        return '"unlimited"'
    unit, seconds = next(
        (unit, size) for unit, size in DURATION_UNITS.items() if unit != "w" and value.period % size == 0
    )
    multiple = int(value.period) // seconds
    return f'"{int(value.count)}/{multiple if multiple > 1 else ""}{unit}"'


def _read_data_rate(value: object) -> Rate:
    if value == "unlimited":
        return UNLIMITED
    found = _DATA_RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise wrong('a volume in a time like "10M/h", or "unlimited"', value)
    size = int(found[1]) * SIZE_UNITS[found[2].lower() or "b"]
    return Rate(float(size), _read_rate(f"1/{found[3].lower()}").period)


def _write_data_rate(value: object) -> str:
    assert isinstance(value, Rate)
    if math.isinf(value.count):
        return '"unlimited"'
    unit, size = next((unit, size) for unit, size in SIZE_UNITS.items() if value.count % size == 0)
    return f'"{int(value.count) // size}{unit.upper()}/{_write_rate(value)[1:-1].partition("/")[2]}"'


def _read_duration_or_never(value: object) -> float:
    if value == "never":
        return math.inf
    try:
        return float(duration("1h").read(value))
    except BadValue as error:
        raise BadValue(f'{error}, or "never"') from None


def _write_duration_or_never(value: object) -> str:
    return '"never"' if value == math.inf else duration().write(value)


def by_network(limit: Kind) -> Kind:
    """A table of networks (`192.0.2.0/24`, an address alone, `0/0` for all of IPv4) and a limit for each."""

    def read(value: object) -> tuple[tuple[str, object], ...]:
        if not isinstance(value, dict) or not value:
            raise wrong('a table of networks and limits, like { "192.0.2.0/24" = ... }', value)
        return tuple((_read_network(key), limit.read(item)) for key, item in value.items())

    def write(value: object) -> str:
        assert isinstance(value, tuple)
        return "{ " + ", ".join(f"{toml(network)} = {limit.write(item)}" for network, item in value) + " }"

    return Kind(read, write)


def _read_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network("0.0.0.0/0" if text == "0/0" else text))
    except ValueError as error:
        raise BadValue(f'expected a network like "192.0.2.0/24", got {shown(text)}: {error}') from None


RATE = Kind(_read_rate, _write_rate)
DATA_RATE = Kind(_read_data_rate, _write_data_rate)
DURATION_OR_NEVER = Kind(_read_duration_or_never, _write_duration_or_never)
