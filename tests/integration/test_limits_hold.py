"""Connections and rates, as the receiver counts them: a VMTA with its own address for each limit, all at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from tests.integration.scenario import drop, from_source, received_by
from tests.support.mta import Mta, World

CONFIG = """
[vmta.reuse]
smtp-source-host = ["127.0.0.31"]
[vmta.reuse.domain."*"]
max-smtp-out = 1
[vmta.domain-limit]
smtp-source-host = ["127.0.0.32"]
[vmta.domain-limit.domain."*"]
max-smtp-out = 3
[vmta.vmta-limit]
smtp-source-host = ["127.0.0.33"]
max-smtp-out = 2
[vmta.few-messages]
smtp-source-host = ["127.0.0.34"]
[vmta.few-messages.domain."*"]
max-smtp-out = 1
max-msg-per-connection = 5
[vmta.few-recipients]
smtp-source-host = ["127.0.0.35"]
[vmta.few-recipients.domain."*"]
max-rcpt-per-transaction = 3
[vmta.rate]
smtp-source-host = ["127.0.0.36"]
[vmta.rate.domain."*"]
max-msg-rate = "20/s"
[vmta.no-waiting]
smtp-source-host = ["127.0.0.37"]
[vmta.no-waiting.domain."*"]
connection-idle-timeout = "0s"
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("limits")) as world, world.mta(CONFIG, start=False) as mta:
        for number in range(20):
            drop(mta, f"{number}@reuse.test", vmta="reuse")
            drop(mta, f"{number}@few-messages.test", vmta="few-messages")
        for number in range(12):
            drop(mta, f"slow-dot-100ms+{number}@domain-limit.test", vmta="domain-limit")
            drop(mta, f"slow-dot-100ms+{number}@{'abc'[number % 3]}.vmta-limit.test", vmta="vmta-limit")
        drop(mta, *(f"{number}@few-recipients.test" for number in range(8)), vmta="few-recipients")
        for number in range(40):
            drop(mta, f"{number}@rate.test", vmta="rate")
        drop(mta, "user@no-waiting.test", vmta="no-waiting")
        mta.start()
        yield world, mta


def wait_for_messages(world: World, mta: Mta, domain: str, count: int) -> list[float]:
    """When the sink took the messages to this domain, once there are so many."""
    mta.wait_for(lambda: len(received_by(world, domain)) >= count)
    times = sorted(record["time"] for record in received_by(world, domain))
    assert len(times) == count
    return times


def test_a_connection_is_used_for_many_messages_and_closed_after_its_idle_timeout(system: tuple[World, Mta]) -> None:
    world, mta = system
    last = wait_for_messages(world, mta, "reuse.test", 20)[-1]
    mta.wait_for(lambda: from_source(world, "127.0.0.31")["current"] == 0)
    assert time.time() - last >= 0.9
    assert from_source(world, "127.0.0.31")["connections"] == 1


def test_without_an_idle_timeout_a_connection_closes_at_once(system: tuple[World, Mta]) -> None:
    world, mta = system
    last = wait_for_messages(world, mta, "no-waiting.test", 1)[0]
    mta.wait_for(lambda: from_source(world, "127.0.0.37")["current"] == 0)
    if time.time() - last > 5.0:
        pytest.skip("another test came first: too late to tell")


def test_there_are_never_more_connections_to_a_domain_than_max_smtp_out(system: tuple[World, Mta]) -> None:
    world, mta = system
    wait_for_messages(world, mta, "domain-limit.test", 12)
    assert from_source(world, "127.0.0.32")["peak"] == 3


def test_there_are_never_more_connections_of_a_vmta_than_its_max_smtp_out(system: tuple[World, Mta]) -> None:
    world, mta = system
    for letter in "abc":
        wait_for_messages(world, mta, f"{letter}.vmta-limit.test", 4)
    assert from_source(world, "127.0.0.33")["peak"] == 2


def test_a_connection_carries_at_most_max_msg_per_connection(system: tuple[World, Mta]) -> None:
    world, mta = system
    wait_for_messages(world, mta, "few-messages.test", 20)
    assert from_source(world, "127.0.0.34")["connections"] == 4


def test_a_message_to_many_goes_out_in_transactions_of_max_rcpt_per_transaction(system: tuple[World, Mta]) -> None:
    world, mta = system
    wait_for_messages(world, mta, "few-recipients.test", 3)
    transactions = [record["recipients"] for record in received_by(world, "few-recipients.test")]
    assert [len(recipients) for recipients in transactions] == [3, 3, 2]
    assert sorted(itertools.chain(*transactions)) == [f"{number}@few-recipients.test" for number in range(8)]
    assert from_source(world, "127.0.0.35")["connections"] == 1


def test_no_window_of_a_rate_holds_more_than_the_rate(system: tuple[World, Mta]) -> None:
    world, mta = system
    times = wait_for_messages(world, mta, "rate.test", 40)
    assert 1.5 <= times[-1] - times[0] < 4.0
    # The sink's clock is read a little after ours decided: a window shorter by that much is what both agree on.
    assert all(times[index + 20] - times[index] >= 0.9 for index in range(20))


def test_everything_was_delivered_once(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: mta.count("d") == 20 + 20 + 12 + 12 + 8 + 40 + 1)
    assert mta.count("b", "t", "tq") == 0
    assert mta.audit()["balanced"]
