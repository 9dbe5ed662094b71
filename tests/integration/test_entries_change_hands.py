"""An entry given to another VMTA while both work: what goes, and what must stay where its history is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spoolmta.model import Outcome
from tests.support.spool_kit import Spool, deliver, reap


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_an_entry_handed_over_is_the_others_with_its_attempts_and_its_due_time(spool: Spool) -> None:
    spool.take("u@a.test")
    spool.take("v@a.test")
    with spool.partition("one") as one, spool.partition("two") as two:
        (_, new, _), (_, deferred, _) = one.scan()
        due = int(time.time()) + 60
        names: list[str] = []
        one.defer("a.test", deferred, due, [], names.append)
        assert one.hand_over("a.test", new, "two")
        assert one.hand_over("a.test", names[0], "two")
        assert one.known == 0
        assert sorted(two.scan()) == sorted([("a.test", new, 0), ("a.test", names[0], due)])
        for name in (new, names[0]):
            deliver(two, "a.test", name, two.load("a.test", name))
        assert reap(two) == 2
    spool.check_balance(2, delivered=2, queued=0)


def test_an_entry_stays_when_some_of_its_recipients_are_settled(spool: Spool) -> None:
    spool.take("u@a.test", "v@a.test", "w@b.test")
    with spool.partition("one") as one:
        (_, at_a, _), (_, at_b, _) = sorted(one.scan())
        loaded = one.load("a.test", at_a)
        one.settle(loaded, loaded.recipients[0], Outcome.DELIVERED)
        names: list[str] = []
        one.defer("a.test", at_a, int(time.time()), loaded.recipients[:1], names.append)
        reap(one)
        assert not one.hand_over("a.test", names[0], "two")
        assert one.hand_over("b.test", at_b, "two"), "its other domain has its own recipients"
    with spool.partition("one") as again:
        again_names = [name for _, name, _ in again.scan()]
        assert again_names == names
        assert not again.hand_over("a.test", names[0], "two"), "the journal says so after a restart too"
    spool.check_balance(3, delivered=1, queued=2)


def test_an_entry_stays_while_its_report_is_written_or_its_links_are_made(spool: Spool) -> None:
    spool.take("u@a.test")
    spool.take("u@a.test", "u@b.test")
    with spool.partition("one") as one:
        entries = {(domain, name) for domain, name, _ in one.scan()}
        single = next(name for _, name in entries if ",M=" not in name)
        domain, linked = next(found for found in entries if ",M=" in found[1])
        one.hold("a.test", single.partition(",")[0])
        assert not one.hand_over("a.test", single, "two")
        one.release("a.test", single.partition(",")[0])
        assert one.hand_over("a.test", single, "two")
        folder = spool.root / "incoming" / linked.partition(",M=")[2]
        folder.mkdir()
        (folder / f"{linked},V=one").touch()
        assert not one.hand_over(domain, linked, "two")
        (folder / f"{linked},V=one").unlink()
        assert one.hand_over(domain, linked, "two")


def test_what_is_gone_or_no_entry_is_not_handed_over(spool: Spool) -> None:
    spool.take("u@a.test")
    with spool.partition("one") as one:
        ((_, name, _),) = one.scan()
        (spool.root / "queue/one/a.test/new" / name).unlink()
        assert not one.hand_over("a.test", name, "two")
        assert not one.hand_over("a.test", "no entry", "two")
