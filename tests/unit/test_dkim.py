from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from spoolmta import dkim
from spoolmta.model import DomainPolicy

EMPTY = {
    ("simple", b""): "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=",
    ("relaxed", b""): "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    ("simple", b"\r\n\r\n"): "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=",
    ("relaxed", b" \t\r\n\r\n"): "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
}


@pytest.mark.parametrize(("canon", "body"), [*EMPTY])
def test_an_empty_body_has_the_hash_of_rfc_6376(canon: dkim.Canon, body: bytes) -> None:
    assert base64.b64encode(hashlib.sha256(dkim.canonical_body(body, canon)).digest()).decode() == EMPTY[canon, body]


FOOTBALL = (
    b"From: Joe SixPack <joe@football.example.com>\r\nTo: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner ready?\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\r\n"
    b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
)
BRISBANE = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n subject : date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n b=\r\n"
)


def test_the_sample_of_rfc_8463_is_reproduced() -> None:
    header, body = dkim.split(FOOTBALL)
    digest = base64.b64encode(hashlib.sha256(dkim.canonical_body(body, "relaxed")).digest())
    assert digest == b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
    seed = base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    pem = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = dkim.key_of("brisbane", "football.example.com", pem)
    covered = b"".join(dkim.canonical_field(field.raw, "relaxed") for field in dkim.fields_of(header))
    made = key.sign(covered + dkim.canonical_field(BRISBANE, "relaxed")[:-2])
    assert base64.b64encode(made) == (
        b"/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="
    )


def test_a_message_of_ten_thousand_fields_is_signed_in_a_moment() -> None:
    key = dkim.Key("s", "us.test", "rsa-sha256", lambda _: b"signature")
    content = b"From: a@us.test\r\n" + b"X-Odd: 1\r\nTo: x\r\n" * 5000 + b"\r\nbody\r\n"
    made = dkim.signed(content, [[key]], DomainPolicy(), 0.0)
    assert made.count(b"To:") >= 5001
    assert all(len(line) < 100 for line in made.split(b"\r\n"))


@pytest.mark.parametrize("line", [b"not a field: x", b"garbage", b" begins with a blank", b": no name", b"\xc3\xa4: x"])
def test_a_header_with_a_line_that_is_no_field_is_not_signed(line: bytes) -> None:
    with pytest.raises(dkim.Unsigned, match="bad-header"):
        dkim.fields_of(line + b"\r\nFrom: a@b.test\r\n more\r\nX:\r\n")
    fields = dkim.fields_of(b"garbage: no\r\nFrom: a@b.test\r\n more\r\nX:\r\n")
    assert [field.name for field in fields] == [b"garbage", b"From", b"X"]
    assert fields[1].raw == b"From: a@b.test\r\n more\r\n"


def test_a_key_whose_numbers_do_not_belong_together_is_no_key() -> None:
    private = rsa.generate_private_key(65537, 1024)
    der = private.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    refused = 0
    for place in range(0, len(der) * 8, 61):
        damaged = bytearray(der)
        damaged[place // 8] ^= 1 << place % 8
        pem = b"-----BEGIN RSA PRIVATE KEY-----\n" + base64.encodebytes(damaged) + b"-----END RSA PRIVATE KEY-----\n"
        try:
            key = dkim.key_of("s", "us.test", pem)
        except dkim.BadKey:
            refused += 1
            continue
        number = dkim.private_of(pem).public_key()
        assert isinstance(number, rsa.RSAPublicKey)
        number.verify(key.sign(b"x"), b"x", PKCS1v15(), SHA256())
    assert refused


def test_a_hostile_author_takes_no_time() -> None:
    for value in ('"' + '<\\"' * 60_000, "\\a" * 60_000 + "x@us.test" + ":" * 60_000, "<" * 100_000, "(" * 100_000):
        fields = dkim.fields_of(f"From: {value}\r\n".encode())
        with pytest.raises(dkim.Unsigned, match="no-address"):
            dkim.identity_of(fields, "strict-from")
    content = b"X-DKIM-Options:\r\n" * 50_000 + b"From: a@b.test\r\n\r\n" + b"x" * 5_000_000 + b"\r\n"
    with pytest.raises(dkim.Unsigned, match="bad-options"):
        dkim.take_options(content)


def any_key(domain: str = "*") -> dkim.Key:
    return dkim.Key("s1", domain, "rsa-sha256", lambda _: b"signature")


@pytest.mark.parametrize(
    ("options", "domain"),
    [
        (dkim.Options("typo"), "us.test"),
        (dkim.Options(domain="other.test"), "us.test"),
        (dkim.Options(identity="@evil.test"), "us.test"),
    ],
)
def test_a_key_that_was_asked_for_and_is_not_there_is_told(options: dkim.Options, domain: str) -> None:
    with pytest.raises(dkim.Unsigned, match="no-such-key"):
        dkim.signed(b"From: a@us.test\r\n\r\n", [[any_key(domain)]], DomainPolicy(), 0.0, options)


def test_a_key_for_any_domain_signs_for_the_one_that_was_asked_for() -> None:
    options = dkim.Options(domain="us.test", identity="@news.us.test")
    made = dkim.signed(b"From: a@elsewhere.test\r\n\r\n", [[any_key()]], DomainPolicy(), 0.0, options)
    assert b"d=us.test; s=s1;\r\n\ti=@news.us.test;" in made
    with pytest.raises(dkim.Unsigned, match="no-address"):
        dkim.signed(b"From: a@[192.0.2.1]\r\n\r\n", [[any_key()]], DomainPolicy(), 0.0)


def test_an_identity_is_written_as_a_quoted_one() -> None:
    policy = DomainPolicy(dkim_identity="a=41@us.test")
    assert b"i=a=3D41@us.test;" in dkim.signed(b"From: a@us.test\r\n\r\n", [[any_key("us.test")]], policy, 0.0)


@pytest.mark.parametrize(
    ("header", "wanted", "found"),
    [
        (b"From: a@b.test\r\n", "sender-or-from", "@b.test"),
        (b"FROM: =?x?= <a@M\xc3\xbcller.test>\r\n", "sender-or-from", "@xn--mller-kva.test"),
        (b"From: a@b.test\r\nSender: c@d.test\r\n", "sender-or-from", "@d.test"),
        (b"From: a@b.test\r\nSender: c@d.test\r\n", "strict-from", "@b.test"),
        (b"From: a@b.test, c@d.test\r\n", "strict-from", "@b.test"),
        (b"From: a@b.test\r\n", "@e.test", "@e.test"),
    ],
)
def test_the_identity_is_that_of_the_message_or_the_configured_one(header: bytes, wanted: str, found: str) -> None:
    assert dkim.identity_of(dkim.fields_of(header), wanted) == found


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"To: x\r\n", "no-from"),
        (b"From: a@b.test\r\nfrom: c@d.test\r\n", "two-from"),
        (b"From: nobody\r\n", "no-address"),
    ],
)
def test_without_one_author_there_is_no_identity(header: bytes, reason: str) -> None:
    with pytest.raises(dkim.Unsigned, match=f"^{reason}$"):
        dkim.identity_of(dkim.fields_of(header), "@e.test" if reason != "no-address" else "strict-from")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        (b"X-DKIM-Options: s=a; d=B.test; i=@x.b.test", dkim.Options("a", "b.test", "@x.b.test")),
        (b"x-dkim-options:\r\n\td=b.test;", dkim.Options("", "b.test", "")),
        (b"X-Dkim-Options: i=b.test; q=dns/txt", dkim.Options("", "", "@b.test")),
        (b"X-DKIM-Options: i=Local@b.test", dkim.Options("", "", "Local@b.test")),
        (b"X-DKIM-Options: d=m\xc3\xbcller.test", dkim.Options("", "xn--mller-kva.test", "")),
        (b"X-DKIM-Options:", dkim.Options()),
    ],
)
def test_options_are_taken_off_the_message(field: bytes, options: dkim.Options) -> None:
    before, after = b"Foo-X-DKIM-Options: s=a; d=B.test; i=@x.b.test\r\n", b"From: a@b.test\r\n\r\nbody\r\n"
    assert dkim.take_options(before + field + b"\r\n" + after) == (before + after, options)
    assert dkim.take_options(before + after) == (before + after, None)


@pytest.mark.parametrize(
    "field",
    [b"X-DKIM-Options: l=1", b"X-DKIM-Options: d=a b", b"X-DKIM-Options: key-list=x", b"X-DKIM-Options: i=a@b@c",
     b"X-DKIM-Options: d=a\r\nX-DKIM-Options: d=a", b"X-DKIM-Options: i=@",
     b"X-DKIM-Options: i=a@", b"X-DKIM-Options: d=a/b=c{}", b"X-DKIM-Options: d=us.test; i=@evil.test",
     b"X-DKIM-Options: i=@.us.test", b"X-DKIM-Options: i=" + b"a" * 65 + b"@us.test", b"X-DKIM-Options: d=[192.0.2.1]"],
)  # fmt: skip
def test_options_that_cannot_be_obeyed_are_taken_off_too(field: bytes) -> None:
    with pytest.raises(dkim.Unsigned, match="bad-options") as caught:
        dkim.take_options(field + b"\r\nFrom: a@b.test\r\n\r\n")
    assert caught.value.content == b"From: a@b.test\r\n\r\n"


SHORT = b"""-----BEGIN RSA PRIVATE KEY-----
MIIBOQIBAAJBALFMfrvITYTL6SAxgtMNhVTGKaysPYCn+shH7CuFhWGIKpCigZkH
jCCTELesYKlYEQrcigswj0NEnKPKmhPblFkCAwEAAQJAV3dAUk1HiMq7sGkcfBgA
fcjgyFGUacL04hcxOGs/WNRsL4uhCugQiIOaW1SspIuRImibCo4BsYKtUOOmxzjp
vQIhAOYVOqB5ciql/FftcMIImZ948WSljbpdz0XgBP5sMOCHAiEAxUUpDXPa39rj
ODdoSSyPXXtivMot/4X0i2ZWr6AZfB8CIH+874SiiFjXOIcUgxKmtauM+O/43fvH
E0lm+z7JkEVHAiBFcGPT/W0VETqcRjyqTUol0NHfvJdWc7OyAhMPfR6bZwIgPVlL
bDtbbZn1K0UsJxrR/fpwU92lhLCcPfyP3M9h3bk=
-----END RSA PRIVATE KEY-----
"""


def test_a_file_that_is_no_key_says_why() -> None:
    encrypted = rsa.generate_private_key(65537, 1024).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
    public += b"-----END PUBLIC KEY-----\n"
    for pem, sentence in (
        (encrypted, "the key is encrypted"),
        (SHORT, "the key has 512 bits: receivers ignore less than 1024"),
        (curve, "neither RSA nor Ed25519"),
        (public, "there is no private key in it"),
        (b"", "there is no private key in it"),
    ):
        with pytest.raises(dkim.BadKey, match=sentence):
            dkim.key_of("s", "us.test", pem)


def test_a_message_of_nothing_but_options_is_empty() -> None:
    assert dkim.take_options(b"X-DKIM-Options: s=a\r\n") == (b"\r\n", dkim.Options("a"))
