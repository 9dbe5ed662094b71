"""The operator's regular expressions over what receivers say, and the text they are matched against.

Case does not matter unless a pattern begins with `(?-i)`, as in PowerMTA. Replies are written by strangers, and
Python's `re` can be made to search for years: a pattern that repeats a group which itself repeats something without an
end, as `(a+)+`, is refused, and so are too many endless repeats in a row; no more than MAX_TEXT characters of a reply
are looked at. What is left costs some 40 ms for the worst text that was found, and microseconds for real ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from spoolmta.model import Failure, Reply, Struct

MAX_TEXT = 2000
"""The longest of 436 real replies has 480 characters."""
SHORT_TEXT = 500
"""For patterns whose worst case grows with the cube of the length: `a.*b.*c` took 2.3 s for 2,000 characters of "ab",
and `a.*b.*a.*c` 590 s."""

_CASE = "(?-i)"
_ATOM = re.compile(
    r"\\."  # an escape
    r"|\[\^?\]?(?:[^\]\\]|\\.)*\]"  # a class; a ] that stands first in it belongs to it
    r"|\(\?#[^)]*\)"  # a comment
    r"|\((?:\?(?:>|:|[=!]|<[=!]|P<\w+>|P[=]\w+|[aiLmsux-]+:|[aiLmsux]+(?=\))))?"
    r"|\)|.",
    re.DOTALL,
)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d*)(,?)(\d*)\})([+?]?)")
_CODE = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![.0-9])")


class BadPattern(ValueError):
    """Why a pattern cannot be used, as one clause."""


class Pattern(Struct, frozen=True):
    """A regular expression, and how much of a text it may look at."""

    regex: re.Pattern[str]
    limit: int

    def is_in(self, text: str) -> bool:
        return self.regex.search(text, 0, self.limit) is not None


@functools.cache
def compiled(source: str) -> Pattern:
    """The pattern, ready to search with. Raises BadPattern."""
    is_exact = source.startswith(_CASE)
    text = source.removeprefix(_CASE)
    try:
        found = re.compile(text, 0 if is_exact else re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadPattern(f"it is no regular expression: {error}") from None
    if found.search(""):
        raise BadPattern("it matches everything, even an empty text")
    if _repeats_within_repeats(text):
        raise BadPattern(
            "a repeated group has an endless repeat in it, and a search could take for ever: "
            "give the inner one a + more, as in (?:\\w++ )*"
        )
    degree = _degree(text)
    if degree > 3:
        raise BadPattern("it has too many endless repeats, and a search could take for ever: write .{0,80} for .*")
    return Pattern(found, SHORT_TEXT if degree == 3 else MAX_TEXT)


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


def _repeats_within_repeats(source: str) -> bool:
    """Whether a group that may repeat holds an endless repeat that can give back what it took."""
    open_groups: list[list[bool]] = [[False, False]]  # is there an endless repeat in it; is the group atomic
    for atom, repeats, is_endless, is_possessive in _atoms(source):
        if atom.startswith("(") and not atom.startswith("(?#"):
            open_groups.append([False, atom.startswith("(?>")])
            continue
        inside = False
        if atom == ")" and len(open_groups) > 1:
            inside, is_atomic = open_groups.pop()
            if inside and repeats and not (is_atomic or is_possessive):
                return True
            inside = inside and not (is_atomic or is_possessive)
        open_groups[-1][0] |= inside or (is_endless and not is_possessive)
    return False


def _degree(source: str) -> int:
    """The power of a text's length that a search may cost: one for each endless repeat that can give back, and one
    for where it begins, unless it can begin at the start only. Alternatives are counted together."""
    endless = sum(is_endless and not is_possessive for _, _, is_endless, is_possessive in _atoms(source))
    return endless + (not source.startswith("^") or "|" in source)


def _atoms(source: str) -> Iterator[tuple[str, bool, bool, bool]]:
    """Each atom with: may it come more than once; without an end; is it possessive (never gives back)."""
    position = 0
    while found := _ATOM.match(source, position):
        position = found.end()
        if found[0].startswith("(") and not found[0].startswith("(?#"):
            yield found[0], False, False, False
            continue
        quantifier = _QUANTIFIER.match(source, position)
        if quantifier is None or quantifier[0] in ("{}", "{,}"):
            yield found[0], False, False, False
            continue
        position = quantifier.end()
        least, comma, most, mode = quantifier.groups()
        sign = quantifier[0][0]
        is_endless = sign in "*+" or (sign == "{" and bool(comma) and not most)
        repeats = is_endless or (sign == "{" and int(most or least or 0) > 1)
        yield found[0], repeats, is_endless, mode == "+"
