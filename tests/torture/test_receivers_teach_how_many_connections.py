"""A receiver that takes 5 connections and says 421 to more, and queues that may have 20: they settle at 5 with few
attempts refused, also where each connection ends after 10 messages, and have their 20 soon after the receiver takes
them.

The receiver takes 100 ms a message, so 5 connections deliver 50 messages a second: 2,000 in 40 seconds.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.support.mta import Mta, World
from tests.support.torture import Follower, preload, tell

BEARS, LIMIT, MAIL = 5, 20, 2000
KEEPING, RENEWING = "127.0.0.31", "127.0.0.32"
CONFIG = """
[vmta.keeping]
smtp-source-host = ["127.0.0.31"]
[vmta.renewing]
smtp-source-host = ["127.0.0.32"]
[vmta.renewing.domain."*"]
max-msg-per-connection = 10
"""

pytestmark = pytest.mark.torture


class Watch(threading.Thread):
    """The receiver's open connections from each address, ten times a second."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._over = threading.Event()
        self.seen: list[tuple[float, dict[str, int]]] = []

    def run(self) -> None:
        while not self._over.wait(0.1):
            counts = {pair["source"]: pair["current"] for pair in self._world.stats()["pairs"]}
            self.seen.append((time.time(), counts))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def between(self, source: str, begin: float, end: float) -> list[int]:
        return [counts.get(source, 0) for moment, counts in self.seen if begin <= moment <= end]


def test_queues_settle_at_what_the_receiver_bears_and_climb_when_it_bears_more(tmp_path: Path) -> None:
    with World(tmp_path, max_connections=BEARS) as world, world.mta(CONFIG, start=False) as mta:
        for vmta in ("keeping", "renewing"):
            preload(mta, vmta, (f"slow-dot-100ms+{number}@five.test" for number in range(4 * MAIL)))
        record, watch = Follower(world), Watch(world)
        mta.start()
        watch.start()
        _wait_for_mail(mta, record)
        settled = {source: Settled(world, watch, source, _times(record, source)) for source in (KEEPING, RENEWING)}
        world.change(max_connections=0)
        lifted = time.time()
        mta.wait_for(lambda: max(watch.between(KEEPING, lifted, time.time()), default=0) >= LIMIT)
        watch.stop()
        full = next(moment for moment, counts in watch.seen if moment >= lifted and counts[KEEPING] >= LIMIT)
        climbed = sum(1 for moment in _times(record, KEEPING) if lifted <= moment <= full)
    for source, name in ((KEEPING, "for good"), (RENEWING, "for 10 messages")):
        one = settled[source]
        tell(
            f"a receiver of 5, connections {name}: how many", "5", f"{one.peak} (mean {one.mean:.2f}), {one.rate:.0f}/s"
        )
        tell(f"a receiver of 5, connections {name}: refused", "<= 5 %", f"{one.refused_share:.2%} of the attempts")
    tell("when it bears 20: deliveries until there are 20", "<= 200", f"{climbed}, {full - lifted:.1f} s")
    for one in settled.values():
        assert one.peak == BEARS
        assert one.mean > 0.9 * BEARS
        assert one.refused_share <= 0.05
    assert climbed <= 200


class Settled:
    """How a queue did while the receiver took few connections; its first five seconds do not count for `peak` (98 % of
    the time there are no more) and `mean`. An attempt is a message or a refused connection."""

    def __init__(self, world: World, watch: Watch, source: str, times: list[float]) -> None:
        counts = sorted(watch.between(source, times[0] + 5.0, times[-1]))
        refused = next(pair["connections_refused"] for pair in world.stats()["pairs"] if pair["source"] == source)
        self.peak = counts[len(counts) * 98 // 100]
        self.mean = sum(counts) / len(counts)
        self.rate = len(times) / (times[-1] - times[0])
        self.refused_share = refused / (refused + len(times))


def _times(record: Follower, source: str) -> list[float]:
    return [line["time"] for line in record.read() if line["source"] == source]


def _wait_for_mail(mta: Mta, record: Follower) -> None:
    deadline = time.time() + 120
    while len(_times(record, KEEPING)) < MAIL:
        assert time.time() < deadline, mta.log()
        time.sleep(0.05)
