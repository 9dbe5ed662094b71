from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from spoolmta import bounce
from spoolmta.model import FailureKind, Reply

LABELLED = Path(__file__).parents[2].parent / "shared" / "data" / "bounce" / "labelled.csv"


def category(line: str) -> str:
    reply = Reply(int(line[:3]), (line[4:],))
    return bounce.categorize(bounce.status_of(reply), reply.text)


@pytest.mark.parametrize(
    ("code", "lines", "status"),
    [
        (550, ("5.1.1 no such user",), "5.1.1"),
        (550, ("no such user",), "5.0.0"),
        (450, ("not now",), "4.0.0"),
        (250, ("2.1.5 ok",), "2.1.5"),
        (250, ("ok",), "2.0.0"),
        (450, ("5.1.1 no such user",), "4.1.1"),
        (550, ("4.7.1 go away",), "5.7.1"),
        (550, ("550 5.7.1 twice",), "5.7.1"),
        (550, ("first", "5.7.26 second"), "5.7.26"),
        (550, ("unknown user (#5.1.1)",), "5.1.1"),
        (550, ("5.7.0, denied",), "5.7.0"),
        (550, ("see 192.5.1.1 and version 4.16.55.1",), "5.0.0"),
        (550, ("5.1.1.2 an address",), "5.0.0"),
        (550, ("5.01.001 padded",), "5.1.1"),
        (354, ("go on",), "4.0.0"),
        (550, (), "5.0.0"),
    ],
)
def test_the_status_is_the_one_in_the_text_with_the_class_of_the_reply(
    code: int, lines: tuple[str, ...], status: str
) -> None:
    assert bounce.status_of(Reply(code, lines)) == status


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("550 5.1.1 The mailbox you wrote to does not exist here", "bad-mailbox"),
        ("550 No such user", "bad-mailbox"),
        ("550 5.2.1 The account of this customer has been disabled", "inactive-mailbox"),
        ("452 4.2.2 mailbox is over quota", "quota-issues"),
        ("552 5.3.4 Message too big", "content-related"),
        ("554 5.7.1 your mail looks like spam", "spam-related"),
        ("554 5.7.1 Service unavailable; client blocked using some.list.example", "spam-related"),
        ("554 infected with a virus", "virus-related"),
        ("554 5.7.1 Relay access denied", "relaying-issues"),
        ("550 5.7.26 neither SPF nor DKIM passed. To protect our users from spam, it was blocked", "policy-related"),
        ("450 4.7.1 Greylisted, come back in five minutes", "policy-related"),
        ("550 5.1.8 Sender address rejected: Domain not found", "invalid-sender"),
        ("554 5.4.6 Too many hops", "routing-errors"),
        ("500 5.5.2 Syntax error", "protocol-errors"),
        ("550 Host unknown", "bad-domain"),
        ("450 4.4.2 timed out waiting for you", "no-answer-from-host"),
        ("550 5.1.1 sorry", "bad-mailbox"),
        ("550 5.1.2 sorry", "bad-domain"),
        ("450 4.4.7 sorry", "message-expired"),
        ("450 4.3.0 sorry", "bad-configuration"),
        ("550 5.7.1 <spam-blacklist@example.org>: no such user, see http://spam.example/virus", "bad-mailbox"),
        ("550 sorry", "other"),
        ("250 2.0.0 spam queued", "other"),
    ],
)
def test_a_reply_is_filed_by_its_words_and_then_by_its_code(line: str, wanted: str) -> None:
    assert category(line) == wanted


def test_every_category_is_one_of_the_seventeen() -> None:
    assert len(bounce.CATEGORIES) == 17
    used = {name for name, _ in (*bounce._TEXT_RULES, *bounce._CODE_RULES)}
    assert used <= set(bounce.CATEGORIES)
    assert {bounce.category_of_failure(kind) for kind in FailureKind} <= set(bounce.CATEGORIES)


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_has_a_status_with_a_text(kind: FailureKind) -> None:
    status = bounce.status_of_failure(kind)
    assert re.fullmatch(r"[45]\.[0-7]\.[0-9]+", status)
    if kind is not FailureKind.RETURNED:  # the operator says why in words
        assert "undefined" not in bounce.describe(status)


def test_an_expired_message_is_4_4_7_and_message_expired() -> None:
    assert bounce.status_of_failure(FailureKind.EXPIRED) == "4.4.7"
    assert bounce.category_of_failure(FailureKind.EXPIRED) == "message-expired"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("5.1.1", "5.1.1 (bad destination mailbox address)"),
        ("5.7.1", "5.7.1 (delivery not authorized)"),
        ("4.4.7", "4.4.7 (delivery time expired)"),
        ("5.0.0", "5.0.0 (undefined status)"),
        ("5.7.606", "5.7.606 (other security or policy trouble)"),
        ("5.9.9", "5.9.9 (undefined status)"),
    ],
)
def test_a_status_is_described_in_words(status: str, text: str) -> None:
    assert bounce.describe(status) == text


@pytest.mark.skipif(not LABELLED.exists(), reason="the labelled replies are not here")
def test_nine_of_ten_labelled_replies_are_filed_right() -> None:
    with LABELLED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(category(row["reply"]) in row["accepted"].split() for row in rows)
    assert right / len(rows) >= 0.9
