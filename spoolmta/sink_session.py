"""One client of the test receiver: the SMTP state machine and the counts it keeps.

A connection is in one of four states: it reads commands, it reads a body, it waits (for the end of a
scripted delay; input is kept, at most INPUT_LIMIT), or it is over (closing, or silent for ever; input is thrown
away). A body is never looked at line by line: the end is found with one search per read, over the seam between two
reads with the last four bytes of what came before. The bytes before a body count as CRLF, so that a dot at the very
start is an empty message.

What a message counts as: it is accepted when the 2xx to its dot is decided, that is after a scripted delay, and it
is never both accepted and `drop-at-dot` or `silent-at-dot`.

With CHUNKING the octets of a BDAT are counted off, and thrown away where there is no transaction for them.

Sizes are those of the wire: with the doubled dots, without the final dot line. Extensions that are switched off are
not only not offered: their MAIL and RCPT parameters are refused, and without PIPELINING a command that came before
the reply to the one before it is answered 503.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from spoolmta import sink_tls
from spoolmta.errors import SpoolError
from spoolmta.sink_auth import Login, login
from spoolmta.sink_counts import endpoint
from spoolmta.sink_script import (
    GARBAGE_REPLY,
    LONG_REPLY,
    MAIL_COMMAND,
    MAXIMUM_SIZE,
    RCPT_COMMAND,
    Behaviour,
    Kind,
    Stage,
    behaviour_of,
    scripted_reply,
)
from spoolmta.tls_channel import Channel

if TYPE_CHECKING:
    from spoolmta.sink import Sink

LINE_LIMIT = 8192
HEAD_LIMIT = 65_536  # how much of a body is kept to look for X-Test-Id
INPUT_LIMIT = 1_048_576
NAMES_LIMIT = 1000  # EHLO names remembered for each pair of addresses
_END = b"\r\n.\r\n"


class Session(asyncio.Protocol):
    """One client; the states are in the module docstring."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.options = sink.options
        self.replies = sink.replies
        self.listening = self.source = self.name = ""
        self.kept = b""  # input not yet taken: part of a line, or what came during a delay
        self.out: list[bytes] = []
        self.in_body = self.waiting = self.over = self.reset_on_close = self.silent = False
        self.held = False  # replies wait for the record
        self.channel: Channel | None = None
        self.discards = False  # what came behind STARTTLS
        self.says_to_hello: bytes | None = None  # instead of a handshake
        self.timer: asyncio.TimerHandle | None = None
        self.messages = 0
        self.in_chunk = self.is_last_chunk = False
        self.chunk_left = 0
        self.login: Login | None = None
        self.may_send = not self.options.auth
        self.new_transaction()

    def __repr__(self) -> str:
        return f"Session({vars(self)})"

    def new_transaction(self) -> None:
        self.sender: str | None = None
        self.utf8 = False
        self.recipients: list[str] = []
        self.verb = ""  # DATA or BDAT, once there is content
        self.at_data: Behaviour | None = None
        self.at_dot: Behaviour | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.source = transport.get_extra_info("peername")[0]
        self.listening = endpoint(transport.get_extra_info("sockname"))
        self.pair = self.sink.enter(self)
        limit = self.options.max_connections
        if limit and self.sink.by_source[self.source] > limit:
            self.pair.turned_away += 1
            self.out.append(self.replies.crowd)
            self.over = True
        else:
            self.out.append(self.replies.greeting)
            self.over = self.options.greeting == 421
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        if self.timer is not None:
            self.timer.cancel()
        self.over = True
        self.kept = b""
        self.sink.leave(self)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.waiting:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.over:
            return
        if self.says_to_hello is not None:
            self.finish(self.says_to_hello)
            self.flush()
            return
        if self.kept:
            data = self.kept + data
        if self.waiting:
            self.kept = data
            if len(data) > INPUT_LIMIT:
                self.transport.pause_reading()
            return
        self.consume(data)

    def consume(self, data: bytes) -> None:
        position = 0
        size = len(data)
        while position < size and not self.waiting and not self.over:
            if self.in_body:
                position = self.body(data, position)
                continue
            if self.in_chunk:
                position = self.chunk(data, position)
                continue
            end = data.find(b"\n", position)
            if end < 0:
                break
            line = data[position:end]
            position = end + 1
            self.line(line, position < size)
            if self.discards:
                self.discards, self.kept = False, b""
                return
        self.kept = b"" if self.over else data[position:]
        if len(self.kept) > LINE_LIMIT and not self.waiting:
            self.finish(self.replies.line)
        self.flush()

    def flush(self) -> None:
        if self.held or self.transport.is_closing():
            return
        if self.out:
            self.transport.write(b"".join(self.out))
            self.out.clear()
        if not self.over or self.silent:
            return
        if self.reset_on_close:
            descriptor = self.transport.get_extra_info("socket")
            descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()

    def finish(self, *last: bytes) -> None:
        self.out.extend(last)
        self.over = True

    def line(self, line: bytes, more: bool) -> None:
        """One command; `more` says that input came with it that could not have seen its reply."""
        replies = self.replies
        if line[-1:] != b"\r" or len(line) > LINE_LIMIT:
            self.out.append(replies.line)
            return
        try:
            text = line[:-1].decode()
        except UnicodeDecodeError:
            self.out.append(replies.syntax)
            return
        if self.login is not None:
            self.go_on_with_login(text)
            return
        verb = text[:4].upper()
        if more and (not self.options.pipelining or verb == "DATA"):
            self.pair.too_early += 1
            if not self.options.pipelining:
                self.out.append(replies.early)
                return
        if self.options.greeting >= 400 and verb != "QUIT":  # RFC 5321 section 3.1
            self.out.append(replies.order)
            return
        command = _COMMANDS.get(verb)
        if command is None:
            self.out.append(replies.unknown)
        else:
            command(self, text)

    def hello(self, text: str) -> None:
        name = text[5:].strip()
        if not name:
            self.out.append(self.replies.syntax)
            return
        self.name = name
        if name in self.pair.names or len(self.pair.names) < NAMES_LIMIT:
            self.pair.names[name] += 1
        self.new_transaction()
        ehlo = self.replies.ehlo if self.channel is None else self.replies.ehlo_in_tls
        self.out.append(ehlo if text[0] in "Ee" else self.replies.helo)

    def secured(self) -> None:
        self.name = ""  # all that was said before TLS is forgotten

    def not_secured(self, reason: str) -> None:
        self.sink.tls_troubles[reason] += 1
        self.over = True
        self.transport.close()

    def mail(self, text: str) -> None:
        replies = self.replies
        found = MAIL_COMMAND.fullmatch(text)
        if not self.may_send:
            self.out.append(replies.need_login)
        elif not self.name or self.sender is not None:
            self.out.append(replies.order)
        elif self.options.max_messages and self.messages >= self.options.max_messages:
            self.finish(replies.enough)
        elif found is None:
            self.out.append(replies.syntax)
        elif problem := self.bad_parameter(found[2] or "", replies.mail_keys):
            self.utf8 = False
            self.out.append(problem)
        elif not (self.utf8 or found[1].isascii()):
            self.out.append(replies.utf8)
        else:
            self.take_sender(found[1])

    def take_sender(self, address: str) -> None:
        behaviour = behaviour_of(address.rpartition("@")[0])
        if behaviour is None or behaviour.stage is not Stage.MAIL:
            self.sender = address
            self.out.append(self.replies.mail)
        elif behaviour.kind is not Kind.REPLY:  # drop-after-mail
            self.out.append(self.replies.mail)
            self.perform(behaviour, address)
        elif self.perform(behaviour, address):
            self.sender = address

    def bad_parameter(self, text: str, known: set[str]) -> bytes | None:
        problem = self.replies.bad_parameter(text, known, self.options.max_size)
        self.utf8 |= problem is None and "SMTPUTF8" in text.upper().split()
        return problem

    def rcpt(self, text: str) -> None:
        replies = self.replies
        found = RCPT_COMMAND.fullmatch(text)
        problem: bytes | None = None
        if self.sender is None:
            problem = replies.order
        elif found is None or not found[1]:
            problem = replies.syntax
        elif len(self.recipients) >= self.options.max_recipients > 0:
            problem = replies.too_many
        elif not self.utf8 and not found[1].isascii():
            problem = replies.utf8
        elif found[2]:
            problem = self.bad_parameter(found[2], replies.rcpt_keys)
        if found is None or problem is not None:
            self.pair.refused += 1
            self.out.append(problem or replies.syntax)
        else:
            self.take_recipient(found[1])

    def take_recipient(self, address: str) -> None:
        behaviour = behaviour_of(address.rpartition("@")[0])
        if behaviour is not None and behaviour.first and self.sink.attempt(address) > behaviour.first:
            behaviour = None
        if behaviour is None or behaviour.stage is Stage.MAIL:
            self.take(address)
        elif behaviour.stage is Stage.DATA:
            self.at_data = self.at_data or behaviour
            self.take(address)
        elif behaviour.stage is Stage.DOT:
            self.at_dot = self.at_dot or behaviour
            self.take(address)
        elif behaviour.kind is Kind.DELAY:
            self.wait(behaviour.seconds, lambda: self.take(address))
        elif self.perform(behaviour, address):
            self.recipients.append(address)
            self.pair.recipients += 1
        else:
            self.pair.refused += 1

    def take(self, address: str) -> None:
        self.recipients.append(address)
        self.pair.recipients += 1
        self.out.append(self.replies.rcpt)

    def data(self, text: str) -> None:
        if not self.recipients or len(text) > 4:
            self.out.append(self.replies.order if len(text) == 4 else self.replies.syntax)
        elif self.at_data is not None and self.at_data.code != 354:
            self.perform(self.at_data, self.recipients[0])
            self.new_transaction()
        else:
            self.out.append(self.replies.data)
            self.in_body = True
            self.tail = b"\r\n"
            self.begin_content("DATA")

    def begin_content(self, verb: str) -> None:
        self.verb = verb
        self.received = 0
        self.chunks: list[bytes] = []
        self.chunks_limit = MAXIMUM_SIZE if self.options.maildir else HEAD_LIMIT if self.options.record else 0

    def bdat(self, text: str) -> None:
        """RFC 3030 section 2: the octets are read in any case; without a transaction they are thrown away."""
        words = text.split()
        if len(words) not in (2, 3) or not (words[1].isascii() and words[1].isdigit()) or len(words[1]) > 12:
            self.finish(self.replies.syntax)
        elif not self.options.chunking:
            self.out.append(self.replies.unknown)
        else:
            if self.recipients and not self.verb:
                self.begin_content("BDAT")
            self.in_chunk, self.chunk_left, self.is_last_chunk = True, int(words[1]), len(words) == 3
            if not self.chunk_left:
                self.end_chunk()

    def chunk(self, data: bytes, start: int) -> int:
        stop = min(len(data), start + self.chunk_left)
        self.chunk_left -= stop - start
        if self.verb:
            if self.received < self.chunks_limit:
                self.chunks.append(data[start:stop])
            self.received += stop - start
        if not self.chunk_left:
            self.end_chunk()
        return stop

    def end_chunk(self) -> None:
        self.in_chunk = False
        if not self.verb:
            self.out.append(self.replies.order)
        elif not self.is_last_chunk:
            self.out.append(self.replies.chunk)
        elif self.at_data is not None:
            self.perform(self.at_data, self.recipients[0])
            self.new_transaction()
        else:
            self.received += 3  # as if the dot line had come: sizes are without it
            self.dot()

    def auth(self, text: str) -> None:
        words = text.split()
        if len(words) not in (2, 3) or words[1].upper() not in self.options.auth.upper().split():
            self.out.append(self.replies.no_mechanism)
            return
        name, _, password = self.options.login.partition(":")
        self.login = login(words[1].upper(), words[2].encode() if len(words) == 3 else None, name, password)
        self.go_on_with_login(None)

    def go_on_with_login(self, text: str | None) -> None:
        assert self.login is not None
        try:
            challenge = next(self.login) if text is None else self.login.send(text.encode())
        except StopIteration as stop:
            self.login = None
            self.may_send |= bool(stop.value)
            replies = {True: self.replies.logged_in, False: self.replies.bad_login, None: self.replies.syntax}
            self.out.append(replies[stop.value])
        else:
            self.out.append(b"334 " + base64.b64encode(challenge) + b"\r\n")

    def body(self, data: bytes, start: int) -> int:
        """Take body bytes from `data[start:]`; returns where the commands go on."""
        tail = self.tail
        seam = (tail + data[start : start + 4]).find(_END)
        if seam >= 0:
            end = start + seam + 5 - len(tail)
        else:
            found = data.find(_END, start)
            end = found + 5 if found >= 0 else -1
        stop = end if end >= 0 else len(data)
        if self.received < self.chunks_limit:
            self.chunks.append(data[start:stop])
        self.received += stop - start
        if end < 0:
            self.tail = data[-4:] if stop - start >= 4 else (tail + data[start:])[-4:]
            if self.received > MAXIMUM_SIZE:
                self.chunks.clear()
                self.chunks_limit = 0
            return stop
        self.in_body = False
        self.dot()
        return end

    def dot(self) -> None:
        behaviour = self.at_dot
        if self.received - 3 > self.options.max_size:
            self.pair.rejected += 1
            self.out.append(self.replies.too_big)
            self.new_transaction()
        elif behaviour is None:
            self.accept(self.replies.ok)
        elif behaviour.kind is Kind.DELAY:
            self.wait(behaviour.seconds, lambda: self.accept(self.replies.ok))
        elif behaviour.kind is Kind.REPLY and 200 <= behaviour.code < 300:
            self.accept(scripted_reply(behaviour, self.recipients[0]))
        else:
            if behaviour.kind is Kind.REPLY:
                self.pair.rejected += 1
            else:
                self.pair.dropped += 1
            self.perform(behaviour, self.recipients[0])
            self.new_transaction()

    def accept(self, reply: bytes) -> None:
        size = self.received - 3
        self.messages += 1
        if self.options.record or self.options.maildir:
            try:
                self.sink.keep(self, b"".join(self.chunks), size)
            except (OSError, SpoolError) as error:
                self.sink.trouble = str(error)
                self.finish()
                return
            self.chunks.clear()
        self.pair.accepted += 1
        self.pair.bytes += size
        self.out.append(reply)
        self.new_transaction()

    def perform(self, behaviour: Behaviour, address: str) -> bool:
        """Everything but a delay; says whether the command counts as accepted."""
        kind = behaviour.kind
        if kind is Kind.REPLY:
            self.out.append(scripted_reply(behaviour, address))
            self.over = behaviour.code == 421
            return 200 <= behaviour.code < 300
        if kind is Kind.LONG:
            self.out.append(LONG_REPLY)
            return True
        if kind is Kind.GARBAGE:
            self.out.append(GARBAGE_REPLY)
            return False
        self.over = True
        self.silent = kind is Kind.SILENT
        self.reset_on_close = kind is Kind.RESET
        return False

    def wait(self, seconds: float, then: Callable[[], None]) -> None:
        def done() -> None:
            self.timer = None
            self.waiting = False
            then()
            self.transport.resume_reading()
            kept, self.kept = self.kept, b""
            self.consume(kept)

        self.waiting = True
        self.timer = self.sink.loop.call_later(seconds, done)

    def restart(self, _text: str) -> None:
        self.new_transaction()
        self.out.append(self.replies.ok)

    def nothing(self, _text: str) -> None:
        self.out.append(self.replies.ok)

    def verify(self, _text: str) -> None:
        self.out.append(self.replies.verify)

    def quit(self, _text: str) -> None:
        self.finish(self.replies.bye)


_COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "EHLO": Session.hello,
    "HELO": Session.hello,
    "MAIL": Session.mail,
    "RCPT": Session.rcpt,
    "STAR": sink_tls.starttls,
    "DATA": Session.data,
    "BDAT": Session.bdat,
    "AUTH": Session.auth,
    "RSET": Session.restart,
    "NOOP": Session.nothing,
    "VRFY": Session.verify,
    "QUIT": Session.quit,
}
