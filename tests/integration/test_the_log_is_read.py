"""A log that a running system writes, read under rotation: by PowerMTA's own readers' ways, by our API, by commands."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from spoolmta import log
from tests.integration import test_rotation_loses_no_row as rotation
from tests.integration.scenario import drop
from tests.support import spool_kit
from tests.support.mta import ROOT, Mta, World, wait_for

CONFIG = """
[vmta.news]
[vmta.bulk]
"""
COUNT = 40
POWERMTA = (
    "type,timeLogged,timeQueued,orig,rcpt,orcpt,dsnAction,dsnStatus,dsnDiag,dsnMta,bounceCat,srcType,srcMta,dlvType,"
    "dlvSourceIp,dlvDestinationIp,dlvEsmtpAvailable,dlvSize,vmta,jobId,envId,queue,vmtaPool"
).split(",")


def tail(path: Path, is_done: threading.Event) -> Iterator[str]:
    """Lines as `tail -F` gives them out; an old file is kept until its writers have left it."""
    file, part = open(path, newline="", encoding="utf-8"), ""
    rotating = path.with_name(path.name + ".rotating")
    while True:
        is_last = is_done.is_set()
        has_moved = not os.path.samestat(os.fstat(file.fileno()), os.stat(path)) and not rotating.exists()
        for text in file:
            part += text
            if part.endswith("\n"):
                yield part
                part = ""
        if has_moved:
            file.close()
            file = open(path, newline="", encoding="utf-8")
            next(file)
        elif is_last:
            file.close()
            return
        else:
            time.sleep(0.01)


class Tails:
    """Readers that were there from the beginning: the csv module behind a tail, and our API."""

    def __init__(self, path: Path) -> None:
        self.is_done = threading.Event()
        self.by_csv: list[dict[str, str]] = []
        self.by_api: list[log.Record] = []
        self._path = path
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read_csv, self._read_api)]
        for thread in self._threads:
            thread.start()

    def _read_csv(self) -> None:
        self.by_csv += csv.DictReader(tail(self._path, self.is_done))

    def _read_api(self) -> None:
        with log.follow(self._path, stop=self.is_done.is_set, poll=0.01) as rows:
            self.by_api += rows

    def end(self, count: int) -> None:
        wait_for(lambda: len(self.by_api) >= count, lambda: f"{len(self.by_api)} rows of {count}")
        self.is_done.set()
        for thread in self._threads:
            thread.join(20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("read")) as world:
        yield world


@pytest.fixture(scope="module")
def mta(world: World) -> Iterator[Mta]:
    """A system whose log was rotated twice while it delivered, with readers behind it."""
    with world.mta(CONFIG) as mta:
        tails = Tails(path_of(mta))
        for part in range(3):
            for number in range(COUNT // 2):
                drop(mta, f"user{part}-{number}@a.test", vmta="news", job=f"j{part}")
                drop(mta, f"550-5.1.1+{part}-{number}@b.test", vmta="bulk", job=f"j{part}")
            mta.wait_for(lambda: mta.count("d", "b") >= COUNT // 2)
            if part < 2:
                assert mta.command("acct", "rotate").returncode == 0
        mta.wait_for(lambda: mta.count("d", "b") == 3 * COUNT)
        tails.end(mta.count())
        mta.tails = tails  # type: ignore[attr-defined]
        yield mta


def path_of(mta: Mta) -> Path:
    return mta.spool / "accounting" / "acct.csv"


def find(mta: Mta, *arguments: str) -> list[dict[str, str]]:
    result = mta.command("log", "find", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_reader_by_names_and_one_by_positions_find_what_they_know_from_powermta(mta: Mta) -> None:
    (first, *_) = sorted(path_of(mta).parent.glob("acct-*.csv"))
    with first.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[: len(POWERMTA)] == POWERMTA
    bounce = next(row for row in rows if row[0] == "b" and row[4] == "550-5.1.1+0-0@b.test")
    assert bounce[3] == "sender@mta.test"
    assert (bounce[6], bounce[7]) == ("failed", "5.1.1 (bad destination mailbox address)")
    assert bounce[8].startswith("smtp;550 5.1.1")
    assert (bounce[10], bounce[18], bounce[19], bounce[21]) == ("bad-mailbox", "bulk", "j0", "b.test/bulk")
    with first.open(newline="", encoding="utf-8") as file:
        named = [row for row in csv.DictReader(file) if row["type"] == "d"]
    assert {(row["dsnAction"], row["vmta"], row["jobId"]) for row in named} <= {
        ("relayed", "news", f"j{n}") for n in (0, 1)
    }
    logged = datetime.strptime(named[0]["timeLogged"], "%Y-%m-%d %H:%M:%S%z")
    assert abs((datetime.now(UTC) - logged).total_seconds()) < 300


def test_the_csv_module_behind_a_tail_reads_every_row_of_a_log_that_is_rotated(mta: Mta) -> None:
    assert len([*path_of(mta).parent.glob("acct-*.csv")]) == 2
    assert mta.tails.by_csv == mta.rows()  # type: ignore[attr-defined]


def test_the_api_reads_the_same_rows_with_their_types(mta: Mta) -> None:
    records: list[log.Record] = mta.tails.by_api  # type: ignore[attr-defined]
    assert [(one.type, one.rcpt, one.msg_id) for one in records] == [
        (row["type"], row["rcpt"], row["msgId"]) for row in mta.rows()
    ]
    delivered = next(one for one in records if one.type == "d")
    assert delivered.time_logged is not None
    assert delivered.time_queued is not None
    assert -1 < delivered.time_logged - delivered.time_queued < 60
    assert abs(time.time() - delivered.time_logged) < 300
    assert (delivered.attempts, delivered.values) == (1, {})
    assert delivered.dlv_size is not None
    assert delivered.dlv_size > 0


def test_find_takes_the_rows_that_are_meant_from_all_files(mta: Mta) -> None:
    assert len(find(mta, "--type", "d,b")) == 3 * COUNT
    assert [row["rcpt"] for row in find(mta, "--rcpt", "USER1-3@a.test", "--type", "d")] == ["user1-3@a.test"]
    assert len(find(mta, "--rcpt", "user2-*", "--type", "d")) == COUNT // 2
    assert {row["vmta"] for row in find(mta, "--domain", "b.test")} == {"bulk"}
    assert len(find(mta, "--category", "bad-*", "--job", "j1", "--vmta", "bulk", "--orig", "*@mta.test")) == COUNT // 2
    assert len(find(mta, "--type", "d", "--max", "7")) == 7
    assert find(mta, "--until", "1h") == []
    assert find(mta, "--since", "2099-01-01") == []
    assert len(find(mta, "--since", "1h", "--type", "d", str(path_of(mta)))) == 3 * COUNT // 2
    assert [(row["type"], row.get("rcpt", "")) for row in find(mta)] == [(r["type"], r["rcpt"]) for r in mta.rows()]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--since", "soon"), 64, 'expected a time like "2026-11-26 14:00"'),
        (("--since", "2026-13-45"), 64, "expected a time"),
        (("--type", "d,x"), 64, "there are no rows of type x"),
        (("--max", "0"), 64, "0 is not in the range"),
        (("/nowhere/acct.csv",), 69, "cannot read /nowhere: No such file or directory"),
        ((__file__,), 65, "is no accounting log"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(mta: Mta, arguments: tuple[str, ...], status: int, words: str) -> None:
    result = mta.command("log", "find", *arguments)
    assert result.returncode == status
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def follow(path: Path, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "spoolmta", "log", "follow", str(path), *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT)


HEADER = "type,timeLogged,rcpt\r\n"


def append(path: Path, *recipients: str) -> None:
    with path.open("a", newline="") as file:
        file.write("".join(f"d,1000,{recipient}\r\n" for recipient in recipients))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_follow_goes_on_where_it_was_and_ends_quietly_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    path, position = tmp_path / "acct.csv", tmp_path / "position"
    path.write_text(HEADER, newline="")
    append(path, "old@x")
    found = ""
    for part in range(3):
        process = follow(path, "--json", "--position", str(position), "--rcpt", "*@x")
        wait_for(position.exists, lambda: "no position was kept")
        append(path, f"{part}-1@x", "other@y", f"{part}-2@x")
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(2)]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, rest, errors) == (0, b"", b"")
        found += "".join(json.loads(line)["rcpt"] + " " for line in lines)
        path.rename(tmp_path / f"acct-2026-01-0{part + 1}-0000.csv")
        path.write_text(HEADER, newline="")
        append(path, f"{part}-away@x")
        if part < 2:
            process = follow(path, "--json", "--position", str(position), "--max", "1")
            found += json.loads(process.communicate(timeout=20)[0])["rcpt"] + " "
    assert found == "0-1@x 0-2@x 0-away@x 1-1@x 1-2@x 1-away@x 2-1@x 2-2@x "


def test_follow_says_what_to_do_where_rows_are_gone_and_does_it(tmp_path: Path) -> None:
    path, position = tmp_path / "acct.csv", tmp_path / "position"
    path.write_text(HEADER, newline="")
    append(path, "1@x", "2@x")
    options = ("--from-start", "--max", "1", "--json", "--position", str(position))
    assert b"1@x" in follow(path, *options).communicate(timeout=20)[0]
    path.unlink()
    path.write_text(HEADER, newline="")
    append(path, "3@x")
    process = follow(path, *options)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors.count(b"\n")) == (69, b"", 1)
    assert b"go on with the files that came after it" in errors
    assert b"3@x" in follow(path, *options, "--on-missing", "continue").communicate(timeout=20)[0]
    position.write_text("hello")
    process = follow(path, *options)
    assert b"has no position of a log" in process.communicate(timeout=20)[1]
    assert process.returncode == 65


def test_follow_ends_when_nobody_reads_any_more_also_while_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "acct.csv"
    path.write_text(HEADER, newline="")
    append(path, "1@x")
    process = follow(path, "--from-start")
    assert process.stdout is not None
    assert process.stdout.readline() == HEADER.encode()
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_follow_ends_by_a_signal_also_while_it_waits_for_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "acct.csv"
    path.write_text(HEADER, newline="")
    append(path, *["x" * 1000] * 500)
    process = follow(path, "--from-start")
    assert process.stdout is not None
    assert process.stdout.read(10) == b"type,timeL"
    process.terminate()
    assert process.wait(20) == 0
    assert process.communicate()[1] == b""


def test_what_controls_a_terminal_does_not_reach_one_and_stays_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "acct.csv"
    path.write_text(HEADER, newline="")
    append(path, '"\x1b[31m\x9b\r\nred@x"')
    for form in ("--csv", "--json", "--xml"):
        command = [sys.executable, "-m", "spoolmta", "log", "find", str(path), form]
        leader, follower = os.openpty()
        process = subprocess.Popen(command, stdout=follower, cwd=ROOT)
        assert process.wait(20) == 0
        shown = os.read(leader, 10_000).decode()
        os.close(leader)
        os.close(follower)
        assert "red@x" in shown
        assert all(character.isprintable() or character in "\r\n" for character in shown)
        kept = subprocess.run(command, capture_output=True, cwd=ROOT, check=True).stdout.decode()
        assert form == "--xml" or json.dumps("\x1b")[1:-1] in kept or "\x1b" in kept
        assert "\x9b" in kept


def test_xml_is_whole_also_when_it_is_cut_short(mta: Mta) -> None:
    from xml.etree import ElementTree

    whole = ElementTree.fromstring(mta.command("log", "find", "--xml").stdout.encode())
    assert len(whole) == mta.count()
    assert len(ElementTree.fromstring(mta.command("log", "find", "--xml", "--max", "3").stdout.encode())) == 3
    assert len(ElementTree.fromstring(mta.command("log", "find", "--xml", "--job", "none").stdout.encode())) == 0


def test_the_example_in_the_readme_reads_the_log_and_goes_on_where_it_was(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text().partition("    import json, pathlib\n")[2].partition("\n\nFields")[0]
    program = "import json, pathlib\n" + textwrap.dedent(text)
    path = tmp_path / "spool/accounting/acct.csv"
    path.parent.mkdir(parents=True)
    path.write_text(HEADER, newline="")
    for part in range(2):
        append(path, f"{part}-1@x", f"{part}-2@x")
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [f"d {part}-{number}@x 1000.0 \n" for number in (1, 2)]
        offset = path.stat().st_size
        wait_for(lambda: read_offset(tmp_path) == offset, lambda: f"{read_offset(tmp_path)}")  # noqa: B023
        process.kill()
        process.communicate()


def read_offset(folder: Path) -> int:
    kept = folder / "position.json"
    return int(json.loads(kept.read_text())["offset"]) if kept.exists() else 0


READER = """
import json, os, sys
from spoolmta import log
path, out = sys.argv[1:]
descriptor = os.open(out, os.O_RDWR | os.O_APPEND | os.O_CREAT)
lines = os.pread(descriptor, 1 << 30, 0).splitlines()
position = json.loads(lines[-1].partition(b" ")[2]) if lines else "start"
with log.follow(path, position, poll=0.001) as rows:
    for record in rows:
        os.write(descriptor, f"{record.rcpt} {json.dumps(rows.position)}\\n".encode())
        assert not rows.skipped
"""


def test_a_reader_that_is_killed_again_and_again_gets_every_row_once_while_six_write_and_one_rotates(
    tmp_path: Path,
) -> None:
    path, out = tmp_path / "acct.csv", tmp_path / "read"
    total = rotation.WRITERS * rotation.ROWS
    out.touch()

    def wait_until(least: int) -> None:
        wait_for(lambda: out.read_bytes().count(b"\n") >= least, lambda: f"not {least} rows")

    numbers = (str(rotation.WRITERS), str(rotation.ROWS), str(rotation.ROTATIONS))
    with spool_kit.run(rotation.PROGRAM, str(path), *numbers) as writers:
        wait_for(path.exists, lambda: "nothing is written")
        for least in range(total // 6, total + 1, total // 6):
            with spool_kit.run(READER, str(path), str(out)) as reader:
                wait_until(least)
                assert reader.poll() is None
                reader.kill()
        assert writers.wait(timeout=60) == 0
    found = Counter(line.split()[0].decode() for line in out.read_bytes().splitlines())
    assert found == Counter(f"{number}-{row}" for number in range(rotation.WRITERS) for row in range(rotation.ROWS))
