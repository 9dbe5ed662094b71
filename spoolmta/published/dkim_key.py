"""Whether the DNS has the public key that belongs to a private one (RFC 6376 section 3.6, RFC 8463 section 3)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from spoolmta.address import show
from spoolmta.published import lookup, tags
from spoolmta.published.lookup import Lookup

Algorithm = Literal["rsa", "ed25519"]
_LONGEST_HEADER = 64
"""Bytes: what stands before the key itself in a SubjectPublicKeyInfo is shorter, any RSA key is longer."""


class DkimKey(msgspec.Struct, frozen=True):
    """A key that signs. `public` is the base64 text that `p=` must have."""

    selector: str
    domain: str
    public: str
    algorithm: Algorithm = "rsa"

    @property
    def name(self) -> str:
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The text to publish at `name`."""
        return f"v=DKIM1; k={self.algorithm}; p={self.public}"


def check(key: DkimKey) -> Lookup[list[str]]:
    """What is wrong with the record of a key, a clause each; nothing where mail that it signs verifies. Raises
    Unanswered."""
    return problems(key, (yield from lookup.records(key.name, "TXT")))


def problems(key: DkimKey, records: Sequence[str]) -> list[str]:
    if not records:
        return [f"there is no TXT record at {key.name}"]
    if len(records) > 1:
        return [f"there are {len(records)} TXT records, and any of them may be taken"]
    found = tags.read(records[0])
    if found is None:
        return [f"the record is no list of tags: {show(records[0])}"]
    return [*_wrong(key, found)]


def _wrong(key: DkimKey, found: list[tuple[str, str]]) -> Iterator[str]:
    values = dict(found)
    if "v" in values and (values["v"] != "DKIM1" or found[0][0] != "v"):
        yield f"v={show(values['v'])} is not v=DKIM1" if values["v"] != "DKIM1" else "v=DKIM1 does not stand first"
    algorithm = values.get("k", "rsa")
    if algorithm != key.algorithm:
        yield f"k={show(algorithm)}, but the key is {key.algorithm}"
    if "h" in values and "sha256" not in _listed(values["h"]):
        yield f"h={show(values['h'])} does not allow sha256"
    if "s" in values and not {"*", "email"} & {*_listed(values["s"])}:
        yield f"s={show(values['s'])} is not for mail"
    published = "".join(values.get("p", "").split())
    if "p" not in values:
        yield "p= is missing"
    elif not published:
        yield "the key is revoked (p= is empty)"
    elif not _is_same(key.public, published):
        yield "p= is another key"
    if "y" in _listed(values.get("t", "")):
        yield "t=y says that this is only a test"


def _listed(value: str) -> list[str]:
    return [item.strip() for item in value.split(":")]


def _is_same(ours: str, published: str) -> bool:
    """Both as bytes. An RSA key may also stand there by itself, without what a SubjectPublicKeyInfo has before it."""
    try:
        mine, theirs = (base64.b64decode(text, validate=True) for text in ("".join(ours.split()), published))
    except (binascii.Error, ValueError):
        return False
    return mine == theirs or (mine.endswith(theirs) and len(mine) - len(theirs) < _LONGEST_HEADER < len(theirs))
