"""A message file: its envelope, and the bytes that go on the wire. Pure, and on the road of every message.

A line end is LF, CR, CR LF or CR CR LF (what a text-mode copy on Windows makes of CR LF), read from the left. Both
`parse` and `content` use that one definition: if they differed, a receiver could see a header end where we saw none.

A file is: envelope lines, header, empty line, body. The envelope lines are `x-sender: a@b`, `x-receiver: c@d`, ... and
end at the first line that is none of them. Without an `x-receiver` the header is asked, as `sendmail -t` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from spoolmta import address
from spoolmta.errors import MessageRefused
from spoolmta.model import Envelope, Parsed, Recipient

MAX_HEADER = 1_048_576
MAX_LABEL = 255

_END = rb"(?>\r{0,2}\n|\r)"
_VALUE = rb"([^\r\n]*+(?:" + _END + rb"[ \t]++[^\r\n]*+)*+)"
_LINE_END = re.compile(_END)
_EMPTY_LINE = re.compile(_END + _END)
_FOLD = re.compile(r"[\r\n]+")
_TOP_NAME = rb"(sender(?:-override)?|receiver|virtual-mta|job|envid|ret|schedule)"
_TOP_LINE = re.compile(rb"x-" + _TOP_NAME + rb"[ \t]*:" + _VALUE + rb"(?:" + _END + rb"|\Z)", re.IGNORECASE)
# Lines of receivers without a space, such as a list has by the thousand: taken together, not one by one.
_PLAIN_RECEIVERS = re.compile(rb"(?:x-receiver[ \t]*:[ \t]*[^\s]++\r?\n(?![ \t]))*+", re.IGNORECASE)
# The line break stands first: the search then only stops at line breaks, which makes it ten times faster. It is not
# part of the field, and the one behind the field is left for the next.
_FIELD = re.compile(
    rb"[\r\n](?:x-(sender-override|virtual-mta|job|envid)|(return-path|sender|from|to|cc|bcc))[ \t]*:" + _VALUE,
    re.IGNORECASE,
)
_CONTROL_FIELD = re.compile(rb"[\r\n]x-(?:sender-override|virtual-mta|job|envid)[ \t]*:", re.IGNORECASE)
_HEADER_LIKE = re.compile(rb"[!-9;-~]+[ \t]*:")
_RECEIVER = re.compile(r'((?:"(?:[^"\\]|\\.)*+"|[^\s"])+)((?:[ \t]+[^\s=]+=\S*)*)')
_VIRTUAL_MTA = re.compile(r"(?![.]|.*[.][.])[A-Za-z0-9._-]{1,32}")
_NOTIFY = re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*")
_ORCPT = re.compile(r"[A-Za-z0-9-]+;[!-~]{1,500}")

Fields = dict[str, list[str]]


def parse(data: bytes, domain: str = "") -> Parsed:
    """What the file says about itself. Raises `MessageRefused` with one sentence, and nothing else.

    With the queue folder of a `domain` only the recipients there are sure to be found. Of a file that was taken before:
    an entry is a link to the whole file, and what the other domains' entries are about would be most of the work.
    """
    top, receivers, start = _envelope_lines(data)
    body = _body(data, start)
    block = b"\n" + data[start:body]
    fields: Fields = {}
    cut: tuple[tuple[int, int], ...] = ()
    if not receivers or "sender" not in top or _CONTROL_FIELD.search(block):
        fields, cut = _header_fields(block, start - 1, cut_bcc=not receivers)
    recipients = _from_lines(receivers, domain) if receivers else _from_header(fields)
    if not recipients and not receivers:
        raise MessageRefused("no recipient")
    envelope = Envelope(
        _sender(top, fields),
        recipients,
        _virtual_mta(top.get("virtual-mta") or _first(fields, "virtual-mta")),
        _label("x-job", top.get("job") or _first(fields, "job")),
        _label("x-envid", top.get("envid") or _first(fields, "envid")),
        _ret(top.get("ret", "")),
    )
    return Parsed(envelope, start, body, cut)


def without_job(parsed: Parsed) -> Parsed:
    """The same where the file's x-job does not count."""
    return msgspec.structs.replace(parsed, envelope=msgspec.structs.replace(parsed.envelope, job=""))


def content(data: bytes, parsed: Parsed) -> bytes:
    """What goes on the wire, before dots are doubled: every line ends in CR LF, and there is no other CR or LF.

    The pieces are normalised one by one: a CR before a cut field and a LF behind it are two line ends.
    """
    if not parsed.cut:
        return _crlf(data[parsed.start :]) or b"\r\n"
    pieces = []
    position = parsed.start
    for begin, end in parsed.cut:
        pieces.append(_crlf(data[position:begin]))
        position = end
    pieces.append(_crlf(data[position:]))
    return b"".join(pieces) or b"\r\n"


def group_by_domain(envelope: Envelope) -> dict[str, list[Recipient]]:
    """The recipients by queue folder, in the order given."""
    groups: dict[str, list[Recipient]] = {}
    for recipient in envelope.recipients:
        groups.setdefault(recipient.domain, []).append(recipient)
    return groups


def field_values(data: bytes, parsed: Parsed, name: str) -> list[str]:
    """The values of every header field of this name, unfolded, without the white space around them."""
    field = re.compile(rb"[\r\n]" + re.escape(name.encode()) + rb"[ \t]*:" + _VALUE, re.IGNORECASE)
    return [_text(found[1]) for found in field.finditer(b"\n" + data[parsed.start : parsed.body])]


def first_values(data: bytes, parsed: Parsed, names: Iterable[str]) -> tuple[str, ...]:
    """Of each of these header fields the value of the first; empty where there is none."""
    return tuple([next(iter(field_values(data, parsed, name)), "") for name in names])


def _crlf(data: bytes) -> bytes:
    returns = data.count(b"\r")
    if not returns:
        data = data.replace(b"\n", b"\r\n")
    elif not returns == data.count(b"\n") == data.count(b"\r\n"):
        data = b"\r\n".join(_LINE_END.split(data))
    return data if not data or data[-1] == 10 else data + b"\r\n"


def _envelope_lines(data: bytes) -> tuple[dict[str, str], list[str], int]:
    """(values by name, the receivers, where the header begins)."""
    top: dict[str, str] = {}
    receivers: list[str] = []
    position = 3 if data.startswith(b"\xef\xbb\xbf") else 0  # editors on Windows put a byte order mark there
    while found := _TOP_LINE.match(data, position):
        position = found.end()
        name, value = found[1].decode("ascii").lower(), _text(found[2])
        if name == "receiver":
            receivers.append(value)
            if len(receivers) > 1:  # there may be a thousand
                end = _PLAIN_RECEIVERS.match(data, position).end()  # type: ignore[union-attr]  # it always matches
                receivers += _plain_receivers(data[position:end])
                position = end
        elif name == "schedule":
            raise MessageRefused("x-schedule is not supported by this version")
        elif name in top:
            raise MessageRefused(f"x-{name} is given twice")
        else:
            top[name] = value
    if position == len(data):
        raise MessageRefused("no message behind the envelope lines" if top or receivers else "the file is empty")
    return top, receivers, position


def _plain_receivers(lines: bytes) -> list[str]:
    text = lines.decode("utf-8", "surrogateescape")
    return [line.partition(":")[2].strip(" \t\r") for line in text.split("\n")[:-1]]


def _text(value: bytes) -> str:
    text = value.decode("utf-8", "surrogateescape")
    if "\n" in text or "\r" in text:
        text = _FOLD.sub("", text)  # unfolding takes out the line end only (RFC 5322 section 2.2.3)
    return text.strip(" \t")


def _body(data: bytes, start: int) -> int:
    """Where the body begins: behind the first empty line."""
    if at_once := _LINE_END.match(data, start):
        return at_once.end()
    limit = start + MAX_HEADER
    first = data.find(b"\n", start, limit)
    if first > start and data[first - 1] == 13:
        end = data.find(b"\r\n\r\n", start, limit)
        header = data[start:end]
        if end > 0 and header.count(b"\r") == header.count(b"\n") == header.count(b"\r\n"):
            return end + 4
    else:
        end = data.find(b"\n\n", start, limit)
        if end > 0 and data.find(b"\r", start, end) < 0:
            return end + 2
    # Mixed line ends, or no empty line. (At the limit itself, half of a line end would be taken for one.)
    found = _EMPTY_LINE.search(data, start, limit)
    if found and (found.end() < limit or found.end() == len(data)):
        return found.end()
    if len(data) > limit:
        raise MessageRefused("header does not end within 1 MB")
    if not _HEADER_LIKE.match(data, start):
        raise MessageRefused("this is not a message: no header field at the top")
    return len(data)


def _header_fields(block: bytes, offset: int, cut_bcc: bool) -> tuple[Fields, tuple[tuple[int, int], ...]]:
    """The fields that mean something to us, and the ranges of the file that must not go out."""
    fields: Fields = {}
    cut = []
    for found in _FIELD.finditer(block):
        control, ordinary, value = found.groups()
        name = (control or ordinary).decode("ascii").lower()
        fields.setdefault(name, []).append(_text(value))
        if control or (name == "bcc" and cut_bcc):
            behind = _LINE_END.match(block, found.end())
            cut.append((offset + found.start() + 1, offset + (behind.end() if behind else len(block))))
    return fields, tuple(cut)


def _first(fields: Fields, name: str) -> str:
    return fields[name][0] if name in fields else ""


def _from_lines(receivers: list[str], domain: str) -> tuple[Recipient, ...]:
    seen: dict[tuple[str, str], Recipient] = {}
    for value in receivers:
        parameters = ""
        given = value
        if " " in value or "\t" in value:
            found = _RECEIVER.fullmatch(value)
            if found is None:
                raise MessageRefused(f'recipient "{address.show(value)}" is not an address: it has a space in it')
            given, parameters = found.groups()
        if domain and not address.is_in(given, domain):
            continue
        _add(seen, given, *(_dsn(value, parameters) if parameters else ()))
    return tuple(seen.values())


def _from_header(fields: Fields) -> tuple[Recipient, ...]:
    seen: dict[tuple[str, str], Recipient] = {}
    for name in ("to", "cc", "bcc"):
        for value in fields.get(name, ()):
            for given in address.listed(value):
                _add(seen, given)
    return tuple(seen.values())


def _add(seen: dict[tuple[str, str], Recipient], given: str, notify: str = "", orcpt: str = "") -> None:
    try:
        on_wire, local, domain = address.split(given)
    except address.NotAnAddress as error:
        raise MessageRefused(f'recipient "{address.show(given)}" is not an address: {error}') from None
    if (local, domain) not in seen:
        seen[local, domain] = Recipient(on_wire, domain, notify, orcpt)


def _dsn(value: str, parameters: str) -> tuple[str, str]:
    """NOTIFY and ORCPT (RFC 3461 section 4); they go on the wire, so nothing else may pass."""
    notify = orcpt = ""
    for parameter in parameters.split():
        name, _, setting = parameter.partition("=")
        if name.upper() == "NOTIFY" and _NOTIFY.fullmatch(setting.upper()):
            notify = setting.upper()
        elif name.upper() == "ORCPT" and _ORCPT.fullmatch(setting):
            orcpt = setting
        else:
            raise MessageRefused(f'recipient "{address.show(value)}": "{address.show(parameter)}" is not understood')
    return notify, orcpt


def _sender(top: dict[str, str], fields: Fields) -> str:
    """An override, else x-sender, else what the header says. Only an explicit empty one is the null sender."""
    given = top.get("sender-override")
    if given is None and "sender-override" in fields:
        given = fields["sender-override"][0]
    if given is None:
        given = top.get("sender")
    if given is None:
        given = _header_sender(fields)
    if given in ("", "<>"):
        return ""
    try:
        return address.split(given)[0]
    except address.NotAnAddress as error:
        raise MessageRefused(f'sender "{address.show(given)}" is not an address: {error}') from None


def _header_sender(fields: Fields) -> str:
    for name in ("return-path", "sender", "from"):
        for value in fields.get(name, ()):
            for given in address.listed(value):
                if given != "<>" or name == "return-path":
                    return given
    raise MessageRefused("no sender")


def _virtual_mta(value: str) -> str:
    """The name becomes a folder, so it is checked before anybody looks it up."""
    if value and _VIRTUAL_MTA.fullmatch(value) is None:
        raise MessageRefused(f'x-virtual-mta "{address.show(value)}" is not the name of a VirtualMTA')
    return value


def _label(name: str, value: str) -> str:
    if len(value) > MAX_LABEL:
        raise MessageRefused(f"{name} is longer than {MAX_LABEL} characters")
    return value if value.isprintable() else "".join(c if c.isprintable() else "?" for c in value)


def _ret(value: str) -> str:
    if value.upper() not in ("", "FULL", "HDRS"):
        raise MessageRefused(f'x-ret "{address.show(value)}" is neither FULL nor HDRS')
    return value.upper()
