"""How safe a session must be, and the dialogue that makes it so (RFC 3207).

| level | without TLS | certificate |
|---|---|---|
| none | always | |
| opportunistic | where TLS is not offered, is refused or fails | not looked at |
| required | never | not looked at |
| verified | never | valid, for the host's name |
| dane | never | as the TLSA records say (RFC 7672) |

Opportunistic TLS never looks at the certificate: who refuses a bad one would have to send in the clear instead.
What the server said outside TLS is forgotten once TLS is up (RFC 3207 section 4.2). A server that has anything to say
between its 220 and the handshake may be somebody in between, who puts words into the session that comes
(CVE-2021-38371): the driver ends such a session, because the 220 was the only reply to a command.
"""

from __future__ import annotations

import enum

import msgspec

from spoolmta.dane import Tlsa
from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Reply, Stage
from spoolmta.smtp.client import Greeting, Refused, Step, WireError, greet, say_hello


class Level(enum.Enum):
    """How safe a session must be, from weak to strong."""

    NONE = "none"
    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"
    VERIFIED = "verified"
    DANE = "dane"


class Demand(msgspec.Struct, frozen=True):
    """What a session with a host must have; `reason` is who wants it, for the log: a directive, MTA-STS, DANE."""

    level: Level
    reason: str = ""
    tlsa: tuple[Tlsa, ...] = ()

    @property
    def may_be_plain(self) -> bool:
        return self.level in (Level.NONE, Level.OPPORTUNISTIC)


PLAIN = Demand(Level.NONE)
_ORDER = tuple(Level)


def configured(policy: DomainPolicy) -> Demand:
    """What the operator asks for. Who requires TLS gets it, whatever use-starttls says: the stricter one holds."""
    if policy.smtp_tls_verify:
        return Demand(Level.VERIFIED, "smtp-tls-verify")
    if policy.require_starttls:
        return Demand(Level.REQUIRED, "require-starttls")
    return Demand(Level.OPPORTUNISTIC) if policy.use_starttls else PLAIN


def kept_apart(domain: str, policy: DomainPolicy) -> frozenset[str]:
    """What domains must have in common, besides their hosts, for one to use the sessions of another: all that decides
    what TLS a session has. Nothing where all of it is as usual. DANE and MTA-STS speak of one domain."""
    if policy.use_dane or policy.use_mta_sts:
        return frozenset((f"TLS of {domain}",))
    terms = _terms(policy)
    return frozenset() if terms == _terms(DomainPolicy()) else frozenset((f"TLS {terms}",))


def _terms(policy: DomainPolicy) -> tuple[str, ...]:
    level, least = configured(policy).level.value, policy.smtp_tls_min_version
    return level, least, policy.smtp_tls_ciphers, policy.smtp_tls_ca_file, policy.smtp_client_certificate


def combined(configured: Demand, is_enforced: bool, tlsa: tuple[Tlsa, ...] | None) -> Demand:
    """What the operator, MTA-STS (does the domain's policy enforce it?) and DANE (the host's usable records; None where
    there are no records) demand together: the strictest. DANE comes first, because a failure of DANE must not be made
    good by MTA-STS (RFC 8461 section 2)."""
    demands = [configured]
    if is_enforced:
        demands.append(Demand(Level.VERIFIED, "MTA-STS"))
    if tlsa is not None:
        demands.append(Demand(Level.DANE if tlsa else Level.REQUIRED, "DANE", tlsa))
    return max(demands, key=lambda demand: _ORDER.index(demand.level))


def open_session(ehlo_name: str, demand: Demand) -> Greeting:
    """Greet, begin TLS where it is wanted and offered, greet again inside it. Raises Refused: with Stage.STARTTLS
    when it is TLS that stands in the way."""
    offered = yield from greet(ehlo_name)
    if demand.level is Level.NONE:
        return offered
    if "STARTTLS" not in offered:
        if demand.may_be_plain:
            return offered
        raise _no_tls(demand, "the host does not offer STARTTLS")
    try:
        reply = (yield Step(b"STARTTLS\r\n", 1, Stage.STARTTLS))[0]
        if reply.code == 421:
            raise Refused(Answer(Stage.EHLO, reply))
        if reply.code != 220:
            if demand.may_be_plain:
                return offered
            raise _no_tls(demand, f"the host refuses STARTTLS: {reply}")
        yield Step(b"", 0, Stage.STARTTLS, starts_tls=True)
    except WireError as error:
        if error.replies and error.replies[-1].code == 421:
            raise Refused(Answer(Stage.EHLO, error.replies[-1])) from None
        raise _failed(demand, error.failure) from None
    try:
        return (yield from say_hello(ehlo_name, offered.greeting))
    except Refused as refused:
        # With TLS 1.3 a server that does not like the handshake says so when we think it is done (RFC 8446, 4.4.2): a
        # connection that ends at the first command inside TLS is a handshake that failed.
        result = refused.answer.result
        if isinstance(result, Failure) and result.kind in (FailureKind.TLS, FailureKind.LOST):
            raise _failed(demand, result) from None
        raise


def _no_tls(demand: Demand, what: str) -> Refused:
    return Refused(Answer(Stage.STARTTLS, Failure(FailureKind.NO_TLS, f"{what}, which {demand.reason} demands")))


def _failed(demand: Demand, failure: Failure) -> Refused:
    kind, text = failure.kind, failure.text
    if kind is FailureKind.LOST:
        kind, text = FailureKind.TLS, f"{text} in the TLS handshake"
    if not demand.may_be_plain:
        text += f" ({demand.reason} demands TLS)"
    return Refused(Answer(Stage.STARTTLS, Failure(kind, text)))


def may_retry_plain(demand: Demand, answer: Answer) -> bool:
    """Whether a session that failed may be tried without TLS: only where nobody demands it, and only when it is the
    handshake that failed; not when the server was out of step, which may be somebody in between."""
    result = answer.result
    if answer.stage is not Stage.STARTTLS or isinstance(result, Reply):
        return False
    return demand.level is Level.OPPORTUNISTIC and result.kind is not FailureKind.PROTOCOL
