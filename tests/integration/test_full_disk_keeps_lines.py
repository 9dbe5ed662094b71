"""What must be written on a full disk waits, whole, until there is room."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import pytest

from spoolmta import journal
from spoolmta.accounting import Log
from spoolmta.errors import SpoolError
from spoolmta.journal import Journal
from spoolmta.model import AcctFile, Outcome
from spoolmta.shared import Page
from spoolmta.spool.layout import prepare
from tests.support.spool_kit import Spool, deliver, fill, fill_inodes, reap, small_disk


def test_journal_lines_are_kept_and_written_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        book = Journal(str(disk / "one.log"))
        book.append("D first a@b\n")
        filler = fill(disk)
        refused = 0
        for number in range(5000):
            try:
                book.append(f"D id{number} someone.with.a.long.name@example.test\n")
            except SpoolError:
                refused += 1
        assert 0 < refused < 5000 - 500  # the reserve took the first ones
        assert (disk / "one.log").read_bytes().endswith(b"\n")
        assert book.has_rest
        size = (disk / "one.log").stat().st_size
        book.compact(set())
        assert (disk / "one.log").stat().st_size == size
        filler.unlink()
        book.append("D last a@b\n")
        assert not book.has_rest
        book.close()
        lines = (disk / "one.log").read_text().splitlines()
        assert [line.split()[1] for line in lines] == ["first", *(f"id{n}" for n in range(5000)), "last"]


def test_rows_of_several_writers_are_kept_and_none_is_torn(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        file = AcctFile(path=str(disk / "acct.csv"))
        page = Page(3)
        logs = [Log((file,), page, page.row(str(number))) for number in range(3)]
        for log in logs:
            log.write(["d", *["warm"] * 24])
            log.flush()
        filler = fill(disk)
        refused = 0
        for number in range(9000):
            log = logs[number % 3]
            log.write(["d", str(number), *["some value"] * 23])
            try:
                log.flush()
            except SpoolError:
                refused += 1
                assert log.is_dirty
        assert 0 < refused < 9000
        assert Path(file.path).read_bytes().endswith(b"\r\n")
        page.next_log_generation()
        with pytest.raises(SpoolError):
            logs[0].reopen_if_rotated()  # its rows belong to the old file: the rotation has to wait
        filler.unlink()
        for log in logs:
            log.flush()
            log.close()
        with open(file.path, newline="") as stream:
            rows = list(csv.reader(stream))
        assert {len(row) for row in rows} == {25}
        assert sorted(int(row[1]) for row in rows[4:]) == list(range(9000))


def test_nothing_is_removed_while_its_line_waits(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        spool = Spool(disk / "spool")
        for _ in range(3):
            spool.take("a@a.test")
        with spool.partition() as partition:
            entries = list(partition.scan())
            journal = partition._journal._file
            os.ftruncate(journal._descriptor, 0)  # as if the reserve had been used up
            journal._reserved = 0
            filler = fill(disk)
            for domain, name, _ in entries:
                deliver(partition, domain, name, partition.load(domain, name))
            for _ in range(3):
                with pytest.raises(SpoolError):
                    partition.flush()
                assert partition.is_dirty
                assert partition.reap(time.monotonic_ns()) == 0
            assert len(spool.queued()) == 3
            filler.unlink()
            assert reap(partition) == 3
            assert not partition.is_dirty
        spool.check_balance(3, delivered=3)


def test_a_deferred_message_stays_where_it_is_when_it_cannot_be_renamed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        spool = Spool(disk / "spool")
        (hint,) = spool.take("a@a.test")
        with spool.partition() as partition:
            ((domain, name, _),) = partition.scan()
            fill(disk)
            fill_inodes(disk)
            after: list[str] = []
            partition.defer(domain, name, 2_000_000_000, [], after.append)
            assert len(spool.queued()) == 1
            assert after == [name]  # no room for `cur/`: it keeps its name, and only the attempt is forgotten
            assert len(partition.load(domain, name).recipients) == 1
            assert hint.endswith(name)


def test_a_damaged_entry_is_put_aside_and_counted_without_its_reason(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        spool = Spool(disk / "spool")
        spool.take("a@a.test")
        spool.queued()[0].write_bytes(b"short")
        with spool.partition() as partition:
            partition._journal.append(journal.settled_line(Outcome.DELIVERED, "reserve", "a@b"))
            ((domain, name, _),) = partition.scan()
            fill(disk)
            with pytest.raises(Exception, match="size or checksum"):
                partition.load(domain, name)
            assert reap(partition) == 1
        assert spool.queued() == []
        assert spool.files("corrupt")
        result = spool.audit()
        assert (result.accepted, result.quarantined) == (1, 1)


def test_a_full_disk_does_not_keep_the_spool_from_being_worked_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        Spool(disk / "spool")
        filler = fill(disk)
        fill_inodes(disk)
        prepare(str(disk / "spool"))
        filler.unlink()
