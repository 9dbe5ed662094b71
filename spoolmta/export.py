"""Rows of the log for other programs: CSV, JSON lines, XML. Values come from strangers, so each form keeps them from
being anything but text: CSV for spreadsheets has an apostrophe before what they would take for a formula, XML has
U+FFFD for characters it cannot have. JSON has every value as it stands in the log.

`clean` is applied to every text: on a terminal it takes out what would control it.
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Callable, Sequence

import msgspec

from spoolmta.row import Columns

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_NO_NUMBER = re.compile(r"[^\d.,]")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Form:
    """How rows are written: `begin`, each `row`, `end`."""

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        self._clean = clean

    def begin(self) -> str:
        return ""

    def row(self, columns: Columns, values: list[str]) -> str:
        raise NotImplementedError

    def end(self) -> str:
        return ""


class Csv(Form):
    """A header comes before the first row, and again before a row that has other columns in addition; of rows with
    fewer the rest is empty."""

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        super().__init__(clean)
        self._names: tuple[str, ...] = ()
        self._lines: list[str] = []
        self._write = csv.writer(self).writerow

    def write(self, line: str) -> None:
        """What csv.writer calls."""
        self._lines.append(line)

    def header(self, columns: Columns) -> str:
        """The header alone, for what may have no rows."""
        self._names = columns.names
        self._write(self._harmless(self._names))
        return self._taken()

    def row(self, columns: Columns, values: list[str]) -> str:
        if columns.names != self._names:
            if not set(columns.names) <= set(self._names):
                self._names = columns.names
                self._write(self._harmless(self._names))
            there = columns.place
            values = [values[there[name]] if name in there else "" for name in self._names]
        self._write(self._harmless(values))
        return self._taken()

    def _taken(self) -> str:
        text = "".join(self._lines)
        self._lines.clear()
        return text

    def _harmless(self, values: Sequence[str]) -> list[str]:
        clean = self._clean
        return [clean(f"'{value}" if value.startswith(_FORMULA) and is_formula(value) else value) for value in values]


def is_formula(value: str) -> bool:
    """Whether a spreadsheet could take a value that begins with a sign for more than text or a number."""
    return value[0] not in "+-" or _NO_NUMBER.search(value, 1) is not None


class Json(Form):
    """An object a line, with the values that are not empty."""

    def row(self, columns: Columns, values: list[str]) -> str:
        clean = self._clean
        found = {clean(name): clean(value) for name, value in zip(columns.names, values, strict=True) if value}
        return msgspec.json.encode(found).decode() + "\n"


class Xml(Form):
    """`<log><row><value column="rcpt">...</value>...</row>...</log>`, with the values that are not empty."""

    def begin(self) -> str:
        return '<?xml version="1.0" encoding="UTF-8"?>\n<log>\n'

    def row(self, columns: Columns, values: list[str]) -> str:
        cells = [
            f'<value column="{self._text(name)}">{self._text(value)}</value>'
            for name, value in zip(columns.names, values, strict=True)
            if value
        ]
        return f"<row>{''.join(cells)}</row>\n"

    def end(self) -> str:
        return "</log>\n"

    def _text(self, text: str) -> str:
        return xml_text(self._clean(text))


def xml_text(text: str) -> str:
    """A text as content or attribute of XML."""
    return html.escape(_NOT_IN_XML.sub("\ufffd", text)).replace("\r", "&#13;")


FORMS: dict[str, type[Form]] = {"csv": Csv, "json": Json, "xml": Xml}
