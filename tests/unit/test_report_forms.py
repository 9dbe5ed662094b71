from __future__ import annotations

import csv
import io
import json
from importlib import resources
from xml.etree import ElementTree

import pytest

from spoolmta.reports import drawing, forms, page
from spoolmta.reports.report import Column, Plot, Report, Table, columns, duration, period, shown

EVIL = "<script>alert('x')</script>&\"=cmd|' /C calc'!A0"
TEMPLATE = resources.files("spoolmta.reports").joinpath("page.html").read_text()


def report(name: str = EVIL) -> Report:
    table = Table(
        "counts", "Counts", columns("name:text", "number", "share:percent", "at:time"), [(name, 12345, 50.0, 0.0)]
    )
    plots = [
        Plot("Bars", "bars", [name, "b"], {"delivered": [1.0, 2.0], name: [0.0, 3.0]}),
        Plot("Names", "names", [name], {"bounced": [1.0]}),
        Plot("Lines", "lines", [name], {"delivered": [0.0]}),
    ]
    return Report("counts", "What", [table], plots, ["a note"], 0.0, 60.0, 7, 2, [f"job {name}"])


def test_csv_is_one_table_with_plain_numbers_and_nothing_a_spreadsheet_would_run() -> None:
    found = list(csv.reader(io.StringIO(forms.csv(report("=1+1|x").tables[0]), newline=""), strict=True))
    assert found[0] == ["name", "number", "share", "at"]
    assert found[1][:3] == ["'=1+1|x", "12345", "50.0"]


def test_a_table_without_rows_is_a_header_in_csv() -> None:
    assert forms.csv(Table("x", "X", columns("a:text", "b"), [])) == "a,b\r\n"


def test_json_has_every_table_by_its_name_with_times_and_zones() -> None:
    found = json.loads(forms.json(report()))
    assert found["tables"]["counts"][0]["name"] == EVIL
    assert found["tables"]["counts"][0]["at"].startswith("19")
    assert found["since"][-6] in "+-"
    assert (found["rows"], found["skipped"], found["notes"]) == (7, 2, ["a note"])


def test_xml_is_read_back_with_whatever_is_in_it() -> None:
    root = ElementTree.fromstring(forms.xml(report(EVIL + "\x01")))
    value = root.find("table/row/value[@column='name']")
    assert value is not None
    assert value.text == EVIL + "\ufffd"


def test_a_page_holds_no_markup_of_strangers_and_needs_no_other_file() -> None:
    text = page.page(report(), TEMPLATE, 0.0)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    for plot in report().plots:
        ElementTree.fromstring(drawing.draw(plot))


def test_text_says_what_period_it_is_of_and_breaks_no_line_without_a_terminal() -> None:
    text = forms.text(report("x" * 300))
    assert "x" * 300 in text
    assert "(1 min)" in text
    assert "# a note" in text
    assert all(
        len(line) <= 80 for line in forms.text(report("y" * 100), 80).splitlines() if "y" in line and line[0] != "#"
    )


def test_a_report_of_nothing_is_shown_in_every_form() -> None:
    nothing = Report("counts", "What", [Table("counts", "Counts", columns("name:text"), [])], [])
    assert "no rows" in forms.text(nothing)
    assert "no rows" in page.page(nothing, TEMPLATE, 0.0)
    assert json.loads(forms.json(nothing))["since"] is None
    ElementTree.fromstring(forms.xml(nothing))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.5, "0.5 s"), (59, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (200_000, "2 d 7 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        (Column("n"), 1234567, "1,234,567"),
        (Column("n", "percent"), 0.004, "< 0.1 %"),
        (Column("n", "percent"), 0.0, "0.0 %"),
        (Column("n", "bytes"), 1_500_000, "1.5 MB"),
        (Column("n", "rate"), 1200.4, "1,200/h"),
        (Column("n", "seconds"), None, "-"),
    ],
)
def test_values_are_shown_for_people(column: Column, value: float | None, text: str) -> None:
    assert shown(column.kind, value) == text


def test_a_period_without_rows_is_none() -> None:
    assert period(None, None) == "no rows"
