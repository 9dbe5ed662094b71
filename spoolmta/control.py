"""How processes speak to each other: hints (a FIFO per VMTA) and questions (a Unix socket of
the supervisor, and one of each delivery process).

A hint is a line `<domain>/<folder>/<entry>`, or `scan`. Lines go in writes of at most PIPE_BUF, which the kernel keeps
whole, and never block: a writer that finds the FIFO full remembers to send `scan` on its next turn. Hints may be
lost, repeated or late; the directory is the truth.

A question is one JSON object on a line, the answer too. Garbage gets an error answer and never hurts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import msgspec

from spoolmta import descriptors
from spoolmta.errors import UnavailableError

PIPE_BUF = 4096
OPEN_FIFOS = 512
_NOBODY = (errno.ENXIO, errno.ENOENT, errno.EPIPE)
_LATER = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)
SCAN = "scan"


def make_fifo(path: str) -> int:
    """Make the FIFO if it is not there and open it for both ends, so that it neither hangs nor reads an end."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class HintReader:
    """Lines out of a FIFO descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._rest = b""

    def read(self) -> list[str]:
        """The hints that are there now; an empty list if there are none."""
        try:
            data = os.read(self.descriptor, 65536)
        except BlockingIOError:
            return []
        parts = (self._rest + data).split(b"\n")
        self._rest = parts.pop()
        if len(self._rest) > PIPE_BUF:
            self._rest = b""
            parts.append(SCAN.encode())  # no writer of ours writes such a line: whatever it was, the directory knows
        return [part.decode("utf-8", "surrogateescape") for part in parts]


class HintWriter:
    """Hints for many VMTAs; keeps the most recently used FIFOs open."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()
        self._most = descriptors.share(descriptors.FIFOS, OPEN_FIFOS)
        self._owed: set[str] = set()

    def send(self, vmta: str, hints: list[str]) -> None:
        """Tell a VMTA of new entries. What does not fit becomes one `scan`, owed until it fits."""
        chunk: list[bytes] = []
        size = 0
        for hint in hints:
            line = os.fsencode(hint) + b"\n"
            if size + len(line) > PIPE_BUF:
                if not self._write(vmta, b"".join(chunk)):
                    return
                chunk, size = [], 0
            chunk.append(line)
            size += len(line)
        if chunk:
            self._write(vmta, b"".join(chunk))

    def pay(self) -> bool:
        """Send the scans that are owed; True if some still are."""
        for vmta in list(self._owed):
            if self._write(vmta, b"scan\n"):
                self._owed.discard(vmta)
        return bool(self._owed)

    def _write(self, vmta: str, data: bytes) -> bool:
        try:
            os.write(self._descriptor(vmta), data)
        except OSError as error:
            if error.errno not in _NOBODY + _LATER:
                raise
            # Where nobody is there to read, whoever comes scans first.
            if error.errno in _LATER:
                self._owed.add(vmta)
            if error.errno == errno.EPIPE:
                os.close(self._open.pop(vmta))  # the FIFO may have been made anew: this one leads nowhere
                return self._write(vmta, data)
            return False
        return True

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, vmta: str) -> int:
        descriptor = self._open.get(vmta)
        if descriptor is None:
            descriptor = os.open(os.path.join(self._folder, f"{vmta}.fifo"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._open[vmta] = descriptor
            if len(self._open) > self._most:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(vmta)
        return descriptor


def listen(path: str) -> socket.socket:
    """A Unix socket that listens at `path` for its own user only. The caller knows that nobody else does: what lies
    there is taken away."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        with _short(path) as name:
            listening.bind(name)
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(mask)
    listening.listen(16)
    listening.setblocking(False)
    return listening


class Server:
    """The supervisor's socket. A client that does not read its answer within two seconds loses it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = listen(path)
        self._clients: dict[int, tuple[socket.socket, bytes]] = {}

    def accept(self) -> int | None:
        """A new client's descriptor, to be watched for reading."""
        try:
            client, _ = self.socket.accept()
        except OSError:  # nobody there any more, or no descriptor left
            return None
        client.settimeout(2.0)
        self._clients[client.fileno()] = (client, b"")
        return client.fileno()

    def read(self, descriptor: int) -> dict[str, Any] | None:
        """The question of a client, once it is whole; {} for garbage; None while it is not, or the client is gone."""
        client, data = self._clients[descriptor]
        try:
            more = client.recv(65536)
        except OSError:
            more = b""
        data += more
        if not more or len(data) > 65536:
            self.drop(descriptor)
            return None
        self._clients[descriptor] = (client, data)
        if not data.endswith(b"\n"):
            return None
        try:
            question = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        return question

    def answer(self, descriptor: int, answer: dict[str, Any]) -> None:
        if descriptor in self._clients:
            try:
                self._clients[descriptor][0].sendall(msgspec.json.encode(answer) + b"\n")
            except OSError:
                pass
            self.drop(descriptor)

    def has(self, descriptor: int) -> bool:
        return descriptor in self._clients

    def drop(self, descriptor: int) -> None:
        entry = self._clients.pop(descriptor, None)
        if entry is not None:
            entry[0].close()

    def close(self) -> None:
        for descriptor in list(self._clients):
            self.drop(descriptor)
        self.socket.close()


def ask(path: str, question: dict[str, Any], timeout: float = 10.0) -> dict[str, Any]:
    """Ask a running process. Raises UnavailableError if there is none, or it does not answer in time."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout)
    data = b""
    try:
        with _short(path) as name:
            client.connect(name)
        client.sendall(msgspec.json.encode(question) + b"\n")
        while not data.endswith(b"\n"):
            more = client.recv(1 << 20)
            if not more:
                break
            data += more
    except (FileNotFoundError, ConnectionRefusedError):
        raise UnavailableError("spoolmta is not running on this spool") from None
    except OSError as error:
        raise UnavailableError(f"spoolmta does not answer: {error}") from None
    finally:
        client.close()
    if not data:
        raise UnavailableError("spoolmta closed the connection without an answer")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnavailableError("spoolmta went away in the middle of its answer") from None


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """The path in a form that fits a socket address, which holds 107 bytes."""
    if len(os.fsencode(path)) <= 107:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)
