"""Pools: who gets how much, what holds for all members, what the log says."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from spoolmta import markers
from spoolmta.markers import Marker
from spoolmta.spool.layout import Layout
from tests.integration.scenario import drop, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.a]
smtp-source-host = ["127.0.0.41"]
[vmta.b]
smtp-source-host = ["127.0.0.42"]
[vmta.c]
smtp-source-host = ["127.0.0.43"]
[vmta.limited]
smtp-source-host = ["127.0.0.44"]
[pool.shares]
virtual-mta = { a = 3, b = 2, c = 1 }
[pool.narrow]
virtual-mta = ["limited"]
[pool.narrow.domain."*"]
max-smtp-out = 1
max-msg-per-connection = 2
[source.pickup]
default-virtual-mta = "shares"
"""
ADDRESSES = {"127.0.0.41": "a", "127.0.0.42": "b", "127.0.0.43": "c", "127.0.0.44": "limited"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("pools")) as world, world.mta(CONFIG) as mta:
        yield world, mta


def leave(mta: Mta, pool: str, member: str, marker: Marker) -> None:
    """Leave a marker and wait until who deals has read it."""
    markers.leave(Layout(str(mta.spool)), pool, member, marker)
    time.sleep(markers.FRESH)


def take_away(mta: Mta, pool: str, member: str, site: str) -> None:
    markers.take_away(Layout(str(mta.spool)), pool, member, site)
    time.sleep(markers.FRESH)


def shares(system: tuple[World, Mta], domain: str, count: int) -> Counter[str]:
    """Who sent how many of so many messages, as the sink saw it."""
    world, mta = system

    def received() -> list[str]:
        found = [one for one in world.received() if one["recipients"][0].endswith("@" + domain)]
        return [ADDRESSES[one["source"].rpartition(":")[0] or one["source"]] for one in found]

    mta.wait_for(lambda: len(received()) == count)
    return Counter(received())


def assert_near(found: Counter[str], expected: dict[str, int]) -> None:
    """Shares are exact over any cycle; where a test begins and ends in one is chance."""
    assert all(abs(found[member] - count) <= 1 for member, count in expected.items()), found


def test_every_member_gets_its_weight_of_the_pools_mail(system: tuple[World, Mta]) -> None:
    _, mta = system
    for number in range(60):
        drop(mta, f"{number}@weights.test")
    assert shares(system, "weights.test", 60) == {"a": 30, "b": 20, "c": 10}
    mta.wait_for(lambda: sum(row["rcpt"].endswith("@weights.test") for row in mta.rows("d")) == 60)
    rows = [row for row in mta.rows("r", "d") if row["rcpt"].endswith("@weights.test")]
    assert {row["vmta"] for row in rows if row["type"] == "r"} == {"shares"}
    delivered = [row for row in rows if row["type"] == "d"]
    assert Counter((row["vmta"], row["vmtaPool"]) for row in delivered) == {
        ("a", "shares"): 30,
        ("b", "shares"): 20,
        ("c", "shares"): 10,
    }
    assert {row["queue"] for row in delivered} == {f"weights.test/{name}" for name in "abc"}


def test_a_message_for_several_domains_goes_one_way(system: tuple[World, Mta]) -> None:
    _, mta = system
    recipients = [f"user@{number}.several.test" for number in range(5)]
    drop(mta, *recipients)
    mta.wait_for(lambda: all(to(mta, recipient, "d") for recipient in recipients))
    assert len({to(mta, recipient, "d")[0]["vmta"] for recipient in recipients}) == 1


def test_the_tables_of_a_pool_hold_for_all_mail_of_its_members(system: tuple[World, Mta]) -> None:
    world, mta = system
    for number in range(3):
        drop(mta, f"{number}@narrow.test", vmta="narrow")
        drop(mta, f"direct-{number}@narrow.test", vmta="limited")
    assert shares(system, "narrow.test", 6) == {"limited": 6}
    pair = next(pair for pair in world.stats()["pairs"] if pair["source"] == "127.0.0.44")
    assert (pair["connections"], pair["peak"]) == (3, 1)
    assert {row["vmtaPool"] for row in mta.rows("d") if row["rcpt"].startswith("direct-")} == {""}


def test_a_member_with_a_marker_is_passed_over_and_gets_its_share_back(system: tuple[World, Mta]) -> None:
    _, mta = system
    leave(mta, "shares", "a", Marker("elsewhere.test", "backed off", domains={"marked.test": 1.0}))
    for number in range(12):
        drop(mta, f"{number}@marked.test")
    passing = shares(system, "marked.test", 12)
    assert set(passing) == {"b", "c"}
    for number in range(12):
        drop(mta, f"{number}@free.test")
    assert_near(passing + shares(system, "free.test", 12), {"a": 12, "b": 8, "c": 4})
    take_away(mta, "shares", "a", "elsewhere.test")


def test_where_nobody_is_free_each_gets_its_share(system: tuple[World, Mta]) -> None:
    _, mta = system
    for member in "abc":
        leave(mta, "shares", member, Marker(markers.EVERYWHERE, "paused"))
    for number in range(12):
        drop(mta, f"{number}@nobody.test")
    assert_near(shares(system, "nobody.test", 12), {"a": 6, "b": 4, "c": 2})
    for member in "abc":
        take_away(mta, "shares", member, markers.EVERYWHERE)
