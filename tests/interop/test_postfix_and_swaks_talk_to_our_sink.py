"""The test receiver, met by clients that are not ours: smtp-source, Postfix's own client, swaks.

What `spoolmta.sink` counts is what other tests believe, so strangers must find that it speaks SMTP.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.mta import World
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
@pytest.mark.parametrize("options", [["-d"], [], ["-o"]], ids=["one session", "a session each", "without HELO"])
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
    assert (totals["accepted"], totals["rejected"], totals["dropped"], totals["too_early"]) == (MESSAGES, 0, 0, 0)
    assert totals["connections"] == (10 if "-d" in options else MESSAGES)


@needs("smtp-source")
def test_smtp_source_with_many_recipients_and_its_own_dots_is_understood(tmp_path: Path) -> None:
    text = tmp_path / "message"
    text.write_bytes(b"X-Test-Id: dots\nSubject: dots\n\n.\n..\n.dotted\n\nlast\n")
    with World(tmp_path, maildir=str(tmp_path / "mail")) as world:
        arguments = ["-4", "-F", str(text), "-m", "20", "-s", "2", "-r", "30"]
        done = run("smtp-source", *arguments, "-f", "a@b.test", "-t", "user@sink.test", f"{world.host}:{world.port}")
        assert (done.returncode, done.stderr) == (0, b"")
        received = world.received()
    assert [len(set(one["recipients"])) for one in received] == [30] * 20
    assert {one["test_id"] for one in received} == {"dots"}
    assert mails(tmp_path / "mail") == [text.read_bytes()] * 20


@needs("postfix", "smtp-source", root=True)
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one by one"])
def test_postfix_delivers_500_messages_to_the_sink(tmp_path: Path, pipelining: bool) -> None:
    with World(tmp_path, pipelining=pipelining) as world:
        relay = {"sink.test": world.sinks[0]}
        with Postfix(["user@inbox.test"], relay=relay) as postfix:
            arguments = ["-4", "-d", "-s", "5", "-m", str(MESSAGES // 5), "-r", "5", "-f", "a@b.test"]
            done = run("smtp-source", *arguments, "-t", "user@sink.test", f"127.0.0.1:{postfix.ports[0]}")
            assert (done.returncode, done.stderr) == (0, b"")
            for number in range(MESSAGES - MESSAGES // 5):
                assert number is not None
                break
            wait_for_recipients(world, postfix, MESSAGES)
            statuses = re.findall(r" to=<[^>]*@sink\.test>.* status=(\w+)", postfix.log())
        totals = world.stats()["totals"]
    assert statuses == ["sent"] * MESSAGES
    assert (totals["recipients"], totals["refused"], totals["rejected"]) == (MESSAGES, 0, 0)
    assert totals["too_early"] == 0
