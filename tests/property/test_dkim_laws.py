"""Signatures against dkimpy, an implementation that is not ours, on odd messages."""

from __future__ import annotations

import base64
import math

import dkim as dkimpy
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from dkim import canonicalization as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta import dkim
from spoolmta.dkim import Key
from spoolmta.model import DomainPolicy

RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()
RECORDS = {
    b"rsa._domainkey.us.test.": b"v=DKIM1; k=rsa; p="
    + base64.b64encode(
        RSA.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ),
    b"ed._domainkey.us.test.": b"v=DKIM1; k=ed25519; p=" + base64.b64encode(ED.public_key().public_bytes_raw()),
}
KEYS = (
    Key("rsa", "us.test", "rsa-sha256", lambda data: RSA.sign(data, padding.PKCS1v15(), hashes.SHA256())),
    Key("ed", "us.test", "ed25519-sha256", lambda data: ED.sign(__import__("hashlib").sha256(data).digest())),
)
NOW = 1_795_687_200.0

lines = st.lists(
    st.sampled_from([b"", b" ", b"  ", b"\t", b"a", b"a b", b" a", b"b  ", b"\xe4", b".", b"--"]), max_size=8
)
bodies = st.builds(lambda parts, end: b"\r\n".join(parts) + end, lines, st.sampled_from([b"\r\n", b"\r\n\r\n"]))
values = st.sampled_from(
    [b"x", b" x", b"\t x\ty ", b" x\r\n\ty", b" x \r\n  y\r\n z", b"", b" ", b" \xc3\xa4", b" a:b"]
)
names = st.sampled_from([b"Subject", b"SUBJECT", b"To", b"X-Odd", b"Date", b"Received", b"List-Unsubscribe"])
headers = st.lists(st.tuples(names, values), max_size=6)
policies = st.builds(
    DomainPolicy,
    dkim_headers_canon=st.sampled_from(["relaxed", "simple"]),
    dkim_body_canon=st.sampled_from(["relaxed", "simple"]),
    dkim_disallow_adding_headers=st.booleans(),
    dkim_add_timestamp=st.booleans(),
    dkim_headers=st.sampled_from([(), ("X-Odd",), ("Received", "Subject")]),
    dkim_expire_after=st.sampled_from([math.inf, 1e9]),
)


def message(fields: list[tuple[bytes, bytes]], body: bytes, author: bytes = b"From: a@us.test\r\n") -> bytes:
    return b"".join(name + b":" + value + b"\r\n" for name, value in fields) + author + b"\r\n" + body


def verifies(content: bytes, which: int) -> bool:
    try:
        found: bool = dkimpy.DKIM(content).verify(idx=which, dnsfunc=lambda name, **_: RECORDS.get(name))
    except dkimpy.DKIMException:
        return False
    return found


@settings(max_examples=300)
@given(bodies)
def test_bodies_are_canonical_as_the_reference_has_them(body: bytes) -> None:
    assert dkim.canonical_body(body, "relaxed") == reference.Relaxed.canonicalize_body(body)
    assert dkim.canonical_body(body, "simple") == reference.Simple.canonicalize_body(body)


@settings(max_examples=300)
@given(names, values)
def test_fields_are_canonical_as_the_reference_has_them(name: bytes, value: bytes) -> None:
    raw = name + b":" + value + b"\r\n"
    [(found, text)] = reference.Relaxed.canonicalize_headers([(name, value + b"\r\n")])
    assert dkim.canonical_field(raw, "relaxed") == found + b":" + text
    assert dkim.canonical_field(raw, "simple") == raw


@settings(max_examples=150, deadline=None)
@given(headers, bodies, policies)
def test_every_signature_verifies(fields: list[tuple[bytes, bytes]], body: bytes, policy: DomainPolicy) -> None:
    content = message(fields, body if body.endswith(b"\r\n") else body + b"\r\n")
    made = dkim.signed(content, [KEYS], policy, NOW)
    assert made.endswith(content)
    assert made.count(b"DKIM-Signature:") == 2
    assert all(len(line) <= 78 for line in made[: len(made) - len(content)].split(b"\r\n"))
    assert verifies(made, 0)
    assert verifies(made, 1)
    assert not verifies(made + b"more\r\n", 0)


@settings(max_examples=60, deadline=None)
@given(
    headers, bodies, st.sampled_from([b"Subject", b"From", b"Reply-To", b"To", b"Content-Type", b"list-unsubscribe"])
)
def test_no_field_that_matters_can_be_added(fields: list[tuple[bytes, bytes]], body: bytes, name: bytes) -> None:
    made = dkim.signed(message(fields, body + b"\r\n"), [KEYS], DomainPolicy(), NOW)
    assert verifies(made, 0)
    assert not verifies(name + b": another\r\n" + made, 0)


domains = st.sampled_from(["us.test", "mail.us.test", "a.mail.us.test", "notus.test", "other.test"])


@given(
    domains, st.lists(st.tuples(domains | st.just("*"), st.sampled_from(["rsa-sha256", "ed25519-sha256"])), max_size=6)
)
def test_the_key_of_the_nearest_domain_signs_and_the_first_of_equals(
    domain: str, listed: list[tuple[str, str]]
) -> None:
    keys = [Key(f"s{number}", name, kind, bytes) for number, (name, kind) in enumerate(listed)]  # type: ignore[arg-type]
    chosen = [*dkim.choose(keys, f"@{domain}").values()]
    assert len({key.algorithm for key in chosen}) == len(chosen)
    for key in chosen:
        assert domain == key.domain or domain.endswith(f".{key.domain}")
    for kind in {key.algorithm for key in keys}:
        near = [len(key.domain) if key.domain != "*" else 0 for key in keys if key.algorithm == kind and
                (key.domain in ("*", domain) or domain.endswith(f".{key.domain}"))]  # fmt: skip
        found = [key for key in chosen if key.algorithm == kind]
        assert bool(found) == bool(near)
        if near and max(near):
            assert len(found[0].domain) == max(near)
