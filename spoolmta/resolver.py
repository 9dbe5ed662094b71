"""Domain to mail hosts, host to addresses (RFC 5321 section 5.1, RFC 7505), cached, equal questions joined.

What a DNS answer means for mail is in `mail_hosts`; this module asks. A server failure or silence is temporary and is
kept for 5 seconds, so that the sessions of one domain do not all ask; retry-after-dns-error is how long its mail waits.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import random
import re
import time
import traceback
from collections.abc import Iterable

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdata
import dns.rdatatype
import dns.resolver
import msgspec

from spoolmta import descriptors
from spoolmta.here import Here
from spoolmta.model import DomainPolicy, Failure, FailureKind, Host
from spoolmta.policy import PolicyTable
from spoolmta.routing import Routing, routing

MAX_HOSTS = 10
MAX_RECORDS = 100
"""Postfix takes 100 records of an answer; a stranger's zone must not fill our memory."""
MIN_TTL, MAX_TTL, FAILED_TTL = 30.0, 86_400.0, 5.0
MAX_EMPTY_TTL = 300.0
"""A name or record that does not exist yet will soon; dnspython says "for ever" where the SOA is missing (RFC 2308)."""
MAX_CACHED = 20_000
MAX_QUESTIONS = 1000
"""Asked at the same time, each with a socket of its own."""
HASTE = 1.0
"""Seconds for an answer, before a question counts among those that keep us waiting."""
SLOW_PART, NEW_PART = 3 / 8, 1 / 2
"""Of the questions, for those that keep us waiting and for what was never asked; the rest is for what was answered the
last time."""
CROWDED = 5.0
"""Seconds for an answer that keeps us waiting, where others wait for its place."""
NOWHERE = Here(allows_loopback=True)

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)


class Route(msgspec.Struct, frozen=True):
    """Where a domain's mail goes: its hosts, best first. `mx` are the hosts its MX records name; empty for a route
    that is no matter of them (smtp-hosts, an address). `is_secure`: the operator has named all hosts, or DNSSEC proves
    them."""

    hosts: tuple[Host, ...]
    mx: frozenset[str] = frozenset()
    is_secure: bool = False


class Unroutable(Exception):
    """No route; `failure` says why, `retry_in` (seconds) when it is worth asking again."""

    def __init__(self, failure: Failure, retry_in: float) -> None:
        super().__init__(failure.text)
        self.failure = failure
        self.retry_in = retry_in


class Found(msgspec.Struct, frozen=True):
    """What one DNS question brought: the records as text (empty for NODATA), or why there are none. `is_secure`: a
    resolver that we trust has validated it by DNSSEC. `canonical` is the name at the end of its aliases. `is_late`: no
    answer came."""

    records: tuple[str, ...]
    expires: float
    failure: FailureKind | None = None
    text: str = ""
    is_secure: bool = False
    canonical: str = ""
    is_late: bool = False


def mail_hosts(
    domain: str, records: tuple[str, ...], chance: random.Random, own_names: frozenset[str] = frozenset()
) -> tuple[Host, ...] | Failure:
    """MX records (`10 mx.example.com`) to hosts in the order in which they are tried: equal preferences are shuffled
    (RFC 5321: MUST)."""
    levels = mail_levels(domain, records, own_names)
    return levels if isinstance(levels, Failure) else _in_order(levels, chance)


def mail_levels(
    domain: str, records: tuple[str, ...], own_names: frozenset[str] = frozenset()
) -> list[list[Host]] | Failure:
    """MX records to hosts by preference, best first.

    No record: the domain itself (RFC 5321 section 5.1). A single `0 .`: no mail wanted (RFC 7505). A host that is an
    address or no host name cannot be used; nothing usable is an error, never the domain itself. Where we are one of
    the hosts, only better ones than us are tried.
    """
    loop = Failure(FailureKind.LOOP, f"the mail hosts of {domain} lead back to us")
    if not records:
        return loop if domain in own_names else [[Host(domain)]]
    parsed: list[tuple[int, str]] = []
    for record in records[:MAX_RECORDS]:
        preference, _, name = record.partition(" ")
        parsed.append((int(preference), name.rstrip(".").lower()))
    if len(parsed) == 1 and parsed[0][1] == "":
        return Failure(FailureKind.NULL_MX, f"{domain} accepts no mail (null MX)")
    usable: dict[int, list[Host]] = {}
    for number, name in sorted(parsed):
        if is_host_name(name):
            usable.setdefault(number, []).append(Host(name))
    if not usable:
        return Failure(FailureKind.NO_HOST, f"none of the mail hosts of {domain} can be used")
    levels = itertools.takewhile(lambda level: not any(host.name in own_names for host in level), usable.values())
    return [*levels] or loop


def _in_order(levels: Iterable[list[Host]], chance: random.Random) -> tuple[Host, ...]:
    """Hosts of one level are alike."""
    return tuple(host for level in levels for host in chance.sample(level, len(level)))


def is_host_name(name: str) -> bool:
    """Letters, digits, hyphens (and underscores, which exist); not an address."""
    if not _HOST_NAME.fullmatch(name):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False


class Resolver:
    """One process's view of the DNS. `nameservers` are `ip:port`; empty means the system's. A question that has no
    answer after `patience` seconds is given up, sooner where many wait. `here` says which hosts are ourselves. Whether
    an answer was validated is believed only where the name servers are on this machine, or `is_trusted` says so (RFC
    6698 appendix A.3: nobody may be in between)."""

    def __init__(
        self,
        nameservers: tuple[str, ...],
        chance: random.Random,
        patience: float = 15.0,
        here: Here = NOWHERE,
        is_trusted: bool = False,
    ) -> None:
        self._chance = chance
        self.here = here
        self._cache: dict[tuple[str, str], Found] = {}
        self._asked: dict[tuple[str, str], asyncio.Future[Found]] = {}
        self._resolver = dns.asyncresolver.Resolver(configure=not nameservers)
        if nameservers:
            self._resolver.nameservers = [nameserver(text) for text in nameservers]
        self._resolver.use_edns(0, 0, 1232)
        self._resolver.flags = dns.flags.RD | dns.flags.AD  # RFC 6840 section 5.7: tell us whether it is validated
        self.is_trusted = is_trusted or all(_is_here(server) for server in self._resolver.nameservers)
        self._patience = patience
        self._resolver.timeout = 4.0
        most = descriptors.share(descriptors.QUESTIONS, MAX_QUESTIONS)
        self._slow, self._new, self._known = (
            asyncio.Semaphore(max(1, int(most * part))) for part in (SLOW_PART, NEW_PART, 1 - SLOW_PART - NEW_PART)
        )

    async def route(self, domain: str, policy: DomainPolicy) -> Route:
        """The hosts for a domain's mail: those of smtp-hosts, an address literal's address, or what the MX records of
        the domain name, or of whatever its mail is queued to. Raises Unroutable."""
        if policy.smtp_hosts:
            return await self._route_of(policy.smtp_hosts)
        if not policy.queue_to:
            return await self._route_by_mx(domain, policy)
        try:
            return await self._route_by_mx(policy.queue_to, policy)
        except Unroutable as error:
            raise _wait(f"queue-to {policy.queue_to}: {error.failure.text}", error.retry_in) from None

    async def _route_by_mx(self, domain: str, policy: DomainPolicy) -> Route:
        literal = _literal(domain)
        if literal:
            return Route((Host(literal),))
        found = await self.look_up(domain, "MX")
        if found.failure is None and not found.records and policy.bounce_upon_no_mx:
            failure = Failure(FailureKind.NO_HOST, f"{domain} has no MX record")
            raise Unroutable(failure, _retry_in(found))
        hosts = _in_order(self._levels(domain, found), self._chance)
        mx = frozenset(host.name for host in hosts if found.records)
        return Route(hosts[:MAX_HOSTS], mx, found.is_secure)

    def _levels(self, domain: str, found: Found) -> list[list[Host]]:
        """What the answer to a question for MX says. Raises Unroutable."""
        if found.failure is not None:
            raise Unroutable(Failure(found.failure, found.text), _retry_in(found))
        levels = mail_levels(domain, found.records, self.here.names)
        if isinstance(levels, Failure):
            raise Unroutable(levels, _retry_in(found))
        return levels

    async def _route_of(self, wanted: tuple[tuple[Host, ...], ...]) -> Route:
        """The hosts of smtp-hosts. What a look-up finds first is as good as what stands beside the look-up, and what it
        finds behind that comes before the next level."""
        hosts: list[Host] = []
        failures: list[tuple[str, float]] = []
        is_secure = True
        for level in wanted:
            deeper = [[host for host in level if not host.lookup_mx]]
            for host in level:
                if not host.lookup_mx:
                    continue
                found = await self.look_up(host.name, "MX")
                try:
                    _merge(deeper, self._looked_up(host, self._levels(host.name, found)))
                    is_secure = is_secure and found.is_secure
                except Unroutable as error:
                    failures.append((f"lookup-mx:{host.name}: {error.failure.text}", error.retry_in))
            hosts += _in_order(deeper, self._chance)
        if not hosts:
            raise _wait("; ".join(text for text, _ in failures), min(seconds for _, seconds in failures))
        return Route(tuple(hosts), is_secure=is_secure)

    def _looked_up(self, host: Host, levels: list[list[Host]]) -> list[list[Host]]:
        """The first hosts that a look-up has found, with its port."""
        first = _in_order(levels, self._chance)[:MAX_HOSTS]
        found = [[Host(one.name, host.port, lookup_mx=True) for one in level if one in first] for level in levels]
        return [level for level in found if level]

    async def locate(self, table: PolicyTable, domain: str) -> tuple[Routing, Route]:
        """The site to which a domain's mail goes, and the hosts that take it there. Raises Unroutable."""
        policy = table.resolve("", domain)
        if table.fixed_site_of(domain):
            route = await self.route(domain, policy)
            return routing(table, domain, route.mx), route
        try:
            own = await self._route_by_mx(domain, policy)
        except Unroutable as error:
            if not policy.queue_to or error.failure.kind is FailureKind.DNS_TEMPORARY:
                raise
            own = Route(())  # whatever it is, it is no provider's
        found = routing(table, domain, own.mx)
        if not found.queue_to:
            return found, own
        route = await self.route(domain, table.resolve(found.site, domain))
        return found, Route(route.hosts, own.mx, route.is_secure)

    async def addresses(self, host: str, families: frozenset[int]) -> list[str] | Failure:
        """The addresses of a host in the families (4, 6) we can send from, IPv6 first; or why there are none."""
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            if literal.version in families:
                return [str(literal)]
            return Failure(FailureKind.UNREACHABLE, f"no IPv{literal.version} source address to reach {host}")
        addresses: list[str] = []
        failure = Failure(FailureKind.NO_HOST, f"host {host} has no address")
        for version, kind in ((6, "AAAA"), (4, "A")):
            if version in families:
                found = await self.look_up(host, kind)
                addresses += self._chance.sample(found.records, min(len(found.records), MAX_HOSTS))
                if found.failure is FailureKind.DNS_TEMPORARY:
                    failure = Failure(found.failure, found.text)
        return addresses or failure

    def forget(self, name: str, kind: str) -> None:
        """Ask the name server next time."""
        self._cache.pop((name, kind), None)

    async def look_up(self, name: str, kind: str) -> Found:
        """Ask once: from the cache, from a question under way, or from the name server."""
        key = (name, kind)
        cached = self._cache.get(key)
        if cached is not None and cached.expires > time.monotonic():
            return cached
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.ensure_future(self._ask(name, kind))
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        return await asyncio.shield(asked)

    async def _ask(self, name: str, kind: str) -> Found:
        found = await self._query(name, kind)
        self._cache.pop((name, kind), None)  # and to the end: what is asked anew is kept
        if len(self._cache) >= MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[name, kind] = found
        return found

    async def _send(self, name: str, kind: str) -> dns.resolver.Answer:
        """Ask in turn. Thousands of domains whose name servers say nothing must not hold up the others: a question
        without an answer goes on behind those like it, and begins there the next time."""

        async def within(seconds: float) -> dns.resolver.Answer:
            resolve = self._resolver.resolve
            return await resolve(name + ".", kind, raise_on_no_answer=False, search=False, lifetime=seconds)

        last = self._cache.get((name, kind))
        if last is None or not last.is_late:
            async with self._new if last is None else self._known:
                try:
                    return await within(min(HASTE, self._patience))
                except dns.resolver.LifetimeTimeout as error:
                    traceback.clear_frames(error.__traceback__)
        async with self._slow:
            return await within(min(CROWDED, self._patience) if self._slow.locked() else self._patience)

    async def _query(self, name: str, kind: str) -> Found:
        try:
            answer = await self._send(name, kind)
        except dns.resolver.NXDOMAIN as error:
            text = f"domain {name} does not exist"
            is_secure = self._is_secure(error.response(dns.name.from_text(name)))  # type: ignore[no-untyped-call]
            return Found((), time.monotonic() + MAX_EMPTY_TTL, FailureKind.NO_DOMAIN, text, is_secure)
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            # dnspython's errors and frames hold each other and whole sockets, until the collector comes round.
            traceback.clear_frames(error.__traceback__)
            text = f"DNS look-up of {kind} {name} failed: {explain(error)}"
            is_late = isinstance(error, dns.resolver.LifetimeTimeout)
            return Found((), time.monotonic() + FAILED_TTL, FailureKind.DNS_TEMPORARY, text, is_late=is_late)
        ttl = answer.expiration - time.time()
        ttl = min(max(ttl, MIN_TTL), MAX_TTL if answer.rrset is not None else MAX_EMPTY_TTL)
        records = [text_of(record) for record in list(answer)[:MAX_RECORDS]] if answer.rrset is not None else []
        canonical = answer.canonical_name.to_text(omit_final_dot=True).lower()
        is_secure = self._is_secure(answer.response)
        return Found(tuple(records), time.monotonic() + ttl, is_secure=is_secure, canonical=canonical)

    def _is_secure(self, response: dns.message.Message) -> bool:
        return self.is_trusted and bool(response.flags & dns.flags.AD)


def _retry_in(found: Found) -> float:
    return max(1.0, found.expires - time.monotonic())


def _wait(text: str, seconds: float) -> Unroutable:
    """A name that the operator has written leads nowhere: mail waits until that is mended, and does not bounce."""
    return Unroutable(Failure(FailureKind.DNS_TEMPORARY, text), seconds)


def _merge(levels: list[list[Host]], more: list[list[Host]]) -> None:
    """Hosts at the same depth are alike."""
    for depth, level in enumerate(more):
        if depth == len(levels):
            levels.append([])
        levels[depth] += level


def text_of(record: dns.rdata.Rdata) -> str:
    """A record as text; the strings of a TXT record are one text (RFC 8461 section 3.1)."""
    if record.rdtype == dns.rdatatype.TXT:
        return b"".join(getattr(record, "strings", ())).decode("utf-8", "replace")
    return record.to_text()


def _is_here(server: str | dns.nameserver.Nameserver) -> bool:
    """Whether a name server is on this machine."""
    try:
        return ipaddress.ip_address(server if isinstance(server, str) else server.answer_nameserver()).is_loopback
    except ValueError:
        return False


def _literal(domain: str) -> str:
    """The address in the folder of an address literal, else "": `ip-192.0.2.1` is one, `ip-api.com` is a domain."""
    if domain.startswith("ip-"):
        try:
            return str(ipaddress.ip_address(domain[3:]))
        except ValueError:
            pass
    return ""


def explain(error: Exception) -> str:
    """Why dnspython has no answer, in our words."""
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return "the name servers did not answer in time"
    if isinstance(error, dns.resolver.NoNameservers):
        return "the name servers failed (SERVFAIL or refused)"
    return str(error) or type(error).__name__


def nameserver(text: str) -> dns.nameserver.Nameserver:
    """Of `address:port`."""
    host, _, port = text.rpartition(":")
    return dns.nameserver.Do53Nameserver(host.strip("[]"), int(port))
