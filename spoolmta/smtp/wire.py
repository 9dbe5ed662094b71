"""SMTP on the wire, without a socket: replies in, commands and dot-stuffed text out (RFC 5321 section 4).

Every byte a server sends is data from a stranger. A reply is bounded in length and lines; its code must be three
ASCII digits 200 to 599 and the same on all its lines; control characters in its text become spaces. Anything
else is a `ProtocolError`: temporary, for this session only, never a reason to bounce.
"""

from __future__ import annotations

import re

from spoolmta.model import Reply

MAX_LINE = 4096
"""RFC 5321 section 4.5.3.1.5 allows 512 octets; Postfix reads 2048, KumoMTA 4096."""
MAX_LINES = 500
MAX_REPLY = 65536

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class ProtocolError(Exception):
    """The peer did not speak SMTP. The text is one line for the log."""


def clean(text: str) -> str:
    """Text from a stranger as one harmless line: control characters become spaces."""
    return text if text.isprintable() else _CONTROL.sub(" ", text)


class ReplyParser:
    """Bytes to replies. How the bytes are cut into reads never matters; memory is bounded by MAX_REPLY."""

    __slots__ = ("_buffer", "_code", "_lines", "_size")

    def __init__(self) -> None:
        self._buffer = b""
        self._code = b""
        self._lines: list[str] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"ReplyParser(buffer={self._buffer!r}, code={self._code!r}, lines={self._lines!r})"

    @property
    def is_between_replies(self) -> bool:
        return not self._buffer and not self._lines

    @property
    def is_inside_reply(self) -> bool:
        """Whether the first lines of a multi-line reply are here, and not the last."""
        return bool(self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that `data` completes, in order. Raises ProtocolError; the session is over then."""
        parts = (self._buffer + data if self._buffer else data).split(b"\n")
        self._buffer = parts.pop()
        if len(self._buffer) > MAX_LINE:
            raise ProtocolError(f"reply line longer than {MAX_LINE} bytes")
        replies = []
        for part in parts:
            if len(part) > MAX_LINE:
                raise ProtocolError(f"reply line longer than {MAX_LINE} bytes")
            reply = self._read_line(part[:-1] if part.endswith(b"\r") else part)
            if reply is not None:
                replies.append(reply)
        return replies

    def _read_line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"malformed reply: {clean(line[:200].decode('utf-8', 'replace'))}")
        code, separator, text = match.groups()
        if self._code and code != self._code:
            raise ProtocolError(f"reply changes its code from {self._code.decode()} to {code.decode()}")
        decoded = clean(text.decode("utf-8", "replace")) if text else ""
        if separator != b"-":
            lines = (*self._lines, decoded) if self._lines else (decoded,)
            self._code, self._lines, self._size = b"", [], 0
            return Reply(int(code), lines)
        self._code = code
        self._lines.append(decoded)
        self._size += len(line)
        if len(self._lines) > MAX_LINES or self._size > MAX_REPLY:
            raise ProtocolError(f"reply longer than {MAX_LINES} lines or {MAX_REPLY} bytes")
        return None


def dot_stuff(content: bytes) -> bytes:
    """CRLF text as it goes behind DATA, with its end (RFC 5321 section 4.5.2). `content` has only CRLF line ends
    and ends with one, or is empty."""
    if content.startswith(b"."):
        content = b"." + content
    return content.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def bdat(content: bytes) -> bytes:
    """The whole of a message as one last chunk: its octets as they are, no dots doubled (RFC 3030 section 2)."""
    return b"BDAT %d LAST\r\n%b" % (len(content), content)


def mail_command(sender: str, parameters: str) -> bytes:
    return _command(f"MAIL FROM:<{sender}>{parameters}")


def rcpt_command(address: str, parameters: str) -> bytes:
    return _command(f"RCPT TO:<{address}>{parameters}")


def _command(line: str) -> bytes:
    """One command line. An address with a line end in it would let a submitter speak SMTP for us."""
    encoded = line.encode("utf-8", "surrogateescape")
    if b"\r" in encoded or b"\n" in encoded or b"\0" in encoded:
        raise ValueError(f"line end in command {line!r}")
    return encoded + b"\r\n"
