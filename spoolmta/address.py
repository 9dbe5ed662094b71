"""What a mail address is: local part, domain, queue folder (RFC 5321 section 4.1.2, RFC 5322 section 3.4).

Stricter than most receivers where a folder name comes out of it, and no stricter where only the receiver can know:
whether a local part exists, or is too long, is for the receiver to say.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  (the codec is looked up by name; loaded here, before the process forks)
import functools
import ipaddress
import re
from collections.abc import Iterator

MAX_ADDRESS = 320
MAX_LOCAL_PART = 255
MAX_DOMAIN = 253
SHOWN = 80

# Everything outside ASCII is let through by the expression and must be printable (RFC 6531 section 3.3).
_ATOM = r"[^\x00-\x20\x7f\"(),:;<>@\[\\\]]+"
_QUOTED = r'"(?:[^\x00-\x1f\x7f"\\]|\\[^\x00-\x1f\x7f])*+"'
_ADDRESS = re.compile(rf"({_ATOM}|{_QUOTED})@([^@]+)")
_DOMAIN = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*+[a-z0-9_-]{1,63}")
# The inside of `"`, `[` and `<` is one token. No alternative can match a start that another one would have to
# scan again from inside, so the time stays linear in the length of the header, however hostile it is.
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*+"|\[[^\[\]\\]*+\]|<(?:"(?:[^"\\]|\\.)*+"|\\.|[^<>"\\])*+>|\\.|[^\\"\[<(),:;]++|.', re.DOTALL
)
_IN_COMMENT = re.compile(r"\\.|[()]", re.DOTALL)
_ROUTE = re.compile(r"\A@[^:]*:")  # RFC 5321 appendix C: a source route is accepted and ignored


class NotAnAddress(ValueError):
    """Why a text is not an address: a clause without the text itself."""


def show(value: str) -> str:
    """A stranger's text made fit for one line of a log: printable, at most 80 characters."""
    if len(value) > SHOWN:
        value = value[: SHOWN - 3] + "..."
    return value if value.isprintable() else "".join(c if c.isprintable() else "?" for c in value)


def split(text: str) -> tuple[str, str, str]:
    """(address for the wire, local part, queue folder) of `a@b` or `<a@b>`. Raises `NotAnAddress`."""
    if text[:1] == "<" and text[-1:] == ">":
        text = text[1:-1]
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise NotAnAddress(_why(text))
    local, given = found.groups()
    domain, on_wire = _domain(given)
    if local[0] != '"' and (local[0] == "." or local[-1] == "." or ".." in local):
        raise NotAnAddress("a dot at an end of the local part, or two in a row")
    if not text.isascii() and not local.isprintable():
        raise NotAnAddress("the local part has characters that cannot be printed")
    if len(text) > MAX_LOCAL_PART or not text.isascii():
        _check_length(local, on_wire)
    return f"{local}@{on_wire}", local, domain


def is_in(text: str, folder: str) -> bool:
    """Whether `split` would find this queue folder, of an address that it takes; at a tenth of its cost."""
    given = text.rpartition("@")[2].rstrip(">")
    try:
        return bool(given) and _domain(given)[0] == folder
    except NotAnAddress:
        return True  # let `split` say it


def _check_length(local: str, domain: str) -> None:
    octets = len(local.encode())
    if octets > MAX_LOCAL_PART:
        raise NotAnAddress(f"the local part is longer than {MAX_LOCAL_PART} octets")
    if octets + 1 + len(domain) > MAX_ADDRESS:
        raise NotAnAddress(f"it is longer than {MAX_ADDRESS} octets")


def _why(text: str) -> str:
    local, at, domain = text.rpartition("@")
    if not text:
        return "it is empty"
    if not at:
        return "it has no @"
    if not local:
        return "there is nothing before the @"
    if not domain:
        return "there is nothing behind the @"
    return "the local part has characters that are not allowed outside quotes"


@functools.lru_cache(maxsize=65_536)
def _domain(given: str) -> tuple[str, str]:
    """(queue folder, form on the wire) of what stands behind the @. Refusals are not remembered."""
    if given[0] == "[":
        return _literal(given), given
    if len(given) > MAX_DOMAIN:
        raise NotAnAddress(f"the domain is longer than {MAX_DOMAIN} characters")
    domain = given.lower()
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii").lower()
        except ValueError:
            raise NotAnAddress("the domain is not a valid international name") from None
    if len(domain) > MAX_DOMAIN or _DOMAIN.fullmatch(domain) is None:
        raise NotAnAddress("the domain is not a domain name")
    if domain.rpartition(".")[2].isdigit():
        # No top-level domain is a number, and `ip-192.0.2.1` must stay the folder of a literal alone.
        raise NotAnAddress("the domain ends in a number, and an address literal needs brackets")
    return domain, domain


def _literal(given: str) -> str:
    inside = given[1:-1]
    try:
        if given[-1] != "]" or "%" in inside:  # a scope id may hold anything, even a slash
            raise ValueError
        if inside[:5].lower() == "ipv6:":
            return f"ip-{ipaddress.IPv6Address(inside[5:])}"
        return f"ip-{ipaddress.IPv4Address(inside)}"
    except ValueError:
        raise NotAnAddress("the address literal is not [192.0.2.1] or [IPv6:2001:db8::1]") from None


def listed(text: str) -> Iterator[str]:
    """The addresses of an address list as they are written: names, comments and group names are left out.

    Own code because `email.utils.getaddresses` answers differently from one patch release to the next
    (CVE-2023-27043), and `email.headerregistry` raises IndexError and others on hostile input.
    What is no address comes out too, for `split` to refuse: a recipient is never dropped silently.
    """
    words: list[str] = []
    has_at = False
    angle = ""
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        assert found is not None  # the last alternative takes any character
        token, position = found[0], found.end()
        if token == "(":
            position = _behind_comment(text, position)
        elif token == ":" and not has_at:
            words.clear()  # the name of a group
        elif token in (",", ";"):
            if address := angle or "".join(words).strip():
                yield address
            words.clear()
            has_at = False
            angle = ""
        elif token[0] == "<" and len(token) > 1:
            angle = f"<{_ROUTE.sub('', token[1:-1].strip(), count=1)}>"
        else:
            words.append(token)
            has_at = has_at or "@" in token
    if address := angle or "".join(words).strip():
        yield address


def _behind_comment(text: str, position: int) -> int:
    depth = 1
    while depth and (found := _IN_COMMENT.search(text, position)):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        position = found.end()
    return len(text) if depth else position
