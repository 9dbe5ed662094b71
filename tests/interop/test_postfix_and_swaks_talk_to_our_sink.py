"""The test receiver, met by clients that are not ours: smtp-source, Postfix's own client, swaks.

What `spoolmta.sink` counts is what other tests believe, so strangers must find that it speaks SMTP.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.mta import World, wait_for
from tests.support.postfix import Postfix, needs, run

pytestmark = pytest.mark.interop

MESSAGES = 500
BODY = "first\n.\n..\n.dotted\n\nGr\u00fc\u00dfe " + "x" * 900 + "\nlast"


def mails(folder: Path) -> list[bytes]:
    """What the sink kept, as text with LF line ends."""
    return [file.read_bytes().replace(b"\r\n", b"\n") for file in (folder / "new").iterdir()]


def swaks(world: World, *options: str) -> tuple[int, str]:
    """swaks, talking to the sink: its exit status and the transcript."""
    done = run("swaks", "--server", world.host, "--port", str(world.port), "--ehlo", "swaks.test", *options)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@needs("smtp-source")
@pytest.mark.parametrize("pipelining", [True, False], ids=["PIPELINING offered", "not offered"])
@pytest.mark.parametrize("options", [["-d"], []], ids=["ten sessions", "a session each"])
def test_all_of_500_messages_of_smtp_source_arrive(tmp_path: Path, options: list[str], pipelining: bool) -> None:
    with World(tmp_path, pipelining=pipelining) as world:
        arguments = ["-4", "-s", "10", "-m", str(MESSAGES), "-l", "2000", "-M", "source.test", *options]
        arguments += ["-f", "sender@source.test", "-t", "user@sink.test", f"{world.host}:{world.port}"]
        done = run("smtp-source", *arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        received = world.received()
        totals = world.stats()["totals"]
    assert len(received) == MESSAGES
    assert {(one["mail_from"], *one["recipients"]) for one in received} == {("sender@source.test", "user@sink.test")}
    assert totals["messages"] == MESSAGES
    assert (totals["messages_refused"], totals["messages_dropped"], totals["too_early"]) == (0, 0, 0)
    assert totals["connections"] == (10 if "-d" in options else MESSAGES)


@needs("smtp-source")
def test_smtp_source_with_many_recipients_and_its_own_dots_is_understood(tmp_path: Path) -> None:
    text = tmp_path / "message"
    text.write_bytes(b"X-Test-Id: dots\nSubject: dots\n\n.\n..\n.dotted\n\nlast")
    with World(tmp_path, maildir=str(tmp_path / "mail")) as world:
        arguments = ["-4", "-F", str(text), "-m", "20", "-s", "2", "-r", "30"]
        done = run("smtp-source", *arguments, "-f", "a@b.test", "-t", "user@sink.test", f"{world.host}:{world.port}")
        assert (done.returncode, done.stderr) == (0, b"")
        received = world.received()
    assert [len(set(one["recipients"])) for one in received] == [30] * 20
    assert {one["test_id"] for one in received} == {"dots"}
    # smtp-source ends the last line and sends an empty one before the dot.
    assert mails(tmp_path / "mail") == [text.read_bytes() + b"\n\n"] * 20


@needs("postfix", "smtp-source", root=True)
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one by one"])
def test_all_of_500_messages_arrive_through_postfix(tmp_path: Path, pipelining: bool) -> None:
    with World(tmp_path, pipelining=pipelining) as world:
        with Postfix(["user@inbox.test"], relay={"sink.test": world.sinks[0]}) as postfix:
            arguments = ["-4", "-d", "-s", "5", "-m", str(MESSAGES), "-f", "a@b.test", "-t", "user@sink.test"]
            done = run("smtp-source", *arguments, f"127.0.0.1:{postfix.ports[0]}")
            assert (done.returncode, done.stderr) == (0, b"")

            def statuses() -> list[str]:
                return re.findall(r" to=<user@sink\.test>.* status=(\w+)", postfix.log())

            wait_for(lambda: len(statuses()) == MESSAGES, postfix.log)
            assert set(statuses()) == {"sent"}
        totals = world.stats()["totals"]
        received = world.received()
    assert len(received) == totals["messages"] == MESSAGES
    assert {(one["ehlo"], one["source"]) for one in received} == {("postfix.test", "127.0.0.1")}
    assert (totals["messages_refused"], totals["messages_dropped"], totals["too_early"]) == (0, 0, 0)


@needs("swaks")
@pytest.mark.parametrize(
    ("options", "offers"),
    [
        ([], {}),
        (["--pipeline"], {}),
        (["--pipeline"], {"pipelining": False}),
        (["--protocol", "SMTP"], {}),
        ([], {"pipelining": False, "eight_bit_mime": False, "size": False, "enhanced_status_codes": False}),
    ],
    ids=["ESMTP", "pipelined", "told not to pipeline", "HELO", "nothing offered"],
)
def test_what_swaks_sends_is_what_the_sink_keeps(tmp_path: Path, options: list[str], offers: dict[str, Any]) -> None:
    data = f"X-Test-Id: swaks\nFrom: a@swaks.test\nSubject: dots\n\n{BODY}"
    file = tmp_path / "data"
    file.write_text(data)
    with World(tmp_path, maildir=str(tmp_path / "mail"), **offers) as world:
        to = "user@sink.test,other@sink.test"
        code, said = swaks(world, *options, "--from", "a@swaks.test", "--to", to, "--data", f"@{file}")
        assert code == 0, said
        (one,) = world.received()
    assert (one["mail_from"], one["recipients"]) == ("a@swaks.test", to.split(","))
    assert (one["ehlo"], one["test_id"]) == ("swaks.test", "swaks")
    (mail,) = mails(tmp_path / "mail")
    # swaks puts an empty line before the dot.
    assert mail.rstrip(b"\n") == data.encode()
    assert "<** " not in said  # how swaks marks a reply it did not expect


@needs("swaks")
@pytest.mark.parametrize(
    ("sender", "recipient", "status", "reply"),
    [
        ("mail-550-5.1.8@swaks.test", "user", 23, "550 5.1.8"),
        ("a@swaks.test", "550-5.1.1", 24, "550 5.1.1"),
        ("a@swaks.test", "451-4.2.1", 24, "451 4.2.1"),
        ("a@swaks.test", "data-451", 25, "451 "),
        ("a@swaks.test", "eod-554-5.7.1", 26, "554 5.7.1"),
        ("a@swaks.test", "drop-at-data", 6, "354"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--pipeline"]], ids=["one by one", "pipelined"])
def test_swaks_sees_the_refusal_the_address_asks_for(
    tmp_path: Path, options: list[str], sender: str, recipient: str, status: int, reply: str
) -> None:
    with World(tmp_path) as world:
        code, said = swaks(world, *options, "--from", sender, "--to", f"{recipient}@sink.test")
        assert world.received() == []
    assert code == status, said
    if recipient != "drop-at-data":
        assert f"<** {reply}" in said
