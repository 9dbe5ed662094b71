"""Rates over three minutes, each of another kind and period, all at once, while their processes are killed, sleep and
are started anew and sessions end every few messages: never above the limit in any window, and nearly used up.

A story for all: mail for a minute, and every delivery process killed in its middle; nothing, until all are asleep; more
mail than can go out, and the whole system stopped and started in its middle. For the share that is used up, only these
seconds do not count: from the signal until `status` shows every process again, and from the last message before the
sleep until the next is dropped.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scenario import drop
from tests.support.mta import Mta, World
from tests.support.torture import most_in_a_window, preload, tell

CONFIG = """
[vmta.site]
smtp-source-host = ["127.0.0.31"]
[vmta.site.domain."*"]
max-msg-per-connection = 3
max-msg-rate = "120/m"
[vmta.source]
smtp-source-host = ["127.0.0.32"]
[vmta.source.domain."*"]
max-msg-per-connection = 3
source-ip-max-msg-rate = { "0/0" = "10/s" }
[vmta.whole]
smtp-source-host = ["127.0.0.33"]
max-smtp-msg-rate = "300/5m"
[vmta.whole.domain."*"]
max-msg-per-connection = 3
[vmta.connect]
smtp-source-host = ["127.0.0.34"]
[vmta.connect.domain."*"]
max-msg-per-connection = 1
max-connect-rate = "60/30s"
[vmta.member-1]
smtp-source-host = ["127.0.0.35"]
[vmta.member-2]
smtp-source-host = ["127.0.0.35"]
[vmta.member-3]
smtp-source-host = ["127.0.0.35"]
[pool.members]
virtual-mta = ["member-1", "member-2", "member-3"]
max-smtp-msg-rate = "90/15s"
[pool.members.domain."*"]
max-msg-per-connection = 3
"""

RATES = {
    "127.0.0.31": ("max-msg-rate", 120, 60.0),
    "127.0.0.32": ("source-ip-max-msg-rate", 10, 1.0),
    "127.0.0.33": ("max-smtp-msg-rate of a VMTA", 300, 300.0),
    "127.0.0.34": ("max-connect-rate", 60, 30.0),
    "127.0.0.35": ("max-smtp-msg-rate of a pool, 3 processes", 90, 15.0),
}
VMTAS = {
    "127.0.0.31": ["site"],
    "127.0.0.32": ["source"],
    "127.0.0.33": ["whole"],
    "127.0.0.34": ["connect"],
    "127.0.0.35": ["member-1", "member-2", "member-3"],
}
FIRST, SECOND = 60.0, 90.0
"""Seconds for which there is mail before the sleep, and for which it is watched after it."""
TOLERANCE = 0.1
"""The sink's clock is read a little after ours decided, later for one message than for another: a window shorter by
that much is what both agree on."""

Span = tuple[float, float]


def test_no_window_is_above_its_rate_and_nearly_all_of_it_is_used(tmp_path: Path) -> None:
    with World(tmp_path) as world, world.mta(CONFIG, sleep_after="3s", start=False) as mta:
        mail = sum(preload(mta, vmta, addresses) for vmta, addresses in _mail_for(FIRST))
        mta.start()
        mta.wait_for(lambda: {record["source"] for record in world.received()} == RATES.keys())
        time.sleep(FIRST / 2)
        away = [_kill_all(mta)]
        mta.wait_for(lambda: len(world.received()) >= mail, 2 * FIRST)
        mta.wait_for(lambda: all(vmta["state"] == "asleep" for vmta in _vmtas(mta)))
        before = _times(world)
        woken = time.time()
        for vmta, addresses in _mail_for(SECOND + 30.0):
            for address in addresses:
                drop(mta, address, vmta="members" if vmta.startswith("member") else vmta)
        time.sleep(SECOND / 2)
        away.append(_restart(mta))
        time.sleep(woken + SECOND - time.time())
        end = time.time()
        times = _times(world)
    for source, (name, count, period) in RATES.items():
        asleep = (before[source][-1], woken)
        _judge(name, count, period, times[source], [*away, asleep], end)


def _mail_for(seconds: float) -> Iterator[tuple[str, list[str]]]:
    """Addresses for so many seconds at full rate, for each VMTA of each limit."""
    for source, vmtas in VMTAS.items():
        _, count, period = RATES[source]
        each = int(seconds * count / period / len(vmtas))
        for vmta in vmtas:
            yield vmta, [f"m{number}@{vmta}.test" for number in range(each)]


def _vmtas(mta: Mta) -> list[dict[str, object]]:
    return [vmta for vmta in mta.status()["vmtas"] if vmta["name"] != "default"]


def _times(world: World) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {source: [] for source in RATES}
    for record in world.received():
        found[record["source"]].append(record["time"])
    return {source: sorted(times) for source, times in found.items()}


def _kill_all(mta: Mta) -> Span:
    pids = [int(str(vmta["pid"])) for vmta in _vmtas(mta)]
    assert all(pids)
    begin = time.time()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    mta.wait_for(lambda: all(vmta["pid"] and vmta["pid"] not in pids for vmta in _vmtas(mta)))
    return begin, time.time()


def _restart(mta: Mta) -> Span:
    begin = time.time()
    mta.stop()
    mta.start()
    mta.wait_for(lambda: all(vmta["pid"] for vmta in _vmtas(mta)))
    return begin, time.time()


def _judge(name: str, count: int, period: float, times: list[float], away: list[Span], end: float) -> None:
    most = most_in_a_window(times, period - min(TOLERANCE, period / 10))
    spans = [(max(begin, times[0]), until) for begin, until in away]
    seconds = end - times[0] - sum(until - begin for begin, until in spans)
    sent = sum(1 for moment in times if not any(begin < moment < until for begin, until in spans))
    share = sent * period / count / seconds
    tell(
        f"{name} {count}/{period:g}s",
        f"<= {count} a window, >= 95 %",
        f"{most} ({most_in_a_window(times, period)} by the sink's clock), {share:.1%} of {seconds:.0f} s",
    )
    assert most <= count, name
    assert share >= 0.95, name


pytestmark = pytest.mark.torture
