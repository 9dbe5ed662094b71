"""A rate holds over restarts, sleep and kill -9: what was sent before counts after."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spoolmta.model import Rate
from spoolmta.rate import RateLimiter
from spoolmta.state import Rates
from tests.integration.scenario import drop, received_by
from tests.support.mta import Mta, World

CONFIG = """
[vmta.slow.domain."*"]
max-msg-rate = "12/8s"
max-smtp-out = 1
"""


@pytest.mark.parametrize("ending", ["stop", "kill", "sleep"])
def test_no_window_holds_more_than_the_rate_however_the_process_ends(tmp_path: Path, ending: str) -> None:
    with World(tmp_path) as world, world.mta(CONFIG, sleep_after="0s" if ending == "sleep" else "1m") as mta:
        for number in range(3):
            drop(mta, f"{number}@rate.test", vmta="slow")
        mta.wait_for(lambda: len(received_by(world, "rate.test")) == 3)
        mta.wait_for(lambda: mta.count("d") == 3)
        _end(mta, ending)
        for number in range(3, 30):
            drop(mta, f"{number}@rate.test", vmta="slow")
        mta.wait_for(lambda: len(received_by(world, "rate.test")) == 12)
        times = sorted(record["time"] for record in received_by(world, "rate.test"))
        mta.wait_for(lambda: time.time() > times[0] + 7.5)
        times = sorted(record["time"] for record in received_by(world, "rate.test"))
        assert 11 <= sum(1 for moment in times if moment < times[0] + 7.4) <= 12


def _end(mta: Mta, ending: str) -> None:
    if ending == "stop":
        mta.stop()
        mta.start()
    elif ending == "kill":
        mta.kill("slow")
    else:
        mta.wait_for(lambda: mta.vmta("slow")["state"] == "asleep")


def test_a_limiter_finds_its_window_again_in_another_process(tmp_path: Path) -> None:
    path = str(tmp_path / "rates")
    first = Rates(path, 1000.0)
    limiter = RateLimiter(Rate(10, 60), first.cells("site max_msg_rate"))
    for _ in range(7):
        limiter.take(1000.0, 1)
    other = Rates(path, 1010.0)
    again = RateLimiter(Rate(10, 60), other.cells("site max_msg_rate"))
    assert again.wait(1050.0, 3) == 0
    assert again.wait(1050.0, 4) > 0
    assert RateLimiter(Rate(10, 60), other.cells("other max_msg_rate")).wait(1050.0, 10) == 0


def test_many_limiters_make_the_file_grow_and_old_windows_make_room(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    rates = Rates(str(path), 1000.0)
    for number in range(100):
        RateLimiter(Rate(10, 60), rates.cells(f"{number}")).take(1000.0, number % 2 + 1)
    size = path.stat().st_size
    again = Rates(str(path), 1030.0)
    assert all(RateLimiter(Rate(10, 60), again.cells(f"{n}")).wait(1030.0, 10) > 0 for n in range(100))
    later = Rates(str(path), 2000.0)
    for number in range(100, 200):
        RateLimiter(Rate(10, 60), later.cells(f"{number}")).take(2000.0, 1)
    assert path.stat().st_size == size


@pytest.mark.parametrize("garbage", [b"x" * 1000, b"\xff" * (8 * 70 * 16), b"\x00" * 7])
def test_a_damaged_file_counts_as_none(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "rates"
    path.write_bytes(garbage)
    limiter = RateLimiter(Rate(10, 60), Rates(str(path), 1000.0).cells("a"))
    assert limiter.wait(1000.0, 10) == 0
    limiter.take(1000.0, 10)
    assert limiter.wait(1000.0, 1) > 0
