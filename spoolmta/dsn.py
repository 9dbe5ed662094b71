"""A delivery status notification as the bytes of a message (RFC 3464; with UTF-8 addresses RFC 6533).

    multipart/report; report-type=delivery-status
      text/plain                      for people: who, what the receiver said, what to do
      message/delivery-status         for programs: one block for the message, one for each recipient
      message/rfc822                  the message, where it is asked for and no larger than 50,000 bytes,
      or text/rfc822-headers          else its header

What a stranger said stands in it, so it is made safe first: one line, no control characters, folded; what is not ASCII
as `\\x{E9}` unless the report is a UTF-8 one anyway. Between the blocks of the status is one empty line and no other:
two of them end the report for some readers. A failed recipient keeps its status 4.y.z if that is how it ended: "failed"
with 4.4.7 is an expired one (RFC 3464 section 2.3.4).
"""

from __future__ import annotations

import datetime
import re
import textwrap
from typing import Literal

import msgspec

from spoolmta.notify import Action

Format = Literal["standard", "plain-text"]

MAX_RETURNED = 50_000
"""Bytes of a message, or of its header, that go back (the limit Postfix has for bounces)."""
MAX_TEXT = 2000
"""Characters of a reply that are told."""
_WIDTH = 76
_HARD_WIDTH = 900
"""Octets, where there is no space to fold at: no line may be longer than 998 (RFC 5322 section 2.1.1). An address is
always shorter, so none is cut."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_XTEXT = re.compile(r"(?:\+[0-9A-F]{2})+")
_HEADER_END = re.compile(rb"(?:\A|\r\n)\r\n")


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one recipient. `said` is the reply (`550 5.1.1 no such user`) if `is_reply`, else our own words;
    `mta` is the host that said it, "" if none did. Times are Unix seconds; `retry_until` 0 where it is not tried
    again. `orcpt` is as it came, type and xtext."""

    address: str
    status: str
    said: str
    is_reply: bool
    attempted: float
    mta: str = ""
    orcpt: str = ""
    retry_until: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One DSN. `sender` is the return path it goes to; `host` our host-name; `id` that of the DSN, `original_id` the
    msgId of the message it speaks of; `boundary` a word nobody can guess; `author` the From header ("" for the usual
    one); `content` the message as it goes on the wire (CRLF line ends)."""

    action: Action
    host: str
    sender: str
    id: str
    original_id: str
    boundary: str
    now: float
    arrived: float
    facts: tuple[Fact, ...]
    content: bytes
    returns_content: bool = False
    envid: str = ""
    author: str = ""
    format: Format = "standard"


def compose(report: Report) -> bytes:
    """The whole message, CRLF line ends, as it goes on the wire."""
    if report.format == "plain-text":
        return _plain(report)
    is_utf8 = _is_utf8(report)
    returned_type, returned = _returned(report, is_utf8)
    kind = "message/global-delivery-status" if is_utf8 else "message/delivery-status"
    parts = [
        _part("text/plain; charset=" + ("utf-8" if is_utf8 else "us-ascii"), "Notification", _words(report, is_utf8)),
        _part(kind, "Delivery report", _status(report, is_utf8)),
        _part(returned_type, "Undelivered message" if report.action is Action.FAILED else "Message", returned),
    ]
    boundary = report.boundary
    while any(boundary.encode() in part for part in parts):
        boundary += "="  # it cannot be guessed, so this is chance, or a caller that gives always the same
    fields = [
        *_header(report),
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
        f"Content-Transfer-Encoding: {_encoding(b''.join(parts))}",
    ]
    line = f"--{boundary}".encode()
    body = b"".join(line + b"\r\n" + part + b"\r\n" for part in parts)
    return _encode("\r\n".join(fields)) + b"\r\n\r\n" + body + line + b"--\r\n"


def file_of(report: Report) -> bytes:
    """The DSN as a queue file: with its envelope, the null sender and the return path."""
    return b"x-sender: <>\r\nx-receiver: " + _encode(report.sender) + b"\r\n" + compose(report)


def safe(text: str, *, is_utf8: bool = False) -> str:
    """A stranger's words as one line that says nothing else than they do: no line ends or control characters, at most
    MAX_TEXT characters, and ASCII (`\\x{E9}`, as RFC 6533 section 3 writes it) unless `is_utf8`."""
    text = _CONTROL.sub(" ", text[:MAX_TEXT])
    if not is_utf8:
        text = _NOT_ASCII.sub(lambda found: f"\\x{{{ord(found[0]):X}}}", text)
    return text.strip(" ")


def date(moment: float) -> str:
    """RFC 5322 section 3.3, in UTC with its numeric zone (RFC 3464 section 2.2.5 asks for one)."""
    t = datetime.datetime.fromtimestamp(int(moment), datetime.UTC)
    day, month = _DAYS[t.weekday()], _MONTHS[t.month - 1]
    return f"{day}, {t.day} {month} {t.year:04d} {t.hour:02d}:{t.minute:02d}:{t.second:02d} +0000"


def fold(line: str) -> str:
    """A field folded at its spaces, and inside a word only where it would be longer than a line may be. No line of it
    is blank: that would end the field, and the block with it."""
    lines = [""]
    for word in re.split(r"(?<=[^ ])(?= )", line):
        if lines[-1].strip() and len(lines[-1]) + len(word) > _WIDTH and word.strip():
            lines.append("")
        while len(word.encode("utf-8", "replace")) > _HARD_WIDTH:
            cut = _HARD_WIDTH if word.isascii() else _HARD_WIDTH // 4
            lines[-1] += word[:cut]
            word = " " + word[cut:]
            lines.append("")
        lines[-1] += word
    return "\r\n".join(lines).rstrip(" ")


# The header


_SUBJECTS = {
    Action.FAILED: "Delivery failed",
    Action.DELAYED: "Delivery delayed",
    Action.RELAYED: "Delivery confirmed as far as the next mail system",
}


def author_of(configured: str, host: str) -> str:
    """The From header of mail that we write ourselves; `configured` is custom-dsn-from-header."""
    return configured or f"Mail Delivery System <MAILER-DAEMON@{host}>"


def _header(report: Report) -> list[str]:
    return [
        f"From: {author_of(report.author, report.host)}",
        f"To: <{report.sender}>",
        f"Subject: {_SUBJECTS[report.action]}",
        f"Date: {date(report.now)}",
        f"Message-ID: <{report.id}@{report.host}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
    ]


def _part(kind: str, description: str, body: bytes) -> bytes:
    encoding = _encoding(body)
    return f"Content-Type: {kind}\r\nContent-Description: {description}\r\n".encode() + (
        f"Content-Transfer-Encoding: {encoding}\r\n\r\n".encode() + body
    )


def _encoding(data: bytes) -> str:
    return "7bit" if data.isascii() else "8bit"


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _is_utf8(report: Report) -> bool:
    return not (report.sender.isascii() and all(fact.address.isascii() for fact in report.facts))


# For people


_OPENING = {
    Action.FAILED: "Your message could not be delivered to the recipients below. It will not be tried again.",
    Action.DELAYED: "Your message has not yet been delivered to the recipients below. You need not send it again: it "
    "is still being tried.",
    Action.RELAYED: "Your message was handed over to the mail system of the recipients below. That system sends no "
    "confirmations, so you will not hear more than this.",
}
_ADVICE = (
    (("4.4.7",), "The time for trying is over. If it matters, send it again later or use another way."),
    (("5.1.", "5.4.4"), "Check the address: it is misspelt, or no longer in use."),
    (("2.2",), "The mailbox is full. The recipient has to make room, then you can send it again."),
    (("3.4", "2.3"), "The message is too large for the recipient. Send a smaller one, or a link."),
    (("7.",), "The recipient's mail system refused it by its rules. Its answer above tells its administrators why."),
)
_NO_ADVICE = "If the answer above does not help you, send this report to your postmaster."


def _words(report: Report, is_utf8: bool) -> bytes:
    lines = [f"This is the mail system at {report.host}.", "", *textwrap.wrap(_OPENING[report.action], _WIDTH), ""]
    for fact in report.facts:
        lines.append(f"<{safe(fact.address, is_utf8=is_utf8)}>")
        lines += _said(fact, is_utf8)
        if report.action is Action.FAILED:
            lines += textwrap.wrap(_advice(fact.status), _WIDTH, initial_indent="    ", subsequent_indent="    ")
        elif fact.retry_until:
            lines.append(f"    It is tried until {date(fact.retry_until)}.")
        lines.append("")
    lines += [f"It was accepted here at {date(report.arrived)}", f"as {report.original_id}."]
    return _encode("\r\n".join(lines) + "\r\n")


def _said(fact: Fact, is_utf8: bool) -> list[str]:
    said = safe(fact.said, is_utf8=is_utf8)
    if not said:
        return []
    mta = safe(fact.mta[:255])
    who = (f"The host {mta} said:" if mta else "The receiving host said:") if fact.is_reply else "The reason:"
    indent = "        "
    quoted = textwrap.wrap(said, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return [f"    {who}", *quoted]


def _advice(status: str) -> str:
    for codes, advice in _ADVICE:
        if any(status.startswith(code) or status[2:].startswith(code) for code in codes):
            return advice
    return _NO_ADVICE


# For programs


def _status(report: Report, is_utf8: bool) -> bytes:
    blocks = [_message_block(report, is_utf8), *(_recipient_block(report, fact, is_utf8) for fact in report.facts)]
    text = "\r\n\r\n".join("\r\n".join(fold(line) for line in block) for block in blocks)
    return _encode(text + "\r\n")


def _message_block(report: Report, is_utf8: bool) -> list[str]:
    """RFC 3464 section 2.2."""
    lines = [f"Reporting-MTA: dns; {report.host}"]
    if envid := safe(report.envid, is_utf8=is_utf8):
        lines.insert(0, f"Original-Envelope-Id: {envid}")
    lines.append(f"Arrival-Date: {date(report.arrived)}")
    lines.append(f"X-Spoolmta-Message-Id: {report.original_id}")
    return lines


def _recipient_block(report: Report, fact: Fact, is_utf8: bool) -> list[str]:
    """RFC 3464 section 2.3. An Original-Recipient only where the submitter gave one."""
    lines = [
        f"Final-Recipient: {'rfc822' if fact.address.isascii() else 'utf-8'}; {fact.address}",
        f"Action: {report.action.value}",
        f"Status: {fact.status}",
    ]
    kind, _, address = fact.orcpt.partition(";")
    if address := safe(_from_xtext(address), is_utf8=is_utf8):
        lines.insert(0, f"Original-Recipient: {kind}; {address}")
    if fact.mta and fact.is_reply:
        lines.append(f"Remote-MTA: dns; {safe(fact.mta[:255])}")
    if said := safe(fact.said, is_utf8=is_utf8):
        lines.append(f"Diagnostic-Code: {'smtp' if fact.is_reply else 'X-Spoolmta'}; {_closed(said)}")
    lines.append(f"Last-Attempt-Date: {date(fact.attempted)}")
    if fact.retry_until and report.action is Action.DELAYED:
        lines.append(f"Will-Retry-Until: {date(fact.retry_until)}")
    return lines


def _from_xtext(text: str) -> str:
    """RFC 3461 section 4: `+XX` back to what it stands for."""
    return _XTEXT.sub(lambda found: bytes.fromhex(found[0].replace("+", "")).decode("utf-8", "replace"), text)


def _closed(text: str) -> str:
    """A comment that is opened and not closed would swallow the rest for a reader who looks for comments."""
    depth = 0
    for ch in text:
        depth += {"(": 1, ")": -1}.get(ch, 0)
        if depth < 0:
            break
    if depth == 0:
        return text
    return re.sub(r"([()\\])", r"\\\1", text)


# What goes back


def _returned(report: Report, is_utf8: bool) -> tuple[str, bytes]:
    """The third part: its type and its bytes."""
    header = header_of(report.content)
    is_global = is_utf8 or _has_utf8(header)
    if report.returns_content and len(report.content) <= MAX_RETURNED:
        return ("message/global" if is_global else "message/rfc822"), report.content
    return ("message/global-headers" if is_global else "text/rfc822-headers"), header


def header_of(content: bytes) -> bytes:
    """The header of a message (CRLF line ends) with the end of its last line; whole lines, at most MAX_RETURNED bytes
    of it."""
    found = _HEADER_END.search(content)
    header = content[: found.end() - 2] if found else content
    if len(header) > MAX_RETURNED:
        header = header[: header.rfind(b"\r\n", 0, MAX_RETURNED) + 2]
    return header


def _has_utf8(header: bytes) -> bool:
    if header.isascii():
        return False
    try:
        header.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _plain(report: Report) -> bytes:
    """All of it as text, for readers that know nothing of reports (`dsn-format = "plain-text"`)."""
    is_utf8 = _is_utf8(report)
    words = _words(report, is_utf8)
    has_content = report.returns_content and len(report.content) <= MAX_RETURNED
    what, returned = (b"message", report.content) if has_content else (b"header", header_of(report.content))
    body = words + b"\r\nThe " + what + b" of your mail:\r\n\r\n" + returned
    fields = [
        *_header(report),
        f"Content-Type: text/plain; charset={'us-ascii' if body.isascii() else 'utf-8'}",
        f"Content-Transfer-Encoding: {_encoding(body)}",
    ]
    return _encode("\r\n".join(fields)) + b"\r\n\r\n" + body
