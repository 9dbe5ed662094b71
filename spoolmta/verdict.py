"""What an answer means, and how far it reaches.

| where | reply or failure | recipient | scope |
|---|---|---|---|
| end of data | 2xx | delivered | recipient |
| anywhere | 421, a lost or silent connection, no SMTP | deferred | session |
| MAIL, DATA, end of data | 4xx / 5xx | deferred / bounced | message |
| RCPT | 4xx / 5xx | deferred / bounced | recipient |
| connect, greeting, EHLO | anything | deferred | host: the next one is tried |
| resolve | does not exist, accepts no mail, no usable host | bounced | site |
| anywhere | the operator deletes / bounces it | deleted / bounced | recipient |
| resolve | DNS trouble | deferred | site |

Laws: total; DELIVERED only at the end of data and only for 2xx; a failure (not a reply) at the end of data may
have been a delivery, and is flagged so.
A 5xx greeting defers: it speaks of our address, not of the recipients (PowerMTA's default bounces the queue).
"""

from __future__ import annotations

from spoolmta.model import Answer, FailureKind, Outcome, Reply, Scope, Stage, Struct


class Verdict(Struct, frozen=True):
    """`outcome` None means deferred. `possible_duplicate`: it may have been delivered all the same."""

    outcome: Outcome | None
    scope: Scope
    possible_duplicate: bool = False


DELIVERED = Verdict(Outcome.DELIVERED, Scope.RECIPIENT)

_HOST_STAGES = frozenset({Stage.CONNECT, Stage.GREETING, Stage.EHLO})
_FINAL_AT_RESOLVE = frozenset({FailureKind.NO_DOMAIN, FailureKind.NULL_MX, FailureKind.NO_HOST})


def judge(answer: Answer) -> Verdict:
    """The meaning of one answer, by the table above."""
    stage, result = answer.stage, answer.result
    if isinstance(result, Reply):
        return _judge_reply(stage, result)
    kind = result.kind
    if stage is Stage.EOD:
        return Verdict(None, Scope.SESSION, possible_duplicate=True)
    if kind is FailureKind.EXPIRED:
        return Verdict(Outcome.EXPIRED, Scope.RECIPIENT)
    if kind is FailureKind.DELETED:
        return Verdict(Outcome.DELETED, Scope.RECIPIENT)
    if kind in (FailureKind.UNSENDABLE, FailureKind.RETURNED):
        return Verdict(Outcome.BOUNCED, Scope.RECIPIENT)
    if stage is Stage.RESOLVE:
        return Verdict(Outcome.BOUNCED if kind in _FINAL_AT_RESOLVE else None, Scope.SITE)
    if stage in _HOST_STAGES:
        return Verdict(None, Scope.HOST)
    return Verdict(None, Scope.SESSION)


def _judge_reply(stage: Stage, reply: Reply) -> Verdict:
    code = reply.code
    if stage is Stage.EOD and 200 <= code < 300:
        return DELIVERED
    if stage in _HOST_STAGES or stage is Stage.RESOLVE:
        return Verdict(None, Scope.HOST)
    if code == 421 or code < 400:
        return Verdict(None, Scope.SESSION)
    scope = Scope.RECIPIENT if stage is Stage.RCPT else Scope.MESSAGE
    return Verdict(Outcome.BOUNCED if code >= 500 else None, scope)
