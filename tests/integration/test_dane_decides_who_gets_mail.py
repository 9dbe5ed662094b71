"""DANE (RFC 7672): what the DNS says and what the host shows, and whether mail goes there."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from spoolmta import dane
from spoolmta.tls_channel import HAS_CHAIN
from tests.support.tls import Authority, der_in
from tests.support.tls_scene import MX, Scene

TLSA = f"_PORT._tcp.{MX}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def record(certificate: bytes, usage: int = 3, selector: int = 1) -> str:
    data = dane.public_key(certificate) if selector else certificate
    return f"{usage} {selector} 1 {hashlib.sha256(data).hexdigest()}"


def signed(*records: str) -> dict[str, Any]:
    return {"TLSA": list(records), "AD": True}


WRONG = "3 1 1 " + "ab" * 32
UNUSABLE = "1 1 1 " + "ab" * 32


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def tell() -> None:
        await story()

    asyncio.run(tell())


def outcome(path: Path, certificate: str, zones: dict[str, Any], **options: Any) -> str:
    """The TLS version a session gets with use-dane, "plain", or why there is none."""
    found: list[str] = []

    async def story() -> None:
        async with Scene(path, zones, tls_certificate=certificate, **options) as scene:
            found.append(await scene.version(use_dane=True))

    play(story)
    return found[0]


@pytest.mark.parametrize("selector", [0, 1])
def test_a_host_with_the_certificate_of_its_record_gets_mail(
    tmp_path: Path, authority: Authority, selector: int
) -> None:
    certificate = authority.certificate(MX)
    assert outcome(tmp_path, certificate, {TLSA: signed(record(der_in(certificate), 3, selector))}) == "TLSv1.3"


def test_neither_names_nor_dates_count_for_the_hosts_own_certificate(tmp_path: Path, authority: Authority) -> None:
    certificate = authority.certificate("other.test", is_expired=True)
    assert outcome(tmp_path, certificate, {TLSA: signed(WRONG, record(der_in(certificate)))}) == "TLSv1.3"


def test_a_host_with_another_certificate_gets_none(tmp_path: Path, authority: Authority) -> None:
    said = outcome(tmp_path, authority.certificate(MX), {TLSA: signed(WRONG)})
    assert said == "the host's certificate is not the one of its TLSA records (DANE demands TLS)"


def test_records_that_cannot_be_used_demand_tls_with_any_certificate(tmp_path: Path, authority: Authority) -> None:
    zones = {TLSA: signed(UNUSABLE)}
    assert outcome(tmp_path, authority.certificate("other.test"), zones) == "TLSv1.3"
    assert outcome(tmp_path, "", zones) == "the host does not offer STARTTLS, which DANE demands"
    broken = outcome(tmp_path, authority.certificate(MX), zones, starttls="garbage")
    assert "(DANE demands TLS)" in broken


@pytest.mark.parametrize("offers", ["", "454", "garbage"])
def test_a_host_with_a_record_never_gets_mail_in_the_clear(tmp_path: Path, authority: Authority, offers: str) -> None:
    certificate = authority.certificate(MX)
    zones = {TLSA: signed(record(der_in(certificate)))}
    options = {"starttls": offers} if offers else {}
    assert "DANE demands" in outcome(tmp_path, certificate if offers else "", zones, **options)


@pytest.mark.parametrize("word", ["SERVFAIL", "REFUSED"])
def test_a_look_up_that_fails_is_not_the_same_as_no_record(tmp_path: Path, authority: Authority, word: str) -> None:
    said = outcome(tmp_path, authority.certificate(MX), {TLSA: {"TLSA": word, "AD": True}})
    assert said.startswith("DNS look-up of TLSA ")
    address = outcome(tmp_path, authority.certificate(MX), {MX: {"AAAA": word, "A": ["127.0.0.2"], "AD": True}})
    assert address.startswith("DNS look-up of AAAA ")


@pytest.mark.parametrize(
    "zones",
    [
        {TLSA: {"TLSA": [WRONG]}},
        {TLSA: signed(WRONG), MX: {"A": ["127.0.0.2"]}},
        {TLSA: signed(WRONG), "a.test": {"MX": [f"10 {MX}"]}},
        {},
        {TLSA: "NXDOMAIN"},
    ],
    ids=["the record", "the address", "the mail host", "no record", "no name"],
)
def test_what_dnssec_does_not_prove_demands_nothing(
    tmp_path: Path, authority: Authority, zones: dict[str, Any]
) -> None:
    assert outcome(tmp_path, authority.certificate("other.test"), zones) == "TLSv1.3"
    assert outcome(tmp_path, "", zones) == "plain"


def test_where_the_first_host_fails_the_next_one_gets_the_mail(tmp_path: Path, authority: Authority) -> None:
    certificate = authority.certificate(MX)
    zones = {
        "a.test": {"MX": ["10 bad.mail.test", f"20 {MX}"], "AD": True},
        "bad.mail.test": {"A": ["127.0.0.2"], "AD": True},
        "_PORT._tcp.bad.mail.test": signed(WRONG),
        TLSA: signed(record(der_in(certificate))),
    }

    async def story() -> None:
        async with Scene(tmp_path, zones, tls_certificate=certificate) as scene:
            result = await scene.open(use_dane=True)
            assert result.ends.host == MX

    play(story)


def test_an_alias_of_a_mail_host_has_the_records_of_its_real_name(tmp_path: Path, authority: Authority) -> None:
    zones = {
        "a.test": {"MX": ["10 alias.test"], "AD": True},
        "alias.test": {"CNAME": [MX], "AD": True},
        TLSA: signed(WRONG),
    }
    assert "DANE demands" in outcome(tmp_path, authority.certificate(MX), zones)


def test_without_use_dane_nobody_asks_for_records(tmp_path: Path, authority: Authority) -> None:
    async def story() -> None:
        async with Scene(tmp_path, {TLSA: signed(WRONG)}, tls_certificate=authority.certificate(MX)) as scene:
            assert await scene.version() == "TLSv1.3"
            assert scene.dns.count(f"_{scene.port}._tcp.{MX}") == 0

    play(story)


def test_a_session_is_not_resumed_where_the_certificate_must_be_seen(tmp_path: Path, authority: Authority) -> None:
    certificate = authority.certificate(MX)

    async def story() -> None:
        async with Scene(tmp_path, {TLSA: signed(record(der_in(certificate)))}, tls_certificate=certificate) as scene:
            assert await scene.version(use_dane=True) == "TLSv1.3"
            scene.serve({TLSA: signed(WRONG)})
            scene.opener.resolver.forget(f"_{scene.port}._tcp.{MX}", "TLSA")
            assert "DANE demands" in await scene.version(use_dane=True)

    play(story)


def test_the_authority_of_a_record_must_have_signed_the_certificate_for_the_hosts_name(
    tmp_path: Path, authority: Authority
) -> None:
    zones = {TLSA: signed(record(authority.der, 2, 0))}
    assert outcome(tmp_path, authority.certificate(MX), zones) == "TLSv1.3"
    assert outcome(tmp_path, authority.certificate("a.test"), zones) == "TLSv1.3"
    for certificate in (authority.certificate("other.test"), authority.certificate(MX, is_expired=True)):
        assert ("DANE demands" in outcome(tmp_path, certificate, zones)) is HAS_CHAIN
    stranger = Authority(tmp_path / "stranger").certificate(MX)
    assert ("DANE demands" in outcome(tmp_path, stranger, zones)) is HAS_CHAIN
    assert "DANE demands" in outcome(tmp_path, "", zones)


def test_a_name_server_elsewhere_is_not_believed(tmp_path: Path) -> None:
    async def story() -> None:
        async with Scene(tmp_path) as scene:
            assert scene.opener.resolver.is_trusted
            resolver = type(scene.opener.resolver)
            chance = scene.opener.resolver._chance
            assert not resolver(("192.0.2.1:53",), chance).is_trusted
            assert not resolver(("127.0.0.1:53", "192.0.2.1:53"), chance).is_trusted
            assert resolver(("[::1]:53",), chance).is_trusted
            assert resolver(("192.0.2.1:53",), chance, is_trusted=True).is_trusted

    play(story)
