"""MX roll-up: domains whose mail goes to the same hosts, or to one provider's, share connections and limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.scenario import drop, free_port, from_source, to
from tests.support.mta import Mta, World

HOSTS = ("127.0.0.2",)

ZONES: dict[str, Any] = {
    "one.test": {"MX": ["10 mx1.big.test", "20 mx2.big.test"]},
    "two.test": {"MX": ["10 mx2.big.test", "10 mx1.big.test"]},
    "three.test": {"MX": ["10 mx9.big.test"]},
    "out.test": {"MX": ["10 mx1.big.test"]},
    "tight.test": {"MX": ["10 mx1.big.test"]},
    "half.test": {"MX": ["10 mx1.big.test", "20 mx.other.test"]},
    "same.test": {"MX": ["10 mx.shared.test"]},
    "alike.test": {"MX": ["10 mx.shared.test"]},
    "own.test": {"MX": ["10 mx.shared.test"]},
    "mx1.big.test": {"A": ["127.0.0.2"]},
    "mx2.big.test": {"A": ["127.0.0.2"]},
    "mx9.big.test": {"A": ["127.0.0.2"]},
    "mx.other.test": {"A": ["127.0.0.2"]},
    "mx.shared.test": {"A": ["127.0.0.2"]},
}

CONFIG = """
[domain."*"]
default-smtp-port = {port}
[domain."out.test"]
disable-mx-rollup = true
[domain."own.test"]
max-smtp-out = 1
[domain."tight.test"]
max-smtp-out = 1
[provider.big]
mx = ["*.big.test"]
max-smtp-out = 2
connection-idle-timeout = "5s"
[vmta.sharing]
smtp-source-host = ["127.0.0.31"]
[vmta.tight]
smtp-source-host = ["127.0.0.32"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    port = free_port(*HOSTS)
    with World(tmp_path_factory.mktemp("rollup"), [f"{host}:{port}" for host in HOSTS], ZONES) as world:
        mta = world.mta(CONFIG.format(port=port), route=False, start=False)
        for number in range(6):
            for domain in ("one.test", "two.test", "three.test"):
                drop(mta, f"slow-dot-50ms+{number}@{domain}", vmta="sharing")
            drop(mta, f"slow-dot-50ms+{number}@tight.test", vmta="tight")
        for domain in ("out.test", "half.test", "same.test", "alike.test", "own.test"):
            drop(mta, f"user@{domain}")
        with mta:
            mta.start()
            mta.wait_for(lambda: mta.count("d") == 29)
            yield world, mta


def queue_of(mta: Mta, recipient: str) -> str:
    (row,) = to(mta, recipient, "d")
    return row["queue"]


def test_the_domains_of_a_provider_share_its_limits_and_its_queue(system: tuple[World, Mta]) -> None:
    world, mta = system
    assert {queue_of(mta, f"slow-dot-50ms+0@{name}.test") for name in ("one", "two", "three")} == {"big.rollup/sharing"}
    assert from_source(world, "127.0.0.31")["peak"] == 2


def test_a_connection_carries_only_mail_of_domains_that_name_its_host(system: tuple[World, Mta]) -> None:
    _, mta = system
    hosts = {
        domain: {row["dsnMta"].split(" ")[0] for row in mta.rows("d") if row["rcpt"].endswith(f"@{domain}")}
        for domain in ("one.test", "two.test", "three.test")
    }
    assert hosts["one.test"] | hosts["two.test"] <= {"mx1.big.test", "mx2.big.test"}
    assert hosts["three.test"] == {"mx9.big.test"}


def test_a_domains_own_limit_holds_within_its_provider(system: tuple[World, Mta]) -> None:
    world, mta = system
    assert queue_of(mta, "slow-dot-50ms+0@tight.test") == "big.rollup/tight"
    assert from_source(world, "127.0.0.32")["peak"] == 1


def test_a_domain_that_is_taken_out_has_a_queue_of_its_own(system: tuple[World, Mta]) -> None:
    _, mta = system
    assert queue_of(mta, "user@out.test") == "out.test/default"


def test_domains_with_the_same_hosts_share_a_queue_without_any_configuration(system: tuple[World, Mta]) -> None:
    _, mta = system
    assert queue_of(mta, "user@same.test") == queue_of(mta, "user@alike.test") == "mx.shared.test.rollup/default"
    assert queue_of(mta, "user@half.test") == "mx.other.test.rollup/default"
    assert queue_of(mta, "user@own.test") == "own.test/default"
