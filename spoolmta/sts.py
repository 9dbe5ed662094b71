"""MTA-STS (RFC 8461) without the network: records and policies read, hosts matched, and when to ask again.

A policy is found by a TXT record with an id, and fetched by https; while it is kept (max_age), it holds, whatever the
DNS says: a record that is gone does not end it. A new id means a new policy. Between two tries to fetch the same id
there are at least five minutes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from spoolmta.dane import matches_name

MAX_AGE = 31_557_600
MAX_BODY = 65_536
MAX_PATTERNS = 1000
RETRY_AFTER = 300.0
"""Seconds between two tries to fetch what one id stands for (RFC 8461 section 3.3)."""
REFRESH_AFTER = 86_400.0
"""Seconds after which a policy is fetched again though its id is the same, so that who can hold up the fetch cannot
wait for its end (section 10.2); at half of a shorter max_age."""

_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_PATTERN = re.compile(r"(?:\*\.)?(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_NUMBER = re.compile(r"[0-9]{1,10}")
_FIELD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})[ \t]*:[ \t]*(.*?)[ \t]*")

Mode = Literal["enforce", "testing", "none"]
_MODES: dict[str, Mode] = {"enforce": "enforce", "testing": "testing", "none": "none"}


class BadPolicy(ValueError):
    """What is wrong with a policy: one clause."""


class Policy(msgspec.Struct, frozen=True):
    """What a domain asks of those who send to it. `max_age` is in seconds."""

    mode: Mode
    mx: tuple[str, ...]
    max_age: int


class Kept(msgspec.Struct, frozen=True):
    """What is known of a domain: its policy and the id it was fetched for, if there is one; the last try to fetch.
    Times are Unix seconds."""

    policy: Policy | None = None
    id: str = ""
    fetched: float = 0.0
    tried_id: str = ""
    tried: float = 0.0

    def at(self, now: float) -> Policy | None:
        """The policy that holds now."""
        if self.policy is None or not self.fetched <= now < self.fetched + self.policy.max_age:
            return None
        return self.policy


def read_record(records: Sequence[str]) -> str:
    """The id of the one MTA-STS record among a name's TXT records; "" if there is none, or more than one."""
    found = [text for text in records if re.match(r"v=STSv1[ \t]*;", text)]
    if len(found) != 1:
        return ""
    for part in found[0].split(";")[1:]:
        key, _, value = part.strip(" \t").partition("=")
        if key == "id":
            return value if _ID.fullmatch(value) else ""
    return ""


def read_policy(body: bytes) -> Policy:
    """A policy file (RFC 8461 section 3.2). Keys that are not known are passed over, of a key that may stand once the
    first counts. Raises BadPolicy."""
    if len(body) > MAX_BODY:
        raise BadPolicy(f"it is larger than {MAX_BODY} bytes")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadPolicy("it is not text") from None
    fields: dict[str, str] = {}
    patterns: list[str] = []
    for line in re.split(r"\r?\n", text):
        found = _FIELD.fullmatch(line)
        if found and found[1] == "mx":
            patterns.append(found[2].lower())
        elif found:
            fields.setdefault(found[1], found[2])
        elif line.strip():
            raise BadPolicy("there is a line that is no field")
    mode = _MODES.get(fields.get("mode", ""))
    if fields.get("version") != "STSv1":
        raise BadPolicy("its version is not STSv1")
    if mode is None:
        raise BadPolicy("its mode is none of enforce, testing and none")
    if not _NUMBER.fullmatch(fields.get("max_age", "")):
        raise BadPolicy("it has no max_age")
    if len(patterns) > MAX_PATTERNS or not all(_PATTERN.fullmatch(pattern) for pattern in patterns):
        raise BadPolicy("it has an mx that is no host name")
    if mode != "none" and not patterns:
        raise BadPolicy("it has no mx")
    return Policy(mode, tuple(patterns), min(int(fields["max_age"]), MAX_AGE))


def allows(policy: Policy, host: str) -> bool:
    """Whether mail may go to this MX host."""
    return any(matches_name(pattern, host) for pattern in policy.mx)


def wants_fetch(kept: Kept, published: str, now: float) -> bool:
    """Whether the policy is to be fetched, where this id is in the DNS ("" for none, or where the DNS fails)."""
    if not published:
        return False
    policy = kept.at(now)
    if kept.tried_id == published and kept.tried <= now < kept.tried + RETRY_AFTER:
        return False
    return policy is None or kept.id != published or now >= kept.fetched + min(REFRESH_AFTER, policy.max_age / 2)


def after_fetch(kept: Kept, published: str, now: float, policy: Policy | None) -> Kept:
    """What is known after a try, `policy` None where it failed: what was there stays (section 3.3)."""
    if policy is None:
        return Kept(kept.policy, kept.id, kept.fetched, published, now)
    return Kept(policy, published, now, published, now)
