"""The reports of a process on their way into the queue, step by step on a real spool: no recipient is settled before
its report is safe, a full disk makes both wait, and what a dead process left is carried on with or left out, never
twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spoolmta import accounting, dsn
from spoolmta.model import Answer, Config, DomainPolicy, Outcome, Reply, Stage
from spoolmta.notify import Action
from spoolmta.opener import Ends
from spoolmta.reminder import Reminder
from spoolmta.reporter import Ended, Owner, Reporter
from spoolmta.shared import Page
from spoolmta.spool.partition import Loaded, Partition
from tests.support.spool_kit import Spool, fill, reap, small_disk

CONFIG = Config(host_name="mta.test", spool="")
REFUSAL = Answer(Stage.RCPT, Reply(550, ("5.1.1 no such user",)))


class Desk:
    """A partition and its reporter, without a process around them."""

    def __init__(self, spool: Spool, partition: Partition) -> None:
        self.spool, self.partition = spool, partition
        self.queued: list[tuple[str, str]] = []
        self.rows = accounting.Log((), page := Page(8), page.row("test"))
        self.reminder: Reminder | None = None
        self.owner = Owner(lambda _: DomainPolicy(), lambda domain: domain, lambda *found: self.queued.append(found))
        self.reporter = Reporter(CONFIG, self.owner, partition)

    def load(self) -> tuple[str, str, Loaded]:
        ((domain, name, _),) = self.partition.scan()
        return domain, name, self.partition.load(domain, name)

    def report(self, action: Action, domain: str, loaded: Loaded) -> None:
        outcome = Outcome.BOUNCED if action is Action.FAILED else Outcome.DELIVERED
        ended = [Ended(recipient, REFUSAL, outcome, ["b"]) for recipient in loaded.recipients]
        self.reporter.report(action, loaded, domain, Ends("mx.a.test"), ended)

    def sync(self) -> bool:
        return self.reporter.settle(time.monotonic_ns(), self.rows)


@contextmanager
def desk(spool: Spool) -> Iterator[Desk]:
    with spool.partition() as partition:
        yield Desk(spool, partition)


def names(spool: Spool, *parts: str) -> list[str]:
    return [path.parent.parent.name + "/" + path.parent.name for path in spool.files(*parts)]


def fail_one(found: Desk) -> None:
    """One message with a recipient that is refused: reported, its entry to be removed."""
    domain, name, loaded = found.load()
    found.report(Action.FAILED, domain, loaded)
    found.partition.remove(domain, name)


def test_a_failed_recipient_is_settled_by_the_sync_behind_its_report_and_removed_by_the_next(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test")
    with desk(spool) as found:
        before = time.monotonic_ns()
        fail_one(found)
        assert not found.reporter.settle(before, found.rows), "that sync began before the report was there"
        assert reap(found.partition) == 0
        assert names(spool, "queue") == [".dsn/new", "a.test/new"]
        spool.check_balance(1, queued=1, bounced=0)
        assert found.sync()
        assert spool.audit().balanced
        found.partition.flush()
        spool.check_balance(2, queued=1, bounced=1)
        assert names(spool, "queue") == [".dsn/new", "a.test/new"]
        reap(found.partition)
        assert names(spool, "queue") == ["sender.test/new"]
        assert [domain for domain, _ in found.queued] == ["sender.test"]
        spool.check_balance(2, queued=1, bounced=1)


def test_on_a_full_disk_the_bounce_waits_for_its_report(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as folder:
        spool = Spool(folder / "spool")
        spool.take("x@a.test")
        with desk(spool) as found:
            domain, name, loaded = found.load()
            filler = fill(folder)
            found.report(Action.FAILED, domain, loaded)
            found.partition.remove(domain, name)
            assert not found.reporter.is_idle
            assert not found.sync()
            assert reap(found.partition) == 0
            assert names(spool, "queue") == ["a.test/new"]
            filler.unlink()
            deadline = time.monotonic() + 10
            while found.reporter.waiting_since is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                found.reporter.write()
            assert found.sync()
            reap(found.partition)
            assert names(spool, "queue") == ["sender.test/new"]
            spool.check_balance(2, queued=1, bounced=1)


def test_so_many_reports_without_room_stop_the_sending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spoolmta.reporter.MAX_UNWRITTEN", 2)
    with small_disk(tmp_path / "disk") as folder:
        spool = Spool(folder / "spool")
        spool.take("x@a.test")
        with desk(spool) as found:
            domain, _, loaded = found.load()
            filler = fill(folder)
            found.report(Action.FAILED, domain, loaded)
            assert not found.reporter.is_stuck
            found.report(Action.FAILED, domain, loaded)
            assert found.reporter.is_stuck
            filler.unlink()


def test_a_report_without_its_line_is_left_out_and_its_recipient_tried_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test")
    with desk(spool) as found:
        fail_one(found)
    with desk(spool) as found:
        found.reporter.recover(found.rows)
        assert names(spool, "queue") == ["a.test/new"]
        assert [recipient.address for recipient in found.load()[2].recipients] == ["x@a.test"]
        spool.check_balance(1, queued=1)


def test_a_report_with_its_line_is_carried_on_with(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test")
    with desk(spool) as found:
        fail_one(found)
        found.sync()
        found.partition.flush()
    spool.check_balance(2, queued=1, bounced=1)
    with desk(spool) as found:
        found.reporter.recover(found.rows)
        reap(found.partition)
        assert names(spool, "queue") == ["a.test/new", "sender.test/new"]
        assert len(found.queued) == 1
        spool.check_balance(2, queued=1, bounced=1)


def test_a_confirmation_stands_for_itself(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test")
    with desk(spool) as found:
        domain, _, loaded = found.load()
        found.report(Action.RELAYED, domain, loaded)
        assert names(spool, "queue") == [".dsn/cur", "a.test/new"]
    with desk(spool) as found:
        found.reporter.recover(found.rows)
        reap(found.partition)
        assert names(spool, "queue") == ["a.test/new", "sender.test/new"]
        spool.check_balance(2, queued=2)


@pytest.mark.parametrize("was_accepted", [True, False])
def test_a_damaged_report_is_put_aside_if_it_was_accepted_and_else_removed(tmp_path: Path, was_accepted: bool) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test")
    with desk(spool) as found:
        fail_one(found)
        if was_accepted:
            found.sync()
            found.partition.flush()
    (report,) = spool.files("queue", "one", ".dsn")
    report.write_bytes(report.read_bytes()[:-1])
    with desk(spool) as found:
        found.reporter.recover(found.rows)
        reap(found.partition)
        assert spool.files("queue", "one", ".dsn") == []
        assert len(spool.files("corrupt")) == 2 * was_accepted
        spool.check_balance(1 + was_accepted, quarantined=int(was_accepted))


def test_two_reports_of_one_entry_hold_it_until_both_are_safe(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test", "y@a.test")
    with desk(spool) as found:
        domain, name, loaded = found.load()
        between = []
        for recipient in loaded.recipients:
            ended = [Ended(recipient, REFUSAL, Outcome.BOUNCED, ["b"])]
            found.reporter.report(Action.FAILED, loaded, domain, Ends(), ended)
            between.append(time.monotonic_ns())
        found.partition.remove(domain, name)
        assert found.reporter.settle(between[0], found.rows)
        reap(found.partition)
        assert names(spool, "queue", "one", "a.test") == ["a.test/new"]
        assert found.sync()
        reap(found.partition)
        assert names(spool, "queue", "one") == ["sender.test/new"] * 2
        spool.check_balance(4, queued=2, bounced=2)


def test_a_huge_message_is_not_returned(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    config_body = "x" * 70 + "\n"
    spool.take("x@a.test", body=config_body * 2000)
    with desk(spool) as found:
        domain, _, loaded = found.load()
        found.report(Action.FAILED, domain, loaded)
        (report,) = spool.files("queue", "one", ".dsn")
        assert report.stat().st_size < dsn.MAX_RETURNED


HOUR = 3600.0


def notices(found: Desk, hours: float, *, is_new: bool = False) -> int:
    """The notices that a whole round writes so many hours from now; they are durable then."""
    if is_new or found.reminder is None:
        found.reminder = Reminder(CONFIG, found.owner, found.partition, found.reporter)
    before = len(found.spool.files("queue", "one", ".dsn")) + len(found.queued)
    for _ in range(3):
        found.reminder.remind(time.time() + hours * HOUR)
    found.sync()
    reap(found.partition)
    return len(found.spool.files("queue", "one", ".dsn")) + len(found.queued) - before


def test_a_delay_is_told_of_once_in_each_interval_also_by_the_next_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test NOTIFY=DELAY")
    spool.take("y@a.test NOTIFY=FAILURE")
    with desk(spool) as found:
        assert len(list(found.partition.scan())) == 2
        assert [notices(found, hours) for hours in (1, 3.9, 4.1, 5, 7.9, 8.1)] == [0, 0, 1, 0, 0, 1]
        assert notices(found, 8.2, is_new=True) == 0
    with desk(spool) as found:
        list(found.partition.scan())
        assert [notices(found, hours) for hours in (8.3, 11.9, 17)] == [0, 0, 1]
        spool.check_balance(5, queued=5)


def test_mail_that_only_waits_to_be_removed_is_not_called_delayed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.take("x@a.test NOTIFY=DELAY")
    with desk(spool) as found:
        domain, name, loaded = found.load()
        found.partition.settle(loaded, loaded.recipients[0], Outcome.DELIVERED)
        found.partition.remove(domain, name)
        assert notices(found, 5) == 0
