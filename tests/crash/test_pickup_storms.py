"""Storms of files: dropped in every way at once, faster than they are taken, with the doorbell overflown and the
folder removed under the process. Every file is taken exactly once, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mta import Mta, World
from tests.support.torture import tell

Drop = Callable[[Path, Path, bytes], None]


def by_rename(aside: Path, target: Path, data: bytes) -> None:
    aside.write_bytes(data)
    aside.rename(target)


def by_link(aside: Path, target: Path, data: bytes) -> None:
    aside.write_bytes(data)
    os.link(aside, target)
    aside.unlink()


def in_place(_: Path, target: Path, data: bytes) -> None:
    target.write_bytes(data)


def by_nameless_file(aside: Path, target: Path, data: bytes) -> None:
    descriptor = os.open(aside.parent, os.O_TMPFILE | os.O_WRONLY)
    try:
        os.write(descriptor, data)
        os.link(f"/proc/self/fd/{descriptor}", target, src_dir_fd=descriptor)  # linkat, which follows
    finally:
        os.close(descriptor)


WAYS: tuple[Drop, ...] = (by_rename, by_link, in_place, by_nameless_file)


def storm(mta: Mta, numbers: range) -> None:
    for number in numbers:
        aside, target = mta.path / "drop" / f"s{number}", mta.spool / "pickup" / f"s{number}.eml"
        WAYS[number % 4](aside, target, mta.message(f"s{number}@d{number % 50}.test"))


def assert_each_taken_once(mta: Mta, count: int) -> None:
    mta.wait_for(lambda: mta.status()["pickup"]["messages"] >= count + 1, 240)
    mta.wait_for(lambda: not any((mta.spool / "pickup").iterdir()))
    taken = Counter(row["rcpt"] for row in mta.rows("r"))
    assert len(taken) == count + 1
    assert set(taken.values()) == {1}
    mta.wait_for(lambda: mta.audit()["accepted"] == count + 1)  # what is young is not looked at while it runs
    assert mta.audit()["balanced"]
    status = mta.status()["pickup"]
    assert (status["restarts"], status["refused"], status["left_alone"]) == (0, 0, 0)
    assert not list((mta.spool / "bad").iterdir())
    assert not [path for path in (mta.spool / "incoming").rglob("*") if path.is_file()]
    assert "Traceback" not in mta.log()


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.torture)])
def test_every_file_of_a_storm_is_taken_exactly_once(tmp_path: Path, count: int) -> None:
    """The mail is held, so that taking it is all there is to do. A process that is stopped in the middle misses more
    events than the kernel keeps for it."""
    with World(tmp_path) as world, world.mta() as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        mta.command("queue", "pause", "*/default")
        intake = mta.status()["pickup"]["pid"]
        began = time.monotonic()
        storm(mta, range(count // 10))
        os.kill(intake, signal.SIGSTOP)
        storm(mta, range(count // 10, count))
        dropped = time.monotonic() - began
        os.kill(intake, signal.SIGCONT)
        assert_each_taken_once(mta, count)
        taken = time.monotonic() - began - dropped
        tell(f"a storm of {count} files", "each taken once", f"dropped in {dropped:.1f} s, taken {taken:.1f} s later")


def test_a_folder_that_is_removed_and_made_anew_in_a_storm_loses_only_what_was_removed(tmp_path: Path) -> None:
    """Moved away and put back, too: what is in the folder that has the name is taken."""
    with World(tmp_path) as world, world.mta() as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        mta.command("queue", "pause", "*/default")
        pickup, aside = mta.spool / "pickup", mta.spool / "aside"
        dropper = threading.Thread(target=_storm_whatever_happens, args=(mta, range(3000)))
        dropper.start()
        for _ in range(5):
            time.sleep(0.1)
            try:
                pickup.rename(aside)
            except FileNotFoundError:
                continue
            time.sleep(0.05)
            for path in list(aside.iterdir()):
                pickup.mkdir(exist_ok=True)
                path.rename(pickup / path.name)
            aside.rmdir()
        dropper.join()
        pickup.mkdir(exist_ok=True)  # the last time there may have been nothing to put back
        assert_each_taken_once(mta, 3000)


def _storm_whatever_happens(mta: Mta, numbers: range) -> None:
    """As a dropper that tries again when the folder is not there."""
    for number in numbers:
        for _ in range(1000):
            try:
                storm(mta, range(number, number + 1))
            except FileNotFoundError:
                time.sleep(0.01)
            else:
                break
