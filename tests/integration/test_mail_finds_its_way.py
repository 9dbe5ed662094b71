"""Routes, and what the receiver sees of the sender: one running system for all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.scenario import drop, free_port, has_ipv6, queue_rows, received_by, to
from tests.support.mta import Mta, World

IPV6 = has_ipv6()
HOSTS = ("127.0.0.2", "127.0.0.3", *(["::1"] if IPV6 else []))

ZONES: dict[str, Any] = {
    "mx.test": {"MX": ["10 a.mx.test"]},
    "a.mx.test": {"A": ["127.0.0.2"]},
    "second.test": {"MX": ["20 up.second.test", "10 down.second.test"]},
    "down.second.test": {"A": ["127.0.0.9"]},
    "up.second.test": {"A": ["127.0.0.3"]},
    "nx.test": "NXDOMAIN",
    "null.test": {"MX": ["0 ."]},
    "fails.test": "SERVFAIL",
    "six.test": {"MX": ["10 a.six.test"]},
    "a.six.test": {"AAAA": ["::1"]},
}

CONFIG = """
[domain."*"]
default-smtp-port = {port}
retry-after = "1m"
[domain."level.test"]
smtp-hosts = ["[127.0.0.9]:{port}", ["[127.0.0.3]:{port}"]]

[vmta.own-name]
smtp-source-host = ["127.0.0.31 own.vmta.test"]
host-name = "unused.test"
[vmta.vmta-name]
smtp-source-host = ["127.0.0.32"]
host-name = "vmta.test"
[vmta.global-name]
smtp-source-host = ["127.0.0.33"]
[vmta.turns]
smtp-source-host = ["127.0.0.34 one.test", "127.0.0.35 two.test"]
[vmta.turns.domain."*"]
max-smtp-out = 1
max-msg-per-connection = 1
[vmta.away]
smtp-source-host = ["192.0.2.1"]
[vmta.six]
smtp-source-host = ["::1 six.vmta.test"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    port = free_port(*HOSTS, "127.0.0.9")
    addresses = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in HOSTS]
    with World(tmp_path_factory.mktemp("way"), addresses, ZONES) as world:
        mta = world.mta(CONFIG.format(port=port), route=False, start=False)
        for vmta in ("own-name", "vmta-name", "global-name", ""):
            drop(mta, f"{vmta or 'default'}@mx.test", vmta=vmta)
        for number in range(4):
            drop(mta, f"{number}@mx.test", vmta="turns")
        for domain in ("second.test", "level.test", "nx.test", "null.test", "fails.test"):
            drop(mta, f"user@{domain}")
        drop(mta, "waits@mx.test", vmta="away")
        drop(mta, "user@six.test", vmta="six")
        with mta:
            mta.start()
            yield world, mta


def seen(world: World, mta: Mta, recipient: str) -> dict[str, Any]:
    """What the sink recorded of the message to this recipient, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [one for one in world.received() if recipient in one["recipients"]]

    mta.wait_for(lambda: bool(found()))
    (record,) = found()
    return record


@pytest.mark.parametrize(
    ("vmta", "source", "name"),
    [
        ("own-name", "127.0.0.31", "own.vmta.test"),
        ("vmta-name", "127.0.0.32", "vmta.test"),
        ("global-name", "127.0.0.33", "mta.test"),
        ("default", "127.0.0.1", "mta.test"),
    ],
)
def test_the_receiver_sees_the_vmtas_own_address_and_name(
    system: tuple[World, Mta], vmta: str, source: str, name: str
) -> None:
    world, mta = system
    record = seen(world, mta, f"{vmta}@mx.test")
    assert (record["source"], record["ehlo"]) == (source, name)
    mta.wait_for(lambda: len(to(mta, f"{vmta}@mx.test", "d")) == 1)
    assert to(mta, f"{vmta}@mx.test", "d")[0]["dlvSourceIp"] == source


def test_several_addresses_of_a_vmta_take_turns(system: tuple[World, Mta]) -> None:
    world, mta = system
    mine = [seen(world, mta, f"{number}@mx.test") for number in range(4)]
    mine.sort(key=lambda record: record["time"])
    ends = [(record["source"], record["ehlo"]) for record in mine]
    assert set(ends) == {("127.0.0.34", "one.test"), ("127.0.0.35", "two.test")}
    assert all(one != next_one for one, next_one in itertools.pairwise(ends))


def test_mail_goes_to_the_mx_host_at_the_default_smtp_port(system: tuple[World, Mta]) -> None:
    world, mta = system
    record = seen(world, mta, "default@mx.test")
    assert record["listening"] == world.sinks[0]
    mta.wait_for(lambda: len(to(mta, "default@mx.test", "d")) == 1)
    assert to(mta, "default@mx.test", "d")[0]["dsnMta"] == "a.mx.test (127.0.0.2)"


def test_when_the_first_mx_host_is_down_the_second_is_used(system: tuple[World, Mta]) -> None:
    world, mta = system
    assert seen(world, mta, "user@second.test")["listening"] == world.sinks[1]
    mta.wait_for(lambda: len(to(mta, "user@second.test")) == 1)
    assert to(mta, "user@second.test")[0]["type"] == "d"
    assert queue_rows(mta, "second.test") == []


def test_when_the_first_level_of_smtp_hosts_is_down_the_second_is_used(system: tuple[World, Mta]) -> None:
    world, mta = system
    assert seen(world, mta, "user@level.test")["listening"] == world.sinks[1]


@pytest.mark.parametrize(("domain", "status"), [("nx.test", "5.1.2"), ("null.test", "5.1.10")])
def test_a_domain_that_takes_no_mail_bounces_at_once(system: tuple[World, Mta], domain: str, status: str) -> None:
    _, mta = system
    mta.wait_for(lambda: len(to(mta, f"user@{domain}")) == 1)
    (row,) = to(mta, f"user@{domain}")
    assert (row["type"], row["dsnStatus"].split()[0], row["bounceCat"]) == ("b", status, "bad-domain")
    assert row["attempts"] == "1"


def test_a_name_server_that_fails_defers_the_queue(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: len(queue_rows(mta, "fails.test")) == 1)
    (row,) = queue_rows(mta, "fails.test")
    assert row["dsnStatus"].startswith("4.")
    assert "SERVFAIL" in row["dsnDiag"]
    assert to(mta, "user@fails.test") == []
    assert "fails.test/default" in mta.command("queue", "count").stdout


@pytest.mark.skipif(not IPV6, reason="this machine has no ::1")
def test_mail_goes_out_over_ipv6(system: tuple[World, Mta]) -> None:
    world, mta = system
    record = seen(world, mta, "user@six.test")
    assert (record["source"], record["ehlo"], record["listening"]) == ("::1", "six.vmta.test", world.sinks[2])


def test_an_address_that_is_not_ours_makes_mail_wait_and_is_warned_of(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for_log(r"away: .*cannot bind 192\.0\.2\.1.*mail waits")
    assert to(mta, "waits@mx.test") == []
    assert "mx.test/away" in mta.command("queue", "count").stdout


def test_nothing_else_was_received(system: tuple[World, Mta]) -> None:
    world, mta = system
    mta.wait_for(lambda: mta.count("d") == 10 + IPV6)
    assert len(received_by(world, "mx.test")) == 8
    assert mta.audit()["balanced"]
