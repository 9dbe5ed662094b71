from __future__ import annotations

import pytest

from spoolmta.model import Answer, Failure, FailureKind, Outcome, Reply, Scope, Stage
from spoolmta.verdict import Verdict, judge


@pytest.mark.parametrize(
    ("stage", "code", "outcome", "scope"),
    [
        (Stage.EOD, 250, Outcome.DELIVERED, Scope.RECIPIENT),
        (Stage.EOD, 550, Outcome.BOUNCED, Scope.MESSAGE),
        (Stage.EOD, 450, None, Scope.MESSAGE),
        (Stage.DATA, 554, Outcome.BOUNCED, Scope.MESSAGE),
        (Stage.MAIL, 550, Outcome.BOUNCED, Scope.MESSAGE),
        (Stage.MAIL, 451, None, Scope.MESSAGE),
        (Stage.RCPT, 550, Outcome.BOUNCED, Scope.RECIPIENT),
        (Stage.RCPT, 452, None, Scope.RECIPIENT),
        (Stage.RCPT, 421, None, Scope.SESSION),
        (Stage.EOD, 421, None, Scope.SESSION),
        (Stage.RCPT, 250, None, Scope.SESSION),
        (Stage.GREETING, 554, None, Scope.HOST),
        (Stage.EHLO, 421, None, Scope.HOST),
    ],
)
def test_a_reply_means_what_the_table_says(stage: Stage, code: int, outcome: Outcome | None, scope: Scope) -> None:
    assert judge(Answer(stage, Reply(code))) == Verdict(outcome, scope)


@pytest.mark.parametrize(
    ("stage", "kind", "expected"),
    [
        (Stage.EOD, FailureKind.LOST, Verdict(None, Scope.SESSION, possible_duplicate=True)),
        (Stage.EOD, FailureKind.TIMEOUT, Verdict(None, Scope.SESSION, possible_duplicate=True)),
        (Stage.DATA, FailureKind.LOST, Verdict(None, Scope.SESSION)),
        (Stage.MAIL, FailureKind.PROTOCOL, Verdict(None, Scope.SESSION)),
        (Stage.CONNECT, FailureKind.REFUSED, Verdict(None, Scope.HOST)),
        (Stage.RESOLVE, FailureKind.NO_DOMAIN, Verdict(Outcome.BOUNCED, Scope.SITE)),
        (Stage.RESOLVE, FailureKind.NULL_MX, Verdict(Outcome.BOUNCED, Scope.SITE)),
        (Stage.RESOLVE, FailureKind.NO_HOST, Verdict(Outcome.BOUNCED, Scope.SITE)),
        (Stage.RESOLVE, FailureKind.DNS_TEMPORARY, Verdict(None, Scope.SITE)),
        (Stage.RESOLVE, FailureKind.HELD, Verdict(None, Scope.SITE)),
        (Stage.RESOLVE, FailureKind.EXPIRED, Verdict(Outcome.EXPIRED, Scope.RECIPIENT)),
        (Stage.RCPT, FailureKind.UNSENDABLE, Verdict(Outcome.BOUNCED, Scope.RECIPIENT)),
    ],
)
def test_a_failure_means_what_the_table_says(stage: Stage, kind: FailureKind, expected: Verdict) -> None:
    assert judge(Answer(stage, Failure(kind, "x"))) == expected
