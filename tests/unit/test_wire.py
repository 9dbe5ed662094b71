from __future__ import annotations

import pytest

from spoolmta.model import Reply
from spoolmta.smtp.wire import (
    MAX_LINE,
    MAX_LINES,
    ProtocolError,
    ReplyParser,
    clean,
    dot_stuff,
    mail_command,
    rcpt_command,
)


def test_a_reply_of_one_line_is_a_code_and_a_text() -> None:
    assert ReplyParser().feed(b"250 2.0.0 ok\r\n") == [Reply(250, ("2.0.0 ok",))]


def test_a_reply_of_many_lines_is_one_reply() -> None:
    parser = ReplyParser()
    assert parser.feed(b"250-a\r\n250-\r\n250") == []
    assert not parser.is_between_replies
    assert parser.feed(b" c\r\n") == [Reply(250, ("a", "", "c"))]
    assert parser.is_between_replies


def test_many_replies_may_come_at_once() -> None:
    assert [reply.code for reply in ReplyParser().feed(b"250 a\r\n550 b\r\n354 c\r\n")] == [250, 550, 354]


@pytest.mark.parametrize("line", [b"250", b"250 ", b"250\n"[:3]])
def test_a_reply_without_text_is_a_reply(line: bytes) -> None:
    assert ReplyParser().feed(line + b"\r\n")[0].code == 250


def test_a_bare_line_feed_ends_a_line_too() -> None:
    assert ReplyParser().feed(b"250 a\n") == [Reply(250, ("a",))]


@pytest.mark.parametrize(
    "line",
    [
        b"2200 x",
        b"25 0 ok",
        b"250ok",
        "٢٥٠ ok".encode(),
        b"",
        b"\0",
        b"-",
        b"050 x",
        b"150 x",
        b"600 x",
        b"850 NONSENSE",
        b"999 x",
        b" 250 x",
        b"250\tx",
        b"HTTP/1.1 400 Bad Request",
    ],
)
def test_what_is_no_reply_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed reply"):
        ReplyParser().feed(line + b"\r\n")


def test_a_reply_must_not_change_its_code() -> None:
    with pytest.raises(ProtocolError, match="changes its code from 250 to 550"):
        ReplyParser().feed(b"250-a\r\n550 b\r\n")


def test_control_characters_never_leave_the_parser() -> None:
    reply = ReplyParser().feed(b"550-a\r\n550 b\x1b[31m\x00\rx,\"=cmd|' /C calc'!A0\"<script>\xff\xc2\x85\r\n")[0]
    assert reply.lines == ("a", "b [31m  x,\"=cmd|' /C calc'!A0\"<script>\ufffd ")
    assert str(reply).isprintable()


def test_line_separators_become_spaces() -> None:
    assert clean("a\u2028b\u2029c\x7fd") == "a b c d"


def test_an_endless_line_is_a_protocol_error_before_it_fills_the_memory() -> None:
    parser = ReplyParser()
    for _ in range(MAX_LINE // 8):
        assert parser.feed(b"250 xxxx") == []
    with pytest.raises(ProtocolError, match="longer than"):
        parser.feed(b"x")
    assert len(repr(parser)) < 2 * MAX_LINE


def test_a_long_line_is_a_protocol_error_also_when_it_comes_whole() -> None:
    with pytest.raises(ProtocolError, match="longer than"):
        ReplyParser().feed(b"250 " + b"x" * MAX_LINE + b"\r\n")


def test_an_endless_reply_is_a_protocol_error() -> None:
    parser = ReplyParser()
    assert parser.feed(b"250-a\r\n" * MAX_LINES) == []
    with pytest.raises(ProtocolError, match="longer than 500 lines"):
        parser.feed(b"250-a\r\n")


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"", b".\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\r\n.\r\n", b"a\r\n..\r\n.\r\n"),
        (b"..a\r\n.b\r\n", b"...a\r\n..b\r\n.\r\n"),
    ],
)
def test_dots_at_the_start_of_a_line_are_doubled(content: bytes, sent: bytes) -> None:
    assert dot_stuff(content) == sent


def test_commands_name_their_addresses() -> None:
    assert mail_command("", " SIZE=3") == b"MAIL FROM:<> SIZE=3\r\n"
    assert rcpt_command("ü@example.com", "") == "RCPT TO:<ü@example.com>\r\n".encode()


@pytest.mark.parametrize("bad", ["a\r\nRCPT TO:<b", "a\nb", "a\rb", "a\0b"])
def test_an_address_cannot_start_a_command(bad: str) -> None:
    with pytest.raises(ValueError, match="line end in command"):
        mail_command(bad, "")
