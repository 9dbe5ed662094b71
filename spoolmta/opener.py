"""Opening a session: from a domain to a connection that has said EHLO, by way of its hosts and their addresses."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from spoolmta import verdict
from spoolmta.commons import Place
from spoolmta.here import here
from spoolmta.model import (
    Answer,
    Config,
    DomainPolicy,
    Failure,
    FailureKind,
    Host,
    Reply,
    SourceHost,
    Stage,
    Vmta,
)
from spoolmta.protection import Protection, Rules, problem
from spoolmta.resolver import Resolver, Unroutable
from spoolmta.smtp import starttls
from spoolmta.smtp.allowance import agree
from spoolmta.smtp.auth import authenticate
from spoolmta.smtp.client import Capabilities, Dialogue, Refused, Result, WireError
from spoolmta.smtp.starttls import PLAIN, Demand, Level
from spoolmta.spool.layout import Layout
from spoolmta.tls import Handshake, Sessions, Unloadable, context_for
from spoolmta.tls_channel import Channel
from spoolmta.transport import Connection, connect

HANDSHAKE_TIMEOUT = 60.0
"""Seconds for the reply to STARTTLS, and for the handshake: a host that hangs there is common enough (KumoMTA waits 5),
and where nobody demands TLS its mail still goes out."""
BROKEN_FOR = 3600.0
"""Seconds for which a host whose handshake failed gets its mail without TLS, so that not every connection pays for a
failure; where TLS is demanded it is tried all the same."""
MAX_BROKEN = 10_000


class Ends(msgspec.Struct, frozen=True):
    """Both ends of a session, as the log shows them; empty where it did not come to that."""

    host: str = ""
    address: str = ""
    source: str = ""
    tls_protocol: str = ""
    tls_cipher: str = ""


class Opened(msgspec.Struct, frozen=True):
    """A session that is ready for its first message. With a `refusal` it has an answer for every message already, the
    same for all, and sends nothing."""

    connection: Connection
    ends: Ends
    capabilities: Capabilities
    refusal: Answer | None = None
    place: Place | None = None


class NotOpened(msgspec.Struct, frozen=True):
    """No host let us in: the last thing that was said or went wrong, and where. `is_held`: a limit that is shared with
    others kept us from asking one of them."""

    failure: Reply | Failure
    ends: Ends
    stage: Stage = Stage.CONNECT
    was_resuming: bool = False
    is_held: bool = False

    @property
    def answer(self) -> Answer:
        return Answer(self.stage, self.failure)

    @property
    def is_ours(self) -> bool:
        """Whether the trouble is on our side: the receiver must not be blamed."""
        return isinstance(self.failure, Failure) and self.failure.kind in (FailureKind.LOCAL, FailureKind.UNBOUND)

    @property
    def unbound(self) -> str:
        """The source address that could not be bound, if that was it."""
        is_unbound = isinstance(self.failure, Failure) and self.failure.kind is FailureKind.UNBOUND
        return self.ends.source if is_unbound else ""


Trouble = Callable[[str, Answer, Ends], None]
"""Hears of every host that did not let us in: by way of which domain, what it said, and where."""


def _ignore(_domain: str, _answer: Answer, _ends: Ends) -> None:
    pass


Places = Callable[[str, str, str], Place | str]
"""A place for one more connection to (host, address) from a source, or the directive that forbids it."""


def _everywhere(_host: str, _address: str, _source: str) -> Place | str:
    return Place([])


class _Goal(msgspec.Struct, frozen=True):
    """One address of one host, and what a session there must have."""

    host: Host
    address: str
    source: SourceHost
    rules: Rules
    demand: Demand

    def in_the_clear(self) -> _Goal:
        return msgspec.structs.replace(self, demand=PLAIN)


class Opener:
    """Opens sessions for one VMTA."""

    def __init__(
        self,
        vmta: Vmta,
        config: Config,
        chance: random.Random,
        layout: Layout,
        on_trouble: Trouble = _ignore,
        places: Places = _everywhere,
    ) -> None:
        self._vmta = vmta
        self._places = places
        self._host_name = config.host_name
        trusted = config.dnssec_trusted
        self.resolver = Resolver(config.nameservers, chance, here=here(config), is_trusted=trusted)
        self._protection = Protection(config, self.resolver, layout)
        self._names = {host.address: host for host in vmta.source_hosts}
        self._sessions = Sessions()
        self._broken: dict[str, float] = {}
        self._shunned: dict[str, float] = {}
        self._on_trouble = on_trouble

    async def open(
        self, domain: str, policy: DomainPolicy, sources: tuple[str, ...], on_lost: Callable[[], None]
    ) -> Opened | NotOpened:
        """Try the domain's hosts in order, and their addresses, up to mx-connection-attempts (a zone with 10,000 black
        holes must not hold a session for ever), from the source of their IP version (from whatever the system chooses
        if there is none at all); the first that greets us well, as safe as demanded."""
        try:
            route = await self.resolver.route(domain, policy)
        except Unroutable as error:
            return NotOpened(error.failure, Ends())
        rules = await self._protection.rules(policy.queue_to or domain, policy, route)
        result = await self._open(rules, sources, on_lost)
        if isinstance(result, NotOpened) and rules.enforced is not None:
            changed = await self._protection.changed(rules)
            if changed is not None:
                return await self._open(changed, sources, on_lost)
        return result

    async def _open(self, rules: Rules, sources: tuple[str, ...], on_lost: Callable[[], None]) -> Opened | NotOpened:
        result = NotOpened(Failure(FailureKind.NO_HOST, f"no usable host for {rules.domain}"), Ends())
        held: NotOpened | None = None
        tries = 0
        policy = rules.policy
        for host in self._in_order(rules.route.hosts):
            demand = await self._protection.demand(rules, host, _families(sources))
            if isinstance(demand, Failure):
                result = NotOpened(demand, Ends(host.name))
                continue
            addresses = await self.resolver.addresses(host.name, _families(sources))
            if isinstance(addresses, Failure):
                result = NotOpened(addresses, Ends(host.name))
                continue
            if not _is_named(host, policy) and any(self.resolver.here.is_own(address) for address in addresses):
                loop = _loop(rules, host)
                if host.lookup_mx:
                    result = NotOpened(loop, Ends(host.name))
                    continue
                # The hosts behind this one are worse than we are, and may only send the mail to us (RFC 5321 5.1).
                if host is not rules.route.hosts[0]:
                    return result
                # A name that the operator has written (queue-to) may be wrong, which is no reason to bounce.
                return NotOpened(loop, Ends(host.name)) if policy.queue_to else _loops_back(rules, host, loop, on_lost)
            for address in addresses:
                tries += 1
                if tries > policy.mx_connection_attempts:
                    return held or result
                attempt = await self._try_in_place(
                    _Goal(host, address, self._source(sources, address), rules, demand), on_lost
                )
                if isinstance(attempt, Opened):
                    return attempt
                if attempt.is_held:
                    held = attempt
                    continue
                result = attempt
                self._on_trouble(rules.domain, attempt.answer, attempt.ends)
        return held or result

    async def _try_in_place(self, goal: _Goal, on_lost: Callable[[], None]) -> Opened | NotOpened:
        """One address of a host, if those who share its limits leave us a place, which is ours until the socket is
        closed."""
        place = self._places(goal.host.name, goal.address, goal.source.address)
        if isinstance(place, str):
            ends = Ends(goal.host.name, goal.address, goal.source.address)
            return NotOpened(Failure(FailureKind.LOCAL, place), ends, is_held=True)
        attempt: Opened | NotOpened | None = None
        try:
            attempt = await self._try(goal, on_lost)
        finally:
            if isinstance(attempt, Opened):
                attempt.connection.when_gone(place.leave)
            else:
                place.leave()
        return msgspec.structs.replace(attempt, place=place) if isinstance(attempt, Opened) else attempt

    async def _try(self, goal: _Goal, on_lost: Callable[[], None]) -> Opened | NotOpened:
        """One address of a host: with TLS as demanded, where TLS fails and nobody demands it once more without."""
        if goal.demand.level is Level.OPPORTUNISTIC and self._is_broken(goal.host):
            goal = goal.in_the_clear()
        attempt = await self._attempt(goal, on_lost)
        if isinstance(attempt, NotOpened) and attempt.was_resuming and attempt.stage is Stage.STARTTLS:
            attempt = await self._attempt(goal, on_lost)  # the session is forgotten by now
        if isinstance(attempt, Opened) or not starttls.may_retry_plain(goal.demand, attempt.answer):
            return attempt
        self._note_broken(goal.host)
        return await self._attempt(goal.in_the_clear(), on_lost)

    async def _attempt(self, goal: _Goal, on_lost: Callable[[], None]) -> Opened | NotOpened:
        loop = asyncio.get_running_loop()
        policy, host, address, source = goal.rules.policy, goal.host, goal.address, goal.source
        ends = Ends(host.name, address, source.address)
        connection = Connection(loop, timeouts(policy), on_lost, policy.smtp_multiple_line_response_timeout)
        try:
            connection.handshake = self._handshake(goal)
            port = host.port or policy.default_smtp_port
            used = await connect(loop, connection, address, port, source.address, policy.connect_timeout)
        except Unloadable as error:
            return NotOpened(Failure(FailureKind.LOCAL, str(error)), ends)
        except WireError as error:
            return NotOpened(error.failure, ends)
        name = source.host_name or self._vmta.host_name or self._host_name
        result = await connection.converse(starttls.open_session(name, goal.demand))
        ends = _ends(host, address, used, connection.channel)
        if isinstance(result, Capabilities):
            self._keep_session(goal, connection)
            if policy.auth_username and _is_named(host, policy):
                result = await connection.converse(_login(result, policy, connection.is_encrypted))
        if not isinstance(result, Refused):
            return Opened(connection, ends, agree(result, policy))
        connection.quit()
        answer = result.answer
        if policy.bounce_upon_5xx_greeting and verdict.judge(answer, policy).outcome is not None:
            return Opened(connection, ends, Capabilities(), answer)
        return NotOpened(answer.result, ends, answer.stage, self._forget_session(goal, connection))

    def shun(self, host: str, seconds: float) -> None:
        """Leave a host alone for a while: it comes last."""
        self._shunned[host] = time.monotonic() + seconds

    def heed(self, host: str, result: Result, policy: DomainPolicy) -> None:
        """A host that ends a session with 421 comes last for a while, where that is what 421 means."""
        if policy.smtp_421_means_mx_unavailable and any(
            isinstance(answer.result, Reply) and answer.result.code == 421 for answer in result.answers
        ):
            # Longer than what was refused there waits, or it would be the first to come back to that host.
            self.shun(host, policy.retry_after[0] + policy.retry_recipients_after[0])

    def _in_order(self, hosts: tuple[Host, ...]) -> list[Host]:
        """The hosts, best first, those last that are to be left alone: where there are no others, they will do."""
        if not self._shunned:
            return list(hosts)
        now = time.monotonic()
        self._shunned = {host: until for host, until in self._shunned.items() if until > now}
        return sorted(hosts, key=lambda host: host.name in self._shunned)

    def _handshake(self, goal: _Goal) -> Handshake | None:
        """How TLS begins there; None where it will not. Raises Unloadable."""
        demand, policy = goal.demand, goal.rules.policy
        if demand.level is Level.NONE:
            return None
        context = context_for(policy, demand.level)
        session = None
        if policy.reuse_ssl_session and demand.level is not Level.DANE:  # where the certificate must be seen each time
            session = self._sessions.find(context, goal.host.name, goal.address)
        names = (goal.host.name, goal.rules.domain)
        return Handshake(context, goal.host.name, session, lambda channel: problem(demand, channel, names))

    def _keep_session(self, goal: _Goal, connection: Connection) -> None:
        if connection.handshake and connection.channel and goal.rules.policy.reuse_ssl_session:
            self._sessions.keep(connection.handshake.context, goal.host.name, goal.address, connection.channel)

    def _forget_session(self, goal: _Goal, connection: Connection) -> bool:
        """Whether there was one to resume."""
        if connection.handshake is None or connection.handshake.session is None:
            return False
        self._sessions.forget(connection.handshake.context, goal.host.name, goal.address)
        return True

    def _is_broken(self, host: Host) -> bool:
        until = self._broken.get(host.name)
        return until is not None and until > time.monotonic()

    def _note_broken(self, host: Host) -> None:
        if len(self._broken) >= MAX_BROKEN:
            del self._broken[next(iter(self._broken))]
        self._broken[host.name] = time.monotonic() + BROKEN_FOR

    def _source(self, sources: tuple[str, ...], address: str) -> SourceHost:
        """The source of the destination's IP version."""
        fitting = [source for source in sources if (":" in source) == (":" in address)]
        return self._names.get(fitting[0], SourceHost(fitting[0])) if fitting else SourceHost("")


def _families(sources: tuple[str, ...]) -> frozenset[int]:
    """The IP versions of the sources; without any, whatever the system has."""
    return frozenset(6 if ":" in source else 4 for source in sources) or frozenset((4, 6))


def _is_named(host: Host, policy: DomainPolicy) -> bool:
    """Whether the operator has named the host itself, and not the DNS."""
    return bool(policy.smtp_hosts) and not host.lookup_mx


def _login(offered: Capabilities, policy: DomainPolicy, is_encrypted: bool) -> Dialogue:
    """Only a host that the operator has named is told our password, never one that a stranger's MX record names."""
    return authenticate(
        offered,
        policy.auth_username,
        policy.auth_password.text,
        is_encrypted=is_encrypted,
        allow_plain=policy.use_unencrypted_plain_auth,
    )


def _loop(rules: Rules, host: Host) -> Failure:
    text = f"mail for {rules.domain} loops back to us: its host {host.name} is this machine"
    return Failure(FailureKind.LOOP, text)


def _loops_back(rules: Rules, host: Host, loop: Failure, on_lost: Callable[[], None]) -> Opened:
    """A session to nobody: all its mail would come back to us."""
    connection = Connection(asyncio.get_running_loop(), timeouts(rules.policy), on_lost)
    return Opened(connection, Ends(host.name), Capabilities(), Answer(Stage.RESOLVE, loop))


def _ends(host: Host, address: str, source: str, channel: Channel | None) -> Ends:
    if channel is None or not channel.is_ready:
        return Ends(host.name, address, source)
    return Ends(host.name, address, source, channel.protocol, channel.cipher)


def timeouts(policy: DomainPolicy) -> dict[Stage, float]:
    """Seconds to wait at each stage: RFC 5321 section 4.5.3.2 where no directive says otherwise."""
    return {
        Stage.GREETING: policy.smtp_greeting_timeout,
        Stage.EHLO: 300.0,
        Stage.AUTH: 300.0,
        Stage.STARTTLS: HANDSHAKE_TIMEOUT,
        Stage.MAIL: 300.0,
        Stage.RCPT: 300.0,
        Stage.DATA: 120.0,
        Stage.TRANSFER: policy.data_send_timeout,
        Stage.EOD: policy.data_send_timeout + policy.smtp_data_termination_timeout,
    }
