"""The client's side of SMTP as generators: they yield what to send and how many replies they wait for, and are
sent the replies. A driver owns the socket and the clock.

    step = dialogue.send(None)            -> Step(data, replies, stage)
    step = dialogue.send([Reply, ...])    -> the next Step, or StopIteration with the result

Transport trouble is thrown in as `WireError(failure, replies)`, with the replies of the current step that did
arrive; so one `except` gives every unanswered recipient its answer. What arrived is not used where the peer was out
of step (FailureKind.PROTOCOL): nobody knows then which command it answered.

Laws. Every recipient gets exactly one Answer, whatever fails where. At most one body goes out. A recipient is
only ever answered at Stage.EOD if its RCPT was accepted and the body was sent. A pipelined 354 with no accepted
recipient is ended with an empty body (RFC 2920 section 3.1). Nothing is sent that the server did not offer.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from spoolmta.model import Answer, Failure, FailureKind, Recipient, Reply, Stage, Struct
from spoolmta.smtp.wire import dot_stuff, mail_command, rcpt_command


class WireError(Exception):
    """Trouble on the wire, thrown into a dialogue. `replies` are those of the current step that had arrived."""

    def __init__(self, failure: Failure, replies: Sequence[Reply] = ()) -> None:
        super().__init__(failure.text)
        self.failure = failure
        self.replies = list(replies)


class Step(Struct, frozen=True):
    """Send `data`, then wait for `replies` replies; `stage` says which timeout holds. With `starts_tls` nothing is
    sent: the driver begins TLS, and resumes with no reply when all that follows is inside it."""

    data: bytes
    replies: int
    stage: Stage
    starts_tls: bool = False


class Capabilities(Struct, frozen=True):
    """What a server offered: EHLO keywords in upper case with their parameters (RFC 5321 section 4.1.1.1)."""

    greeting: str = ""
    keywords: dict[str, str] = {}

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def listing(self) -> str:
        return ",".join(self.keywords)


class Refused(Exception):
    """The server does not want to talk: the stage and its reply, or what went wrong."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer.result))
        self.answer = answer


class Result(Struct, frozen=True):
    """One answer per recipient, in their order; whether the session can carry another message."""

    answers: list[Answer]
    reusable: bool


Greeting = Generator[Step, list[Reply], Capabilities]
Transaction = Generator[Step, list[Reply], Result]


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
    """Why there is no session: the refusal with which the server left, else what went wrong."""
    last = error.replies[-1] if error.replies else None
    return last if last and last.code >= 400 else error.failure


def transaction(
    sender: str,
    recipients: Sequence[Recipient],
    content: bytes,
    offered: Capabilities,
    *,
    ret: str = "",
    envid: str = "",
) -> Transaction:
    """Send one message to up to a connection's worth of recipients. `content` is CRLF text, not yet dot-stuffed."""
    commands, answers = _commands(sender, recipients, content, offered, ret, envid)
    asked = [index for index, answer in enumerate(answers) if answer is None]
    if not asked:
        return Result([answer for answer in answers if answer is not None], True)
    rcpts = [commands[index + 1] for index in asked]
    state = _State(answers, asked)
    try:
        if "PIPELINING" in offered:
            state.stage = Stage.MAIL
            replies = yield Step(commands[0] + b"".join(rcpts) + b"DATA\r\n", len(asked) + 2, Stage.MAIL)
            state.read_mail(replies[0])
            for index, reply in zip(asked, replies[1:-1], strict=True):
                state.read_rcpt(index, reply)
            data = replies[-1]
            if state.is_out_of_step:
                return (yield from _finish(state, reset=False))
        else:
            state.read_mail((yield Step(commands[0], 1, Stage.MAIL))[0])
            for index, rcpt in zip(asked, rcpts, strict=True):
                if state.is_refused or state.closing:
                    break
                state.stage = Stage.RCPT
                state.read_rcpt(index, (yield Step(rcpt, 1, Stage.RCPT))[0])
            if not state.accepted or state.closing:
                return (yield from _finish(state, reset=True))
            state.stage = Stage.DATA
            data = (yield Step(b"DATA\r\n", 1, Stage.DATA))[0]
        if 300 <= data.code < 400:
            state.stage = Stage.EOD
            reply = (yield Step(dot_stuff(content) if state.accepted else b".\r\n", 1, Stage.EOD))[0]
            state.read_end(Stage.EOD, reply)
            return (yield from _finish(state, reset=False))
        state.read_end(Stage.DATA, data)
        return (yield from _finish(state, reset=True))
    except WireError as error:
        state.fail(error)
        return Result([answer or Answer(state.stage, error.failure) for answer in state.answers], False)


def _finish(state: _State, *, reset: bool) -> Transaction:
    """Leave the session ready for the next message: RSET where a transaction may still be open."""
    result = [answer or Answer(state.stage, state.last) for answer in state.answers]
    if state.closing:
        return Result(result, False)
    if reset:
        try:
            reply = (yield Step(b"RSET\r\n", 1, Stage.MAIL))[0]
        except WireError:
            return Result(result, False)
        return Result(result, reply.code == 250)
    return Result(result, True)


class _State:
    """What is known of one transaction so far."""

    __slots__ = ("accepted", "answers", "asked", "closing", "is_out_of_step", "is_refused", "last", "stage")

    def __init__(self, answers: list[Answer | None], asked: list[int]) -> None:
        self.answers = answers
        self.asked = asked
        self.accepted: list[int] = []
        self.stage = Stage.MAIL
        self.is_refused = False
        self.is_out_of_step = False
        self.closing = False
        self.last: Reply | Failure = Failure(FailureKind.LOST, "the session ended")

    def read_mail(self, reply: Reply) -> None:
        if 200 <= reply.code < 300:
            return
        self.is_refused = True
        self._answer(self.asked, Stage.MAIL, reply)

    def read_rcpt(self, index: int, reply: Reply) -> None:
        if self.answers[index] is not None:
            return
        if 200 <= reply.code < 300:
            self.accepted.append(index)
        else:
            self._answer([index], Stage.RCPT, reply)

    def read_end(self, stage: Stage, reply: Reply) -> None:
        self._answer(self.accepted, stage, reply)

    def _answer(self, indexes: list[int], stage: Stage, reply: Reply) -> None:
        """A 421 ends the session (RFC 5321 section 3.8). A 2xx to DATA, or a 3xx elsewhere, is no answer at all."""
        if reply.code == 421 and not self.closing:
            self.closing, self.last = True, reply
        result: Reply | Failure = reply
        if self.is_out_of_step:
            result = self.last
        elif reply.code < 400 and not (stage is Stage.EOD and reply.code < 300):
            result = Failure(FailureKind.PROTOCOL, f"unexpected reply to {stage.value}: {reply}")
            self.closing = self.is_out_of_step = True
            self.last = result
        for index in indexes:
            if self.answers[index] is None:
                self.answers[index] = Answer(stage, result)

    def fail(self, error: WireError) -> None:
        """Use what had arrived of the broken step: a refusal is final for whom it names, and a server that says
        421 (or refuses at the end of data) before it hangs up has told us why."""
        replies = error.replies if error.failure.kind is not FailureKind.PROTOCOL else []
        if self.stage is Stage.MAIL and replies:
            self.read_mail(replies[0])
            for index, reply in zip(self.asked, replies[1:], strict=False):
                if reply.code >= 400:
                    self._answer([index], Stage.RCPT, reply)
            if len(replies) > 1:
                self.stage = Stage.RCPT
        if replies and replies[-1].code == 421:
            self._answer([i for i, answer in enumerate(self.answers) if answer is None], self.stage, replies[-1])


def _commands(
    sender: str, recipients: Sequence[Recipient], content: bytes, offered: Capabilities, ret: str, envid: str
) -> tuple[list[bytes], list[Answer | None]]:
    """MAIL and one RCPT per recipient, with the parameters the server offers; recipients that cannot be named to
    this server get their answer here (RFC 6531 section 3.4)."""
    answers: list[Answer | None] = [None] * len(recipients)
    needs_utf8 = not sender.isascii()
    for index, recipient in enumerate(recipients):
        if needs_utf8 or not recipient.address.isascii():
            if "SMTPUTF8" in offered:
                needs_utf8 = True
                break
            text = f"the host does not offer SMTPUTF8, which the {'sender' if needs_utf8 else 'address'} needs"
            answers[index] = Answer(Stage.RCPT, Failure(FailureKind.UNSENDABLE, text))
    parameters = ""
    if "SIZE" in offered:
        parameters += f" SIZE={len(content)}"
    if "8BITMIME" in offered and not content.isascii():
        parameters += " BODY=8BITMIME"
    if needs_utf8:
        parameters += " SMTPUTF8"
    dsn = "DSN" in offered
    if dsn and ret:
        parameters += f" RET={ret}"
    if dsn and envid:
        parameters += f" ENVID={_xtext(envid)}"
    commands = [mail_command(sender, parameters)]
    for recipient in recipients:
        extra = ""
        if dsn and recipient.notify:
            extra += f" NOTIFY={recipient.notify}"
        if dsn and recipient.orcpt:
            extra += f" ORCPT={recipient.orcpt}"
        commands.append(rcpt_command(recipient.address, extra))
    return commands, answers


def _xtext(text: str) -> str:
    """RFC 3461 section 4: `+`, `=` and what is not printable ASCII as +XX."""
    return "".join(
        ch
        if "!" <= ch <= "~" and ch not in "+="
        else "".join(f"+{b:02X}" for b in ch.encode("utf-8", "surrogateescape"))
        for ch in text
    )
