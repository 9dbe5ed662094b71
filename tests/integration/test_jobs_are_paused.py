"""An operator pauses one job: its mail is held in one VMTA or in all, with its process running, while it sleeps, while
nothing runs. What counts is what the receiver sees."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.scenario import addresses, answer, bring, drop
from tests.support.mta import Mta, World

CONFIG = """
[vmta.news]
[vmta.other]
[vmta.news.domain."one.test"]
max-smtp-out = 1
[domain."short.test"]
smtp-hosts = ["[{host}]:{port}"]
bounce-after = "4s"
"""

everywhere = pytest.mark.parametrize("where", ["running", "asleep", "stopped"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def system(world: World, where: str = "running") -> Mta:
    more = CONFIG.format(host=world.host, port=world.port)
    return world.mta(more, sleep_after="1s" if where == "asleep" else "1m")


def is_held(mta: Mta, queue: str, messages: int) -> bool:
    result = mta.command("queue", "show", queue, "--json")
    return result.returncode == 0 and json.loads(result.stdout)["queue"]["held"] == messages


@everywhere
def test_a_paused_job_waits_and_the_rest_flows(world: World, where: str) -> None:
    with system(world, where) as mta:
        drop(mta, "once-451-x@a.test", vmta="news", job="autumn")
        drop(mta, "once-451-y@a.test", vmta="other", job="autumn")
        mta.wait_for(lambda: mta.count("d") == 2)
        bring(mta, where, "news", "other")
        held = {"job": "autumn", "vmta": "news", "done": "paused"}
        assert answer(mta, "queue", "pause", "--job", "autumn", "--vmta", "news", "--reason", "a typo") == [held]
        for vmta in ("news", "other"):
            for job in ("autumn", "winter", ""):
                drop(mta, f"{job or 'none'}-{vmta}@a.test", vmta=vmta, job=job)
        if where == "stopped":
            mta.start()
        mta.wait_for(lambda: mta.count("d") == 7 and is_held(mta, "a.test/news", 1))
        if where == "asleep":
            mta.wait_for(lambda: mta.vmta("news")["state"] == "asleep")
        assert "autumn-news@a.test" not in addresses(world)
        known = answer(mta, "queue", "show", "a.test/news")["queue"]
        assert (known["ready"], known["held"], known["paused"]) == (0, 1, False)
        assert known["held_by"] == "the job is paused"
        (job,) = known["held_jobs"]
        assert (job["job"], job["messages"], job["until"]) == ("autumn", 1, 0.0)
        assert job["held_by"].startswith("operator ")
        assert job["held_by"].endswith(": a typo")
        assert "autumn (1 messages, paused by operator" in mta.command("queue", "show", "a.test/news").stdout
        (row,) = answer(mta, "job", "autumn")
        assert (row["queue"], row["messages"], row["paused_by"]) == ("a.test/news", 1, job["held_by"])
        assert {row["job"]: row["paused_in"] for row in answer(mta, "job")} == {"autumn": ["news"]}
        (entry,) = mta.entries()
        shown = mta.command("queue", "show", entry.name.partition(",")[0]).stdout
        assert "job paused by:" in shown
        (mta.path / "next.eml").write_bytes(mta.message("next@a.test", vmta="news", job="autumn"))
        (explained,) = answer(mta, "explain", str(mta.path / "next.eml"))["domains"]
        assert explained["when"].startswith("when somebody resumes the job (job paused by operator ")
        assert answer(mta, "queue", "resume", "*/*") == []
        assert is_held(mta, "a.test/news", 1)
        if where == "stopped":
            mta.stop()
        planned = answer(mta, "queue", "resume", "--job", "autumn", "--dry-run")
        assert planned == [{"queue": "a.test/news", "ready": 1, "waiting": 0}]
        assert answer(mta, "queue", "resume", "--job", "autumn")[0]["done"] == "resumed"
        if where == "stopped":
            mta.start()
        mta.wait_for(lambda: mta.count("d") == 8)
        assert answer(mta, "queue", "resume", "--job", "autumn") == []
        assert mta.audit()["balanced"]


def test_a_job_that_is_paused_at_work_stops_over_kill_nine_and_restart(world: World) -> None:
    """What is being sent is finished, and no more of the job goes, in any VMTA, until it is resumed."""
    with system(world) as mta:
        for number in range(12):
            drop(mta, f"n{number}--slow-1s@one.test", vmta="news", job="autumn")
        mta.wait_for(lambda: mta.count("d") > 0)
        done = answer(mta, "queue", "pause", "--job", "autumn")
        assert {row["vmta"] for row in done} == {"default", "news", "other"}
        mta.wait_for(lambda: is_held(mta, "one.test/news", 12 - mta.count("d")))
        sent = mta.count("d")
        assert 0 < sent < 11
        mta.wait_for(lambda: len(mta.entries()) == 12 - sent)  # what has a row and no journal line yet would go twice
        mta.kill("news")
        # Dropped after the kill: what a kill meets between the receiver's 250 and its record may go twice, as promised.
        drop(mta, "between@one.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == sent + 1 and is_held(mta, "one.test/news", 12 - sent))
        mta.stop()
        assert is_held(mta, "one.test/news", 12 - sent)
        mta.start()
        drop(mta, "after@one.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == sent + 2 and is_held(mta, "one.test/news", 12 - sent))
        unsent = {f"n{number}--slow-1s@one.test" for number in range(12)} - {*addresses(world)}
        done = answer(mta, "queue", "delete", "--job", "autumn", "--rcpt", min(unsent))
        assert (done["messages"], done["skipped"]) == (1, [])
        assert answer(mta, "queue", "move", "--to", "other", "--job", "autumn")["messages"] == 11 - sent
        mta.wait_for(lambda: is_held(mta, "one.test/other", 11 - sent))
        answer(mta, "queue", "resume", "--job", "autumn")
        mta.wait_for(lambda: mta.count("d") == 13)
        assert len(addresses(world)) == len(set(addresses(world))) == 13
        assert mta.audit()["balanced"]


@everywhere
def test_a_job_pause_ends_by_itself_when_its_time_is_over(world: World, where: str) -> None:
    with system(world, where) as mta:
        bring(mta, where, "news", "other")
        begun = time.time()
        answer(mta, "queue", "pause", "--job", "autumn", "--for", "6s")
        drop(mta, "user@a.test", vmta="news", job="autumn")
        if where == "stopped":
            mta.start()
        if where == "asleep":
            mta.wait_for(lambda: is_held(mta, "a.test/news", 1) or mta.count("d") == 1)
            mta.wait_for(lambda: mta.vmta("news")["state"] == "asleep" or mta.count("d") == 1)
        mta.wait_for(lambda: mta.count("d") == 1)
        assert logged(mta.rows("d")[0]) >= int(begun + 6)


@pytest.mark.parametrize("where", ["running", "asleep"])
def test_held_mail_expires_when_its_time_is_over(world: World, where: str) -> None:
    with system(world, where) as mta:
        answer(mta, "queue", "pause", "--job", "autumn")
        begun = time.time()
        drop(mta, "user@short.test", vmta="news", job="autumn")
        if where == "asleep":
            mta.wait_for(lambda: is_held(mta, "short.test/news", 1) or mta.count("b") == 1)
            mta.wait_for(lambda: mta.vmta("news")["state"] == "asleep" or mta.count("b") == 1)
        mta.wait_for(lambda: mta.count("b") == 1)
        assert logged(mta.rows("b")[0]) >= int(begun + 4)
        assert "the job is paused" in mta.rows("b")[0]["dsnDiag"]
        assert not world.received()
        mta.wait_for(lambda: not mta.entries() and mta.audit()["balanced"])


def logged(row: dict[str, str]) -> float:
    return datetime.strptime(row["timeLogged"], "%Y-%m-%d %H:%M:%S%z").timestamp()
