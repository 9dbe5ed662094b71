"""Which VMTA a message gets by its source's rules, and what overtakes what."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.scenario import drop, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.news]
[vmta.alerts]
[vmta.slow]
[vmta.slow.domain."*"]
max-smtp-out = 2
[source.pickup]
default-virtual-mta = "news"
[[source.pickup.select]]
mail-from = '^alerts@'
virtual-mta = "alerts"
[[source.pickup.select]]
rcpt-to = '@alerts\\.test$'
virtual-mta = "alerts"
[[source.pickup.select]]
header = "X-Test-Id"
match = '^alert-[0-9]+$'
virtual-mta = "alerts"
[[source.pickup.select]]
mail-from = '^reset@'
virtual-mta = "slow"
recipient-priority = 90
[[source.pickup.select]]
mail-from = '^bulk@'
virtual-mta = "slow"
[source.urgent]
pickup = "urgent"
default-virtual-mta = "slow"
recipient-priority = 80
"""
WAITING = 3000


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("rules")) as world, world.mta(CONFIG, start=False) as mta:
        (mta.path / "urgent").mkdir()
        mta.start()
        yield world, mta


def test_the_first_rule_that_matches_chooses_the_vmta(system: tuple[World, Mta]) -> None:
    _, mta = system
    expected = {
        "plain@a.test": "news",
        "by-sender@a.test": "alerts",
        "user@alerts.test": "alerts",
        "by-header@a.test": "alerts",
        "other-header@a.test": "news",
        "asked@a.test": "news",
    }
    drop(mta, "plain@a.test")
    drop(mta, "by-sender@a.test", sender="Alerts@mta.test")
    drop(mta, "user@alerts.test")
    drop(mta, "by-header@a.test", test_id="alert-7")
    drop(mta, "other-header@a.test", test_id="no-alert-7")
    drop(mta, "asked@a.test", sender="alerts@mta.test", vmta="news")
    mta.wait_for(lambda: all(to(mta, recipient, "d") for recipient in expected))
    assert {recipient: to(mta, recipient, "d")[0]["vmta"] for recipient in expected} == expected


def test_a_message_of_a_higher_priority_overtakes_and_the_others_still_move(system: tuple[World, Mta]) -> None:
    world, mta = system
    for number in range(WAITING):
        drop(mta, f"slow-dot-50ms+{number}@slow.test", sender="bulk@mta.test")
    mta.wait_for(lambda: mta.vmta("slow")["queued"] > 0.9 * WAITING)
    began = time.time()
    for number in range(20):
        drop(mta, f"slow-dot-50ms+a{number}@slow.test", sender="reset@mta.test", test_id="high")
        drop(mta, f"slow-dot-50ms+b{number}@slow.test", folder=mta.path / "urgent", test_id="higher-than-bulk")

    def records(kind: str) -> list[float]:
        return [one["time"] for one in world.received() if one["test_id"] == kind and one["time"] > began]

    mta.wait_for(lambda: len(records("high")) == 20 and len(records("higher-than-bulk")) == 20)
    first, last = min(records("high")), max(records("high"))
    bulk = [one["time"] for one in world.received() if one["mail_from"] == "bulk@mta.test"]
    assert len(bulk) < WAITING / 2, "too few waited for this to be a test"
    assert sum(1 for time_ in bulk if began < time_ < first) <= 40  # two connections, 20 messages a second each
    assert max(records("high")) < max(records("higher-than-bulk"))
    everything = sorted([*records("high"), *records("higher-than-bulk"), *bulk])
    while_they_went = [time_ for time_ in everything if first <= time_ <= max(last, max(records("higher-than-bulk")))]
    between = [time_ for time_ in bulk if first < time_ < max(records("higher-than-bulk"))]
    assert 1 <= len(between) <= len(while_they_went) / 2
