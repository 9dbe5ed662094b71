from __future__ import annotations

import pytest

from spoolmta import bounce, record
from spoolmta.columns import MORE, USUAL
from spoolmta.model import Answer, Failure, FailureKind, Recipient, Reply, Stage
from spoolmta.verdict import judge

ATTEMPT = record.Attempt(
    logged="2026-01-02 03:04:05+0000",
    queued="2026-01-02 03:04:04+0000",
    orig="s@a.b",
    source_type="pickup",
    source_mta="",
    source_ip="127.0.0.11",
    host="mx.example.com",
    destination_ip="192.0.2.1",
    esmtp="SIZE,PIPELINING",
    size=123,
    vmta="vmta1",
    job="job",
    envid="env",
    queue="example.com/vmta1",
    pool="",
    entry_id="1.M1P1Q1.mx",
    attempts=2,
)
RECIPIENT = Recipient("r@example.com", "example.com", orcpt="rfc822;r@example.com")


def row(answer: Answer) -> dict[str, str]:
    values = record.recipient_row(ATTEMPT, RECIPIENT, answer, judge(answer), bounce.Classifier())
    return dict(zip(USUAL["d"], values, strict=False))


def test_a_delivery_is_a_d_row_in_the_columns_of_the_log() -> None:
    assert row(Answer(Stage.EOD, Reply(250, ("2.0.0 ok",)))) == {
        "type": "d",
        "timeLogged": "2026-01-02 03:04:05+0000",
        "timeQueued": "2026-01-02 03:04:04+0000",
        "orig": "s@a.b",
        "rcpt": "r@example.com",
        "orcpt": "rfc822;r@example.com",
        "dsnAction": "relayed",
        "dsnStatus": "2.0.0 (success)",
        "dsnDiag": "smtp;250 2.0.0 ok",
        "dsnMta": "mx.example.com (192.0.2.1)",
        "bounceCat": "",
        "srcType": "pickup",
        "srcMta": "",
        "dlvType": "smtp",
        "dlvSourceIp": "127.0.0.11",
        "dlvDestinationIp": "192.0.2.1",
        "dlvEsmtpAvailable": "SIZE,PIPELINING",
        "dlvSize": "123",
        "vmta": "vmta1",
        "jobId": "job",
        "envId": "env",
        "queue": "example.com/vmta1",
        "vmtaPool": "",
        "msgId": "1.M1P1Q1.mx",
        "attempts": "2",
    }


def test_a_bounce_is_a_b_row_with_a_category() -> None:
    bounced = row(Answer(Stage.RCPT, Reply(550, ("5.1.1 no such user",))))
    assert (bounced["type"], bounced["dsnAction"], bounced["dlvSize"]) == ("b", "failed", "")
    assert bounced["dsnStatus"] == "5.1.1 (bad destination mailbox address)"
    assert bounced["dsnDiag"] == "smtp;550 5.1.1 no such user"
    assert bounced["bounceCat"] == "bad-mailbox"


def test_a_deferral_is_a_t_row() -> None:
    deferred = row(Answer(Stage.RCPT, Reply(450, ("try later",))))
    assert (deferred["type"], deferred["dsnAction"], deferred["dsnStatus"][:5]) == ("t", "delayed", "4.0.0")


def test_the_class_of_the_status_is_that_of_the_reply() -> None:
    assert row(Answer(Stage.RCPT, Reply(450, ("5.1.1 no",))))["dsnStatus"].startswith("4.1.1")


def test_what_may_have_been_delivered_says_so() -> None:
    lost = row(Answer(Stage.EOD, Failure(FailureKind.LOST, "connection lost")))
    assert (lost["type"], lost["dsnDiag"]) == ("t", "smtp;connection lost (possible duplicate)")


def test_an_expired_recipient_is_a_b_row_with_the_last_reason() -> None:
    expired = row(Answer(Stage.RESOLVE, record.expired("450 busy")))
    assert (expired["type"], expired["bounceCat"]) == ("b", "message-expired")
    assert expired["dsnStatus"].startswith("4.4.7")
    assert expired["dsnDiag"] == "smtp;delivery time expired, last: 450 busy"
    assert record.expired("").text == "delivery time expired"


@pytest.mark.parametrize("lines", [("x" * 5000,), ("x" * 3000, "y" * 3000), tuple("x" * 500)])
def test_a_long_reply_makes_no_long_row(lines: tuple[str, ...]) -> None:
    assert len(row(Answer(Stage.RCPT, Reply(550, lines)))["dsnDiag"]) < record.MAX_TEXT + 20


def test_every_kind_of_row_has_its_columns() -> None:
    reply = Reply(421, ("busy",))
    queue = record.queue_row("t", reply, "mx", "127.0.0.11", "192.0.2.1", "vmta1", "example.com")
    receipt = record.receipt_row("t", "s@a.b", RECIPIENT, "pickup", "vmta1", "job", "env", "id")
    assert dict(zip(USUAL["tq"], queue, strict=True))["dsnMta"] == "mx (192.0.2.1)"
    assert dict(zip([*USUAL["r"], *MORE["r"]], receipt, strict=True))["msgId"] == "id"


@pytest.mark.parametrize("kind", FailureKind)
def test_every_failure_has_a_status(kind: FailureKind) -> None:
    status, diagnostic = record.status(Failure(kind, "x"))
    assert status[0] in "45"
    assert diagnostic == "smtp;x"
