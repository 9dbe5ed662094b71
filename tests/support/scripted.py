"""A receiver of a few lines, in threads of the test: what no decent test receiver does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

Serve = Callable[["Talk"], None]


class Talk:
    """One connection: what came in, line by line and read by read, and how to answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines: list[str] = []
        self.reads: list[bytes] = []
        self._buffer = b""

    def say(self, *lines: str) -> None:
        self.sock.sendall("".join(line + "\r\n" for line in lines).encode())

    def read(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError
        self.reads.append(data)
        return data

    def line(self) -> str:
        """The next line; ConnectionError at the end."""
        while b"\n" not in self._buffer:
            self._buffer += self.read()
        line, _, self._buffer = self._buffer.partition(b"\n")
        text = line.decode("utf-8", "replace").rstrip("\r")
        self.lines.append(text)
        return text

    def hello(self, *keywords: str) -> None:
        """Greet, and offer these extensions."""
        self.say("220 scripted.test")
        self.line()
        self.say(*(f"250-{word}" for word in ("scripted.test", *keywords)), "250 HELP")

    def body(self) -> None:
        while self.line() != ".":
            pass

    def accept(self, *, mail: str = "250 ok", rcpt: str = "250 ok", dot: str = "250 queued") -> None:
        """Answer commands until the connection ends, taking every message."""
        while True:
            verb = self.line()[:4].upper()
            if verb == "DATA":
                self.say("354 go")
                self.body()
                self.say(dot)
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say({"MAIL": mail, "RCPT": rcpt}.get(verb, "250 ok"))


class Scripted:
    """Listens on 127.0.0.2; `serve` runs in a thread for each connection, which are kept in `talks`."""

    def __init__(self, serve: Serve, receive_buffer: int = 0) -> None:
        self._serve = serve
        self.talks: list[Talk] = []
        self._server = socket.socket()
        if receive_buffer:
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._server.bind(("127.0.0.2", 0))
        self._server.listen(50)
        self.port = int(self._server.getsockname()[1])
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Scripted:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        for talk in self.talks:
            with contextlib.suppress(OSError):
                talk.sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
        self._server.close()

    @property
    def lines(self) -> list[str]:
        return [line for talk in self.talks for line in talk.lines]

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            talk = Talk(sock)
            self.talks.append(talk)
            self._start(lambda talk=talk: self._run(talk))  # type: ignore[misc]

    def _run(self, talk: Talk) -> None:
        with talk.sock, contextlib.suppress(OSError):
            self._serve(talk)
