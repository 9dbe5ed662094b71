"""What processes tell each other about pools, in files: who wants no mail where, what has been counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from spoolmta import config, markers
from spoolmta.dealer import Dealer
from spoolmta.markers import Board, Marker
from spoolmta.spool.layout import prepare
from spoolmta.tally import FIRST_SLOTS, KEEP, LAST_DAY, NUMBER, Tally
from tests.support.mta import ROOT

TODAY = 20_000
COUNT = """
import sys
from spoolmta.tally import Tally
tally = Tally(sys.argv[1])
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    with tally.locked():
        tally.cells("shared", 20000)[0] += 1
        tally.cells(f"own {sys.argv[3]} {number % 300}", 20000)[0] += 1
print("done", flush=True)
"""


@contextmanager
def counting(path: Path, count: int, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", COUNT, str(path), str(count), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def value(tally: Tally, name: str) -> int:
    with tally.locked():
        return tally.cells(name, TODAY)[NUMBER]


def test_processes_that_count_together_lose_nothing_while_the_table_grows(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(counting(tmp_path / "tally", 3000, str(number))) for number in range(3)]
        for process in processes:
            assert process.wait(60) == 0
    tally = Tally(str(tmp_path / "tally"))
    assert value(tally, "shared") == 9000
    assert [value(tally, f"own {process} {number}") for process in range(3) for number in range(300)] == [10] * 900
    assert (tmp_path / "tally").stat().st_size > FIRST_SLOTS * 32


def test_a_process_killed_while_it_counts_costs_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    tally = Tally(str(tmp_path / "tally"))
    with counting(tmp_path / "tally", 10**9, "a") as process:
        while (before := value(tally, "shared")) < 500:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    after = value(tally, "shared")
    assert after >= before
    assert value(Tally(str(tmp_path / "tally")), "shared") == after


def test_what_has_not_been_used_for_long_makes_room(tmp_path: Path) -> None:
    tally = Tally(str(tmp_path / "tally"))
    for number in range(5000):
        with tally.locked():
            tally.cells(f"domain {number}", TODAY + number)[LAST_DAY] = TODAY + number
    assert (tmp_path / "tally").stat().st_size <= 32 * 4 * FIRST_SLOTS
    with tally.locked():
        assert [*tally.cells(f"domain {5000 - KEEP}", TODAY + 5000)][1:] == [TODAY + 5000 - KEEP] * 2


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    prepare(str(tmp_path / "spool"))
    return tmp_path / "spool"


def test_a_marker_stands_against_its_site_its_domains_and_with_a_star_against_all(spool: Path) -> None:
    layout = prepare(str(spool))
    listed = Marker("google.rollup", "421 slow down", since=1.0, domains={"gmail.com": 1.0})
    markers.leave(layout, "p", "a", listed)
    board = Board(layout)
    assert board.standing_against("p", "a", ["b.test", "gmail.com"], 10.0) == listed
    assert board.standing_against("p", "a", ["google.rollup"], 10.0) == listed
    assert board.standing_against("p", "a", ["b.test"], 10.0) is None
    assert board.standing_against("p", "b", ["gmail.com"], 10.0) is None
    markers.leave(layout, "p", "a", Marker(markers.EVERYWHERE, "paused"))
    assert board.standing_against("p", "a", ["b.test"], 10.5) is None, "read at most once a second"
    assert board.standing_against("p", "a", ["b.test"], 11.5) == Marker("*", "paused")
    markers.take_away(layout, "p", "a", markers.EVERYWHERE)
    markers.take_away(layout, "p", "a", "never.there")
    assert board.standing_against("p", "a", ["b.test"], 13.0) is None


def test_a_marker_whose_time_is_over_and_what_is_no_marker_count_for_nothing(spool: Path) -> None:
    layout = prepare(str(spool))
    markers.leave(layout, "p", "a", Marker("b.test", "for a while", until=100.0))
    (spool / "state/pool/p/a/torn").write_bytes(b'{"site": "c.te')
    assert Board(layout).standing_against("p", "a", ["b.test", "torn"], 99.0) is not None
    assert Board(layout).standing_against("p", "a", ["b.test", "torn"], 100.0) is None
    long = "x" * 300 + ".rollup"
    markers.leave(layout, "p", "a", Marker(long, "a long name"))
    assert set(markers.read(layout, "p", "a")) == {"b.test", long}
    assert markers.pools_of(layout, "a") == ["p"]
    assert markers.pools_of(layout, "b") == []


def test_a_member_that_only_a_delivery_brings_back_gets_a_message_a_minute(spool: Path) -> None:
    layout = prepare(str(spool))
    file = spool.parent / "spoolmta.toml"
    file.write_text(
        'host-name = "a.b"\nspool = { directory = "spool" }\n[vmta.a]\n[vmta.b]\n[pool.p]\nvirtual-mta = ["a", "b"]\n'
    )
    one = Dealer(config.load(str(file)), layout, lambda _: None)
    markers.leave(layout, "p", "a", Marker("b.test", "backoff: 421", since=1000.0, is_probed=True))
    found = [one.deal("p", ["b.test"], 1000.0 + second / 4).vmta for second in range(4 * 200)]
    assert found.count("a") == 3
    assert [found.index("a"), *(4 * 60 * number for number in (2, 3))] == [240, 480, 720]
    markers.leave(layout, "p", "a", Marker("b.test", "paused", since=1000.0))
    assert {one.deal("p", ["b.test"], 2000.0 + second).vmta for second in range(200)} == {"b"}
    one.close()


def test_a_marker_that_changes_again_and_again_is_seen_each_time(spool: Path) -> None:
    layout = prepare(str(spool))
    board = Board(layout)
    for number in range(50):
        markers.leave(layout, "p", "a", Marker(f"{number}.test", "paused"))
        assert board.standing_against("p", "a", [f"{number}.test"], 10.0 * number) is not None
        markers.take_away(layout, "p", "a", f"{number}.test")
        assert board.standing_against("p", "a", [f"{number}.test"], 10.0 * number + 5) is None
