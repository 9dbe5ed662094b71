"""One limit and many processes: real ones, which open, close and die."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spoolmta.common import Common
from tests.support.mta import ROOT

PROGRAM = """
import random, sys, time
sys.path.insert(0, sys.argv[1])
from spoolmta.common import Common
from spoolmta.model import UNLIMITED, Rate

path, kind, limit, until, seed = sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
chance = random.Random(seed)
common = Common(path, "max-smtp-out")
if kind == "rate":
    common.set_limits(0, 0, Rate(limit, 1.0))
    while time.monotonic() < until:
        count = chance.choice((1, 1, 3))
        before = time.monotonic()
        pause, _ = common.take(count, 0)
        if pause:
            time.sleep(max(pause, common.pace() / 4 * (0.5 + chance.random())))
        else:
            print(before, time.monotonic(), count, flush=True)
elif kind == "hold":
    common.set_limits(0, limit)
    while common.open():
        print("open", flush=True)
    print("full", flush=True)
    if until:
        time.sleep(until)
else:
    common.set_limits(0, limit)
    while time.monotonic() < until:
        if chance.random() < 0.5 and common.own:
            print(time.monotonic(), -1, flush=True)
            common.close_one()
        elif common.open():
            print(time.monotonic(), 1, flush=True)
        time.sleep(chance.random() * 0.004)
    while common.own:
        print(time.monotonic(), -1, flush=True)
        common.close_one()
"""


def start(path: Path, kind: str, limit: int, until: float, seed: int = 0) -> subprocess.Popen[str]:
    arguments = [str(ROOT), str(path), kind, str(limit), str(until), str(seed)]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[str]:
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return text.splitlines()


def test_many_processes_never_have_more_connections_than_the_limit(tmp_path: Path) -> None:
    until = time.monotonic() + 2.5
    processes = [start(tmp_path / "limit", "churn", 5, until, seed) for seed in range(6)]
    every = [[(float(time), int(change)) for time, change in map(str.split, lines(p))] for p in processes]
    assert all(len(one) > 10 for one in every), "everybody got some"
    total = peak = 0
    for _, change in sorted(event for one in every for event in one):
        total += change
        peak = max(peak, total)
    assert (peak, total) == (5, 0)


def test_what_a_killed_process_had_is_free_again(tmp_path: Path) -> None:
    with start(tmp_path / "limit", "hold", 3, 60.0) as first:
        assert first.stdout is not None
        assert [first.stdout.readline().strip() for _ in range(4)] == ["open", "open", "open", "full"]
        assert lines(start(tmp_path / "limit", "hold", 3, 0.0)) == ["full"]
        first.kill()
    assert lines(start(tmp_path / "limit", "hold", 3, 0.0)) == ["open", "open", "open", "full"]


def test_a_rate_holds_over_all_processes_and_is_used(tmp_path: Path) -> None:
    limit, seconds = 40, 4.0
    begun = time.monotonic() + 0.5
    processes = [start(tmp_path / "limit", "rate", limit, begun + seconds, seed) for seed in range(5)]
    taken = sorted(tuple(map(float, line.split())) for process in processes for line in lines(process))
    for _, after, _ in taken:
        # Each was counted at some moment between its two times: these were certainly within one second.
        within = [count for before, end, count in taken if before > after and end < after + 1.0]
        assert sum(within) <= limit
    whole = sum(count for before, _, count in taken if begun + 1.0 <= before < begun + seconds)
    assert whole >= 0.9 * limit * (seconds - 1.0), whole


def test_who_has_less_than_his_part_gets_it_from_who_has_more(tmp_path: Path) -> None:
    """Here the one who has more gives back as a session does, at its end; nobody else takes what is free then."""
    first = start(tmp_path / "limit", "churn", 4, time.monotonic() + 3.0)
    second = start(tmp_path / "limit", "churn", 4, time.monotonic() + 3.0, 1)
    counts = [len(lines(process)) for process in (first, second)]
    assert min(counts) > max(counts) / 4


@pytest.mark.parametrize("missing", ["limit", "limit.lock"])
def test_a_file_that_cannot_be_made_leaves_the_limit_to_each_process(tmp_path: Path, missing: str) -> None:
    (tmp_path / missing).mkdir()  # cannot be opened for writing, as where no inode is left
    assert lines(start(tmp_path / "limit", "hold", 2, 0.0)) == ["open", "open", "full"]


@pytest.mark.parametrize(("ahead", "opened"), [(0.9, 1), (3600.0, 2)])
def test_a_word_from_before_the_machine_started_again_is_not_believed(
    tmp_path: Path, ahead: float, opened: int
) -> None:
    """The clock of a limit counts from the machine's start: what was written before that may lie in its future."""
    common = Common(str(tmp_path / "limit"), "max-smtp-out")
    common.set_limits(0, 3)
    assert common.open()
    with open(tmp_path / "limit", "r+b") as file:
        file.seek(8)
        file.write(struct.pack("d", common.now() + ahead))
    # Where somebody wants some, who has his part (3 for two: 1) takes no second one.
    assert lines(start(tmp_path / "limit", "hold", 3, 0.0)) == ["open"] * opened + ["full"]
    common.close()
