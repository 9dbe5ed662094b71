#!/usr/bin/env python3
"""A receiver that costs little, for what smtp-sink cannot do: STARTTLS, and answers by recipient (see `bench_mail`).

    bench_sink.py PORT [CERTIFICATE]     # all of 127.0.0.0/8; with a PEM file (certificate and key) it offers STARTTLS

One process, one epoll, no look at the content but for its end. OpenSSL reads the sockets itself, which is half the
cost of TLS through asyncio. `later...` is answered 451 every other time it is tried, so there are exactly as many
of these answers as messages taken for such recipients, although the addresses are few.
"""

import resource
import select
import signal
import socket
import ssl
import sys

CHUNK = 1 << 16
END = b"\r\n.\r\n"
OFFERS = (b"sink.test", b"PIPELINING", b"8BITMIME", b"ENHANCEDSTATUSCODES", b"DSN")
GREETING = b"220 sink.test ESMTP\r\n"
OK = b"250 2.0.0 Ok\r\n"
GO = b"354 End data with <CR><LF>.<CR><LF>\r\n"
LATER = b"451 4.3.0 Try again later\r\n"
GONE = b"550 5.1.1 No such user\r\n"
NOBODY = b"554 5.5.1 No valid recipients\r\n"
UNKNOWN = b"500 5.5.1 Command unrecognized\r\n"
READY = b"220 2.0.0 Ready to start TLS\r\n"
BYE = b"221 2.0.0 Bye\r\n"


def render_offers(*offers: bytes) -> bytes:
    return b"".join(b"250-%s\r\n" % offer for offer in offers[:-1]) + b"250 %s\r\n" % offers[-1]


class Session:
    """One connection."""

    def __init__(self, sink: "Sink", channel: socket.socket) -> None:
        self.sink = sink
        self.channel = channel
        self.is_open = True
        self._buffer = b""
        self._recipients = 0
        self._in_data = False
        self._in_handshake = False
        self._replies: list[bytes] = [GREETING]
        self._flush()

    def __repr__(self) -> str:
        return f"Session({self.channel}, recipients={self._recipients}, in_data={self._in_data})"

    def work(self) -> None:
        """Read what there is and answer it."""
        if self._in_handshake and not self._shake_hands():
            return
        while self.is_open:
            try:
                data = self.channel.recv(CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            if not data:
                self.is_open = False
                return
            self._take(data)
            self._flush()
            # A plain socket tells of its next bytes by epoll; OpenSSL may have some of them already.
            if self._in_handshake or not (isinstance(self.channel, ssl.SSLSocket) and self.channel.pending()):
                return

    def _take(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while buffer:
            if self._in_data:
                end = len(buffer) - 5 if buffer.endswith(END) else buffer.find(END)
                if end < 0:
                    self._buffer = buffer[-4:]
                    return
                self._in_data, self._recipients = False, 0
                self._replies.append(OK)
                buffer = buffer[end + 5 :]
                continue
            line, newline, rest = buffer.partition(b"\r\n")
            if not newline:
                break
            answer = self._obey(line)
            self._replies.append(answer)
            # An empty message's dot follows its DATA directly.
            buffer = newline + rest if answer is GO else rest
        self._buffer = buffer

    def _obey(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        answer = OK
        if verb == b"RCPT":
            answer = self.sink.judge(line)
            self._recipients += answer is OK
        elif verb == b"DATA":
            self._in_data = self._recipients > 0
            answer = GO if self._in_data else NOBODY
        elif verb in (b"MAIL", b"RSET"):
            self._recipients = 0
        elif verb in (b"EHLO", b"HELO"):
            offers_tls = self.sink.context is not None and not isinstance(self.channel, ssl.SSLSocket)
            answer = render_offers(*OFFERS, b"STARTTLS") if offers_tls else render_offers(*OFFERS)
        elif line.upper() == b"STARTTLS" and self.sink.context is not None:
            self._in_handshake = True
            answer = READY
        elif verb == b"QUIT":
            self.is_open = False
            answer = BYE
        elif verb != b"NOOP":
            answer = UNKNOWN
        return answer

    def _flush(self) -> None:
        if self._replies:
            replies, self._replies = b"".join(self._replies), []
            # What does not fit into the socket's buffer is of a client that does not read.
            if self.channel.send(replies) != len(replies):
                self.is_open = False
        if self._in_handshake and self.sink.context is not None and not isinstance(self.channel, ssl.SSLSocket):
            self._buffer = b""
            self.channel = self.sink.context.wrap_socket(self.channel, server_side=True, do_handshake_on_connect=False)

    def _shake_hands(self) -> bool:
        assert isinstance(self.channel, ssl.SSLSocket)
        try:
            self.channel.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._in_handshake = False
        return True


class Sink:
    """All connections."""

    def __init__(self, port: int, certificate: str = "") -> None:
        self.context: ssl.SSLContext | None = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate)
        self._put_off: set[bytes] = set()
        self._sessions: dict[int, Session] = {}
        self._poll = select.epoll()
        self._listener = socket.create_server(("", port), backlog=4096)
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)

    def __repr__(self) -> str:
        return f"Sink({self._listener}, {len(self._sessions)} sessions)"

    def judge(self, line: bytes) -> bytes:
        """The answer to RCPT."""
        address = line[line.find(b"<") + 1 : line.find(b">")]
        if address.startswith(b"gone"):
            return GONE
        if not address.startswith(b"later"):
            return OK
        if address in self._put_off:
            self._put_off.remove(address)
            return OK
        self._put_off.add(address)
        return LATER

    def run(self) -> None:
        while True:
            for descriptor, _events in self._poll.poll():
                session = self._sessions.get(descriptor)
                if session is None:
                    self._accept()
                    continue
                try:
                    session.work()
                except OSError:
                    session.is_open = False
                if not session.is_open:
                    del self._sessions[descriptor]
                    session.channel.close()

    def _accept(self) -> None:
        while True:
            try:
                channel, (peer, _) = self._listener.accept()
            except BlockingIOError:
                return
            if not peer.startswith("127."):
                channel.close()
                continue
            channel.setblocking(False)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sessions[channel.fileno()] = Session(self, channel)
            self._poll.register(channel, select.EPOLLIN)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Sink(int(sys.argv[1]), *sys.argv[2:3]).run()


if __name__ == "__main__":
    main()
