from __future__ import annotations

import random

import pytest

from spoolmta.model import Failure, FailureKind, Host
from spoolmta.resolver import MAX_RECORDS, is_host_name, mail_hosts

CHANCE = random.Random(1)


def failure_of(*records: str) -> FailureKind:
    result = mail_hosts("example.com", records, CHANCE)
    assert isinstance(result, Failure)
    return result.kind


def names_of(*records: str, chance: random.Random = CHANCE) -> list[str]:
    result = mail_hosts("example.com", records, chance)
    assert not isinstance(result, Failure)
    return [host.name for host in result]


def test_no_record_means_the_domain_itself() -> None:
    assert mail_hosts("example.com", (), CHANCE) == (Host("example.com"),)


def test_a_single_dot_means_no_mail() -> None:
    assert failure_of("0 .") is FailureKind.NULL_MX


def test_a_dot_among_others_is_only_a_host_that_cannot_be_used() -> None:
    assert names_of("0 .", "10 mx.example.com.") == ["mx.example.com"]


def test_lower_preferences_come_first_and_names_are_lowered() -> None:
    assert names_of("20 b.test.", "3 C.Test.", "10 a.test.") == ["c.test", "a.test", "b.test"]


@pytest.mark.parametrize("record", ["10 192.0.2.1.", "10 a b.", "10 a/../b.", "10 .", "10 -a.test.", "10 a\\000b."])
def test_hosts_that_are_addresses_or_no_names_are_never_replaced_by_the_domain(record: str) -> None:
    assert failure_of(record, "20 192.0.2.2.") is FailureKind.NO_HOST


def test_equal_preferences_are_tried_in_any_order_equally_often() -> None:
    chance, first = random.Random(4711), {"a": 0, "b": 0, "c": 0}
    for _ in range(3000):
        first[names_of("10 a.", "10 b.", "10 c.", "20 d.", chance=chance)[0]] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in first.values()) < 13.8  # chi-square, 2 degrees, p = 0.001


def test_ten_thousand_hosts_are_ten() -> None:
    assert len(names_of(*(f"10 mx{number}.test." for number in range(10_000)))) == MAX_RECORDS


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("mx.test", True), ("_x.test", True), ("mx", True), ("", False), ("a..b", False), ("1.2.3.4", False),
     ("MX.test", False), ("a" * 64, False), ("a." * 127 + "b", False), ("mx.test\n", False), ("ü.test", False)],
)  # fmt: skip
def test_host_names_are_letters_digits_and_hyphens(name: str, is_one: bool) -> None:
    assert is_host_name(name) is is_one
