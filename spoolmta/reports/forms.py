"""A report as text, CSV, JSON or XML. Names and replies come from strangers: each form keeps them from being anything
but text (`export` says how)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table as DrawnTable
from rich.text import Text

from spoolmta.export import Csv, xml_text
from spoolmta.reports.report import Report, Table, local, period, shown
from spoolmta.row import Columns


def text(report: Report, width: int = 0) -> str:
    """Tables for people. What is no part of a table begins with `#`. Lines are broken within their columns to have
    `width` characters; with 0 they are as long as they are."""
    console = Console(width=width or 10_000, color_system=None, legacy_windows=False)
    lines = [f"# {report.title}", f"# {period(report.since, report.until)}, {report.rows:,} rows"]
    lines += [f"# only {item}" for item in report.filters]
    for table in report.tables:
        lines += ["", f"# {table.title}"]
        with console.capture() as captured:
            console.print(_drawn(table))
        lines += [line.rstrip() for line in captured.get().splitlines()] if table.rows else ["(nothing)"]
    lines += ["", *(f"# {note}" for note in report.notes)] if report.notes else []
    return "\n".join(lines) + "\n"


def _drawn(table: Table) -> DrawnTable:
    drawn = DrawnTable(box=None, pad_edge=False)
    for column in table.columns:
        is_text = column.kind == "text"
        drawn.add_column(column.name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in table.rows:
        drawn.add_row(*(Text(shown(column.kind, value)) for column, value in zip(table.columns, row, strict=True)))
    return drawn


def csv(table: Table) -> str:
    """One table, with numbers as they are and local times, as spreadsheets read them."""
    form = Csv()
    names = Columns([column.name for column in table.columns])
    rows = [["" if value is None else str(value) for value in row] for row in _values(table)]
    return form.header(names) + "".join(form.row(names, row) for row in rows)


def json(report: Report) -> str:
    found = {
        "report": report.name,
        "title": report.title,
        "since": _iso(report.since),
        "until": _iso(report.until),
        "rows": report.rows,
        "skipped": report.skipped,
        "filters": report.filters,
        "notes": report.notes,
        "tables": {
            table.name: [
                {column.name: value for column, value in zip(table.columns, row, strict=True)}
                for row in _values(table, _iso)
            ]
            for table in report.tables
        },
    }
    return msgspec.json.format(msgspec.json.encode(found)).decode() + "\n"


def xml(report: Report) -> str:
    def attributes(**values: object) -> str:
        return "".join(f' {name}="{xml_text(str(value))}"' for name, value in values.items())

    about = attributes(
        name=report.name,
        title=report.title,
        since=_iso(report.since) or "",
        until=_iso(report.until) or "",
        rows=report.rows,
        skipped=report.skipped,
    )
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<report{about}>"]
    lines += [f"<filter>{xml_text(item)}</filter>" for item in report.filters]
    lines += [f"<note>{xml_text(note)}</note>" for note in report.notes]
    for table in report.tables:
        lines.append(f"<table{attributes(name=table.name, title=table.title)}>")
        for row in _values(table, _iso):
            cells = [
                f"<value{attributes(column=column.name)}>{xml_text(str(value))}</value>"
                for column, value in zip(table.columns, row, strict=True)
                if value is not None
            ]
            lines.append(f"<row>{''.join(cells)}</row>")
        lines.append("</table>")
    return "\n".join([*lines, "</report>"]) + "\n"


def _values(
    table: Table, moment: Callable[[float | None], str | None] = lambda at: shown("time", at)
) -> list[list[Any]]:
    """Values for programs: times as text, everything else as it is."""
    return [
        [
            moment(value) if column.kind == "time" and value is not None else value
            for column, value in zip(table.columns, row, strict=True)
        ]
        for row in table.rows
    ]


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else local(seconds).isoformat(timespec="seconds")
