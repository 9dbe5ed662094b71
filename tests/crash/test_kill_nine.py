"""kill -9 of any process, any number of times: nothing is lost, and the sink sees a message twice only where a delivery
process was killed between reading its reply and journalling it.

A dropper keeps a backlog, so that well over 50 transactions wait for the reply to their final dot at every moment,
while roles are killed at random: the supervisor (started again at once), the pickup process, a VMTA's delivery process.
In the end the sink's record, the accounting log, the journals and the spool must tell one story. The seed is printed;
give it as SPOOLMTA_CRASH_SEED to drop the same messages and kill in the same order again. SPOOLMTA_CRASH_KILLS is how
often `make torture` kills.
"""

from __future__ import annotations

import bisect
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.crash import CrashMta, Delivered, by_recipient, contradictions, crash_seed
from tests.support.meddler import POOL, Meddler
from tests.support.mta import BASE, World
from tests.support.torture import tell

VMTAS = [f"v{number}" for number in range(1, 5)]
SOURCES = {f"127.0.0.{20 + number}": name for number, name in enumerate(VMTAS)}
DOMAINS = [f"d{number}.test" for number in range(1, 7)]
ROUTE = """\
[domain."*"]
smtp-hosts = ["[{host}]:{port}"]
max-smtp-out = 14
retry-after = ["1s"]
retry-recipients-after = ["1s"]
"""
DELAY = re.compile("--slow-dot-([0-9]+)ms@")
LONGEST = 2.0
"""Seconds that the sink takes for a reply."""
BACKLOG = 900
IN_FLIGHT = 50
SECONDS_TO_JOURNAL = 1.5
"""From the sink's line to the journal's, on a busy machine: a copy made longer before a kill is none of its making."""


class Kill(NamedTuple):
    time: float
    role: str
    connections: int
    """Open sessions of the killed process; 0 for the others."""
    in_flight: int
    """Open sessions of all processes. With a backlog for every queue, each has a transaction under way."""


class Dropper(threading.Thread):
    """Drops messages until told to stop, never more than `backlog` ahead of the sink."""

    def __init__(self, mta: CrashMta, world: World, seed: int, ways: Sequence[str], backlog: int) -> None:
        super().__init__()
        self._mta, self._world, self._ways, self._backlog = mta, world, ways, backlog
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self.expected: dict[str, str] = {}
        self.messages = 0

    def run(self) -> None:
        self._world.record_file.touch()
        record, accepted = self._world.record_file.open("rb"), 0
        while not self._over.is_set():
            accepted += record.read().count(b"\n")
            for _ in range(min(100, self._backlog - (self.messages - accepted))):
                self._drop()
            self._over.wait(0.1)
        record.close()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _drop(self) -> None:
        chance = self._chance
        self.messages += 1
        count = chance.choice((2, 3, 4)) if chance.random() < 0.1 else 1
        domains = [chance.choice(DOMAINS) for _ in range(count)]
        addresses = [self._address(place, domain) for place, domain in enumerate(domains)]
        self._mta.drop(*addresses, vmta=chance.choice(self._ways), test_id=f"m{self.messages}")

    def _address(self, place: int, domain: str) -> str:
        chance = self._chance.random()
        tag = f"m{self.messages}r{place}"
        if chance < 0.08:
            local = f"once-451-{tag}"
        elif chance < 0.13:
            local = f"{tag}--550-5.1.1"
        elif chance < 0.20:
            local = tag
        else:
            local = f"{tag}--slow-dot-{self._chance.randrange(1000, int(1000 * LONGEST))}ms"
        address = f"{local}@{domain}"
        self.expected[address] = "b" if "--550" in local else "d"
        return address


class Torture:
    """One run: `kills` random kills, then the reckoning. Somebody may meddle meanwhile; then there is no telling how
    much is in flight."""

    def __init__(self, path: Path, kills: int, seed: int, *, is_meddled: bool = False, backlog: int = BACKLOG) -> None:
        self._path, self._count, self._is_meddled, self._backlog = path, kills, is_meddled, backlog
        self._in_flight = 0 if is_meddled else IN_FLIGHT
        self._chance = random.Random(seed + 1)
        self._seed = seed
        self._next: list[str] = []
        self.kills: list[Kill] = []

    def run(self) -> None:
        print(f"\nseed {self._seed}: SPOOLMTA_CRASH_SEED={self._seed} repeats it", flush=True)
        with World(self._path, ["127.0.0.2:0", "127.0.0.3:0"]) as world:
            config = BASE.format(dns="", default_route=ROUTE.format(host=world.host, port=world.port), sleep_after="1m")
            for source, name in SOURCES.items():
                config += f'[vmta.{name}]\nsmtp-source-host = ["{source} {name}.test"]\n'
            mta = CrashMta(self._path / "mta", config)
            meddler = Meddler(mta, VMTAS, DOMAINS, world.sinks, self._seed) if self._is_meddled else None
            with mta:
                dropper = Dropper(mta, world, self._seed, [*VMTAS, POOL] if meddler else VMTAS, self._backlog)
                threads = [one for one in (dropper, meddler) if one is not None]
                for thread in threads:
                    thread.start()
                try:
                    for _ in range(self._count):
                        self._kill_one(mta)
                finally:
                    for thread in threads:
                        thread.stop()
                mta.wait_for(lambda: not mta.left_over(), 90)
                mta.stop()
                self._reckon(mta, world, dropper, meddler)

    def _kill_one(self, mta: CrashMta) -> None:
        if not self._next:
            self._next = ["supervisor", "pickup", "pickup", *VMTAS]
            self._chance.shuffle(self._next)
        role = self._next.pop()
        time.sleep(self._chance.uniform(0.5, 1.5))
        # A killed role needs a moment to come back, and the others may need one to fill their connections again.
        mta.wait_for(lambda: role in mta.processes() and sum(_connections(mta).values()) >= 5 * self._in_flight)
        connections = _connections(mta)
        self.kills.append(Kill(time.time(), role, connections.get(role, 0), sum(connections.values())))
        os.kill(mta.processes()[role], signal.SIGKILL)
        if role == "supervisor":
            assert mta.process is not None
            mta.process.wait()
            mta.start()

    def _reckon(self, mta: CrashMta, world: World, dropper: Dropper, meddler: Meddler | None) -> None:
        delivered = by_recipient(world.received())
        wrong = contradictions(mta, delivered, dropper.expected)
        meddled = ""
        if meddler is not None:
            wrong += meddler.failures
            meddled = f"{meddler.done.total()} orders, "
            print(meddler.done, meddler.refused)
        doubled = {address: copies for address, copies in delivered.items() if len(copies) > 1}
        blamed = [0] * len(self.kills)
        for address, copies in doubled.items():
            for copy in copies[:-1]:
                guilty = self._guilty(copy)
                if guilty is None:
                    wrong.append(f"twice, and no kill explains it: {address} {copies}")
                else:
                    blamed[guilty] += 1
        for kill, count in zip(self.kills, blamed, strict=True):
            if count > kill.connections:
                wrong.append(f"{count} messages twice, with {kill.connections} connections at {kill}")
        record = sorted(world.received(), key=lambda line: line["time"])
        lowest = min(kill.in_flight for kill in self.kills)
        proved = min(_past_their_dot(record, kill.time) for kill in self.kills)
        roles = Counter(kill.role for kill in self.kills)
        tell(
            f"{meddled}{len(self.kills)} kills under load",
            "nothing lost" + (f", >= {self._in_flight} in flight" if self._in_flight else ""),
            f"{len(wrong)} contradictions; {len(dropper.expected)} recipients, {len(doubled)} twice"
            + (f"; in flight {lowest} ({proved} proved by the sink's record)" if self._in_flight else ""),
        )
        print(dict(roles), flush=True)
        assert wrong == []
        assert lowest >= self._in_flight

    def _guilty(self, copy: Delivered) -> int | None:
        """The kill that cut off the reply to this copy: its own process's, soon after the sink's line. A supervisor's
        death cuts off nothing that has sent its dot, and the pickup process has no replies to lose."""
        for index, kill in enumerate(self.kills):
            if kill.role == SOURCES[copy.source] and kill.time - SECONDS_TO_JOURNAL < copy.time < kill.time + 0.5:
                return index
        return None


def _connections(mta: CrashMta) -> dict[str, int]:
    return {vmta["name"]: vmta["connections"] for vmta in mta.status()["vmtas"]}


def _past_their_dot(record: list[dict[str, Any]], moment: float) -> int:
    """Transactions past their dot and before their reply, by the sink's record in the order of time: those accepted
    later, so soon that they must have been waiting then. (Those that this kill or the next ones cut off are not there
    to be counted.)"""
    count = 0
    begin, end = (bisect.bisect_left(record, at, key=lambda line: line["time"]) for at in (moment, moment + LONGEST))
    for line in record[begin:end]:
        delays = [DELAY.search(recipient) for recipient in line["recipients"]]
        delay = next((int(found[1]) for found in delays if found), 0)  # the first that has one decides
        count += line["time"] - delay / 1000 < moment < line["time"]
    return count


def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    Torture(tmp_path, 7, crash_seed()).run()


@pytest.mark.torture
def test_five_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    Torture(tmp_path, int(os.environ.get("SPOOLMTA_CRASH_KILLS", 500)), crash_seed()).run()


def test_orders_and_reloads_between_kills_lose_nothing(tmp_path: Path) -> None:
    Torture(tmp_path, 2, crash_seed(), is_meddled=True, backlog=100).run()


@pytest.mark.torture
def test_orders_and_reloads_among_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    Torture(tmp_path, 100, crash_seed(), is_meddled=True).run()
