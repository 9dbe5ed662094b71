"""A report as one HTML page that needs nothing else and runs nothing (its policy allows styles only)."""

from __future__ import annotations

from jinja2 import Environment
from markupsafe import Markup

from spoolmta.reports import drawing
from spoolmta.reports.report import Report, period, shown


def page(report: Report, template: str, now: float) -> str:
    """The page by its template (`page.html`). `now` (Unix seconds) is when it was made."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    plots = [
        (plot, Markup(drawing.draw(plot)), [(name, drawing.colour(plot, name)) for name in plot.series])
        for plot in report.plots
    ]
    tables = [
        (
            table,
            [
                [(column.kind, shown(column.kind, value)) for column, value in zip(table.columns, row, strict=True)]
                for row in table.rows
            ],
        )
        for table in report.tables
    ]
    return environment.from_string(template).render(
        report=report,
        plots=plots,
        tables=tables,
        period=period(report.since, report.until),
        made=shown("time", now),
    )
