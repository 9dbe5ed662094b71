"""Who takes mail in is not crowded out by those that deliver it. Real processes on one processor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from spoolmta.processor import AHEAD, Precedence

CROWD = 12


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        work()
        os._exit(0)
    return pid


def spin(until: float) -> None:
    while time.monotonic() < until:
        pass


@pytest.fixture
def crowd() -> Iterator[list[int]]:
    until = time.monotonic() + 20
    pids = [fork(lambda: spin(until)) for _ in range(CROWD)]
    yield pids
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.usefixtures("crowd")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come before others")
def test_in_a_crowd_a_process_takes_precedence_and_afterwards_gives_it_back() -> None:
    reader, writer = os.pipe()
    niceness = os.getpriority(os.PRIO_PROCESS, 0)

    def work() -> None:
        precedence = Precedence(seconds=0.2)
        seen = niceness
        until = time.monotonic() + 20
        while time.monotonic() < until:
            precedence.tend()
            now = os.getpriority(os.PRIO_PROCESS, 0)
            if now != seen:
                os.write(writer, b"+" if now < seen else b"-")
                seen = now

    pid = fork(work)
    assert os.read(reader, 1) == b"+"
    ahead = os.getpriority(os.PRIO_PROCESS, pid)
    assert ahead in (niceness, max(-20, niceness - AHEAD))
    assert os.read(reader, 1) == b"-"
    assert os.read(reader, 1) == b"+"  # it is still one
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
