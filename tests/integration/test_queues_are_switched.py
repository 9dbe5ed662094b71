"""An operator pauses queues, changes their mode, has them tried again, takes source addresses out: with the VMTA's
process running, while it sleeps, and while nothing runs. What counts is what the receiver sees."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spoolmta import control, disk, standin
from spoolmta.clearance import Chosen
from tests.integration.scenario import drop, free_port, from_source, received_by, to
from tests.support.mta import Mta, World, wait_for

CONFIG = """
[vmta.news]
smtp-source-host = ["127.0.0.21", "127.0.0.22"]
[vmta.other]
smtp-source-host = ["127.0.0.23"]
[domain."*"]
max-smtp-out = 5
backoff-max-smtp-out = 1
max-msg-per-connection = 1
retry-recipients-after = "1h"
"""

ZONES: dict[str, Any] = {
    "one.test": {"MX": ["10 mx1.big.test"]},
    "two.test": {"MX": ["10 mx1.big.test"]},
    "mx1.big.test": {"A": ["127.0.0.2"]},
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def config(world: World) -> str:
    return CONFIG.replace(
        "max-smtp-out = 5", f'max-smtp-out = 5\nsmtp-hosts = ["[{world.host}]:{world.port}"]\nretry-after = "1s"'
    )


def system(world: World, sleep_after: str = "1m", *, start: bool = True) -> Mta:
    text = world.mta(config(world), route=False, sleep_after=sleep_after, start=False)
    text.config_file.write_text(text.config_file.read_text().replace('[dns]\nnameservers = [""]\n', ""))
    return Mta(text.path, text.config_file.read_text(), start=start)


def do(mta: Mta, *arguments: str) -> list[dict[str, Any]]:
    result = mta.command(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    answer: list[dict[str, Any]] = json.loads(result.stdout)
    return answer


def shown(mta: Mta, queue: str) -> dict[str, Any]:
    result = mta.command("queue", "show", queue, "--json")
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)["queue"]
    return answer


def is_asleep(mta: Mta, vmta: str) -> bool:
    return bool(mta.vmta(vmta)["state"] == "asleep")


def held(mta: Mta, queue: str, messages: int) -> bool:
    """Whether so many messages of a queue are there, and all of them ready."""
    result = mta.command("queue", "show", queue, "--json")
    return result.returncode == 0 and json.loads(result.stdout)["queue"]["ready"] == messages


def test_a_paused_queue_sends_nothing_and_goes_on_after_resume(world: World) -> None:
    with system(world) as mta:
        drop(mta, "first@held.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 1)
        (done,) = do(mta, "queue", "pause", "held.test/news", "--reason", "complaints")
        assert done == {"queue": "held.test/news", "done": "paused"}
        drop(mta, "second@held.test", vmta="news")
        drop(mta, "second@held.test", vmta="other")
        drop(mta, "second@free.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 3 and held(mta, "held.test/news", 1))
        assert len(received_by(world, "held.test")) == 2
        known = shown(mta, "held.test/news")
        assert known["paused"] is True
        assert known["paused_by"].startswith("operator ")
        assert known["paused_by"].endswith(": complaints")
        assert known["held_by"] == "pause"
        assert known["process"] is True
        assert [event["text"].partition(":")[0] for event in known["events"]] == ["paused"]
        assert do(mta, "queue", "resume", "held.test/*") == [{"queue": "held.test/news", "done": "resumed"}]
        mta.wait_for(lambda: mta.count("d") == 4)
        assert do(mta, "queue", "resume", "held.test/*") == []
        assert mta.command("queue", "show", "held.test/news").returncode in (0, 65)


def test_a_pause_outlives_kill_nine_and_a_restart(world: World) -> None:
    with system(world) as mta:
        drop(mta, "slow-5s@held.test", vmta="news")
        mta.wait_for(lambda: mta.vmta("news")["connections"] == 1)
        do(mta, "queue", "pause", "held.test/news")
        mta.kill("news")
        mta.wait_for(lambda: mta.vmta("news")["restarts"] == 1 and held(mta, "held.test/news", 1))
        assert shown(mta, "held.test/news")["paused"] is True
        mta.stop()
        assert shown(mta, "held.test/news")["paused"] is True
        mta.start()
        drop(mta, "user@free.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 1)
        assert received_by(world, "held.test") == []
        do(mta, "queue", "resume", "held.test/news")
        mta.kill("news")
        mta.wait_for(lambda: mta.count("d") == 2)
        assert mta.audit()["balanced"]


def test_a_sleeping_vmta_is_paused_and_resumed(world: World) -> None:
    with system(world, sleep_after="1s") as mta:
        drop(mta, "user@free.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 1 and is_asleep(mta, "news"))
        do(mta, "queue", "pause", "held.test/news")
        assert is_asleep(mta, "news")
        drop(mta, "user@held.test", vmta="news")
        mta.wait_for(lambda: held(mta, "held.test/news", 1) and is_asleep(mta, "news"))
        assert shown(mta, "held.test/news")["process"] is False
        assert received_by(world, "held.test") == []
        do(mta, "queue", "resume", "held.test/news")
        mta.wait_for(lambda: mta.count("d") == 2)


def test_what_is_switched_while_nothing_runs_holds_from_the_start(world: World) -> None:
    with system(world, start=False) as mta:
        mta.start()
        mta.stop()
        do(mta, "queue", "pause", "held.test/news")
        drop(mta, "user@held.test", vmta="news")
        drop(mta, "user@free.test", vmta="news")
        mta.start()
        mta.wait_for(lambda: mta.count("d") == 1 and held(mta, "held.test/news", 1))
        mta.stop()
        assert do(mta, "queue", "resume", "*/news") == [{"queue": "held.test/news", "done": "resumed"}]
        mta.start()
        mta.wait_for(lambda: mta.count("d") == 2)


@pytest.mark.parametrize("where", ["running", "asleep", "stopped"])
def test_a_pause_ends_by_itself_when_its_time_is_over(world: World, where: str) -> None:
    with system(world, sleep_after="1m" if where == "running" else "1s") as mta:
        if where == "stopped":
            mta.stop()
        before = time.time()
        do(mta, "queue", "pause", "held.test/news", "--for", "3s")
        if where == "stopped":
            mta.start()
        drop(mta, "user@held.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 1)
        logged = datetime.strptime(to(mta, "user@held.test", "d")[0]["timeLogged"], "%Y-%m-%d %H:%M:%S%z")
        assert logged.timestamp() >= int(before + 3.0)  # the log tells whole seconds


def test_a_wildcard_stands_for_queues_that_come_later(world: World) -> None:
    with system(world) as mta:
        do(mta, "queue", "pause", "*/news")
        do(mta, "queue", "resume", "free.test/news")
        drop(mta, "user@held.test", vmta="news")
        drop(mta, "user@free.test", vmta="news")
        drop(mta, "user@held.test", vmta="other")
        mta.wait_for(lambda: mta.count("d") == 2 and held(mta, "held.test/news", 1))
        mta.kill("news")
        drop(mta, "user@later.test", vmta="news")
        mta.wait_for(lambda: held(mta, "later.test/news", 1))
        assert received_by(world, "later.test") == []
        changed = do(mta, "queue", "resume", "*/*")
        assert sorted(row["queue"] for row in changed) == ["held.test/news", "later.test/news"]
        drop(mta, "user@last.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 5)


def test_mode_backoff_obeys_the_limits_of_back_off(world: World) -> None:
    with system(world) as mta:
        (done,) = do(mta, "queue", "mode", "backoff", "slow.test/news")
        assert done["done"] == "backoff"
        for number in range(4):
            drop(mta, f"n{number}--slow-300ms@slow.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 1)
        known = shown(mta, "slow.test/news")
        assert known["mode"] == "backoff"
        assert known["mode_changed_by"].startswith("operator ")
        limit = next(one for one in known["limits"] if one["directive"] == "max-smtp-out")
        assert limit["value"] == "1"
        assert limit["changed_by"] == "mode backoff"
        assert limit["where"].endswith(f":{line_of(mta, 'backoff-max-smtp-out')}")
        mta.wait_for(lambda: mta.count("d") == 4)
        assert max(from_source(world, "127.0.0.21")["peak"], from_source(world, "127.0.0.22")["peak"]) == 1
        (done,) = do(mta, "queue", "mode", "normal", "slow.test/news")
        assert done["done"] == "normal"
        for number in range(12):
            drop(mta, f"n{number}--slow-1s@slow.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 16)
        assert from_source(world, "127.0.0.21")["peak"] > 1


def line_of(mta: Mta, key: str) -> int:
    lines = mta.config_file.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(key))


@pytest.mark.parametrize("where", ["running", "asleep", "stopped"])
def test_retry_tries_now_what_waits_for_its_time(world: World, where: str) -> None:
    with system(world, sleep_after="1m" if where == "running" else "1s") as mta:
        drop(mta, "once-451@late.test", vmta="news")
        mta.wait_for(lambda: mta.count("t") == 1)
        if where == "asleep":
            mta.wait_for(lambda: is_asleep(mta, "news"))
        if where == "stopped":
            mta.stop()
        known = shown(mta, "late.test/news")
        assert (known["ready"], known["waiting"]) == (0, 1)
        assert known["next_retry"] > 0
        (done,) = do(mta, "queue", "retry", "late.test/*")
        assert done == {"queue": "late.test/news", "done": "retried", "messages": 1}
        if where == "stopped":
            mta.start()
        mta.wait_for(lambda: mta.count("d") == 1)
        assert to(mta, "once-451@late.test", "d")[0]["attempts"] == "2"


@pytest.mark.parametrize("where", ["running", "stopped"])
def test_a_disabled_source_address_is_not_seen_until_it_is_enabled(world: World, where: str) -> None:
    with system(world) as mta:
        if where == "stopped":
            mta.stop()
        assert mta.command("source", "disable", "127.0.0.21", "--reason", "listed").returncode == 0
        if where == "stopped":
            mta.start()
        for number in range(6):
            drop(mta, f"user{number}@any{number}.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 6)
        assert from_source(world, "127.0.0.21")["connections"] == 0
        listed = {row["address"]: row for row in do(mta, "source", "list")}
        assert listed["127.0.0.21"]["disabled_for"] == "*/news"
        assert listed["127.0.0.21"]["reason"].endswith(": listed")
        assert listed["127.0.0.22"]["disabled_for"] == ""
        assert mta.command("source", "disable", "127.0.0.22", "held.test/news").returncode == 0
        drop(mta, "user@held.test", vmta="news")
        mta.wait_for(lambda: held(mta, "held.test/news", 1))
        mta.wait_for(lambda: "is disabled" in shown(mta, "held.test/news")["held_by"])
        mta.kill("news")
        assert mta.command("source", "enable", "127.0.0.21").returncode == 0
        mta.wait_for(lambda: mta.count("d") == 7)
        assert from_source(world, "127.0.0.21")["connections"] == 1
        nobody = mta.command("source", "disable", "127.0.0.99")
        assert (nobody.returncode, nobody.stderr) == (65, "spoolmta: no VMTA has the source address 127.0.0.99\n")


def test_a_domain_without_a_state_of_its_own_is_told_where_it_is(tmp_path: Path) -> None:
    port = free_port("127.0.0.2")
    with World(tmp_path, [f"127.0.0.2:{port}"], ZONES) as world:
        more = f'[vmta.news]\n[domain."*"]\ndefault-smtp-port = {port}\nretry-recipients-after = "1h"\n'
        with world.mta(more, route=False) as mta:
            drop(mta, "451@one.test", vmta="news")
            drop(mta, "451@two.test", vmta="news")
            mta.wait_for(lambda: mta.count("t") == 2)
            for _ in ("running", "stopped"):
                wrong = mta.command("queue", "pause", "one.test/news")
                assert wrong.returncode == 65
                assert "is in the queue mx1.big.test.rollup/news" in wrong.stderr
                known = shown(mta, "one.test/news")
                assert known["queue"] == "mx1.big.test.rollup/news"
                assert known["domains"] == ["one.test", "two.test"]
                mta.stop()
            assert do(mta, "queue", "retry", "*/*")[0]["messages"] == 2
            do(mta, "queue", "pause", "mx1.big.test.rollup/news")
            mta.start()
            mta.wait_for(lambda: held(mta, "mx1.big.test.rollup/news", 2))
            assert mta.count("t") == 2
            do(mta, "queue", "resume", "mx1.big.test.rollup/news")
            mta.wait_for(lambda: mta.count("t") == 4)


def test_garbage_on_the_control_socket_never_hurts(world: World) -> None:
    with system(world) as mta:
        drop(mta, "slow-5s@held.test", vmta="news")
        mta.wait_for(lambda: mta.vmta("news")["connections"] == 1)
        path = str(mta.spool / "run" / "news.control")
        for garbage in (b"\n", b"{}\n", b"[]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"ask":"switch"}\n'):
            assert b"error" in say(path, garbage)
        for question in (
            {"ask": "switch", "site": "*", "switch": {"do": "explode", "reason": ""}},
            {"ask": "switch", "site": 7, "switch": {"do": "pause", "reason": "x"}},
            {"ask": "retry", "site": None},
            {"ask": ["sites"]},
        ):
            assert "error" in control.ask(path, question)
        assert say(path, b"{" * (5 << 20)) == b""
        silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for client in silent:
            client.connect(path)
        do(mta, "queue", "pause", "other.test/news")
        for client in silent:
            client.close()
        assert mta.vmta("news")["restarts"] == 0
        assert os.stat(path).st_mode & 0o077 == 0


def say(path: str, data: bytes) -> bytes:
    """What a client hears that sends this."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        try:
            client.sendall(data)
            return client.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            return b""


def test_commands_given_while_a_process_comes_and_goes_are_all_carried_out(world: World) -> None:
    """The process sleeps after a moment and is woken again and again: whoever has the queue does what is asked."""
    with system(world, sleep_after="0s") as mta:
        for round_ in range(6):
            command = [*("queue", "pause" if round_ % 2 == 0 else "resume"), "held.test/news"]
            running = subprocess.Popen(
                [sys.executable, "-m", "spoolmta", "--config", str(mta.config_file), *command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            drop(mta, f"user{round_}@free.test", vmta="news")
            assert running.communicate(timeout=60)[1] == ""
            wait_for(lambda round_=round_: mta.count("d") == round_ + 1, mta.log)  # type: ignore[misc]
        do(mta, "queue", "pause", "held.test/news")
        drop(mta, "user@held.test", vmta="news")
        mta.wait_for(lambda: held(mta, "held.test/news", 1))
        assert received_by(world, "held.test") == []


def test_a_queue_that_is_no_queue_is_one_sentence(world: World) -> None:
    with system(world) as mta:
        for name, words in (("example.test", "expected a queue"), ("example.test/nobody", "no VMTA called nobody")):
            result = mta.command("queue", "pause", name)
            assert result.returncode in (64, 65)
            assert words in result.stderr
            assert len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_root_switches_belongs_to_the_user_of_the_system() -> None:
    nobody = pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="spoolmta-"))
    try:
        folder.chmod(0o755)
        with World(folder) as world:
            mta = system(world, start=False)
            mta.config_file.write_text(f'user = "nobody"\n{mta.config_file.read_text()}')
            os.chown(mta.spool, nobody.pw_uid, nobody.pw_gid)
            with mta:
                mta.start()
                drop(mta, "once-451@late.test", "451@late.test", vmta="news")
                mta.wait_for(lambda: mta.count("t") == 2)
                do(mta, "queue", "pause", "running.test/news")
                mta.stop()
                (mta.spool / "state" / "news").unlink()
                do(mta, "queue", "pause", "stopped.test/news")
                assert mta.command("queue", "delete", "--rcpt", "451@late.test").returncode == 0
                assert mta.command("queue", "move", "--to", "other", "--vmta", "news").returncode == 0
                owners = {path.stat().st_uid for path in mta.spool.rglob("*")}
                assert owners == {nobody.pw_uid}
                mta.start()
                do(mta, "queue", "retry", "*/other")
                mta.wait_for(lambda: mta.count("d") == 1)
                assert shown(mta, "stopped.test/news")["paused"] is True
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("event_loop", ["uvloop", "asyncio"])
def test_a_spool_with_a_long_path_has_its_sockets_too(tmp_path: Path, event_loop: str) -> None:
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    with World(folder) as world:
        mta = system(world, start=False)
        mta.config_file.write_text(f'event-loop = "{event_loop}"\n{mta.config_file.read_text()}')
        with mta:
            mta.start()
            drop(mta, "once-451@late.test", vmta="news")
            mta.wait_for(lambda: mta.count("t") == 1)
            assert shown(mta, "late.test/news")["process"] is True
            assert do(mta, "queue", "retry", "late.test/news")[0]["messages"] == 1
            mta.wait_for(lambda: mta.count("d") == 1)


def test_a_process_waits_for_a_command_that_has_its_queue_and_a_command_for_both(world: World) -> None:
    with system(world) as mta:
        (mta.spool / "queue" / "news").mkdir(exist_ok=True)
        lock = disk.lock_folder(str(mta.spool / "queue" / "news"))
        assert lock is not None
        drop(mta, "user@held.test", vmta="news")
        drop(mta, "user@free.test", vmta="other")
        mta.wait_for(lambda: mta.count("d") == 1 and mta.vmta("news")["state"] == "running")
        command = [sys.executable, "-m", "spoolmta", "--config", str(mta.config_file)]
        with subprocess.Popen([*command, "queue", "pause", "held.test/news"]) as pausing:
            drop(mta, "again@free.test", vmta="other")
            mta.wait_for(lambda: mta.count("d") == 2)
            assert pausing.poll() is None
            os.close(lock)
            assert pausing.wait(60) == 0
        assert mta.vmta("news")["restarts"] == 0
        assert shown(mta, "held.test/news")["paused"] is True


def test_what_is_taken_out_at_once_is_bounded_in_number_and_bytes() -> None:
    small = [Chosen("a.test", f"1700000000.M000000P1Q{n}.node,S=10,C=00000000,J=0") for n in range(4500)]
    large = [Chosen("a.test", f"1700000000.M000000P1Q{n}.node,S=60000000,C=00000000,J=0") for n in range(5)]
    assert [len(batch) for batch in standin.batches(small)] == [2000, 2000, 500]
    assert [len(batch) for batch in standin.batches(large)] == [2, 2, 1]
    assert [one for batch in standin.batches(small + large) for one in batch] == small + large
    assert standin.batches([]) == []
