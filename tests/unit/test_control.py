from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolmta.control import PIPE_BUF, SCAN, HintReader, HintWriter, Server, ask, make_fifo
from spoolmta.errors import UnavailableError


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[int]:
    descriptor = make_fifo(str(tmp_path / "one.fifo"))
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[HintWriter]:
    writer = HintWriter(str(tmp_path))
    yield writer
    writer.close()


def test_hints_arrive_in_order(fifo: int, writer: HintWriter) -> None:
    reader = HintReader(fifo)
    assert reader.read() == []
    writer.send("one", ["a.test/new/1", "b.test/new/2"])
    writer.send("one", ["c.test/new/\udcff"])
    assert reader.read() == ["a.test/new/1", "b.test/new/2", "c.test/new/\udcff"]


def test_many_hints_go_in_writes_the_kernel_keeps_whole(fifo: int, writer: HintWriter) -> None:
    hints = [f"domain-{number:04d}.test/new/{'x' * 90}" for number in range(400)]
    writer.send("one", hints)
    chunks = []
    while data := os.read(fifo, PIPE_BUF) if len(chunks) < 11 else b"":
        chunks.append(data)
        if sum(map(len, chunks)) == sum(len(hint) + 1 for hint in hints):
            break
    assert b"".join(chunks).decode().splitlines() == hints


def test_a_full_fifo_never_blocks_and_owes_a_scan(fifo: int, writer: HintWriter) -> None:
    hints = ["d.test/new/" + "x" * 200] * 100
    for _ in range(50):
        writer.send("one", hints)
    while True:
        try:
            os.write(fifo, b"\n")
        except BlockingIOError:
            break
    assert writer.pay()
    assert writer.pay()
    reader = HintReader(fifo)
    read = []
    while more := reader.read():
        read += more
    assert 0 < read.count(hints[0]) < 5000
    assert set(read) == {hints[0], ""}
    assert not writer.pay()
    assert reader.read() == [SCAN]
    assert not writer.pay()


def test_hints_for_nobody_are_forgotten(tmp_path: Path, writer: HintWriter) -> None:
    writer.send("nobody", ["d.test/new/1"])
    os.mkfifo(tmp_path / "deaf.fifo")
    writer.send("deaf", ["d.test/new/1"])
    assert not writer.pay()


def test_a_fifo_made_anew_is_found_again(tmp_path: Path, writer: HintWriter) -> None:
    path = str(tmp_path / "one.fifo")
    first = make_fifo(path)
    writer.send("one", ["d.test/new/1"])
    os.close(first)
    writer.send("one", ["d.test/new/2"])
    os.unlink(path)
    second = make_fifo(path)
    writer.send("one", ["d.test/new/3"])
    assert HintReader(second).read() == ["d.test/new/3"]
    os.close(second)


def test_a_line_without_an_end_is_not_collected_for_ever(fifo: int) -> None:
    reader = HintReader(fifo)
    os.write(fifo, b"x" * 60000)
    assert reader.read() == [SCAN]
    os.write(fifo, b"d.test/new/1\n")
    assert reader.read() == ["d.test/new/1"]


def test_a_hint_in_two_pieces_is_put_together(fifo: int) -> None:
    reader = HintReader(fifo)
    os.write(fifo, b"d.test/ne")
    assert reader.read() == []
    os.write(fifo, b"w/1\n")
    assert reader.read() == ["d.test/new/1"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(str(tmp_path / "control"))
    yield server
    server.close()


def client(server: Server, data: bytes) -> tuple[socket.socket, int]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(server.path)
    descriptor = server.accept()
    assert descriptor is not None
    if data:
        connection.sendall(data)
    return connection, descriptor


@pytest.mark.parametrize(
    "garbage", [b"\n", b"nonsense\n", b"[1]\n", b"\xff\xfe\n", b"{\n", b'{"a":' * 9000 + b"\n", b"[" * 60000 + b"\n"]
)
def test_garbage_gets_an_empty_question(server: Server, garbage: bytes) -> None:
    connection, descriptor = client(server, garbage)
    with connection:
        assert server.read(descriptor) == {}
        server.answer(descriptor, {"error": "what?"})
        assert connection.recv(100) == b'{"error":"what?"}\n'
        assert not server.has(descriptor)


def test_a_question_may_come_in_pieces(server: Server) -> None:
    connection, descriptor = client(server, b'{"ask":')
    with connection:
        assert server.read(descriptor) is None
        connection.sendall(b'"status"}\n')
        assert server.read(descriptor) == {"ask": "status"}


def test_a_client_that_goes_or_talks_too_much_is_dropped(server: Server) -> None:
    connection, descriptor = client(server, b"")
    connection.close()
    assert server.read(descriptor) is None
    assert not server.has(descriptor)
    connection, descriptor = client(server, b"x" * 70000)
    with connection:
        for _ in range(3):
            if server.has(descriptor):
                assert server.read(descriptor) is None
        assert not server.has(descriptor)
    assert server.accept() is None


def test_only_the_owner_may_ask(server: Server) -> None:
    assert os.stat(server.path).st_mode & 0o777 == 0o600


def test_a_question_is_answered(server: Server) -> None:
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(server.path, {"ask": "status"})))
    thread.start()
    while (descriptor := server.accept()) is None:
        pass
    question = server.read(descriptor)
    server.answer(descriptor, {"you asked": question})
    thread.join()
    assert answers == [{"you asked": {"ask": "status"}}]


def test_a_spool_with_a_long_path_can_be_asked_too(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    server = Server(str(folder / "control"))
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.close()
    thread = threading.Thread(target=lambda: ask(server.path, {}))
    thread.start()
    while (descriptor := server.accept()) is None:
        pass
    assert server.read(descriptor) == {}
    server.answer(descriptor, {})
    thread.join()
    server.close()


def test_without_a_server_the_answer_is_that_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="not running") as caught:
        ask(str(tmp_path / "control"), {})
    assert caught.value.exit_status == 69
    Server(str(tmp_path / "control")).close()
    with pytest.raises(UnavailableError, match="not running"):
        ask(str(tmp_path / "control"), {})


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(server: Server) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        ask(server.path, {}, timeout=0.05)


@pytest.mark.parametrize(("sent", "said"), [(b"", "without an answer"), (b'{"half', "in the middle")])
def test_a_server_that_dies_while_answering_is_told_of(server: Server, sent: bytes, said: str) -> None:
    def die() -> None:
        while (descriptor := server.accept()) is None:
            pass
        server.read(descriptor)
        client, _ = server._clients[descriptor]
        client.sendall(sent)
        server.drop(descriptor)

    thread = threading.Thread(target=die)
    thread.start()
    with pytest.raises(UnavailableError, match=said):
        ask(server.path, {})
    thread.join()
