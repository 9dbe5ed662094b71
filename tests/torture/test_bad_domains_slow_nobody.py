"""50,000 messages for a domain that refuses connections and 50,000 for one that answers everything after 20 seconds:
the other domains of the VMTA do not notice.

Two systems, one with this mail in its queue and one without, deliver 3,000 messages to 100 domains each, at the same
time: what else the machine does, and its disk, slows both alike. Each of these domains takes one connection and 350 to
450 ms a message, so that what is measured is how long connections wait for mail and not the processor.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.support.mta import BASE, ROUTE, Mta, World
from tests.support.scripted import Scripted, Talk
from tests.support.torture import Follower, preload, tell

DOMAINS, EACH, BAD, PAIRS = 100, 30, 50_000, 3
CONFIG = """
[vmta.all]
[vmta.all.domain."*"]
max-smtp-out = 1
[vmta.all.domain."dead.test"]
max-smtp-out = 20
smtp-hosts = ["[127.0.0.2]:{dead}"]
[vmta.all.domain."tarpit.test"]
max-smtp-out = 20
smtp-hosts = ["[127.0.0.2]:{tarpit}"]
"""

pytestmark = pytest.mark.torture


class Tarpit(Scripted):
    """A receiver whose every reply takes so many seconds, until `give_up`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(self._answer)
        self._seconds = seconds
        self._over = threading.Event()

    def give_up(self) -> None:
        self._over.set()

    def _answer(self, talk: Talk) -> None:
        say = talk.say

        def say_late(*lines: str) -> None:
            self._over.wait(self._seconds)
            say(*lines)

        talk.say = say_late  # type: ignore[method-assign]
        talk.hello()
        talk.accept()


def test_healthy_domains_are_as_fast_beside_a_dead_one_and_a_tarpit(tmp_path: Path) -> None:
    with World(tmp_path) as world, Tarpit(20.0) as tarpit, socket.socket() as closed:
        closed.bind(("127.0.0.2", 0))  # without listen: connections are refused, and nobody else gets the port
        text = BASE.format(dns="", sleep_after="10m", default_route=ROUTE.format(host=world.host, port=world.port))
        text += CONFIG.format(dead=closed.getsockname()[1], tarpit=tarpit.port)
        ill, well = Mta(tmp_path / "ill", text, start=False), Mta(tmp_path / "well", text, start=False)
        with ill, well:
            for domain in ("dead.test", "tarpit.test"):
                preload(ill, "all", (f"m{number}@{domain}" for number in range(BAD)))
            for mta in (ill, well):
                mta.start()
            _deliver(world, (ill, well), 1)
            ill.wait_for(lambda: ill.vmta("all")["queued"] > 2 * BAD - 100 and len(tarpit.talks) >= 2)
            runs = [_deliver(world, (ill, well), EACH) for _ in range(PAIRS)]
            busy = [sum(psutil.Process(mta.vmta("all")["pid"]).cpu_times()[:2]) for mta in (ill, well)]
            refused = sum(1 for row in ill.rows("tq") if row["queue"].startswith("dead.test"))
            caught = len(tarpit.talks)
            tarpit.give_up()
    shutil.rmtree(ill.spool)
    ratio = statistics.median(beside / alone for beside, alone in runs)
    rate = statistics.median(alone for _, alone in runs)
    tell(
        "100 domains beside a dead one and a tarpit, 50,000 each",
        ">= 95 %",
        f"{ratio:.1%} of {rate:.0f}/s, {PAIRS} pairs",
    )
    tell("processor time of the process, all in all", "(to compare)", f"{busy[0]:.1f} s, {busy[1]:.1f} s without them")
    tell("what they were beside", "", f"{refused} attempts refused, {caught} connections in the tarpit")
    assert refused > 5
    assert ratio >= 0.95


def _deliver(world: World, systems: tuple[Mta, Mta], each: int) -> list[float]:
    """Deliver so many messages to each healthy domain by both systems: how many a second each of them delivered, added
    up over the domains."""
    names = [f"{number}.eml" for number in range(DOMAINS * each)]
    for mta in systems:
        (mta.path / "ready").mkdir(exist_ok=True)
        for number, name in enumerate(names):
            domain = number % DOMAINS
            data = mta.message(f"slow-dot-{350 + domain}ms+{number}@d{domain}.{mta.path.name}.test", vmta="all")
            (mta.path / "ready" / name).write_bytes(data)
    os.sync()
    record, begin = Follower(world), time.time()
    for name in names:
        for mta in systems:
            (mta.path / "ready" / name).rename(mta.spool / "pickup" / name)
    while len(record.read()) < 2 * len(names):
        assert time.time() < begin + 120, [mta.log() for mta in systems]
        time.sleep(0.1)
    last = {line["recipients"][0].partition("@")[2]: line["time"] - begin for line in record.lines}
    return [
        sum(1 / seconds for domain, seconds in last.items() if domain.endswith(f".{mta.path.name}.test")) * each
        for mta in systems
    ]
