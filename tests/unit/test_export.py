from __future__ import annotations

import csv
import io
import json
from xml.etree import ElementTree

import pytest

from spoolmta.cli.frame import plain
from spoolmta.export import Csv, Form, Json, Xml
from spoolmta.row import Columns

COLUMNS = Columns(["type", "rcpt", "dsnDiag"])
EVIL = "a\"b,c\r\n<x>&'\x1b[31m\x9b\0\ufffe"


def written(form: Form, *values: str, columns: Columns = COLUMNS) -> str:
    return form.row(columns, list(values))


def test_csv_has_a_header_before_the_first_row_and_is_read_back() -> None:
    form = Csv()
    text = written(form, "d", EVIL, "") + written(form, "b", "x", "")
    found = [*csv.reader(io.StringIO(text, newline=""), strict=True)]
    assert found == [["type", "rcpt", "dsnDiag"], ["d", EVIL, ""], ["b", "x", ""]]


@pytest.mark.parametrize("value", ["=cmd|' /C calc'!A0", "@SUM(1)", "+1@b.test", "-x", "\t=1", "\r=1", "\n=1", "＝1"])
def test_what_a_spreadsheet_would_take_for_a_formula_is_made_text_in_csv_only(value: str) -> None:
    _, row = csv.reader(io.StringIO(written(Csv(), "d", value, ""), newline=""))
    assert row[1] == f"'{value}"
    assert json.loads(written(Json(), "d", value, ""))["rcpt"] == value


@pytest.mark.parametrize("value", ["-5", "+1.5", "a=b", "smtp;550 5.1.1 no", "", "1"])
def test_numbers_and_other_text_stay_as_they_are(value: str) -> None:
    assert written(Csv(), "d", value, "").endswith(f"\r\nd,{value},\r\n")


def test_csv_begins_anew_where_there_are_more_columns_and_fits_rows_with_fewer() -> None:
    form = Csv()
    written(form, "d", "one", "two")
    assert written(form, "three", "b", columns=Columns(["dsnDiag", "type"])) == "b,,three\r\n"
    assert written(form, "d", "1", columns=Columns(["type", "more"])) == "type,more\r\nd,1\r\n"
    assert written(form, "d", "one", "two") == "type,rcpt,dsnDiag\r\nd,one,two\r\n"


def test_json_is_a_line_with_what_is_not_empty() -> None:
    text = written(Json(), "d", EVIL, "")
    assert text.count("\n") == 1
    assert json.loads(text) == {"type": "d", "rcpt": EVIL}


def test_xml_has_every_value_and_no_character_that_it_forbids() -> None:
    form = Xml()
    odd = Columns(["type", '<">&\x01'])
    text = form.begin() + written(form, "d", EVIL, "") + written(form, "b", "x", columns=odd) + form.end()
    first, second = ElementTree.fromstring(text.encode())
    assert first[1].get("column") == "rcpt"
    assert first[1].text == EVIL.replace("\x1b", "\ufffd").replace("\0", "\ufffd").replace("\ufffe", "\ufffd")
    assert second[1].get("column") == '<">&\ufffd'


@pytest.mark.parametrize("form", [Csv(plain), Json(plain), Xml(plain)])
def test_nothing_that_controls_a_terminal_reaches_one(form: Form) -> None:
    odd = Columns(["type", "rcpt\x1b[2J", "\x9b2J"])
    text = form.begin() + written(form, "d", EVIL, "\u202e\x07", columns=odd) + form.end()
    assert all(character.isprintable() or character in "\r\n" for character in text)
    assert text.replace("\r\n", "\n").count("\r") == 0
