"""DKIM signatures (RFC 6376, RFC 8463) over exactly the bytes that go out. Pure; keys are arguments.

Laws. Every signature verifies as long as nobody changes what it covers. It is over the whole body (never `l=`). A field
that must be there once, or not at all, cannot be added later: its name stands in `h=` once more than the field is there
("oversigning"), absent ones included. `d=` is the identity's domain or a parent of it.

The canonicalisation of the body is where the time goes; it is done once a message for all signatures of it.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from msgspec.structs import replace

from spoolmta import address
from spoolmta.model import DomainPolicy

OVERSIGNED = (
    "From", "Reply-To", "Subject", "To", "Cc", "Content-Type", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Id",
)  # fmt: skip
"""Fields that change what a reader sees or does: where they are absent, nobody can add one."""
ONCE = ("Date", "Message-ID", "MIME-Version", "Content-Transfer-Encoding")
"""Fields of which nobody can add a second, but which a host on the way may add where there is none."""
SIGNED = (
    "Sender", "In-Reply-To", "References", "Content-ID", "Content-Description", "Resent-Date", "Resent-From",
    "Resent-Sender", "Resent-To", "Resent-Cc", "Resent-Message-ID", "List-Help", "List-Subscribe", "List-Post",
    "List-Owner", "List-Archive", "Feedback-ID",
)  # fmt: skip
"""Fields that are signed where they are (RFC 6376 section 5.4.1)."""

Canon = Literal["relaxed", "simple"]
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~.-]{0,64}")
_BLANKS = re.compile(rb"[ \t]+")
_FIELD = re.compile(rb"(?:(?<=\n)|\A)([!-9;-~]+)[ \t]*+:[^\r]*+(?:\r\n[ \t][^\r]*+)*+\r\n")
LINE = 72
SHORTEST = 1024
"""Bits of an RSA key; 2048 is what one should have."""


class Unsigned(Exception):
    """Why a message is sent without a signature: one word, like `no-from`. `content` is what to send, where that is
    another than before."""

    def __init__(self, reason: str, content: bytes | None = None) -> None:
        super().__init__(reason)
        self.content = content


class Key(msgspec.Struct, frozen=True):
    """A signing key. `domain` "*" is any. `sign` makes the signature of the bytes that are hashed, `sign_sha1` (of an
    RSA key) the one for DomainKeys."""

    selector: str
    domain: str
    algorithm: Literal["rsa-sha256", "ed25519-sha256"]
    sign: Callable[[bytes], bytes]
    sign_sha1: Callable[[bytes], bytes] | None = None


class BadKey(ValueError):
    """What is wrong with a key file, as one clause."""


def key_of(selector: str, domain: str, pem: bytes) -> Key:
    """The key in a PEM file, tried out: its numbers may not belong together. (To have them looked at takes 40 ms, a
    signature 0.3.) Raises BadKey."""
    private = private_of(pem)
    if isinstance(private, Ed25519PrivateKey):
        return Key(selector, domain, "ed25519-sha256", lambda data: private.sign(hashlib.sha256(data).digest()))
    try:
        private.public_key().verify(private.sign(pem, PKCS1v15(), SHA256()), pem, PKCS1v15(), SHA256())
    except (ValueError, InvalidSignature):
        raise BadKey("the key is damaged: what it signs does not verify") from None
    return Key(
        selector,
        domain,
        "rsa-sha256",
        lambda data: private.sign(data, PKCS1v15(), SHA256()),
        lambda data: private.sign(data, PKCS1v15(), SHA1()),
    )


def private_of(pem: bytes, *, is_tried: bool = False) -> Ed25519PrivateKey | RSAPrivateKey:
    """The private key itself; `is_tried`: an RSA key is also looked at whole. Raises BadKey."""
    try:
        private = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=not is_tried)
    except TypeError:
        raise BadKey("the key is encrypted: a server cannot ask for its password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey("there is no private key in it: it has to be a PEM file of RSA or Ed25519") from None
    if isinstance(private, Ed25519PrivateKey):
        return private
    if not isinstance(private, RSAPrivateKey):
        raise BadKey("the key is neither RSA nor Ed25519")
    if private.key_size < SHORTEST:
        raise BadKey(f"the key has {private.key_size} bits: receivers ignore less than {SHORTEST} (RFC 8301)")
    return private


def public_text(private: Ed25519PrivateKey | RSAPrivateKey) -> tuple[Literal["rsa", "ed25519"], str]:
    """What `k=` and `p=` of its record are (RFC 6376 section 3.6.1, RFC 8463 section 4)."""
    public = private.public_key()
    if isinstance(public, Ed25519PublicKey):
        return "ed25519", base64.b64encode(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    return "rsa", base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


class Field(msgspec.Struct, frozen=True):
    """One header field: its name as it is written, and all its bytes, with the line end."""

    name: bytes
    raw: bytes


class Options(msgspec.Struct, frozen=True):
    """What a message asks for itself (X-DKIM-Options): only keys of this selector and domain, this identity; "" is as
    configured."""

    selector: str = ""
    domain: str = ""
    identity: str = ""


def take_options(content: bytes) -> tuple[bytes, Options | None]:
    """The content without its X-DKIM-Options, and what they say, as PowerMTA has them: `s=s1; d=example.com; i=@a.b`.
    Raises Unsigned, with the content, for what cannot be obeyed."""
    header, _ = split(content)
    found = [match for match in _FIELD.finditer(header) if match[1].lower() == b"x-dkim-options"]
    if not found:
        return content, None
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(content)]
    content = b"".join(content[begin:end] for begin, end in zip(ends, starts, strict=True)) or b"\r\n"
    text = found[0][0].partition(b":")[2].decode("utf-8", "replace")
    given = {name.strip(): value.strip() for name, _, value in (item.partition("=") for item in text.split(";"))}
    given.pop("", None)
    try:
        if len(found) > 1 or not given.keys() <= {"s", "d", "i", "q"} or given.get("q", "dns/txt") != "dns/txt":
            raise address.NotAnAddress("not understood")
        domain = domain_of(given["d"]) if given.get("d") else ""
        local, _, rest = given.get("i", "").rpartition("@")
        identity = f"{local}@{domain_of(rest)}" if rest else ""
        if not _LOCAL.fullmatch(local) or (given.get("i") and not rest) or not is_within(identity, domain):
            raise address.NotAnAddress("not understood")
    except address.NotAnAddress:
        raise Unsigned("bad-options", content) from None
    return content, Options(given.get("s", ""), domain, identity)


def domain_of(text: str) -> str:
    """A domain as `d=` has it, an A-label. Raises address.NotAnAddress, also for an address literal."""
    found = address.split(f"x@{text}")[2]
    if found.startswith("ip-"):
        raise address.NotAnAddress("it is an address, and a key belongs to a domain")
    return found


def is_within(identity: str, domain: str) -> bool:
    """Whether an identity is of a domain or one below it (RFC 6376 section 3.5); each may be empty."""
    return not identity or not domain or f".{identity.rpartition('@')[2]}".endswith(f".{domain}")


def signed(
    content: bytes, keys: Iterable[Sequence[Key]], policy: DomainPolicy, now: float, options: Options | None = None
) -> bytes:
    """The message with a signature for each kind of key (RSA, Ed25519) that fits its identity; as it was, if none does.
    Of the groups of `keys` an earlier one goes before a later one. `content` has CR LF line ends only, `now` is Unix
    seconds. Raises Unsigned."""
    keys = [group for group in keys if group]
    if not keys:
        return content
    header, body = split(content)
    fields = fields_of(header)
    options = options or Options()
    asked = options.identity or (options.domain and f"@{options.domain}")
    identity = identity_of(fields, asked or policy.dkim_identity)
    chosen: dict[str, Key] = {}
    for group in keys:
        wanted = [
            replace(key, domain=options.domain or key.domain) if key.domain == "*" else key
            for key in group
            if options.selector in ("", key.selector) and (key.domain == "*" or options.domain in ("", key.domain))
        ]
        chosen = choose(wanted, identity) | chosen
    if not chosen and (asked or options.selector):
        raise Unsigned("no-such-key")
    if not chosen:
        return content
    digest = base64.b64encode(hashlib.sha256(canonical_body(body, policy.dkim_body_canon)).digest()).decode()
    by_name: dict[bytes, list[Field]] = {}
    for field in fields:
        by_name.setdefault(field.name.lower(), []).append(field)
    names = names_of(by_name, policy)
    covered = _covered(by_name, names, policy.dkim_headers_canon)
    lines = [_signature(key, identity, names, digest, covered, policy, now) for key in chosen.values()]
    return b"".join(lines) + content


def split(content: bytes) -> tuple[bytes, bytes]:
    """(header, body), without the empty line between them."""
    if content.startswith(b"\r\n"):
        return b"", content[2:]
    end = content.find(b"\r\n\r\n")
    return (content, b"") if end < 0 else (content[: end + 2], content[end + 4 :])


def fields_of(header: bytes) -> list[Field]:
    """The fields in their order. Raises Unsigned where there is a line that is none: of such a header verifiers think
    differently, and the first line of it could become part of the signature above it."""
    fields = [Field(found[1], found[0]) for found in _FIELD.finditer(header)]
    if sum(len(field.raw) for field in fields) != len(header):
        raise Unsigned("bad-header")
    return fields


def identity_of(fields: Iterable[Field], wanted: str) -> str:
    """`@domain` or an address for whom to sign. Raises Unsigned where there is not one From (RFC 5322 section 3.6)."""
    authors = [field for field in fields if field.name.lower() == b"from"]
    if len(authors) != 1:
        raise Unsigned("two-from" if authors else "no-from")
    if wanted not in ("sender-or-from", "strict-from"):
        return wanted
    senders = [field for field in fields if field.name.lower() == b"sender"]
    field = senders[0] if senders and wanted == "sender-or-from" else authors[0]
    text = field.raw.partition(b":")[2].decode("utf-8", "replace").replace("\r\n", "")
    for given in address.listed(text):
        try:
            found = address.split(given)[2]
        except address.NotAnAddress:
            break
        if not found.startswith("ip-"):  # an address literal has no records
            return f"@{found}"
        break
    raise Unsigned("no-address")


def choose(keys: Sequence[Key], identity: str) -> dict[str, Key]:
    """Of each algorithm (by its name) the key of the identity's domain, else of its nearest parent, else one for any;
    of several the first. Its `domain` is what `d=` says."""
    domain = identity.rpartition("@")[2].lower()
    found: dict[str, tuple[int, Key]] = {}
    for key in keys:
        if key.domain == "*":
            near = -1
        elif domain == key.domain or domain.endswith("." + key.domain):
            near = len(key.domain)
        else:
            continue
        if key.algorithm not in found or near > found[key.algorithm][0]:
            found[key.algorithm] = near, key
    return {algorithm: key if near >= 0 else replace(key, domain=domain) for algorithm, (near, key) in found.items()}


def names_of(by_name: dict[bytes, list[Field]], policy: DomainPolicy) -> list[str]:
    """The value of `h=`: each name as often as its field is there, and once more where no other may be added."""
    names: list[str] = []
    is_closed = policy.dkim_disallow_adding_headers
    for group in (OVERSIGNED, ONCE, (*SIGNED, *policy.dkim_headers)):
        for name in dict.fromkeys(group):
            count = len(by_name.get(name.lower().encode(), ()))
            more = is_closed and (group is OVERSIGNED or (group is ONCE and count > 0))
            if more or name not in names:
                names += [name] * (count + more)
    return names


def _covered(by_name: dict[bytes, list[Field]], names: Sequence[str], canon: Canon) -> bytes:
    """The fields that `h=` names, the last of each name first (RFC 6376 section 5.4.2)."""
    left = {name: [*fields] for name, fields in by_name.items()}
    found = []
    for name in names:
        fields = left.get(name.lower().encode())
        if fields:
            found.append(canonical_field(fields.pop().raw, canon))
    return b"".join(found)


def _signature(
    key: Key, identity: str, names: Sequence[str], digest: str, covered: bytes, policy: DomainPolicy, now: float
) -> bytes:
    canon = policy.dkim_headers_canon
    tags = [f"v=1; a={key.algorithm}; c={canon}/{policy.dkim_body_canon};", f"d={key.domain}; s={key.selector};"]
    if identity != f"@{key.domain}":
        tags.append(f"i={identity.replace('=', '=3D')};")  # RFC 6376 section 2.11
    begun, is_mortal = int(now), not math.isinf(policy.dkim_expire_after)
    if policy.dkim_add_timestamp or is_mortal:
        tags.append(f"t={begun};")
    if is_mortal:
        tags.append(f"x={begun + int(policy.dkim_expire_after)};")
    tags += [*folded("h=", names, ":", ";"), f"bh={digest};", "b="]
    line = ("DKIM-Signature: " + "\r\n\t".join(tags)).encode()
    made = base64.b64encode(key.sign(covered + canonical_field(line + b"\r\n", canon)[:-2])).decode()
    pieces = [made[at : at + LINE] for at in range(0, len(made), LINE)]
    return line + "\r\n\t".join(pieces).encode() + b"\r\n"


def folded(begin: str, words: Sequence[str], between: str, end: str) -> list[str]:
    """Words in lines of about LINE characters."""
    lines, line = [], begin
    for number, word in enumerate(words):
        word += between if number + 1 < len(words) else end
        if len(line) + len(word) > LINE and line != begin:
            lines.append(line)
            line = ""
        line += word
    return [*lines, line]


def canonical_field(raw: bytes, canon: Canon) -> bytes:
    """RFC 6376 section 3.4.1 and 3.4.2. `raw` has its line end."""
    if canon == "simple":
        return raw
    name, _, value = raw.partition(b":")
    value = value.replace(b"\r\n", b"")
    return name.rstrip(b" \t").lower() + b":" + _BLANKS.sub(b" ", value).strip(b" ") + b"\r\n"


def canonical_body(body: bytes, canon: Canon) -> bytes:
    """RFC 6376 section 3.4.3 and 3.4.4. By whole-body replacements: a regular expression that touches every blank takes
    thirty times as long."""
    if canon == "relaxed":
        if b"\t" in body:
            body = body.replace(b"\t", b" ")
        while b"  " in body:
            body = body.replace(b"  ", b" ")
        body = body.replace(b" \r\n", b"\r\n")
    end = len(body)
    while body.endswith(b"\r\n\r\n", 0, end):
        end -= 2
    body = body[:end]
    if body in (b"", b"\r\n"):
        return b"" if canon == "relaxed" else b"\r\n"
    return body if body.endswith(b"\r\n") else body + b"\r\n"
