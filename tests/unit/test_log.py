"""Logs as they should not be, and what a reader says of them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spoolmta import log
from spoolmta.errors import DataError, SpoolmtaError, UnavailableError
from spoolmta.log import Follower, PositionLost, Search
from spoolmta.logfiles import CHUNK
from spoolmta.sought import SLACK, Sieve, Sought
from tests.support.mta import ROOT

HEADER = b"type,timeLogged,rcpt\r\n"
OLD = "acct-2026-01-01-0000.csv"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "acct.csv"


def row(rcpt: object, time: int = 1000) -> bytes:
    return f"d,{time},{rcpt}\r\n".encode()


def read(path: Path, position: Any = "start", **options: Any) -> list[str]:
    """Who all rows there are now are for."""
    with log.follow(path, position, wait=False, **options) as rows:
        return [record.rcpt for record in rows]


def test_a_half_written_line_is_given_out_when_it_is_whole(path: Path) -> None:
    path.write_bytes(HEADER + row(1) + b"d,10")
    rows = log.follow(path, wait=False)
    assert [record.rcpt for record in rows] == ["1"]
    with path.open("ab") as file:
        file.write(b"00,2\r\n")
    assert [record.rcpt for record in rows] == ["2"]
    rows.close()


def test_a_half_written_line_in_a_rotated_file_is_counted_and_never_given_out(path: Path) -> None:
    path.with_name(OLD).write_bytes(HEADER + row(1) + b"d,1000,hal")
    path.write_bytes(HEADER + row(2))
    with log.follow(path, wait=False) as rows:
        assert [record.rcpt for record in rows] == ["1", "2"]
        assert rows.skipped == 1


def test_a_half_written_header_is_waited_for(path: Path) -> None:
    path.write_bytes(HEADER[:9])
    rows = log.follow(path, wait=False)
    assert [*rows] == []
    with path.open("ab") as file:
        file.write(HEADER[9:] + row(1))
    assert [record.rcpt for record in rows] == ["1"]
    rows.close()


@pytest.mark.parametrize("content", [b"", HEADER, b"\r\n\r\n" + HEADER, b"\xef\xbb\xbf" + HEADER])
def test_a_log_without_rows_has_none_and_then_those_that_come(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    rows = log.follow(path, wait=False)
    assert [*rows] == []
    position = rows.position
    rows.close()
    path.write_bytes((content or HEADER) + row(1))
    assert read(path, position) == ["1"]


@pytest.mark.parametrize("content", [b"rcpt,time\r\na,b\r\n", b"hello\n", b"\x7fELF\0\0\n", b"d,1000,2\r\n"])
def test_a_file_that_is_no_log_is_refused_in_one_sentence(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"acct.csv is no accounting log: the columns in its header have no type$"):
        read(path)
    with pytest.raises(DataError, match="is no accounting log"):
        list(Search(str(path), Sieve(Sought())).rows())


def test_each_file_is_read_by_its_own_header_also_of_logs_that_were_joined(path: Path) -> None:
    path.with_name(OLD).write_bytes(b"dsnReportingMta,rcpt,type\n" + b"mx,1,rb\n")
    joined = HEADER + row(2) + b"type,header_X,rcpt\r\nd,x,3\r\n"
    path.write_bytes(joined)
    with log.follow(path, wait=False) as rows:
        found = [*rows]
        position = rows.position
    assert [(record.type, record.rcpt, record.values) for record in found] == [
        ("rb", "1", {"dsnReportingMta": "mx"}),
        ("d", "2", {}),
        ("d", "3", {"header_X": "x"}),
    ]
    with path.open("ab") as file:
        file.write(b"d,y,4\r\n")
    with log.follow(path, json.loads(json.dumps(position)), wait=False) as rows:
        assert [(record.rcpt, record.values) for record in rows] == [("4", {"header_X": "y"})]


def test_lines_that_are_no_rows_are_left_out_and_counted(path: Path) -> None:
    odd = b"d,1000\r\n" + b"d,1000,a,b\r\n" + b'd,a"b,"c\r\n' + b"a\rb,c,d\r\n"
    path.write_bytes(HEADER + row(1) + odd + b"\r\n" + row(2))
    with log.follow(path, wait=False) as rows:
        assert [record.rcpt for record in rows] == ["1", "2"]
        assert rows.skipped == 4


def test_a_line_of_megabytes_is_left_out_in_constant_memory_and_the_next_row_is_read(path: Path) -> None:
    path.write_bytes(HEADER + row(1) + b"x" * (3 * CHUNK) + b"\r\n" + row(2))
    with log.follow(path, wait=False) as rows:
        assert [record.rcpt for record in rows] == ["1", "2"]
        assert rows.skipped == 1


def test_zeros_and_bytes_that_are_no_text_do_not_stop_the_reader(path: Path) -> None:
    path.write_bytes(HEADER + b"\0" * 1000 + row(1) + b"d,1000,\xff\0\r\n" + row(3))
    assert read(path) == ["1", "\ufffd\0", "3"]


def test_quotes_line_breaks_and_escapes_are_text(path: Path) -> None:
    path.write_bytes(HEADER + b'd,1000,"a ""b"",\r\n\x1b[31m=cmd|"\r\n' + row(2))
    assert read(path) == ['a "b",\r\n\x1b[31m=cmd|', "2"]


def test_a_packed_file_that_is_damaged_is_one_sentence_after_the_rows_before_the_damage(path: Path) -> None:
    many = b"".join(row(number) for number in range(50_000))
    path.with_name(OLD + ".gz").write_bytes(gzip.compress(HEADER + many)[:-2000])
    path.write_bytes(HEADER)
    with log.follow(path, wait=False) as rows, pytest.raises(DataError, match="is damaged, or not packed to its end"):
        list(rows)
    path.with_name(OLD + ".gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="is damaged, or not packed to its end"):
        read(path)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python has zstd")
def test_a_way_of_packing_that_this_python_does_not_have_is_named(path: Path) -> None:
    path.with_name(OLD + ".zst").write_bytes(b"")
    path.write_bytes(HEADER)
    with pytest.raises(UnavailableError, match=r"this Python has no zstd \(3.14 has\): unpack it"):
        read(path)


def test_a_folder_a_pipe_and_nothing_are_each_one_sentence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="there is no log "):
        read(path)
    with pytest.raises(UnavailableError, match="cannot read /nowhere: No such file or directory"):
        read(Path("/nowhere/acct.csv"))
    with pytest.raises(UnavailableError, match="there is no log "):
        list(Search(str(path), Sieve(Sought())).rows())
    path.mkdir()
    with pytest.raises(DataError, match="is no file that can be a log"):
        read(path)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is no file that can be a log"):
        read(tmp_path / "pipe.csv")
    with pytest.raises(UnavailableError, match="Not a directory"):
        read(tmp_path / "pipe.csv" / "acct.csv")


FORBIDDEN = """
import os, sys
from spoolmta import log
from spoolmta.errors import SpoolmtaError
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    list(log.follow(sys.argv[1], wait=False))
except SpoolmtaError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["the file", "the folder"])
def test_no_permission_is_one_sentence_that_says_what_to_do(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "acct.csv").write_bytes(HEADER)
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    (folder if what == "the folder" else folder / "acct.csv").chmod(0)
    command = [sys.executable, "-c", FORBIDDEN, str(folder / "acct.csv")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    folder.chmod(0o755)
    assert result.stderr == ""
    assert "Permission denied: run this as the user that runs spoolmta" in result.stdout
    assert result.stdout.count("\n") == 1


def resumable(path: Path) -> dict[str, Any]:
    """The position behind the first row."""
    with log.follow(path, wait=False) as rows:
        next(rows)
        return rows.position


def test_a_position_whose_file_is_gone_is_an_error_that_says_what_to_do(path: Path) -> None:
    path.write_bytes(HEADER + row(1) + row(2))
    position = resumable(path)
    path.rename(path.with_name("elsewhere"))
    path.with_name("acct-2026-01-02-0000.csv").write_bytes(HEADER + row(3))
    path.write_bytes(HEADER + row(4))
    with pytest.raises(PositionLost, match=r"is not there any more, or was changed: put it back, tell where it was"):
        read(path, position)
    assert read(path, position, on_missing="continue") == ["3", "4"]
    path.with_name("moved").mkdir()
    path.with_name("elsewhere").rename(path.with_name("moved") / OLD)
    assert read(path, position, moved_to=path.with_name("moved")) == ["2", "3", "4"]


def test_a_number_that_is_missing_among_the_names_is_noticed(path: Path) -> None:
    for number in range(3):
        path.with_name(f"acct-2026-01-01-000{number}.csv").write_bytes(HEADER + row(number))
    path.write_bytes(HEADER + row(3))
    with log.follow(path, wait=False) as rows:
        assert next(rows).rcpt == "0"
        path.with_name("acct-2026-01-01-0001.csv").unlink()
        with pytest.raises(PositionLost, match="the file after 2026-01-01-0000, which was not read to its end"):
            next(rows)
        position = rows.position
    with pytest.raises(PositionLost):
        read(path, position)
    assert read(path, position, on_missing="continue") == ["2", "3"]
    with log.follow(path, wait=False, on_missing="continue") as rows:
        assert [record.rcpt for record in rows] == ["0", "2", "3"]


def test_a_file_that_went_before_its_first_row_was_read_is_noticed(path: Path) -> None:
    path.with_name(OLD).write_bytes(HEADER + row(1))
    path.write_bytes(HEADER)
    with log.follow(path, wait=False) as rows:
        assert [record.rcpt for record in rows] == ["1"]
        position = rows.position
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(HEADER + row(3))
    with pytest.raises(PositionLost):
        read(path, position)
    path.with_name("elsewhere").rename(path.with_name("acct-2026-01-02-0000.csv"))
    assert read(path, position) == ["3"]


def test_an_inode_that_is_used_again_is_not_taken_for_the_file_of_the_position(path: Path) -> None:
    path.write_bytes(HEADER + row(1) + row(2))
    position = resumable(path)
    path.write_bytes(HEADER + row(3) + row(4))
    with pytest.raises(PositionLost):
        read(path, position)


def test_a_file_that_became_shorter_is_one_sentence(path: Path) -> None:
    path.write_bytes(HEADER + row(1) + row(2))
    rows = log.follow(path, wait=False)
    assert len([*rows]) == 2
    os.truncate(path, len(HEADER))
    with pytest.raises(PositionLost, match="is shorter than what was read of it"):
        list(rows)
    rows.close()


@pytest.mark.parametrize(
    "position",
    [
        {},
        {"offset": -1},
        {"offset": "1"},
        {"more": 1},
        {"after": "../x"},
        {"offset": 5, "header": 9},
        {"head": 1 << 40},
    ],
)
def test_what_is_no_position_is_refused_unless_it_is_the_beginning(path: Path, position: dict[str, Any]) -> None:
    path.write_bytes(HEADER + row(1))
    if not position:
        assert read(path, position) == ["1"]
        return
    with pytest.raises(DataError, match="this is no position in a log"):
        read(path, position)


def test_the_present_end_leaves_out_what_is_there_also_when_nothing_comes_before_it_is_resumed(path: Path) -> None:
    path.with_name(OLD).write_bytes(HEADER + row(1))
    path.write_bytes(HEADER + row(2) + b"d,1000,hal")
    rows = log.follow(path, "end", wait=False)
    assert [*rows] == []
    position = rows.position
    rows.close()
    with path.open("ab") as file:
        file.write(b"f\r\n")
    path.rename(path.with_name("acct-2026-01-02-0000.csv"))
    path.write_bytes(HEADER + row(3))
    assert read(path, position) == ["half", "3"]


def test_reading_ends_by_a_condition_by_close_and_is_an_iterator(path: Path) -> None:
    path.write_bytes(HEADER + b"".join(row(number) for number in range(9)))
    found: list[str] = []
    with log.follow(path, stop=lambda: len(found) >= 3) as rows:
        for record in rows:
            found.append(record.rcpt)
    assert found == ["0", "1", "2"]
    assert read(path, rows.position) == ["3", "4", "5", "6", "7", "8"]
    rows = log.follow(path)
    assert (next(rows).rcpt, next(rows).rcpt) == ("0", "1")
    rows.close()
    with pytest.raises(StopIteration):
        next(rows)


def test_loops_over_one_reader_go_on_from_one_another_however_they_are_mixed(path: Path) -> None:
    path.write_bytes(HEADER + b"".join(row(number) for number in range(7)))
    with log.follow(path, wait=False) as rows:
        older = rows.rows()
        assert next(older)[1][2] == "0"
        assert next(rows).rcpt == "1"
        for record in rows:
            assert record.rcpt == "2"
            break
        assert next(rows).rcpt == "3"
        assert [*older] == []
        assert next(rows.rows())[1][2] == "4"
        assert [record.rcpt for record in rows] == []
        assert [record.rcpt for record in rows] == ["5", "6"]


def test_a_reader_does_not_leave_a_rotating_file_before_its_writers_do(path: Path) -> None:
    path.write_bytes(HEADER + row(1))
    rotating = path.with_name("acct.csv.rotating")
    path.rename(rotating)
    path.write_bytes(HEADER + row(3))
    rows = log.follow(path, wait=False)
    assert [record.rcpt for record in rows] == ["1"]
    assert [values[2] for _, values in Search(str(path), Sieve(Sought())).rows()] == ["1", "3"]
    with rotating.open("ab") as file:
        file.write(row(2))
    with rotating.with_name("acct.csv.rotating").open("ab"):  # a writer whose supervisor was killed
        rotating.rename(path.with_name(OLD))
        assert [record.rcpt for record in rows] == ["2"]
    assert [record.rcpt for record in rows] == ["3"]
    rows.close()


def found(path: Path, **sought: Any) -> list[str]:
    return [values[2] for _, values in Search(str(path), Sieve(Sought(**sought))).rows()]


def test_a_search_goes_through_all_files_in_order_of_time(path: Path) -> None:
    path.with_name(OLD + ".gz").write_bytes(gzip.compress(HEADER + row("a1@x") + row("b1@x")))
    path.with_name("acct-2026-01-01-0001.csv").write_bytes(HEADER + row("a2@x"))
    path.with_name("acct-2026-01-01-10000.csv").write_bytes(HEADER + row("a3@x"))
    path.with_name("acct-2025-01-01-0001.csv.orig").write_bytes(b"no log")
    path.with_name("other-2025-01-01-0001.csv").write_bytes(b"no log")
    path.write_bytes(HEADER + row("a4@x"))
    assert found(path, rcpt="A*") == ["a1@x", "a2@x", "a3@x", "a4@x"]
    assert found(path, rcpt="b1@x") == ["b1@x"]


def test_a_search_does_not_read_files_whose_times_rule_them_out(path: Path) -> None:
    early, late = path.with_name(OLD), path.with_name("acct-2026-01-02-0000.csv")
    early.write_bytes(HEADER + row("early", 1000))
    os.utime(early, (2000, 2000))
    late.write_bytes(HEADER + row("late", 9000 + int(SLACK)) + row("held-back", 8000))
    path.write_bytes(HEADER + row("now", 8000))
    assert found(path, since=500) == ["early", "late", "held-back", "now"]
    early.write_bytes(b"would be refused, if it were read")
    os.utime(early, (2000, 2000))
    assert found(path, since=2001, until=8000) == ["now"]
    assert found(path, since=2001, until=9000) == ["held-back", "now"]


def test_a_row_is_found_wherever_the_blocks_of_a_large_file_end(path: Path) -> None:
    wanted = {number: f"wanted{number}@x" for number in range(0, 60_000, 6007)}
    lines = (row(wanted.get(number, "x" * (number % 20))) for number in range(60_000))
    path.write_bytes(HEADER + b"".join(lines) + b'd,1000,"a\r\nWanted\r\n"\r\n')
    assert found(path, rcpt="*wanted*") == [*wanted.values(), "a\r\nWanted\r\n"]


def test_what_comes_long_before_the_wanted_time_is_passed_over_and_no_row_of_that_time_is(path: Path) -> None:
    times = [*range(60_000), 70_000, 70_000 - int(SLACK), 50_000, *range(70_001, 90_000)]
    path.write_bytes(HEADER + b"".join(row(time, time) for time in times))
    for since in (1, 30_000, 66_400, 70_001, 89_999, 90_000):
        assert found(path, since=since) == [str(time) for time in times if time >= since]


MEMORY = """
import resource, sys
from spoolmta import log
from spoolmta.sought import Sieve, Sought
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = sum(1 for _ in log.Search(sys.argv[1], Sieve(Sought(rcpt="needle@x"))).rows())
with log.follow(sys.argv[1], "end", wait=False) as rows:
    assert [*rows] == []
with log.follow(sys.argv[1], wait=False) as rows:
    next(rows)
print(found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_large_log_is_searched_in_constant_memory(path: Path) -> None:
    block = row("x" * 200) * 5000
    with path.open("wb") as file:
        file.write(HEADER)
        for _ in range(256):
            file.write(block)
        file.write(row("needle@x"))
    command = [sys.executable, "-c", MEMORY, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    count, megabytes = map(int, result.stdout.split())
    assert path.stat().st_size > 250 << 20
    path.unlink()
    assert count == 1
    assert megabytes < 16


def test_find_looks_where_the_configuration_moves_files_to(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    for number, name in enumerate(("done/acct-2026-01-01-0000.csv", "acct.csv")):
        row = f"d,2026-01-0{number + 1} 00:00:00+0000,u{number}@a.test"
        (tmp_path / name).write_text(f"type,timeLogged,rcpt\r\n{row}\r\n")
    (tmp_path / "spoolmta.toml").write_text(
        'host-name = "a.test"\nspool = { directory = "spool" }\n[[acct-file]]\npath = "acct.csv"\nmove-to = "done"\n'
    )
    command = [sys.executable, "-m", "spoolmta", "--config", str(tmp_path / "spoolmta.toml"), "log", "find", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [json.loads(line)["rcpt"] for line in result.stdout.splitlines()] == ["u0@a.test", "u1@a.test"]


def test_errors_are_sentences_of_ours() -> None:
    assert issubclass(PositionLost, SpoolmtaError)
    assert Follower.__doc__
