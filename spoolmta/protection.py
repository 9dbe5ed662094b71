"""What TLS the mail for a host must have: the configuration, the domain's MTA-STS policy, the host's TLSA records."""

from __future__ import annotations

import ipaddress
import logging
from datetime import UTC, datetime

import msgspec

from spoolmta import dane, sts
from spoolmta.model import Config, DomainPolicy, Failure, FailureKind, Host
from spoolmta.resolver import Resolver, Route
from spoolmta.smtp import starttls
from spoolmta.smtp.starttls import Demand, Level
from spoolmta.spool.layout import Layout
from spoolmta.sts_cache import Policies
from spoolmta.tls_channel import HAS_CHAIN, Channel

log = logging.getLogger("spoolmta")

MAX_TLSA = 20


class Rules(msgspec.Struct, frozen=True):
    """What holds for all hosts of one domain: its route, what the operator asks for, and its MTA-STS policy, if it is
    asked for and enforced."""

    domain: str
    route: Route
    policy: DomainPolicy
    enforced: sts.Policy | None = None


class Protection:
    """Asks for the rules of a domain and what they demand of each of its hosts."""

    def __init__(self, config: Config, resolver: Resolver, layout: Layout) -> None:
        self._resolver = resolver
        self._has_warned = False
        self._policies = Policies(layout, resolver, config.mta_sts_port)

    async def rules(self, domain: str, policy: DomainPolicy, route: Route) -> Rules:
        """What holds for the domain. A route of the operator's own is not the domain's to rule."""
        found = None
        if policy.use_mta_sts and not policy.smtp_hosts and not is_address(route.hosts[0].name):
            found = await self._policies.find(domain, policy.smtp_tls_ca_file)
        return Rules(domain, route, policy, _enforced(found))

    async def changed(self, rules: Rules) -> Rules | None:
        """The rules anew, where the domain has replaced its MTA-STS policy since."""
        found = _enforced(await self._policies.recheck(rules.domain, rules.policy.smtp_tls_ca_file))
        return Rules(rules.domain, rules.route, rules.policy, found) if found != rules.enforced else None

    async def demand(self, rules: Rules, host: Host, families: frozenset[int]) -> Demand | Failure:
        """What a session with this host must have; a Failure where there must be none."""
        tlsa = await self._tlsa(rules, host, families)
        if isinstance(tlsa, Failure):
            return tlsa
        is_enforced = rules.enforced is not None
        if rules.enforced is not None and not tlsa and not sts.allows(rules.enforced, host.name):
            return Failure(FailureKind.TLS, f"the MTA-STS policy of {rules.domain} does not name the host {host.name}")
        return starttls.combined(starttls.configured(rules.policy), is_enforced, tlsa)

    async def _tlsa(self, rules: Rules, host: Host, families: frozenset[int]) -> tuple[dane.Tlsa, ...] | Failure | None:
        """The host's usable TLSA records; None where there are none, or nothing proves them (RFC 7672 section 2.2).

        A look-up that fails is not the same as no records: somebody may hold up the answer. The host is not used then.
        """
        if not rules.policy.use_dane or not rules.route.is_secure or is_address(host.name):
            return None
        if not self._resolver.is_trusted:
            self._warn()
            return None
        port = host.port or rules.policy.default_smtp_port
        names = {host.name: None}
        for version, kind in ((6, "AAAA"), (4, "A")):
            if version in families:
                found = await self._resolver.look_up(host.name, kind)
                if found.failure is FailureKind.DNS_TEMPORARY:
                    return Failure(found.failure, found.text)
                if not found.is_secure:
                    return None
                if found.canonical:
                    names = {found.canonical: None, **names}
        for name in names:
            found = await self._resolver.look_up(f"_{port}._tcp.{name}", "TLSA")
            if found.failure is FailureKind.DNS_TEMPORARY:
                return Failure(found.failure, found.text)
            if found.is_secure and found.records:
                return dane.usable(found.records[:MAX_TLSA], HAS_CHAIN)
        return None

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("use-dane does nothing: the system's name servers are not on this machine (see dnssec-trusted)")


def problem(demand: Demand, channel: Channel, names: tuple[str, ...]) -> str:
    """What is wrong with what the host showed in the handshake, "" for nothing; OpenSSL has looked at the rest."""
    if demand.level is not Level.DANE:
        return ""
    return dane.problem(demand.tlsa, channel.chain, names, datetime.now(UTC))


def _enforced(policy: sts.Policy | None) -> sts.Policy | None:
    return policy if policy is not None and policy.mode == "enforce" else None


def is_address(name: str) -> bool:
    """Whether a host is an address: it has no name that DNS could say anything about."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
