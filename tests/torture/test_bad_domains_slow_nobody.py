"""50,000 messages for a domain that refuses connections and 50,000 for one that answers everything after 20 seconds:
the other domains of the VMTA do not notice.

Two systems, one with this mail in its queue and one without, deliver 3,000 messages to 100 domains each, at the same
time: what else the machine does, and its disk, slows both alike. Each of these domains takes one connection and 350 to
450 ms a message, so that what is measured is how long connections wait for mail and not the processor.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import threading
from pathlib import Path

import psutil
import pytest

from tests.support.mta import BASE, ROUTE, Mta, World
from tests.support.scripted import Scripted, Talk
from tests.support.torture import deliver_side_by_side, preload, tell

EACH, BAD, PAIRS = 30, 50_000, 3
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
            deliver_side_by_side(world, (ill, well), 1)
            ill.wait_for(lambda: ill.vmta("all")["queued"] > 2 * BAD - 100 and len(tarpit.talks) >= 2)
            runs = [deliver_side_by_side(world, (ill, well), EACH) for _ in range(PAIRS)]
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
