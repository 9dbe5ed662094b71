"""How fast connections are begun and bytes go out, as the receiver counts them: a VMTA with its own addresses each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.integration.scenario import drop, from_source, received_by
from tests.support.mta import Mta, World

CONFIG = """
[vmta.connect-rate]
smtp-source-host = ["127.0.0.31"]
[vmta.connect-rate.domain."*"]
max-connect-rate = "5/5s"
max-msg-per-connection = 1
[vmta.source-connect-rate]
smtp-source-host = ["127.0.0.32", "127.0.0.33"]
[vmta.source-connect-rate.domain."*"]
source-ip-max-connect-rate = { "127.0.0.32" = "1/m" }
max-msg-per-connection = 1
[vmta.source-connections]
smtp-source-host = ["127.0.0.34", "127.0.0.35"]
[vmta.source-connections.domain."*"]
source-ip-max-smtp-out = { "127.0.0.0/8" = 3, "127.0.0.35" = 1 }
[vmta.ramp-up]
smtp-source-host = ["127.0.0.36"]
[vmta.ramp-up.domain."*"]
smtp-out-rampup-interval = "1s"
max-msg-per-connection = 1
[vmta.source-rate]
smtp-source-host = ["127.0.0.37"]
[vmta.source-rate.domain."*"]
source-ip-max-msg-rate = { "0/0" = "10/5s" }
[vmta.volume]
smtp-source-host = ["127.0.0.38"]
[vmta.volume.domain."*"]
max-data-volume-rate = "10k/5s"
[vmta.source-volume]
smtp-source-host = ["127.0.0.39"]
[vmta.source-volume.domain."*"]
source-ip-max-data-volume-rate = { "127.0.0.39" = "10k/5s" }
[vmta.whole-rate]
smtp-source-host = ["127.0.0.40"]
max-smtp-msg-rate = "10/5s"
[vmta.whole-volume]
smtp-source-host = ["127.0.0.41"]
max-smtp-data-volume-rate = "10k/5s"
[vmta.urgent]
smtp-source-host = ["127.0.0.42"]
max-smtp-out = 1
[vmta.urgent.domain."urgent.test"]
queue-priority = 90
[vmta.patient]
smtp-source-host = ["127.0.0.43"]
max-smtp-out = 1
[vmta.patient.domain."*"]
allow-priority-interruption = false
[vmta.patient.domain."urgent.test"]
queue-priority = 90
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("limits")) as world, world.mta(CONFIG, start=False) as mta:
        for number in range(8):
            drop(mta, f"{number}@connect-rate.test", vmta="connect-rate")
            drop(mta, f"{number}@source-connect-rate.test", vmta="source-connect-rate")
        for number in range(12):
            drop(mta, f"slow-dot-200ms+{number}@source-connections.test", vmta="source-connections")
        for number in range(3):
            drop(mta, f"{number}@ramp-up.test", vmta="ramp-up")
        for number in range(15):
            drop(mta, f"{number}@source-rate.test", vmta="source-rate")
            drop(mta, f"{number}@{'abc'[number % 3]}.whole-rate.test", vmta="whole-rate")
        for number in range(8):
            for vmta in ("volume", "source-volume", "whole-volume"):
                drop(mta, f"{number}@{vmta}.test", vmta=vmta, body="x" * 70 + ("\r\n" + "y" * 70) * 27)
        for vmta in ("urgent", "patient"):
            for number in range(60):
                drop(mta, f"slow-dot-50ms+{number}@bulk-{vmta}.test", vmta=vmta)
        mta.start()
        for vmta in ("urgent", "patient"):
            mta.wait_for(lambda vmta=vmta: len(received_by(world, f"bulk-{vmta}.test")) >= 5)
            drop(mta, f"{vmta}@urgent.test", vmta=vmta)
        yield world, mta


def times(world: World, mta: Mta, domain: str, count: int) -> list[float]:
    mta.wait_for(
        lambda: sum(len(received_by(world, f"{prefix}{domain}")) for prefix in ("", "a.", "b.", "c.")) >= count
    )
    return sorted(
        record["time"] for prefix in ("", "a.", "b.", "c.") for record in received_by(world, f"{prefix}{domain}")
    )


def assert_rate(found: list[float], most: int, period: float) -> None:
    """The sink's clock is read a little after ours decided: a window a little shorter is what both agree on."""
    assert all(later - earlier >= period - 0.3 for earlier, later in zip(found, found[most:], strict=False))


def test_connections_are_begun_no_faster_than_max_connect_rate(system: tuple[World, Mta]) -> None:
    found = times(*system, "connect-rate.test", 8)
    assert from_source(system[0], "127.0.0.31")["connections"] == 8
    assert_rate(found, 5, 5.0)
    assert found[-1] - found[0] >= 4.0


def test_an_address_begins_no_more_connections_than_its_own_rate_and_the_other_takes_over(
    system: tuple[World, Mta],
) -> None:
    times(*system, "source-connect-rate.test", 8)
    sources = Counter(record["source"] for record in received_by(system[0], "source-connect-rate.test"))
    assert sources == {"127.0.0.32": 1, "127.0.0.33": 7}


def test_an_address_has_no_more_connections_than_it_may(system: tuple[World, Mta]) -> None:
    times(*system, "source-connections.test", 12)
    assert from_source(system[0], "127.0.0.34")["peak"] == 3
    assert from_source(system[0], "127.0.0.35")["peak"] == 1


def test_a_ramp_up_interval_lies_between_two_connections(system: tuple[World, Mta]) -> None:
    found = times(*system, "ramp-up.test", 3)
    assert_rate(found, 1, 1.0)


@pytest.mark.parametrize("vmta", ["source-rate", "whole-rate"])
def test_an_address_and_a_vmta_have_rates_of_their_own(system: tuple[World, Mta], vmta: str) -> None:
    found = times(*system, f"{vmta}.test", 15)
    assert_rate(found, 10, 5.0)
    assert found[-1] - found[0] >= 4.0


@pytest.mark.parametrize("vmta", ["volume", "source-volume", "whole-volume"])
def test_no_more_bytes_go_out_than_the_volume_allows(system: tuple[World, Mta], vmta: str) -> None:
    found = times(*system, f"{vmta}.test", 8)  # about 2 KB each: four fit into ten
    assert_rate(found, 5, 5.0)
    assert found[-1] - found[0] >= 4.0


def test_a_queue_of_higher_priority_gets_the_place_of_a_lower_one(system: tuple[World, Mta]) -> None:
    world, mta = system
    urgent = next(iter(received_at(world, mta, "urgent@urgent.test")))
    bulk = times(world, mta, "bulk-urgent.test", 60)
    assert sum(1 for moment in bulk if moment > urgent) > 30


def test_a_queue_that_may_not_be_interrupted_keeps_its_place(system: tuple[World, Mta]) -> None:
    world, mta = system
    bulk = times(world, mta, "bulk-patient.test", 60)
    urgent = next(iter(received_at(world, mta, "patient@urgent.test")))
    assert urgent > bulk[-1]


def received_at(world: World, mta: Mta, recipient: str) -> list[float]:
    def found() -> list[float]:
        return [record["time"] for record in received_by(world, "urgent.test") if recipient in record["recipients"]]

    mta.wait_for(lambda: bool(found()))
    return found()


def test_nothing_was_lost(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: mta.count("d") == 8 * 2 + 12 + 3 + 15 * 2 + 8 * 3 + 61 * 2)
    assert mta.audit()["balanced"]
