"""TLSA records against certificates, from bytes alone."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from spoolmta import dane
from spoolmta.dane import Tlsa

NOW = datetime.now(UTC)
DIGESTS: dict[int, Any] = {
    0: bytes,
    1: lambda data: hashlib.sha256(data).digest(),
    2: lambda data: hashlib.sha512(data).digest(),
}
ROOT = trustme.CA()
MIDDLE = ROOT.create_child_ca()
LEAF = MIDDLE.issue_cert("mx.mail.test", "*.wild.test")
OTHER = trustme.CA()


def der(blob: trustme.Blob) -> bytes:
    return x509.load_pem_x509_certificate(blob.bytes()).public_bytes(Encoding.DER)


LEAF_DER, MIDDLE_DER, ROOT_DER = der(LEAF.cert_chain_pems[0]), der(MIDDLE.cert_pem), der(ROOT.cert_pem)
CHAIN = [LEAF_DER, MIDDLE_DER, ROOT_DER]


def key_of(certificate: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def tlsa(usage: int, selector: int, matching: int, certificate: bytes) -> Tlsa:
    data = certificate if selector == 0 else key_of(certificate)
    return Tlsa(usage, selector, matching, DIGESTS[matching](data))


def problem(
    *records: Tlsa, chain: list[bytes] = CHAIN, names: tuple[str, ...] = ("mx.mail.test",), now: datetime = NOW
) -> str:
    return dane.problem(records, chain, names, now)


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_every_way_of_naming_the_hosts_certificate_matches_it_and_no_other(selector: int, matching: int) -> None:
    assert problem(tlsa(3, selector, matching, LEAF_DER)) == ""
    assert "not the one of its TLSA records" in problem(tlsa(3, selector, matching, MIDDLE_DER))
    assert problem(tlsa(3, selector, matching, ROOT_DER), tlsa(3, selector, matching, LEAF_DER)) == ""


def test_names_and_dates_do_not_count_for_the_hosts_own_certificate() -> None:
    later = NOW + timedelta(days=365_000)
    assert problem(tlsa(3, 1, 1, LEAF_DER), names=("other.test",), now=later) == ""


@pytest.mark.parametrize("signer", [MIDDLE_DER, ROOT_DER])
@pytest.mark.parametrize(("selector", "matching"), [(0, 0), (0, 1), (1, 1), (1, 2)])
def test_an_authority_of_the_chain_matches_by_signature(signer: bytes, selector: int, matching: int) -> None:
    record = tlsa(2, selector, matching, signer)
    assert problem(record) == ""
    assert problem(record, chain=[LEAF_DER, ROOT_DER, MIDDLE_DER]) == "", "the order does not matter"
    assert "is not for other.test" in problem(record, names=("other.test",))
    assert problem(record, names=("other.test", "any.wild.test")) == ""
    assert "not valid at this time" in problem(record, now=NOW + timedelta(days=365_000))


def test_an_authority_that_stands_in_the_chain_but_has_signed_nothing_does_not_match() -> None:
    stranger = der(OTHER.cert_pem)
    record = tlsa(2, 0, 1, stranger)
    assert "not signed by the authority" in problem(record, chain=[*CHAIN, stranger])
    assert "not signed by the authority" in problem(record)
    forged = der(trustme.CA().issue_cert("mx.mail.test").cert_chain_pems[0])
    assert "not signed by" in problem(tlsa(2, 0, 1, ROOT_DER), chain=[forged, MIDDLE_DER, ROOT_DER])


def test_a_certificate_that_is_no_authority_signs_nothing() -> None:
    assert "not signed by" in problem(tlsa(2, 0, 1, LEAF_DER), chain=[LEAF_DER, LEAF_DER])


def test_a_host_without_a_certificate_has_a_problem() -> None:
    assert problem(tlsa(3, 1, 1, LEAF_DER), chain=[]) == "the host shows no certificate"


@pytest.mark.parametrize(
    ("text", "is_usable"),
    [
        ("3 1 1 " + "ab" * 32, True),
        ("3 1 1 " + "AB " * 32, True),
        ("3 0 2 " + "ab" * 64, True),
        ("3 0 0 30", True),
        ("3 1 1 " + "ab" * 31, False),
        ("3 1 2 " + "ab" * 32, False),
        ("3 0 0", False),
        ("3 2 1 " + "ab" * 32, False),
        ("3 1 3 " + "ab" * 32, False),
        ("0 0 1 " + "ab" * 32, False),
        ("1 1 1 " + "ab" * 32, False),
        ("255 1 1 " + "ab" * 32, False),
        ("3 1 1 " + "xy" * 32, False),
        ("3 1", False),
        ("", False),
    ],
)
def test_only_records_that_say_something_we_understand_are_usable(text: str, is_usable: bool) -> None:
    assert bool(dane.usable([text], has_chain=True)) is is_usable


def test_who_has_signed_can_be_used_only_where_the_chain_is_seen() -> None:
    record = "2 1 1 " + "ab" * 32
    assert len(dane.usable([record], has_chain=True)) == 1
    assert dane.usable([record], has_chain=False) == ()


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("mx.mail.test", "MX.mail.test.", True),
        ("*.mail.test", "mx.mail.test", True),
        ("*.mail.test", "a.mx.mail.test", False),
        ("*.mail.test", "mail.test", False),
        ("*.mail.test", ".mail.test", False),
        ("m*.mail.test", "mx.mail.test", False),
        ("*", "test", False),
        ("*.", "test", False),
        ("", "", False),
    ],
)
def test_a_star_is_one_label(pattern: str, name: str, matches: bool) -> None:
    assert dane.matches_name(pattern, name) is matches
