"""queue-to and lookup-mx in a running system: which queue mail is in, and where it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.scenario import drop, free_port, from_source, queue_rows, received_by, to
from tests.support.mta import Mta, World

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
WRONG, BULK, OTHER = range(3)

ZONES: dict[str, Any] = {
    "one.test": {"MX": ["10 mx.wrong.test"]},
    "two.test": {"MX": ["10 mx.wrong.test"]},
    "p1.test": {"MX": ["10 mx1.big.test"]},
    "nx.test": "NXDOMAIN",
    "null.test": {"MX": ["0 ."]},
    "hosts.test": {"MX": ["10 mx.hosts.test"]},
    "levels.test": {"MX": ["10 down.hosts.test", "20 mx.hosts.test"]},
    "mx.wrong.test": {"A": ["127.0.0.2"]},
    "mx1.big.test": {"A": ["127.0.0.2"]},
    "mx.hosts.test": {"A": ["127.0.0.4"]},
    "down.hosts.test": {"A": ["127.0.0.9"]},
}

CONFIG = """
[domain."*"]
default-smtp-port = {port}
retry-after = "1h"
[domain."one.test"]
queue-to = "Bulk.queue"
max-smtp-out = 9
[domain."two.test"]
queue-to = "bulk.queue"
[domain."bulk.queue"]
smtp-hosts = ["[127.0.0.3]:{port}"]
max-smtp-out = 2
connection-idle-timeout = "5s"
[domain."named.test"]
queue-to = "hosts.test"
[domain."lost.test"]
queue-to = "nx.test"
[provider.big]
mx = ["*.big.test"]
queue-to = "big.queue"
[domain."big.queue"]
smtp-hosts = ["[127.0.0.3]:{port}"]

[domain."look.test"]
smtp-hosts = ["lookup-mx:hosts.test:{port}"]
default-smtp-port = 1
[domain."levels-first.test"]
smtp-hosts = ["lookup-mx:levels.test", ["[127.0.0.2]"]]
[domain."no-hosts.test"]
smtp-hosts = ["lookup-mx:nx.test", ["[127.0.0.3]"]]
[domain."waits.test"]
smtp-hosts = ["lookup-mx:nx.test", "lookup-mx:null.test"]
[vmta.shared]
smtp-source-host = ["127.0.0.31"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    port = free_port(*HOSTS, "127.0.0.9")
    with World(tmp_path_factory.mktemp("elsewhere"), [f"{host}:{port}" for host in HOSTS], ZONES) as world:
        mta = world.mta(CONFIG.format(port=port), route=False, start=False)
        for number in range(6):
            for domain in ("one.test", "two.test"):
                drop(mta, f"slow-dot-50ms+{number}@{domain}", vmta="shared")
        names = ("named", "lost", "p1", "look", "levels-first", "no-hosts", "waits", "null")
        for name in names:
            drop(mta, f"user@{name}.test")
        with mta:
            mta.start()
            mta.wait_for(lambda: (mta.count("d"), mta.count("tq"), mta.count("b")) == (17, 2, 1))
            yield world, mta


def where(system: tuple[World, Mta], domain: str) -> tuple[str, int]:
    """The queue a message went out from, and which of the receivers has it."""
    world, mta = system
    (record,) = received_by(world, domain)
    (row,) = to(mta, f"user@{domain}", "d")
    return row["queue"], world.sinks.index(record["listening"])


def test_domains_with_queue_to_share_the_queue_its_limits_its_connections_and_its_route(
    system: tuple[World, Mta],
) -> None:
    world, mta = system
    rows = [row for row in mta.rows("d") if row["rcpt"].startswith("slow")]
    assert {row["queue"] for row in rows} == {"bulk.queue/shared"}
    records = [*received_by(world, "one.test"), *received_by(world, "two.test")]
    assert {record["listening"] for record in records} == {world.sinks[BULK]}
    counts = from_source(world, "127.0.0.31")
    assert (counts["messages"], counts["peak"], counts["connections"]) == (12, 2, 2)


def test_what_is_queued_to_a_name_without_hosts_goes_to_the_mail_hosts_of_that_name(system: tuple[World, Mta]) -> None:
    assert where(system, "named.test") == ("hosts.test/default", OTHER)


def test_a_provider_may_queue_the_mail_of_its_domains_elsewhere(system: tuple[World, Mta]) -> None:
    assert where(system, "p1.test") == ("big.queue/default", BULK)


def test_mail_that_is_queued_to_a_name_that_does_not_exist_waits(system: tuple[World, Mta]) -> None:
    _, mta = system
    (row,) = queue_rows(mta, "nx.test")
    assert (row["queue"], row["dsnDiag"]) == ("nx.test/default", "smtp;queue-to nx.test: domain nx.test does not exist")
    assert to(mta, "user@lost.test") == []


def test_lookup_mx_sends_to_the_hosts_of_another_domain_at_its_port(system: tuple[World, Mta]) -> None:
    assert where(system, "look.test") == ("look.test/default", OTHER)


def test_all_preferences_of_a_look_up_come_before_the_next_level_of_smtp_hosts(system: tuple[World, Mta]) -> None:
    assert where(system, "levels-first.test") == ("levels-first.test/default", OTHER)


def test_a_look_up_that_finds_nothing_leaves_the_next_level_and_mail_without_any_host_waits(
    system: tuple[World, Mta],
) -> None:
    _, mta = system
    assert where(system, "no-hosts.test") == ("no-hosts.test/default", BULK)
    (row,) = queue_rows(mta, "waits.test")
    assert "lookup-mx:nx.test: domain nx.test does not exist; lookup-mx:null.test: " in row["dsnDiag"]
    assert to(mta, "user@waits.test") == []


def test_explain_tells_the_queue_with_the_line_that_says_so_and_what_holds_there(system: tuple[World, Mta]) -> None:
    _, mta = system
    result = mta.command("explain", "--domain", "one.test", "--vmta", "shared", "--json")
    (found,) = json.loads(result.stdout)["domains"]
    assert (found["queue"], found["hosts"]) == ("bulk.queue/shared", ["127.0.0.3"])
    limits = {limit["directive"]: limit for limit in found["limits"]}
    assert limits["queue-to"]["value"] == '"bulk.queue"'
    file, _, line = limits["queue-to"]["where"].rpartition(":")
    assert Path(file).read_text().splitlines()[int(line) - 1] == 'queue-to = "Bulk.queue"'
    assert limits["max-smtp-out"]["value"] == "2"
    result = mta.command("explain", "--domain", "p1.test", "--vmta", "shared", "--json")
    assert json.loads(result.stdout)["domains"][0]["queue"] == "big.queue/shared"
