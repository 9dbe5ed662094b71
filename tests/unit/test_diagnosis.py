"""What is found about a source address in the DNS, and what is to be published."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest

from spoolmta import diagnosis
from spoolmta.diagnosis import Finding, Sender, Subject, Verdict
from spoolmta.published.dkim_key import DkimKey
from spoolmta.published.zone import Remedy, to_publish
from tests.support.answers import FAILS, Answers

Records = dict[str, tuple[str, ...]]
EHLO, DOMAIN, ADDRESS = "mta.example.com", "example.com", "192.0.2.1"
REVERSE = "1.2.0.192.in-addr.arpa PTR"
KEY = DkimKey("s1", DOMAIN, base64.b64encode(b"k" * 200).decode())
GOOD: Records = {
    REVERSE: ("mta.example.com.",),
    "mta.example.com A": (ADDRESS,),
    "example.com TXT": ("v=spf1 ip4:192.0.2.1 -all",),
    "example.com MX": ("10 mx.example.com.",),
    "mx.example.com A": ("192.0.2.99",),
    "s1._domainkey.example.com TXT": (KEY.record,),
    "_dmarc.example.com TXT": ("v=DMARC1; p=reject",),
}


def examine(
    changed: Mapping[str, tuple[str, ...]] = {},
    address: str = ADDRESS,
    return_path: str = DOMAIN,
    keys: tuple[DkimKey, ...] = (KEY,),
) -> dict[str, Finding]:
    """The findings by check and what it is about."""
    answers = Answers({**GOOD, **changed})
    subject = Subject(address, EHLO, (Sender(DOMAIN, return_path),), keys)
    findings = [answers.resolve(check) for check in diagnosis.checks(subject)]
    return {f"{finding.check} {finding.about}": finding for finding in findings}


def bad(findings: dict[str, Finding]) -> dict[str, tuple[str, str]]:
    return {key: (f.verdict.value, f.found) for key, f in findings.items() if f.verdict is not Verdict.OK}


def published(findings: dict[str, Finding]) -> list[str]:
    return [one.line for one in to_publish(remedy for finding in findings.values() for remedy in finding.remedies)]


def test_where_all_is_in_order_nothing_is_to_be_published() -> None:
    findings = examine()
    assert {key: finding.found for key, finding in findings.items()} == {
        "PTR 192.0.2.1": "mta.example.com, which leads back",
        "EHLO mta.example.com": "leads to 192.0.2.1",
        "SPF example.com": "pass by ip4:192.0.2.1",
        "SPF mta.example.com": "none, and only mail without a return path is judged by it",
        "DKIM s1._domainkey.example.com": "the record has the key",
        "DMARC example.com": "p=reject of _dmarc.example.com; SPF aligns: pass; DKIM aligns: s1._domainkey.example.com",
        "MX example.com": "MX mx.example.com",
    }
    assert not bad(findings)
    assert not published(findings)


def test_where_nothing_is_published_all_of_it_is_said() -> None:
    findings = examine(dict.fromkeys(GOOD, ()))
    assert bad(findings) == {
        "PTR 192.0.2.1": ("wrong", "no PTR record"),
        "EHLO mta.example.com": ("wrong", "no A record"),
        "SPF example.com": ("wrong", "none: no SPF record"),
        "DKIM s1._domainkey.example.com": ("wrong", "there is no TXT record at s1._domainkey.example.com"),
        "DMARC example.com": ("wrong", "no DMARC record"),
        "MX example.com": ("wrong", "neither MX nor address"),
    }
    first, second = KEY.record[:255], KEY.record[255:]
    assert published(findings) == [
        "1.2.0.192.in-addr.arpa. IN PTR mta.example.com. "
        "; in the reverse zone, which is with whoever gave you the address",
        "mta.example.com. IN A 192.0.2.1",
        'example.com. IN TXT "v=spf1 ip4:192.0.2.1 ~all" ; add whoever else sends for it',
        f's1._domainkey.example.com. IN TXT "{first}" "{second}" ; the only TXT record of this name',
        '_dmarc.example.com. IN TXT "v=DMARC1; p=none"',
        "; example.com. IN MX 10 HOST. (HOST is who takes your bounces)",
    ]


def test_where_no_name_server_answers_nothing_is_wrong() -> None:
    findings = examine(dict.fromkeys(GOOD, FAILS))
    assert {finding.verdict for finding in findings.values()} == {Verdict.UNKNOWN, Verdict.OK}
    assert [key for key, finding in findings.items() if finding.verdict is Verdict.OK] == ["SPF mta.example.com"]
    assert not published(findings)


@pytest.mark.parametrize("failing", sorted(GOOD))
def test_a_question_without_an_answer_makes_nothing_wrong(failing: str) -> None:
    assert {verdict for verdict, _ in bad(examine({failing: FAILS})).values()} <= {"cannot tell"}


@pytest.mark.parametrize(
    ("changed", "about", "found"),
    [
        ({REVERSE: ("other.test.",)}, "PTR 192.0.2.1", "other.test: none leads back to 192.0.2.1"),
        ({REVERSE: ("\x1b.test.",)}, "PTR 192.0.2.1", "?.test: none leads back to 192.0.2.1"),
        ({"mta.example.com A": ("192.0.2.7",)}, "EHLO mta.example.com", "leads to 192.0.2.7, not to 192.0.2.1"),
        ({"example.com TXT": ("v=spf1 a ~all",)}, "SPF example.com", "softfail: ~all"),
        ({"example.com TXT": ("v=spf1 oh\x07 -all",)}, "SPF example.com", "permerror: oh? is no mechanism"),
        ({"mta.example.com TXT": ("v=spf1 -all",)}, "SPF mta.example.com", "fail: -all"),
        (
            {"s1._domainkey.example.com TXT": ("v=DKIM1; t=y; p=",)},
            "DKIM s1._domainkey.example.com",
            "the key is revoked (p= is empty); t=y says that this is only a test",
        ),
        ({"example.com MX": ("0 .",)}, "MX example.com", "takes no mail (null MX)"),
        ({"mx.example.com A": ()}, "MX example.com", "no MX host has an address: mx.example.com"),
        (
            {"_dmarc.example.com TXT": ("v=DMARC1; p=none", "v=DMARC1; p=none")},
            "DMARC example.com",
            "2 DMARC records, which count as none",
        ),
        ({"_dmarc.example.com TXT": ("v=DMARC1; p=x",)}, "DMARC example.com", "no policy in v=DMARC1; p=x"),
    ],
)
def test_what_is_wrong_is_said(changed: Records, about: str, found: str) -> None:
    findings = bad(examine(changed))
    assert findings[about] == ("wrong", found)


def test_another_name_that_leads_back_will_do_and_the_ehlo_name_is_preferred() -> None:
    changed: Records = {REVERSE: ("other.test.",), "other.test A": (ADDRESS,)}
    findings = examine(changed)
    assert findings["PTR 192.0.2.1"].found == "other.test, which leads back, though the EHLO name is mta.example.com"
    assert not bad(findings)
    changed[REVERSE] = ("other.test.", "mta.example.com.")
    assert examine(changed)["PTR 192.0.2.1"].found == "mta.example.com, which leads back"


def test_bounces_may_come_back_by_an_address_alone() -> None:
    assert examine({"example.com MX": (), "example.com AAAA": ("2001:db8::1",)})["MX example.com"].found == (
        "no MX, but AAAA records"
    )


def test_an_ipv6_address_has_records_of_its_own() -> None:
    findings = examine(address="2001:db8::1")
    lines = published(findings)
    assert "mta.example.com. IN AAAA 2001:db8::1" in lines
    assert lines[0].startswith(f"1.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa. IN PTR mta.example.com.")
    assert any("v=spf1 ip6:2001:db8::1 ip4:192.0.2.1 -all" in line for line in lines)


def test_dmarc_is_satisfied_by_either_way() -> None:
    no_spf: Records = {"example.com TXT": ("v=spf1 -all",)}
    no_key: Records = {"s1._domainkey.example.com TXT": ()}
    dmarc = "DMARC example.com"
    assert examine(no_spf)[dmarc].verdict is Verdict.OK
    assert examine(no_key)[dmarc].verdict is Verdict.OK
    assert bad(examine(no_spf | no_key))[dmarc] == (
        "wrong",
        "p=reject of _dmarc.example.com; SPF aligns: fail; DKIM aligns, but s1._domainkey.example.com is wrong",
    )
    assert bad(examine(no_spf | {"s1._domainkey.example.com TXT": FAILS}))[dmarc][0] == "cannot tell"


def test_another_return_path_aligns_by_organization_only() -> None:
    other: Records = {"bounces.test TXT": ("v=spf1 ip4:192.0.2.1",), "bounces.test A": (ADDRESS,)}
    findings = examine(other, return_path="bounces.test", keys=())
    assert bad(findings)["DMARC example.com"][1].endswith("SPF is for bounces.test, which does not align; no DKIM key")
    assert published(findings) == ["; sign with a DKIM key of example.com"]
    below: Records = {"b.example.com TXT": ("v=spf1 ip4:192.0.2.1",), "b.example.com A": (ADDRESS,)}
    assert not bad(examine(below, return_path="b.example.com", keys=()))
    strict: Records = below | {"_dmarc.example.com TXT": ("v=DMARC1; p=none; aspf=s",)}
    assert [*bad(examine(strict, return_path="b.example.com", keys=()))] == ["DMARC example.com"]


def test_the_spf_record_of_a_domain_gets_all_addresses_at_once_and_keeps_what_it_has() -> None:
    present = "V=spf1 include:other.test -all"
    wanted = [Remedy("", DOMAIN, "SPF", f"ip4:192.0.2.{number}", present) for number in (1, 2, 1)]
    assert [one.data for one in to_publish([*wanted, Remedy("a note"), *wanted])] == [
        "V=spf1 ip4:192.0.2.1 ip4:192.0.2.2 include:other.test -all",
        "",
    ]
