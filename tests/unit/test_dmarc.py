"""Which DMARC policy holds for a domain, and what aligns with it (RFC 9989)."""

from __future__ import annotations

import pytest

from spoolmta.published import dmarc
from spoolmta.published.lookup import Unanswered
from tests.support.answers import FAILS, Answers

Records = dict[str, tuple[str, ...]]


def policy(records: Records, domain: str = "a.b.example.com") -> tuple[str, str]:
    """(the policy, whose record says so)."""
    found = Answers(records).resolve(dmarc.discover(domain))
    return found.policy, found.record.name if found.record else ""


def at(name: str, *texts: str) -> Records:
    return {f"_dmarc.{name} TXT": texts}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("v=DMARC1; p=reject",), "reject"),
        (("v=DMARC1;p=Quarantine;",), "quarantine"),
        ((" v = DMARC1 ; rua=mailto:a@example.com; p = none",), "none"),
        (("v=spf1 -all", "v=DMARC1; p=none"), "none"),
        (("v=DMARC1; p=none", "v=DMARC1; p=reject"), None),
        (("p=none; v=DMARC1",), None),
        (("v=dmarc1; p=none",), None),
        (("v=DMARC10; p=none",), None),
        (("v=DMARC1; p=monitor",), ""),
        (("v=DMARC1",), ""),
        (("v=DMARC1; p=none; p=reject",), ""),
        ((), None),
    ],
)
def test_one_record_counts(texts: tuple[str, ...], expected: str | None) -> None:
    record = dmarc.read("example.com", texts)
    assert (record.policy if record else None) == expected


def test_the_domains_own_record_holds_else_that_of_its_organization_for_subdomains() -> None:
    above = at("example.com", "v=DMARC1; p=reject; sp=quarantine")
    assert policy(above) == ("quarantine", "example.com")
    assert policy(above, "example.com") == ("reject", "example.com")
    assert policy(above | at("a.b.example.com", "v=DMARC1; p=none")) == ("none", "a.b.example.com")
    assert policy(at("example.com", "v=DMARC1; p=reject")) == ("reject", "example.com")
    assert policy({}) == ("", "")


def test_a_record_between_the_domain_and_its_organization_says_nothing() -> None:
    between = at("b.example.com", "v=DMARC1; p=none")
    assert policy(between | at("example.com", "v=DMARC1; p=reject")) == ("reject", "example.com")


def test_a_registry_says_what_holds_where_its_customer_says_nothing() -> None:
    registry = at("bank", "v=DMARC1; p=reject; psd=y")
    assert policy(registry, "www.my.bank") == ("reject", "bank")
    assert policy(registry | at("my.bank", "v=DMARC1; p=none"), "www.my.bank") == ("none", "my.bank")


def test_an_organization_may_say_that_it_is_one() -> None:
    records = at("b.example.com", "v=DMARC1; p=quarantine; psd=n") | at("example.com", "v=DMARC1; p=reject")
    assert policy(records) == ("quarantine", "b.example.com")


def test_a_long_name_costs_eight_questions() -> None:
    answers = Answers({})
    answers.resolve(dmarc.walk("a.b.c.d.e.f.g.h.i.example.com"))
    assert [*answers.asked][:3] == [
        "_dmarc.a.b.c.d.e.f.g.h.i.example.com TXT",
        "_dmarc.e.f.g.h.i.example.com TXT",
        "_dmarc.f.g.h.i.example.com TXT",
    ]
    assert (answers.asked.total(), [*answers.asked][-1]) == (8, "_dmarc.com TXT")
    answers = Answers({})
    answers.resolve(dmarc.walk("a.b.c.d.e.f.example.com"))
    assert answers.asked.total() == 8


@pytest.mark.parametrize(
    ("authenticated", "domain", "is_strict", "expected"),
    [
        ("example.com", "example.com", True, True),
        ("bounces.example.com", "example.com", True, False),
        ("bounces.example.com", "example.com", False, True),
        ("example.com", "news.example.com", False, True),
        ("bounces.example.com", "news.example.com", False, True),
        ("example.net", "example.com", False, False),
        ("apart.example.com", "example.com", False, False),
        ("x.unknown.test", "unknown.test", False, False),  # nothing says that they belong together
        ("x.my.bank", "my.bank", False, True),
        ("his.bank", "my.bank", False, False),
    ],
)
def test_alignment_is_by_organization_or_strict(
    authenticated: str, domain: str, is_strict: bool, expected: bool
) -> None:
    records = at("example.com", "v=DMARC1; p=none") | at("bank", "v=DMARC1; p=reject; psd=y")
    records |= at("apart.example.com", "v=DMARC1; p=none; psd=n")
    assert Answers(records).resolve(dmarc.is_aligned(authenticated, domain, is_strict)) is expected


def test_the_strictness_is_read_for_each_way() -> None:
    record = dmarc.read("example.com", ("v=DMARC1; p=none; aspf=s; adkim=r",))
    assert record is not None
    assert (record.is_spf_strict, record.is_dkim_strict) == (True, False)


def test_a_record_without_an_answer_above_the_domains_own_does_not_matter() -> None:
    fails: Records = {"_dmarc.com TXT": FAILS}
    assert policy(fails | at("example.com", "v=DMARC1; p=none"), "example.com") == ("none", "example.com")
    with pytest.raises(Unanswered, match=r"_dmarc\.com TXT: silence"):
        policy(fails)
