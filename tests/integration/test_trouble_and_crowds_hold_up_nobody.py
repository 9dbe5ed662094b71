"""Mail does not wait for mail it has nothing to do with: of another job, for a bad domain, or on connections that are
refused. The long runs of the same are in `torture/`."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.integration.scenario import drop, from_source, received_by
from tests.support.mta import Mta, World

CONFIG = """
[vmta.jobs]
smtp-source-host = ["127.0.0.31"]
max-smtp-out = 1
[vmta.beside]
smtp-source-host = ["127.0.0.32"]
[vmta.beside.domain."*"]
max-smtp-out = 1
[vmta.beside.domain."dead.test"]
smtp-hosts = ["[127.0.0.2]:{dead}"]
[vmta.crowd]
smtp-source-host = ["127.0.0.33"]
[vmta.renewing]
smtp-source-host = ["127.0.0.34"]
[vmta.renewing.domain."*"]
max-msg-per-connection = 2
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("trouble"), max_connections=8) as world, socket.socket() as closed:
        closed.bind(("127.0.0.2", 0))
        with world.mta(CONFIG.format(dead=closed.getsockname()[1]), start=False) as mta:
            for number in range(200):
                drop(mta, f"slow-dot-20ms+{number}@jobs.test", vmta="jobs", job="large")
            for number in range(50):
                drop(mta, f"m{number}@dead.test", vmta="beside")
                drop(mta, f"silent+{number}@tarpit.test", vmta="beside")
            for number in range(20):
                drop(mta, f"m{number}@{'abcd'[number % 4]}.healthy.test", vmta="beside")
            for number in range(200):
                for vmta in ("crowd", "renewing"):
                    drop(mta, f"slow-dot-50ms+{number}@{vmta}.test", vmta=vmta)
            mta.start()
            yield world, mta
            mta.kill("supervisor")  # what is left is in the tarpit, and would be waited for


def test_a_small_job_does_not_wait_for_a_large_one_before_it(system: tuple[World, Mta]) -> None:
    world, mta = system
    mta.wait_for(lambda: len(received_by(world, "jobs.test")) >= 5)
    for number in range(5):
        drop(mta, f"slow-dot-20ms+small{number}@jobs.test", vmta="jobs", job="small")
    mta.wait_for(lambda: len(received_by(world, "jobs.test")) == 205)
    order = ["small" in record["recipients"][0] for record in received_by(world, "jobs.test")]
    first, last = order.index(True), len(order) - 1 - order[::-1].index(True)
    assert last - first <= 30
    assert last < 175


def test_other_domains_do_not_wait_for_one_that_is_dead_or_one_that_is_silent(system: tuple[World, Mta]) -> None:
    world, mta = system
    mta.wait_for(lambda: sum(len(received_by(world, f"{name}.healthy.test")) for name in "abcd") == 20)
    assert mta.vmta("beside")["queued"] >= 100


@pytest.mark.parametrize(("vmta", "source"), [("crowd", "127.0.0.33"), ("renewing", "127.0.0.34")])
def test_a_receiver_that_refuses_the_ninth_connection_gets_all_its_mail_on_eight(
    system: tuple[World, Mta], vmta: str, source: str
) -> None:
    world, mta = system
    mta.wait_for(lambda: len(received_by(world, f"{vmta}.test")) == 200)
    assert all(row["vmta"] != vmta for row in mta.rows("b", "t"))
    pairs = [pair for pair in world.stats()["pairs"] if pair["source"] == source]
    assert 1 <= sum(pair["connections_refused"] for pair in pairs) <= 20
    assert from_source(world, source)["messages"] == 200
