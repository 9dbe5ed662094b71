"""DomainKeys signatures (RFC 4870), which came before DKIM and which some still ask for: rsa-sha1, by the same keys.
Pure.

Only the fields that `h=` names are covered, all of each name, in the order in which they stand (section 3.3).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from cryptography.exceptions import UnsupportedAlgorithm

from spoolmta import dkim
from spoolmta.dkim import Key, Unsigned
from spoolmta.model import DomainPolicy

COVERED = frozenset(
    b"from sender reply-to subject date message-id to cc mime-version content-type content-transfer-encoding".split()
)


def signed(content: bytes, keys: Iterable[Sequence[Key]], policy: DomainPolicy) -> bytes:
    """The message with a signature by the RSA key of its sender's domain or nearest parent; as it was, if there is
    none. `content` has CR LF line ends only. Raises dkim.Unsigned."""
    keys = [group for group in keys if group]
    if not keys:
        return content
    header, body = dkim.split(content)
    fields = dkim.fields_of(header)
    domain = dkim.identity_of(fields, "sender-or-from")
    found = (dkim.choose(group, domain).get("rsa-sha256") for group in keys)
    key = next((key for key in found if key is not None), None)
    if key is None or key.sign_sha1 is None:
        return content
    covered = [field for field in fields if field.name.lower() in COVERED]
    names = {field.name.lower(): field.name.decode() for field in reversed(covered)}
    is_simple = policy.dk_canon == "simple"
    text = b"".join(field.raw if is_simple else _dense(field.raw) + b"\r\n" for field in covered)
    body = _body(body if is_simple else body.translate(None, b" \t"))
    try:
        made = base64.b64encode(key.sign_sha1(text + b"\r\n" + body if body else text)).decode()
    except UnsupportedAlgorithm:  # this machine's policy for cryptography has no SHA-1
        raise Unsigned("no-sha1") from None
    pieces = [made[at : at + dkim.LINE] for at in range(0, len(made), dkim.LINE)]
    tags = [f"a=rsa-sha1; q=dns; c={policy.dk_canon};", f"d={key.domain}; s={key.selector};"]
    tags += [*dkim.folded("h=", [*reversed(names.values())], ":", ";"), "b=" + "\r\n\t".join(pieces)]
    return ("DomainKey-Signature: " + "\r\n\t".join(tags)).encode() + b"\r\n" + content


def _dense(raw: bytes) -> bytes:
    return raw.translate(None, b" \t\r\n")


def _body(body: bytes) -> bytes:
    """Without the empty lines at its end; nothing, if it has no others: then the line before it does not count, too."""
    end = len(body)
    while body.endswith(b"\r\n\r\n", 0, end):
        end -= 2
    body = body[:end]
    if body in (b"", b"\r\n"):
        return b""
    return body if body.endswith(b"\r\n") else body + b"\r\n"
