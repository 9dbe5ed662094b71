"""Opening a session: from a domain to a connection that has said EHLO, by way of its hosts and their addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from spoolmta import verdict
from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Host, Reply, SourceHost, Stage, Struct, Vmta
from spoolmta.resolver import Resolver, Unroutable
from spoolmta.smtp.allowance import agree
from spoolmta.smtp.auth import authenticate
from spoolmta.smtp.client import Capabilities, Dialogue, Refused, Result, WireError, greet
from spoolmta.transport import Connection, connect


class Ends(Struct, frozen=True):
    """Both ends of a session, as the log shows them; empty where it did not come to that."""

    host: str = ""
    address: str = ""
    source: str = ""


class Opened(Struct, frozen=True):
    """A session that is ready for its first message. With a `refusal` it has an answer for every message already, the
    same for all, and sends nothing."""

    connection: Connection
    ends: Ends
    capabilities: Capabilities
    refusal: Answer | None = None


class NotOpened(Struct, frozen=True):
    """No host let us in: the last thing that was said or went wrong, and where."""

    failure: Reply | Failure
    ends: Ends

    @property
    def is_ours(self) -> bool:
        """Whether the trouble is on our side: the receiver must not be blamed."""
        return isinstance(self.failure, Failure) and self.failure.kind is FailureKind.LOCAL


class Opener:
    """Opens sessions for one VMTA: its addresses take turns, per connection."""

    def __init__(self, vmta: Vmta, host_name: str, resolver: Resolver) -> None:
        self._vmta = vmta
        self._host_name = host_name
        self.resolver = resolver
        self._turn = 0
        self._shunned: dict[str, float] = {}

    async def open(self, domain: str, policy: DomainPolicy, on_lost: Callable[[], None]) -> Opened | NotOpened:
        """Try the domain's hosts in order, and their addresses, up to mx-connection-attempts (a zone with 10,000 black
        holes must not hold a session for ever); the first that greets us well."""
        result = NotOpened(Failure(FailureKind.NO_HOST, f"no usable host for {domain}"), Ends())
        try:
            route = await self.resolver.route(domain, policy)
        except Unroutable as error:
            return NotOpened(error.failure, Ends())
        tries = 0
        for host in self._in_order(route.hosts):
            addresses = await self.resolver.addresses(host.name, self._families())
            if isinstance(addresses, Failure):
                result = NotOpened(addresses, Ends(host.name))
                continue
            if not policy.smtp_hosts and any(self.resolver.here.is_own(address) for address in addresses):
                # The hosts behind this one are worse than we are, and may only send the mail to us (RFC 5321 5.1).
                return _loops_back(domain, host, policy, on_lost) if host is route.hosts[0] else result
            for address in addresses:
                tries += 1
                if tries > policy.mx_connection_attempts:
                    return result
                attempt = await self._try(host, address, policy, on_lost)
                if isinstance(attempt, Opened):
                    return attempt
                result = attempt
        return result

    async def _try(
        self, host: Host, address: str, policy: DomainPolicy, on_lost: Callable[[], None]
    ) -> Opened | NotOpened:
        loop = asyncio.get_running_loop()
        source = self._choose_source(address)
        connection = Connection(loop, timeouts(policy), on_lost, policy.smtp_multiple_line_response_timeout)
        port = host.port or policy.default_smtp_port
        try:
            used = await connect(loop, connection, address, port, source.address, policy.connect_timeout)
        except WireError as error:
            return NotOpened(error.failure, Ends(host.name, address, source.address))
        ends = Ends(host.name, address, used)
        result = await _run(connection, greet(source.host_name or self._vmta.host_name or self._host_name))
        if isinstance(result, Capabilities) and policy.auth_username and policy.smtp_hosts:
            result = await _run(connection, _login(result, policy, connection.is_encrypted))
        if not isinstance(result, Refused):
            return Opened(connection, ends, agree(result, policy))
        connection.quit()
        answer = result.answer
        if policy.bounce_upon_5xx_greeting and verdict.judge(answer, policy).outcome is not None:
            return Opened(connection, ends, Capabilities(), answer)
        return NotOpened(answer.result, ends)

    def heed(self, host: str, result: Result, policy: DomainPolicy) -> None:
        """A host that ends a session with 421 comes last for a while, where that is what 421 means."""
        if policy.smtp_421_means_mx_unavailable and any(
            isinstance(answer.result, Reply) and answer.result.code == 421 for answer in result.answers
        ):
            # Longer than what was refused there waits, or it would be the first to come back to that host.
            pause = policy.retry_after[0] + policy.retry_recipients_after[0]
            self._shunned[host] = asyncio.get_running_loop().time() + pause

    def _in_order(self, hosts: tuple[Host, ...]) -> list[Host]:
        """The hosts, best first, those last that are to be left alone: where there are no others, they will do."""
        if not self._shunned:
            return list(hosts)
        now = asyncio.get_running_loop().time()
        self._shunned = {host: until for host, until in self._shunned.items() if until > now}
        return sorted(hosts, key=lambda host: host.name in self._shunned)

    def _choose_source(self, address: str) -> SourceHost:
        """The next of the VMTA's addresses of the destination's family."""
        wants_v6 = ":" in address
        fitting = [host for host in self._vmta.source_hosts if (":" in host.address) == wants_v6]
        if not fitting:
            return SourceHost("")
        self._turn += 1
        return fitting[self._turn % len(fitting)]

    def _families(self) -> frozenset[int]:
        """The IP versions this VMTA can send from; without addresses of its own, whatever the system has."""
        if not self._vmta.source_hosts:
            return frozenset((4, 6))
        return frozenset(6 if ":" in host.address else 4 for host in self._vmta.source_hosts)


async def _run(connection: Connection, dialogue: Dialogue) -> Any:
    """A dialogue's result, or the Refused it raised."""
    finished: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    connection.run(dialogue, finished.set_result)
    try:
        return await finished
    except asyncio.CancelledError:
        connection.abort()
        raise


def _login(offered: Capabilities, policy: DomainPolicy, is_encrypted: bool) -> Dialogue:
    """Only a host that the operator has named is told our password, never one that a stranger's MX record names."""
    return authenticate(
        offered,
        policy.auth_username,
        policy.auth_password.text,
        is_encrypted=is_encrypted,
        allow_plain=policy.use_unencrypted_plain_auth,
    )


def _loops_back(domain: str, host: Host, policy: DomainPolicy, on_lost: Callable[[], None]) -> Opened:
    """A session to nobody: all its mail would come back to us."""
    failure = Failure(FailureKind.LOOP, f"mail for {domain} loops back to us: its host {host.name} is this machine")
    connection = Connection(asyncio.get_running_loop(), timeouts(policy), on_lost)
    return Opened(connection, Ends(host.name), Capabilities(), Answer(Stage.RESOLVE, failure))


def timeouts(policy: DomainPolicy) -> dict[Stage, float]:
    """Seconds to wait at each stage: RFC 5321 section 4.5.3.2 where no directive says otherwise."""
    return {
        Stage.GREETING: policy.smtp_greeting_timeout,
        Stage.EHLO: 300.0,
        Stage.AUTH: 300.0,
        Stage.MAIL: 300.0,
        Stage.RCPT: 300.0,
        Stage.DATA: 120.0,
        Stage.TRANSFER: policy.data_send_timeout,
        Stage.EOD: policy.data_send_timeout + policy.smtp_data_termination_timeout,
    }
