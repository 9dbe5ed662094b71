"""What the values of the configuration look like: each `Kind` reads one from TOML and writes it back.

Reading raises `BadValue` with the words that follow `file:line: key: `. Writing gives text that can stand behind `=`
and reads as the same value again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

from spoolmta import address, pattern
from spoolmta.errors import UsageError
from spoolmta.model import Secret

DURATION_UNITS = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
SIZE_UNITS = {"t": 1024**4, "g": 1024**3, "m": 1024**2, "k": 1024, "b": 1}
MAX_NUMBER = 10**15
MAX_SCHEDULE = 30
"""PowerMTA's own bound on the length of a `retry-after` list."""
MAX_WEIGHT = 1000
"""Shares are exact after as many messages as the weights add up to: larger ones would be exact too late to matter."""

_DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in DURATION_UNITS))
_SIZE = re.compile(r"([0-9]{1,12})([bkmgt])", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,31}")
_FIELD_NAME = re.compile(r"[!-9;-~]{1,70}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,31}")


class BadValue(ValueError):
    """What is wrong with a value: the words behind the key."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of value: `read` takes what TOML gave or raises BadValue, `write` gives TOML text."""

    read: Callable[[object], Any]
    write: Callable[[object], str] = lambda value: toml(value)


def toml(value: object) -> str:
    """A string, number, truth value or list as TOML writes it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(item) for item in value)}]"
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def shown(value: object) -> str:
    """A wrong value, short enough for an error line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, str):
        return f'"{address.show(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return "a number that is too large"  # str() of a huge integer is refused by Python
    return str(value)


def wrong(expected: str, value: object) -> BadValue:
    return BadValue(f"expected {expected}, got {shown(value)}")


def _read_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise wrong('a text in quotes, like "text"', value)
    if not value.isprintable():
        raise BadValue("there are characters in it that cannot be printed")
    return value


def read_optional_text(value: object) -> str:
    """A text that may be empty, which takes back what a weaker layer says."""
    return "" if value == "" else _read_text(value)


def _read_secret(value: object) -> Secret:
    if not isinstance(value, str) or not value.isprintable():
        raise BadValue("expected a text in quotes, of characters that can be printed")  # and it is not shown
    return Secret(value)


def read_path(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise wrong('a path in quotes, like "../spool"', value)
    if not value.isprintable():
        raise BadValue("there are characters in the path that cannot be printed")
    return value


def _read_expression(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise wrong("a regular expression in single quotes, like '^alerts@'", value)
    try:
        pattern.compiled(value, may_be_empty=True)
    except pattern.BadPattern as error:
        raise BadValue(f"this regular expression cannot be used: {error}") from None
    return value


def _read_field_name(value: object) -> str:
    """The name of a header field (RFC 5322 section 2.2)."""
    if not isinstance(value, str) or not _FIELD_NAME.fullmatch(value):
        raise wrong('the name of a header field without its colon, like "X-Stream"', value)
    return value


def _read_author(value: object) -> str:
    """A From header that every reader takes: ASCII, one line, with an address in it."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or len(value) > 500:
        raise wrong('a From header in ASCII, like "Mail Delivery <postmaster@example.com>"', value)
    try:
        (given,) = address.listed(value)
        address.split(given)
    except ValueError:
        raise wrong('a From header with one address, like "Mail Delivery <postmaster@example.com>"', value) from None
    return value


def _read_address(value: object) -> str:
    """An address of an operator, as it goes on the wire and into a header."""
    if not isinstance(value, str) or not value.isascii():
        raise wrong('a mail address in ASCII, like "ops@example.com"', value)
    try:
        return address.split(value)[0]
    except address.NotAnAddress as error:
        raise BadValue(f"{shown(value)} is no mail address: {error}") from None


def _read_user(value: object) -> str:
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise wrong('the name of a user of this machine, like "spoolmta"', value)
    return value


def _read_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong("true or false, without quotes", value)
    return value


def number(example: int, least: int = 0, most: int = MAX_NUMBER) -> Kind:
    """Whole numbers in a range."""
    limits = f"from {least} to {most}" if most < MAX_NUMBER else f"of at least {least}"

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wrong(f"a whole number {limits}, like {example}", value)
        return value

    return Kind(read)


def choice(*words: str) -> Kind:
    """One of a few words."""
    expected = " or ".join(f'"{word}"' for word in words)

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise wrong(expected, value)
        return value

    return Kind(read)


def subset(*words: str) -> Kind:
    """A list of some of a few words, none twice."""
    expected = f"a list of some of {', '.join(words)}, like {toml(words[:2])}"

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise wrong(expected, value)
        for item in value:
            if item not in words:
                raise wrong(expected, item)
            if value.count(item) > 1:
                raise BadValue(f'"{item}" is there twice')
        return tuple(value)

    return Kind(read)


def listed(
    read_one: Callable[[object], object], example: str, is_empty_allowed: bool = False
) -> Callable[[object], tuple[object, ...]]:
    """The reader of a list whose items `read_one` reads."""

    def read(value: object) -> tuple[object, ...]:
        if not isinstance(value, list) or not (value or is_empty_allowed):
            raise wrong(f"a list like {example}", value)
        return tuple(read_one(item) for item in value)

    return read


def duration(example: str = "4d12h", is_zero_allowed: bool = False, most: float = MAX_NUMBER) -> Kind:
    """A length of time: `1w2d12h30m10s`, or a number of seconds."""

    def read(value: object) -> float:
        seconds = _seconds(value)
        if seconds is None:
            raise wrong(f'a duration like "{example}"', value)
        if seconds <= 0 and not (is_zero_allowed and seconds == 0):
            raise wrong(f'a duration above zero, like "{example}"', value)
        if seconds > most:
            raise wrong(f"a duration of at most {_write_duration(most)}", value)
        return seconds

    return Kind(read, _write_duration)


def parse_duration(text: str) -> float:
    """Seconds of a duration given on a command line. Raises UsageError."""
    seconds = _seconds(text)
    if seconds is None:
        raise UsageError(f'expected a duration like "4d12h", got "{text}"')
    return seconds


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        found = _DURATION.fullmatch(value)
        if not found or not value:
            return None
        return float(
            sum(int(count or 0) * unit for count, unit in zip(found.groups(), DURATION_UNITS.values(), strict=True))
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MAX_NUMBER <= value <= MAX_NUMBER:
        return None  # the comparison refuses "nan" too
    return float(value)


def _write_duration(value: object) -> str:
    assert isinstance(value, (int, float))
    if value != int(value) or value > 99_999_999 * DURATION_UNITS["w"]:
        return str(value)
    if value == 0:
        return '"0s"'
    text, rest = "", int(value)
    for unit, seconds in DURATION_UNITS.items():
        count, rest = divmod(rest, seconds)
        text += f"{count}{unit}" if count else ""
    return f'"{text}"'


def _read_schedule(value: object) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= MAX_SCHEDULE:
        raise wrong(f'a duration like "10m", or a list of up to {MAX_SCHEDULE} of them', value)
    read = duration("10m").read
    return tuple(read(item) for item in values)


def _write_schedule(value: object) -> str:
    assert isinstance(value, tuple)
    return f"[{', '.join(_write_duration(item) for item in value)}]"


def size(least: int = 0) -> Kind:
    """A number of bytes: `250M`, powers of 1024, or a whole number."""

    def read(value: object) -> int:
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        result = int(found[1]) * SIZE_UNITS[found[2].lower()] if found else value
        if isinstance(result, bool) or not isinstance(result, int) or not least <= result <= SIZE_UNITS["t"] * 2**20:
            raise wrong('a size like "250M"' + (" above zero" if value in (0, "0b") else ""), value)
        return result

    return Kind(read, _write_size)


def _write_size(value: object) -> str:
    assert isinstance(value, int)
    unit, bytes_ = next((unit, bytes_) for unit, bytes_ in SIZE_UNITS.items() if value % bytes_ == 0)
    return f'"{value // bytes_}{unit.upper()}"' if value else "0"


def read_name(text: str) -> str:
    """The name of a VMTA or source: it becomes a folder, so it may not hide or climb."""
    if not _NAME.fullmatch(text):
        raise BadValue(
            f"a name is 1 to 32 characters of a-z, 0-9, '.', '_' and '-', and the first is no dot, got {shown(text)}"
        )
    return text


def _read_weights(value: object) -> dict[str, int]:
    """Members of a pool and their weights; in a list all have the same."""
    expected = 'a table of VMTAs and weights, like { alerts-1 = 3, alerts-2 = 1 }, or a list like ["alerts-1"]'
    if isinstance(value, list):
        names = [_read_text(item) for item in value]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise BadValue(f"{shown(twice)} is there twice: weights are given in a table")
        value = dict.fromkeys(names, 1)
    if not isinstance(value, dict) or not value:
        raise wrong(expected, value)
    weight = number(3, 1, MAX_WEIGHT)
    return {name: weight.read(item) for name, item in value.items()}


TEXT = Kind(_read_text)
SECRET = Kind(_read_secret, lambda value: toml(str(value)) if str(value) != '""' else '""')
USER = Kind(_read_user)
WEIGHTS = Kind(_read_weights)
EXPRESSION = Kind(_read_expression)
FIELD_NAME = Kind(_read_field_name)
FLAG = Kind(_read_flag)
AUTHOR = Kind(_read_author)
ADDRESSES = Kind(listed(_read_address, '["ops@example.com"]', is_empty_allowed=True))
SCHEDULE = Kind(_read_schedule, _write_schedule)
TEXTS = Kind(listed(_read_text, '["vmta.d/*.toml"]', is_empty_allowed=True))
NAMES = Kind(listed(_read_text, '["bulk", "news"]'))
