from __future__ import annotations

from datetime import UTC, datetime

import pytest

from spoolmta import row
from spoolmta.columns import USUAL
from spoolmta.row import Columns, Reader, Record, rows_in

TIME = datetime(2019, 2, 8, 21, 54, 5, tzinfo=UTC).timestamp()
DELIVERED = (
    b"d,2019-02-08 21:54:05+0000,2019-02-08 22:54:05+0100,from@a.test,to@b.test,,relayed,2.0.0 (success),smtp;250 ok,"
    b'mx.b.test (192.0.2.1),,pickup,,smtp,127.0.0.1,192.0.2.1,"SIZE,DSN",4096,news,j1,e1,b.test/news,pool,id1,3\r'
)


def record(names: list[str], line: bytes) -> Record:
    values = Reader().values(line)
    assert values is not None
    return Columns(names).record(values)


def test_a_row_of_ours_becomes_times_numbers_and_text() -> None:
    assert record(USUAL["d"], DELIVERED) == Record(
        "d", TIME, TIME, "from@a.test", "to@b.test", "", "relayed", "2.0.0 (success)", "smtp;250 ok",
        "mx.b.test (192.0.2.1)", "", "pickup", "", "smtp", "127.0.0.1", "192.0.2.1", "SIZE,DSN", 4096, "news", "j1",
        "e1", "b.test/news", "pool", "id1", 3, "", "", "", "", {},
    )  # fmt: skip


def test_every_column_we_write_has_a_field() -> None:
    written = {name for record in ("d", "b", "t", "tq", "r") for name in USUAL[record]}
    assert written <= set(row.FIELDS)


def test_what_a_row_does_not_have_is_none_or_empty() -> None:
    found = record(["timeLogged", "type"], b"1549662845,tq")
    assert (found.type, found.time_logged, found.time_queued) == ("tq", TIME, None)
    assert (found.dlv_size, found.attempts, found.rcpt, found.values) == (None, None, "", {})


def test_columns_without_a_field_are_kept_by_their_names_unless_they_are_empty() -> None:
    found = record(["header_X-job", "type", "dsnReportingMta", "rcpt"], b"j,rb,,to@b.test")
    assert (found.type, found.rcpt, found.values) == ("rb", "to@b.test", {"header_X-job": "j"})


@pytest.mark.parametrize("text", ["yesterday", "2019-02-31 00:00:00+0000", "9" * 400, "-", "0001-01-01 00:00:00"])
def test_a_time_that_is_none_is_kept_as_text(text: str) -> None:
    found = record(["type", "timeLogged"], f"d,{text}".encode())
    assert (found.time_logged, found.values) == (None, {"timeLogged": text})


@pytest.mark.parametrize("text", ["many", "-1", "1_0", "1.5", "٣", "9" * 5000])
def test_a_number_that_is_none_is_kept_as_text(text: str) -> None:
    found = record(["type", "dlvSize"], f"d,{text}".encode())
    assert (found.dlv_size, found.values) == (None, {"dlvSize": text})


@pytest.mark.parametrize("text", ["2019-02-08 21:54:05+0000", "2019-02-08T21:54:05Z", "1549662845"])
def test_a_time_is_read_in_every_form_the_log_may_have(text: str) -> None:
    assert row.moment(text) == TIME


def rows(data: bytes, is_all: bool = False) -> list[bytes]:
    return [found for found, _ in rows_in(data, is_all)]


def test_a_line_without_its_end_is_no_row() -> None:
    assert rows(b"d,1\r\nd,2") == [b"d,1\r"]
    assert rows(b"d,2", is_all=True) == []


def test_a_line_break_in_quotes_does_not_end_a_row() -> None:
    assert rows(b'd,"a\r\nb"\r\nd,2\r\n') == [b'd,"a\r\nb"\r', b"d,2\r"]
    assert Reader().values(b'd,"a\r\nb"\r') == ["d", "a\r\nb"]
    assert rows(b'd,"a\r\n') == []


def test_a_quote_that_is_never_closed_costs_its_own_line_only() -> None:
    assert rows(b'd,"a\r\nd,2\r\n', is_all=True) == [b'd,"a\r', b"d,2\r"]
    many = b"d,2\r\n" * row.MAX_ROW
    assert rows(b'd,"a\r\n' + many)[:2] == [b'd,"a\r', b"d,2\r"]
    assert Reader().values(b'd,"a\r') is None


def test_sizes_add_up_to_the_bytes_of_the_rows() -> None:
    data = b'd,"a\nb"\nd,\xff\r\n\n'
    assert sum(size for _, size in rows_in(data)) == len(data)


def test_what_is_no_csv_is_no_row_and_the_next_one_is() -> None:
    reader = Reader()
    assert reader.values(b"a\rb,c") is None
    assert reader.values(b'a"b,"c') is None
    assert reader.values(b"d," + b"x" * 200_000) is None
    assert reader.values(b"") == []
    assert reader.values(b"d,1\r") == ["d", "1"]


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert Reader().values(b"d,\xff\xfe,\xc3\xbc") == ["d", "\ufffd\ufffd", "ü"]


def test_zeros_that_a_power_cut_left_before_a_row_are_no_part_of_it() -> None:
    assert Reader().values(b"\0\0\0d,a\0b") == ["d", "a\0b"]
