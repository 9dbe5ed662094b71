from __future__ import annotations

import re

import pytest

from spoolmta import bounce
from spoolmta.model import BounceRule, Failure, FailureKind, Reply


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


def test_every_failure_has_a_category_that_its_kind_tells() -> None:
    assert len(bounce.CATEGORIES) == 17
    shipped = bounce.Classifier()
    assert {shipped.category_of_failure(Failure(kind, "spam")) for kind in FailureKind} <= set(bounce.CATEGORIES)
    assert shipped.category_of_failure(Failure(FailureKind.EXPIRED, "mailbox full")) == "message-expired"


def test_the_operators_rules_read_the_words_of_failures_too() -> None:
    own = bounce.Classifier((BounceRule(category="firewall", pattern=("refused",)),))
    assert own.category_of_failure(Failure(FailureKind.REFUSED, "Connection refused")) == "firewall"
    assert own.category_of_failure(Failure(FailureKind.TIMEOUT, "timed out")) == "no-answer-from-host"


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("550 5.1.1 no such user", Reply(550, ("5.1.1 no such user",))),
        ("550-5.1.1 no such user", Reply(550, ("5.1.1 no such user",))),
        ("smtp;421 4.7.0 busy", Reply(421, ("4.7.0 busy",))),
        ("SMTP; 552-5.2.3 too large", Reply(552, ("5.2.3 too large",))),
        ("host mx.example [192.0.2.1] said: 553 no relay", Reply(553, ("no relay",))),
        ("4.7.32 rate limited", Reply(450, ("4.7.32 rate limited",))),
        ("user unknown", Reply(550, ("user unknown",))),
        ("", Reply(550, ("",))),
    ],
)
def test_a_line_of_text_is_a_reply(line: str, reply: Reply) -> None:
    assert bounce.reply_in(line) == reply


def test_check_asks_whether_a_category_of_ones_own_is_a_typing_mistake() -> None:
    rules = [BounceRule(category=name, file="a.toml", line=3) for name in ("bad-mailbxo", "our-firewall", "other")]
    (warning,) = bounce.warnings(rules)
    assert warning == 'a.toml:3: bounce.category: "bad-mailbxo" is a category of your own; was "bad-mailbox" meant?'


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_has_a_status_with_a_text(kind: FailureKind) -> None:
    status = bounce.status_of_failure(kind)
    assert re.fullmatch(r"[45]\.[0-7]\.[0-9]+", status)
    if kind is not FailureKind.RETURNED:  # the operator says why in words
        assert "undefined" not in bounce.describe(status)


def test_an_expired_message_is_4_4_7() -> None:
    assert bounce.status_of_failure(FailureKind.EXPIRED) == "4.4.7"


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
