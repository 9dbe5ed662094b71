"""Queues are named by arguments or by VMTA and domain, a dry run changes nothing, and what is tried again may be chosen
message by message: with the VMTA's process running, asleep, without the daemon."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolmta import control
from tests.integration.scenario import addresses, answer, bring, drop, received_by, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.news]
[vmta.other]
[domain."late.test"]
smtp-hosts = ["[{host}]:{port}"]
retry-recipients-after = "1h"
[domain."later.test"]
smtp-hosts = ["[{host}]:{port}"]
retry-recipients-after = "1h"
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def system(world: World, where: str = "running", more: str = "") -> Mta:
    text = CONFIG.format(host=world.host, port=world.port) + more
    return world.mta(text, sleep_after="1s" if where == "asleep" else "1m")


def refused(mta: Mta, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = mta.command(*arguments)
    assert result.returncode == 64, result.stdout
    assert len(result.stderr.splitlines()) == 1
    return result


def test_queues_are_named_by_vmta_and_domain_too_and_a_dry_run_changes_nothing(world: World) -> None:
    with system(world) as mta:
        for vmta in ("news", "other"):
            drop(mta, "451@late.test", vmta=vmta)
            drop(mta, "451@later.test", vmta=vmta)
        mta.wait_for(lambda: mta.count("t") == 4)
        for where in ("running", "stopped"):
            planned = answer(mta, "queue", "pause", "--domain", "LATE.test", "--vmta", "news", "--dry-run")
            assert planned == [{"queue": "late.test/news", "ready": 0, "waiting": 1}]
            planned = answer(mta, "queue", "mode", "backoff", "--vmta", "news", "--dry-run")
            assert [row["queue"] for row in planned] == ["late.test/news", "later.test/news"]
            told = mta.command("queue", "retry", "--domain", "late*", "--dry-run").stdout
            assert "would retry 4 queues with 0 messages ready and 4 waiting" in told
            assert answer(mta, "queue", "resume", "*/*", "--dry-run") == []
            planned = answer(mta, "queue", "pause", "--job", "no-mail", "--vmta", "news", "--dry-run")
            assert planned == [{"queue": "*/news", "ready": 0, "waiting": 0}]
            assert answer(mta, "queue", "pause", "new.test/news", "--dry-run")[0]["queue"] == "new.test/news"
            known = answer(mta, "queue", "show", "late.test/news")["queue"]
            assert (known["paused"], known["mode"], known["waiting"], known["held_jobs"]) == (False, "normal", 1, [])
            if where == "running":
                mta.stop()
        mta.start()
        (row,) = answer(mta, "queue", "pause", "--domain", "late.test", "--vmta", "news")
        assert row["queue"] == "late.test/news"
        assert answer(mta, "queue", "show", "late.test/news")["queue"]["paused"] is True
        assert answer(mta, "queue", "resume", "--vmta", "news", "--dry-run") == [
            {"queue": "late.test/news", "ready": 0, "waiting": 1}
        ]
        (row,) = answer(mta, "queue", "resume", "--vmta", "news")
        assert row["queue"] == "late.test/news"
        assert [row["queue"] for row in answer(mta, "queue", "mode", "backoff", "--domain", "later.test")] == [
            "later.test/default",
            "later.test/news",
            "later.test/other",
        ]
        assert {row["queue"] for row in answer(mta, "queue", "retry", "--domain", "late.test")} == {
            "late.test/news",
            "late.test/other",
        }
        mta.wait_for(lambda: mta.count("t") == 6)


def test_what_says_no_queue_or_says_it_twice_is_one_sentence(world: World) -> None:
    with system(world) as mta:
        for words in (["pause"], ["resume"], ["mode", "backoff"], ["retry"]):
            assert "which queues?" in refused(mta, "queue", *words).stderr
        assert "not both ways" in refused(mta, "queue", "retry", "*/news", "--vmta", "news").stderr
        for words in (["--domain", "a.test"], ["a.test/news"]):
            assert "goes with --vmta, or alone" in refused(mta, "queue", "pause", "--job", "x", *words).stderr
        nobody = mta.command("queue", "pause", "--job", "x", "--vmta", "nobody")
        assert (nobody.returncode, "no VMTA called nobody" in nobody.stderr) == (65, True)
        drop(mta, "slow-5s@a.test", vmta="news")
        mta.wait_for(lambda: mta.vmta("news")["connections"] == 1)
        path = str(mta.spool / "run" / "news.control")
        for question in (
            {"ask": "switch", "site": "*", "switch": {"do": "backoff", "reason": "", "job": "0badcafe"}},
            {"ask": "retry some", "entries": [["a.test"]]},
        ):
            assert "error" in control.ask(path, question)
        known = {"ask": "retry some", "entries": [["../x", "y"], ["", ""], ["a.test", "no name"]]}
        assert control.ask(path, known) == {"changed": [], "messages": 0}


@pytest.mark.parametrize("where", ["running", "asleep", "stopped"])
def test_only_what_is_chosen_is_tried_again(world: World, where: str) -> None:
    with system(world, where) as mta:
        drop(mta, "once-451-job@late.test", vmta="news", job="autumn")
        drop(mta, "once-451-rcpt@late.test", vmta="news")
        drop(mta, "once-451-orig@late.test", vmta="news", sender="boss@from.test")
        drop(mta, "once-451-place@later.test", "once-451-place@late.test", vmta="other", job="winter")
        drop(mta, "once-451-rest@late.test", vmta="news", job="winter")
        mta.wait_for(lambda: mta.count("t") == 6)
        bring(mta, where, "news", "other")
        tries = [
            (("--job", "autumn"), "late.test/news"),
            (("--rcpt", "ONCE-451-rcpt@late.test"), "late.test/news"),
            (("--orig", "boss@from.test", "--vmta", "news", "--domain", "late.test"), "late.test/news"),
            (("later*/*", "--job", "winter"), "later.test/other"),
        ]
        assert answer(mta, "queue", "retry", "--older-than", "1h") == []
        assert "nothing in the queue is meant" in mta.command("queue", "retry", "--job", "none").stdout
        for words, queue in tries:
            planned = answer(mta, "queue", "retry", *words, "--dry-run")
            assert (planned["messages"], planned["first"][0]["queue"]) == (1, queue)
        assert mta.count("d") == 0
        for words, queue in tries:
            assert answer(mta, "queue", "retry", *words) == [{"queue": queue, "done": "retried", "messages": 1}]
        if where == "stopped":
            mta.start()
        mta.wait_for(lambda: mta.count("d") == 4)
        assert addresses(world) == sorted(
            [
                "once-451-job@late.test",
                "once-451-orig@late.test",
                "once-451-place@later.test",
                "once-451-rcpt@late.test",
            ]
        )
        assert to(mta, "once-451-job@late.test", "d")[0]["attempts"] == "2"
        assert answer(mta, "queue", "retry", "--older-than", "1s", "--job", "winter")[0]["messages"] == 1
        mta.wait_for(lambda: mta.count("d") == 6)
        assert mta.audit()["balanced"]


def test_a_chosen_message_ends_the_pause_of_its_queue(world: World) -> None:
    """A site that failed is tried at once, with what is chosen."""
    down = '[domain."down.test"]\nsmtp-hosts = ["[127.0.0.9]:1"]\nretry-after = "1h"\n'
    with system(world, more=down) as mta:
        drop(mta, "one@down.test", vmta="news", job="autumn")
        drop(mta, "two@down.test", vmta="news")
        mta.wait_for(lambda: mta.count("tq") == 1)
        assert answer(mta, "queue", "retry", "--job", "autumn")[0]["messages"] == 1
        mta.wait_for(lambda: mta.count("tq") == 2)
        assert not received_by(world, "down.test")
