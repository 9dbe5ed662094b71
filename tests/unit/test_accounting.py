from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest

from spoolmta import accounting, columns
from spoolmta.accounting import Log
from spoolmta.columns import USUAL
from spoolmta.model import AcctFile
from spoolmta.rotation import Rotation
from spoolmta.shared import Cell, Page

D_B_T = (
    "type,timeLogged,timeQueued,orig,rcpt,orcpt,dsnAction,dsnStatus,dsnDiag,dsnMta,bounceCat,srcType,srcMta,dlvType,"
    "dlvSourceIp,dlvDestinationIp,dlvEsmtpAvailable,dlvSize,vmta,jobId,envId,queue,vmtaPool,msgId,attempts"
)
TQ = "type,timeLogged,dsnStatus,dsnDiag,dsnMta,dlvType,dlvSourceIp,dlvDestinationIp,vmta,queue"
R = "type,timeLogged,orig,rcpt,orcpt,srcType,srcMta,rcvSourceIp,rcvDestinationIp,vmta,jobId,envId,msgId"
DAY = 1_700_000_000.0


def row(kind: str, mark: str = "") -> list[str]:
    """A row whose every value names its column."""
    return [kind, *(f"{name}{mark}" for name in USUAL[kind][1:])]


class Books:
    """One accounting file, written by any number of logs in this process."""

    def __init__(self, folder: Path, *records: str) -> None:
        self.file = AcctFile(path=str(folder / "acct.csv"), records=records or ("d", "b"), max_size=1 << 40)
        self.page = Page(8)

    def log(self, name: str = "one") -> Log:
        return Log((self.file,), self.page, self.page.row(name))

    def read(self) -> list[dict[str, str]]:
        with open(self.file.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def names(self) -> list[str]:
        return sorted(os.listdir(os.path.dirname(self.file.path)))


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


@pytest.mark.parametrize(
    ("records", "expected"),
    [(("d",), D_B_T), (("b",), D_B_T), (("t", "d", "b"), D_B_T), (("tq",), TQ), (("r",), R),
     (("r", "d", "b"), D_B_T + ",rcvSourceIp,rcvDestinationIp"), (("tq", "d"), D_B_T)],
)  # fmt: skip
def test_the_columns_are_those_of_the_contract(records: tuple[str, ...], expected: str) -> None:
    assert ",".join(columns.header(records, {})) == expected


@pytest.mark.parametrize("kind", ["d", "b", "t", "tq", "r"])
def test_every_value_stands_under_its_own_name(tmp_path: Path, kind: str) -> None:
    books = Books(tmp_path, "r", "tq", "t", "b", "d")
    log = books.log()
    log.write(row(kind))
    log.flush()
    log.close()
    (found,) = books.read()
    own = USUAL[kind]
    assert found == {name: "" if name not in own else kind if name == "type" else name for name in found}
    assert set(own) <= set(found)


def test_a_file_takes_only_the_types_it_was_given_for(books: Books) -> None:
    log = books.log()
    assert log.wants("d")
    assert not log.wants("r")
    log.write(row("t"))
    log.write(row("d"))
    log.flush()
    log.close()
    assert [found["type"] for found in books.read()] == ["d"]


def test_nothing_is_in_the_file_before_the_flush_and_all_of_it_after(books: Books) -> None:
    log = books.log()
    for number in range(5):
        log.write(row("d", str(number)))
    assert log.is_dirty
    assert books.read() == []
    log.flush()
    assert not log.is_dirty
    assert len(books.read()) == 5
    log.close()


def writes_of_this_process() -> int:
    text = Path("/proc/self/io").read_text()
    return int(text.partition("syscw: ")[2].split()[0])


def test_a_flush_is_one_write(books: Books) -> None:
    log = books.log()
    for number in range(500):
        log.write(row("d", str(number)))
    before = writes_of_this_process()
    log.flush()
    assert writes_of_this_process() - before == 1
    log.close()


@pytest.mark.parametrize(
    ("value", "written"),
    [("plain", "plain"), ("a,b", '"a,b"'), ('say "x"', '"say ""x"""'), ("a\r\nb", "a  b"), ("a\tb\0c", "a b c"),
     ("ü\u2028ß\x85", "ü ß "), ("=1+1", "=1+1"), ("", ""), ("no\u00a0break", "no\u00a0break")],
)  # fmt: skip
def test_a_value_is_quoted_only_where_it_must_be_and_has_no_control_characters(value: str, written: str) -> None:
    assert accounting.csv_line(["d", value]) == f"d,{written}\r\n"


def test_bytes_that_are_no_text_do_not_stop_the_log(books: Books) -> None:
    log = books.log()
    log.write(["d", "\udcff", *row("d")[2:]])
    log.flush()
    log.close()
    assert books.read()[0]["timeLogged"] == "?"


def test_the_header_is_written_once_however_many_open_the_file(books: Books) -> None:
    logs = [books.log(str(number)) for number in range(4)]
    for log in logs:
        log.write(row("d"))
        log.flush()
        log.close()
    lines = Path(books.file.path).read_bytes().decode().split("\r\n")
    assert lines == [D_B_T, *[",".join(row("d"))] * 4, ""]
    assert books.names() == ["acct.csv"]


def test_an_empty_file_gets_its_header(books: Books) -> None:
    Path(books.file.path).touch()
    books.log().close()
    assert Path(books.file.path).read_bytes().decode() == D_B_T + "\r\n"


def test_a_writer_that_has_not_moved_on_keeps_the_old_file_from_its_final_name(books: Books) -> None:
    first, second = books.log("first"), books.log("second")
    rows = [books.page.row("first"), books.page.row("second")]
    rotation = Rotation((books.file,), DAY)
    first.write(row("d", "old"))
    first.flush()
    second.write(row("d", "late"))
    rotation.begin([books.file], books.page, DAY)
    first.flush()
    assert not rotation.finish([r[Cell.LOG_GENERATION] for r in rows], books.page)
    assert books.names() == ["acct.csv", "acct.csv.rotating"]
    second.flush()
    assert rotation.finish([r[Cell.LOG_GENERATION] for r in rows], books.page)
    moved = books.names()[0]
    assert re.fullmatch(r"acct-\d{4}-\d\d-\d\d-0000\.csv", moved)
    assert [found["rcpt"] for found in books.read()] == ["rcptlate"]
    first.close()
    second.close()


def test_numbers_go_on_and_count_files_that_were_compressed(books: Books) -> None:
    log = books.log()
    rotation = Rotation((books.file,), DAY)
    for _ in range(2):
        rotation.begin([books.file], books.page, DAY)
        log.flush()
        assert rotation.finish([books.page.row("one")[Cell.LOG_GENERATION]], books.page)
    os.rename(
        Path(books.file.path).parent / books.names()[1], Path(books.file.path).parent / (books.names()[1] + ".gz")
    )
    rotation.begin([books.file], books.page, DAY)
    assert rotation.finish([], books.page)
    assert sorted(re.findall(r"-(\d{4})\.csv", " ".join(books.names()))) == ["0000", "0001", "0002"]
    log.close()


def rotated_at(books: Books, rotation: Rotation, log: Log, now: float) -> str:
    """Rotate once; the name that the file got."""
    before = books.names()
    rotation.begin([books.file], books.page, now)
    log.flush()
    assert rotation.finish([books.page.row("one")[Cell.LOG_GENERATION]], books.page)
    (name,) = set(books.names()) - set(before)
    return name


def test_names_only_rise_also_when_files_are_taken_away_and_when_the_clock_is_set_back(books: Books) -> None:
    log, rotation = books.log(), Rotation((books.file,), DAY)
    names = []
    for now in (DAY, DAY, DAY - 86_400 * 3, DAY + 86_400):
        names.append(rotated_at(books, rotation, log, now))
        (Path(books.file.path).parent / names[-1]).rename(Path(books.file.path).parent / f"gone-{len(names)}")
    assert names == sorted(set(names))
    assert [name[-8:-4] for name in names] == ["0000", "0001", "0002", "0000"]
    (Path(books.file.path).parent / names[-1]).touch()
    late = Rotation((books.file,), DAY)
    assert rotated_at(books, late, log, DAY) == names[-1].replace("-0000", "-0001")
    log.close()


def test_a_file_is_due_by_age_by_size_and_at_midnight_but_only_with_rows(tmp_path: Path) -> None:
    file = AcctFile(path=str(tmp_path / "acct.csv"), move_interval=3600.0, max_size=10_000)
    rotation = Rotation((file,), DAY)
    assert rotation.due(DAY + 1e5) == []
    page = Page(1)
    log = Log((file,), page, page.row("one"))
    log.write(row("d"))
    log.flush()
    assert rotation.due(DAY + 1) == []
    assert rotation.due(DAY + 3600) == [file]
    rotation.begin([file], page, DAY)
    log.flush()
    assert rotation.finish([page.row("one")[Cell.LOG_GENERATION]], page)
    for _ in range(60):
        log.write(row("d"))
    log.flush()
    assert rotation.due(DAY + 1) == [file]
    log.close()


def test_a_file_taken_away_by_somebody_is_made_anew_for_all_writers(books: Books) -> None:
    log = books.log()
    rotation = Rotation((books.file,), DAY)
    os.rename(books.file.path, books.file.path + ".mine")
    assert rotation.due(DAY) == [books.file]
    rotation.begin([books.file], books.page, DAY)
    log.write(row("d"))
    log.flush()
    assert rotation.finish([books.page.row("one")[Cell.LOG_GENERATION]], books.page)
    assert len(books.read()) == 1
    log.close()


def test_a_crash_before_the_new_file_was_in_place_leaves_one_file_not_two_names_of_it(books: Books) -> None:
    books.log().close()
    os.link(books.file.path, books.file.path + ".rotating")
    rotation = Rotation((books.file,), DAY)
    assert rotation.finish([], books.page)
    assert books.names() == ["acct.csv"]


def test_a_crash_before_the_final_name_was_given_is_made_good_at_the_next_start(books: Books) -> None:
    books.log().close()
    Rotation((books.file,), DAY).begin([books.file], books.page, DAY)
    assert Rotation((books.file,), DAY).finish([], books.page)
    assert len(books.names()) == 2
    assert not any(name.endswith(".rotating") for name in books.names())


def test_other_files_are_written_from_a_new_configuration_on(books: Books, tmp_path: Path) -> None:
    log = books.log()
    log.write(row("d", "old"))
    other = AcctFile(path=str(tmp_path / "other.csv"), records=("d", "r"))
    log.reconfigure((other,))
    assert log.wants("r")
    log.write(row("r"))
    log.flush()
    log.close()
    assert [found["rcpt"] for found in books.read()] == ["rcptold"]
    assert (tmp_path / "other.csv").read_text().count("\n") == 2


def test_times_are_local_with_their_offset() -> None:
    clock = accounting.Clock()
    text = clock.text(DAY + 0.9)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}", text)
    assert clock.text(DAY) is text
    assert clock.text(DAY + 1) != text


def test_a_row_that_a_power_cut_tore_is_cut_off_before_the_next_one_runs_into_it(tmp_path: Path) -> None:
    file = AcctFile(path=str(tmp_path / "acct.csv"), records=("d",))
    Rotation((file,), 0.0)
    whole = (tmp_path / "acct.csv").read_bytes()
    (tmp_path / "acct.csv").write_bytes(whole + b"d,1,2\r\nd,3")
    Rotation((file,), 0.0)
    assert (tmp_path / "acct.csv").read_bytes() == whole + b"d,1,2\r\n"


def test_columns_asked_for_by_name_come_last_and_only_where_they_were_asked_for(tmp_path: Path) -> None:
    fields = {"b": ("*", "dlvTlsCipher"), "d": ("*", "dlvTlsProtocol", "dlvTlsCipher")}
    file = AcctFile(path=str(tmp_path / "more.csv"), records=("r", "d", "b", "t"), record_fields=fields)
    page = Page(1)
    log = accounting.Log((file,), page, page.row("test"))
    usual = [""] * (len(USUAL["d"]) - 1)
    for record in ("d", "b", "t"):
        log.write([record, *usual, "0", "TLSv1.3", "A_CIPHER", "", ""])
    log.write(["r", *[""] * (len(USUAL["r"]) - 1)])
    log.flush()
    log.close()
    with open(file.path, newline="", encoding="utf-8") as stream:
        rows = [*csv.DictReader(stream)]
    assert [(row["type"], row["dlvTlsCipher"], row["dlvTlsProtocol"]) for row in rows] == [
        ("d", "A_CIPHER", "TLSv1.3"),
        ("b", "A_CIPHER", ""),
        ("t", "", ""),
        ("r", "", ""),
    ]
    assert set(list(rows[0])[-2:]) == {"dlvTlsProtocol", "dlvTlsCipher"}


def test_rows_fit_the_header_of_a_file_that_was_begun_with_other_columns(tmp_path: Path) -> None:
    file = AcctFile(path=str(tmp_path / "acct.csv"), records=("tq",))
    accounting.make(file)
    more = AcctFile(path=file.path, records=("d", "tq"), record_fields={"d": ("*", "dlvTlsCipher")})
    page = Page(2)
    log = Log((more,), page, page.row("one"))
    delivery = [*row("d"), "0", "TLSv1.3", "A_CIPHER", "", ""]
    rotation = Rotation((more,), DAY)
    log.write(delivery)
    log.flush()
    assert rotation.due(DAY) == [more]
    rotation.begin([more], page, DAY)
    assert rotation.due(DAY) == []
    for _ in range(2):  # what is collected when the rotation is noticed still has the old columns
        log.write(delivery)
        log.flush()
    log.close()
    assert rotation.finish([page.log_generation], page)
    old, new = sorted(tmp_path.iterdir())
    with open(old, newline="", encoding="utf-8") as stream:
        assert [*csv.DictReader(stream)] == [{name: "d" if name == "type" else name for name in TQ.split(",")}] * 2
    with open(new, newline="", encoding="utf-8") as stream:
        (found,) = csv.DictReader(stream)
    assert (found["rcpt"], found["dlvTlsCipher"]) == ("rcpt", "A_CIPHER")
