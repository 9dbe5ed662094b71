"""The operator's regular expressions over what receivers say, and the text they are matched against.

Case does not matter unless a pattern begins with `(?-i)`, as in PowerMTA. Replies are written by strangers, and
Python's `re` can be made to search for years: `a.*b.*a.*c` took 590 s for 2,000 characters of "abab". So what a search
may cost is judged when a pattern is read, and it is refused, or looks at less of a text. What is left costs some
40 ms for the worst text that was found, and microseconds for real ones.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Iterator

import msgspec

from spoolmta.model import Failure, Reply

MAX_TEXT = 2000
"""The longest of 436 real replies has 480 characters."""
SHORT_TEXT = 500
"""For patterns that would be too slow with a longer text, like `a.*b.*c`."""
MAX_COST = SHORT_TEXT**3
"""The most ways to try: measured 35 ms."""
FEW = 4
"""A group that comes at most so often may hold choices: the ways to match it multiply, but not without bounds."""

_CASE = "(?-i)"
_ATOM = re.compile(
    r"\\."  # an escape
    r"|\[\^?\]?(?:[^\]\\]|\\.)*\]"  # a class; a ] that stands first in it belongs to it
    r"|\(\?#[^)]*\)"  # a comment
    r"|\((?:\?(?:>|:|[=!]|<[=!]|P<\w+>|P[=]\w+|[aiLmsux-]+:|[aiLmsux]+(?=\))))?"
    r"|\)|.",
    re.DOTALL,
)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?!,?\})(\d*)(,?)(\d*)\})([+?]?)")
_CODE = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![.0-9])")


class BadPattern(ValueError):
    """Why a pattern cannot be used, as one clause."""


class Pattern(msgspec.Struct, frozen=True):
    """A regular expression, and how much of a text it may look at."""

    regex: re.Pattern[str]
    limit: int

    def is_in(self, text: str) -> bool:
        return self.regex.search(text, 0, self.limit) is not None


@functools.cache
def compiled(source: str, *, may_be_empty: bool = False) -> Pattern:
    """The pattern, ready to search with. Raises BadPattern; also for one that matches an empty text, which no reply is,
    unless `may_be_empty` (the null sender's address is)."""
    is_exact = source.startswith(_CASE)
    text = source.removeprefix(_CASE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = re.compile(text, 0 if is_exact else re.IGNORECASE)
    except FutureWarning as warning:
        raise BadPattern(f"{warning}: write \\[ for a bracket that is meant as one") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise BadPattern(f"it is no regular expression: {error}") from None
    if not may_be_empty and found.search(""):
        raise BadPattern("it matches everything, even an empty text")
    if _is_ambiguous(text):
        raise BadPattern(
            "a group that repeats has a choice in it, and a search could take for ever: "
            "add a + to the repeat that need not give back what it took, as in (?:\\w++ )* or (?:a|b)++"
        )
    limit = next((length for length in (MAX_TEXT, SHORT_TEXT) if _cost(text, length) <= MAX_COST), 0)
    if not limit:
        raise BadPattern("it has too many endless repeats, and a search could take for ever: write .{0,80} for .*")
    return Pattern(found, limit)


def may_match_success(source: str) -> bool:
    """Whether it is meant for replies that are no refusal: only a pattern that begins with ^2 or ^3 is. So no rule
    reacts to a message that was taken, whatever the receiver remarks, and success costs nothing."""
    return source.removeprefix(_CASE).startswith(("^2", "^3"))


def text_of(result: Reply | Failure) -> str:
    """What patterns are matched against: the code and the lines of a reply, joined by a space, or a failure's text.

    Many receivers begin every line with the enhanced code; it is left out behind the first one, so that a sentence
    that runs over several lines reads as a sentence (Google's do).
    """
    if isinstance(result, Failure):
        return result.text[:MAX_TEXT]
    lines = result.lines
    if len(lines) > 1:
        code = _CODE.match(lines[0])
        if code:
            lines = (lines[0], *[line.removeprefix(code[0]).lstrip() for line in lines[1:]])
    return f"{result.code} {' '.join(lines)}"[:MAX_TEXT]


class _Atom(msgspec.Struct, frozen=True):
    """A piece of a pattern with its quantifier: it comes `least` to `most` times; possessive, it never gives back."""

    text: str
    least: float = 1
    most: float = 1
    is_possessive: bool = False

    @property
    def is_choice(self) -> bool:
        return self.text == "|" or (self.least != self.most and not self.is_possessive)

    @property
    def is_opening(self) -> bool:
        return self.text[0] == "(" and not self.text.startswith("(?#")


class _Group(msgspec.Struct):
    """What stands in a group: any choice that can be taken back, an endless one."""

    is_atomic: bool = False
    has_choice: bool = False
    has_endless: bool = False


def _is_ambiguous(source: str) -> bool:
    """Whether a group that repeats holds a choice that can be taken back, so that the ways to match multiply."""
    groups = [_Group()]
    for atom in _atoms(source):
        if atom.is_opening:
            groups.append(_Group(atom.text == "(?>"))
            continue
        inside = _Group()
        if atom.text == ")" and len(groups) > 1:
            inside = groups.pop()
            if inside.is_atomic or atom.is_possessive:
                inside = _Group()
            if (inside.has_endless and atom.most > 1) or (inside.has_choice and atom.most > FEW):
                return True
        groups[-1].has_choice |= inside.has_choice or atom.is_choice
        groups[-1].has_endless |= inside.has_endless or (atom.is_choice and atom.most == math.inf)
    return False


def _cost(source: str, length: int) -> float:
    """About how many ways there are to match in a text of a length. Alternatives are counted together."""
    ways: float = 1 if source.startswith("^") and "|" not in source else length
    for atom in _atoms(source):
        if atom.is_choice and atom.text != "|":
            ways *= length if atom.most == math.inf else atom.most - atom.least + 1
    return ways


def _atoms(source: str) -> Iterator[_Atom]:
    position = 0
    while found := _ATOM.match(source, position):
        position = found.end()
        quantifier = None if _Atom(found[0]).is_opening else _QUANTIFIER.match(source, position)
        if quantifier is None:
            yield _Atom(found[0])
            continue
        position = quantifier.end()
        yield _Atom(found[0], *_bounds(quantifier), quantifier[4] == "+")


def _bounds(quantifier: re.Match[str]) -> tuple[float, float]:
    sign = quantifier[0][0]
    if sign != "{":
        return {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[sign]
    least = float(quantifier[1] or 0)
    if not quantifier[2]:
        return least, least
    return least, float(quantifier[3] or math.inf)
