"""DMARC (RFC 9989, with the records of RFC 7489): which policy holds for a domain, and what aligns with it.

The organizational domain is found by walking up the tree (RFC 9989 section 4.10), not by a list of public suffixes: of
all names at or above the domain that have a record it is the one with the fewest labels; a record with `psd=n` is the
organization's own, and one with `psd=y` is a registry's, whose customer is one label below.
"""

from __future__ import annotations

import msgspec

from spoolmta.published import lookup, tags
from spoolmta.published.lookup import Lookup

MAX_QUESTIONS = 8
"""Of a walk: of a name with more labels only the last 7 are asked for behind the first question (section 4.10)."""
POLICIES = ("none", "quarantine", "reject")


class Record(msgspec.Struct, frozen=True):
    """What one record says. A policy that is missing or unknown is ""."""

    name: str
    text: str
    policy: str = ""
    subdomain_policy: str = ""
    is_spf_strict: bool = False
    is_dkim_strict: bool = False
    psd: str = "u"


class Discovery(msgspec.Struct, frozen=True):
    """What holds for a domain: `record` None is nothing at all."""

    domain: str
    record: Record | None = None

    @property
    def policy(self) -> str:
        if self.record is None:
            return ""
        is_own = self.record.name == self.domain
        return (not is_own and self.record.subdomain_policy) or self.record.policy


def read(name: str, texts: tuple[str, ...]) -> Record | None:
    """The DMARC record of a name. None where there is none, and where there are several (section 4.7)."""
    found = of_dmarc(texts)
    if len(found) != 1:
        return None
    values = {tag: value.lower() for tag, value in tags.read(found[0]) or ()}
    policy, subdomain = (values.get(tag, "") for tag in ("p", "sp"))
    return Record(
        name,
        found[0],
        policy if policy in POLICIES else "",
        subdomain if subdomain in POLICIES else "",
        values.get("aspf") == "s",
        values.get("adkim") == "s",
        values.get("psd", "u"),
    )


def of_dmarc(texts: tuple[str, ...]) -> list[str]:
    """Those of the TXT records that are for DMARC."""
    versions = [(text, text.partition(";")[0].partition("=")) for text in texts]
    return [text for text, (tag, _, value) in versions if (tag.strip(), value.strip()) == ("v", "DMARC1")]


def walk(domain: str) -> Lookup[list[Record]]:
    """The records at a domain and above it, its own first. Raises Unanswered."""
    labels = domain.split(".")
    starts = [0, *range(max(1, len(labels) - MAX_QUESTIONS + 1), len(labels))]
    found = []
    for start in starts:
        name = ".".join(labels[start:])
        record = read(name, (yield from lookup.records(f"_dmarc.{name}", "TXT")))
        if record is not None:
            found.append(record)
            if record.psd in ("n", "y"):
                break
    return found


def organization(domain: str, walked: list[Record]) -> str:
    """The organizational domain, by the records of the walk; the domain itself where there are none."""
    if not walked:
        return domain
    last = walked[-1]
    if last.psd != "y" or last.name == domain:
        return last.name
    below = domain.removesuffix(f".{last.name}").rpartition(".")[2]
    return f"{below}.{last.name}"


def discover(domain: str) -> Lookup[Discovery]:
    """The record that holds for a domain in From: its own, else that of its organization, else its registry's. Raises
    Unanswered, but not where the domain's own record is known."""
    record = read(domain, (yield from lookup.records(f"_dmarc.{domain}", "TXT")))
    if record is None:
        walked = yield from walk(domain)
        own = organization(domain, walked)
        record = next((one for name in (own, own.partition(".")[2]) for one in walked if one.name == name), None)
    return Discovery(domain, record)


def is_aligned(authenticated: str, domain: str, is_strict: bool) -> Lookup[bool]:
    """Whether an authenticated domain is the one in From, or of the same organization. Raises Unanswered."""
    if authenticated == domain or is_strict:
        return authenticated == domain
    return organization(authenticated, (yield from walk(authenticated))) == organization(
        domain, (yield from walk(domain))
    )
