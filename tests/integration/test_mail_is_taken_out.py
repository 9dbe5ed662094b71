"""An operator deletes, bounces and moves what waits: with the VMTA's process running, asleep, without the daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spoolmta import control
from tests.integration.scenario import drop, received_by, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.news]
smtp-source-host = ["127.0.0.21"]
[vmta.other]
smtp-source-host = ["127.0.0.22"]
[domain."late.test"]
smtp-hosts = ["[{host}]:{port}"]
retry-recipients-after = "1h"
"""

everywhere = pytest.mark.parametrize("where", ["running", "asleep", "stopped"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def system(world: World, where: str = "running") -> Mta:
    sleep_after = "1s" if where == "asleep" else "1m"
    return world.mta(CONFIG.format(host=world.host, port=world.port), sleep_after=sleep_after)


def bring(mta: Mta, where: str) -> None:
    """Have the VMTA of `news` running, asleep or stopped."""
    if where == "asleep":
        mta.wait_for(lambda: mta.vmta("news")["state"] == "asleep" and mta.vmta("other")["state"] == "asleep")
    if where == "stopped":
        mta.stop()


def do(mta: Mta, *arguments: str) -> Any:
    result = mta.command("queue", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@everywhere
def test_what_is_deleted_is_gone_and_told_and_nothing_else_is(world: World, where: str) -> None:
    with system(world, where) as mta:
        for number in range(5):
            drop(mta, f"once-451-{number}@late.test", vmta="news", job="wrong")
        drop(mta, "once-451@late.test", vmta="news", job="right")
        drop(mta, "once-451-other@late.test", vmta="other", job="wrong")
        mta.wait_for(lambda: mta.count("t") == 7)
        do(mta, "pause", "held.test/news")
        drop(mta, "user@held.test", vmta="news", job="wrong")
        mta.wait_for(lambda: len(mta.entries()) == 8)
        bring(mta, where)
        choice = ("--vmta", "news", "--job", "wrong")
        planned = do(mta, "delete", *choice, "--dry-run")
        assert (planned["messages"], planned["recipients"], len(planned["first"])) == (6, 6, 6)
        assert len(mta.entries()) == 8
        done = do(mta, "delete", *choice, "--reason", "sent by mistake")
        assert done == {"messages": 6, "recipients": 6, "skipped": []}
        assert len(mta.entries()) == 2
        rows = mta.rows("b")
        assert len(rows) == 6
        assert {row["dsnStatus"].split()[0] for row in rows} == {"5.7.0"}
        assert {row["jobId"] for row in rows} == {"wrong"}
        diagnostic = rows[0]["dsnDiag"]
        assert diagnostic.startswith("smtp;deleted by operator ")
        assert "spoolmta queue delete --vmta news --job wrong (sent by mistake)" in diagnostic
        mta.wait_for(lambda: (mta.audit()["deleted"], mta.audit()["queued"]) == (6, 2))
        assert mta.audit()["balanced"]
        assert do(mta, "delete", *choice) == {"messages": 0, "recipients": 0, "skipped": []}
        do(mta, "resume", "*/*")
        do(mta, "retry", "*/*")
        if where == "stopped":
            mta.start()
        mta.wait_for(lambda: mta.count("d") == 2)
        assert sorted(one["recipients"][0] for one in world.received()) == [
            "once-451-other@late.test",
            "once-451@late.test",
        ]


@everywhere
def test_one_recipient_of_several_is_deleted_and_stays_so_over_kill_nine(world: World, where: str) -> None:
    with system(world, where) as mta:
        drop(mta, "once-451-a@late.test", "once-451-b@late.test", "once-451-c@late.test", vmta="news")
        mta.wait_for(lambda: mta.count("t") == 3)
        bring(mta, where)
        choice = ("--rcpt", "ONCE-451-b@late.test")
        assert do(mta, "delete", *choice, "--dry-run")["recipients"] == 1
        assert do(mta, "delete", *choice)["recipients"] == 1
        assert do(mta, "delete", *choice, "--dry-run")["recipients"] == 0
        if where == "running":
            mta.kill("news")
            mta.wait_for(lambda: mta.vmta("news")["restarts"] == 1)
        if where == "stopped":
            mta.start()
        mta.wait_for(lambda: len(do(mta, "retry", "late.test/news")) == 1 or mta.count("d") > 0)
        mta.wait_for(lambda: mta.count("d") == 2)
        assert sorted(address for one in world.received() for address in one["recipients"]) == [
            "once-451-a@late.test",
            "once-451-c@late.test",
        ]
        mta.wait_for(lambda: not mta.entries())
        mta.wait_for(lambda: (mta.audit()["delivered"], mta.audit()["deleted"]) == (2, 1))
        assert mta.audit()["balanced"]


def test_what_is_being_sent_is_left_alone_and_told(world: World) -> None:
    with system(world) as mta:
        drop(mta, "slow-8s@late.test", vmta="news")
        mta.wait_for(lambda: mta.vmta("news")["connections"] == 1)
        mta.wait_for(lambda: [pair["connections"] for pair in world.stats()["pairs"][:1]] == [1])
        done = do(mta, "delete", "--vmta", "news")
        assert (done["messages"], len(done["skipped"])) == (0, 1)
        moved = mta.command("queue", "move", "--to", "other", "--vmta", "news")
        assert "1 skipped: being sent, or gone meanwhile" in moved.stdout
        mta.wait_for(lambda: mta.count("d") == 1)
        assert mta.audit()["balanced"]


@everywhere
def test_what_is_bounced_is_a_bounce_with_the_reason_given(world: World, where: str) -> None:
    with system(world, where) as mta:
        drop(mta, "451@late.test", vmta="news", sender="who@from.test")
        mta.wait_for(lambda: mta.count("t") == 1)
        bring(mta, where)
        done = do(mta, "bounce", "--orig", "who@from.test", "--reason", "the list was wrong")
        assert done["messages"] == 1
        (row,) = mta.rows("b")
        assert row["dsnStatus"].split()[0] == "5.0.0"
        assert row["dsnDiag"] == "smtp;the list was wrong"
        assert not mta.entries()
        mta.wait_for(lambda: mta.audit()["bounced"] == 1)
        assert mta.audit()["balanced"]


@everywhere
def test_what_is_moved_goes_out_from_the_other_vmta_to_whom_it_has_not_gone_yet(world: World, where: str) -> None:
    with system(world, where) as mta:
        drop(mta, "good@late.test", "once-451@late.test", "elsewhere@free.test", vmta="news")
        drop(mta, "once-451-x@late.test", vmta="news")
        drop(mta, "user@free.test", vmta="other")
        mta.wait_for(lambda: mta.count("t") == 2 and mta.count("d") == 3)
        bring(mta, where)
        choice = ("--to", "other", "--domain", "late.test")
        planned = do(mta, "move", *choice, "--dry-run")
        assert (planned["messages"], planned["recipients"]) == (2, 2)
        assert do(mta, "move", *choice) == {"messages": 2, "recipients": 2, "skipped": []}
        assert do(mta, "move", *choice, "--dry-run")["messages"] == 0
        if where == "stopped":
            mta.start()
        # One may have come, be hastened and be gone before the other comes.
        retry = ("retry", "late.test/other")
        mta.wait_for(lambda: sum(row["messages"] for row in do(mta, *retry)) == 2 or mta.count("d") > 3)
        mta.wait_for(lambda: mta.count("d") == 5)
        (row,) = to(mta, "once-451@late.test", "d")
        assert (row["vmta"], row["dlvSourceIp"], row["attempts"]) == ("other", "127.0.0.22", "2")
        assert [one["source"] for one in received_by(world, "late.test")] == ["127.0.0.21", "127.0.0.22", "127.0.0.22"]
        mta.wait_for(lambda: not mta.entries())
        mta.wait_for(lambda: mta.audit()["delivered"] == 5)
        assert mta.audit()["balanced"]


def test_a_delete_that_is_killed_in_the_middle_settles_everything_once(world: World) -> None:
    with system(world) as mta:
        do(mta, "pause", "*/news")
        for number in range(60):
            drop(mta, *(f"user{number}.{i}@held{i}.test" for i in range(50)), vmta="news")
        mta.wait_for(lambda: len(mta.entries()) == 3000)
        command = [sys.executable, "-m", "spoolmta", "--config", str(mta.config_file)]
        deleting = subprocess.Popen([*command, "queue", "delete", "--vmta", "news"], stdout=subprocess.DEVNULL)
        mta.wait_for(lambda: mta.count("b") > 0)
        mta.kill("news")
        assert deleting.wait(60) == 0
        mta.wait_for(lambda: not mta.entries())
        mta.wait_for(lambda: mta.audit()["balanced"])
        mta.wait_for(lambda: mta.audit()["deleted"] == 3000)
        assert {row["rcpt"] for row in mta.rows("b")} == {
            f"user{n}.{i}@held{i}.test" for n in range(60) for i in range(50)
        }


def test_a_move_that_is_killed_in_the_middle_sends_everything_once(world: World) -> None:
    with system(world) as mta:
        do(mta, "pause", "*/*")
        for number in range(60):
            drop(mta, *(f"user{number}.{i}@held{i}.test" for i in range(50)), vmta="news")
        mta.wait_for(lambda: len(mta.entries()) == 3000)
        command = [sys.executable, "-m", "spoolmta", "--config", str(mta.config_file)]
        moving = subprocess.Popen(
            [*command, "queue", "move", "--to", "other", "--vmta", "news"], stdout=subprocess.DEVNULL
        )
        mta.wait_for(lambda: (mta.spool / "queue" / "other" / "held0.test").exists())
        mta.kill("news")
        assert moving.wait(60) == 0
        do(mta, "move", "--to", "other", "--vmta", "news")
        do(mta, "resume", "*/*")
        mta.wait_for(lambda: mta.count("d") >= 3000 and not mta.entries(), 60)
        received = [address for one in world.received() for address in one["recipients"]]
        assert len(received) == len(set(received)) == 3000
        assert {row["vmta"] for row in mta.rows("d")} == {"other"}
        mta.wait_for(lambda: mta.audit()["delivered"] == 3000)
        assert mta.audit()["balanced"]


def test_garbage_takes_nothing_out(world: World) -> None:
    with system(world) as mta:
        drop(mta, "once-451@late.test", vmta="news")
        mta.wait_for(lambda: mta.count("t") == 1)
        (path,) = mta.entries()
        socket = str(mta.spool / "run" / "news.control")
        for entries in ([["../other", path.name]], [["late.test", "../../x"]], [["late.test", "x:1,a,b"]], [["", ""]]):
            question = {"ask": "remove", "kind": "delete", "text": "x", "entries": entries}
            assert control.ask(socket, question)["done"]["messages"] == 0
        for wrong in (
            {"kind": "explode", "text": "x", "entries": []},
            {"kind": "delete", "text": 7, "entries": []},
            {"kind": "delete", "text": "x", "entries": [[1]]},
        ):
            assert "error" in control.ask(socket, {"ask": "remove", **wrong})
        lines = [["x", "a@b", "D", 1], ["", "a@b\nT D=5", "D", 1], [path.name.partition(",")[0], "a@b\nT D=5", "D", 1]]
        before = (mta.spool / "journal" / "news.log").read_bytes()
        assert "error" not in control.ask(socket, {"ask": "learn", "lines": lines})
        assert (mta.spool / "journal" / "news.log").read_bytes() == before
        assert "error" in control.ask(socket, {"ask": "move", "to": "../x", "entries": []})
        assert mta.entries() == [path]
        assert mta.vmta("news")["restarts"] == 0


def test_a_filter_is_needed_and_the_other_vmta_must_exist(world: World) -> None:
    with system(world) as mta:
        for command in ("delete", "bounce"):
            result = mta.command("queue", command)
            assert result.returncode == 64
            assert "needs at least one of" in result.stderr
        result = mta.command("queue", "move", "--to", "nobody", "--vmta", "news")
        assert (result.returncode, result.stderr) == (65, "spoolmta: there is no VMTA called nobody\n")
