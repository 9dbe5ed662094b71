"""Addresses in an accounting file without whose they are: the local part is taken out, or replaced by a keyed hash, so
that one person's rows can still be counted together by whoever has the file, and named only by whoever has the key.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable

METHODS = ("retain", "redact", "siphash", "siphash-hexkey", "hmac-sha256", "hmac-sha256-hexkey")
REDACTED = "redacted"
_MASK = (1 << 64) - 1


class BadPolicy(ValueError):
    """What is wrong with a privacy policy, as one clause."""


def parse(text: str) -> tuple[str, bytes]:
    """(method, key) of a policy as it is written: `retain`, `redact`, or a method and its key: `hmac-sha256 KEY`, with
    `-hexkey` as hexadecimal digits. Raises BadPolicy, without the key in it."""
    method, _, written = text.partition(" ")
    written = written.strip()
    if method not in METHODS:
        raise BadPolicy(f"expected one of {', '.join(METHODS)}, the last four with a key behind")
    if method in ("retain", "redact"):
        if written:
            raise BadPolicy(f"{method} has no key")
        return method, b""
    key = written.encode()
    if method.endswith("-hexkey"):
        try:
            key = bytes.fromhex(written)
        except ValueError:
            raise BadPolicy("the key is not written in hexadecimal digits") from None
    name = method.removesuffix("-hexkey")
    if name == "siphash" and len(key) != 16:
        raise BadPolicy(f"siphash has a key of 16 bytes, and this one has {len(key)}")
    if not key:
        raise BadPolicy(f"{method} needs a key behind it")
    return name, key


def hider(policy: str) -> Callable[[str], str] | None:
    """What hides the local part of an address; None where nothing is hidden."""
    method, key = parse(policy)
    if method == "retain":
        return None
    return functools.lru_cache(maxsize=4096)(functools.partial(_hidden, method, key))


def _hidden(method: str, key: bytes, address: str) -> str:
    """An address, or one as in ORCPT with its type before it: `rfc822;user@example.com`. Case does not matter."""
    kind, semicolon, rest = address.rpartition(";")
    local, at, domain = rest.rpartition("@")
    if not at:
        local, domain = rest, ""
    if not local:
        return address
    data = local.lower().encode("utf-8", "surrogateescape")
    if method == "redact":
        local = REDACTED
    elif method == "siphash":
        local = f"{siphash(key, data):016x}"
    else:
        local = hmac.digest(key, data, "sha256").hex()
    return f"{kind}{semicolon}{local}{at}{domain}"


def siphash(key: bytes, data: bytes) -> int:
    """SipHash-2-4 (Aumasson and Bernstein, 2012) of data with a key of 16 bytes, 64 bits."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    state = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    whole = len(data) & ~7
    last = int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56
    words = [int.from_bytes(data[start : start + 8], "little") for start in range(0, whole, 8)]
    for word in [*words, last]:
        state[3] ^= word
        _rounds(state, 2)
        state[0] ^= word
    state[2] ^= 0xFF
    _rounds(state, 4)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def _rounds(state: list[int], count: int) -> None:
    v0, v1, v2, v3 = state
    for _ in range(count):
        v0 = v0 + v1 & _MASK
        v1 = _rotated(v1, 13) ^ v0
        v0 = _rotated(v0, 32)
        v2 = v2 + v3 & _MASK
        v3 = _rotated(v3, 16) ^ v2
        v0 = v0 + v3 & _MASK
        v3 = _rotated(v3, 21) ^ v0
        v2 = v2 + v1 & _MASK
        v1 = _rotated(v1, 17) ^ v2
        v2 = _rotated(v2, 32)
    state[:] = v0, v1, v2, v3


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> 64 - by) & _MASK
