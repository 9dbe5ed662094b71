"""The values of a `[[bounce]]` table, and the rules for bounce categories that come with spoolmta."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from spoolmta import pattern, wording
from spoolmta.config import files, lines
from spoolmta.config.values import BadValue, Kind, shown, wrong
from spoolmta.errors import ConfigError
from spoolmta.model import BounceRule

FILE = (pathlib.Path(__file__).parents[1] / "bounce.toml").resolve()
"""A link to `etc/bounce.toml` in the sources, the file itself where the package is installed."""

_CATEGORY = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_STATUS = re.compile(r"[245x](?:\.(?:[0-9]{1,3}|x)){2}")


class Shipped(msgspec.Struct, frozen=True):
    """The shipped rules, and the lists of words that phrases may name."""

    rules: tuple[BounceRule, ...]
    lists: dict[str, tuple[str, ...]]


@functools.cache
def shipped() -> Shipped:
    """Read once in the life of a process, and only where categories are told. Raises ConfigError."""
    name = str(FILE)
    try:
        tree, found = files.parse(name)
    except files.Unreadable as error:
        raise ConfigError(f"{name}:{error.line}: {error.text}" if error.line else f"{name}: {error.text}") from None
    problems = files.Problems()
    lists = {key: tuple(words) for key, words in tree.get("words", {}).items()}
    rules = [
        _rule(table, (name, found.keys["bounce", number]), found, ("bounce", number), lists, problems)
        for number, table in enumerate(tree.get("bounce", []))
    ]
    problems.raise_if_any()
    return Shipped(tuple(rule for rule in rules if rule), lists)


def _rule(
    table: dict[str, Any],
    place: files.Place,
    found: lines.Lines,
    path: lines.Path,
    lists: Mapping[str, tuple[str, ...]],
    problems: files.Problems,
) -> BounceRule | None:
    """One shipped rule. What is wrong is told as it is in the operator's file."""
    kinds = {**_KINDS, "words": Kind(_several(_phrase(lambda: lists))), "names": Kind(_several(_phrase(lambda: lists)))}
    fields: dict[str, Any] = {}
    for key, value in table.items():
        try:
            if key not in kinds:
                raise BadValue("unknown key")
            fields[key] = kinds[key].read(value)
        except BadValue as error:
            problems.add((place[0], found.keys.get((*path, key), place[1])), (key,), str(error))
    if "category" not in table:
        problems.add(place, ("category",), "this key is required")
    return BounceRule(file=place[0], line=place[1], **fields) if "category" in fields else None


def _several(read_one: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    """One text, or a list of them."""

    def read(value: object) -> tuple[str, ...]:
        if value == []:
            raise BadValue("the list is empty")
        return tuple(read_one(item) for item in (value if isinstance(value, list) else [value]))

    return read


def _phrase(lists: Callable[[], Mapping[str, tuple[str, ...]]]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str):
            raise wrong('words in quotes, like "mailbox .. full"', value)
        try:
            wording.phrase(value, lists())
        except wording.BadPhrase as error:
            raise BadValue(f"{shown(value)}: {error}") from None
        return value

    return read


def _read_category(value: object) -> str:
    if not isinstance(value, str) or not _CATEGORY.fullmatch(value):
        raise wrong('a category like "bad-mailbox" or one of your own, of a-z, 0-9 and "-"', value)
    return value


def _read_status(value: object) -> str:
    if not isinstance(value, str) or not _STATUS.fullmatch(value):
        raise wrong('an enhanced status code like "5.1.1", where an x is any number: "x.1.x"', value)
    return value


def _read_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise wrong(r"a regular expression in single quotes, like '^421 .*\[TSS04\]'", value)
    try:
        pattern.compiled(value, may_be_empty=True)
    except pattern.BadPattern as error:
        raise BadValue(f"{shown(value)}: {error}") from None
    return value


def _read_sample(value: object) -> str:
    if not isinstance(value, str) or not re.match(r"[245][0-9]{2} ", value):
        raise wrong('a reply like "550 5.1.1 No such user"', value)
    return value


# Annotated: `keys` and this file import each other by way of the package, and a compiler asks in either order.
CATEGORY: Kind = Kind(_read_category)
STATUSES: Kind = Kind(_several(_read_status))
PHRASES: Kind = Kind(_several(_phrase(lambda: shipped().lists)))
PATTERNS: Kind = Kind(_several(_read_pattern))
SAMPLES: Kind = Kind(_several(_read_sample))
_KINDS = {"category": CATEGORY, "status": STATUSES, "pattern": PATTERNS, "sample": SAMPLES}
