"""check_host of RFC 7208: its sections by their numbers, and the examples of its appendix A."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from spoolmta.published import spf, spf_terms
from spoolmta.published.spf import Outcome, Result
from spoolmta.published.spf_terms import Malformed
from tests.support.answers import FAILS, Answers

# Appendix A.
COM = {
    "example.com MX": ("10 mail-a.example.com.", "20 mail-b.example.com."),
    "example.com A": ("192.0.2.10", "192.0.2.11"),
    "amy.example.com A": ("192.0.2.65",),
    "bob.example.com A": ("192.0.2.66",),
    "mail-a.example.com A": ("192.0.2.129",),
    "mail-b.example.com A": ("192.0.2.130",),
    "example.org MX": ("10 mail-c.example.org.",),
    "mail-c.example.org A": ("192.0.2.140",),
    "10.2.0.192.in-addr.arpa PTR": ("example.com.",),
    "65.2.0.192.in-addr.arpa PTR": ("amy.example.com.",),
    "66.2.0.192.in-addr.arpa PTR": ("bob.example.com.",),
    "129.2.0.192.in-addr.arpa PTR": ("mail-a.example.com.",),
    "140.2.0.192.in-addr.arpa PTR": ("mail-c.example.org.",),
    "4.0.0.10.in-addr.arpa PTR": ("bob.example.com.",),
}


def check(
    record: str,
    address: str = "192.0.2.1",
    more: Mapping[str, tuple[str, ...]] = {},
    domain: str = "example.com",
    sender: str = "",
) -> Outcome:
    answers = Answers({f"{domain} TXT": (record,), **more})
    return answers.resolve(spf.check_host(address, domain, sender or f"strong-bad@{domain}", "mx.example.org"))


def result(record: str, address: str = "192.0.2.1", more: Mapping[str, tuple[str, ...]] = {}, **given: str) -> str:
    return check(record, address, more, **given).result.value


@pytest.mark.parametrize(
    ("record", "passes", "fails"),
    [
        ("v=spf1 +all", "203.0.113.9", ""),
        ("v=spf1 a -all", "192.0.2.10", "192.0.2.12"),
        ("v=spf1 a:example.org -all", "", "192.0.2.10"),
        ("v=spf1 mx -all", "192.0.2.130", "192.0.2.10"),
        ("v=spf1 mx:example.org -all", "192.0.2.140", "192.0.2.129"),
        ("v=spf1 mx mx:example.org -all", "192.0.2.140", "192.0.2.10"),
        ("v=spf1 mx/30 mx:example.org/30 -all", "192.0.2.143", "192.0.2.144"),
        ("v=spf1 mx/30 mx:example.org/30 -all", "192.0.2.131", "192.0.2.132"),
        ("v=spf1 ptr -all", "192.0.2.65", "192.0.2.140"),
        ("v=spf1 ptr -all", "192.0.2.10", "10.0.0.4"),
        ("v=spf1 ip4:192.0.2.128/28 -all", "192.0.2.129", "192.0.2.65"),
    ],
)
def test_simple_examples(record: str, passes: str, fails: str) -> None:
    if passes:
        assert result(record, passes, COM) == "pass"
    if fails:
        assert result(record, fails, COM) == "fail"


def test_the_example_with_several_domains() -> None:
    more = COM | {
        "example.com TXT": ("v=spf1 a -all",),
        "example.net TXT": ("v=spf1 ip4:198.51.100.7 -all",),
        "la.example.org TXT": ("v=spf1 redirect=example.org",),
    }
    record = "v=spf1 include:example.com include:example.net -all"
    for address, expected in (("192.0.2.10", "pass"), ("198.51.100.7", "pass"), ("192.0.2.9", "fail")):
        assert result(record, address, more, domain="example.org") == expected
    more |= {"example.org TXT": (record,)}
    for address, expected in (("192.0.2.10", "pass"), ("192.0.2.9", "fail")):
        assert result("v=spf1 redirect=example.org", address, more, domain="la.example.org") == expected


def test_the_example_with_a_list_of_users() -> None:
    more = COM | {
        "mobile-users._spf.example.com TXT": ("v=spf1 exists:%{l1r+}.%{d}",),
        "mary.mobile-users._spf.example.com A": ("127.0.0.2",),
        "remote-users._spf.example.com TXT": ("v=spf1 exists:%{ir}.%{l1r+}.%{d}",),
        "15.15.168.192.joel.remote-users._spf.example.com A": ("127.0.0.2",),
    }
    record = "v=spf1 mx include:mobile-users._spf.%{d} include:remote-users._spf.%{d} -all"
    assert result(record, "203.0.113.1", more, sender="mary+news@example.com") == "pass"
    assert result(record, "203.0.113.1", more, sender="joel@example.com") == "fail"
    assert result(record, "192.168.15.15", more, sender="joel@example.com") == "pass"


def test_the_example_with_all_macros_in_one_name() -> None:
    name = "_h.mx.example.org._l.strong-bad._o.example.com._i.192.0.2.1._spf.example.com A"
    assert result("v=spf1 exists:_h.%{h}._l.%{l}._o.%{o}._i.%{i}._spf.%{d} ?all", more={name: ("127.0.0.2",)}) == "pass"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("%{s}", "strong-bad@email.example.com"),
        ("%{o}", "email.example.com"),
        ("%{d}", "email.example.com"),
        ("%{d4}", "email.example.com"),
        ("%{d3}", "email.example.com"),
        ("%{d2}", "example.com"),
        ("%{d1}", "com"),
        ("%{dr}", "com.example.email"),
        ("%{d2r}", "example.email"),
        ("%{l}", "strong-bad"),
        ("%{l-}", "strong.bad"),
        ("%{lr}", "strong-bad"),
        ("%{lr-}", "bad.strong"),
        ("%{l1r-}", "strong"),
        ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
        ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
        ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
        ("%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}", "3.2.0.192.in-addr.strong.lp._spf.example.com"),
        ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
        ("%{L}%%%_%-.%{S}.net", "strong-bad% %20.strong-bad%40email.example.com.net"),
    ],
)
def test_the_macros_of_section_7_4(text: str, name: str) -> None:
    assert asked_of(text, "192.0.2.3") == name


def asked_of(text: str, address: str) -> str:
    """The name that `exists:` asks for with this text."""
    domain = "email.example.com"
    answers = Answers({f"{domain} TXT": (f"v=spf1 exists:{text}",)})
    evaluation = spf._Evaluation(address, domain, f"strong-bad@{domain}", "mx.example.org")
    return answers.resolve(evaluation._expanded(text, domain))


def test_an_ipv6_address_is_32_nibbles() -> None:
    assert asked_of("%{ir}.%{v}._spf.%{d2}", "2001:db8::cb01") == (
        "1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6._spf.example.com"
    )


def test_a_name_that_is_too_long_loses_labels_at_its_left() -> None:
    name = spf_terms.expand("%{l}.example.com", {"l": ".".join(["x" * 60] * 6)})
    assert name.endswith("x.example.com")
    assert 253 - 61 < len(name) <= 253


def test_the_host_name_macro_prefers_the_domain_itself_then_names_below_it() -> None:
    more = {"1.2.0.192.in-addr.arpa PTR": ("other.test.", "a.example.com.", "example.com.", "forged.test.")}
    for name in ("other.test", "a.example.com", "example.com"):
        more[f"{name} A"] = ("192.0.2.1",)
    assert result("v=spf1 exists:%{p}.list.test -all", more=more | {"example.com.list.test A": ("1.1.1.1",)}) == "pass"
    del more["example.com A"]
    more |= {"a.example.com.list.test A": ("1.1.1.1",)}
    assert result("v=spf1 exists:%{p}.list.test -all", more=more) == "pass"
    assert result("v=spf1 exists:%{p}.list.test -all", more={"unknown.list.test A": ("1.1.1.1",)}) == "pass"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ((), "none"),
        (("some text", "v=spf10 -all", "v=spf1-all", " v=spf1 -all"), "none"),
        (("google-site-verification=1", "v=spf1 -all"), "fail"),
        (("v=spf1",), "neutral"),
        (("V=SPF1 -ALL",), "fail"),
        (("v=spf1 -all", "v=spf1 +all"), "permerror"),
        (FAILS, "temperror"),
    ],
)
def test_one_record_counts(records: tuple[str, ...], expected: str) -> None:
    answers = Answers({"example.com TXT": records})
    outcome = answers.resolve(spf.check_host("192.0.2.1", "example.com", "a@example.com", "h"))
    assert outcome.result.value == expected


@pytest.mark.parametrize("domain", ["com", "a..com", "", f"{'x' * 64}.com", "exämple.com"])
def test_what_is_no_domain_has_no_result(domain: str) -> None:
    answers = Answers({})
    assert answers.resolve(spf.check_host("192.0.2.1", domain, "", "h")).result is Result.NONE
    assert not answers.asked


@pytest.mark.parametrize(("sign", "expected"), [("", "pass"), ("+", "pass"), ("-", "fail"), ("~", "softfail")])
def test_qualifiers(sign: str, expected: str) -> None:
    assert result(f"v=spf1 {sign}ip4:192.0.2.1 ?all") == expected
    assert result(f"v=spf1 {sign}ip4:192.0.2.2 ?all") == "neutral"
    assert result(f"v=spf1 ip4:192.0.2.2   {sign}aLL  ") == expected


@pytest.mark.parametrize(
    "term",
    """al all: all:x all/8 include include: include:com exists exists:x/y a: a:x a/33 a/024 a//129 a:x.1 a:x.test/99
    a:192.0.2.1 mx/ mx:x.-test mx:x.test- ptr/8 ptr: ip4 ip4: ip4:192.0.2 ip4:192.0.2.1/33 ip4:192.0.2.01
    ip4:192.0.2.1/255.255.255.0 ip4:2001:db8::1 ip6:192.0.2.1 ip6:2001:db8::/129 ip6:fe80::1%1 ip6:[::1]
    redirect= redirect=x redirect=x.test/8 -redirect=x.test exp= exp=x. a:%x.test a:%{x}.test a:%{d0}.test a:%{c}.test
    a:%{r}.test a:%{t}.test a:%{d a:%{d}x a:%%_ unknown unknown:x.test !all --all x=%{d other=%x 1a=x ü=1
    include:exämple.com""".split(),
)
def test_a_mistake_anywhere_makes_a_permanent_error(term: str) -> None:
    assert result(f"v=spf1 +all {term}") == "permerror"


@pytest.mark.parametrize(
    "term",
    """ip4:192.0.2.1/0 ip6:::/0 ip6:::ffff:192.0.2.1 IP4:192.0.2.1 a:x.test. a:x.te-st/24//64 a//64 mx:%{d}/8 ptr:x.test
    exists:%{i}._x.%{d} include:%{d2r+-}.test x=y other.one_=%{d}%%%_ exp=%{d} redirect=%{d} a:x/y.test
    a:%{D}""".split(),
)
def test_what_the_grammar_allows_is_read(term: str) -> None:
    spf_terms.parse(f"v=spf1 {term} -all")


@pytest.mark.parametrize("modifier", ["redirect", "exp"])
def test_a_modifier_stands_there_once(modifier: str) -> None:
    with pytest.raises(Malformed, match="twice"):
        spf_terms.parse(f"v=spf1 {modifier}=a.test {modifier.upper()}=b.test")
    spf_terms.parse("v=spf1 other=a other=b")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("2001:db8::1", "pass"), ("2001:db9::1", "fail"), ("192.0.2.1", "fail"), ("::ffff:198.51.100.1", "pass")],
)
def test_each_version_of_ip_has_its_own_networks(address: str, expected: str) -> None:
    assert result("v=spf1 ip6:2001:db8::/32 ip4:198.51.100.0/24 -all", address) == expected


def test_a_and_mx_ask_for_addresses_of_the_same_version() -> None:
    more = {
        "example.com A": ("192.0.2.1",),
        "example.com AAAA": ("2001:db8::1",),
        "example.com MX": ("0 example.com.",),
    }
    for record in ("v=spf1 a//64 -all", "v=spf1 mx/32//64 -all"):
        assert result(record, "2001:db8::99", more) == "pass"
        assert result(record, "2001:db8:1::1", more) == "fail"
        assert result(record, "192.0.2.1", more) == "pass"
        assert result(record, "192.0.2.2", more) == "fail"


@pytest.mark.parametrize(
    ("included", "expected"),
    [
        ("v=spf1 ip4:192.0.2.1", "pass"),
        ("v=spf1 -ip4:192.0.2.1", "softfail"),
        ("v=spf1 ~all", "softfail"),
        ("v=spf1 ?all", "softfail"),
        ("v=spf1 nonsense", "permerror"),
        ("", "permerror"),
        ("FAILS", "temperror"),
    ],
)
def test_include_matches_only_where_the_other_record_passes(included: str, expected: str) -> None:
    more = {"other.test TXT": (included,) if included else ()}
    assert result("v=spf1 include:other.test ~all", more=more) == expected


def test_redirect_holds_where_nothing_matches_and_needs_a_record() -> None:
    more = {"other.test TXT": ("v=spf1 a:%{d} -all",), "other.test A": ("192.0.2.1",)}
    assert result("v=spf1 redirect=other.test", more=more) == "pass"
    assert result("v=spf1 redirect=other.test ip4:192.0.2.2", "192.0.2.9", more) == "fail"
    assert result("v=spf1 redirect=other.test ?all", more=more) == "neutral"
    assert result("v=spf1 redirect=nothing.test") == "permerror"
    assert result("v=spf1 redirect=sf.test", more={"sf.test TXT": FAILS}) == "temperror"


def test_exists_asks_for_ipv4_addresses_of_ipv6_senders_too() -> None:
    more = {"x.test A": ("127.0.0.2",), "y.test AAAA": ("2001:db8::1",)}
    assert result("v=spf1 exists:x.test -all", "2001:db8::1", more) == "pass"
    assert result("v=spf1 exists:y.test -all", "2001:db8::1", more) == "fail"


@pytest.mark.parametrize("term", ["a:sf.test", "mx:sf.test", "mx:half.test", "exists:sf.test"])
def test_a_look_up_that_fails_is_a_temporary_error(term: str) -> None:
    more = {"sf.test A": FAILS, "sf.test MX": FAILS, "half.test MX": ("1 sf.test.",)}
    assert result(f"v=spf1 {term} +all", more=more) == "temperror"
    assert result(f"v=spf1 ip4:192.0.2.1 {term}", more=more) == "pass"


def test_names_of_the_address_that_cannot_be_asked_for_are_none() -> None:
    reverse = "1.2.0.192.in-addr.arpa PTR"
    assert result("v=spf1 ptr -all", more={reverse: FAILS}) == "fail"
    more = {
        reverse: ("sf.example.com.", "b.example.com."),
        "sf.example.com A": FAILS,
        "b.example.com A": ("192.0.2.1",),
    }
    assert result("v=spf1 ptr -all", more=more) == "pass"
    assert result("v=spf1 ptr:le.com -all", more=more) == "fail"


def test_a_name_that_cannot_be_one_matches_nothing() -> None:
    assert result(f"v=spf1 a:{'x' * 64}.test a:a..test mx:{'y' * 64}.test a:..test -all") == "fail"


def test_ten_terms_may_ask() -> None:
    more = {"x.test A": ("192.0.2.9",), "x.test TXT": ("v=spf1 a:x.test ?all",), "x.test MX": ("0 x.test.",)}
    ten = "a:x.test mx:x.test exists:%{i}x.x.test include:x.test include:x.test a:x.test a:x.test a:x.test"
    assert result(f"v=spf1 {ten} -all", more=more) == "fail"
    assert result(f"v=spf1 {ten} ip4:192.0.2.1", more=more) == "pass"
    assert result(f"v=spf1 {ten} a:x.test -all", more=more) == "permerror"
    assert result(f"v=spf1 {ten} redirect=x.test", more=more) == "permerror"
    assert result(f"v=spf1 {ten} ptr -all", more=more) == "permerror"
    assert result("v=spf1 include:example.com -all") == "permerror"  # a record that includes itself


def test_two_look_ups_may_find_nothing() -> None:
    assert result("v=spf1 a:1.test mx:2.test +all") == "pass"
    assert result("v=spf1 a:1.test mx:2.test exists:3.test +all") == "permerror"
    hosts = tuple(f"{number} h{number}.test." for number in range(3))
    assert result("v=spf1 mx:m.test +all", more={"m.test MX": hosts}) == "permerror"


def test_an_mx_has_ten_hosts_at_most() -> None:
    hosts = [f"{number} h{number}.test." for number in range(11)]
    more = {f"h{number}.test A": ("192.0.2.9" if number < 9 else "192.0.2.1",) for number in range(11)}
    assert result("v=spf1 mx -all", more=more | {"example.com MX": tuple(hosts[:10])}) == "pass"
    assert result("v=spf1 mx -all", more=more | {"example.com MX": tuple(hosts)}) == "permerror"


def test_ten_names_of_the_address_count() -> None:
    names = [f"h{number}.other.test." for number in range(10)]
    more = {f"h{number}.other.test A": ("192.0.2.1",) for number in range(10)} | {"h.example.com A": ("192.0.2.1",)}
    for names_, expected in (([*names[:9], "h.example.com."], "pass"), ([*names, "h.example.com."], "fail")):
        assert result("v=spf1 ptr -all", more=more | {"1.2.0.192.in-addr.arpa PTR": tuple(names_)}) == expected


def test_the_text_of_exp_is_not_asked_for() -> None:
    answers = Answers({"example.com TXT": ("v=spf1 -all exp=explain.%{d}",)})
    assert answers.resolve(spf.check_host("192.0.2.1", "example.com", "", "h")).result is Result.FAIL
    assert [*answers.asked] == ["example.com TXT"]


def test_the_outcome_says_which_term_decided_and_gives_the_domains_own_record() -> None:
    more = {"other.test TXT": ("v=spf1 ip4:192.0.2.1 -all",)}
    assert check("v=spf1 include:other.test -all", more=more) == Outcome(
        Result.PASS, "include:other.test", "v=spf1 include:other.test -all"
    )
    assert check("v=spf1 redirect=other.test", more=more).record == "v=spf1 redirect=other.test"
    assert check("v=spf1 a:\x1b[31m.test").why == "a:?[31m.test does not name a domain"
