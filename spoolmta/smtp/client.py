"""The client's side of SMTP as generators: they yield what to send and how many replies they wait for, and are
sent the replies. A driver owns the socket and the clock.

    step = dialogue.send(None)            -> Step(data, replies, stage)
    step = dialogue.send([Reply, ...])    -> the next Step, or StopIteration with the result

Transport trouble is thrown in as `WireError(failure, replies)`, with the replies of the current step that did
arrive; so one `except` gives every unanswered recipient its answer. What arrived is not used where the peer was out
of step (FailureKind.PROTOCOL): nobody knows then which command it answered.

Here are the words all dialogues share, and the first of them, `greet`. The others: `smtp.auth`, `smtp.transaction`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import msgspec

from spoolmta.model import Answer, Failure, FailureKind, Reply, Stage


class WireError(Exception):
    """Trouble on the wire, thrown into a dialogue. `replies` are those of the current step that had arrived;
    `is_unsent`: the end of its data has certainly not reached the server."""

    def __init__(self, failure: Failure, replies: Sequence[Reply] = (), *, is_unsent: bool = False) -> None:
        super().__init__(failure.text)
        self.failure = failure
        self.replies = list(replies)
        self.is_unsent = is_unsent


class Step(msgspec.Struct, frozen=True):
    """Send `data`, then wait for `replies` replies; `stage` says which timeout holds. With `starts_tls` nothing is
    sent: the driver begins TLS, and resumes with no reply when all that follows is inside it."""

    data: bytes
    replies: int
    stage: Stage
    starts_tls: bool = False


class Capabilities(msgspec.Struct, frozen=True):
    """What a server offered: EHLO keywords in upper case with their parameters (RFC 5321 section 4.1.1.1), and how much
    of that is used: `told` lists all it said where `keywords` are only those we use; 0 is no limit (bytes, recipients
    of a transaction, transactions of a session). All but the first two come from `smtp.allowance.agree`."""

    greeting: str = ""
    keywords: dict[str, str] = {}
    told: str = ""
    max_size: int = 0
    max_recipients: int = 0
    max_messages: int = 0
    stays_after_421: bool = False

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def listing(self) -> str:
        return self.told or ",".join(self.keywords)


class Refused(Exception):
    """The server does not want to talk: the stage and its reply, or what went wrong."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer.result))
        self.answer = answer


class Result(msgspec.Struct, frozen=True):
    """One answer per recipient, in their order; whether the session can carry another message. `retry` are the places
    of those whose answer only says that there were too many for one transaction: they go at once in another one."""

    answers: list[Answer]
    reusable: bool
    retry: tuple[int, ...] = ()


Greeting = Generator[Step, list[Reply], Capabilities]
Dialogue = Generator[Step, list[Reply], Any]


def greet(ehlo_name: str) -> Greeting:
    """Wait for the greeting, say EHLO, or HELO where EHLO is not known. Raises Refused."""
    try:
        reply = (yield Step(b"", 1, Stage.GREETING))[0]
    except WireError as error:
        raise Refused(Answer(Stage.GREETING, _last_word(error))) from None
    if reply.code != 220:
        raise Refused(Answer(Stage.GREETING, reply))
    return (yield from say_hello(ehlo_name, reply.text))


def say_hello(ehlo_name: str, greeting: str) -> Greeting:
    """Say EHLO, or HELO where EHLO is not known; what the server offers from now on. Raises Refused."""
    stage = Stage.EHLO
    try:
        reply = (yield Step(b"EHLO " + ehlo_name.encode("ascii", "replace") + b"\r\n", 1, stage))[0]
        if 500 <= reply.code <= 502:
            reply = (yield Step(b"HELO " + ehlo_name.encode("ascii", "replace") + b"\r\n", 1, stage))[0]
            if reply.code == 250:
                return Capabilities(greeting)
        if reply.code != 250:
            raise Refused(Answer(stage, reply))
    except WireError as error:
        raise Refused(Answer(stage, _last_word(error))) from None
    keywords = {}
    for line in reply.lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        if keyword:
            keywords[keyword.upper()] = parameters
    return Capabilities(greeting, keywords)


def _last_word(error: WireError) -> Reply | Failure:
    """Why there is no session: the refusal with which the server left, else what went wrong. What came from a server
    that was out of step is not used."""
    last = error.replies[-1] if error.replies and error.failure.kind is not FailureKind.PROTOCOL else None
    return last if last and last.code >= 400 else error.failure
