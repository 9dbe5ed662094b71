from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from spoolmta import accounting

values = st.lists(st.text(max_size=20), min_size=2, max_size=30)
MADE_SPACES = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029"}


def cleaned(value: str) -> str:
    return "".join(" " if ch in MADE_SPACES else ch for ch in value)


@given(values)
def test_a_reader_gets_back_every_value_with_control_characters_as_spaces(row: list[str]) -> None:
    line = accounting.csv_line(row)
    assert next(csv.reader(io.StringIO(line, newline=""))) == [cleaned(value) for value in row]


@given(values)
def test_a_row_is_one_line_however_lines_are_counted(row: list[str]) -> None:
    line = accounting.csv_line(row)
    assert line.endswith("\r\n")
    assert len(line.splitlines()) == 1


@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=10), min_size=2, max_size=10))
def test_what_is_printable_is_written_as_the_csv_module_writes_it(row: list[str]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow(row)
    assert accounting.csv_line(row) == file.getvalue()
