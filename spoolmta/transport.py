"""The socket under a dialogue: bound to the VMTA's address, with one timer, driving generators of `smtp.client`.

A `Connection` runs one dialogue at a time and calls `done` with its result. There is no task and no future per
message: bytes arrive, the dialogue is resumed, bytes leave (on uvloop 38 microseconds a message for both directions).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

import msgspec

from spoolmta.model import Answer, Failure, FailureKind, Reply, Stage
from spoolmta.smtp.client import Capabilities, Refused, Result, Step, WireError
from spoolmta.smtp.wire import ProtocolError, ReplyParser
from spoolmta.tls import Handshake
from spoolmta.tls_channel import Channel

QUIT_WAIT = 5.0
MIN_RATE = 500
"""Bytes a second that a receiver has to take of what is sent, as in Postfix: one that takes less only holds us up."""
MAX_WAIT = 10
"""The replies to one write may take this many times the timeout of one reply, each within its own timeout."""
_IP_BIND_ADDRESS_NO_PORT = 24

Done = Callable[[Any], None]


class Connection(asyncio.Protocol):
    """One SMTP connection. `timeouts` are seconds per stage, `reply_timeout` how long a multi-line reply may take from
    its first line on; `on_lost` is called when it ends while no dialogue runs.

    The one deadline is set anew for each step of a dialogue and each complete reply, never for each byte. While the
    receiver does not take what is sent, it has `Stage.TRANSFER` for each MIN_RATE * that many bytes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeouts: Mapping[Stage, float],
        on_lost: Callable[[], None],
        reply_timeout: float = 300.0,
    ) -> None:
        self._loop = loop
        self._timeouts = timeouts
        self._on_lost: Callable[[], None] | None = on_lost
        self._on_gone: Callable[[], None] | None = None
        self._is_gone = False
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._dialogue: Generator[Step, list[Reply], Any] | None = None
        self._done: Done | None = None
        self._replies: list[Reply] = []
        self._awaited = 0
        self._early = b""
        self.stage = Stage.CONNECT
        self._reply_timeout = reply_timeout
        self._is_inside_reply = self._is_sending = False
        self._unsent = 0
        self._began = self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_quitting = False
        self.handshake: Handshake | None = None
        """How a dialogue's step that starts TLS is done; set by whoever opens the connection."""
        self.channel: Channel | None = None

    def __repr__(self) -> str:
        return f"Connection(stage={self.stage}, awaited={self._awaited}, quitting={self._is_quitting})"

    @property
    def is_busy(self) -> bool:
        return self._dialogue is not None

    @property
    def is_encrypted(self) -> bool:
        """Whether all that is said now is said inside TLS."""
        return self.channel is not None and self.channel.is_ready

    def run(self, dialogue: Generator[Step, list[Reply], Any], done: Done) -> None:
        """Drive a dialogue; `done` gets its result, or the Refused it raised. Never raises."""
        self._dialogue, self._done = dialogue, done
        try:
            step = next(dialogue)
        except StopIteration as stop:
            self._finish(stop.value)
            return
        except Refused as refused:
            self._finish(refused)
            return
        if self._transport is None or self._transport.is_closing():
            self.stage = step.stage
            self._fail(Failure(FailureKind.LOST, "connection lost"))
            return
        self._start(step)
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    async def converse(self, dialogue: Generator[Step, list[Reply], Any]) -> Any:
        """A dialogue's result, or the Refused it raised; a caller that is cancelled drops the connection."""
        finished: asyncio.Future[Any] = self._loop.create_future()
        self.run(dialogue, lambda result: _resolve(finished, result))
        try:
            return await finished
        except asyncio.CancelledError:
            self.abort()
            raise

    def quit(self) -> None:
        """Say QUIT and leave when the server has answered, or after a while (RFC 5321 section 4.1.1.10)."""
        self._on_lost = None
        if self._is_quitting or self._transport is None or self._transport.is_closing():
            return
        self._is_quitting = True
        self._transport.write(b"QUIT\r\n")
        self._set_timer(QUIT_WAIT)

    def when_gone(self, on_gone: Callable[[], None]) -> None:
        """Call this when the socket is closed, however that happens."""
        if self._is_gone:
            on_gone()
        else:
            self._on_gone = on_gone

    def abort(self) -> None:
        """Drop the connection; no callback is made any more."""
        self._on_lost = self._done = None
        self._dialogue = None
        self._close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        if self._dialogue is None:
            self._read_unasked(data)
            return
        try:
            replies = self._parser.feed(data)
        except ProtocolError as error:
            self._fail(Failure(FailureKind.PROTOCOL, str(error)))
            return
        self._replies += replies
        missing = self._awaited - len(self._replies)
        if missing > 0:
            self._wait_on(bool(replies))
            return
        self._is_inside_reply = False
        goodbye = self._read_surplus(missing)
        answered, self._replies = self._replies, []
        if not self.is_busy:
            return
        try:
            step = self._dialogue.send(answered)
            if goodbye is not None and goodbye.code != 421 and step.stage is Stage.EOD:
                self.stage = Stage.EOD
                step = self._dialogue.send([goodbye])  # it has refused what it has not seen, and need not see it
        except StopIteration as stop:
            result: Any = stop.value
        except Refused as refused:
            result = refused
        else:
            self._start(step)
            if goodbye is not None:
                self._replies = [goodbye]
                self._fail(Failure(FailureKind.LOST, f"the server left: {goodbye}"))
            return
        if goodbye is not None:
            result = _closed(result, self.stage, goodbye)
            self._on_lost = None
            self._close()
        self._finish(result)

    def _read_surplus(self, missing: int) -> Reply | None:
        """The 421 with which a server may take its leave right behind an answer (RFC 5321 section 3.8), or the refusal
        of a message right behind the 354 to its DATA.

        Any other surplus means that it is out of step: which reply answers which command is not known any more. So is
        a server that accepts a message before it has all of it; one that refuses it so early cannot carry another.
        """
        if missing == -1 and self._parser.is_between_replies and self._replies[-1].code == 421:
            return self._replies.pop()
        if missing == -1 and self._parser.is_between_replies and _is_refused_unseen(self._replies):
            return self._replies.pop()
        if missing or not self._parser.is_between_replies:
            self._fail(Failure(FailureKind.PROTOCOL, "the server sent more replies than there were commands"))
        elif self.stage is Stage.EOD and self._transport is not None and self._transport.get_write_buffer_size():
            if self._replies[-1].code >= 400:
                return self._replies[-1]
            self._fail(Failure(FailureKind.PROTOCOL, "the server answered before the end of the message"))
        return None

    def pause_writing(self) -> None:
        """The receiver does not take what is sent as fast as we can send it."""
        self._is_sending = True

    def resume_writing(self) -> None:
        self._is_sending = False
        if self.is_busy:
            self._set_timer(self._timeouts[self.stage])

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel_timer()
        self._is_gone = True
        if self._on_gone is not None:
            self._on_gone()
        if self._dialogue is not None:
            text = (
                f"connection lost: {error.strerror}"
                if isinstance(error, OSError) and error.strerror
                else "connection lost"
            )
            self._fail(Failure(FailureKind.LOST, text))
        elif self._on_lost is not None:
            on_lost, self._on_lost = self._on_lost, None
            on_lost()

    # What the channel tells

    def secured(self) -> None:
        """The handshake is done: go on inside TLS, if what the server showed will do."""
        if self._dialogue is None or self.channel is None or self.handshake is None:
            return
        problem = self.handshake.problem(self.channel)
        if problem:
            self._fail(Failure(FailureKind.TLS, problem))
        else:
            self._start(self._dialogue.send([]))

    def not_secured(self, reason: str) -> None:
        """The handshake, or TLS after it, has failed."""
        if self._dialogue is None:
            self._close()
        else:
            self._fail(Failure(FailureKind.TLS, f"TLS with the host failed: {reason}"))

    # Inside

    def _begin_tls(self) -> None:
        assert self.handshake is not None
        assert self._transport is not None
        made = self.handshake
        self.channel = Channel(self._transport, self, made.context, server_name=made.server_name, session=made.session)
        self._transport = self.channel
        self.channel.begin()

    def _read_unasked(self, data: bytes) -> None:
        """Bytes while no dialogue runs: the greeting may come before we listen; the reply to QUIT; else the server is
        saying goodbye (a 421 for idling), or is out of step, which must never be taken for an answer."""
        if self.stage is Stage.CONNECT and len(self._early) < 65536:
            self._early += data
            return
        self._close()

    def _start(self, step: Step) -> None:
        self.stage = step.stage
        self._awaited = step.replies
        if step.data and self._transport is not None:
            self._transport.write(step.data)
        if self._is_sending:
            self._watch_sending()
        else:
            self._set_timer(self._timeouts[step.stage])
        self._began = self._deadline
        if step.starts_tls:
            self._begin_tls()

    def _watch_sending(self) -> None:
        """Look again after a while how much was taken."""
        self._unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        self._set_timer(self._timeouts[Stage.TRANSFER])

    def _wait_on(self, has_reply: bool) -> None:
        """Some of the replies are here, or a part of one."""
        if has_reply and not self._is_sending:
            timeout = self._timeouts[self.stage]
            self._set_timer(min(timeout, self._began + (MAX_WAIT - 1) * timeout - self._loop.time()))
        if not self._parser.is_inside_reply:
            self._is_inside_reply = False
        elif has_reply or not self._is_inside_reply:
            self._is_inside_reply = True
            self._set_timer(min(self._reply_timeout, self._deadline - self._loop.time()))

    def _fail(self, failure: Failure) -> None:
        """Throw trouble into the dialogue; the connection is over."""
        dialogue, replies = self._dialogue, self._replies
        if dialogue is None:
            return
        self._replies = []
        try:
            dialogue.throw(WireError(failure, replies, is_unsent=self._is_sending))
        except StopIteration as stop:
            result: Any = stop.value
        except Refused as refused:
            result = refused
        else:
            raise AssertionError("a dialogue went on after its connection was lost")
        self._on_lost = None
        self._close()
        self._finish(result)

    def _finish(self, result: Any) -> None:
        done, self._done, self._dialogue = self._done, None, None
        if done is not None:
            done(result)

    def _close(self) -> None:
        self._cancel_timer()
        if self._transport is not None:
            self._transport.abort()

    def _set_timer(self, seconds: float) -> None:
        """Move the deadline. The timer itself is only moved when it fires: one per connection, not one per reply."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            self._cancel_timer()
            self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_taken_fast_enough(self) -> bool:
        left = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return self._unsent - left >= MIN_RATE * self._timeouts[Stage.TRANSFER]

    def _on_timer(self) -> None:
        self._timer = None
        if self._is_quitting:
            self._close()
        elif self._dialogue is not None:
            if self._loop.time() < self._deadline:
                self._timer = self._loop.call_at(self._deadline, self._on_timer)
            elif self._is_sending and self._is_taken_fast_enough():
                self._watch_sending()
            else:
                self._fail(Failure(FailureKind.TIMEOUT, f"no answer in time ({self.stage.value})"))


def _is_refused_unseen(replies: list[Reply]) -> bool:
    """Whether the last reply refuses the message that the one before it asks for."""
    return len(replies) > 1 and replies[-1].code >= 400 and 300 <= replies[-2].code < 400


def _closed(result: Any, stage: Stage, goodbye: Reply) -> Any:
    """The result of a dialogue after which the server left."""
    if isinstance(result, Result):
        return msgspec.structs.replace(result, reusable=False)
    if isinstance(result, Capabilities):
        return Refused(Answer(stage, goodbye))
    return result


async def connect(
    loop: asyncio.AbstractEventLoop, protocol: Connection, address: str, port: int, source: str, timeout: float
) -> str:
    """Connect from `source` ("" lets the system choose) and hand the socket to `protocol`; the source address in use.

    Raises WireError; its failure is LOCAL when it is our own trouble (the address is not on this machine, no
    descriptors, no ports), which must not be blamed on the receiver.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise WireError(Failure(FailureKind.LOCAL, f"no socket: {error.strerror}")) from None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            # The port is chosen at connect, so one address can have 28,000 connections to every receiver.
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            try:
                sock.bind((source, 0))
            except OSError as error:
                raise WireError(Failure(FailureKind.UNBOUND, f"cannot bind {source}: {error.strerror}")) from None
        async with asyncio.timeout(timeout):
            await _connect(loop, sock, (address, port))
        used = str(sock.getsockname()[0])
        await loop.create_connection(lambda: protocol, sock=sock)
    except WireError:
        sock.close()
        raise
    except asyncio.CancelledError:
        sock.close()
        raise
    except TimeoutError:
        sock.close()
        raise WireError(Failure(FailureKind.TIMEOUT, f"no connection to {address}:{port} in time")) from None
    except OSError as error:
        sock.close()
        raise WireError(_connect_failure(error, f"{address}:{port}")) from None
    return used


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, where: tuple[str, int]) -> None:
    """Connect without `loop.sock_connect`, which on uvloop starts four threads to look up what is an address."""
    try:
        sock.connect(where)
        return
    except BlockingIOError:
        pass
    writable = loop.create_future()
    loop.add_writer(sock, _resolve, writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock)
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _resolve(future: asyncio.Future[Any], result: object = None) -> None:
    """Cancelling a task ends its future at once, and the task hears of it a turn later: what arrives between the two
    finds the future done."""
    if not future.done():
        future.set_result(result)


def _connect_failure(error: OSError, where: str) -> Failure:
    text = f"cannot connect to {where}: {error.strerror or error}"
    if error.errno == errno.ECONNREFUSED:
        return Failure(FailureKind.REFUSED, text)
    if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EACCES):
        return Failure(FailureKind.LOCAL, text)
    return Failure(FailureKind.UNREACHABLE, text)
