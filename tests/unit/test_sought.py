from __future__ import annotations

import pytest

from spoolmta.row import Columns
from spoolmta.sought import SLACK, Sieve, Sought, needle

COLUMNS = Columns("type,timeLogged,orig,rcpt,bounceCat,vmta,jobId,queue".split(","))
ROW = ["b", "1000", "News@a.test", "Anna.X@B.test", "bad-mailbox", "news", "Job-1", "b.test/news"]


@pytest.mark.parametrize(
    ("sought", "is_taken"),
    [
        (Sought(), True),
        (Sought(rcpt="anna.x@b.TEST"), True),
        (Sought(rcpt="anna*"), True),
        (Sought(rcpt="anna"), False),
        (Sought(rcpt="anna?x@b.test"), False),
        (Sought(rcpt="*@b.test", orig="news@*", job="job-*", vmta="NEWS", category="bad-*"), True),
        (Sought(rcpt="*@b.test", vmta="other"), False),
        (Sought(domain="b.test"), True),
        (Sought(domain="*.test"), True),
        (Sought(domain="test"), False),
        (Sought(types=("d", "b")), True),
        (Sought(types=("d",)), False),
        (Sought(since=1000, until=1000), True),
        (Sought(since=1001), False),
        (Sought(until=999), False),
    ],
)
def test_a_row_is_sought_if_it_meets_every_condition(sought: Sought, is_taken: bool) -> None:
    sieve = Sieve(sought)
    assert (sieve.may_be_in(",".join(ROW).encode()) and sieve.takes(COLUMNS, ROW)) is is_taken


def test_a_row_without_recipient_has_the_domain_of_its_queue() -> None:
    row = ["tq", "1000", "", "", "", "news", "", "b.test/news"]
    assert Sieve(Sought(domain="b.test")).takes(COLUMNS, row)
    assert not Sieve(Sought(domain="a.test")).takes(COLUMNS, row)


def test_a_row_without_the_column_or_without_a_time_is_not_sought() -> None:
    assert not Sieve(Sought(rcpt="*")).takes(Columns(["type"]), ["b"])
    assert not Sieve(Sought(since=1)).takes(Columns(["type"]), ["b"])
    assert not Sieve(Sought(since=1)).takes(Columns(["type", "timeLogged"]), ["b", "soon"])


def test_a_late_row_says_that_nothing_sought_comes_behind_it_with_an_hour_to_spare() -> None:
    def is_behind(until: float) -> bool:
        return Sieve(Sought(until=until)).is_behind(COLUMNS, ROW)

    assert not is_behind(float("inf"))
    assert not is_behind(1000 - SLACK)
    assert is_behind(999 - SLACK)


def test_an_early_row_says_that_nothing_sought_stands_before_it_with_an_hour_to_spare() -> None:
    def is_before(since: float) -> bool:
        return Sieve(Sought(since=since)).is_before(COLUMNS, ROW)

    assert not is_before(0)
    assert not is_before(1000 + SLACK)
    assert is_before(1001 + SLACK)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("Anna@b.test", b"anna@b.test"), ("*@b.test", b"@b.test"), ('"anna b"@c', b"anna b"), ("ännä", b"nn"), ("*", b"")],
)
def test_what_the_bytes_must_have_in_them_is_the_longest_plain_piece(pattern: str, found: bytes) -> None:
    assert needle(pattern) == found
