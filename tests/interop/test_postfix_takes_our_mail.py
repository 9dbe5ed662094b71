"""Delivery to a real Postfix: what arrives is what was dropped, and its refusals end where they belong."""

from __future__ import annotations

import email
import random
import re
from collections.abc import Iterator

import pytest

from tests.support.mta import Mta
from tests.support.postfix import Postfix, assert_balanced, mta_towards, needs

pytestmark = [pytest.mark.interop, needs("postfix", root=True)]

SIZE_LIMIT = 60_000
MESSAGES = 200
BOXES = ("odd", "one", "two", "three", "four", "named", "small", "large-1", "large-2")

CONFIG = """
[domain."unsized.test"]
smtp-hosts = ["[127.0.0.1]:{unsized}"]
[domain."plain.test"]
smtp-hosts = ["[127.0.0.1]:{plain}"]
[vmta.named]
smtp-source-host = ["127.0.0.41 named.vmta.test"]
"""

LINE_END = re.compile(rb"\r\r\n|\r\n|\r|\n")
LINES = (
    b"",
    b".",
    b"..",
    b". ",
    b".a dot first",
    b"...",
    b"From here on",
    b"ends in blanks \t ",
    b" begins with one",
    b"QUIT",
    b"X-Looks-Like: a field",
    b"--boundary--",
    b"Gr\xc3\xbc\xc3\x9fe",
    b"\xa4\xff\xfe 8-bit, no UTF-8",
    b"\x01\x0b\x0c\x1b\x7f control",
    b"\0 and \0",
    b"x" * 990,
    b"\xe9" * 990,
    b"." * 990,
    b"y" * 989 + b".",
)
ENDS = {"LF": [b"\n"], "CRLF": [b"\r\n"], "CR": [b"\r"], "text-mode CRLF": [b"\r\r\n"]}
ENDS["mixed"] = [end for (end,) in ENDS.values()]
FIXED = (
    b"",
    b".",
    b".\n",
    b"\n.\n",
    b"\r\n.\r\nMAIL FROM:<smuggled@evil.test>\r\n",
    b"\n.\rMAIL FROM:<smuggled@evil.test>\n",
    b"\r.\r",
    b"\n\n\n",
    b"\r",
    b"no final line end",
    b"ends in CR\r",
    b"x" * 990,
    b"..",
)


def odd_body(number: int, chance: random.Random) -> bytes:
    """Bodies from the list first, then lines and line ends at random."""
    if number < len(FIXED):
        return FIXED[number]
    ends = ENDS[chance.choice(list(ENDS))]
    body = b"".join(chance.choice(LINES) + chance.choice(ends) for _ in range(chance.randint(1, 30)))
    return body + (chance.choice(LINES) if chance.random() < 0.5 else b"")


def odd_message(number: int, chance: random.Random, domain: str) -> tuple[bytes, bytes]:
    """(the file, what of it is the message): the first header field is the test's number."""
    body = odd_body(number, chance)
    # CR CR before LF would be one line end, and the header would not end there.
    end = chance.choice([end for end in ENDS["mixed"] if not (end == b"\r" and body.startswith(b"\n"))])
    envelope = end.join([b"x-sender: sender@mta.test", b"x-receiver: odd@" + domain.encode(), b""])
    header = end.join([b"X-Test-Id: %d" % number, b"From: sender@mta.test", b"Subject: odd", b"", b""])
    return envelope + header + body, header + body


def unnormalise(message: bytes) -> bytes:
    """As a mailbox on Unix has it: every line ends in LF, the last one too."""
    text = LINE_END.sub(b"\n", message)
    return text if text.endswith(b"\n") else text + b"\n"


def as_8_bit(mail: bytes, expected: bytes) -> bytes:
    """A message that was made 7-bit on its way, with its content decoded; its header as it should be."""
    if expected.isascii() or not mail.isascii():
        return mail
    body = email.message_from_bytes(mail).get_payload(decode=True)
    assert isinstance(body, bytes)
    header = expected[: expected.index(b"\n\n") + 2]
    return header + body.replace(b"\r\n", b"\n")


def difference(one: bytes, other: bytes) -> str:
    """Where two texts part, with what stands there in each."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"at {at}: {one[max(0, at - 40) : at + 40]!r} is not {other[max(0, at - 40) : at + 40]!r}"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postfix, Mta]]:
    boxes = [f"{box}@{domain}" for domain in ("inbox.test", "unsized.test", "plain.test") for box in BOXES]
    listeners = ("", "smtpd_discard_ehlo_keywords=size", "smtpd_discard_ehlo_keywords=pipelining,8bitmime,dsn,size")
    settings = {"message_size_limit": str(SIZE_LIMIT)}
    with Postfix(boxes, settings=settings, listeners=listeners) as postfix:
        port, unsized, plain = postfix.ports
        config = CONFIG.format(unsized=unsized, plain=plain)
        with mta_towards(tmp_path_factory.mktemp("postfix"), port, config) as mta:
            yield postfix, mta


def ended(mta: Mta, *recipients: str) -> dict[str, dict[str, str]]:
    """The last rows of these recipients by local part, once each has one."""

    def rows() -> dict[str, dict[str, str]]:
        return {row["rcpt"]: row for row in mta.rows("d", "b", "t") if row["rcpt"] in recipients}

    mta.wait_for(lambda: len(rows()) == len(recipients))
    return {recipient.partition("@")[0]: row for recipient, row in rows().items()}


def replies_in_log(postfix: Postfix, address: str) -> list[str]:
    """What Postfix says it answered to a RCPT of this address."""
    return re.findall(rf"reject: RCPT from \S+ ([^;]*<{re.escape(address)}>[^;]*);", postfix.log())


@pytest.mark.parametrize("domain", ["inbox.test", "plain.test"])
def test_messages_of_odd_shapes_arrive_as_they_were(system: tuple[Postfix, Mta], domain: str) -> None:
    postfix, mta = system
    chance = random.Random(20_01)
    expected = {}
    for number in range(MESSAGES):
        data, message = odd_message(number, chance, domain)
        expected[number] = unnormalise(message)
        mta.drop(data=data, name=f"odd-{domain}-{number}.eml")
    box = f"odd@{domain}"
    mta.wait_for(lambda: sum(row["rcpt"] == box for row in mta.rows("d", "b", "t")) == MESSAGES)
    mta.wait_for(lambda: len(postfix.mail(box)) == MESSAGES)
    # Postfix puts its own lines above; what follows is ours.
    found = {}
    for mail in postfix.mail(box):
        message = mail[mail.index(b"X-Test-Id: ") :]
        found[int(message.split(maxsplit=2)[1])] = message
    assert set(found) == set(expected)
    if domain == "plain.test":  # what has 8-bit bytes came as 7-bit, and says the same
        found = {number: as_8_bit(mail, expected[number]) for number, mail in found.items()}
    wrong = [number for number in expected if found[number] != expected[number]]
    assert not wrong, f"{len(wrong)} differ; {wrong[0]}: {difference(found[wrong[0]], expected[wrong[0]])}"


def test_a_message_without_a_body_arrives_without_one(system: tuple[Postfix, Mta]) -> None:
    postfix, mta = system
    mta.drop(data=b"x-sender: a@mta.test\nx-receiver: small@plain.test\nX-Test-Id: 1\nSubject: no empty line")
    assert ended(mta, "small@plain.test")["small"]["type"] == "d"
    mta.wait_for(lambda: len(postfix.mail("small@plain.test")) == 1)
    (mail,) = postfix.mail("small@plain.test")
    assert mail[mail.index(b"X-Test-Id: ") :].rstrip(b"\n") == b"X-Test-Id: 1\nSubject: no empty line"


def test_an_unknown_recipient_bounces_with_the_words_of_postfix(system: tuple[Postfix, Mta]) -> None:
    postfix, mta = system
    mta.drop("nobody@inbox.test")
    row = ended(mta, "nobody@inbox.test")["nobody"]
    (said,) = replies_in_log(postfix, "nobody@inbox.test")
    assert "User unknown" in said
    assert (row["type"], row["dsnAction"], row["dsnStatus"].split()[0]) == ("b", "failed", "5.1.1")
    assert row["dsnDiag"] == f"smtp;{said.removeprefix(': ')}"
    assert row["bounceCat"] == "bad-mailbox"


@pytest.mark.parametrize("domain", ["inbox.test", "plain.test"])
def test_a_refused_recipient_in_the_middle_keeps_the_others(system: tuple[Postfix, Mta], domain: str) -> None:
    postfix, mta = system
    boxes = ("one", "two", "gone", "three", "four")
    mta.drop(*(f"{box}@{domain}" for box in boxes), test_id="group")
    rows = ended(mta, *(f"{box}@{domain}" for box in boxes))
    assert {box: row["type"] for box, row in rows.items()} == dict.fromkeys(boxes, "d") | {"gone": "b"}
    # One reply, with Postfix's queue id, to the one transaction of the four.
    assert len({row["dsnDiag"] for row in rows.values() if row["type"] == "d"}) == 1
    kept = [f"{box}@{domain}" for box in boxes if box != "gone"]
    mta.wait_for(lambda: all(len(postfix.mail(address)) == 1 for address in kept))


def test_when_every_recipient_is_refused_nothing_arrives_and_the_session_goes_on(system: tuple[Postfix, Mta]) -> None:
    _, mta = system
    mta.drop("no-1@inbox.test", "no-2@inbox.test")
    assert {row["type"] for row in ended(mta, "no-1@inbox.test", "no-2@inbox.test").values()} == {"b"}
    mta.drop("small@inbox.test")
    assert ended(mta, "small@inbox.test")["small"]["type"] == "d"


@pytest.mark.parametrize("domain", ["inbox.test", "unsized.test"], ids=["SIZE offered", "SIZE not offered"])
def test_a_message_over_the_size_limit_bounces(system: tuple[Postfix, Mta], domain: str) -> None:
    postfix, mta = system
    boxes = [f"{box}@{domain}" for box in ("large-1", "large-2")]
    mta.drop(*boxes, body=("x" * 70 + "\n") * (SIZE_LIMIT // 70 + 1))
    rows = ended(mta, *boxes).values()
    assert {(row["type"], row["dsnStatus"].split()[0]) for row in rows} == {("b", "5.3.4")}
    # Where the limit is known the message is not sent at all.
    said = "smtp;552 5.3.4 " if domain == "unsized.test" else "smtp;the message has "
    assert all(row["dsnDiag"].startswith(said) for row in rows), rows
    assert {row["bounceCat"] for row in rows} == {"content-related"}
    assert not any(postfix.mail(box) for box in boxes)


def test_the_received_line_has_the_vmtas_address_and_name(system: tuple[Postfix, Mta]) -> None:
    postfix, mta = system
    mta.drop("named@inbox.test", vmta="named", sender="bounces@mta.test")
    row = ended(mta, "named@inbox.test")["named"]
    mta.wait_for(lambda: bool(postfix.mail("named@inbox.test")))
    (mail,) = postfix.mail("named@inbox.test")
    (received,) = re.findall(rb"^Received: ((?:.*\n[ \t])*.*)\n", mail, re.MULTILINE)
    assert received.startswith(b"from named.vmta.test (unknown [127.0.0.41])")
    assert b"with ESMTP id" in received
    assert b"Return-Path: <bounces@mta.test>\n" in mail
    assert row["dlvSourceIp"] == "127.0.0.41"
    # The id Postfix gave it is in our row, so that its postmaster can be asked.
    assert re.search(rb"id (\w+)", received)[1].decode() in row["dsnDiag"]  # type: ignore[index]


def test_the_balance_holds(system: tuple[Postfix, Mta]) -> None:
    _, mta = system
    mta.drop("one@inbox.test", "nobody-else@inbox.test", test_id="balance")
    ended(mta, "nobody-else@inbox.test")
    mta.wait_for(lambda: mta.count("r") == mta.count("d") + mta.count("b"))
    assert_balanced(mta)
