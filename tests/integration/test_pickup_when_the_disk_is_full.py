"""Disk or inodes full: files stay in the folder, what is queued is delivered, intake goes on by itself afterwards."""

from __future__ import annotations

import csv
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.mta import Mta, World
from tests.support.spool_kit import fill, small_disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a small filesystem can only be mounted by root")


@contextmanager
def system(path: Path, options: str, min_free_space: str = '"1M"', more: str = "") -> Iterator[tuple[World, Mta]]:
    """A system whose spool is a small filesystem of its own."""
    with World(path) as world, world.mta(more, start=False) as mta:
        text = mta.config_file.read_text()
        mta.config_file.write_text(text.replace('min-free-space = "1M"', f"min-free-space = {min_free_space}"))
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mta.spool)]
        result = subprocess.run(mount, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            pytest.skip(f"nothing can be mounted here: {result.stderr.strip()}")
        try:
            mta.start()
            assert not mta.process_ended(), mta.log()
            yield world, mta
            mta.stop()
        finally:
            subprocess.run(["umount", "-l", str(mta.spool)], check=True)


def place(mta: Mta, name: str, data: bytes) -> None:
    """Drop without the harness's rename, which cannot cross filesystems."""
    folder = mta.spool / "pickup"
    (folder / f"{name}.new").write_bytes(data)
    (folder / f"{name}.new").rename(folder / f"{name}.eml")


def fill_bytes(mta: Mta) -> Callable[[], None]:
    """Take the last byte; returns what gives all back."""
    ballast = mta.spool / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536) == 65536:
                pass
        except OSError:
            pass
    return ballast.unlink


def fill_inodes(mta: Mta) -> Callable[[], None]:
    """Take the last inode; returns what gives all back."""
    folder = mta.spool / "ballast"
    folder.mkdir()
    names = []
    try:
        while True:
            name = folder / str(len(names))
            name.touch()
            names.append(name)
    except OSError:
        pass

    def give_back() -> None:
        for name in names:
            name.unlink()

    return give_back


def delivered(mta: Mta) -> Counter[str]:
    return Counter(row["rcpt"] for row in mta.rows("d"))


@pytest.mark.parametrize(
    ("fill", "options"),
    [(fill_bytes, "size=16M"), (fill_inodes, "size=64M,nr_inodes=3000")],
    ids=["bytes", "inodes"],
)
def test_files_stay_what_is_queued_is_delivered_and_intake_resumes(
    tmp_path: Path, fill: Callable[[Mta], Callable[[], None]], options: str
) -> None:
    with system(tmp_path, options) as (world, mta):
        for number in range(20):
            place(mta, f"q{number}", mta.message(f"twice-451-q{number}@one.test"))
        mta.wait_for(lambda: mta.count("t") >= 20)
        for number in range(20):
            (mta.spool / "pickup" / f"s{number}.new").write_bytes(mta.message(f"s{number}@two{number}.test"))
        give_back = fill(mta)
        for number in range(20):
            (mta.spool / "pickup" / f"s{number}.new").rename(mta.spool / "pickup" / f"s{number}.eml")
        mta.wait_for_log("intake stops, files stay in pickup/")
        assert mta.status()["pickup"]["disk_full"]
        intake = psutil.Process(mta.status()["pickup"]["pid"])
        began, used = time.monotonic(), sum(intake.cpu_times()[:2])
        mta.wait_for(lambda: len(delivered(mta)) == 20 and time.monotonic() - began > 1.0)
        assert sum(intake.cpu_times()[:2]) - used < 0.3 * (time.monotonic() - began), "it does not wait, it spins"
        assert len(list((mta.spool / "pickup").glob("s*.eml"))) == 20
        give_back()
        mta.wait_for(lambda: len(delivered(mta)) == 40)
        mta.wait_for_log("there is room again: intake goes on")
        assert set(delivered(mta).values()) == {1}
        assert len(world.received()) == 40
        mta.wait_for(lambda: not mta.entries() and mta.audit()["delivered"] == 40)
        assert mta.audit()["balanced"]
        status = mta.status()
        assert not status["pickup"]["disk_full"]
        assert status["pickup"]["restarts"] + sum(vmta["restarts"] for vmta in status["vmtas"]) == 0
        assert "Traceback" not in mta.log()


def test_a_disk_that_is_full_before_the_limit_says_so_stops_intake_too(tmp_path: Path) -> None:
    """Copies of large files fill it in the middle of a batch."""
    more = '[pickup]\ncopy = "always"\n'
    with system(tmp_path, "size=16M", "0", more) as (world, mta):
        body = "x" * 76 + "\n"
        for number in range(8):
            (mta.spool / "pickup" / f"l{number}.new").write_bytes(
                mta.message(f"l{number}@one.test", body=body * 15_000)
            )
        give_back = fill_bytes(mta)
        for number in range(8):
            (mta.spool / "pickup" / f"l{number}.new").rename(mta.spool / "pickup" / f"l{number}.eml")
        mta.wait_for_log("pickup: No space left on device; trying again")
        assert len(list((mta.spool / "pickup").glob("*.eml"))) == 8
        give_back()
        mta.wait_for(lambda: len(delivered(mta)) == 8)
        assert set(delivered(mta).values()) == {1}
        assert len(world.received()) == 8
        mta.wait_for(lambda: mta.audit()["delivered"] == 8)
        assert mta.audit()["balanced"]
        assert not [path for path in (mta.spool / "incoming").rglob("*") if path.is_file()]
        assert mta.status()["pickup"]["restarts"] == 0


def test_without_inodes_for_new_domains_nothing_is_lost_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    """Claiming needs no inode, a folder for a new domain does: the batch is stuck between the two."""
    with system(tmp_path, "size=64M,nr_inodes=2000") as (world, mta):
        mta.stop()
        text = mta.config_file.read_text().replace("[spool]\n", "[spool]\nmin-free-inodes = 0\n")
        mta.config_file.write_text(text)
        mta.start()
        for number in range(10):
            recipients = [f"i{number}@one.test", f"i{number}@new{number}.test"]
            (mta.spool / "pickup" / f"i{number}.new").write_bytes(mta.message(*recipients))
        give_back = fill_inodes(mta)
        for number in range(10):
            (mta.spool / "pickup" / f"i{number}.new").rename(mta.spool / "pickup" / f"i{number}.eml")
        mta.wait_for_log("No space left on device")
        give_back()
        mta.wait_for(lambda: len(delivered(mta)) == 20)
        assert set(delivered(mta).values()) == {1}
        assert sum(len(line["recipients"]) for line in world.received()) == 20
        mta.wait_for(lambda: mta.audit()["delivered"] == 20)
        assert mta.audit()["balanced"]
        assert mta.count("r") == 20
        assert mta.status()["pickup"]["restarts"] == 0
        assert "Traceback" not in mta.log()


def test_mail_stays_in_the_folder_while_its_rows_cannot_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "logs", "16m") as logs, World(tmp_path / "world") as world:
        more = f'[[acct-file]]\npath = "{logs}/acct.csv"\nrecords = ["r", "d"]\n'
        with world.mta(more) as mta:
            mta.drop("first@a.test")
            mta.wait_for(lambda: mta.count("d") == 1)
            filler = fill(logs)
            for number in range(12):
                mta.drop(*(f"{'x' * 40}{number}-{each}@a.test" for each in range(1000)))
            mta.wait_for_log("the accounting log cannot be written: intake stops, files stay in pickup/")
            late = mta.drop("late@a.test")
            assert late.exists()
            filler.unlink()
            mta.wait_for_log("there is room again: intake goes on")
            mta.wait_for(lambda: mta.count("d") == 12_002)
            mta.stop()
            assert mta.audit()["balanced"]
        with open(logs / "acct.csv", newline="", encoding="utf-8") as stream:
            counts = Counter(row["type"] for row in csv.DictReader(stream))
        assert counts == {"r": 12_002, "d": 12_002}
