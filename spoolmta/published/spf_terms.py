"""SPF records as they are written (RFC 7208 sections 4.6.1, 5, 6, 7.1): a record to terms, macros to text.

Whatever is wrong anywhere in a record is wrong with all of it (section 4.6), so all of it is read first.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Mapping

import msgspec

from spoolmta.address import show

VERSION = "v=spf1"
LONGEST_NAME = 253

_MACRO = r"%(?:\{[slodiphv][0-9]{0,9}r?[-.+,/_=]*+\}|[%_-])"
_PIECE = rf"(?:{_MACRO}|[!-$&-~])"
_MACRO_TEXT = re.compile(rf"{_PIECE}*+", re.IGNORECASE)
# The last label is no number: `a:192.0.2.1` is a mistake that the grammar is to find.
_TOP_LABEL = r"(?=[a-z0-9-]{1,63}\.?\Z)(?![0-9]+\.?\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.?"
_DOMAIN = re.compile(rf"{_PIECE}*(?:\.{_TOP_LABEL}|{_MACRO})", re.IGNORECASE)
_PARTS = re.compile(r"%(?:\{([slodiphv])([0-9]*)(r?)([-.+,/_=]*)\}|([%_-]))", re.IGNORECASE)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*+)=(.*)", re.IGNORECASE)
_MECHANISM = re.compile(r"([-+?~]?)([a-z][a-z0-9_.-]*+)(.*)", re.IGNORECASE)
_LENGTH = r"(0|[1-9][0-9]{0,2})"
_DOMAIN_AND_LENGTHS = re.compile(rf"(?::(.+?))?(?:/{_LENGTH})?(?://{_LENGTH})?")
_NETWORK = re.compile(rf":([0-9a-f.:]+)(?:/{_LENGTH})?", re.IGNORECASE)
_LITERALS = {"%": "%", "_": " ", "-": "%20"}


class Malformed(ValueError):
    """What is wrong with a record: a clause."""


class Term(msgspec.Struct, frozen=True):
    """One mechanism. `domain` is macro text, "" for the domain itself; the lengths are of `a` and `mx`."""

    text: str
    qualifier: str
    mechanism: str
    domain: str = ""
    length4: int = 32
    length6: int = 128
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None


class Record(msgspec.Struct, frozen=True):
    """Mechanisms in their order, and where to go on when none of them matches ("" for nowhere)."""

    terms: tuple[Term, ...]
    redirect: str = ""


def is_record(text: str) -> bool:
    """Whether a TXT record is for SPF, version 1 (section 4.5)."""
    return text.lower() == VERSION or text[:7].lower() == f"{VERSION} "


def parse(text: str) -> Record:
    """Raises Malformed."""
    terms: list[Term] = []
    modifiers: dict[str, str] = {}
    for word in text[len(VERSION) :].split(" "):
        if not word:
            continue
        if not (found := _MODIFIER.fullmatch(word)):
            terms.append(_term(word))
            continue
        name = found[1].lower()
        if name in ("redirect", "exp"):
            if name in modifiers:
                raise Malformed(f"{name}= stands there twice")
            modifiers[name] = _domain(found[2], word)
        elif not _MACRO_TEXT.fullmatch(found[2]):
            raise Malformed(f"{show(word)} is no modifier")
    return Record(tuple(terms), modifiers.get("redirect", ""))


def _term(word: str) -> Term:
    found = _MECHANISM.fullmatch(word)
    if found is None:
        raise Malformed(f"{show(word)} is no mechanism")
    qualifier, name, rest = found[1] or "+", found[2].lower(), found[3]
    if name == "all" and not rest:
        return Term(word, qualifier, name)
    if name in ("include", "exists") or (name == "ptr" and rest):
        if rest[:1] != ":":
            raise Malformed(f"{show(word)} needs a domain behind a colon")
        return Term(word, qualifier, name, _domain(rest[1:], word))
    if name == "ptr":
        return Term(word, qualifier, name)
    if name in ("a", "mx"):
        return _hosts(word, qualifier, name, rest)
    if name in ("ip4", "ip6"):
        return Term(word, qualifier, name, network=_network(name, rest, word))
    raise Malformed(f"{show(word)} is no mechanism")


def _hosts(word: str, qualifier: str, name: str, rest: str) -> Term:
    found = _DOMAIN_AND_LENGTHS.fullmatch(rest)
    if found is None:
        raise Malformed(f"{show(word)} is no mechanism")
    length4, length6 = int(found[2] or 32), int(found[3] or 128)
    if length4 > 32 or length6 > 128:
        raise Malformed(f"{show(word)} has a prefix that is too long")
    return Term(word, qualifier, name, _domain(found[1], word) if found[1] else "", length4, length6)


def _network(name: str, rest: str, word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    found = _NETWORK.fullmatch(rest)
    try:
        if found is None:
            raise ValueError
        length = f"/{found[2]}" if found[2] else ""
        if name == "ip4":
            return ipaddress.IPv4Network(found[1] + length, strict=False)
        return ipaddress.IPv6Network(found[1] + length, strict=False)
    except ValueError:
        raise Malformed(f"{show(word)} is no network") from None


def _domain(text: str, word: str) -> str:
    """A domain-spec (section 7.1)."""
    if not _DOMAIN.fullmatch(text):
        raise Malformed(f"{show(word)} does not name a domain")
    if any(part[2] and int(part[2]) == 0 for part in _PARTS.finditer(text)):
        raise Malformed(f"{show(word)} keeps 0 parts of a macro")
    return text


def needs_host_name(text: str) -> bool:
    """Whether `%{p}` is in it, which costs a look-up."""
    return any((part[1] or "").lower() == "p" for part in _PARTS.finditer(text))


def expand(text: str, values: Mapping[str, str]) -> str:
    """Macro text with the values of its letters in their places (section 7.3), as a name: what is too long loses labels
    at its left."""

    def value(part: re.Match[str]) -> str:
        letter, digits, is_reversed, delimiters, literal = part.groups()
        if literal:
            return _LITERALS[literal]
        pieces = re.split(f"[{re.escape(delimiters or '.')}]", values[letter.lower()])
        if is_reversed:
            pieces.reverse()
        kept = ".".join(pieces[-int(digits) :] if digits else pieces)
        return urllib.parse.quote(kept, safe="") if letter.isupper() else kept

    name = _PARTS.sub(value, text).rstrip(".")
    while len(name) > LONGEST_NAME and "." in name:
        name = name.partition(".")[2]
    return name
