"""500 receivers that drip a reply a byte at a time, answer without an end, do not read what they asked for, or accept
connections and say nothing: healthy domains of the same VMTA are as fast as those of a system without them, memory and
descriptors stay within bounds."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import pytest

from tests.support.hostile import DEAF, MANNERS, HostileReceivers
from tests.support.mta import BASE, ROUTE, Mta, World
from tests.support.torture import Compared, compare, preload, tell

HOSTILE, EACH, RUNS = 500, 20, (30, 30, 30)
CONFIG = """
[vmta.all]
[vmta.all.domain."*"]
max-smtp-out = 1
retry-after = ["2s"]
"""
DOMAIN = """
[vmta.all.domain."h{number}.test"]
max-smtp-out = 20
smtp-hosts = ["[127.0.0.2]:{port}"]
smtp-greeting-timeout = "{patience}s"
"""
LARGE = 1 << 20
"""Bytes of a message for a receiver that does not read: more than the kernel takes for it."""
DESCRIPTORS = 32 + 2 * HOSTILE + 200
"""The process's own, a session for each hostile and each healthy domain, with one that says goodbye."""
MEMORY_EACH = 64 << 10
"""For each session; besides, there are the messages that are on their way, as read, as sent and as not yet taken."""


def measure(path: Path, hostile: int, each: int, runs: tuple[int, ...]) -> Compared:
    """With so many hostile receivers, and so many messages for each. Some are given up soon and come again and again,
    others stay for as long as it takes."""
    with World(path) as world, HostileReceivers(path, hostile) as receivers:
        text = BASE.format(dns="", sleep_after="10m", default_route=ROUTE.format(host=world.host, port=world.port))
        text += CONFIG
        for number, port in enumerate(receivers.ports):
            text += DOMAIN.format(number=number, port=port, patience=3 if number % 2 else 300)
        ill, well = (Mta(path / name, text, start=False) for name in ("ill", "well"))
        with ill, well:
            deaf = range(DEAF, hostile, len(MANNERS))
            preload(ill, "all", (f"m{n}@h{d}.test" for n in range(each) for d in range(hostile) if d not in deaf))
            preload(ill, "all", (f"large@h{number}.test" for number in deaf), body=("x" * 70 + "\n") * (LARGE // 71))
            compared = compare(world, ill, well, runs)
            failed = {row["queue"] for row in ill.rows("tq", "t")}
    shutil.rmtree(ill.spool)
    assert not [row for row in ill.rows("d", "b") if row["rcpt"].partition("@")[2].startswith("h")]
    assert len(failed) >= hostile / 5, "those that flood are given up at once"
    return compared


def bound(hostile: int) -> int:
    return hostile * MEMORY_EACH + hostile // len(MANNERS) * 3 * LARGE


def test_receivers_that_mean_harm_hold_up_nobody(tmp_path: Path) -> None:
    compared = measure(tmp_path, 50, 4, (3,))
    assert compared.ratios[0] > 0.2, "held up; how little exactly is measured in the long form"
    assert compared.descriptors <= DESCRIPTORS
    assert compared.memory <= bound(50)


@pytest.mark.torture
def test_healthy_domains_are_as_fast_beside_500_receivers_that_mean_harm(tmp_path: Path) -> None:
    compared = measure(tmp_path, HOSTILE, EACH, RUNS)
    ratio = statistics.median(compared.ratios)
    worst = min(compared.ratios)
    tell("100 domains beside 500 hostile receivers", ">= 95 %", f"{ratio:.1%}, worst of {len(RUNS)} {worst:.1%}")
    tell("  open descriptors", f"<= {DESCRIPTORS}", f"{compared.descriptors}")
    tell("  memory more than without them", f"<= {bound(HOSTILE) >> 20} MiB", f"{compared.memory >> 20} MiB")
    assert ratio >= 0.95
    assert compared.descriptors <= DESCRIPTORS
    assert compared.memory <= bound(HOSTILE)
