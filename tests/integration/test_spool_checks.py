"""The spool is looked at before anybody works in it, and audited while somebody does."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from spoolmta.errors import ConfigError, SpoolError
from spoolmta.spool.layout import FOLDERS, prepare
from tests.support import spool_kit
from tests.support.spool_kit import Spool, deliver, mounted, reap


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_a_spool_that_is_not_there_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        prepare(str(tmp_path / "none"))
    assert caught.value.exit_status == 78


@pytest.mark.parametrize("text", ["2\n", "nonsense", "", "٣"])
def test_a_newer_format_is_refused_and_nothing_is_touched(tmp_path: Path, text: str) -> None:
    (tmp_path / "format").write_text(text)
    with pytest.raises(ConfigError, match="newer than 1") as caught:
        prepare(str(tmp_path))
    assert caught.value.exit_status == 78
    assert os.listdir(tmp_path) == ["format"]


def test_what_is_missing_is_made_and_what_is_there_is_left(tmp_path: Path) -> None:
    prepare(str(tmp_path))
    (tmp_path / "pickup").chmod(0o700)
    prepare(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {*FOLDERS, "format"}
    assert (tmp_path / "pickup").stat().st_mode & 0o7777 == 0o700
    assert list((tmp_path / "run").iterdir()) == []


def test_a_spool_that_cannot_be_written_is_an_error_of_the_disk(tmp_path: Path) -> None:
    prepare(str(tmp_path))
    with mounted(tmp_path, "--bind", str(tmp_path)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path)], check=True)
        with pytest.raises(SpoolError, match="cannot be written") as caught:
            prepare(str(tmp_path))
        assert caught.value.exit_status == 74


def test_the_audit_notices_an_entry_deleted_by_hand(spool: Spool) -> None:
    spool.take("u@a.test", "v@a.test")
    spool.take("w@b.test")
    spool.queued()[0].unlink()
    result = spool.audit()
    assert not result.balanced
    assert result.difference == 2


@pytest.mark.parametrize(("journal", "difference"), [("pickup.0.log", -1), ("one.log", 1)])
def test_the_audit_notices_a_journal_line_removed_by_hand(spool: Spool, journal: str, difference: int) -> None:
    for number in range(2):
        spool.take(f"u{number}@a.test")
    with spool.partition() as one:
        for domain, name, _ in list(one.scan()):
            deliver(one, domain, name, one.load(domain, name))
        reap(one)
    spool.check_balance(2, delivered=2)
    path = spool.root / "journal" / journal
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert spool.audit().difference == difference


def test_what_a_crash_in_a_compaction_leaves_is_not_counted(spool: Spool) -> None:
    spool.take("u@a.test")
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        deliver(one, domain, name, one.load(domain, name))
        reap(one)
        (spool.root / "journal" / "one.log.4711.new").write_text("T D=1\n")
    spool.check_balance(1, delivered=1)


WORKS = """
import os, time
from spoolmta import disk
from spoolmta.model import Outcome
from spoolmta.spool import intake
from spoolmta.spool.intake import Acceptor
from tests.support.spool_kit import Spool, deliver, reap
spool = Spool(sys.argv[1])
assert isinstance(disk.lock_process(spool.layout.lock), int)
print("running", flush=True)
acceptor = Acceptor(spool.layout, "pickup")
end = time.monotonic() + float(sys.argv[2])
total = 0
with spool.partition() as one:
    while time.monotonic() < end:
        batch = [spool.claim(acceptor, f"u{n}@a.test", "v@b.test", "w@b.test") for n in range(20)]
        acceptor.journal.append(intake.journal_lines(batch))
        for claimed in batch:
            acceptor.incoming.enqueue(claimed)
        total += 60
        for number, (domain, name, due) in enumerate(one.scan()):
            loaded = one.load(domain, name)
            if number % 3 == 0:
                one.settle(loaded, loaded.recipients[0], Outcome.BOUNCED)
                if loaded.recipients[1:]:
                    one.defer(domain, name, 1, loaded.recipients[:1], lambda name: None)
                else:
                    one.remove(domain, name)
            elif number % 3 == 1:
                deliver(one, domain, name, loaded)
        reap(one)
        if total == 600:
            one._journal.compact(one._settled.keys())
            acceptor.journal.compact(set())
acceptor.close()
print(total)
"""


def test_the_audit_of_a_running_system_balances_every_time(spool: Spool) -> None:
    with spool_kit.run(WORKS, str(spool.root), "6") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        looks = []
        while process.poll() is None:
            looks.append(spool.audit())
            time.sleep(0.1)
        total = int(process.stdout.read())
        assert process.returncode == 0
    assert len(looks) > 2
    assert [look for look in looks if not look.balanced] == []
    assert any(look.running and look.accepted and look.delivered for look in looks)
    assert spool.audit().balanced
    assert spool.audit().accepted == total


RACES = """
import os, time
from spoolmta.spool.partition import Gone
from tests.support.spool_kit import Spool, deliver, reap
spool = Spool(sys.argv[1])
wanted = int(sys.argv[2])
folder = f"{sys.argv[1]}/queue/one/a.test"
done = removed = 0
print("ready", flush=True)
with spool.partition() as one:
    while done < wanted:
        for domain, name, _ in list(one.scan()):
            deliver(one, domain, name, one.load(domain, name))
            done += 1
        reap(one)
        removed += not os.path.exists(folder)
        try:
            os.utime(folder + "/new", (0, 0))  # the next scan finds it long empty, or finds mail
        except FileNotFoundError:
            pass
print(removed)
"""


def test_empty_folders_are_removed_and_made_anew_by_two_processes_at_once(spool: Spool) -> None:
    count = 600
    with spool_kit.run(RACES, str(spool.root), str(count)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            for _ in range(count):
                spool.take("u@a.test")
            removed = int(process.stdout.readline())
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()  # or it would wait for ever for what did not come
    assert removed > 10
    spool.check_balance(count, delivered=count)
