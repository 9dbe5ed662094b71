"""Limits that several VMTAs share, each in its own process, as the receiver counts them.

The VMTAs of a limit have one source address in common, so the receiver's count for that address is of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.scenario import drop, free_port, from_source, received_by
from tests.support.mta import Mta, World

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")

ZONES: dict[str, Any] = {
    **{f"{name}.test": {"MX": ["10 mx.plain.test"]} for name in ("pool", "rate", "volume", "idle")},
    "big.test": {"MX": ["10 mx1.big.test"]},
    "net.test": {"MX": ["10 mx.net.test"]},
    "mx.plain.test": {"A": ["127.0.0.2"]},
    "mx1.big.test": {"A": ["127.0.0.3"]},
    "mx.net.test": {"A": ["127.0.0.4"]},
}

CONFIG = """
mx-connection-limit = {{ "*.big.test" = 3 }}
ip-connection-limit = {{ "127.0.0.4" = 2, "127.0.0.0/8" = 40 }}
{base}
[domain."*"]
default-smtp-port = {port}
connection-idle-timeout = "1s"
[vmta.pool-1]
smtp-source-host = ["127.0.0.31"]
[vmta.pool-2]
smtp-source-host = ["127.0.0.31"]
[pool.connections]
virtual-mta = ["pool-1", "pool-2"]
max-smtp-out = 4
[vmta.rate-1]
[vmta.rate-2]
[pool.rate]
virtual-mta = ["rate-1", "rate-2"]
max-smtp-msg-rate = "10/4s"
[vmta.volume-1]
[vmta.volume-2]
[pool.volume]
virtual-mta = ["volume-1", "volume-2"]
max-smtp-data-volume-rate = "10k/4s"
[vmta.host-1]
smtp-source-host = ["127.0.0.32"]
[vmta.host-2]
smtp-source-host = ["127.0.0.32"]
[vmta.host-3]
smtp-source-host = ["127.0.0.33"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    port = free_port(*HOSTS)
    with World(tmp_path_factory.mktemp("shared"), [f"{host}:{port}" for host in HOSTS], ZONES) as world:
        mta = world.mta(route=False, start=False)
        base = mta.config_file.read_text()
        mta.config_file.write_text(_whole(base, CONFIG, port))
        for number in range(20):
            for domain in ("big.test", "net.test"):
                for vmta in ("host-1", "host-2", "host-3"):
                    drop(mta, f"slow-dot-100ms+{number}@{domain}", vmta=vmta)
        for number in range(30):
            drop(mta, f"slow-dot-100ms+{number}@pool.test", vmta="connections")
        for number in range(15):
            drop(mta, f"{number}@rate.test", vmta="rate")
        for number in range(8):
            drop(mta, f"{number}@volume.test", vmta="volume", body="x" * 70 + ("\r\n" + "y" * 70) * 27)
        with mta:
            mta.start()
            mta.wait_for(lambda: mta.count("d") == 20 * 6 + 30 + 15 + 8)
            yield world, mta


def _whole(base: str, more: str, port: int) -> str:
    """Keys of the top first, then the tables of both."""
    top, bracket, tables = base.partition("\n[")
    return top + "\n" + more.format(base=bracket.strip() + tables, port=port)


def assert_window(found: list[float], most: int, period: float) -> None:
    """The sink's clock is read a little after ours decided: a window a little shorter is what both agree on."""
    assert all(later - earlier >= period - 0.3 for earlier, later in zip(found, found[most:], strict=False))


def times(world: World, domain: str) -> list[float]:
    return sorted(record["time"] for record in received_by(world, domain))


def test_the_members_of_a_pool_have_no_more_connections_together_than_its_max_smtp_out(
    system: tuple[World, Mta],
) -> None:
    assert from_source(system[0], "127.0.0.31")["peak"] == 4


def test_the_members_of_a_pool_send_no_more_in_any_window_than_its_max_smtp_msg_rate(system: tuple[World, Mta]) -> None:
    found = times(system[0], "rate.test")
    assert_window(found, 10, 4.0)
    assert found[-1] - found[0] < 7.0, "and what the rate allows is used"


def test_the_members_of_a_pool_send_no_more_bytes_than_its_max_smtp_data_volume_rate(system: tuple[World, Mta]) -> None:
    found = times(system[0], "volume.test")
    assert_window(found, 5, 4.0)  # about 2 KB each


def peak(world: World, source: str, host: str) -> int:
    return max(
        int(pair["peak"])
        for pair in world.stats()["pairs"]
        if pair["source"] == source and pair["listening"].startswith(host)
    )


@pytest.mark.parametrize("source", ["127.0.0.32", "127.0.0.33"])
def test_hosts_get_no_more_connections_from_an_address_than_mx_connection_limit(
    system: tuple[World, Mta], source: str
) -> None:
    assert peak(system[0], source, "127.0.0.3:") == 3


@pytest.mark.parametrize("source", ["127.0.0.32", "127.0.0.33"])
def test_a_network_gets_no_more_connections_from_an_address_than_ip_connection_limit(
    system: tuple[World, Mta], source: str
) -> None:
    assert peak(system[0], source, "127.0.0.4:") == 2


def test_nobody_is_blamed_for_a_shared_limit(system: tuple[World, Mta]) -> None:
    _, mta = system
    assert mta.rows("t", "tq") == []
    assert mta.audit()["balanced"]


TOTAL = """
total-max-smtp-out = 4
{base}
[vmta.first]
smtp-source-host = ["127.0.0.31"]
[vmta.second]
smtp-source-host = ["127.0.0.31"]
[vmta.third]
smtp-source-host = ["127.0.0.31"]
"""


def test_the_machine_has_no_more_connections_than_total_max_smtp_out_and_every_vmta_gets_its_part(
    tmp_path: Any,
) -> None:
    with World(tmp_path) as world:
        mta = world.mta(start=False)
        base = mta.config_file.read_text()
        mta.config_file.write_text(_whole(base, TOTAL, 0))
        names = ("first", "second", "third")
        for number in range(40):
            for vmta in names:
                drop(mta, f"slow-dot-50ms+{number}@{vmta}-{'ab'[number % 2]}.test", vmta=vmta)
        with mta:
            mta.start()
            mta.wait_for(lambda: mta.count("d") == 120)
            assert from_source(world, "127.0.0.31")["peak"] == 4
            half = sorted(mta.rows("d"), key=lambda row: row["timeLogged"])[:75]
            assert all(sum(row["vmta"] == vmta for row in half) >= 10 for vmta in names), half
            assert mta.audit()["balanced"]


def test_a_killed_process_gives_its_connections_back_and_a_reload_gives_more(tmp_path: Any) -> None:
    with World(tmp_path) as world:
        mta = world.mta(start=False)
        base = mta.config_file.read_text()
        mta.config_file.write_text(_whole(base, TOTAL.replace("= 4", "= 1"), 0))
        with mta:
            mta.start()
            drop(mta, "slow-dot-60s@first.test", vmta="first")
            mta.wait_for(lambda: from_source(world, "127.0.0.31")["current"] == 1)
            drop(mta, "waits@second.test", vmta="second")
            mta.wait_for(lambda: "total-max-smtp-out" in mta.command("queue", "show", "second.test/second").stdout)
            mta.kill("first")
            mta.wait_for(lambda: [row["rcpt"] for row in mta.rows("d")] == ["waits@second.test"])
            mta.wait_for(lambda: from_source(world, "127.0.0.31")["current"] == 1)
            drop(mta, "again@second.test", vmta="second")
            mta.config_file.write_text(_whole(base, TOTAL.replace("= 4", "= 2"), 0))
            assert mta.command("reload").returncode == 0
            mta.wait_for(lambda: mta.count("d") == 2)
