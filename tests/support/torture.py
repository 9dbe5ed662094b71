"""What the long runs share: a table to read, a queue that is full at the start, and how times are judged."""

from __future__ import annotations

import bisect
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psutil

from spoolmta import message
from spoolmta.spool.intake import Acceptor, journal_lines
from spoolmta.spool.layout import prepare
from tests.support.mta import Mta, World

TABLE: list[tuple[str, str, str]] = []
"""What was told in this run. The whole of it is printed at the end (`tests/conftest.py`)."""


def tell(promise: str, target: str, measured: str) -> None:
    """One line of the table that `make torture` prints: what is promised, the target, what was measured."""
    TABLE.append((promise, target, measured))
    print(f"\n{promise}: target {target}, measured {measured}", flush=True)


def table() -> list[str]:
    """All that was told, in columns."""
    rows = [("promise", "target", "measured"), *TABLE]
    promise, target = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{row[0]:<{promise}} | {row[1]:<{target}} | {row[2]}".rstrip() for row in rows]


def preload(
    mta: Mta, vmta: str, recipients: Iterable[str], *, job: str = "", priority: int = 50, body: str = "Hello\n"
) -> int:
    """Put a message for each recipient into the queue of a VMTA, by the steps of intake, while nothing runs; how many.
    (Files that pickup takes in are synced and logged as well, which takes six times as long.)"""
    acceptor = Acceptor(prepare(str(mta.spool)), "pickup")
    batch = []
    for recipient in recipients:
        data = mta.message(recipient, job=job, body=body)
        claimed = acceptor.incoming.describe(data, message.parse(data), vmta, "pickup", priority=priority)
        acceptor.incoming.write(data, claimed)
        batch.append(claimed)
    acceptor.journal.append(journal_lines(batch))
    for claimed in batch:
        acceptor.incoming.enqueue(claimed)
    acceptor.close()
    return len(batch)


def most_in_a_window(times: list[float], period: float) -> int:
    """The most that lie in any window as long as the period: of these (sorted) times, each begins one."""
    return max((bisect.bisect_left(times, begin + period) - at for at, begin in enumerate(times)), default=0)


def deliver_side_by_side(
    world: World, systems: Sequence[Mta], each: int, *, vmta: str = "all", domains: int = 100, patience: float = 120
) -> list[float]:
    """Deliver so many messages to each of these healthy domains by all systems at once: how many a second each system
    delivered, added up over the domains. A receiver takes 350 to 450 ms for a message, so with one connection a domain
    it is measured how long connections wait for mail and not the processor; and what else the machine does slows all
    alike. The domains of a system are `d7.NAME.test`, where NAME is that of its folder."""
    names = [f"{number}.eml" for number in range(domains * each)]
    for mta in systems:
        (mta.path / "ready").mkdir(exist_ok=True)
        for number, name in enumerate(names):
            domain = number % domains
            address = f"slow-dot-{350 + domain % 100}ms+{number}@d{domain}.{mta.path.name}.test"
            (mta.path / "ready" / name).write_bytes(mta.message(address, vmta=vmta))
    os.sync()
    record, begin = Follower(world), time.time()
    for name in names:
        for mta in systems:
            (mta.path / "ready" / name).rename(mta.spool / "pickup" / name)
    while healthy(record, systems) < len(systems) * len(names):
        assert time.time() < begin + patience, [mta.log()[-4000:] for mta in systems]
        time.sleep(0.1)
    last = {line["recipients"][0].partition("@")[2]: line["time"] - begin for line in record.lines}
    return [
        sum(1 / seconds for domain, seconds in last.items() if domain.endswith(f".{mta.path.name}.test")) * each
        for mta in systems
    ]


def healthy(record: Follower, systems: Sequence[Mta]) -> int:
    """How many messages for the healthy domains of these systems there are."""
    ends = tuple(f".{mta.path.name}.test" for mta in systems)
    return sum(line["recipients"][0].endswith(ends) for line in record.read())


class Compared(NamedTuple):
    """How a system with trouble did beside one without."""

    ratios: list[float]
    """By run: how fast the healthy domains were, as part of what they were without the trouble."""
    cold: float
    """Seconds from the start until each healthy domain had its first message."""
    descriptors: int
    memory: int
    """More than the process without the trouble had."""


def compare(world: World, ill: Mta, well: Mta, runs: Sequence[int]) -> Compared:
    """Start two systems, the first with trouble in the queue of its VMTA `all`; runs of so many messages for each of
    100 healthy domains. In the end `ill` is killed: nobody waits for what it still tries."""
    began = time.monotonic()
    for mta in (ill, well):
        mta.start()
        mta.drop(f"first@d0.{mta.path.name}.test", vmta="all")
    for mta in (ill, well):
        mta.wait_for(lambda: mta.vmta("all")["pid"] != 0)  # noqa: B023
    with Peak(ill.vmta("all")["pid"]) as peak, Peak(well.vmta("all")["pid"]) as usual:
        deliver_side_by_side(world, (ill, well), 1)
        cold = time.monotonic() - began
        pairs = [deliver_side_by_side(world, (ill, well), each) for each in runs]
    assert ill.vmta("all")["restarts"] == 0
    assert "Traceback" not in ill.log()
    ill.kill("supervisor")
    ratios = [beside / alone for beside, alone in pairs]
    return Compared(ratios, cold, peak.descriptors, peak.memory - usual.memory)


class Peak:
    """The most descriptors and the most memory of its own that a process has while the block lasts."""

    def __init__(self, pid: int) -> None:
        self._process, self._over = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.descriptors = self.memory = 0

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.descriptors = max(self.descriptors, self._process.num_fds())
            self.memory = max(self.memory, self._process.memory_full_info().uss)
            if self._over.wait(0.2):
                return


class Follower:
    """The sink's record from here on, read piece by piece: to read all of it again and again costs what is measured."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._offset = world.record_file.stat().st_size if world.record_file.exists() else 0
        self.lines: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All lines since the beginning of this follower."""
        with open(self._world.record_file, "rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        self.lines += [json.loads(line) for line in whole.splitlines()]
        return self.lines
