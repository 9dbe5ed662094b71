"""Rows of an accounting log, read: bytes to values, and values to a typed `Record` by what the header above them says.

Columns may stand in any order, and there may be any number of others: of another configuration, or of PowerMTA. What
is no row of its header (too few or too many values, a quote that is never closed) is None, never a guess.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Sequence
from datetime import datetime
from operator import itemgetter

import msgspec

MAX_ROW = 65_536
"""Bytes of a row. Ours have no line breaks in them; where a quote is not closed within this, it is not meant as one."""


class Record(msgspec.Struct, frozen=True):
    """One row. Times are Unix seconds (UTC), sizes are bytes, everything else is text as it stands in the log. What the
    row does not have is None (a time, a number) or "" (a text).

    `values` has what there is no field for, as text, by its column: further columns that are not empty, and a time or
    number that is none.
    """

    type: str
    time_logged: float | None
    time_queued: float | None
    orig: str
    rcpt: str
    orcpt: str
    dsn_action: str
    dsn_status: str
    dsn_diag: str
    dsn_mta: str
    bounce_cat: str
    src_type: str
    src_mta: str
    dlv_type: str
    dlv_source_ip: str
    dlv_destination_ip: str
    dlv_esmtp_available: str
    dlv_size: int | None
    vmta: str
    job_id: str
    env_id: str
    queue: str
    vmta_pool: str
    msg_id: str
    attempts: int | None
    rcv_source_ip: str
    rcv_destination_ip: str
    dlv_tls_protocol: str
    dlv_tls_cipher: str
    values: dict[str, str]


@functools.lru_cache(maxsize=1024)
def moment(text: str) -> float | None:
    """Unix seconds of a time in the log: ISO 8601 (of this machine's zone, if it names none), or Unix seconds."""
    try:
        return float(text) if text.isdecimal() and len(text) < 20 else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def number(text: str) -> int | None:
    return int(text) if len(text) < 20 and text.isascii() and text.isdigit() else None


def column_of(field: str) -> str:
    """`dlv_source_ip` is the column `dlvSourceIp`."""
    first, *rest = field.split("_")
    return first + "".join(word.title() for word in rest)


FIELDS = {column_of(field): kind for field, kind in Record.__annotations__.items() if field != "values"}
"""The columns that have a field of their own, in its order, and what it is."""
CONVERTED = [
    (place, column, moment if kind.startswith("float") else number)
    for place, (column, kind) in enumerate(FIELDS.items())
    if kind != "str"
]


class Columns:
    """The columns of rows, by a header."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.place = {name: place for place, name in reversed([*enumerate(names)])}
        self.type_place = self.place.get("type", 0)
        self._pick = itemgetter(*(self.place.get(column, len(names)) for column in FIELDS))
        self._further = [(name, place) for name, place in self.place.items() if name not in FIELDS]

    def __repr__(self) -> str:
        return f"Columns({','.join(self.names)})"

    def record(self, values: list[str]) -> Record:
        """The record of a row that has as many values as there are columns."""
        cells: list[object] = [*self._pick([*values, ""])]
        further = {name: values[place] for name, place in self._further if values[place]}
        for place, column, convert in CONVERTED:
            if text := cells[place]:
                cells[place] = made = convert(text)  # type: ignore[arg-type]
                if made is None:
                    further[column] = text  # type: ignore[assignment]
            else:
                cells[place] = None
        return Record(*cells, further)  # type: ignore[call-arg,arg-type]


def rows_in(data: bytes, is_all: bool = False) -> Iterator[tuple[bytes, int]]:
    """Each whole row in the data, which begin with one, and how many bytes it takes; what has no end yet is left out.
    `is_all` says that nothing more will come."""
    lines = data.split(b"\n")
    lines.pop()
    if b'"' not in data or not any(line.count(b'"') & 1 for line in lines):
        for line in lines:
            yield line, len(line) + 1
        return
    at = 0
    while at < len(lines):
        end = _end_of_row(lines, at) or (at + 1 if is_all else 0)
        if not end:
            return
        row = lines[at] if end == at + 1 else b"\n".join(lines[at:end])
        yield row, len(row) + 1
        at = end


def _end_of_row(lines: list[bytes], at: int) -> int:
    """Behind which line the row ends that begins with line `at`; 0 if that has yet to come."""
    size = quotes = 0
    for place in range(at, len(lines)):
        size += len(lines[place]) + 1
        quotes += lines[place].count(b'"')
        if not quotes & 1:
            return place + 1
        if size > MAX_ROW:
            return at + 1
    return 0


class Reader:
    """The values of one row after another."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._reader = csv.reader(iter(self._rows.pop, None))

    def values(self, row: bytes) -> list[str] | None:
        """None if it is no CSV; nothing for an empty line. Bytes that are no text are U+FFFD; a power cut can leave
        zeros before a row, which are not part of it."""
        self._rows.append(row.lstrip(b"\0").decode("utf-8", "replace"))
        try:
            return next(self._reader)
        except (csv.Error, IndexError, StopIteration):  # IndexError: it wants another line, the quotes do not match
            self._rows.clear()
            return None
