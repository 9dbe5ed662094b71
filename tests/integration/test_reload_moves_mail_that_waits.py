"""A reload that changes where mail goes, while mail waits, is being sent, or has no place yet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.scenario import drop, free_port, from_source, received_by
from tests.support.mta import Mta, World

HOSTS = ("127.0.0.2", "127.0.0.3")
OLD, NEW = range(2)

ZONES: dict[str, Any] = {
    "fails.test": "SERVFAIL",
    "up.test": {"MX": ["10 mx.up.test"]},
    "plain.test": {"MX": ["10 mx.up.test"]},
    "mx.up.test": {"A": ["127.0.0.2"]},
    "down.test": {"MX": ["10 mx.down.test"]},
    "rolled.test": {"MX": ["10 mx.down.test"]},
    "stays.test": {"MX": ["10 mx.down.test"]},
    "provided.test": {"MX": ["10 mx.big.test"]},
    "mx.down.test": {"A": ["127.0.0.9"]},
    "mx.big.test": {"A": ["127.0.0.9"]},
}

CONFIG = """
[domain."*"]
default-smtp-port = {port}
retry-after = "1h"
retry-after-dns-error = "1h"
connection-idle-timeout = "10m"
[domain."bulk.queue"]
smtp-hosts = ["[127.0.0.3]:{port}"]
[provider.big]
mx = ["*.big.test"]
[vmta.busy]
smtp-source-host = ["127.0.0.31"]
[vmta.busy.domain."*"]
max-smtp-out = 1
"""

BEFORE = """
[domain."dead.test"]
smtp-hosts = ["[127.0.0.9]:{port}"]
[domain."busy.test"]
smtp-hosts = ["[127.0.0.2]:{port}"]
[domain."up.test"]
default-smtp-port = 1
[domain."plain.test"]
require-starttls = true
"""

AFTER = """
[domain."dead.test"]
smtp-hosts = ["[127.0.0.3]:{port}"]
[domain."busy.test"]
smtp-hosts = ["[127.0.0.3]:{port}"]
[domain."fails.test"]
smtp-hosts = ["[127.0.0.3]:{port}"]
[domain."down.test"]
queue-to = "bulk.queue"
[domain."rolled.test"]
disable-mx-rollup = true
"""

WAITING = ("dead", "up", "plain", "fails", "down", "rolled", "stays", "provided")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    """Mail waits, one message is being sent to the first receiver and one connection to it is idle, when the operator
    reloads."""
    port = free_port(*HOSTS, "127.0.0.9")
    with World(tmp_path_factory.mktemp("moves"), [f"{host}:{port}" for host in HOSTS], ZONES) as world:
        mta = world.mta((CONFIG + BEFORE).format(port=port), route=False, start=False)
        for name in WAITING:
            for number in range(3):
                drop(mta, f"user{number}@{name}.test")
        drop(mta, "slow-dot-3s@busy.test", vmta="busy")
        drop(mta, "first@busy.test")
        with mta:
            mta.start()
            mta.wait_for(lambda: mta.count("tq") == 6 and mta.count("d") == 1)  # five sites and a look-up
            mta.wait_for(lambda: from_source(world, "127.0.0.31")["current"] == 1)
            for number in range(5):
                drop(mta, f"user{number}@busy.test", vmta="busy")
            mta.wait_for(lambda: mta.vmta("busy")["queued"] == 6)
            assert from_source(world, "127.0.0.31")["messages"] == 0
            assert queues(mta)["mx.down.test.rollup/default"] == ["down.test", "rolled.test", "stays.test"]
            text = mta.config_file.read_text().replace('"*.big.test"', '"*.small.test"')
            mta.config_file.write_text(text.replace(BEFORE.format(port=port), AFTER.format(port=port)))
            assert mta.command("reload").returncode == 0
            yield world, mta


def queues(mta: Mta) -> dict[str, list[str]]:
    """The queues with mail of the VMTA "default", and whose."""
    found = json.loads(mta.command("vmta", "default", "--json").stdout)
    return {one["queue"]: one["domains"] for one in found if one["domains"]}


def receivers(system: tuple[World, Mta], domain: str) -> Counter[int]:
    """How many messages for a domain each of the receivers has."""
    world, _ = system
    return Counter(world.sinks.index(record["listening"]) for record in received_by(world, domain))


@pytest.mark.parametrize(
    ("domain", "receiver"), [("dead", NEW), ("up", OLD), ("plain", OLD), ("fails", NEW), ("down", NEW)]
)
def test_mail_that_waited_goes_where_the_new_configuration_says_at_once(
    system: tuple[World, Mta], domain: str, receiver: int
) -> None:
    _, mta = system
    mta.wait_for(lambda: receivers(system, f"{domain}.test") == {receiver: 3})


def test_what_is_being_sent_is_finished_where_it_is_and_the_rest_goes_to_the_new_host(
    system: tuple[World, Mta],
) -> None:
    _, mta = system
    mta.wait_for(lambda: receivers(system, "busy.test").total() == 7)
    assert receivers(system, "busy.test") == {OLD: 2, NEW: 5}
    rows = [row for row in mta.rows("d") if row["rcpt"] == "slow-dot-3s@busy.test"]
    assert [row["dlvDestinationIp"] for row in rows] == ["127.0.0.2"]


def test_connections_to_the_old_host_end(system: tuple[World, Mta]) -> None:
    world, mta = system

    def open_to(sink: int) -> int:
        hosts = [pair for pair in world.stats()["pairs"] if pair["listening"] == world.sinks[sink]]
        return sum(pair["current"] for pair in hosts if pair["source"] == "127.0.0.31")

    mta.wait_for(lambda: receivers(system, "busy.test").total() == 7)
    mta.wait_for(lambda: (open_to(OLD), open_to(NEW)) == (0, 1))


def test_mail_that_still_has_no_host_waits_in_the_queue_it_belongs_to_now(system: tuple[World, Mta]) -> None:
    _, mta = system
    expected = {
        "rolled.test/default": ["rolled.test"],
        "mx.down.test.rollup/default": ["stays.test"],
        "mx.big.test.rollup/default": ["provided.test"],
    }
    mta.wait_for(lambda: {queue: names for queue, names in queues(mta).items() if queue in expected} == expected)
    assert "big.rollup/default" not in queues(mta)


def test_nothing_is_lost_and_nothing_comes_twice(system: tuple[World, Mta]) -> None:
    world, mta = system
    mta.wait_for(lambda: mta.count("d") == 5 * 3 + 7)
    everybody = Counter(recipient for record in world.received() for recipient in record["recipients"])
    assert len(everybody) == everybody.total() == 22
    assert mta.audit()["queued"] == 9
    assert mta.audit()["balanced"]
