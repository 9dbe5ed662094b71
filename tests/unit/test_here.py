from __future__ import annotations

import random

import pytest

from spoolmta.here import Here, here
from spoolmta.model import Config, Failure, FailureKind, Host, SourceHost, Vmta
from spoolmta.resolver import mail_hosts

CONFIG = Config(
    host_name="MTA.test",
    spool="/spool",
    vmtas={
        "a": Vmta(
            name="a", host_name="a.test", source_hosts=(SourceHost("192.0.2.1", "one.a.test"), SourceHost("::9"))
        ),
        "b": Vmta(name="b", source_hosts=(SourceHost("127.0.0.9"),)),
    },
)


def test_all_names_and_source_addresses_are_this_machine() -> None:
    known = here(CONFIG)
    assert known.names == {"mta.test", "a.test", "one.a.test"}
    assert [known.is_own(address) for address in ("192.0.2.1", "::9", "192.0.2.2")] == [True, True, False]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:0:0"]
)
def test_loopback_is_this_machine_however_it_is_written_unless_it_is_allowed(address: str) -> None:
    assert Here().is_own(address)
    assert not Here(allows_loopback=True).is_own(address)


def hosts(*records: str) -> tuple[Host, ...] | Failure:
    return mail_hosts("d.test", records, random.Random(1), frozenset({"mta.test", "d.test"}))


def test_where_we_are_a_host_only_the_better_ones_are_tried() -> None:
    assert hosts("5 best.test.", "10 MTA.test.", "10 equal.test.", "20 worse.test.") == (Host("best.test"),)
    assert hosts("5 best.test.", "10 next.test.") == (Host("best.test"), Host("next.test"))


@pytest.mark.parametrize("records", [["10 mta.test."], ["10 mta.test.", "20 worse.test."], []])
def test_mail_that_would_only_come_back_to_us_loops(records: list[str]) -> None:
    result = hosts(*records)
    assert isinstance(result, Failure)
    assert result.kind is FailureKind.LOOP
