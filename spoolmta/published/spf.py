"""Whether a domain lets an address send its mail: check_host of RFC 7208, all of it but the text of `exp=`.

| limit | here |
|---|---|
| terms that ask (include, a, mx, ptr, exists, redirect, and `%{p}`) | 10, over all records (section 4.6.4) |
| look-ups by terms that find nothing | 2, over all records |
| hosts of one mx | 10, else permerror |
| names of the address (ptr, `%{p}`) | 10, the rest does not count |
"""

from __future__ import annotations

import enum
import ipaddress

import msgspec

from spoolmta.address import show
from spoolmta.published import lookup, spf_terms
from spoolmta.published.lookup import Lookup, Unanswered, bare, is_domain_name
from spoolmta.published.spf_terms import Malformed, Term

MAX_TERMS = 10
MAX_VOIDS = 2
MAX_NAMES = 10


class Result(enum.Enum):
    """Section 2.6."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


_QUALIFIERS = {"+": Result.PASS, "-": Result.FAIL, "~": Result.SOFTFAIL, "?": Result.NEUTRAL}


class Outcome(msgspec.Struct, frozen=True):
    """`why` is the term that decided, or what is wrong, fit to be shown; `record` the domain's own record, as it is."""

    result: Result
    why: str = ""
    record: str = ""


class _Permanent(Exception):
    """The records can never give a result."""


def check_host(address: str, domain: str, sender: str, helo: str) -> Lookup[Outcome]:
    """The result for mail from `sender` (its domain, where it has no local part) that comes from `address`, whose host
    said `helo`. Never raises."""
    evaluation = _Evaluation(address, domain, sender, helo)
    try:
        return (yield from evaluation.of(domain))
    except Unanswered as error:
        return Outcome(Result.TEMPERROR, str(error), evaluation.record)
    except (_Permanent, Malformed) as error:
        return Outcome(Result.PERMERROR, str(error), evaluation.record)


class _Evaluation:
    """What all records of one check share: who sends, and what has been asked."""

    def __init__(self, address: str, domain: str, sender: str, helo: str) -> None:
        ip = ipaddress.ip_address(address)
        self._ip = getattr(ip, "ipv4_mapped", None) or ip  # section 5: a mapped address is an IPv4 one
        local, _, host = sender.rpartition("@")
        is_4 = self._ip.version == 4
        self._values = {
            "s": f"{local or 'postmaster'}@{host or domain}",
            "l": local or "postmaster",
            "o": host or domain,
            "i": str(self._ip) if is_4 else ".".join(self._ip.exploded.replace(":", "")),
            "v": "in-addr" if is_4 else "ip6",
            "h": helo,
        }
        self._terms = 0
        self._voids = 0
        self._names: list[str] | None = None
        self.record = ""
        """That of the first domain, once it is known."""

    def of(self, domain: str) -> Lookup[Outcome]:
        """check_host for one domain. Raises Unanswered, Malformed and _Permanent."""
        is_first = self._terms == 0
        text = yield from self._record(domain, is_first)
        if not text:
            return Outcome(Result.NONE, f"{show(domain)} has no SPF record")
        if is_first:
            self.record = text
        record = spf_terms.parse(text)
        for term in record.terms:
            if (yield from self._matches(term, domain)):
                return Outcome(_QUALIFIERS[term.qualifier], show(term.text), self.record)
        if not record.redirect:
            return Outcome(Result.NEUTRAL, "no term matches", self.record)
        self._count()
        target = yield from self._expanded(record.redirect, domain)
        outcome = yield from self.of(target)
        if outcome.result is Result.NONE:
            raise _Permanent(f"it redirects to {show(target)}, which has no SPF record")
        return outcome

    def _record(self, domain: str, is_first: bool) -> Lookup[str]:
        """The one record of a domain, "" if it has none."""
        if "." not in domain:
            return ""
        if is_first:
            texts = yield from lookup.records(domain, "TXT")
        else:
            texts = yield from self._ask(domain, "TXT")
        found = [text for text in texts if spf_terms.is_record(text)]
        if len(found) > 1:
            raise _Permanent(f"{show(domain)} has {len(found)} SPF records")
        return found[0] if found else ""

    def _matches(self, term: Term, domain: str) -> Lookup[bool]:
        if term.mechanism == "all":
            return True
        if term.network is not None:
            return self._ip in term.network
        self._count()
        target = (yield from self._expanded(term.domain, domain)) if term.domain else domain
        if term.mechanism == "include":
            return (yield from self._is_included(target))
        if term.mechanism == "exists":
            return bool((yield from self._ask(target, "A")))
        if term.mechanism == "ptr":
            names = yield from self._host_names()
            return any(_is_within(name, target) for name in names)
        if term.mechanism == "a":
            return (yield from self._is_at(target, term))
        return (yield from self._is_mail_host(target, term))

    def _is_included(self, target: str) -> Lookup[bool]:
        outcome = yield from self.of(target)
        if outcome.result is Result.NONE:
            raise _Permanent(f"it includes {show(target)}, which has no SPF record")
        return outcome.result is Result.PASS

    def _is_mail_host(self, target: str, term: Term) -> Lookup[bool]:
        hosts = yield from self._ask(target, "MX")
        if len(hosts) > MAX_NAMES:
            raise _Permanent(f"{show(target)} has more than {MAX_NAMES} mail hosts")
        for host in hosts:
            if (yield from self._is_at(bare(host.partition(" ")[2]), term)):
                return True
        return False

    def _is_at(self, host: str, term: Term) -> Lookup[bool]:
        """Whether the address is one of a host's, as far as the term's prefix goes."""
        length = term.length4 if self._ip.version == 4 else term.length6
        for address in (yield from self._ask(host, lookup.address_kind(self._ip))):
            if self._ip in ipaddress.ip_network(f"{address}/{length}", strict=False):
                return True
        return False

    def _ask(self, name: str, kind: str) -> Lookup[tuple[str, ...]]:
        """What a term asks. A name that cannot be one is no name (section 4.8)."""
        if not is_domain_name(name):
            return ()
        found = yield from lookup.records(name, kind)
        if not found:
            self._voids += 1
            if self._voids > MAX_VOIDS:
                raise _Permanent(f"more than {MAX_VOIDS} look-ups find nothing, the last is {kind} of {show(name)}")
        return found

    def _count(self) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise _Permanent(f"more than {MAX_TERMS} terms need look-ups")

    def _expanded(self, text: str, domain: str) -> Lookup[str]:
        values = {**self._values, "d": domain}
        if spf_terms.needs_host_name(text):
            self._count()
            names = yield from self._host_names()
            names = sorted(names, key=lambda name: (name != domain.lower(), not _is_within(name, domain)))
            values["p"] = names[0] if names else "unknown"
        return spf_terms.expand(text, values)

    def _host_names(self) -> Lookup[list[str]]:
        """The names of the address that lead back to it (section 5.5). Who cannot be asked has none."""
        if self._names is not None:
            return self._names
        self._names = []
        kind = lookup.address_kind(self._ip)
        try:
            found = yield from self._ask(self._ip.reverse_pointer, "PTR")
        except Unanswered:
            return self._names
        for name in map(bare, found[:MAX_NAMES]):
            try:
                addresses = yield from self._ask(name, kind)
            except Unanswered:
                continue
            if any(ipaddress.ip_address(address) == self._ip for address in addresses):
                self._names.append(name)
        return self._names


def _is_within(name: str, domain: str) -> bool:
    domain = bare(domain)
    return name == domain or name.endswith(f".{domain}")
