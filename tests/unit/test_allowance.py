from __future__ import annotations

import pytest

from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Recipient, Reply, Stage
from spoolmta.smtp.allowance import Allowance, agree, refuse, settle
from spoolmta.smtp.client import Capabilities, Result

OFFERED = Capabilities("mx", dict.fromkeys(["PIPELINING", "CHUNKING", "8BITMIME", "DSN", "SIZE"], ""))
DONE = Answer(Stage.EOD, Reply(250))
REFUSED = Answer(Stage.RCPT, Reply(550))
TOO_MANY = Answer(Stage.RCPT, Reply(452))


def people(count: int) -> list[Recipient]:
    return [Recipient(f"r{number}@a.test", "a.test") for number in range(count)]


@pytest.mark.parametrize(
    ("field", "keyword"),
    [("ignore_pipelining", "PIPELINING"), ("ignore_chunking", "CHUNKING"), ("ignore_8bitmime", "8BITMIME"),
     ("ignore_dsn", "DSN")],
)  # fmt: skip
def test_what_is_ignored_is_as_if_not_offered_but_is_still_listed(field: str, keyword: str) -> None:
    agreed = agree(OFFERED, DomainPolicy(**{field: True}))
    assert keyword not in agreed
    assert sum(other in agreed for other in OFFERED.keywords) == 4
    assert agreed.listing == OFFERED.listing


@pytest.mark.parametrize(
    ("size", "most"),
    [("", 0), ("0", 0), ("1000", 1000), (" 7 ", 7), ("x", 0), ("-5", 0), ("1 2", 0), ("9" * 20, 10**20 - 1)],
)
def test_the_size_is_a_number_or_no_limit(size: str, most: int) -> None:
    assert agree(Capabilities("", {"SIZE": size}), DomainPolicy()).max_size == most


def test_limits_are_read_in_any_case_and_others_are_left_alone() -> None:
    agreed = agree(Capabilities("", {"LIMITS": "RcptMax=20 MAILMAX=5 RCPTDOMAINMAX=1 MAILMAX=x"}), DomainPolicy())
    assert (agreed.max_recipients, agreed.max_messages) == (20, 5)


def test_a_session_ends_after_the_transactions_it_may_have() -> None:
    allowance = Allowance(Capabilities(max_messages=2))
    assert [allowance.count(Result([DONE], True)) for _ in range(2)] == [True, False]


def test_a_session_ends_after_so_many_refused_recipients() -> None:
    allowance = Allowance(Capabilities(), 3)
    assert allowance.count(Result([REFUSED, DONE, REFUSED], True))
    assert allowance.count(Result([DONE, Answer(Stage.EOD, Reply(550))], True))
    assert not allowance.count(Result([REFUSED, DONE], True))


def test_who_was_put_off_is_no_error_and_tells_how_many_are_taken() -> None:
    allowance = Allowance(Capabilities(), 1)
    assert allowance.count(Result([DONE, DONE, TOO_MANY, TOO_MANY], True, (2, 3)))
    assert allowance.recipients == 2


def test_who_was_put_off_comes_before_those_whose_turn_has_not_come() -> None:
    sent, unsent = people(3), [Recipient("later@a.test", "a.test")]
    answers, settled, waiting = settle(Result([DONE, TOO_MANY, DONE], True, (1,)), sent, unsent)
    assert (answers, settled, waiting) == ([DONE, DONE], [sent[0], sent[2]], [sent[1], *unsent])


def test_a_refused_session_has_one_answer_for_all() -> None:
    failure = Answer(Stage.RESOLVE, Failure(FailureKind.LOOP, "x"))
    assert refuse(people(2), failure) == Result([failure, failure], True)
