"""What an answer means, and how far it reaches.

| where | reply or failure | recipient | scope |
|---|---|---|---|
| end of data | 2xx | delivered | recipient |
| end of data | silence, with assume-delivery-upon-data-termination-timeout | delivered | recipient |
| content | trouble, or at its end a lost connection, with bounce-upon-transfer-failure | bounced | message |
| anywhere | 421, a lost or silent connection, no SMTP | deferred | session |
| MAIL, DATA, end of data | 4xx / 5xx | deferred / bounced | message |
| RCPT | 553 without a status code, with smtp-553-means-invalid-mailbox | bounced as 5.1.1 | recipient |
| RCPT | 4xx / 5xx | deferred / bounced | recipient |
| greeting | 5xx, with bounce-upon-5xx-greeting | bounced | site |
| connect, greeting, EHLO, STARTTLS, AUTH | anything else | deferred | host: the next one is tried |
| anywhere | too large, not to be made 7-bit, not to be named there | bounced | recipient |
| resolve | does not exist, accepts no mail, no usable host, leads to us | bounced | site |
| resolve | DNS trouble | deferred | site |
| anywhere | what a response rule says | bounced or deferred | message |
| waiting | its time is over, its queue bounces, the operator deletes it | expired, bounced, deleted | recipient |

Laws: total; DELIVERED only at the end of data, and there only for 2xx or for an assumed delivery; a failure (not a
reply) at the end of data may have been a delivery, and is flagged so. A failure while the content goes out is none.
A 5xx greeting defers by default: it speaks of our address, not of the recipients (PowerMTA's default bounces).
"""

from __future__ import annotations

import msgspec

from spoolmta import bounce
from spoolmta.model import Answer, DomainPolicy, FailureKind, Outcome, Reply, Ruling, Scope, Stage


class Verdict(msgspec.Struct, frozen=True):
    """`outcome` None means deferred. `possible_duplicate`: it may have been delivered all the same. `status`: what it
    means where the words of the answer do not say it."""

    outcome: Outcome | None
    scope: Scope
    possible_duplicate: bool = False
    status: str = ""


DELIVERED = Verdict(Outcome.DELIVERED, Scope.RECIPIENT)
ASSUMED = Verdict(Outcome.DELIVERED, Scope.RECIPIENT, status="2.0.0")
NO_MAILBOX = Verdict(Outcome.BOUNCED, Scope.RECIPIENT, status="5.1.1")
DEFAULTS = DomainPolicy()

_SETTLED = {
    FailureKind.EXPIRED: Outcome.EXPIRED,
    FailureKind.CONDEMNED: Outcome.BOUNCED,
    FailureKind.RETURNED: Outcome.BOUNCED,
    FailureKind.DELETED: Outcome.DELETED,
}
_HOST_STAGES = frozenset({Stage.CONNECT, Stage.GREETING, Stage.EHLO, Stage.STARTTLS, Stage.AUTH})
_FINAL_AT_RESOLVE = frozenset({FailureKind.NO_DOMAIN, FailureKind.NULL_MX, FailureKind.NO_HOST, FailureKind.LOOP})
_FINAL_FOR_MESSAGE = frozenset({FailureKind.UNSENDABLE, FailureKind.TOO_BIG, FailureKind.UNCONVERTIBLE})


def judge(answer: Answer, policy: DomainPolicy = DEFAULTS) -> Verdict:
    """The meaning of one answer, by the table above."""
    stage, result = answer.stage, answer.result
    if answer.ruling is not None:
        return Verdict(Outcome.BOUNCED if answer.ruling is Ruling.BOUNCE else None, Scope.MESSAGE)
    if isinstance(result, Reply):
        return _judge_reply(stage, result, policy)
    return _judge_failure(stage, result.kind, policy)


def _judge_reply(stage: Stage, reply: Reply, policy: DomainPolicy) -> Verdict:
    code = reply.code
    if stage is Stage.EOD and 200 <= code < 300:
        return DELIVERED
    if stage in _HOST_STAGES or stage is Stage.RESOLVE:
        if stage is Stage.GREETING and code >= 500 and policy.bounce_upon_5xx_greeting:
            return Verdict(Outcome.BOUNCED, Scope.SITE)
        return Verdict(None, Scope.HOST)
    if code == 421 or code < 400:
        return Verdict(None, Scope.SESSION)
    if code == 553 and stage is Stage.RCPT and policy.smtp_553_means_invalid_mailbox and _has_no_status(reply):
        return NO_MAILBOX
    scope = Scope.RECIPIENT if stage is Stage.RCPT else Scope.MESSAGE
    return Verdict(Outcome.BOUNCED if code >= 500 else None, scope)


def _has_no_status(reply: Reply) -> bool:
    return bounce.status_of(reply) == "5.0.0"


def _judge_failure(stage: Stage, kind: FailureKind, policy: DomainPolicy) -> Verdict:
    if stage is Stage.EOD:
        if kind is FailureKind.TIMEOUT and policy.assume_delivery_upon_data_termination_timeout:
            return ASSUMED
        if kind is FailureKind.LOST and policy.bounce_upon_transfer_failure:
            return Verdict(Outcome.BOUNCED, Scope.MESSAGE, possible_duplicate=True)
        return Verdict(None, Scope.SESSION, possible_duplicate=True)
    if kind in _SETTLED:
        return Verdict(_SETTLED[kind], Scope.RECIPIENT)
    if kind in _FINAL_FOR_MESSAGE:
        return Verdict(Outcome.BOUNCED, Scope.RECIPIENT)
    if stage is Stage.TRANSFER and policy.bounce_upon_transfer_failure:
        return Verdict(Outcome.BOUNCED, Scope.MESSAGE)
    if stage is Stage.RESOLVE:
        return Verdict(Outcome.BOUNCED if kind in _FINAL_AT_RESOLVE else None, Scope.SITE)
    if stage in _HOST_STAGES:
        return Verdict(None, Scope.HOST)
    return Verdict(None, Scope.SESSION)
