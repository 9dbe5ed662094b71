"""A server that means harm, or is broken in one way: what one connection makes of it, and what it costs us."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from spoolmta import bounce
from spoolmta.model import Answer, Failure, FailureKind, Outcome, Recipient, Reply, Stage
from spoolmta.smtp.client import Capabilities, Refused, Result, greet
from spoolmta.smtp.transaction import transaction
from spoolmta.transport import Connection, connect
from spoolmta.verdict import judge
from tests.support.scripted import Scripted, Serve, Talk

BODY = b"Subject: a\r\n\r\nb\r\n"
HUGE = b"Subject: a\r\n\r\n" + (b"x" * 998 + b"\r\n") * 20_000
OFFERED = Capabilities("mx", {"PIPELINING": ""})


class Client:
    """One connection of ours to a scripted server; every stage has `seconds`."""

    def __init__(self, server: Scripted, seconds: float, reply_timeout: float) -> None:
        self.server, self.seconds, self.reply_timeout = server, seconds, reply_timeout

    async def start(self) -> Client:
        loop = asyncio.get_running_loop()
        limits = dict.fromkeys(Stage, self.seconds)
        self.connection = Connection(loop, limits, lambda: None, self.reply_timeout)
        await connect(loop, self.connection, "127.0.0.2", self.server.port, "", 5.0)
        return self

    async def run(self, dialogue: object) -> object:
        finished = asyncio.get_running_loop().create_future()
        self.connection.run(dialogue, finished.set_result)  # type: ignore[arg-type]
        return await asyncio.wait_for(finished, 20)

    async def send(self, count: int = 1, content: bytes = BODY, offered: Capabilities = OFFERED) -> Result:
        people = [Recipient(f"r{number}@a.test", "a.test") for number in range(count)]
        result = await self.run(transaction("s@a.test", people, content, offered))
        assert isinstance(result, Result)
        return result


def meet(
    serve: Serve,
    story: Callable[[Client], Awaitable[None]],
    seconds: float = 5.0,
    reply: float = 300.0,
    buffer: int = 0,
) -> None:
    """Play the story with both event loops that a configuration may name."""

    async def run(server: Scripted) -> None:
        client = await Client(server, seconds, reply).start()
        try:
            await story(client)
        finally:
            client.connection.abort()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with Scripted(serve, buffer) as server, asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run(server))


def summary(result: Result) -> list[tuple[str, int | str]]:
    return [
        (answer.stage.name, answer.result.code if isinstance(answer.result, Reply) else answer.result.kind.name)
        for answer in result.answers
    ]


def says(*replies: bytes) -> Serve:
    """Greets, and answers MAIL, RCPT and DATA (one write) with these bytes."""

    def serve(talk: Talk) -> None:
        while talk.line() != "DATA":
            pass
        for reply in replies:
            talk.sock.sendall(reply)
        while True:
            talk.line()

    return serve


GOOD = b"250 ok\r\n250 ok\r\n354 go\r\n"


@pytest.mark.parametrize("what", [b"250 " + b"x" * 65536, b"250-a\r\n" * 1000, b"250-" + b"y" * 4000 + b"\r\n"])
def test_r1_r2_endless_replies_fill_no_memory_and_are_left_at_once(what: bytes) -> None:
    def serve(talk: Talk) -> None:
        talk.line()
        for _ in range(100_000_000 // len(what)):
            talk.sock.sendall(what)

    async def story(client: Client) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = await client.send()
        assert summary(result) == [("MAIL", "PROTOCOL")]
        assert not result.reusable
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096

    meet(serve, story)


def test_r3_a_reply_that_drips_has_one_timeout_and_not_one_for_each_byte() -> None:
    def serve(talk: Talk) -> None:
        talk.line()
        while True:
            talk.sock.sendall(b"2")
            talk.sock.settimeout(0.05)
            try:
                talk.read()
            except TimeoutError:
                pass

    async def story(client: Client) -> None:
        started = asyncio.get_running_loop().time()
        assert summary(await client.send()) in ([("MAIL", "TIMEOUT")], [("MAIL", "PROTOCOL")])
        assert asyncio.get_running_loop().time() - started < 3

    meet(serve, story, seconds=0.5)


def test_r3_each_reply_to_many_commands_has_its_own_timeout_but_all_together_have_ten() -> None:
    def serve(talk: Talk) -> None:
        while talk.line() != "DATA":
            pass
        talk.say("250 sender ok")
        while True:
            talk.say("250 ok")
            talk.sock.settimeout(0.2)
            try:
                talk.read()
            except TimeoutError:
                pass

    async def story(client: Client) -> None:
        started = asyncio.get_running_loop().time()
        result = await client.send(count=50)
        assert summary(result)[0] == ("RCPT", "TIMEOUT")
        assert 2.0 < asyncio.get_running_loop().time() - started < 6

    meet(serve, story, seconds=0.3)


def test_r3_a_multi_line_reply_has_its_own_timeout() -> None:
    def serve(talk: Talk) -> None:
        talk.line()
        while True:
            talk.say("250-and")
            talk.sock.settimeout(0.05)
            try:
                talk.read()
            except TimeoutError:
                pass

    async def story(client: Client) -> None:
        started = asyncio.get_running_loop().time()
        assert summary(await client.send()) == [("MAIL", "TIMEOUT")]
        assert asyncio.get_running_loop().time() - started < 3

    meet(serve, story, seconds=10.0, reply=0.4)


@pytest.mark.parametrize(
    "malformed",
    [
        b"2200 x", b"25 0 ok", b"250ok", "٢٥٠ ok".encode(), b"", b"\0", b"-", b"100 x", b"000 x", b"650 x", b"999 x",
        b"850 NONSENSE", b"250-a\r\n251 b", b"hello", b" 250 ok", b"250\tok", b"+250 ok", b"25", b"2e2 x",
    ],
)  # fmt: skip
def test_r4_what_is_no_reply_defers_and_ends_the_session(malformed: bytes) -> None:
    async def story(client: Client) -> None:
        result = await client.send()
        assert summary(result) == [("MAIL", "PROTOCOL")]
        assert not result.reusable

    meet(says(malformed + b"\r\n"), story)


@pytest.mark.parametrize("odd", [b"250", b"250 ", b"250-\r\n250", b"250 ok\n"])
def test_r4_a_reply_without_text_or_with_a_bare_line_feed_is_a_reply(odd: bytes) -> None:
    def serve(talk: Talk) -> None:
        end = b"" if odd.endswith(b"\n") else b"\r\n"
        while talk.line() != "DATA":
            pass
        talk.sock.sendall(odd + end + odd + end + b"354 go\r\n")
        talk.body()
        talk.sock.sendall(odd + end)
        talk.line()

    async def story(client: Client) -> None:
        assert summary(await client.send()) == [("EOD", 250)]

    meet(serve, story)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (b"354 go\r\n250 ok\r\n354 go\r\n", ("MAIL", "PROTOCOL")),
        (b"250 ok\r\n354 go\r\n354 go\r\n", ("RCPT", "PROTOCOL")),
        (b"250 ok\r\n250 ok\r\n250 go\r\n", ("DATA", "PROTOCOL")),
        (GOOD + b"250 already\r\n", ("MAIL", "PROTOCOL")),
    ],
)
def test_r4_a_reply_of_the_wrong_kind_or_before_its_command_is_believed_by_nobody(
    replies: bytes, expected: tuple[str, str]
) -> None:
    async def story(client: Client) -> None:
        result = await client.send()
        assert summary(result) == [expected]
        assert not result.reusable

    meet(says(replies), story)


@pytest.mark.parametrize("speaks", [True, False])
def test_r4_a_greeting_that_is_none_is_trouble_of_the_host(speaks: bool) -> None:
    def serve(talk: Talk) -> None:
        if speaks:
            talk.say("HTTP/1.1 400 Bad Request")
            talk.line()

    async def story(client: Client) -> None:
        refused = await client.run(greet("me.test"))
        assert isinstance(refused, Refused)
        assert isinstance(refused.answer.result, Failure)
        assert refused.answer.result.kind is (FailureKind.PROTOCOL if speaks else FailureKind.LOST)

    meet(serve, story)


@pytest.mark.parametrize("more", [b"250 ok\r\n", b"250-evil\r\n250 AUTH PLAIN\r\n", b"250-evil"])
def test_t2_words_behind_the_answer_to_ehlo_are_not_taken_for_an_answer_to_what_comes_next(more: bytes) -> None:
    def serve(talk: Talk) -> None:
        talk.say("220 scripted.test")
        talk.line()
        talk.sock.sendall(b"250-scripted.test\r\n250 PIPELINING\r\n" + more)
        talk.line()

    async def story(client: Client) -> None:
        refused = await client.run(greet("me.test"))
        assert isinstance(refused, Refused)
        assert isinstance(refused.answer.result, Failure)
        assert refused.answer.result.kind is FailureKind.PROTOCOL

    meet(serve, story)


@pytest.mark.parametrize(("reply", "status"), [("550 4.7.1 no", "5.7.1"), ("450 5.1.1 no", "4.1.1")])
def test_r5_the_class_of_a_status_is_that_of_the_reply(reply: str, status: str) -> None:
    code, _, text = reply.partition(" ")
    answer = Answer(Stage.RCPT, Reply(int(code), (text,)))
    assert bounce.status_of(Reply(int(code), (text,))) == status
    assert (judge(answer).outcome is Outcome.BOUNCED) == (code == "550")


EVIL = "\x1b[31m\x00,\"=cmd|' /C calc'!A0\"<script>\u2028\x9b"


def test_r6_the_words_of_a_reply_are_one_harmless_line() -> None:
    async def story(client: Client) -> None:
        result = await client.send()
        text = str(result.answers[0].result)
        assert text.startswith("550 a b")
        assert text.isprintable()
        assert "\n" not in text

    meet(says(b"250 ok\r\n550-a\r\n550 b" + EVIL.encode() + b"\r\n554 no\r\n"), story, seconds=0.5)


@pytest.mark.parametrize("code", [552, 451])
@pytest.mark.parametrize("together", [True, False])
def test_r7_a_refusal_before_the_message_was_sent_is_one(code: int, together: bool) -> None:
    """In one segment with the 354, or in the middle of the content."""

    def serve(talk: Talk) -> None:
        while talk.line() != "DATA":
            pass
        refusal = b"%d too much\r\n" % code
        talk.sock.sendall(GOOD + refusal if together else GOOD)
        if not together:
            talk.read()
            talk.sock.sendall(refusal)
        talk.sock.settimeout(2)
        try:
            while True:
                talk.read()
        except TimeoutError:
            pass

    async def story(client: Client) -> None:
        result = await client.send(content=HUGE)
        assert summary(result) == [("EOD", code)]
        assert not result.reusable

    meet(serve, story, buffer=65536)


def test_r7_a_refusal_and_a_hang_up_in_the_middle_of_the_content_is_a_refusal() -> None:
    def serve(talk: Talk) -> None:
        while talk.line() != "DATA":
            pass
        talk.sock.sendall(GOOD)
        talk.read()
        talk.say("552 too much")
        talk.sock.shutdown(1)
        while True:
            talk.read()

    async def story(client: Client) -> None:
        assert summary(await client.send(content=HUGE)) == [("EOD", 552)]

    meet(serve, story, buffer=65536)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (b"421 bye\r\n", [("MAIL", 421), ("MAIL", 421)]),
        (b"250 ok\r\n421 bye\r\n", [("RCPT", 421), ("RCPT", 421)]),
        (b"250 ok\r\n550 no\r\n421 bye\r\n", [("RCPT", 550), ("RCPT", 421)]),
        (b"250 ok\r\n550 no\r\n250 ok\r\n421 bye\r\n", [("RCPT", 550), ("DATA", 421)]),
        (b"250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n421 bye\r\n", [("RCPT", 550), ("EOD", 421)]),
    ],
)
def test_r8_a_421_at_any_place_is_the_answer_for_all_that_have_none(
    replies: bytes, expected: list[tuple[str, int]]
) -> None:
    def serve(talk: Talk) -> None:
        while talk.line() != "DATA":
            pass
        talk.sock.sendall(replies)

    async def story(client: Client) -> None:
        result = await client.send(count=2)
        assert summary(result) == expected
        assert not result.reusable

    meet(serve, story)


def test_r9_silence_after_the_dot_is_deferred_and_said_to_be_a_possible_duplicate() -> None:
    async def story(client: Client) -> None:
        result = await client.send()
        assert summary(result) == [("EOD", "TIMEOUT")]

    meet(says(GOOD), story, seconds=0.3)


def test_r10_where_nobody_was_accepted_only_a_dot_follows_the_354_and_the_refusals_stand() -> None:
    reads: list[str] = []

    def serve(talk: Talk) -> None:
        while talk.line() != "DATA":
            pass
        talk.sock.sendall(b"250 ok\r\n550 no\r\n354 go\r\n")
        reads.append(talk.line())
        talk.say("250 delivered, of course")
        reads.append(talk.line())

    async def story(client: Client) -> None:
        result = await client.send()
        assert summary(result) == [("RCPT", 550)]
        assert result.reusable

    meet(serve, story)
    assert [line for line in reads if line != "QUIT"] == [".", "."]


def test_r12_a_thousand_recipients_and_a_server_that_does_not_read_while_it_talks_do_not_lock_each_other() -> None:
    def serve(talk: Talk) -> None:
        for _ in range(100):
            talk.line()
        filler = "x" * 400
        talk.say("250 ok", *(f"250 {filler}" for _ in range(99)))
        talk.say(*(f"250-{filler}" for _ in range(150)), "250 ok")  # more than its buffer and ours hold
        count = 101
        while talk.line() != "DATA":
            count += 1
        talk.say(*("250 ok" for _ in range(count - 102)), "354 go")
        talk.body()
        talk.say("250 queued")
        talk.line()

    async def story(client: Client) -> None:
        result = await client.send(count=1000)
        assert set(summary(result)) == {("EOD", 250)}

    meet(serve, story, buffer=4096)


@pytest.mark.parametrize("chunking", [True, False])
def test_r12_a_server_that_stops_reading_the_content_is_left_and_has_certainly_not_taken_it(chunking: bool) -> None:
    offered = Capabilities("mx", {"PIPELINING": "", "CHUNKING": ""}) if chunking else OFFERED

    def serve(talk: Talk) -> None:
        talk.sock.settimeout(3)
        talk.read()
        talk.sock.sendall(b"250 ok\r\n250 ok\r\n" if chunking else GOOD)
        talk.sock.settimeout(None)
        talk.sock.recv(1)
        while not client_is_done:
            talk.sock.send(b"")

    client_is_done: list[bool] = []

    async def story(client: Client) -> None:
        client_is_done.clear()
        assert summary(await client.send(content=HUGE, offered=offered)) == [("TRANSFER", "TIMEOUT")]
        client_is_done.append(True)

    meet(serve, story, seconds=0.5, buffer=4096)


def test_r12_a_server_that_reads_slowly_but_steadily_gets_its_message() -> None:
    def serve(talk: Talk) -> None:
        while talk.line() != "DATA":
            pass
        talk.sock.sendall(GOOD)
        tail = b""
        while not tail.endswith(b"\r\n.\r\n"):
            tail = (tail + talk.sock.recv(200_000))[-5:]
        talk.say("250 queued")
        talk.line()

    async def story(client: Client) -> None:
        assert summary(await client.send(content=HUGE)) == [("EOD", 250)]

    meet(serve, story, seconds=1.0, buffer=65536)
