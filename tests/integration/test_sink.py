"""The test receiver, talked to with plain sockets and smtplib."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import smtplib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from spoolmta.errors import UnavailableError
from spoolmta.sink import Options, Sink, run

TIMEOUT = 20.0


class Running:
    """A sink in the loop of a thread."""

    def __init__(self, options: Options, addresses: list[str]) -> None:
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.sink = Sink(options)
        try:
            self.addresses = self.ask(self.sink.start(addresses))
        except BaseException:
            self.stop()
            raise
        host, _, port = self.addresses[0].rpartition(":")
        self.address = (host, int(port))

    def ask(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT)

    def stats(self) -> dict[str, Any]:
        async def inside() -> dict[str, Any]:
            return self.sink.stats()

        return self.ask(inside())

    def totals(self) -> dict[str, int]:
        return self.stats()["totals"]

    def stop(self) -> None:
        self.ask(self.sink.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@contextmanager
def running(*addresses: str, **options: Any) -> Iterator[Running]:
    server = Running(Options(**options), list(addresses) or ["127.0.0.1:0"])
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def sink() -> Iterator[Running]:
    with running() as server:
        yield server


class Client:
    """A client that sees every byte."""

    def __init__(self, address: tuple[str, int], source: str = "127.0.0.1", hello: bool = True) -> None:
        self.socket = socket.create_connection(address, TIMEOUT, source_address=(source, 0))
        self.file = self.socket.makefile("rb")
        self.greeting = self.reply()
        if hello:
            self.ehlo = self.say("EHLO client.test")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: str | bytes) -> None:
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def reply(self) -> str:
        """One reply with all its lines; "" when the connection is over."""
        lines = []
        try:
            while line := self.file.readline().decode():
                lines.append(line.rstrip("\r\n"))
                if line[3:4] != "-":
                    break
        except ConnectionResetError:
            lines.append("reset")
        return "\n".join(lines)

    def say(self, line: str) -> str:
        self.send(line + "\r\n")
        return self.reply()

    def begin(self, recipient: str, sender: str = "a@b.test") -> str:
        assert self.say(f"MAIL FROM:<{sender}>") == "250 2.1.0 Ok"
        return self.say(f"RCPT TO:<{recipient}>")

    def message(self, recipient: str, body: str = "Subject: x\r\n\r\nhello\r\n") -> str:
        reply = self.begin(recipient)
        if reply[:1] in tuple("45t"):  # t: the garbage reply
            with suppress(ConnectionError):
                self.say("RSET")
            return reply
        if not reply.startswith("2"):
            return reply
        reply = self.say("DATA")
        return self.say(body + ".") if reply.startswith("354") else reply


def test_smtplib_delivers_a_message(sink: Running) -> None:
    with smtplib.SMTP(*sink.address, timeout=TIMEOUT) as client:
        assert client.sendmail("a@b.test", ["c@d.test", "e@d.test"], "Subject: x\r\n\r\n.dot\r\n") == {}
        assert set(client.esmtp_features) == {
            "pipelining",
            "8bitmime",
            "size",
            "enhancedstatuscodes",
            "smtputf8",
            "dsn",
        }
        assert client.esmtp_features["size"] == "104857600"
    totals = sink.totals()
    assert (totals["messages"], totals["recipients_accepted"], totals["connections"]) == (1, 2, 1)


def test_each_extension_can_be_switched_off_and_its_parameters_are_refused() -> None:
    off = dict.fromkeys(("eight_bit_mime", "size", "enhanced_status_codes", "smtputf8", "dsn"), False)
    with running(**off) as sink, Client(sink.address) as client:
        assert client.ehlo == "250-sink.test\n250 PIPELINING"
        for parameter in ("BODY=8BITMIME", "SIZE=5", "SMTPUTF8", "RET=HDRS"):
            assert client.say(f"MAIL FROM:<a@b.test> {parameter}") == "555 Parameter not recognized"
        assert client.say("MAIL FROM:<a@b.test>") == "250 Ok"
        assert client.say("RCPT TO:<a@b.test> NOTIFY=NEVER").startswith("555")


def test_offered_parameters_are_taken(sink: Running) -> None:
    with Client(sink.address) as client:
        assert client.say("MAIL FROM:<ä@b.test> SMTPUTF8 SIZE=10 BODY=8BITMIME RET=HDRS ENVID=x").startswith("250")
        assert client.say("RCPT TO:<ö@b.test> NOTIFY=NEVER ORCPT=rfc822;x").startswith("250")
        assert client.say("RSET").startswith("250")
        assert client.say("MAIL FROM:<ä@b.test>").startswith("553 5.6.7")
        assert client.say("MAIL FROM:<a@b.test> SIZE=104857601").startswith("552 5.3.4")
        assert client.say('MAIL FROM:<"a > b"@b.test>').startswith("250")


def test_pipelined_messages_are_answered_in_order(sink: Running) -> None:
    one = "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<550-5.1.1@d.test>\r\nDATA\r\nx\r\n.\r\n"
    with Client(sink.address) as client:
        client.send(one * 50 + "NOOP\r\nQUIT\r\n")
        for _ in range(50):
            assert [client.reply()[:3] for _ in range(5)] == ["250", "250", "550", "354", "250"]
        assert [client.reply()[:3] for _ in range(3)] == ["250", "221", ""]
    totals = sink.totals()
    assert (totals["messages"], totals["recipients_refused"], totals["bytes"]) == (50, 50, 150)
    assert totals["too_early"] == 50


@pytest.mark.parametrize(
    "body", [b"", b"x\r\n", b"..\r\n", b"a\r\n..\r\n.b\r\n\r\n", b"\n.\n\r\n", b"a" * 70_000 + b"\r\n"]
)
def test_every_cut_of_the_stream_gives_the_same_message(tmp_path: Path, body: bytes) -> None:
    maildir = tmp_path / "mail"
    with running(maildir=str(maildir)) as sink, Client(sink.address) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = body + b".\r\nNOOP\r\n"
        cuts = [len(end) - back for back in range(1, min(len(end), 15))]
        for cut in cuts:
            assert client.begin("c@d.test").startswith("250")
            assert client.say("DATA").startswith("354")
            client.send(end[:cut])
            # Other traffic on the loop between the two halves: the first one has been read by then.
            sink.stats()
            client.send(end[cut:])
            assert client.reply() == "250 2.0.0 Ok"
            assert client.reply() == "250 2.0.0 Ok"
        totals = sink.totals()
        assert (totals["messages"], totals["bytes"]) == (len(cuts), len(cuts) * len(body))
        files = list((maildir / "new").iterdir())
        assert len(files) == len(cuts)
        plain = (
            b"".join(line.removeprefix(b".") for line in body.splitlines(keepends=True))
            if b"\n.\n" not in body
            else body
        )
        assert {file.read_bytes() for file in files} == {plain}
        assert not list((maildir / "tmp").iterdir())


def test_bytes_that_come_one_by_one_are_understood(sink: Running) -> None:
    with Client(sink.address) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nSubject: x\r\n\r\n..\r\n.\r\nQUIT\r\n":
            client.send(bytes([byte]))
        assert [client.reply()[:3] for _ in range(6)] == ["250", "250", "354", "250", "221", ""]
    assert sink.totals()["bytes"] == len("Subject: x\r\n\r\n..\r\n")


def test_commands_out_of_order_get_503_and_bad_ones_500(sink: Running) -> None:
    with Client(sink.address, hello=False) as client:
        assert client.say("MAIL FROM:<a@b.test>").startswith("503")
        assert client.say("EHLO").startswith("501")
        assert client.say("HELO x") == "250 sink.test"
        assert client.say("RCPT TO:<a@b.test>").startswith("503")
        assert client.say("DATA").startswith("503")
        assert client.begin("c@d.test").startswith("250")
        assert client.say("MAIL FROM:<a@b.test>").startswith("503")
        assert client.say("RSET").startswith("250")
        assert client.say("DATA").startswith("503")
        assert client.say("MAIL FROM: <a@b.test>").startswith("501")
        assert client.say("TURN").startswith("500")
        assert client.say("VRFY a").startswith("252")
        client.send("NOOP\n")
        assert client.reply().startswith("500 5.5.2")
        client.send("x" * 9000)
        assert client.reply().startswith("500 5.5.2")
        assert client.reply() in ("", "reset")


@pytest.mark.parametrize(
    ("local_part", "reply"),
    [
        ("550-5.1.1", "550 5.1.1 <550-5.1.1@d.test>: scripted"),
        ("bob--452+x", "452 <bob--452+x@d.test>: scripted"),
        ("eod-552-5.2.2", "552 5.2.2 <eod-552-5.2.2@d.test>: scripted"),
        ("data-451", "451 <data-451@d.test>: scripted"),
        ("garbage", "this is no SMTP reply"),
        ("250-2.1.5", "250 2.0.0 Ok"),
        ("slow-20ms", "250 2.0.0 Ok"),
        ("slow-dot-20ms", "250 2.0.0 Ok"),
        ("eod-250-2.6.0", "250 2.6.0 <eod-250-2.6.0@d.test>: scripted"),
        ("longreply", "250 2.0.0 Ok"),
    ],
)
def test_a_scripted_address_gets_its_reply_and_the_connection_lives_on(
    sink: Running, local_part: str, reply: str
) -> None:
    with Client(sink.address) as client:
        assert client.message(f"{local_part}@d.test") == reply
        assert client.message("plain@d.test") == "250 2.0.0 Ok"
    assert sink.totals()["messages"] == 1 + reply.startswith("250")


def test_the_long_reply_has_200_lines(sink: Running) -> None:
    with Client(sink.address) as client:
        assert len(client.begin("longreply@d.test").splitlines()) == 200


def test_mail_scripts_work_only_in_mail(sink: Running) -> None:
    with Client(sink.address) as client:
        assert client.say("MAIL FROM:<mail-550-5.7.1@b.test>") == "550 5.7.1 <mail-550-5.7.1@b.test>: scripted"
        assert client.message("mail-550@d.test") == "250 2.0.0 Ok"
        assert client.begin("c@d.test", sender="550@b.test") == "250 2.1.5 Ok"
        assert client.say("RSET").startswith("250")
        assert client.say("MAIL FROM:<drop-after-mail@b.test>") == "250 2.1.0 Ok"
        assert client.reply() == ""


@pytest.mark.parametrize("local_part", ["drop-at-rcpt", "drop-at-data", "drop-at-dot"])
def test_a_dropped_connection_ends_without_the_reply(sink: Running, local_part: str) -> None:
    with Client(sink.address) as client:
        assert client.message(f"{local_part}@d.test") == ""
    assert sink.totals()["messages"] == 0


@pytest.mark.parametrize("local_part", ["reset-at-rcpt", "reset-at-dot"])
def test_a_reset_connection_is_reset(sink: Running, local_part: str) -> None:
    with Client(sink.address) as client:
        assert client.message(f"{local_part}@d.test") == "reset"
    assert sink.totals()["messages_dropped"] == ("dot" in local_part)


def test_421_closes_the_connection(sink: Running) -> None:
    for local_part in ("421-4.3.2", "eod-421", "data-421"):
        with Client(sink.address) as client:
            assert client.message(f"{local_part}@d.test").startswith("421") or client.reply() == ""
            assert client.reply() == ""


@pytest.mark.parametrize(("local_part", "times"), [("once-451-a", 1), ("twice-eod-452", 2), ("first3-550-x", 3)])
def test_a_counted_script_is_over_after_its_number(sink: Running, local_part: str, times: int) -> None:
    with Client(sink.address) as client:
        replies = [client.message(f"{local_part}@d.test")[:1] for _ in range(times + 2)]
        assert replies == [local_part.split("-")[1][0].replace("e", "4")] * times + ["2", "2"]
        assert client.message(f"{local_part}@other.test")[:1] in "45"


def test_input_that_comes_during_a_delay_waits_its_turn(sink: Running) -> None:
    with Client(sink.address) as client:
        client.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<slow-50ms@d.test>\r\nRCPT TO:<550@d.test>\r\nDATA\r\nx\r\n.\r\n")
        client.send("NOOP\r\nQUIT\r\n")
        assert [client.reply()[:3] for _ in range(8)] == ["250", "250", "550", "354", "250", "250", "221", ""]


@pytest.mark.parametrize("local_part", ["silent", "silent-at-dot", "slow-999s"])
def test_a_silent_receiver_stays_connected_until_the_client_goes(sink: Running, local_part: str) -> None:
    with Client(sink.address) as client:
        client.send(f"MAIL FROM:<a@b.test>\r\nRCPT TO:<{local_part}@d.test>\r\nDATA\r\n")
        while not client.reply().startswith("250 2.1.0" if "dot" not in local_part else "354"):
            pass
        client.send("x\r\n.\r\nQUIT\r\n")
        client.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.file.readline()
        assert sink.totals()["current"] == 1
    # The next connection is accepted after the end of the last one was read.
    wait_until(lambda: sink.totals()["current"] == 0)
    assert sink.totals()["messages"] == 0


def wait_until(true: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(2000):
        if true():
            return
        tick.wait(0.01)
    raise AssertionError("it did not become true in 20 s")


def test_a_greeting_of_554_refuses_everything_but_quit() -> None:
    with running(greeting=554) as sink, Client(sink.address, hello=False) as client:
        assert client.greeting.startswith("554 sink.test")
        assert client.say("EHLO x").startswith("503")
        assert client.say("QUIT").startswith("221")


def test_a_greeting_of_421_closes() -> None:
    with running(greeting=421) as sink, Client(sink.address, hello=False) as client:
        assert client.greeting.startswith("421")
        assert client.reply() == ""


def test_the_limits_answer_421_and_452() -> None:
    with running(max_connections=1, max_messages=2, max_recipients=1) as sink:
        with Client(sink.address) as client:
            with Client(sink.address, hello=False) as second:
                assert second.greeting.startswith("421 4.7.0")
                assert second.reply() == ""
            with Client(sink.address, source="127.0.0.9") as other:
                assert other.message("c@d.test").startswith("250")
            assert client.message("c@d.test").startswith("250")
            assert client.begin("c@d.test").startswith("250")
            assert client.say("RCPT TO:<e@d.test>").startswith("452 4.5.3")
            assert client.say("RSET").startswith("250")
            assert client.message("c@d.test").startswith("250")
            assert client.say("MAIL FROM:<a@b.test>").startswith("421 4.7.0")
            assert client.reply() == ""
        assert sink.totals()["connections_refused"] == 1


def test_without_pipelining_an_early_command_is_refused() -> None:
    with running(pipelining=False) as sink, Client(sink.address) as client:
        assert "PIPELINING" not in client.ehlo
        client.send("MAIL FROM:<a@b.test>\r\nNOOP\r\n")
        assert client.reply().startswith("503 5.5.0")
        assert client.reply().startswith("250")
        assert client.message("c@d.test") == "250 2.0.0 Ok"


def test_statistics_are_per_listening_and_source_address(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    with running("127.0.0.1:0", "127.0.0.2:0", stats=str(path)) as sink:
        for address, source in (("127.0.0.1", "127.0.0.7"), ("127.0.0.2", "127.0.0.7"), ("127.0.0.2", "127.0.0.8")):
            port = next(int(text.rpartition(":")[2]) for text in sink.addresses if text.startswith(address + ":"))
            with Client((address, port), source=source) as client:
                assert client.message("c@d.test").startswith("250")
        rows = sink.stats()["pairs"]
        assert [(row["listening"][:9], row["source"], row["messages"], row["peak"], row["ehlo"]) for row in rows] == [
            ("127.0.0.1", "127.0.0.7", 1, 1, {"client.test": 1}),
            ("127.0.0.2", "127.0.0.7", 1, 1, {"client.test": 1}),
            ("127.0.0.2", "127.0.0.8", 1, 1, {"client.test": 1}),
        ]  # fmt: skip
        assert "totals" in json.loads(path.read_text())
    assert json.loads(path.read_text())["totals"]["messages"] == 3


def test_the_record_is_written_before_the_reply(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with running(record=str(path)) as sink, Client(sink.address) as client:
        for number in range(1, 4):
            assert client.message("c@d.test", f"X-Test-Id: {number}\r\n\r\nx\r\n").startswith("250")
            assert len(path.read_bytes().splitlines()) == number
        assert client.message("eod-451@d.test").startswith("451")
        assert client.message("drop-at-dot@d.test") == ""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["test_id"] for line in lines] == ["1", "2", "3"]
    assert lines[0].pop("time") > 1e9
    assert lines[0] == {
        "source": "127.0.0.1", "listening": sink.addresses[0], "ehlo": "client.test", "mail_from": "a@b.test",
        "recipients": ["c@d.test"], "size": 19, "verb": "DATA", "test_id": "1",
    }  # fmt: skip


def test_a_record_that_cannot_be_written_closes_without_a_reply() -> None:
    with running(record="/dev/full") as sink, Client(sink.address) as client:
        assert client.message("c@d.test") == ""
        assert "/dev/full" in sink.stats()["trouble"]


def test_a_port_in_use_is_named(sink: Running) -> None:
    with (
        pytest.raises(UnavailableError, match=f"cannot listen on {sink.addresses[0]}: Address already in use"),
        running(sink.addresses[0]),
    ):
        pass


def _process(results: Any) -> None:
    results.put(run(["127.0.0.1:0"], Options(), lambda addresses: results.put(addresses)))


def test_run_stops_on_sigterm_and_returns_the_statistics() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_process, args=(results,))
    process.start()
    host, _, port = results.get(timeout=TIMEOUT)[0].rpartition(":")
    with Client((host, int(port))) as client:
        assert client.message("c@d.test").startswith("250")
        os.kill(process.pid or 0, signal.SIGTERM)
        assert results.get(timeout=TIMEOUT)["totals"]["messages"] == 1
        assert client.reply() in ("", "reset")
    process.join(TIMEOUT)
    assert process.exitcode == 0
    process.close()
    results.close()
    results.join_thread()
