"""A message with 8-bit bytes made 7-bit, for a host that does not offer 8BITMIME (RFC 6152 section 3). Pure.

Only leaf parts are encoded (quoted-printable for text, base64 for the rest and where most of a text is 8-bit) and
only their Content-Transfer-Encoding fields change, and those of the containers above that said 8bit; every other byte
stays. A container is never encoded (RFC 2045 section 6.4). What is signed must not be touched, and what is written in
no way that all readers read alike is not either: that is `Unconvertible`, and the sender is told so.
"""

from __future__ import annotations

import binascii
import re

MAX_DEPTH = 20
BASE64_LINE = 57
MOSTLY_8BIT = 3
"""One byte in three: from there on base64 is the shorter one."""

_HEADER_LINE = re.compile(rb"(?:[!-9;-~]+:[^\r\n]*|[ \t][^\r\n]*)")
_FIELD = re.compile(
    rb"(?:(?<=\n)|\A)(content-type|content-transfer-encoding|mime-version|dkim-signature)[ \t]*:"
    rb"((?:[^\r\n]*\r\n)(?:[ \t][^\r\n]*\r\n)*)",
    re.IGNORECASE,
)
_TYPE = re.compile(rb"[ \t]*([!#-'*+.0-9A-Z^-~-]+)/([!#-'*+.0-9A-Z^-~-]+)[ \t]*(?:;|\Z)", re.IGNORECASE)
_BOUNDARY = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)+)"|([^\s;"]+))', re.IGNORECASE)
_ENCODING = re.compile(rb"[ \t]*(7bit|8bit|binary)[ \t]*\Z", re.IGNORECASE)
_TEXT, _MESSAGE = (b"text", b"plain"), (b"message", b"rfc822")


class Unconvertible(ValueError):
    """Why it cannot be made 7-bit: a clause about the message."""


def convert(content: bytes) -> bytes:
    """The same message without a byte above 127. `content` has only CRLF line ends. Raises Unconvertible."""
    header, _ = _split(content)
    if any(name.lower() == b"dkim-signature" for name, _ in _FIELD.findall(header)):
        raise Unconvertible("the message is signed (DKIM) and must not be changed")
    return _entity(content, _TEXT, 0, is_message=True)


def _entity(entity: bytes, default: tuple[bytes, bytes], depth: int, *, is_message: bool = False) -> bytes:
    """A message or a part: header, empty line, body."""
    if entity.isascii():
        return entity
    if depth > MAX_DEPTH:
        raise Unconvertible(f"its parts are nested deeper than {MAX_DEPTH}")
    header, body = _split(entity)
    if not header.isascii():
        raise Unconvertible("there are 8-bit characters in a header")
    fields = _fields(header)
    kind, boundary = _content_type(fields.get(b"content-type"), default)
    encoding = fields.get(b"content-transfer-encoding")
    if encoding is not None and not _ENCODING.match(encoding):
        raise Unconvertible("there are 8-bit characters in a part that is encoded already")
    if kind[0] == b"multipart":
        if kind[1] in (b"signed", b"encrypted"):
            raise Unconvertible(f"multipart/{kind[1].decode()} must not be changed")
        below = _MESSAGE if kind[1] == b"digest" else _TEXT
        return _relabelled(header, b"7bit", encoding) + b"\r\n" + _multipart(body, boundary, below, depth)
    if kind == _MESSAGE:
        return _relabelled(header, b"7bit", encoding) + b"\r\n" + _entity(body, _TEXT, depth + 1, is_message=True)
    if kind[0] == b"message":
        raise Unconvertible(f"message/{kind[1].decode()} cannot be encoded")
    label, encoded = _encode(body, is_text=kind[0] == b"text")
    if is_message and b"mime-version" not in fields:  # RFC 2045 section 4: without it nobody looks at the encoding
        header += b"MIME-Version: 1.0\r\n"
        if b"content-type" not in fields:
            header += b"Content-Type: text/plain; charset=unknown-8bit\r\n"  # RFC 1428
    return _relabelled(header, label, encoding, is_needed=True) + b"\r\n" + encoded


def _split(entity: bytes) -> tuple[bytes, bytes]:
    """Header (each line with its end) and body, without the empty line between them."""
    if entity.startswith(b"\r\n"):
        return b"", entity[2:]
    end = entity.find(b"\r\n\r\n")
    if end < 0:
        return (entity if entity.endswith(b"\r\n") else entity + b"\r\n"), b""
    return entity[: end + 2], entity[end + 4 :]


def _fields(header: bytes) -> dict[bytes, bytes]:
    """The fields that matter, unfolded. Readers disagree about a line that is no field, and about a field that is
    there twice."""
    for number, line in enumerate(header.split(b"\r\n")[:-1]):
        if not _HEADER_LINE.fullmatch(line) or (number == 0 and line[:1] in b" \t"):
            raise Unconvertible("there is a line in a header that is no field")
    fields: dict[bytes, bytes] = {}
    for name, value in _FIELD.findall(header):
        if name.lower() in fields:
            raise Unconvertible(f"there are two {name.decode()} fields in a header")
        fields[name.lower()] = value.replace(b"\r\n", b"")
    return fields


def _content_type(value: bytes | None, default: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], bytes]:
    """((type, subtype), boundary), lower case; the boundary is empty where there is none."""
    if value is None:
        return default, b""
    found = _TYPE.match(value)
    if found is None:
        raise Unconvertible("there is a Content-Type that cannot be read")
    boundaries = _BOUNDARY.findall(value)
    if len(boundaries) > 1:
        raise Unconvertible("there is a Content-Type with two boundaries")
    quoted, plain = boundaries[0] if boundaries else (b"", b"")
    return (found[1].lower(), found[2].lower()), re.sub(rb"\\(.)", rb"\1", quoted) or plain


def _multipart(body: bytes, boundary: bytes, default: tuple[bytes, bytes], depth: int) -> bytes:
    """The parts between the delimiter lines (RFC 2046 section 5.1.1): the CRLF before one belongs to it."""
    if not boundary:
        raise Unconvertible("there is a multipart without a boundary")
    delimiter = re.compile(rb"(?:\A|\r\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r\n|\Z)")
    pieces: list[bytes] = []
    position, is_part = 0, False
    while True:
        found = delimiter.search(body, position)
        piece = body[position : found.start() if found else len(body)]
        if is_part:
            pieces.append(b"\r\n" + _entity(piece[2:], default, depth + 1) if piece[:2] == b"\r\n" else piece)
        elif not piece.isascii():
            raise Unconvertible("there are 8-bit characters outside the parts of a multipart")
        else:
            pieces.append(piece)
        if found is None:
            break
        pieces.append(found[0])
        # The next delimiter may begin with the line end of this one: the part between them is empty.
        position, is_part = found.end(), not found[1]
        if found[1]:
            pieces.append(body[position:])
            if not body[position:].isascii():
                raise Unconvertible("there are 8-bit characters outside the parts of a multipart")
            break
    converted = b"".join(pieces)
    if not converted.isascii():
        raise Unconvertible("there is a multipart that cannot be read")
    return converted


def _relabelled(header: bytes, label: bytes, old: bytes | None, *, is_needed: bool = False) -> bytes:
    """The header with this Content-Transfer-Encoding; without one, it gets one only if it is needed."""
    if old is None:
        return header + b"Content-Transfer-Encoding: " + label + b"\r\n" if is_needed else header
    for found in _FIELD.finditer(header):
        if found[1].lower() == b"content-transfer-encoding":
            return header[: found.start(2)] + b" " + label + b"\r\n" + header[found.end() :]
    return header


def _encode(body: bytes, *, is_text: bool) -> tuple[bytes, bytes]:
    """(label, encoded body). A line end at the end of the body stays one, as it is the end of the message."""
    high = len(body) - len(body.translate(None, bytes(range(128, 256))))
    if is_text and high * MOSTLY_8BIT < len(body):
        lines = (binascii.b2a_qp(line, istext=True).replace(b"=\n", b"=\r\n") for line in body.split(b"\r\n"))
        return b"quoted-printable", b"\r\n".join(lines)
    chunks = (body[start : start + BASE64_LINE] for start in range(0, len(body), BASE64_LINE))
    encoded = b"\r\n".join(binascii.b2a_base64(chunk, newline=False) for chunk in chunks)
    return b"base64", encoded + b"\r\n" if body.endswith(b"\r\n") else encoded
