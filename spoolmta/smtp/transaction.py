"""One message to some recipients on an open session: MAIL, RCPT, and the content behind DATA or BDAT.

Laws. Every recipient gets exactly one Answer, whatever fails where. At most one body goes out. A recipient is
only ever answered at Stage.EOD if its RCPT was accepted and the body was sent. A pipelined 354 with no accepted
recipient is ended with an empty body (RFC 2920 section 3.1). Nothing is sent that the server did not offer.

Where PIPELINING is offered, MAIL, all RCPT and DATA are one write. BDAT (RFC 3030) may be in that write too, and its
content with it, but is not: it waits until a recipient was accepted. It costs the same two round trips as DATA, and
content that nobody accepted could be read as commands by a server that refuses BDAT without taking its octets.

Too many recipients (RFC 5321 section 4.5.3.1.10): who is refused for that, behind one who was accepted, is named in
`Result.retry`. A transaction that accepts nobody names nobody there, so each one settles somebody.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from spoolmta import bounce, sevenbit
from spoolmta.model import Answer, Failure, FailureKind, Recipient, Reply, Stage
from spoolmta.smtp.client import Capabilities, Result, Step, WireError
from spoolmta.smtp.wire import bdat, dot_stuff, mail_command, rcpt_command

Transaction = Generator[Step, list[Reply], Result]

_NO_BDAT = frozenset({500, 502, 503, 504})


def transaction(
    sender: str,
    recipients: Sequence[Recipient],
    content: bytes,
    offered: Capabilities,
    *,
    ret: str = "",
    envid: str = "",
    sign: Callable[[bytes], bytes] | None = None,
) -> Transaction:
    """Send one message to up to a connection's worth of recipients. `content` is CRLF text, not yet dot-stuffed; `sign`
    gets it as it will go out, and gives it back with what it adds."""
    keywords = offered.keywords
    if (
        sign is not None
        or 0 < offered.max_size < len(content)
        or ("8BITMIME" not in keywords and not content.isascii())
    ):
        fit = _fit(content, offered, sign)
        if isinstance(fit, Failure):
            return Result([Answer(Stage.MAIL, fit)] * len(recipients), True)
        content = fit
    commands, answers = _commands(sender, recipients, content, offered, ret, envid)
    asked = [index for index, answer in enumerate(answers) if answer is None]
    if not asked:
        return Result([answer for answer in answers if answer is not None], True)
    state = _State(answers, asked, offered.stays_after_421)
    uses_bdat = "CHUNKING" in keywords
    data: Reply | None = None
    try:
        if "PIPELINING" in keywords:
            group = b"".join([commands[0], *(commands[index + 1] for index in asked)])
            replies = yield Step(group if uses_bdat else group + b"DATA\r\n", len(asked) + 2 - uses_bdat, Stage.MAIL)
            state.read_mail(replies[0])
            for index, reply in zip(asked, replies[1:], strict=False):  # the one behind them answers DATA
                state.read_rcpt(index, reply)
            data = None if uses_bdat else replies[-1]
            if state.is_out_of_step:
                return (yield from _finish(state, reset=False))
        else:
            yield from _one_by_one(state, commands)
        if data is None:
            if not state.accepted or state.closing:
                return (yield from _finish(state, reset=True))
            if uses_bdat:
                state.stage = Stage.EOD
                state.read_bdat((yield Step(bdat(content), 1, Stage.EOD))[0])
                return (yield from _finish(state, reset=state.must_reset))
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
        return state.fail(error)


def _one_by_one(state: _State, commands: list[bytes]) -> Generator[Step, list[Reply], None]:
    """MAIL and the RCPTs, each after the reply to the one before it."""
    state.read_mail((yield Step(commands[0], 1, Stage.MAIL))[0])
    for index in state.asked:
        if state.is_refused or state.closing:
            return
        if state.retry:  # no more are taken, so the rest need not be asked about
            state.put_off(index, state.last_reply)
            continue
        state.stage = Stage.RCPT
        state.read_rcpt(index, (yield Step(commands[index + 1], 1, Stage.RCPT))[0])


def _fit(content: bytes, offered: Capabilities, sign: Callable[[bytes], bytes] | None) -> bytes | Failure:
    """The content as this server takes it (RFC 1870 section 6.1, RFC 6152 section 3), or why it cannot have it. Signed
    is what goes out: behind the conversion, and the size is with the signature."""
    if "8BITMIME" not in offered and not content.isascii():
        try:
            content = sevenbit.convert(content)
        except sevenbit.Unconvertible as error:
            text = f"the host does not offer 8BITMIME, and {error}"
            return Failure(FailureKind.UNCONVERTIBLE, text)
    if sign is not None:
        content = sign(content)
    if 0 < offered.max_size < len(content):
        text = f"the message has {len(content)} bytes, and the host takes {offered.max_size}"
        return Failure(FailureKind.TOO_BIG, text)
    return content


def _finish(state: _State, *, reset: bool) -> Transaction:
    """Leave the session ready for the next message: RSET where a transaction may still be open."""
    answers = state.answered(state.stage, state.last)
    retry = () if state.is_out_of_step else tuple(state.retry)
    if state.closing:
        return Result(answers, False, retry)
    if reset or state.has_421:
        try:
            reply = (yield Step(b"RSET\r\n", 1, Stage.MAIL))[0]
        except WireError:
            return Result(answers, False, retry)
        return Result(answers, reply.code == 250, retry)
    return Result(answers, True, retry)


class _State:
    """What is known of one transaction so far."""

    __slots__ = (
        "accepted",
        "answers",
        "asked",
        "closing",
        "has_421",
        "is_out_of_step",
        "is_refused",
        "last",
        "last_reply",
        "must_reset",
        "retry",
        "stage",
        "stays",
    )

    def __init__(self, answers: list[Answer | None], asked: list[int], stays: bool) -> None:
        self.answers = answers
        self.asked = asked
        self.accepted: list[int] = []
        self.retry: list[int] = []
        self.stage = Stage.MAIL
        self.stays = stays
        self.is_refused = self.is_out_of_step = self.closing = self.has_421 = self.must_reset = False
        self.last: Reply | Failure = Failure(FailureKind.LOST, "the session ended")
        self.last_reply = Reply(0)

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
        elif self.accepted and not self.closing and _is_too_many(reply):
            self.put_off(index, reply)
        else:
            self._answer([index], Stage.RCPT, reply)

    def put_off(self, index: int, reply: Reply) -> None:
        """No more are taken in this transaction: this one's turn comes in the next."""
        self.last_reply = reply
        self.retry.append(index)
        self.answers[index] = Answer(Stage.RCPT, reply)

    def read_end(self, stage: Stage, reply: Reply) -> None:
        self._answer(self.accepted, stage, reply)

    def read_bdat(self, reply: Reply) -> None:
        """A server that offers CHUNKING and does not know BDAT is broken, which is not the message's fault. After any
        refusal it is in no defined state (RFC 3030 section 2)."""
        if reply.code in _NO_BDAT:
            text = f"the host offers CHUNKING and does not take BDAT (ignore-chunking helps): {reply}"
            self.last = Failure(FailureKind.PROTOCOL, text)
            self.closing = self.is_out_of_step = True
        self.must_reset = reply.code >= 300
        self.read_end(Stage.DATA if self.is_out_of_step else Stage.EOD, reply)

    def _answer(self, indexes: list[int], stage: Stage, reply: Reply) -> None:
        """A 421 ends the session (RFC 5321 section 3.8). A 2xx to DATA, or a 3xx elsewhere, is no answer at all."""
        if reply.code == 421 and self.stays:
            self.has_421 = True
        elif reply.code == 421 and not self.closing:
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

    def answered(self, stage: Stage, result: Reply | Failure) -> list[Answer]:
        """All answers; who has none gets this one."""
        return [answer or Answer(stage, result) for answer in self.answers]

    def fail(self, error: WireError) -> Result:
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
        stage = Stage.TRANSFER if self.stage is Stage.EOD and error.is_unsent else self.stage
        return Result(self.answered(stage, error.failure), False)


def _is_too_many(reply: Reply) -> bool:
    """Whether a refusal of a recipient may only mean that there are enough in this transaction (RFC 5321 section
    4.5.3.1.10, which also knows of servers that say 552). What is said of an address or a mailbox is not that."""
    if reply.code == 452:
        return bounce.status_of(reply)[:4] not in ("4.1.", "4.2.")
    if reply.code in (550, 552):
        return bounce.status_of(reply) == "5.5.3" or "too many recipients" in reply.text.lower()
    return False


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
    keywords = offered.keywords
    if "SIZE" in keywords:
        parameters += f" SIZE={len(content)}"
    if "8BITMIME" in keywords and not content.isascii():
        parameters += " BODY=8BITMIME"
    if needs_utf8:
        parameters += " SMTPUTF8"
    dsn = "DSN" in keywords
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
