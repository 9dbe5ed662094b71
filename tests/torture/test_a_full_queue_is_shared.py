"""What comes late to a queue of 100,000 messages of one job: a small job, and mail of a higher priority.

The receiver takes 200 ms a message and the queue may have 5 connections, so that 25 messages go out in a second and the
100,000 would take an hour.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.mta import Mta, World
from tests.support.torture import preload, tell

BULK = 100_000
CONFIG = """
[source.urgent]
pickup = "spool/urgent"
recipient-priority = 90
[vmta.bulk]
max-smtp-out = 5
"""
CAPACITY = 5 / 0.2

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("full")) as world, world.mta(CONFIG, start=False) as mta:
        (mta.spool / "urgent").mkdir()
        preload(mta, "bulk", (f"slow-dot-200ms+{number}@queue.test" for number in range(BULK)), job="newsletter")
        mta.start()
        mta.wait_for(lambda: len(world.received()) > 50)
        yield world, mta
    shutil.rmtree(mta.spool)


def _sent(world: World, tag: str) -> list[float]:
    return [record["time"] for record in world.received() if f"+{tag}" in record["recipients"][0]]


def _bulk(record: list[dict[str, Any]], begin: float, end: float) -> int:
    return sum(1 for line in record if begin < line["time"] <= end and line["recipients"][0].split("+")[1][0].isdigit())


def test_a_job_of_ten_is_delivered_before_two_hundred_of_the_job_of_100_000_before_it(
    system: tuple[World, Mta],
) -> None:
    world, mta = system
    begin = time.time()
    for number in range(10):
        mta.drop(f"slow-dot-200ms+small{number}@queue.test", vmta="bulk", job="small")
    mta.wait_for(lambda: len(_sent(world, "small")) == 10)
    last = max(_sent(world, "small"))
    others = _bulk(world.received(), begin, last)
    tell(
        "10 messages of a job behind 100,000 of another", "< 200 of those meanwhile", f"{others}, {last - begin:.2f} s"
    )
    assert others < 200


def test_each_of_twenty_urgent_messages_overtakes_100_000_within_a_second_and_bulk_still_moves(
    system: tuple[World, Mta],
) -> None:
    world, mta = system
    start = time.time()
    time.sleep(15)
    before = _bulk(world.received(), start, time.time()) / (time.time() - start)
    dropped = [_drop_urgent(mta, number) for number in range(20)]
    mta.wait_for(lambda: len(_sent(world, "urgent")) == 20)
    times = {record["recipients"][0]: record["time"] for record in world.received()}
    waits = [times[f"slow-dot-200ms+urgent{number}@queue.test"] - moment for number, moment in enumerate(dropped)]
    end = time.time()
    share = _bulk(world.received(), dropped[0], end) / (end - dropped[0]) / before
    text = f"{max(waits):.2f} s (mean {sum(waits) / len(waits):.2f} s)"
    tell("20 urgent messages, 100,000 before them: longest wait", "<= 1 s", text)
    tell("bulk meanwhile, as part of its rate before", ">= 7/8", f"{share:.0%} of {before:.1f}/s")
    assert max(waits) <= 1.0
    assert share >= 7 / 8


def _drop_urgent(mta: Mta, number: int) -> float:
    """Drop one, some seconds after the one before; when it was renamed in."""
    time.sleep(2.5)
    source = mta.path / "drop" / f"urgent{number}"
    source.write_bytes(mta.message(f"slow-dot-200ms+urgent{number}@queue.test", vmta="bulk"))
    moment = time.time()
    source.rename(mta.spool / "urgent" / f"{number}.eml")
    return moment
