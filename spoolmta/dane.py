"""What TLSA records say about a host's certificate (RFC 6698, RFC 7672), from bytes alone.

| record | means | here |
|---|---|---|
| 3 x x | this is the host's certificate, or its key: names and dates do not count (RFC 7672 section 3.1.1) | always |
| 2 x x | this has signed it; names and dates count (section 3.1.2) | where Python gives the chain (3.13) |
| 0 x x, 1 x x, anything else | cannot be used (section 3.1.3) | never |

A record that cannot be used is as if it were not there, but that there are records at all means that the host does
TLS: where none can be used, TLS is demanded without looking at the certificate (section 2.2). That is also what a 2 x x
record alone is worth on a Python without the chain: a usage that is not supported makes a record unusable (RFC 6698
section 4.1), it is never less than opportunistic TLS, and to hold the mail of such domains until it bounces is no way
out. Beside a 3 x x record that does not match it does not help: the host fails.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_CHAIN = 10
_DIGESTS = {1: ("sha256", 32), 2: ("sha512", 64)}


class Tlsa(msgspec.Struct, frozen=True):
    """One record: `usage` 3 or 2, `selector` 0 (the certificate) or 1 (its key), `matching` 0 (exactly), 1 (SHA-256)
    or 2 (SHA-512) of `data`."""

    usage: int
    selector: int
    matching: int
    data: bytes


class Malformed(ValueError):
    """These bytes are no certificate."""


def usable(records: Sequence[str], has_chain: bool) -> tuple[Tlsa, ...]:
    """The records that can be used, of those in the answer (as text, "3 1 1 <hex>"). Never raises."""
    found = []
    for text in records:
        parts = text.split()
        try:
            usage, selector, matching = (int(part) for part in parts[:3])
            data = bytes.fromhex("".join(parts[3:]))
        except ValueError:
            continue
        if usage == 3 or (usage == 2 and has_chain):
            digest = _DIGESTS.get(matching)
            is_whole = len(data) == digest[1] if digest else matching == 0 and bool(data)
            if selector in (0, 1) and is_whole:
                found.append(Tlsa(usage, selector, matching, data))
    return tuple(found)


def problem(records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: datetime) -> str:
    """What is wrong with a host's certificate (the first of `chain`, DER) by these records; "" for nothing.

    `names` are those its certificate may be for, where a record is about who has signed it.
    """
    if not chain:
        return "the host shows no certificate"
    if any(record.usage == 3 and _is_of(record, chain[0]) for record in records):
        return ""
    anchors = [record for record in records if record.usage == 2]
    if not anchors:
        return "the host's certificate is not the one of its TLSA records"
    try:
        return _signed_problem(anchors, chain[:MAX_CHAIN], names, now)
    except Exception:  # a stranger's certificate can be wrong in more ways than `cryptography` has names for
        return "the host's certificate chain cannot be read"


def _is_of(record: Tlsa, certificate: bytes) -> bool:
    try:
        selected = certificate if record.selector == 0 else public_key(certificate)
    except Malformed:
        return False
    digest = _DIGESTS.get(record.matching)
    return (hashlib.new(digest[0], selected).digest() if digest else selected) == record.data


def public_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a certificate (DER), byte for byte as it stands there: decoding and encoding it anew
    would change some (RSASSA-PSS keys, for example). Raises Malformed."""
    outer, _, _ = _element(certificate, 0, 0x30)
    position, end, _ = _element(certificate, outer, 0x30)  # TBSCertificate (RFC 5280 section 4.1)
    if certificate[position : position + 1] == b"\xa0":
        position = _element(certificate, position, 0xA0)[1]  # version
    for tag in (0x02, 0x30, 0x30, 0x30, 0x30):  # serialNumber, signature, issuer, validity, subject
        position = _element(certificate, position, tag)[1]
    _, stop, _ = _element(certificate, position, 0x30)
    if stop > end:
        raise Malformed("an element is longer than what it stands in")
    return certificate[position:stop]


def _element(data: bytes, position: int, tag: int) -> tuple[int, int, int]:
    """Where the content of the DER element at `position` begins and ends, and its tag, which must be this one."""
    if position + 2 > len(data) or data[position] != tag:
        raise Malformed("not the element that belongs here")
    length, start = data[position + 1], position + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or start + size > len(data):
            raise Malformed("not a length")
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    if start + length > len(data):
        raise Malformed("an element is longer than its certificate")
    return start, start + length, tag


def _signed_problem(anchors: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: datetime) -> str:
    """Follow the signatures from the host's certificate to one that a record names (RFC 7672 section 3.1.2)."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    with warnings.catch_warnings():  # of what is odd in a stranger's certificate
        warnings.simplefilter("ignore")
        shown = [x509.load_der_x509_certificate(der) for der in chain]
    if not any(_is_for(shown[0], name) for name in names):
        return f"the host's certificate is not for {' or '.join(names)}"
    here = 0
    left = list(range(1, len(chain)))
    while True:
        if not shown[here].not_valid_before_utc <= now <= shown[here].not_valid_after_utc:
            return "a certificate of the host's chain is not valid at this time"
        if here and any(_is_of(record, chain[here]) for record in anchors):
            return ""
        for candidate in left:
            if not _may_sign(shown[candidate]):
                continue
            try:
                shown[here].verify_directly_issued_by(shown[candidate])
            except (ValueError, TypeError, InvalidSignature):
                continue
            break
        else:
            return "the host's certificate is not signed by the authority of its TLSA records"
        left.remove(candidate)
        here = candidate


def _may_sign(certificate: Certificate) -> bool:
    from cryptography import x509

    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.value.ca


def _is_for(certificate: Certificate, name: str) -> bool:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found = names.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return any(matches_name(pattern, name) for pattern in found)


def matches_name(pattern: str, name: str) -> bool:
    """Whether a host name is the pattern's, where `*.` stands for exactly one label (RFC 6125 section 6.4.3, RFC 8461
    section 4.1). Upper and lower case, and a final dot, are the same."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern.startswith("*."):
        label, _, rest = name.partition(".")
        return bool(label) and rest == pattern[2:] != ""
    return pattern == name != ""
