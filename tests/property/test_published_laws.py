"""SPF: whatever strangers publish there is a result, and it costs no more than RFC 7208 section 4.6.4 allows. What we
say is to be published reads back as it is."""

from __future__ import annotations

import ipaddress

import dns.rdata
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta.published import spf
from spoolmta.published.spf import Result
from spoolmta.published.zone import quoted
from tests.support.answers import FAILS, Answers

DOMAINS = [f"{letter}.test" for letter in "abcd"]
addresses = st.ip_addresses().map(str)
domains = st.sampled_from([*DOMAINS, "%{d}", "%{i}.a.test", "%{p}.b.test", "x.test"])
terms = st.one_of(
    st.builds(
        "{}{}:{}".format, st.sampled_from(["", "-", "~", "?"]), st.sampled_from(["a", "mx", "include", "ptr"]), domains
    ),
    st.builds("{}:{}".format, st.sampled_from(["exists", "include"]), domains),
    st.builds("ip4:{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds("ip6:{}/{}".format, st.ip_addresses(v=6), st.integers(0, 128)),
    st.builds("redirect={}".format, domains),
    st.sampled_from(["a", "mx", "ptr", "-all", "?all", "all", "exp=%{d}", "x=y"]),
)
good = st.lists(terms, max_size=6).map(lambda words: " ".join(["v=spf1", *words]))
texts = good | st.text(max_size=30).map("v=spf1 ".__add__) | st.text(max_size=30)
names = st.sampled_from(DOMAINS)
hosts = st.lists(names, max_size=3)


@st.composite
def zones(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in DOMAINS:
        found[f"{name} TXT"] = draw(st.just(FAILS) | st.lists(texts, max_size=2).map(tuple))
        found[f"{name} A"] = draw(st.just(FAILS) | st.lists(st.ip_addresses(v=4).map(str), max_size=2).map(tuple))
        found[f"{name} AAAA"] = draw(st.lists(st.ip_addresses(v=6).map(str), max_size=2).map(tuple))
        found[f"{name} MX"] = tuple(f"{number} {host}." for number, host in enumerate(draw(hosts)))
    return found


@settings(max_examples=50)
@given(zones(), addresses, names, st.text(max_size=10), names)
def test_every_check_ends_with_a_result_after_few_questions(
    zone: dict[str, tuple[str, ...]], address: str, domain: str, local: str, pointed: str
) -> None:
    reverse = ipaddress.ip_address(address).reverse_pointer
    answers = Answers({**zone, f"{reverse} PTR": (f"{pointed}.",)})
    outcome = answers.resolve(spf.check_host(address, domain, f"{local}@{domain}", "helo.test"))
    assert outcome.why.isprintable()
    # 10 terms, each with at most 10 hosts or names, and the first record
    assert answers.asked.total() <= 1 + 10 + 100
    if not outcome.record:
        assert outcome.result in (Result.NONE, Result.TEMPERROR, Result.PERMERROR)


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_a_network_covers_what_lies_in_it_and_nothing_else(
    base: ipaddress.IPv4Address | ipaddress.IPv6Address,
    length: int,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if getattr(address, "ipv4_mapped", None):
        return
    length = min(length, base.max_prefixlen)
    answers = Answers({"a.test TXT": (f"v=spf1 ip{base.version}:{base}/{length} -all",)})
    outcome = answers.resolve(spf.check_host(str(address), "a.test", "", "h"))
    is_in = address.version == base.version and int(address) >> (base.max_prefixlen - length) == int(base) >> (
        base.max_prefixlen - length
    )
    assert outcome.result is (Result.PASS if is_in else Result.FAIL)


@given(st.text(max_size=600))
def test_a_name_server_reads_back_what_a_line_says(text: str) -> None:
    record = dns.rdata.from_text("IN", "TXT", quoted(text))
    assert b"".join(getattr(record, "strings", ())) == text.encode()
    assert quoted(text).isascii()
    assert quoted(text).isprintable()
