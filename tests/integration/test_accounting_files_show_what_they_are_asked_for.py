"""Several accounting files of one system, each with its own columns, queues, forms and places."""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scenario import drop
from tests.support.mta import Mta, World

CONFIG = """
[vmta.news]
[vmta.alerts]
[[acct-file]]
path = "acct/fields.csv"
records = ["receipt", "d", "b"]
user-string = "node 7"
map-header-to-field = { d = { header_X-Test-Id = "envId" } }
[acct-file.record-fields]
d = ["*", "!orcpt", "totalSecondsQueued", "userString", "header_Subject"]
b = ["*", "!orcpt"]
r = ["rcpt", "header_X-Test-Id", "vmtaPool"]
[[acct-file]]
path = "acct/epoch.csv"
iso-times = false
world-readable = true
sync = true
[[acct-file]]
path = "acct/news.csv"
queue-filter = ["*/news", "!*/*"]
[[acct-file]]
path = "acct/private.csv"
privacy-policy = "hmac-sha256 k3y"
[[acct-file]]
path = "acct/moved.csv"
move-interval = "1s"
move-to = "done"
count-moved-records = true
[[acct-file]]
path = "acct/old.csv"
delete-after = "8d"
"""
DAY = 86_400.0


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    with World(tmp_path_factory.mktemp("files")) as world, world.mta(CONFIG, start=False) as mta:
        for name, age in (("01-0000.csv", 9), ("02-0000.csv.gz", 9), ("03-0000.csv", 7)):
            name = f"old-2020-01-{name}"
            (mta.path / "acct").mkdir(exist_ok=True)
            (mta.path / "acct" / name).write_text("type\r\n")
            then = os.path.getmtime(mta.path) - age * DAY
            os.utime(mta.path / "acct" / name, (then, then))
        drop(mta, "ann@a.test", vmta="news", test_id="t-1", job="spring")
        drop(mta, "bob@a.test", vmta="alerts")
        drop(mta, "550@b.test", vmta="alerts")
        mta.start()
        mta.wait_for(lambda: mta.count("d") == 2 and mta.count("b") == 1)
        yield mta


def rows(mta: Mta, name: str, count: int) -> list[dict[str, str]]:
    path = mta.path / "acct" / name
    mta.wait_for(lambda: len(read(path)) == count)
    return read(path)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_file_has_the_columns_and_header_fields_it_asks_for(mta: Mta) -> None:
    found = rows(mta, "fields.csv", 6)
    assert "orcpt" not in found[0]
    received = {row["rcpt"]: row for row in found if row["type"] == "r"}
    assert received["ann@a.test"]["header_X-Test-Id"] == "t-1"
    assert (received["bob@a.test"]["header_X-Test-Id"], received["bob@a.test"]["orig"]) == ("", "")
    delivered = {row["rcpt"]: row for row in found if row["type"] == "d"}
    ann, bob = delivered["ann@a.test"], delivered["bob@a.test"]
    assert (ann["header_Subject"], ann["userString"], ann["jobId"], ann["envId"]) == ("test", "node 7", "spring", "t-1")
    assert 0 <= int(ann["totalSecondsQueued"]) < 60
    assert bob["envId"] == ""
    (bounced,) = (row for row in found if row["type"] == "b")
    assert (bounced["userString"], bounced["bounceCat"] != "") == ("", True)


def test_times_are_numbers_and_others_may_read_a_file_where_that_is_wanted(mta: Mta) -> None:
    found = rows(mta, "epoch.csv", 3)
    assert all(1_700_000_000 < int(row["timeQueued"]) <= int(row["timeLogged"]) for row in found)
    assert (mta.path / "acct" / "epoch.csv").stat().st_mode & 0o777 == 0o644
    assert (mta.path / "acct" / "news.csv").stat().st_mode & 0o777 == 0o640


def test_a_file_takes_only_the_queues_of_its_filter(mta: Mta) -> None:
    assert [row["rcpt"] for row in rows(mta, "news.csv", 1)] == ["ann@a.test"]


def test_addresses_are_hidden_behind_a_key_and_still_tell_one_person_from_another(mta: Mta) -> None:
    found = rows(mta, "private.csv", 3)
    ann = hmac.new(b"k3y", b"ann", hashlib.sha256).hexdigest()
    assert f"{ann}@a.test" in {row["rcpt"] for row in found}
    assert "ann@" not in (mta.path / "acct" / "private.csv").read_text()
    assert "k3y" not in mta.log()


def test_a_rotated_file_goes_to_the_folder_for_it(mta: Mta) -> None:
    done = mta.path / "done"
    mta.wait_for(lambda: done.is_dir() and len(list(done.iterdir())) >= 1)
    assert len(read(min(done.iterdir()))) == 3
    assert [path.name for path in (mta.path / "acct").glob("moved-*")] == []
    mta.wait_for_log(r"acct/moved\.csv is moved to .*/done/moved-\S+-0000\.csv: 3 records\n")


def test_rotated_files_are_deleted_when_they_are_old_enough(mta: Mta) -> None:
    folder = mta.path / "acct"
    mta.wait_for(lambda: not (folder / "old-2020-01-01-0000.csv").exists())
    assert sorted(path.name for path in folder.glob("old*")) == ["old-2020-01-03-0000.csv", "old.csv"]
