"""SIGKILL at every arrow of a message's way: claim, journal, sync, rows, queue, hints; reply, rows, journal, removal,
deferral, compaction. All mail arrives, every recipient ends once, the balance holds, and the sink sees a message twice
only where its reply had been read and not journalled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.crash import CrashMta, by_recipient, contradictions
from tests.support.mta import BASE, ROUTE, World

VMTAS = (
    '[vmta.one]\nsmtp-source-host = ["127.0.0.11 one.test"]\n[vmta.two]\nsmtp-source-host = ["127.0.0.12 two.test"]\n'
)

INTAKE = [
    ("before the claim", 1),
    ("after the claim", 1),
    ("after the claim", 3),
    ("before the accepted line", 1),
    ("after the accepted line", 1),
    ("after the sync", 1),
    ("before the receipt rows", 1),
    ("after the receipt rows", 1),
    ("before the queue", 1),
    ("in the queue", 2),
    ("before a link", 1),
    ("after a link", 1),
    ("after a link", 2),
    ("after a link", 3),
    ("after the move out of incoming", 1),
    ("after the move out of incoming", 4),
    ("before the hints", 1),
    ("after the hints", 1),
    ("in intake's compaction, before it", 1),
    ("in intake's compaction, the new file written", 1),
    ("in intake's compaction, after it", 1),
]
DELIVERY = [
    ("the entry loaded", 1, 0),
    ("the reply read, before the rows", 1, 8),
    ("the rows collected", 1, 8),
    ("between the rows and the journal", 1, 8),
    ("after the journal", 1, 8),
    ("before the sync of a removal", 1, 4),
    ("after the sync of a removal", 1, 4),
    ("before a removal", 1, 4),
    ("after a removal", 2, 4),
    ("before the rename of a deferral", 1, 4),
    ("after the rename of a deferral", 1, 4),
    ("in the compaction, before it", 1, 0),
    ("in the compaction, the new file written", 1, 0),
    ("in the compaction, the new file in place", 1, 0),
    ("in the compaction, after it", 1, 0),
]
"""Where, at which passing, and how many transactions may have been past their dot then (each may come twice)."""


class Arrows:
    """One system that is killed again and again; every test adds its own messages."""

    def __init__(self, world: World, mta: CrashMta) -> None:
        self.world, self.mta = world, mta
        self.expected: dict[str, str] = {}
        self._number = 0

    def drop(self, vmta: str, *local_parts: str) -> list[str]:
        """A message for a recipient each in `a.test`, `b.test`, ... or wherever the local part says."""
        self._number += 1
        addresses = []
        for place, local_part in enumerate(local_parts):
            local, _, domain = local_part.partition("@")
            address = f"n{self._number}p{place}--{local}@{domain or 'a.test'}" if local != "once" else ""
            address = address or f"once-451-n{self._number}p{place}@{domain or 'a.test'}"
            addresses.append(address)
            self.expected[address] = "b" if local.startswith("550") else "d"
        self.mta.drop(*addresses, vmta=vmta)
        return addresses

    def drop_all_sorts(self, *, deferrals: bool = True) -> list[str]:
        sent = self.drop("one", "x@a.test")
        sent += self.drop("one", "x@b.test", "550-5.1.1@b.test")
        sent += self.drop("one", "x@a.test", "x@b.test", "x@c.test")
        if deferrals:
            sent += self.drop("one", "once@a.test", "x@a.test")
            sent += self.drop("one", "x@a.test", "once@b.test", "x@b.test")
        else:
            sent += self.drop("one", "x@a.test", "x@a.test")
            sent += self.drop("one", "x@a.test", "x@b.test", "x@b.test")
        return sent

    def have_ended(self, addresses: list[str]) -> bool:
        ended = {row["rcpt"] for row in self.mta.rows("d", "b")}
        return ended.issuperset(addresses)

    def wait_until_quiet(self, addresses: list[str]) -> None:
        self.mta.wait_for(lambda: self.have_ended(addresses) and not self.mta.left_over())

    def check(self) -> int:
        """That nothing contradicts; the number of messages the sink got twice since the beginning."""
        delivered = by_recipient(self.world.received())
        assert contradictions(self.mta, delivered, self.expected) == []
        return sum(len(copies) - 1 for copies in delivered.values())


@pytest.fixture(scope="module")
def arrows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arrows]:
    path = tmp_path_factory.mktemp("arrows")
    with World(path) as world:
        route = ROUTE.format(host=world.host, port=world.port)
        config = BASE.format(dns="", default_route=route, sleep_after="1m") + VMTAS
        mta = CrashMta(path / "mta", config)
        mta.mutations = ("compact-always",)
        with mta:
            yield Arrows(world, mta)
        assert mta.balance().balanced


@pytest.mark.parametrize(("point", "count"), INTAKE)
def test_a_killed_intake_loses_nothing_and_doubles_nothing(arrows: Arrows, point: str, count: int) -> None:
    before = arrows.check()
    arrows.mta.arm(point, count)
    sent = arrows.drop_all_sorts(deferrals=False)
    arrows.mta.wait_for(arrows.mta.has_fired)
    sent += arrows.drop("two", "x")  # and so the process has worked, and its next death costs no pause
    arrows.wait_until_quiet(sent)
    assert arrows.check() == before


@pytest.mark.parametrize(("point", "count", "duplicates"), DELIVERY)
def test_a_killed_delivery_loses_nothing_and_doubles_what_was_not_journalled(
    arrows: Arrows, point: str, count: int, duplicates: int
) -> None:
    before = arrows.check()
    arrows.mta.arm(point, count)
    sent = arrows.drop_all_sorts()
    arrows.mta.wait_for(arrows.mta.has_fired)
    arrows.wait_until_quiet(sent)
    sent = arrows.drop("one", "x") + arrows.drop("two", "x")
    arrows.wait_until_quiet(sent)
    assert arrows.check() - before <= duplicates
