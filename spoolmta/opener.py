"""Opening a session: from a domain to a connection that has said EHLO, by way of its hosts and their addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from spoolmta.model import DomainPolicy, Failure, FailureKind, Host, Reply, SourceHost, Stage, Struct, Vmta
from spoolmta.resolver import Resolver, Unroutable
from spoolmta.smtp.client import Capabilities, Refused, WireError, greet
from spoolmta.transport import Connection, connect

MAX_CONNECTS = 10
"""Addresses tried for one session (reliability: a zone with 10,000 black holes must not hold it for ever)."""


class Ends(Struct, frozen=True):
    """Both ends of a session, as the log shows them; empty where it did not come to that."""

    host: str = ""
    address: str = ""
    source: str = ""


class Opened(Struct, frozen=True):
    """A session that is ready for its first message."""

    connection: Connection
    ends: Ends
    capabilities: Capabilities


class NotOpened(Struct, frozen=True):
    """No host let us in: the last thing that was said or went wrong, and where."""

    failure: Reply | Failure
    ends: Ends

    @property
    def is_ours(self) -> bool:
        """Whether the trouble is on our side: the receiver must not be blamed."""
        return isinstance(self.failure, Failure) and self.failure.kind in (FailureKind.LOCAL, FailureKind.UNBOUND)

    @property
    def unbound(self) -> str:
        """The source address that could not be bound, if that was it."""
        is_unbound = isinstance(self.failure, Failure) and self.failure.kind is FailureKind.UNBOUND
        return self.ends.source if is_unbound else ""


class Opener:
    """Opens sessions for one VMTA."""

    def __init__(self, vmta: Vmta, host_name: str, resolver: Resolver) -> None:
        self._vmta = vmta
        self._host_name = host_name
        self.resolver = resolver
        self._names = {host.address: host for host in vmta.source_hosts}

    async def open(
        self, domain: str, policy: DomainPolicy, sources: tuple[str, ...], on_lost: Callable[[], None]
    ) -> Opened | NotOpened:
        """Try the domain's hosts in order, and their addresses, from the source of their IP version (from whatever the
        system chooses if there is none at all); the first that greets us well."""
        result = NotOpened(Failure(FailureKind.NO_HOST, f"no usable host for {domain}"), Ends())
        try:
            route = await self.resolver.route(domain, policy)
        except Unroutable as error:
            return NotOpened(error.failure, Ends())
        tries = 0
        for host in route.hosts:
            addresses = await self.resolver.addresses(host.name, _families(sources))
            if isinstance(addresses, Failure):
                result = NotOpened(addresses, Ends(host.name))
                continue
            for address in addresses:
                tries += 1
                if tries > MAX_CONNECTS:
                    return result
                attempt = await self._try(host, address, self._source(sources, address), policy, on_lost)
                if isinstance(attempt, Opened):
                    return attempt
                result = attempt
        return result

    async def _try(
        self, host: Host, address: str, source: SourceHost, policy: DomainPolicy, on_lost: Callable[[], None]
    ) -> Opened | NotOpened:
        loop = asyncio.get_running_loop()
        connection = Connection(loop, timeouts(policy), on_lost)
        port = host.port or policy.default_smtp_port
        try:
            used = await connect(loop, connection, address, port, source.address, policy.connect_timeout)
        except WireError as error:
            return NotOpened(error.failure, Ends(host.name, address, source.address))
        ends = Ends(host.name, address, used)
        greeted: asyncio.Future[Any] = loop.create_future()
        connection.run(greet(source.host_name or self._vmta.host_name or self._host_name), greeted.set_result)
        try:
            result = await greeted
        except asyncio.CancelledError:
            connection.abort()
            raise
        if isinstance(result, Refused):
            connection.quit()
            return NotOpened(result.answer.result, ends)
        return Opened(connection, ends, result)

    def _source(self, sources: tuple[str, ...], address: str) -> SourceHost:
        """The source of the destination's IP version."""
        fitting = [source for source in sources if (":" in source) == (":" in address)]
        return self._names.get(fitting[0], SourceHost(fitting[0])) if fitting else SourceHost("")


def _families(sources: tuple[str, ...]) -> frozenset[int]:
    """The IP versions of the sources; without any, whatever the system has."""
    return frozenset(6 if ":" in source else 4 for source in sources) or frozenset((4, 6))


def timeouts(policy: DomainPolicy) -> dict[Stage, float]:
    """Seconds to wait at each stage: RFC 5321 section 4.5.3.2 where no directive says otherwise."""
    return {
        Stage.GREETING: policy.smtp_greeting_timeout,
        Stage.EHLO: 300.0,
        Stage.MAIL: 300.0,
        Stage.RCPT: 300.0,
        Stage.DATA: 120.0,
        Stage.EOD: policy.data_send_timeout + policy.smtp_data_termination_timeout,
    }
