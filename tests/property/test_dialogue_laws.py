from __future__ import annotations

import asyncio
import itertools

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.lane import Lane
from spoolmta.model import DomainPolicy, Failure, FailureKind, Recipient, Reply, Stage
from spoolmta.opener import Ends, Opened
from spoolmta.smtp.client import Capabilities, Refused, Result, Step, WireError, greet
from spoolmta.smtp.transaction import transaction
from spoolmta.smtp.wire import MAX_LINE, MAX_REPLY, ProtocolError, ReplyParser, bdat, dot_stuff
from spoolmta.transport import Connection

CODES = [220, 250, 251, 252, 354, 351, 421, 450, 451, 452, 500, 503, 550, 554]
BODY = b"Subject: law\r\n\r\n.hidden\r\n"
LOOP = asyncio.new_event_loop()
LOOP.close()
NO_CONNECTION = Connection(LOOP, {}, lambda: None)
STUFFED = dot_stuff(BODY)
CHUNK = bdat(BODY)
codes = st.sampled_from(CODES)
kinds = st.sampled_from([FailureKind.LOST, FailureKind.TIMEOUT, FailureKind.PROTOCOL])
offers = st.sets(st.sampled_from(["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING"]))
recipients = st.lists(
    st.builds(Recipient, st.sampled_from(["a@b.c", "ü@b.c", "d@b.c"]), st.just("b.c")), min_size=1, max_size=6
)


@given(st.data(), offers, recipients, st.sampled_from(["", "s@b.c", "ü@b.c"]))
def test_whatever_the_server_does_every_recipient_gets_one_answer_and_at_most_one_body_is_sent(
    data: st.DataObject, offered: set[str], people: list[Recipient], sender: str
) -> None:
    capabilities = Capabilities("", dict.fromkeys(offered, ""), stays_after_421=data.draw(st.booleans()))
    dialogue = transaction(sender, people, BODY, capabilities)
    bodies, accepted_codes, steps, broken, result = 0, 0, 0, False, Result([], False)
    try:
        step = next(dialogue)
        while True:
            assert not broken, "a command after the connection was lost"
            steps += 1
            assert step.replies >= 1
            assert step.data.endswith(b"\r\n")
            bodies += step.data in (STUFFED, CHUNK)
            assert step.data != (STUFFED if "CHUNKING" in offered else CHUNK)
            if step.data in (STUFFED, CHUNK):
                assert step.stage is Stage.EOD
                assert accepted_codes
            if data.draw(st.integers(0, 9)) == 0:
                arrived = data.draw(st.lists(codes, max_size=step.replies - 1))
                broken = True
                step = dialogue.throw(
                    WireError(Failure(data.draw(kinds), "trouble"), [Reply(code) for code in arrived])
                )
            else:
                replies = data.draw(st.lists(codes, min_size=step.replies, max_size=step.replies))
                accepted_codes += sum(200 <= code < 300 for code in replies)
                step = dialogue.send([Reply(code) for code in replies])
    except StopIteration as stop:
        result = stop.value
    assert len(result.answers) == len(people)
    assert bodies <= 1
    assert steps <= len(people) + 5
    assert not (broken and result.reusable)
    for index in result.retry:
        assert result.answers[index].stage is Stage.RCPT
    assert len(result.retry) < len(people)
    if not bodies:
        assert all(answer.stage is not Stage.EOD for answer in result.answers)
    if "SMTPUTF8" not in offered:
        for person, answer in zip(people, result.answers, strict=True):
            named = person.address.isascii() and sender.isascii()
            unsendable = isinstance(answer.result, Failure) and answer.result.kind is FailureKind.UNSENDABLE
            assert unsendable != named


@given(st.data(), st.integers(1, 12), st.sets(st.sampled_from(["PIPELINING", "CHUNKING"])), st.integers(0, 5))
def test_in_all_its_transactions_together_a_message_gets_one_answer_for_each_recipient_and_comes_to_an_end(
    data: st.DataObject, count: int, offered: set[str], most: int
) -> None:
    people = [Recipient(f"r{number}@b.c", "b.c") for number in range(count)]
    capabilities = Capabilities("", dict.fromkeys(offered, ""), max_recipients=most)
    lane, settled, transactions = Lane(1), list[Recipient](), 0
    lane.open(Opened(NO_CONNECTION, Ends(), capabilities), DomainPolicy())
    lane.unsent = people
    while lane.unsent:
        lane.choose(data.draw(st.integers(1, 12)))
        assert 0 < len(lane.sent) <= (most or count)
        transactions += 1
        assert transactions <= count
        dialogue = transaction("", lane.sent, BODY, capabilities)
        try:
            step = next(dialogue)
            while True:
                some = st.sampled_from([250, 354, 452, 550])
                drawn = data.draw(st.lists(some, min_size=step.replies, max_size=step.replies))
                step = dialogue.send([Reply(code) for code in drawn])
        except StopIteration as stop:
            _, answers = lane.take(stop.value)
        assert len(answers) == len(lane.sent) > 0
        settled += lane.sent
    assert sorted(person.address for person in settled) == sorted(person.address for person in people)


@given(st.data())
def test_a_greeting_ends_with_capabilities_or_a_refusal(data: st.DataObject) -> None:
    dialogue, step = greet("me"), None
    try:
        step = next(dialogue)
        for _ in range(4):
            assert isinstance(step, Step)
            if data.draw(st.integers(0, 5)) == 0:
                step = dialogue.throw(WireError(Failure(data.draw(kinds), "trouble")))
            else:
                step = dialogue.send([Reply(data.draw(codes), ("a", "SIZE 1"))])
    except (StopIteration, Refused):
        return
    raise AssertionError(f"it goes on: {step}")


def feed_all(chunks: list[bytes]) -> tuple[list[Reply], bool]:
    parser, replies = ReplyParser(), []
    try:
        for chunk in chunks:
            replies += parser.feed(chunk)
    except ProtocolError:
        return replies, True
    return replies, False


lines = st.builds(
    lambda code, separator, text, end: b"%d%b%b%b" % (code, separator, text, end),
    st.sampled_from(CODES),
    st.sampled_from([b" ", b"-", b" "]),
    st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"")),
    st.sampled_from([b"\r\n", b"\n"]),
)
streams = st.lists(lines | st.binary(max_size=30), max_size=12).map(b"".join)


@given(streams, st.lists(st.integers(0, 400), max_size=10))
def test_how_replies_are_cut_never_matters(stream: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[start:end] for start, end in itertools.pairwise(places)]
    bytewise, failed = feed_all([stream[i : i + 1] for i in range(len(stream))])
    replies, failed_too = feed_all(chunks)
    assert failed == failed_too
    if failed:
        assert replies == bytewise[: len(replies)]
    else:
        assert replies == bytewise


@given(st.lists(st.binary(max_size=3000), max_size=60))
def test_garbage_gives_protocol_errors_only_and_fills_no_memory(chunks: list[bytes]) -> None:
    parser, said = ReplyParser(), list[str]()
    for chunk in chunks:
        try:
            replies = parser.feed(chunk)
        except ProtocolError as error:
            said.append(str(error))
            break
        said += [reply.text for reply in replies]
        assert all(200 <= reply.code <= 599 for reply in replies)
    assert not any(ord(char) < 32 for text in said for char in text)
    assert len(parser._buffer) <= MAX_LINE + 3000
    assert sum(map(len, parser._lines)) <= MAX_REPLY + MAX_LINE


def unstuff(sent: bytes) -> bytes:
    """A server's reading of DATA (RFC 5321 section 4.5.2)."""
    content: list[bytes] = []
    for line in sent.split(b"\r\n")[:-1]:
        if line == b".":
            return b"".join(content)
        content.append((line[1:] if line.startswith(b".") else line) + b"\r\n")
    raise AssertionError("no end of data")


texts = st.lists(st.text(alphabet=".aé \t", max_size=6), max_size=10).map(
    lambda rows: "".join(row + "\r\n" for row in rows).encode()
)


@given(texts)
def test_what_is_stuffed_is_what_is_read(content: bytes) -> None:
    sent = dot_stuff(content)
    assert unstuff(sent) == content
    assert sent.count(b"\r\n.\r\n") + sent.startswith(b".\r\n") == 1
