"""However the bytes of TLS are cut into reads, the same is said; what is no TLS is told once."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta.tls_channel import Channel
from tests.support.tls import Authority

FOLDER = tempfile.TemporaryDirectory()
AUTHORITY = Authority(Path(FOLDER.name))
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
SERVER.load_cert_chain(AUTHORITY.certificate("mx.test"))
CLIENT = ssl.create_default_context(cafile=AUTHORITY.ca)


class Wire(asyncio.Transport):
    """Keeps what is written until it is carried to the other end."""

    def __init__(self) -> None:
        super().__init__()
        self.out = b""
        self.is_over = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol: Any = protocol

    def write(self, data: Any) -> None:
        self.out += bytes(data)

    def abort(self) -> None:
        self.is_over = True

    close = abort

    def is_closing(self) -> bool:
        return self.is_over


class Speaker:
    def __init__(self) -> None:
        self.heard = b""
        self.is_secured = 0
        self.troubles: list[str] = []

    def secured(self) -> None:
        self.is_secured += 1

    def not_secured(self, reason: str) -> None:
        self.troubles.append(reason)

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class End:
    """One end of a connection."""

    def __init__(self, context: ssl.SSLContext, is_server: bool) -> None:
        self.wire, self.speaker = Wire(), Speaker()
        name = "" if is_server else "mx.test"
        self.channel = Channel(self.wire, self.speaker, context, is_server=is_server, server_name=name)
        self.channel.begin()


def carry(one: End, other: End, sizes: Any) -> None:
    """Everything to the other end, in pieces of these sizes, until nobody has anything to say."""
    while one.wire.out or other.wire.out:
        for source, target in ((one, other), (other, one)):
            size = next(sizes)
            piece, source.wire.out = source.wire.out[:size], source.wire.out[size:]
            if piece:
                target.channel.data_received(piece)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 400) | st.just(100_000), min_size=1, max_size=8),
    st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=300) | st.just(b"x" * 70_000)), max_size=6),
)
def test_how_the_bytes_are_cut_never_matters(sizes: list[int], said: list[tuple[bool, bytes]]) -> None:
    client, server = End(CLIENT, False), End(SERVER, True)
    cuts = cycle(sizes)
    carry(client, server, cuts)
    for is_client, text in said:
        (client if is_client else server).channel.write(text)
        if len(text) % 2:
            carry(client, server, cuts)
    carry(client, server, cuts)
    assert (client.speaker.is_secured, server.speaker.is_secured) == (1, 1)
    assert server.speaker.heard == b"".join(text for is_client, text in said if is_client)
    assert client.speaker.heard == b"".join(text for is_client, text in said if not is_client)
    assert client.speaker.troubles == server.speaker.troubles == []
    assert client.channel.protocol == "TLSv1.3"
    assert client.channel.session is not None
    assert client.channel.session.has_ticket


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6))
def test_what_is_no_tls_is_told_in_one_clause_and_nothing_is_heard(pieces: list[bytes]) -> None:
    client = End(CLIENT, False)
    for piece in pieces:
        if not client.speaker.troubles:
            client.channel.data_received(piece)
    data = b"".join(pieces)
    # What begins with a version of TLS may be a record, whose kind is only judged when all of it is there.
    is_whole = data[1:2] != b"\3" or len(data) >= 5 + int.from_bytes(data[3:5])
    if len(data) >= 5 and is_whole and data[0] not in range(20, 25):
        assert len(client.speaker.troubles) == 1
        assert client.speaker.troubles[0].isprintable()
    assert client.speaker.heard == b""
    assert not client.speaker.is_secured


@settings(max_examples=60)
@given(st.integers(0, 5000), st.integers(1, 255))
def test_a_byte_that_is_changed_on_the_way_is_never_heard(place: int, change: int) -> None:
    client, server = End(CLIENT, False), End(SERVER, True)
    carry(client, server, cycle([100_000]))
    server.channel.write(b"250 ok\r\n")
    damaged = bytearray(server.wire.out)
    damaged[place % len(damaged)] ^= change
    client.channel.data_received(bytes(damaged))
    assert client.speaker.heard == b""
