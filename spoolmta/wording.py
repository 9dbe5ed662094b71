"""What a reply says in words, and phrases that are looked for in it.

Noise says nothing about why mail was refused, and so is no word: addresses, hosts, links, the receiver's motives ("to
protect our users from spam"), advice ("if you believe ..."), case, accents, punctuation. Hosts and links are kept
apart, as names, because some of them do say why: those of block lists.

A phrase is words in a row: `{mailbox} .. full`. `a|b` is either, `c?` may be missing, `exce*` is any word that begins
so, `..` stands for up to six words that do not matter, `{name}` for a list of words. Of languages without spaces
between words a phrase is found anywhere. No phrase can make a search take long: there are few `..`, and they are short.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

MAX_TEXT = 600
"""Characters that are looked at: no receiver needs more to say why, and a hostile one may not cost us milliseconds."""
MAX_GAPS = 3
STEM = 4
"""The least letters of a word's beginning."""

_PLAIN = str.maketrans("!#$%&'()*+,-./:;<=>?[\\]^_`{|}~@", " " * 31, '"') | dict.fromkeys([*range(32), 127], " ")
_LABEL = re.compile(r"[^\W_]+")
_NO_WORD = re.compile(r"[\W_]+")
_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})
_UNSPACED = re.compile("[\u0e00-\u0eff\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")

_ASIDE_WORDS = ("protect", "if ", "reduce ", "please ", "prevent ", "for more", "learn", "go to", "avoid ", "i'm not")
_ASIDE = re.compile(
    r"\bto (?:best |help )?(?:protect|reduce|prevent|avoid|learn)\b[^.;]*"
    r"|\bif (?:you|your|this|it|that|the)\b[^.;]*"
    r"|\bfor (?:more|further|additional) (?:info|help|detail|assist)[^.;]*"
    r"|\bplease (?:see|visit|refer|check|review|go|read)\b[^.;]*"
    r"|\bgo to\b[^.;]*"
    r"|\bi'm not going to try again.*"
)
_NAME = re.compile(
    r"[^a-z0-9]*(?:https?:|www\.|[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.])|(?:[a-z0-9_-]+\.)+(?:com|net|org|edu|gov|info|biz"
    r"|mil|int|arpa|cloud|online|email|example|test|local|invalid|[a-z][a-z])(?![a-z0-9]))"
)


class BadPhrase(ValueError):
    """Why a phrase cannot be used, as one clause."""


def tokens_of(text: str) -> list[str]:
    """What stands between blanks in a reply, in small letters without accents, and without asides."""
    text = text[:MAX_TEXT].lower()
    if not text.isascii():
        text = _folded(text)
    for word in _ASIDE_WORDS:
        if word in text:
            text = _ASIDE.sub(" ", text)
            break
    return text.split()


def is_name(token: str) -> bool:
    """Whether it is a host or a link."""
    return _NAME.match(token) is not None


def labels_of(names: list[str]) -> list[str]:
    """The parts of names."""
    return _LABEL.findall(" ".join(names))


def words_in(token: str) -> str:
    """The words of a token with a blank before each, which are none for an address."""
    if "@" in token:
        return ""
    if token.isalnum():
        return f" {token}"
    if token.isascii():
        words = token.replace("n't", "nt").replace("e-mail", "email").replace("non-", "non").translate(_PLAIN).split()
    else:
        words = _NO_WORD.sub(" ", token.replace("n\u2019t", "nt")).split()
    return f" {' '.join(words)}" if words else ""


def _folded(text: str) -> str:
    """The text without accents. What is left of other scripts stays as it is."""
    parts = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
    return unicodedata.normalize("NFC", "".join([letter for letter in parts if not unicodedata.combining(letter)]))


class Phrase:
    """A phrase that can be searched for. `groups` are sets of words (`word*`: their beginnings): where it is found, the
    text has one of each; none: it can be anywhere. Its expression is made when it is first wanted: most never are."""

    __slots__ = ("_expression", "_search", "groups")

    def __init__(self, expression: str, groups: tuple[frozenset[str], ...]) -> None:
        self._expression = expression
        self._search: Callable[[str], re.Match[str] | None] | None = None
        self.groups = groups

    def __repr__(self) -> str:
        return f"Phrase({self._expression!r})"

    def is_in(self, text: str) -> bool:
        search = self._search
        if search is None:
            search = self._search = re.compile(self._expression).search
        return search(text) is not None


def phrase(source: str, lists: Mapping[str, tuple[str, ...]]) -> Phrase:
    """The phrase as it is written, with the lists of words it may name. Raises BadPhrase."""
    parts = source.split()
    if not parts:
        raise BadPhrase("there is no word in it")
    if ".." in (parts[0], parts[-1]) or parts.count("..") > MAX_GAPS:
        raise BadPhrase(f'".." stands between words, at most {MAX_GAPS} times')
    is_unspaced = _UNSPACED.search(source) is not None
    pieces, groups = [], []
    for part in parts:
        if part == "..":
            pieces.append(".{0,20}" if is_unspaced else "(?: \\S+){0,6}?")
            continue
        words = _alternatives(part.removesuffix("?"), lists)
        piece = f" ?{_either(words)}" if is_unspaced else f" {_either(words)}"
        if part.endswith("?"):
            if "|" in part:
                raise BadPhrase(f'a word that may be missing stands alone, and not as in "{part}"')
            pieces.append(f"(?:{piece})?")
            continue
        pieces.append(piece)
        groups.append(frozenset(words))
    if not groups:
        raise BadPhrase("every word in it may be missing")
    return Phrase("".join(pieces) + ("" if is_unspaced else " "), () if is_unspaced else tuple(groups))


def _either(words: list[str]) -> str:
    """An expression for any of the words, grouped by their first letters, which is faster to search for."""
    endings: dict[str, list[str]] = {}
    for word in words:
        rest = word[1:]
        endings.setdefault(word[0], []).append(f"{rest[:-1]}\\S*" if rest.endswith("*") else rest)
    return "(?:" + "|".join([first + "(?:" + "|".join(rest) + ")" for first, rest in endings.items()]) + ")"


def _alternatives(part: str, lists: Mapping[str, tuple[str, ...]]) -> list[str]:
    found: list[str] = []
    for written in part.split("|"):
        if written.startswith("{") and written.endswith("}"):
            if (words := lists.get(written[1:-1])) is None:
                raise BadPhrase(f"there is no list of words {written}; there are {', '.join(lists)}")
            found += words
        else:
            found.append(written)
    return [_word(written) for written in found]


def _word(written: str) -> str:
    """A word as it comes out of a text."""
    stem = written.removesuffix("*")
    word = words_in(_folded(stem.lower())).strip()
    if not stem.isalnum() or " " in word:
        raise BadPhrase(f'"{written}" is no word: only letters and digits are looked at, and accents do not matter')
    if stem == written:
        return word
    if len(word) < STEM and not _UNSPACED.search(word):
        raise BadPhrase(f'the beginning of a word has at least {STEM} letters, and "{written}" has not')
    return f"{word}*"
