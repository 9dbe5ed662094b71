from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from spoolmta.model import Answer, Failure, FailureKind, Recipient, Reply, Stage
from spoolmta.smtp.client import Capabilities, Refused, Result, WireError, greet
from spoolmta.smtp.transaction import transaction

LOST = Failure(FailureKind.LOST, "connection lost")
PIPELINING = Capabilities("mx", {"PIPELINING": ""})
PLAIN = Capabilities("mx", {})
CHUNKING = Capabilities("mx", {"PIPELINING": "", "CHUNKING": ""})
STAYS = Capabilities("mx", {"PIPELINING": ""}, stays_after_421=True)
BODY = b"Subject: a\r\n\r\n.b\r\n"
STUFFED = b"Subject: a\r\n\r\n..b\r\n.\r\n"
CHUNK = b"BDAT 18 LAST\r\nSubject: a\r\n\r\n.b\r\n"


def people(count: int) -> list[Recipient]:
    return [Recipient(f"r{number}@example.com", "example.com") for number in range(count)]


def play(dialogue: Generator[Any, list[Reply], Any], script: list[list[int] | WireError]) -> tuple[Any, list[bytes]]:
    """Answer each step with the next codes of the script; the result, and what was sent."""
    sent: list[bytes] = []
    try:
        step = next(dialogue)
        for answer in script:
            sent.append(step.data)
            if isinstance(answer, WireError):
                step = dialogue.throw(answer)
            else:
                assert len(answer) == step.replies
                step = dialogue.send([Reply(code, (f"text {code}",)) for code in answer])
    except StopIteration as stop:
        return stop.value, sent
    raise AssertionError(f"more is wanted: {step}")


def lost(*codes: int) -> WireError:
    return WireError(LOST, [Reply(code, (f"text {code}",)) for code in codes])


def summary(result: Result) -> list[tuple[str, int | str]]:
    return [
        (answer.stage.name, answer.result.code if isinstance(answer.result, Reply) else answer.result.kind.name)
        for answer in result.answers
    ]


Script = list[list[int] | WireError]
Summary = list[tuple[str, int | str]]

SCENARIOS: list[tuple[str, Capabilities, int, Script, Summary, bool, bytes]] = [
    ("all is well", PIPELINING, 1, [[250, 250, 354], [250]], [("EOD", 250)], True, STUFFED),
    ("one of three is refused", PIPELINING, 3, [[250, 250, 550, 250, 354], [250]],
     [("EOD", 250), ("RCPT", 550), ("EOD", 250)], True, STUFFED),
    ("452 in the middle", PIPELINING, 3, [[250, 250, 452, 452, 354], [250]],
     [("EOD", 250), ("RCPT", 452), ("RCPT", 452)], True, STUFFED),
    ("452 to all", PIPELINING, 2, [[250, 452, 452, 554], [250]], [("RCPT", 452), ("RCPT", 452)], True, b"RSET\r\n"),
    ("452 in the middle, step by step: nobody else is asked about", PLAIN, 4, [[250], [250], [452], [354], [250]],
     [("EOD", 250), ("RCPT", 452), ("RCPT", 452), ("RCPT", 452)], True, STUFFED),
    ("all is well in a chunk", CHUNKING, 2, [[250, 250, 250], [250]], [("EOD", 250), ("EOD", 250)], True, CHUNK),
    ("a chunk waits until somebody is accepted", CHUNKING, 2, [[250, 550, 450], [250]],
     [("RCPT", 550), ("RCPT", 450)], True, b"RSET\r\n"),
    ("a chunk behind a refused MAIL", CHUNKING, 1, [[550, 503], [250]], [("MAIL", 550)], True, b"RSET\r\n"),
    ("a chunk is refused: the transaction is reset", CHUNKING, 1, [[250, 250], [554], [250]],
     [("EOD", 554)], True, b"RSET\r\n"),
    ("a chunk is refused for now", CHUNKING, 1, [[250, 250], [451], [250]], [("EOD", 451)], True, b"RSET\r\n"),
    ("421 to a chunk", CHUNKING, 1, [[250, 250], [421]], [("EOD", 421)], False, CHUNK),
    ("354 to a chunk", CHUNKING, 1, [[250, 250], [354]], [("EOD", "PROTOCOL")], False, CHUNK),
    ("BDAT is offered and not known", CHUNKING, 1, [[250, 250], [503]], [("DATA", "PROTOCOL")], False, CHUNK),
    ("lost at a chunk", CHUNKING, 1, [[250, 250], lost()], [("EOD", "LOST")], False, CHUNK),
    ("421 to one RCPT before a chunk", CHUNKING, 2, [[250, 250, 421]], [("MAIL", 421), ("RCPT", 421)], False, b""),
    ("a chunk, step by step", Capabilities("mx", {"CHUNKING": ""}), 1, [[250], [250], [250]],
     [("EOD", 250)], True, CHUNK),
    ("421 to one RCPT where that is no farewell", STAYS, 2, [[250, 250, 421, 354], [250], [250]],
     [("EOD", 250), ("RCPT", 421)], True, b"RSET\r\n"),
    ("421 to MAIL where that is no farewell", STAYS, 1, [[421, 503, 503], [250]], [("MAIL", 421)], True, b"RSET\r\n"),
    ("421 that was one all the same", STAYS, 1, [[421, 503, 503], lost()], [("MAIL", 421)], False, b"RSET\r\n"),
    ("lost while the content goes out", PIPELINING, 1, [[250, 250, 354], WireError(LOST, is_unsent=True)],
     [("TRANSFER", "LOST")], False, STUFFED),
    ("nobody is accepted, and DATA is refused", PIPELINING, 2, [[250, 550, 551, 554], [250]],
     [("RCPT", 550), ("RCPT", 551)], True, b"RSET\r\n"),
    ("nobody is accepted, and DATA is not refused", PIPELINING, 2, [[250, 550, 551, 354], [554]],
     [("RCPT", 550), ("RCPT", 551)], True, b".\r\n"),
    ("MAIL is refused, and DATA is not", PIPELINING, 2, [[550, 503, 503, 354], [250]],
     [("MAIL", 550), ("MAIL", 550)], True, b".\r\n"),
    ("MAIL is refused, but RCPT is not", PIPELINING, 1, [[450, 250, 503], [250]], [("MAIL", 450)], True, b"RSET\r\n"),
    ("421 to MAIL", PIPELINING, 2, [[421, 421, 421, 421]], [("MAIL", 421), ("MAIL", 421)], False, b""),
    ("421 to one RCPT", PIPELINING, 3, [[250, 250, 421, 421, 421]],
     [("DATA", 421), ("RCPT", 421), ("RCPT", 421)], False, b""),
    ("421 to one RCPT, and it goes on all the same", PIPELINING, 3, [[250, 250, 421, 250, 354], [250]],
     [("EOD", 250), ("RCPT", 421), ("EOD", 250)], False, STUFFED),
    ("421 to DATA", PIPELINING, 1, [[250, 250, 421]], [("DATA", 421)], False, b""),
    ("421 to the end of data", PIPELINING, 1, [[250, 250, 354], [421]], [("EOD", 421)], False, STUFFED),
    ("2xx to DATA", PIPELINING, 1, [[250, 250, 250]], [("DATA", "PROTOCOL")], False, b""),
    ("another 3xx to DATA", PIPELINING, 1, [[250, 250, 351], [250]], [("EOD", 250)], True, STUFFED),
    ("3xx to MAIL", PIPELINING, 1, [[354, 250, 354]], [("MAIL", "PROTOCOL")], False, b""),
    ("354 to a RCPT: nothing said after it is believed", PIPELINING, 3, [[250, 250, 354, 550, 354]],
     [("MAIL", "PROTOCOL"), ("RCPT", "PROTOCOL"), ("RCPT", "PROTOCOL")], False, b""),
    ("5xx to the end of data", PIPELINING, 2, [[250, 250, 250, 354], [554]],
     [("EOD", 554), ("EOD", 554)], True, STUFFED),
    ("3xx to the end of data", PIPELINING, 1, [[250, 250, 354], [354]], [("EOD", "PROTOCOL")], False, STUFFED),
    ("lost at the dot", PIPELINING, 2, [[250, 250, 550, 354], lost()],
     [("EOD", "LOST"), ("RCPT", 550)], False, STUFFED),
    ("lost after some answers", PIPELINING, 3, [lost(250, 550)],
     [("RCPT", 550), ("RCPT", "LOST"), ("RCPT", "LOST")], False, b""),
    ("lost before any answer", PIPELINING, 2, [lost()], [("MAIL", "LOST"), ("MAIL", "LOST")], False, b""),
    ("421 and gone", PIPELINING, 2, [lost(421)], [("MAIL", 421), ("MAIL", 421)], False, b""),
    ("421 to a RCPT and gone", PIPELINING, 2, [lost(250, 421)], [("RCPT", 421), ("RCPT", 421)], False, b""),
    ("lost at RSET", PIPELINING, 1, [[250, 550, 554], lost()], [("RCPT", 550)], False, b"RSET\r\n"),
    ("RSET refused", PIPELINING, 1, [[250, 550, 554], [500]], [("RCPT", 550)], False, b"RSET\r\n"),
    ("all is well, step by step", PLAIN, 2, [[250], [250], [250], [354], [250]],
     [("EOD", 250), ("EOD", 250)], True, STUFFED),
    ("step by step, one refused", PLAIN, 2, [[250], [550], [251], [354], [250]],
     [("RCPT", 550), ("EOD", 250)], True, STUFFED),
    ("step by step, MAIL refused", PLAIN, 2, [[550], [250]], [("MAIL", 550), ("MAIL", 550)], True, b"RSET\r\n"),
    ("step by step, all refused", PLAIN, 1, [[250], [450], [250]], [("RCPT", 450)], True, b"RSET\r\n"),
    ("step by step, 421 behind an accepted one", PLAIN, 3, [[250], [250], [421]],
     [("RCPT", 421), ("RCPT", 421), ("RCPT", 421)], False, b""),
    ("step by step, 421 to MAIL", PLAIN, 2, [[421]], [("MAIL", 421), ("MAIL", 421)], False, b""),
    ("step by step, nonsense behind an accepted one", PLAIN, 2, [[250], [250], [354]],
     [("RCPT", "PROTOCOL"), ("RCPT", "PROTOCOL")], False, b""),
    ("step by step, DATA refused", PLAIN, 1, [[250], [250], [451], [250]], [("DATA", 451)], True, b"RSET\r\n"),
    ("step by step, lost at the second RCPT", PLAIN, 2, [[250], [250], lost()],
     [("RCPT", "LOST"), ("RCPT", "LOST")], False, b""),
    ("step by step, lost at DATA", PLAIN, 1, [[250], [250], lost()], [("DATA", "LOST")], False, b"DATA\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("offered", "count", "script", "expected", "reusable", "last"),
    [scenario[1:] for scenario in SCENARIOS],
    ids=[scenario[0] for scenario in SCENARIOS],
)
def test_each_recipient_gets_its_answer(
    offered: Capabilities,
    count: int,
    script: list[list[int] | WireError],
    expected: list[tuple[str, int | str]],
    reusable: bool,
    last: bytes,
) -> None:
    result, sent = play(transaction("s@example.com", people(count), BODY, offered), script)
    assert summary(result) == expected
    assert result.reusable is reusable
    if last:
        assert sent[-1] == last
    else:
        assert STUFFED not in sent
        assert CHUNK not in sent


TOO_MANY = "5.5.3 too many"


@pytest.mark.parametrize(
    ("code", "text", "is_put_off"),
    [
        (452, "4.5.3 too many recipients", True), (452, "enough", True), (452, "4.3.1 system full", True),
        (452, "4.2.2 mailbox full", False), (452, "4.1.1 who?", False), (552, TOO_MANY, True), (550, TOO_MANY, True),
        (552, "Too many recipients", True), (552, "5.2.2 over quota", False), (550, "5.1.1 no such user", False),
        (451, TOO_MANY, False), (554, TOO_MANY, False),
    ],
)  # fmt: skip
def test_who_is_one_too_many_is_put_off_and_who_is_refused_is_not(code: int, text: str, is_put_off: bool) -> None:
    dialogue = transaction("s@a.b", people(3), BODY, PIPELINING)
    next(dialogue)
    replies = [Reply(250), Reply(250), Reply(code, (text,)), Reply(250), Reply(354)]
    assert dialogue.send(replies).data == STUFFED
    with pytest.raises(StopIteration) as stop:
        dialogue.send([Reply(250)])
    result = stop.value.value
    assert result.retry == ((1,) if is_put_off else ())
    assert summary(result) == [("EOD", 250), ("RCPT", code), ("EOD", 250)]


def test_where_nobody_was_accepted_nobody_is_put_off() -> None:
    result, _ = play(transaction("s@a.b", people(2), BODY, PIPELINING), [[250, 452, 452, 554], [250]])
    assert result.retry == ()


def test_what_the_host_says_it_does_not_take_is_not_offered_to_it() -> None:
    offered = Capabilities("mx", {"PIPELINING": "", "SIZE": "10"}, max_size=10)
    result, sent = play(transaction("s@a.b", people(2), BODY, offered), [])
    assert summary(result) == [("MAIL", "TOO_BIG"), ("MAIL", "TOO_BIG")]
    assert sent == []
    assert result.reusable


def test_a_message_with_8_bit_bytes_is_made_7_bit_where_8bitmime_is_not_offered() -> None:
    content = b"Subject: a\r\nMIME-Version: 1.0\r\n\r\nGru\xc3\x9f an alle\r\n"
    _, sent = play(transaction("s@a.b", people(1), content, PIPELINING), [[250, 250, 354], [250]])
    assert b"Gru=C3=9F an alle\r\n.\r\n" in sent[1]
    eight = Capabilities("mx", {"PIPELINING": "", "8BITMIME": ""})
    _, sent = play(transaction("s@a.b", people(1), content, eight), [[250, 250, 354], [250]])
    assert sent[1] == content + b".\r\n"


def test_a_signed_message_with_8_bit_bytes_is_not_changed_and_cannot_go() -> None:
    result, sent = play(transaction("s@a.b", people(1), b"DKIM-Signature: x\r\n\r\n\xff\r\n", PIPELINING), [])
    assert summary(result) == [("MAIL", "UNCONVERTIBLE")]
    assert sent == []


def test_what_an_out_of_step_server_said_is_no_refusal() -> None:
    trouble = WireError(Failure(FailureKind.PROTOCOL, "garbage"), [Reply(250), Reply(550)])
    result, _ = play(transaction("", people(1), BODY, PIPELINING), [trouble])
    assert summary(result) == [("MAIL", "PROTOCOL")]


def test_a_pipelined_transaction_is_one_write() -> None:
    _, sent = play(transaction("s@a.b", people(2), BODY, PIPELINING), [[250, 250, 250, 354], [250]])
    assert sent[0] == b"MAIL FROM:<s@a.b>\r\nRCPT TO:<r0@example.com>\r\nRCPT TO:<r1@example.com>\r\nDATA\r\n"


def first_command(offered: dict[str, str], sender: str, recipient: Recipient, content: bytes = BODY) -> list[bytes]:
    dialogue = transaction(
        sender, [recipient], content, Capabilities("", {"PIPELINING": "", **offered}), ret="HDRS", envid="a+b=ü"
    )
    return next(dialogue).data.split(b"\r\n")


def test_parameters_are_sent_only_if_they_are_offered() -> None:
    recipient = Recipient("r@b.c", "b.c", notify="FAILURE", orcpt="rfc822;r@b.c")
    assert first_command({}, "s@b.c", recipient, b"\r\n\xff")[:2] == [b"MAIL FROM:<s@b.c>", b"RCPT TO:<r@b.c>"]
    everything = {"SIZE": "1000", "8BITMIME": "", "DSN": "", "SMTPUTF8": ""}
    assert first_command(everything, "s@b.c", recipient, b"\r\n\xff")[:2] == [
        b"MAIL FROM:<s@b.c> SIZE=3 BODY=8BITMIME RET=HDRS ENVID=a+2Bb+3D+C3+BC",
        b"RCPT TO:<r@b.c> NOTIFY=FAILURE ORCPT=rfc822;r@b.c",
    ]
    assert first_command({"8BITMIME": ""}, "s@b.c", recipient)[0] == b"MAIL FROM:<s@b.c>"


def test_smtputf8_is_asked_for_when_an_address_needs_it() -> None:
    assert first_command({"SMTPUTF8": ""}, "s@b.c", Recipient("ü@b.c", "b.c"))[0] == b"MAIL FROM:<s@b.c> SMTPUTF8"
    assert first_command({"SMTPUTF8": ""}, "ü@b.c", Recipient("r@b.c", "b.c"))[0].endswith(b" SMTPUTF8")


def test_a_recipient_that_cannot_be_named_here_gets_its_answer_and_the_others_their_mail() -> None:
    recipients = [people(1)[0], Recipient("ü@example.com", "example.com")]
    result, sent = play(transaction("s@a.b", recipients, BODY, PIPELINING), [[250, 250, 354], [250]])
    assert summary(result) == [("EOD", 250), ("RCPT", "UNSENDABLE")]
    assert b"\xc3" not in sent[0]


@pytest.mark.parametrize("offered", [PLAIN, PIPELINING])
def test_a_sender_that_cannot_be_named_here_sends_nothing(offered: Capabilities) -> None:
    result, sent = play(transaction("ü@a.b", people(2), BODY, offered), [])
    assert summary(result) == [("RCPT", "UNSENDABLE"), ("RCPT", "UNSENDABLE")]
    assert result.reusable
    assert sent == []


def test_ehlo_brings_the_capabilities() -> None:
    dialogue = greet("mail.example.com")
    assert next(dialogue).replies == 1
    assert dialogue.send([Reply(220, ("mx ready",))]).data == b"EHLO mail.example.com\r\n"
    with pytest.raises(StopIteration) as stop:
        dialogue.send([Reply(250, ("mx", "size 1000", "Pipelining", "", "AUTH PLAIN LOGIN"))])
    capabilities = stop.value.value
    assert capabilities.greeting == "mx ready"
    assert capabilities.keywords == {"SIZE": "1000", "PIPELINING": "", "AUTH": "PLAIN LOGIN"}
    assert "SIZE" in capabilities
    assert capabilities.listing == "SIZE,PIPELINING,AUTH"


@pytest.mark.parametrize("code", [500, 501, 502])
def test_helo_follows_where_ehlo_is_not_known(code: int) -> None:
    result, sent = play(greet("me"), [[220], [code], [250]])
    assert sent[1:] == [b"EHLO me\r\n", b"HELO me\r\n"]
    assert result.keywords == {}


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ([[554]], Answer(Stage.GREETING, Reply(554, ("text 554",)))),
        ([[250]], Answer(Stage.GREETING, Reply(250, ("text 250",)))),
        ([[220], [421]], Answer(Stage.EHLO, Reply(421, ("text 421",)))),
        ([[220], [550]], Answer(Stage.EHLO, Reply(550, ("text 550",)))),
        ([[220], [500], [550]], Answer(Stage.EHLO, Reply(550, ("text 550",)))),
        ([lost()], Answer(Stage.GREETING, LOST)),
        ([[220], lost()], Answer(Stage.EHLO, LOST)),
        ([[220], lost(421)], Answer(Stage.EHLO, Reply(421, ("text 421",)))),
    ],
)
def test_who_does_not_want_to_talk_is_asked_nothing_more(script: list[list[int] | WireError], answer: Answer) -> None:
    with pytest.raises(Refused) as refused:
        play(greet("me"), script)
    assert refused.value.answer == answer
