"""Whether the DNS agrees with what a source address says of itself, and what to publish where it does not.

Each check is a look-up that ends in one Finding. Where a question has no answer nobody can tell, and nothing is called
wrong. What strangers have published is shortened and made printable before it becomes part of a Finding.
"""

from __future__ import annotations

import enum
import ipaddress

import msgspec

from spoolmta.address import show
from spoolmta.published import dkim_key, dmarc, lookup, spf
from spoolmta.published.dkim_key import DkimKey
from spoolmta.published.lookup import Lookup, Unanswered, bare
from spoolmta.published.zone import Remedy

MAX_NAMES = 10
"""PTR records and mail hosts that are looked at: those of a stranger may be many."""


class Verdict(enum.Enum):
    OK = "ok"
    WRONG = "wrong"
    UNKNOWN = "cannot tell"


class Finding(msgspec.Struct, frozen=True):
    """What one check has found `about` an address or a name."""

    check: str
    about: str
    verdict: Verdict
    found: str
    remedies: tuple[Remedy, ...] = ()


Told = tuple[Verdict, str, tuple[Remedy, ...]]
"""A Finding without what it is about."""
Proof = tuple[Verdict, str]
"""Whether mail passes DMARC by one of the ways, and how."""


class Sender(msgspec.Struct, frozen=True):
    """A domain in From:, and that of the return path (MAIL FROM) of its mail."""

    domain: str
    return_path: str


class Subject(msgspec.Struct, frozen=True):
    """One source address of a VMTA as receivers see it: the name it says in EHLO, whose mail it sends, which keys sign
    that."""

    address: str
    ehlo: str
    senders: tuple[Sender, ...]
    keys: tuple[DkimKey, ...] = ()


def checks(subject: Subject) -> list[Lookup[Finding]]:
    """All that the DNS can be asked about an address, a look-up for each row of the table."""
    address, ehlo = subject.address, subject.ehlo
    paths = dict.fromkeys(sender.return_path for sender in subject.senders)
    found = [
        _guarded("PTR", address, _names_of(address, ehlo)),
        _guarded("EHLO", ehlo, _addresses_of(address, ehlo)),
        *(_guarded("SPF", path, _covered(subject, path)) for path in paths),
    ]
    if ehlo not in paths:
        found.append(_guarded("SPF", ehlo, _covered(subject, ehlo)))
    found += [_guarded("DKIM", key.name, _published(key)) for key in subject.keys]
    found += [_guarded("DMARC", sender.domain, _policy(subject, sender)) for sender in subject.senders]
    return found + [_guarded("MX", path, _bounces_return(path)) for path in paths]


def _guarded(check: str, about: str, looked_up: Lookup[Told]) -> Lookup[Finding]:
    try:
        verdict, found, remedies = yield from looked_up
    except Unanswered as error:
        verdict, found, remedies = Verdict.UNKNOWN, str(error), ()
    return Finding(check, about, verdict, found, remedies)


def _ok(found: str) -> Told:
    return Verdict.OK, found, ()


def _wrong(found: str, *remedies: Remedy) -> Told:
    return Verdict.WRONG, found, remedies


def _names_of(address: str, ehlo: str) -> Lookup[Told]:
    """The PTR records, and whether one of their names leads back (FCrDNS)."""
    reverse = ipaddress.ip_address(address).reverse_pointer
    remedy = Remedy("in the reverse zone, which is with whoever gave you the address", reverse, "PTR", ehlo)
    names = [bare(name) for name in (yield from lookup.records(reverse, "PTR"))]
    if not names:
        return _wrong("no PTR record", remedy)
    failure = ""
    names.sort(key=lambda name: name != ehlo)
    for name in names[:MAX_NAMES]:
        try:
            addresses = yield from _same_kind(name, address)
        except Unanswered as error:
            failure = str(error)
            continue
        if ipaddress.ip_address(address) in addresses:
            is_ours = "" if name == ehlo else f", though the EHLO name is {ehlo}"
            return _ok(f"{show(name)}, which leads back{is_ours}")
    if failure:
        raise Unanswered(failure)
    return _wrong(f"{show(', '.join(names))}: none leads back to {address}", remedy)


def _addresses_of(address: str, ehlo: str) -> Lookup[Told]:
    ip = ipaddress.ip_address(address)
    kind = lookup.address_kind(ip)
    found = yield from _same_kind(ehlo, address)
    if ip in found:
        return _ok(f"leads to {address}")
    remedy = Remedy("", ehlo, kind, address)
    if found:
        return _wrong(f"leads to {show(', '.join(map(str, sorted(found))))}, not to {address}", remedy)
    return _wrong(f"no {kind} record", remedy)


def _same_kind(name: str, address: str) -> Lookup[set[lookup.IpAddress]]:
    """The addresses of a name that are of the same IP version as this one."""
    kind = lookup.address_kind(ipaddress.ip_address(address))
    return {ipaddress.ip_address(text) for text in (yield from lookup.records(name, kind))}


def _check_host(subject: Subject, domain: str) -> Lookup[spf.Outcome]:
    return spf.check_host(subject.address, domain, f"postmaster@{domain}", subject.ehlo)


def _covered(subject: Subject, domain: str) -> Lookup[Told]:
    """SPF of a return path's domain; or of the EHLO name, by which mail without a return path (our DSNs) is judged: it
    need not have a record."""
    outcome = yield from _check_host(subject, domain)
    result, why = outcome.result, outcome.why
    if result is spf.Result.TEMPERROR:
        raise Unanswered(why)
    if result is spf.Result.PASS:
        return _ok(f"pass by {why}")
    if result is spf.Result.NONE:
        if all(sender.return_path != domain for sender in subject.senders):
            return _ok("none, and only mail without a return path is judged by it")
        why = "no SPF record"
    if result is spf.Result.PERMERROR:
        return _wrong(f"permerror: {why}", Remedy(f"mend the SPF record of {domain}: {why}"))
    ip = ipaddress.ip_address(subject.address)
    remedy = Remedy("", domain, "SPF", f"ip{ip.version}:{ip}", outcome.record)
    return _wrong(f"{result.value}: {why}", remedy)


def _published(key: DkimKey) -> Lookup[Told]:
    problems = yield from dkim_key.check(key)
    if not problems:
        return _ok("the record has the key")
    return _wrong("; ".join(problems), Remedy("the only TXT record of this name", key.name, "TXT", key.record))


def _policy(subject: Subject, sender: Sender) -> Lookup[Told]:
    """DMARC: a record, and SPF or DKIM that passes for a domain that is aligned."""
    discovery = yield from dmarc.discover(sender.domain)
    record = discovery.record
    if record is None:
        return (yield from _without_record(sender.domain))
    if not discovery.policy:
        return _wrong(f"no policy in {show(record.text)}", Remedy(f"add p=none to the record of _dmarc.{record.name}"))
    proofs = [(yield from _tried(_by_spf(subject, sender, record)))]
    for key in subject.keys:
        proofs.append((yield from _tried(_by_key(key, sender, record))))
    verdicts = [verdict for verdict, _ in proofs]
    says = [text for _, text in proofs] if subject.keys else [proofs[0][1], "no DKIM key"]
    found = f"p={discovery.policy} of _dmarc.{record.name}; {'; '.join(says)}"
    if Verdict.OK in verdicts:
        return _ok(found)
    if Verdict.UNKNOWN in verdicts:
        raise Unanswered(found)
    is_spf_enough = sender.return_path == sender.domain  # and what to publish for that is said already
    return _wrong(found, *[] if is_spf_enough else [Remedy(f"sign with a DKIM key of {sender.domain}")])


def _without_record(domain: str) -> Lookup[Told]:
    name = f"_dmarc.{domain}"
    count = len(dmarc.of_dmarc((yield from lookup.records(name, "TXT"))))
    if count:
        return _wrong(f"{count} DMARC records, which count as none", Remedy(f"leave one DMARC record at {name}"))
    return _wrong("no DMARC record", Remedy("", name, "TXT", "v=DMARC1; p=none"))


def _tried(looked_up: Lookup[Proof]) -> Lookup[Proof]:
    try:
        return (yield from looked_up)
    except Unanswered as error:
        return Verdict.UNKNOWN, str(error)


def _by_spf(subject: Subject, sender: Sender, record: dmarc.Record) -> Lookup[Proof]:
    path = sender.return_path
    if not (yield from dmarc.is_aligned(path, sender.domain, record.is_spf_strict)):
        return Verdict.WRONG, f"SPF is for {path}, which does not align"
    outcome = yield from _check_host(subject, path)
    if outcome.result is spf.Result.TEMPERROR:
        raise Unanswered(f"SPF aligns: {outcome.why}")
    verdict = Verdict.OK if outcome.result is spf.Result.PASS else Verdict.WRONG
    return verdict, f"SPF aligns: {outcome.result.value}"


def _by_key(key: DkimKey, sender: Sender, record: dmarc.Record) -> Lookup[Proof]:
    if not (yield from dmarc.is_aligned(key.domain, sender.domain, record.is_dkim_strict)):
        return Verdict.WRONG, f"DKIM is for {key.domain}, which does not align"
    problems = yield from dkim_key.check(key)
    if problems:
        return Verdict.WRONG, f"DKIM aligns, but {key.name} is wrong"
    return Verdict.OK, f"DKIM aligns: {key.name}"


def _bounces_return(domain: str) -> Lookup[Told]:
    """Whether mail can be delivered to a domain (RFC 5321 section 5.1): to one host of its MX records, or to itself."""
    remedy = Remedy(f"{domain}. IN MX 10 HOST. (HOST is who takes your bounces)")
    records = yield from lookup.records(domain, "MX")
    hosts = [bare(record.partition(" ")[2]) for record in sorted(records, key=_preference)]
    if hosts == [""]:
        return _wrong("takes no mail (null MX)", remedy)
    failure = ""
    for host in hosts[:MAX_NAMES] or [domain]:
        for kind in ("A", "AAAA"):
            try:
                if (yield from lookup.records(host, kind)):
                    return _ok(f"MX {show(host)}" if hosts else f"no MX, but {kind} records")
            except Unanswered as error:
                failure = str(error)
    if failure:
        raise Unanswered(failure)
    return _wrong(f"no MX host has an address: {show(', '.join(hosts))}" if hosts else "neither MX nor address", remedy)


def _preference(record: str) -> int:
    return int(record.partition(" ")[0])
