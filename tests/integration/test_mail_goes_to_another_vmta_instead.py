"""Rerouting: mail of a queue that another VMTA or pool sends, always or in back-off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.scenario import drop, received_by, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.first]
smtp-source-host = ["127.0.0.31"]
[vmta.first.domain."always.test"]
reroute-to-virtual-mta = "second"
[vmta.first.domain."pool.test"]
reroute-to-virtual-mta = "both"
[vmta.first.domain."complains.test"]
backoff-reroute-to-virtual-mta = "second"
retry-recipients-after = "1s"
[vmta.first.domain."circle.test"]
reroute-to-virtual-mta = "second"
[vmta.first.domain."part.test"]
backoff-reroute-to-virtual-mta = "second"
[[vmta.first.response]]
reply = "^451"
action = "backoff"
[vmta.second]
smtp-source-host = ["127.0.0.32"]
[vmta.second.domain."circle.test"]
reroute-to-virtual-mta = "third"
[vmta.third]
smtp-source-host = ["127.0.0.33"]
[vmta.third.domain."circle.test"]
reroute-to-virtual-mta = "first"
[pool.both]
virtual-mta = ["first", "second", "third"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("instead")) as world, world.mta(CONFIG, sleep_after="1s") as mta:
        yield world, mta


def sources(world: World, mta: Mta, domain: str, count: int) -> set[str]:
    mta.wait_for(lambda: len(received_by(world, domain)) == count)
    return {record["source"] for record in received_by(world, domain)}


def test_mail_for_a_domain_is_sent_by_the_vmta_it_is_rerouted_to(system: tuple[World, Mta]) -> None:
    world, mta = system
    for number in range(5):
        drop(mta, f"{number}@always.test", f"{number}@elsewhere.test", vmta="first")
    assert sources(world, mta, "always.test", 5) == {"127.0.0.32"}
    assert sources(world, mta, "elsewhere.test", 5) == {"127.0.0.31"}
    mta.wait_for(lambda: len(to(mta, "0@always.test", "d")) == 1)
    assert to(mta, "0@always.test", "d")[0]["queue"] == "always.test/second"


def test_a_pool_that_mail_is_rerouted_to_deals_it_out(system: tuple[World, Mta]) -> None:
    world, mta = system
    for number in range(8):
        drop(mta, f"{number}@pool.test", vmta="first")
    assert sources(world, mta, "pool.test", 8) == {"127.0.0.32", "127.0.0.33"}


def test_in_back_off_what_waits_and_what_comes_is_sent_by_the_other_vmta(system: tuple[World, Mta]) -> None:
    world, mta = system
    drop(mta, "before@complains.test", vmta="first")
    assert sources(world, mta, "complains.test", 1) == {"127.0.0.31"}
    drop(mta, "once-451-wait@complains.test", vmta="first")
    mta.wait_for(lambda: "backoff" in mta.command("queue", "show", "complains.test/first").stdout)
    for number in range(3):
        drop(mta, f"{number}@complains.test", vmta="first")
    assert sources(world, mta, "complains.test", 5) == {"127.0.0.31", "127.0.0.32"}
    assert {r["recipients"][0] for r in received_by(world, "complains.test") if r["source"] == "127.0.0.31"} == {
        "before@complains.test"
    }
    assert mta.command("queue", "mode", "normal", "complains.test/first").returncode == 0
    drop(mta, "after@complains.test", vmta="first")
    mta.wait_for(lambda: len(received_by(world, "complains.test")) == 6)
    assert received_by(world, "complains.test")[-1]["source"] == "127.0.0.31"


def test_in_a_circle_mail_is_sent_by_the_last_that_has_not_had_it(system: tuple[World, Mta]) -> None:
    world, mta = system
    for number in range(4):
        drop(mta, f"{number}@circle.test", vmta="first")
    assert sources(world, mta, "circle.test", 4) == {"127.0.0.33"}


def test_what_has_gone_out_to_some_of_its_recipients_stays(system: tuple[World, Mta]) -> None:
    world, mta = system
    drop(mta, "one@part.test", "once-451-two@part.test", vmta="first")
    mta.wait_for(lambda: bool(to(mta, "once-451-two@part.test", "d")))
    assert {record["source"] for record in received_by(world, "part.test")} == {"127.0.0.31"}
    assert len(to(mta, "one@part.test", "d")) == 1


def test_explain_says_where_mail_goes_instead(system: tuple[World, Mta]) -> None:
    shown = system[1].command("explain", "--domain", "always.test", "--vmta", "first").stdout
    assert "when:    it goes to second instead (reroute-to-virtual-mta, " in shown


def test_nothing_is_lost_or_doubled(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: mta.audit()["balanced"] and not mta.entries())
    assert len({(row["msgId"], row["rcpt"]) for row in mta.rows("d")}) == mta.count("d")
    mta.wait_for(lambda: mta.audit()["delivered"] == 5 * 2 + 8 + 6 + 4 + 2)  # what is very young is left out
