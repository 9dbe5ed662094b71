from __future__ import annotations

import base64
from typing import Any

import pytest

from spoolmta.model import Failure, FailureKind, Reply, Stage
from spoolmta.sink_auth import login
from spoolmta.smtp.auth import authenticate
from spoolmta.smtp.client import Capabilities, Refused, WireError

SECRET = "open-sesame"


def offering(ways: str) -> Capabilities:
    return Capabilities("mx", {"AUTH": ways} if ways else {})


def play(
    ways: str, replies: list[Reply | WireError], *, is_encrypted: bool = True, allow: bool = False
) -> tuple[Any, list[bytes]]:
    """The result (or the Refused), and the lines that were sent."""
    dialogue = authenticate(offering(ways), "user", SECRET, is_encrypted=is_encrypted, allow_plain=allow)
    sent: list[bytes] = []
    try:
        step = next(dialogue)
        for reply in replies:
            sent.append(step.data)
            assert (step.replies, step.stage) == (1, Stage.AUTH)
            step = dialogue.throw(reply) if isinstance(reply, WireError) else dialogue.send([reply])
    except StopIteration as stop:
        return stop.value, sent
    except Refused as refused:
        return refused, sent
    raise AssertionError(f"more is wanted: {step}")


def encoded(text: str) -> bytes:
    return base64.b64encode(text.encode())


def test_cram_md5_is_the_first_choice_and_is_the_example_of_the_rfc() -> None:
    dialogue = authenticate(offering("LOGIN PLAIN CRAM-MD5"), "tim", "tanstaaftanstaaf", is_encrypted=False)
    assert next(dialogue).data == b"AUTH CRAM-MD5\r\n"
    challenge = encoded("<1896.697170952@postoffice.reston.mci.net>").decode()
    assert dialogue.send([Reply(334, (challenge,))]).data == encoded("tim b913a602c7eda7a495b4e6e7334d3890") + b"\r\n"
    with pytest.raises(StopIteration) as stop:
        dialogue.send([Reply(235)])
    assert stop.value.value == offering("LOGIN PLAIN CRAM-MD5")


def test_plain_is_one_line() -> None:
    result, sent = play("LOGIN PLAIN", [Reply(235)])
    assert isinstance(result, Capabilities)
    assert sent == [b"AUTH PLAIN " + encoded(f"\0user\0{SECRET}") + b"\r\n"]


def test_login_is_two_questions() -> None:
    result, sent = play("login", [Reply(334), Reply(334), Reply(235)])
    assert isinstance(result, Capabilities)
    assert sent == [b"AUTH LOGIN\r\n", encoded("user") + b"\r\n", encoded(SECRET) + b"\r\n"]


@pytest.mark.parametrize("ways", ["PLAIN", "LOGIN", "PLAIN LOGIN", "", "GSSAPI"])
def test_without_encryption_the_password_is_not_shown(ways: str) -> None:
    refused, sent = play(ways, [], is_encrypted=False)
    assert isinstance(refused, Refused)
    assert isinstance(refused.answer.result, Failure)
    assert (refused.answer.stage, refused.answer.result.kind) == (Stage.AUTH, FailureKind.NO_LOGIN)
    assert sent == []


def test_without_encryption_it_is_shown_where_that_is_allowed() -> None:
    assert isinstance(play("PLAIN", [Reply(235)], is_encrypted=False, allow=True)[0], Capabilities)


@pytest.mark.parametrize("ways", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_refusal_is_an_answer_of_its_stage_without_what_we_said(ways: str) -> None:
    echo = f"no: {SECRET} {encoded(SECRET).decode()} {encoded(chr(0) + 'user' + chr(0) + SECRET).decode()}"
    refused, _ = play(ways, [Reply(535, (echo,))])
    assert refused.answer.stage is Stage.AUTH
    assert refused.answer.result.code == 535
    assert SECRET not in str(refused)
    assert encoded(SECRET).decode() not in str(refused)
    assert "***" in str(refused)


def test_a_challenge_that_is_none_is_cancelled() -> None:
    refused, sent = play("CRAM-MD5", [Reply(334, ("not base64!",)), Reply(501, ("cancelled",))])
    assert sent[-1] == b"*\r\n"
    assert refused.answer.result.code == 501


def test_a_lost_connection_is_its_own_answer() -> None:
    lost = WireError(Failure(FailureKind.LOST, "connection lost"))
    refused, _ = play("PLAIN", [lost])
    assert refused.answer.result == lost.failure


@pytest.mark.parametrize("way", ["PLAIN", "LOGIN", "CRAM-MD5"])
@pytest.mark.parametrize("password", [SECRET, "wrong"])
def test_our_receiver_and_our_sender_understand_each_other(way: str, password: str) -> None:
    client = authenticate(offering(way), "user", password, is_encrypted=True)
    words = next(client).data.split()
    server = login(words[1].decode(), words[2] if len(words) == 3 else None, "user", SECRET)
    lets_in: bool | None = None
    try:
        challenge = next(server)
        while True:
            challenge = server.send(client.send([Reply(334, (encoded(challenge.decode()).decode(),))]).data.strip())
    except StopIteration as stop:
        lets_in = stop.value
    assert lets_in is (password == SECRET)
