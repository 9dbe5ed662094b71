"""What is wrong with the TXT record of a DKIM key."""

from __future__ import annotations

import base64

import pytest

from spoolmta.published import dkim_key
from spoolmta.published.dkim_key import DkimKey
from tests.support.answers import Answers

BARE = bytes(range(256)) + b"end of the key"
HEADER = b"\x30\x82" + b"h" * 22
RSA = base64.b64encode(HEADER + BARE).decode()
OTHER = base64.b64encode(HEADER + BARE[::-1]).decode()
KEY = DkimKey("s1", "example.com", RSA)
EDWARDS = DkimKey("s2", "example.com", base64.b64encode(b"e" * 32).decode(), "ed25519")


def problems(*records: str, key: DkimKey = KEY) -> list[str]:
    return Answers({f"{key.name} TXT": records}).resolve(dkim_key.check(key))


@pytest.mark.parametrize(
    "record",
    [
        KEY.record,
        f"p={RSA}",
        f"v=DKIM1; p={RSA};",
        f"v=DKIM1 ;k = rsa;  n=a note ; t=s; s=email; h=sha1:sha256; p= {RSA[:20]}\t {RSA[20:]} ; x=unknown",
        f"v=DKIM1; s=*; p={base64.b64encode(BARE).decode()}",
    ],
)
def test_a_record_that_has_the_key_is_good(record: str) -> None:
    assert problems(record) == []


def test_a_key_of_ed25519_stands_there_as_32_bytes() -> None:
    assert EDWARDS.record == "v=DKIM1; k=ed25519; p=" + EDWARDS.public
    assert problems(EDWARDS.record, key=EDWARDS) == []
    assert problems(f"v=DKIM1; p={EDWARDS.public}", key=EDWARDS) == ["k=rsa, but the key is ed25519"]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (f"v=DKIM1; p={OTHER}", "p= is another key"),
        (f"v=DKIM1; p={RSA[:-8]}", "p= is another key"),
        (f"v=DKIM1; p={base64.b64encode(BARE[-9:]).decode()}", "p= is another key"),
        ("v=DKIM1; p=no base64!", "p= is another key"),
        ("v=DKIM1; p=", "the key is revoked (p= is empty)"),
        ("v=DKIM1; k=rsa", "p= is missing"),
        (f"v=DKIM1; t=s:y; p={RSA}", "t=y says that this is only a test"),
        (f"v=DKIM1; k=ed25519; p={RSA}", "k=ed25519, but the key is rsa"),
        (f"v=DKIM1; h=sha1; p={RSA}", "h=sha1 does not allow sha256"),
        (f"v=DKIM1; s=other; p={RSA}", "s=other is not for mail"),
        (f"v=DKIM2; p={RSA}", "v=DKIM2 is not v=DKIM1"),
        (f"k=rsa; v=DKIM1; p={RSA}", "v=DKIM1 does not stand first"),
        (f"v=DKIM1; p={RSA}; p={RSA}", f"the record is no list of tags: v=DKIM1; p={RSA}"[:107]),
        ("\x1b[2J", "the record is no list of tags: ?[2J"),
        ("v=DKIM1; k=\x1b; p=", "k=?, but the key is rsa"),
    ],
)
def test_what_is_wrong_is_said(record: str, problem: str) -> None:
    assert problems(record)[0].startswith(problem)


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert len(problems("v=DKIM2; k=x; h=sha1; s=x; t=y; p=")) == 6


def test_one_record_is_needed() -> None:
    assert problems() == ["there is no TXT record at s1._domainkey.example.com"]
    assert problems(KEY.record, "v=spf1 -all") == ["there are 2 TXT records, and any of them may be taken"]
