from __future__ import annotations

import pytest

from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Outcome, Reply, Scope, Stage
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
        (Stage.AUTH, 535, None, Scope.HOST),
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
        (Stage.MAIL, FailureKind.TOO_BIG, Verdict(Outcome.BOUNCED, Scope.RECIPIENT)),
        (Stage.MAIL, FailureKind.UNCONVERTIBLE, Verdict(Outcome.BOUNCED, Scope.RECIPIENT)),
        (Stage.RESOLVE, FailureKind.LOOP, Verdict(Outcome.BOUNCED, Scope.SITE)),
        (Stage.AUTH, FailureKind.NO_LOGIN, Verdict(None, Scope.HOST)),
        (Stage.TRANSFER, FailureKind.TIMEOUT, Verdict(None, Scope.SESSION)),
    ],
)
def test_a_failure_means_what_the_table_says(stage: Stage, kind: FailureKind, expected: Verdict) -> None:
    assert judge(Answer(stage, Failure(kind, "x"))) == expected


LOST, SILENCE = Failure(FailureKind.LOST, "x"), Failure(FailureKind.TIMEOUT, "x")


@pytest.mark.parametrize(
    ("directive", "answer", "outcome", "default"),
    [
        ("bounce_upon_5xx_greeting", Answer(Stage.GREETING, Reply(554)), Outcome.BOUNCED, None),
        ("bounce_upon_5xx_greeting", Answer(Stage.GREETING, Reply(421)), None, None),
        ("bounce_upon_5xx_greeting", Answer(Stage.EHLO, Reply(554)), None, None),
        ("bounce_upon_transfer_failure", Answer(Stage.TRANSFER, SILENCE), Outcome.BOUNCED, None),
        ("bounce_upon_transfer_failure", Answer(Stage.EOD, LOST), Outcome.BOUNCED, None),
        ("bounce_upon_transfer_failure", Answer(Stage.EOD, SILENCE), None, None),
        ("bounce_upon_transfer_failure", Answer(Stage.RCPT, LOST), None, None),
        ("assume_delivery_upon_data_termination_timeout", Answer(Stage.EOD, SILENCE), Outcome.DELIVERED, None),
        ("assume_delivery_upon_data_termination_timeout", Answer(Stage.EOD, LOST), None, None),
        ("assume_delivery_upon_data_termination_timeout", Answer(Stage.TRANSFER, SILENCE), None, None),
    ],
)
def test_a_directive_changes_what_it_is_about_and_nothing_else(
    directive: str, answer: Answer, outcome: Outcome | None, default: Outcome | None
) -> None:
    assert judge(answer).outcome is default
    assert judge(answer, DomainPolicy(**{directive: True})).outcome is outcome


@pytest.mark.parametrize(
    ("stage", "text", "status"),
    [(Stage.RCPT, "sorry", "5.1.1"), (Stage.RCPT, "5.7.1 sorry", ""), (Stage.MAIL, "sorry", ""), (Stage.EOD, "no", "")],
)
def test_a_553_to_a_recipient_without_a_status_means_no_such_mailbox(stage: Stage, text: str, status: str) -> None:
    answer = Answer(stage, Reply(553, (text,)))
    assert judge(answer).status == status
    assert judge(answer, DomainPolicy(smtp_553_means_invalid_mailbox=False)).status == ""
