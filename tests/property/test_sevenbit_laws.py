from __future__ import annotations

import email
import zlib
from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolmta.sevenbit import Unconvertible, convert

lines = st.lists(
    st.text(alphabet=" \t.=aé中-", max_size=90).map(str.encode)
    | st.binary(max_size=60).map(lambda line: line.translate(None, b"\r\n")),
    max_size=6,
)
bodies = lines.map(lambda rows: b"".join(row + b"\r\n" for row in rows))
types = st.sampled_from(
    [b"text/plain; charset=utf-8", b'text/html;\r\n charset="utf-8"', b"image/png", b"application/x"]
)
encodings = st.sampled_from([b"", b"Content-Transfer-Encoding: 8bit\r\n", b"content-transfer-encoding:\tBINARY\r\n"])
kinds = st.sampled_from([b"mixed", b"alternative", b"related"])


def leaf(kind: bytes, encoding: bytes, body: bytes) -> bytes:
    return b"Content-Type: " + kind + b"\r\n" + encoding + b"X-Other: a\r\n b\r\n\r\n" + body


def multipart(kind: bytes, parts: list[bytes]) -> bytes:
    number = zlib.crc32(b"".join(parts))  # a boundary that no other one has
    boundary = b"=_%d_b" % number
    joined = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    head = b"Content-Type: multipart/" + kind + b';\r\n\tboundary="' + boundary + b'"\r\n'
    head += b"Content-Transfer-Encoding: 8bit\r\n" if number % 2 else b""
    return head + b"\r\npreamble\r\n" + joined + b"--" + boundary + b"--\r\nepilogue\r\n"


leaves = st.builds(leaf, types, encodings, bodies)
entities = st.recursive(
    leaves,
    lambda inner: (
        st.builds(multipart, kinds, st.lists(inner, min_size=1, max_size=3))
        | inner.map(lambda one: b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\nMIME-Version: 1.0\r\n" + one)
    ),
    max_leaves=5,
)
messages = entities.map(lambda one: b"From: a@b.c\r\nSubject: law\r\nMIME-Version: 1.0\r\n" + one)


def told(part: Message) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in part.items() if name.lower() != "content-transfer-encoding"]


@given(messages)
def test_what_is_converted_decodes_to_what_it_was_and_is_7_bit(message: bytes) -> None:
    converted = convert(message)
    assert converted.isascii()
    assert max(map(len, converted.split(b"\r\n"))) <= max(100, *map(len, message.split(b"\r\n")))
    assert not converted.replace(b"\r\n", b"").count(b"\n")
    before, after = email.message_from_bytes(message), email.message_from_bytes(converted)
    for old, new in zip(before.walk(), after.walk(), strict=True):
        assert told(old) == told(new)
        assert old.is_multipart() == new.is_multipart()
        if not old.is_multipart():
            assert old.get_payload(decode=True) == new.get_payload(decode=True)
        elif old.get_content_maintype() == "multipart":
            assert (old.preamble, old.epilogue) == (new.preamble, new.epilogue)
            assert str(new.get("content-transfer-encoding", "7bit")) == "7bit" or old.as_bytes().isascii()


@given(messages)
def test_converting_twice_changes_nothing_more(message: bytes) -> None:
    assert convert(convert(message)) == convert(message)


@given(st.binary(max_size=200).map(lambda data: b"\r\n".join(data.split(b"\n"))) | messages)
def test_whatever_comes_it_is_converted_or_refused(message: bytes) -> None:
    try:
        assert convert(message).isascii()
    except Unconvertible:
        assert not message.isascii() or b"dkim-signature" in message.lower()


@pytest.mark.parametrize("depth", [100, 5000])
def test_endless_nesting_is_refused_and_not_followed(depth: int) -> None:
    inner = b"Content-Type: message/rfc822\r\n\r\n" * depth + b"Subject: x\r\n\r\n\xff\r\n"
    with pytest.raises(Unconvertible):
        convert(inner)
