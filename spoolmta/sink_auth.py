"""The test receiver's side of AUTH (RFC 4954): a login as a generator of challenges, sent the client's lines."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Generator

CHALLENGE = b"<1896.697170952@sink.test>"

Login = Generator[bytes, bytes, bool | None]
"""Yields challenges; the result is whether the client may in, None for a syntax error."""


def login(mechanism: str, initial: bytes | None, username: str, password: str) -> Login:
    """One login by PLAIN, LOGIN or CRAM-MD5. `initial` is the response that came with the command, still encoded."""
    try:
        if mechanism == "PLAIN":
            answer = initial if initial is not None else (yield b"")
            return _decoded(answer) in (
                f"\0{username}\0{password}".encode(),
                f"{username}\0{username}\0{password}".encode(),
            )
        if mechanism == "LOGIN":
            name = _decoded(initial if initial is not None else (yield b"Username:"))
            return (name, _decoded((yield b"Password:"))) == (username.encode(), password.encode())
        answer = _decoded((yield CHALLENGE))
    except binascii.Error:
        return None
    digest = hmac.new(password.encode(), CHALLENGE, hashlib.md5).hexdigest()
    return answer == f"{username} {digest}".encode()


def _decoded(line: bytes) -> bytes:
    return base64.b64decode(line, validate=True)
