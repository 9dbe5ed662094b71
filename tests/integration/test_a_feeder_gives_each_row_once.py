"""A program that reads as it likes and dies in the middle of rows: each row is read whole by one of its runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolmta import accounting
from spoolmta.accounting import Log
from spoolmta.columns import USUAL
from spoolmta.feeder import Feeder
from spoolmta.logfiles import LogFiles
from spoolmta.model import AcctFile
from spoolmta.program import Program
from spoolmta.rotation import Rotation
from spoolmta.shared import Cell, Page
from tests.support.mta import wait_for

ROWS = 2000
READER = """
import os, random, sys
chance = random.Random()
left = chance.randrange(1000, 300_000)
with open(sys.argv[1], "ab", buffering=0) as file:
    while left > 0 and (data := os.read(0, min(left, chance.randrange(1, 20_000)))):
        file.write(data)
        left -= len(data)
    file.write(b"\\0")
os._exit(7)
"""


class Pipe:
    """The file of a pipe, who writes it and who reads it."""

    def __init__(self, folder: Path, *command: str, **settings: float) -> None:
        path = str(folder / "pipes" / "one" / "acct.csv")
        self.file = AcctFile(path=path, records=("d",), command=command, **settings)  # type: ignore[arg-type]
        self.page = Page(4)
        self.rotation = Rotation((self.file,), 1_700_000_000.0)
        self.log = Log((self.file,), self.page, self.page.row("writer"))
        self.feeder = Feeder(self.file, self.page, self.page.row("pipe/one"))

    def write(self, *marks: object) -> None:
        for mark in marks:
            self.log.write(["d", *(f"{name}{mark}" for name in USUAL["d"][1:])])
        self.log.flush()

    def rotate(self) -> None:
        self.rotation.begin([self.file], self.page, 1_700_000_000.0)
        self.log.flush()
        assert self.rotation.finish([self.page.row("writer")[Cell.LOG_GENERATION]], self.page)

    def run_until(self, condition: Callable[[], bool]) -> None:
        turns = iter(range(20_000))
        self.feeder.run(lambda: condition() or next(turns, None) is None)
        assert condition()

    @property
    def read(self) -> int:
        return self.page.row("pipe/one")[Cell.MESSAGES]


def test_each_row_is_read_whole_by_one_run_of_a_program_that_dies_anywhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pipe = Pipe(tmp_path, sys.executable, "-S", "-c", READER, str(out), retry_interval=0.0)
    marks = [f' {number} a "quoted" part, ü' for number in range(ROWS)]
    pipe.write(*marks[: ROWS // 2])
    first = Path(pipe.file.path).read_bytes()
    pipe.rotate()
    pipe.write(*marks[ROWS // 2 :])
    written = [*first.split(b"\r\n")[1:-1], *Path(pipe.file.path).read_bytes().split(b"\r\n")[1:-1]]
    pipe.run_until(lambda: pipe.read == ROWS)
    runs = out.read_bytes().rstrip(b"\0").split(b"\0")
    header = accounting.csv_line(accounting.header(pipe.file)).encode()
    assert len(runs) > 1
    assert all(header.startswith(run[: len(header)]) for run in runs)
    whole = [line for run in runs for line in run.split(b"\r\n")[1:-1]]
    assert whole == written
    assert len(whole) == ROWS
    assert not list(Path(pipe.file.path).parent.glob("acct-*"))


def test_numbers_go_on_from_the_last_file_that_was_read_and_deleted(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path, "cat", retry_interval=0.0)
    for mark in range(2):
        pipe.write(mark)
        pipe.rotate()
    pipe.run_until(lambda: pipe.read == 2)
    assert '"after":"2023-11-14-0001"' in Path(pipe.file.position).read_text()
    later = Rotation((pipe.file,), 1_700_000_000.0)
    pipe.rotation = later
    pipe.write(3)
    pipe.rotate()
    assert [path.name for path in Path(pipe.file.path).parent.glob("acct-*")] == ["acct-2023-11-14-0002.csv"]
    again = Feeder(pipe.file, pipe.page, pipe.page.row("pipe/one"))
    pipe.feeder = again
    pipe.run_until(lambda: pipe.read == 3)


def test_the_file_cut_short_by_a_power_cut_is_read_again_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipe(tmp_path, "cat", retry_interval=0.0)
    pipe.write(0, 1)
    pipe.run_until(lambda: pipe.read == 2)
    path = Path(pipe.file.path)
    with path.open("r+b") as file:
        file.truncate(path.read_bytes().rstrip(b"\r\n").rfind(b"\n") + 1)
    pipe.feeder = Feeder(pipe.file, pipe.page, pipe.page.row("pipe/one"))
    pipe.run_until(lambda: pipe.read == 3)
    assert "is gone or shorter: rows may be missing, or come again" in caplog.text


def program(said: list[str], *words: str) -> Program:
    return Program(words, said.append)


def test_a_program_has_no_descriptor_but_the_standard_ones_and_a_group_of_its_own() -> None:
    one = program([], "sleep", "100")
    wait_for(lambda: Path(f"/proc/{one.pid}/comm").read_text() == "sleep\n", lambda: "it is not started")
    assert sorted(os.listdir(f"/proc/{one.pid}/fd")) == ["0", "1", "2"]
    assert os.readlink(f"/proc/{one.pid}/fd/1") == "/dev/null"
    assert os.getpgid(one.pid) == one.pid
    one.end(0.0)


def test_what_a_program_has_not_read_is_known_after_its_end() -> None:
    one = program([], "sh", "-c", "read -r line; exit 4")
    assert one.write(b"abc\r\ndefg\r\n") == 11
    wait_for(lambda: one.trouble() != "", lambda: "it does not end")
    assert one.trouble() == "ended with status 4"
    assert one.end(0.0) == 6


def test_a_program_that_closes_its_input_or_is_killed_is_in_trouble() -> None:
    one = program([], "sh", "-c", "exec <&-; sleep 100")
    wait_for(lambda: one.trouble() != "", lambda: "it does not close its input")
    assert one.trouble() == "has closed its input"
    one.end(0.0)
    other = program([], "sh", "-c", "kill -9 $$")
    wait_for(lambda: other.trouble() != "", lambda: "it does not end")
    assert other.trouble() == "was ended by signal 9"
    other.end(0.0)


def test_a_program_that_does_not_want_to_end_is_killed_with_its_whole_group(tmp_path: Path) -> None:
    one = program([], "sh", "-c", f"trap '' TERM; (echo $$ > {tmp_path}/ready; sleep 100) & wait; sleep 100")
    wait_for((tmp_path / "ready").exists, lambda: "it is not ready")
    one.end(0.0)
    wait_for(lambda: not is_there(one.pid), lambda: "somebody of the group is still there")


def is_there(group: int) -> bool:
    found = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return any(fields[2] == str(group) and fields[0] != "Z" for fields in found)


def test_what_a_program_says_is_bounded() -> None:
    said: list[str] = []
    one = program(said, "sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo line $i >&2; i=$((i+1)); done")
    one.end(5.0)
    assert said[0] == "line 0"
    assert len(said) < 60
    assert said[-1].endswith("more lines are left out)")


def test_a_program_that_says_more_than_we_hear_holds_nobody_up() -> None:
    running = program([], "sh", "-c", "exec yes >&2")
    running.listen()
    assert running.trouble() == ""
    running.end(0.0)


def test_what_a_child_of_the_program_could_still_read_is_taken_from_it(tmp_path: Path) -> None:
    late = tmp_path / "late"
    waiting = f"while [ ! -e {tmp_path}/%s ]; do sleep 0.05; done"
    child = f"trap '' TERM; touch {tmp_path}/ready; {waiting % 'go'}; cat <&3 > {late}; touch {late}.done"
    script = f"exec 3<&0; ({child}) & {waiting % 'ready'}; exit 3"
    running = program([], "sh", "-c", script)
    running.write(b"row one\r\n")
    wait_for(lambda: bool(running.trouble()), lambda: "the program does not end")
    assert running.end(0.0) == len(b"row one\r\n")
    (tmp_path / "go").touch()
    wait_for(lambda: Path(f"{late}.done").exists(), lambda: "its child does not end")
    assert late.read_bytes() == b""


class RotatedMeanwhile(LogFiles):
    """A file is rotated right behind the first look at the names."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(pipe.file.path, "")
        self.pipe, self.looks = pipe, 0

    def rotated(self, after: str = "") -> list[tuple[str, str]]:
        found = super().rotated(after)
        self.looks += 1
        if self.looks == 1:
            self.pipe.rotate()
        return found


def test_a_file_that_is_rotated_while_read_ones_are_deleted_stays(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path, "cat")
    pipe.write(1)
    pipe.rotate()
    pipe.write(2)
    [(name, _)] = LogFiles(pipe.file.path, "").rotated()
    pipe.feeder._kept = {"after": name}
    pipe.feeder._files = RotatedMeanwhile(pipe)
    pipe.feeder._delete_passed()
    [(left, path)] = LogFiles(pipe.file.path, "").rotated()
    assert left > name
    assert "rcpt2" in Path(path).read_text()
