"""A disk that fails in the middle of work: the filesystem becomes read-only, or a sync reports an error.

Nothing acknowledged is lost, nothing is removed that a failed sync was to make safe, files that cannot be taken stay
where they are, and what is wrong is said in sentences. When the disk is well again, or an operator has repaired it, the
work goes on. Needs root, for the mount.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from tests.support.bad_disk import BadDisk, place
from tests.support.crash import CrashMta, by_recipient, contradictions
from tests.support.mta import BASE, ROUTE, Mta, World


def ended(mta: Mta) -> set[str]:
    return {row["rcpt"] for row in mta.rows("d", "b")}


def received(world: World) -> set[str]:
    return {recipient for line in world.received() for recipient in line["recipients"]}


def test_a_spool_that_becomes_read_only_takes_nothing_loses_nothing_and_stops_cleanly(tmp_path: Path) -> None:
    pickup = tmp_path / "pickup"
    pickup.mkdir()
    with World(tmp_path) as world:
        mta = world.mta(f'[source.pickup]\npickup = "{pickup}"\n', start=False)
        with BadDisk(tmp_path, mta.spool) as disk, mta:
            mta.start()
            for number in range(10):
                place(mta, pickup, f"twice-451-once{number}@one.test")
                place(mta, pickup, f"slow{number}--slow-dot-900ms@two.test")
            mta.wait_for(lambda: mta.count("t") >= 10 and mta.count("r") == 20)
            os.sync()
            disk.make_read_only()
            late = [place(mta, pickup, f"late{number}@three.test") for number in range(10)]
            mta.wait_for_log("pickup: .*Read-only file system")
            mta.wait_for_log("deliver default: .*Read-only file system")
            assert "Read-only" not in mta.command("status").stderr
            assert mta.stop() == 0
            assert "Traceback" not in mta.log()
            assert "left alone" not in mta.log()
            assert all(path.exists() for path in late)
            accepted = {row["rcpt"] for row in mta.rows("r")}
            assert len(accepted) == 20
            disk.repair()
            mta.start()
            accepted |= {f"late{number}@three.test" for number in range(10)}
            mta.wait_for(lambda: ended(mta) == accepted and not mta.entries() and not any(pickup.iterdir()))
            assert received(world) == accepted
            assert not mta.rows("b")
            mta.wait_for(lambda: mta.audit()["balanced"])
            assert not list((mta.spool / "corrupt").iterdir())


def test_after_a_failed_sync_nothing_is_removed_until_the_journal_is_written_anew(tmp_path: Path) -> None:
    """The kernel reports a failed sync once: the next one would succeed, and prove nothing. (Here the failure is put
    into our own function: a device that fails takes the filesystem's own blocks with it.)"""
    with World(tmp_path) as world:
        route = ROUTE.format(host=world.host, port=world.port)
        mta = CrashMta(tmp_path / "mta", BASE.format(dns="", default_route=route, sleep_after="1m"))
        mta.mutations = ("fail-a-sync",)
        with mta:
            expected = {f"n{number}@one.test": "d" for number in range(50)}
            trigger = mta.path / "trigger.sync"
            trigger.touch()
            for recipient in expected:
                mta.drop(recipient)
            mta.wait_for(lambda: not trigger.exists())
            mta.wait_for_log("deliver default: the disk failed to make the spool durable")
            mta.wait_for(lambda: mta.count("d") >= 50 and not mta.left_over())
            assert not (mta.path / "trigger.again").exists()
            assert contradictions(mta, by_recipient(world.received()), expected) == []
            lines = (mta.spool / "journal" / "default.log").read_text()
            assert lines.count("D ") == 50


def test_after_a_failed_sync_files_are_written_anew_and_the_work_goes_on_by_itself(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        mta = world.mta(start=False)
        with BadDisk(tmp_path, mta.spool, journal=False) as disk, mta:
            mta.start()
            pickup = mta.spool / "pickup"
            place(mta, pickup, "first@one.test")
            mta.wait_for(lambda: mta.count("d") == 1 and not mta.entries())
            mta.command("queue", "pause", "one.test/default")
            os.sync()
            disk.fail_new_blocks()
            expected = {f"n{number}@one.test" for number in range(30)}
            assert mta.process is not None
            mta.process.send_signal(signal.SIGSTOP)  # nobody is started again before the disk is well
            for recipient in expected:
                place(mta, pickup, recipient, body="x" * 50_000)
            mta.wait_for_log("pickup: the disk failed to make the spool durable")
            assert mta.count("r") == 1
            disk.mend()
            mta.process.send_signal(signal.SIGCONT)
            mta.wait_for(lambda: len(mta.entries()) == 30 and mta.count("r") >= 31)
            kill_all(mta)
            disk.repair()
            mta.start()
            mta.command("queue", "resume", "one.test/default")
            mta.wait_for(lambda: ended(mta) >= expected and not mta.entries())
            assert received(world) == expected | {"first@one.test"}
            assert not list((mta.spool / "corrupt").iterdir())
            assert "Traceback" not in mta.log()
            mta.wait_for(lambda: mta.audit()["balanced"])


def kill_all(mta: Mta) -> None:
    """The power is gone: nobody writes another byte."""
    assert mta.process is not None
    family = [*psutil.Process(mta.process.pid).children(recursive=True), psutil.Process(mta.process.pid)]
    for one in family:
        one.kill()
    mta.process.wait()
    mta.process = None
    psutil.wait_procs(family, 10)
