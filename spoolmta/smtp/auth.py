"""Logging in to a smarthost (RFC 4954): CRAM-MD5 where it is offered, else PLAIN, else LOGIN.

CRAM-MD5 (RFC 2195) never shows the password, so it may go in the clear. PLAIN and LOGIN show it: they are used only
inside TLS, unless use-unencrypted-plain-auth says otherwise. A refusal is trouble of the host, and the mail waits: the
recipients have nothing to do with our password. What the server says about it is kept without what we said.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Generator

from spoolmta.model import Answer, Failure, FailureKind, Reply, Stage
from spoolmta.smtp.client import Capabilities, Refused, Step, WireError

HIDDEN = "***"
MIN_SECRET = 4
"""Shorter ones are found in any text by chance, and hiding them would tell where."""

Login = Generator[Step, list[Reply], Capabilities]


def authenticate(
    offered: Capabilities, username: str, password: str, *, is_encrypted: bool, allow_plain: bool = False
) -> Login:
    """Log in; gives back the capabilities. `allow_plain`: PLAIN and LOGIN also without encryption. Raises Refused."""
    secrets = [password, _base64(password), _base64(f"\0{username}\0{password}")]
    try:
        reply = yield from _converse(offered, username, password, is_encrypted or allow_plain)
    except WireError as error:
        last = error.replies[-1] if error.replies else None
        result = _without(last, secrets) if last is not None and last.code >= 400 else error.failure
        raise Refused(Answer(Stage.AUTH, result)) from None
    if reply.code != 235:
        raise Refused(Answer(Stage.AUTH, _without(reply, secrets)))
    return offered


def _converse(
    offered: Capabilities, username: str, password: str, may_show: bool
) -> Generator[Step, list[Reply], Reply]:
    """The dialogue of the best way both sides know; the server's last word."""
    ways = offered.keywords.get("AUTH", "").upper().split()
    if "CRAM-MD5" in ways:
        reply = yield from _say("AUTH CRAM-MD5")
        challenge = _decoded(reply)
        if reply.code != 334 or challenge is None:
            return (yield from _cancelled(reply))
        digest = hmac.new(password.encode(), challenge, hashlib.md5).hexdigest()
        return (yield from _say(_base64(f"{username} {digest}")))
    if may_show and "PLAIN" in ways:
        return (yield from _say("AUTH PLAIN " + _base64(f"\0{username}\0{password}")))
    if may_show and "LOGIN" in ways:
        reply = yield from _say("AUTH LOGIN")
        for answer in (username, password):
            if reply.code != 334:
                return (yield from _cancelled(reply))
            reply = yield from _say(_base64(answer))
        return reply
    raise Refused(Answer(Stage.AUTH, Failure(FailureKind.NO_LOGIN, _why_not(ways))))


def _why_not(ways: list[str]) -> str:
    if not ways:
        return "cannot log in: the host does not offer AUTH"
    if {"PLAIN", "LOGIN"} & {*ways}:
        return (
            f"cannot log in: the host offers {', '.join(ways)}, which show the password, and the connection is not "
            f"encrypted (use-unencrypted-plain-auth = true allows it)"
        )
    return f"cannot log in: the host offers only {', '.join(ways)}"


def _say(line: str) -> Generator[Step, list[Reply], Reply]:
    return (yield Step(line.encode() + b"\r\n", 1, Stage.AUTH))[0]


def _cancelled(reply: Reply) -> Generator[Step, list[Reply], Reply]:
    """Leave a dialogue whose challenge cannot be read (RFC 4954 section 4)."""
    if reply.code == 334:
        return (yield from _say("*"))
    return reply


def _decoded(reply: Reply) -> bytes | None:
    try:
        return base64.b64decode(reply.text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _without(reply: Reply, secrets: list[str]) -> Reply:
    """The reply without what must not be logged: some servers repeat what they were told."""
    lines = list(reply.lines)
    for secret in secrets:
        if len(secret) >= MIN_SECRET:
            lines = [line.replace(secret, HIDDEN) for line in lines]
    return Reply(reply.code, tuple(lines))
