"""SIGKILL at every arrow of a report's way: written, synced, accepted with its recipients, put into the queue. The
sender of a refused message gets one report, whatever dies when; who asked for a confirmation gets one for a copy that
was delivered, and none for nothing."""

from __future__ import annotations

import email
import email.policy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from flufl.bounce import all_failures

from tests.support.crash import CrashMta, by_recipient, contradictions
from tests.support.mta import BASE, ROUTE, World

ON = "[source.pickup]\nsuppress-local-dsn = false\n"

ARROWS = [
    ("before a report is written", 1),
    ("a report written", 1),
    ("a report written", 2),
    ("before the sync of a removal", 1),
    ("after the sync of a removal", 1),
    ("a report accepted, before its lines", 1),
    ("between the rows and the journal", 2),
    ("before the lines of a report and its recipients", 1),
    ("after the lines of a report and its recipients", 1),
    ("before the line of a report", 1),
    ("after the sync of a removal", 2),
    ("before a report is in the queue", 1),
    ("a report in the queue", 1),
    ("a report in the queue", 2),
    ("before a removal", 1),
]


class Reports:
    """One system that is killed again and again, and what its senders were told."""

    def __init__(self, world: World, mta: CrashMta) -> None:
        self.world, self.mta = world, mta
        self.expected: dict[str, str] = {}
        self._number = 0

    def send(self) -> None:
        """A message that two recipients refuse and a third takes, and one whose sender wants to be told of delivery."""
        self._number += 1
        number = self._number
        author, asker = f"author{number}@home.test", f"asker{number}@home.test"
        refused = [f"n{number}x--550-5.1.1@a.test", f"n{number}y--552-5.2.2@a.test"]
        self.expected |= dict.fromkeys(refused, "b")
        self.expected |= dict.fromkeys([f"n{number}z@a.test", f"n{number}w@b.test", author, asker], "d")
        self.mta.drop(*refused, f"n{number}z@a.test", sender=author)
        self.mta.drop(f"n{number}w@b.test NOTIFY=SUCCESS", sender=asker)

    def wait_until_quiet(self) -> None:
        def is_quiet() -> bool:
            ended = {row["rcpt"] for row in self.mta.rows("d", "b")}
            return ended.issuperset(self.expected) and not self.mta.left_over()

        self.mta.wait_for(is_quiet)

    def told(self) -> dict[str, Counter[str]]:
        """What each sender was told: counts of `action address`."""
        found: dict[str, Counter[str]] = {}
        for line in self.world.received():
            if line["mail_from"]:
                continue
            data = (self.world.path / "mail" / "new" / line["file"]).read_bytes()
            report = email.message_from_bytes(data, policy=email.policy.default)
            blocks = report.get_payload(1).get_payload()  # type: ignore[union-attr]
            words = found.setdefault(line["recipients"][0], Counter())
            for block in blocks[1:]:
                words[f"{block['action']} {block['final-recipient'].partition('; ')[2]}"] += 1
            failed = {
                block["final-recipient"].partition("; ")[2] for block in blocks[1:] if block["action"] == "failed"
            }
            assert {one.decode() for one in all_failures(report)[1]} == failed
        return found

    def check(self) -> None:
        delivered = by_recipient(self.world.received())
        assert contradictions(self.mta, delivered, self.expected) == []
        told = self.told()
        for number in range(1, self._number + 1):
            assert told[f"author{number}@home.test"] == {
                f"failed n{number}x--550-5.1.1@a.test": 1,
                f"failed n{number}y--552-5.2.2@a.test": 1,
            }
            (confirmed,) = told[f"asker{number}@home.test"].items()
            assert confirmed[0] == f"relayed n{number}w@b.test"
            assert 1 <= confirmed[1] <= len(delivered[f"n{number}w@b.test"])


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    path: Path = tmp_path_factory.mktemp("reports")
    for folder in ("tmp", "new", "cur"):
        (path / "mail" / folder).mkdir(parents=True)
    with World(path, maildir=str(path / "mail"), dsn=False) as world:
        route = ROUTE.format(host=world.host, port=world.port)
        mta = CrashMta(path / "mta", BASE.format(dns="", default_route=route, sleep_after="1m") + ON)
        mta.mutations = ("compact-always",)
        with mta:
            yield Reports(world, mta)
        assert mta.balance().balanced


@pytest.mark.parametrize(("point", "count"), ARROWS)
def test_a_killed_delivery_tells_every_sender_once(reports: Reports, point: str, count: int) -> None:
    reports.mta.arm(point, count)
    reports.send()
    reports.mta.wait_for(reports.mta.has_fired)
    reports.wait_until_quiet()
    reports.send()  # and so the next process has worked, and its death costs no pause
    reports.wait_until_quiet()
    reports.check()
