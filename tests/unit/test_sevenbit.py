from __future__ import annotations

import pytest

from spoolmta.sevenbit import Unconvertible, convert

PART = b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n"


def test_text_becomes_quoted_printable_and_everything_else_stays() -> None:
    message = (
        b"Subject:  a \r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\nX: y\r\n\r\nGru\xc3\x9f und mehr \r\n.\r\n"
    )
    assert convert(message) == (
        b"Subject:  a \r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\nX: y\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\nGru=C3=9F und mehr=20\r\n=2E\r\n"
    )


def test_the_field_that_is_there_is_changed_in_its_place() -> None:
    message = b"Content-Transfer-Encoding: 8bit\r\nContent-Type: a/b\r\nMIME-Version: 1.0\r\n\r\n\xff\xfe\r\n"
    assert convert(message).startswith(b"Content-Transfer-Encoding: base64\r\nContent-Type: a/b\r\n")


def test_a_message_without_mime_gets_the_fields_that_make_its_encoding_heard() -> None:
    head = convert(b"Subject: x\r\n\r\nGru\xdf an alle\r\n").partition(b"\r\n\r\n")[0]
    assert head.split(b"\r\n")[1:] == [
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=unknown-8bit",
        b"Content-Transfer-Encoding: quoted-printable",
    ]


def test_only_the_parts_that_need_it_are_touched() -> None:
    head = b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n'
    plain = b"--b\r\nContent-Type: text/plain\r\n\r\nplain  \r\n"
    assert convert(head + plain + PART + b"--b--\r\n").startswith(head + plain + b"--b\r\nContent-Type: text/plain; ch")


def test_what_is_7_bit_is_given_back() -> None:
    message = b"Subject: x\r\n\r\nplain\r\n"
    assert convert(message) is message


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"DKIM-Signature: v=1; b=x\r\nSubject: x\r\n\r\n\xff\r\n", "signed"),
        (b"dkim-signature : v=1;\r\n b=x\r\n\r\n\xff\r\n", "signed"),
        (b'Content-Type: multipart/signed; boundary="b"\r\n\r\n' + PART + b"--b--\r\n", "multipart/signed"),
        (b'Content-Type: multipart/mixed; boundary="a"\r\n\r\n--a\r\nContent-Type: Multipart/Signed; boundary=b\r\n\r\n'
         + PART + b"--b--\r\n--a--\r\n", "multipart/signed"),
        (b"Subject: Gr\xc3\xbc\xc3\x9fe\r\n\r\nx\r\n", "in a header"),
        (b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n\xff\r\n", "encoded already"),
        (b"Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\n\xff\r\n", "without a boundary"),
        (b"Content-Type: multipart/mixed; boundary=a; boundary=b\r\n\r\n--b\r\n\r\n\xff\r\n", "two boundaries"),
        (b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n' + PART, "outside the parts"),
        (b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b--\r\n\xff\r\n', "outside the parts"),
        (b"Content-Type: message/partial; id=1\r\n\r\n\xff\r\n", "message/partial"),
        (b"Content-Type: text\r\n\r\n\xff\r\n", "cannot be read"),
        (b"Content-Type: a/b\r\nContent-Type: a/b\r\n\r\n\xff\r\n", "two Content-Type"),
        (b"Subject: x\r\nno field\r\n\r\n\xff\r\n", "no field"),
    ],
)  # fmt: skip
def test_what_must_not_or_cannot_be_changed_is_refused_with_the_reason(message: bytes, why: str) -> None:
    with pytest.raises(Unconvertible, match=why):
        convert(message)
