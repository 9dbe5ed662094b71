"""MTA-STS records and policies, read; when to fetch."""

from __future__ import annotations

import pytest

from spoolmta import sts
from spoolmta.sts import BadPolicy, Kept, Policy

DAY = 86_400.0
GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n"
POLICY = Policy("enforce", ("mail.example.com", "*.example.net"), 604_800)


@pytest.mark.parametrize(
    ("records", "id_"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1 ; other=x; id=1"], "1"),
        (["v=spf1 -all", "v=STSv1; id=1;"], "1"),
        (["v=STSv1; id=1;", "v=STSv1; id=2;"], ""),
        (["v=STSv10; id=1;"], ""),
        (["V=STSv1; id=1;"], ""),
        ([" v=STSv1; id=1;"], ""),
        (["v=STSv1; id=a-b;"], ""),
        (["v=STSv1; id=" + "a" * 33], ""),
        (["v=STSv1;"], ""),
        ([], ""),
    ],
)
def test_one_record_names_the_policy(records: list[str], id_: str) -> None:
    assert sts.read_record(records) == id_


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        GOOD.replace(b"\r\n", b"\n"),
        GOOD.rstrip(),
        GOOD.replace(b": ", b":"),
        GOOD.replace(b": ", b" :\t"),
        GOOD + b"mode: none\r\nmax_age: 1\r\nfuture: thing\r\n\r\n",
        GOOD.replace(b"mail.example.com", b"Mail.Example.COM"),
    ],
)
def test_a_policy_is_read(body: bytes) -> None:
    assert sts.read_policy(body) == POLICY


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (GOOD.replace(b"STSv1", b"STSv2"), "version"),
        (GOOD.replace(b"version: STSv1\r\n", b""), "version"),
        (GOOD.replace(b"enforce", b"Enforce"), "mode"),
        (GOOD.replace(b"604800", b"-1"), "max_age"),
        (GOOD.replace(b"604800", b"99999999999"), "max_age"),
        (GOOD.replace(b"max_age: 604800", b""), "max_age"),
        (GOOD.replace(b"mx: mail.example.com\r\nmx: *.example.net\r\n", b""), "no mx"),
        (GOOD.replace(b"mail.example.com", b"mail.*.example.com"), "no host name"),
        (GOOD.replace(b"mail.example.com", b""), "no host name"),
        (GOOD + b"<html>\r\n", "no field"),
        (GOOD + b"x" * 65_536, "larger"),
        (b"\xff", "not text"),
        (b"", "version"),
    ],
)
def test_a_policy_that_is_none_is_refused_with_a_clause(body: bytes, complaint: str) -> None:
    with pytest.raises(BadPolicy, match=complaint):
        sts.read_policy(body)


def test_a_policy_of_none_needs_no_hosts_and_a_year_is_the_longest_age() -> None:
    assert sts.read_policy(b"version: STSv1\nmode: none\nmax_age: 0\n") == Policy("none", (), 0)
    assert sts.read_policy(GOOD.replace(b"604800", b"9999999999")).max_age == 31_557_600


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("mail.example.com", True),
        ("other.example.com", False),
        ("mx.example.net", True),
        ("a.mx.example.net", False),
        ("example.net", False),
    ],
)
def test_a_policy_names_hosts_and_a_star_is_one_label(host: str, is_allowed: bool) -> None:
    assert sts.allows(POLICY, host) is is_allowed


def test_a_policy_holds_for_its_age_whatever_the_dns_says() -> None:
    kept = sts.after_fetch(Kept(), "1", 1000.0, POLICY)
    assert kept.at(1000.0 + 604_799) == POLICY
    assert kept.at(1000.0 + 604_800) is None
    assert not sts.wants_fetch(kept, "", 1000.0 + 604_800)
    assert kept.at(999.0) is None, "a clock that went back proves nothing"


def test_a_new_id_and_an_old_policy_are_fetched_and_the_same_id_is_not() -> None:
    kept = sts.after_fetch(Kept(), "1", 1000.0, POLICY)
    assert sts.wants_fetch(Kept(), "1", 1000.0)
    assert not sts.wants_fetch(kept, "1", 1000.0 + DAY - 1)
    assert sts.wants_fetch(kept, "2", 1001.0)
    assert sts.wants_fetch(kept, "1", 1000.0 + DAY)
    assert sts.wants_fetch(kept, "1", 1000.0 + 604_800)


def test_a_failed_fetch_is_not_tried_again_for_five_minutes_and_loses_nothing() -> None:
    kept = sts.after_fetch(sts.after_fetch(Kept(), "1", 1000.0, POLICY), "2", 2000.0, None)
    assert kept.at(2000.0) == POLICY
    assert not sts.wants_fetch(kept, "2", 2299.0)
    assert sts.wants_fetch(kept, "2", 2300.0)
    assert sts.wants_fetch(kept, "3", 2001.0)
    never = sts.after_fetch(Kept(), "1", 1000.0, None)
    assert never.at(1000.0) is None
    assert not sts.wants_fetch(never, "1", 1299.0)


def test_a_policy_of_no_age_is_not_fetched_for_every_message() -> None:
    kept = sts.after_fetch(Kept(), "1", 1000.0, Policy("enforce", ("a.b",), 0))
    assert kept.at(1000.0) is None
    assert not sts.wants_fetch(kept, "1", 1001.0)
