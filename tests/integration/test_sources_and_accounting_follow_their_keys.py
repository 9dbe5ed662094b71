"""What comes in, under which rules, and what is written of it."""

from __future__ import annotations

import csv
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scenario import drop, to
from tests.support.mta import Mta, World

CONFIG = """
[source.pickup]
default-virtual-mta = "bulk"
allowed-virtual-mta = ["bulk", "news"]
max-message-size = "2K"
[source.shop]
pickup = "shop"
default-virtual-mta = "news"
process-x-virtual-mta = false
process-x-job = false
[vmta.bulk]
[vmta.news]
[vmta.private]
[[acct-file]]
path = "acct/short.csv"
records = ["b"]
[[acct-file]]
path = "acct/small.csv"
records = ["r"]
max-size = "1K"
[[acct-file]]
path = "acct/quick.csv"
move-interval = "1s"
"""


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    with World(tmp_path_factory.mktemp("sources")) as world, world.mta(CONFIG, start=False) as mta:
        drop(mta, "default@a.test", job="j1")
        drop(mta, "chosen@a.test", vmta="News")
        drop(mta, "forbidden@a.test", vmta="private")
        drop(mta, "large@a.test", body="x" * 3000)
        drop(mta, "550@a.test")
        shop = mta.path / "shop"
        drop(mta, "shop@a.test", vmta="private", job="j1", folder=shop)
        drop(mta, "large@shop.test", body="x" * 3000, folder=shop)
        mta.start()
        yield mta


def row_of(mta: Mta, recipient: str) -> dict[str, str]:
    mta.wait_for(lambda: len(to(mta, recipient)) == 1)
    return to(mta, recipient)[0]


def reasons(mta: Mta) -> str:
    mta.wait_for(lambda: mta.status()["pickup"]["refused"] == 2)
    return mta.log()


def test_mail_that_names_no_vmta_goes_to_the_default_of_its_source(mta: Mta) -> None:
    row = row_of(mta, "default@a.test")
    assert (row["vmta"], row["jobId"], row["srcType"]) == ("bulk", "j1", "pickup")


def test_mail_may_choose_a_vmta_that_its_source_allows(mta: Mta) -> None:
    assert row_of(mta, "chosen@a.test")["vmta"] == "news"
    assert re.search('"private", which the source "pickup" does not allow', reasons(mta))
    assert to(mta, "forbidden@a.test") == []


def test_a_message_above_max_message_size_is_refused(mta: Mta) -> None:
    assert "larger than max-message-size (2048 bytes)" in reasons(mta)
    assert row_of(mta, "large@shop.test")["type"] == "d"


def test_a_source_has_its_own_folder_and_may_ignore_what_its_mail_asks_for(mta: Mta) -> None:
    row = row_of(mta, "shop@a.test")
    assert (row["vmta"], row["jobId"], row["srcType"]) == ("news", "", "shop")


def test_an_accounting_file_holds_the_records_it_asks_for(mta: Mta) -> None:
    row_of(mta, "550@a.test")
    with open(mta.path / "acct" / "short.csv", newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["type"], row["rcpt"]) for row in rows] == [("b", "550@a.test")]


def test_an_accounting_file_is_moved_when_it_is_old_or_large(mta: Mta) -> None:
    row_of(mta, "default@a.test")
    for number in range(12):
        drop(mta, f"user{number}@more.test")
    folder = mta.path / "acct"

    def is_moved(name: str) -> bool:
        drop(mta, "again@more.test")  # the supervisor looks when something happens, or after a while
        mta.status()
        return any(re.fullmatch(rf"{name}-\d{{4}}-\d\d-\d\d-\d{{4}}\.csv", file) for file in os.listdir(folder))

    mta.wait_for(lambda: is_moved("small"))
    mta.wait_for(lambda: is_moved("quick"))
    assert not any(name.startswith("short-") for name in os.listdir(folder))


@pytest.mark.parametrize("key", ["min-free-space", "min-free-inodes"])
def test_nothing_is_taken_in_where_too_little_is_free(mta: Mta, key: str) -> None:
    before = mta.config_file.read_text()
    value = '"900T"' if key == "min-free-space" else "900_000_000_000"
    without = before.replace('min-free-space = "1M"\n', "")
    mta.config_file.write_text(without.replace("[spool]\n", f"[spool]\n{key} = {value}\n"))
    reloaded = mta.command("reload")
    assert reloaded.returncode == 0, reloaded.stderr
    mta.wait_for(lambda: mta.status()["pickup"]["disk_full"])
    drop(mta, f"{key}@full.test")
    mta.config_file.write_text(before)
    assert to(mta, f"{key}@full.test") == []
    assert any((mta.spool / "pickup").iterdir())
    assert mta.command("reload").returncode == 0
    assert row_of(mta, f"{key}@full.test")["type"] == "d"
    assert not mta.status()["pickup"]["disk_full"]


@pytest.mark.parametrize("copy", ["auto", "always"])
def test_files_are_taken_or_copied_as_pickup_copy_says(tmp_path: Path, copy: str) -> None:
    route = '[pickup]\ncopy = "{}"\n[vmta.default.domain."*"]\nsmtp-hosts = ["[127.0.0.9]:1"]\nretry-after = "1h"\n'
    with World(tmp_path) as world, world.mta(route.format(copy), start=False) as mta:
        drop(mta, "user@example.test")
        (dropped,) = (mta.spool / "pickup").iterdir()
        inode = dropped.stat().st_ino
        with open(dropped, "rb"):  # keeps the inode from being used again
            mta.start()
            mta.wait_for(lambda: mta.count("tq") == 1)
            (entry,) = mta.entries()
            assert (entry.stat().st_ino == inode) is (copy == "auto")
        mta.wait_for(lambda: not dropped.exists())


def test_no_row_is_lost_when_the_files_are_rotated_under_traffic(tmp_path: Path) -> None:
    with World(tmp_path) as world, world.mta("[vmta.a]\n[vmta.b]\n") as mta:
        for number in range(300):
            drop(mta, f"user{number}@rotate.test", vmta="ab"[number % 2])
            if number % 60 == 59:
                result = mta.command("acct", "rotate")
                assert result.returncode == 0, result.stderr
                assert result.stdout == f"rotated {mta.spool}/accounting/acct.csv\n"
                mta.wait_for(lambda: not (mta.spool / "accounting" / "acct.csv.rotating").exists())
        mta.wait_for(lambda: mta.count("d") == 300)
        recipients = sorted(row["rcpt"] for row in mta.rows("d"))
        assert recipients == sorted(f"user{number}@rotate.test" for number in range(300))
        assert mta.count("r") == 300
        assert len([*(mta.spool / "accounting").iterdir()]) == 6
        assert "ended" not in mta.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_started_as_root_it_becomes_the_user() -> None:
    nobody = pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="spoolmta-"))
    try:
        folder.chmod(0o755)
        with World(folder) as world:
            mta = world.mta(start=False)
            mta.config_file.write_text(f'user = "nobody"\n{mta.config_file.read_text()}')
            os.chown(mta.spool, nobody.pw_uid, nobody.pw_gid)
            drop(mta, "user@example.test")
            for path in (mta.spool / "pickup", *(mta.spool / "pickup").iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            with mta:
                mta.start()
                mta.wait_for(lambda: mta.count("d") == 1)
                pids = [mta.status()["pid"], mta.status()["pickup"]["pid"], mta.vmta("default")["pid"]]
                assert {os.stat(f"/proc/{pid}").st_uid for pid in pids} == {nobody.pw_uid}
    finally:
        shutil.rmtree(folder)
