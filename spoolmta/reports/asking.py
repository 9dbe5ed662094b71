"""What each report asks of the log, and what is made of the answers.

The log is a view with a row per row: columns as in the file, times as TIMESTAMPTZ, empty values NULL, and in addition
`domain` (the recipient's) and `provider` (what the queue is named after). A question goes through the whole of it once,
where it can, and leaves a small table that everything else is read from: ten million rows are read in seconds, but not
twice for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from spoolmta.reports.chosen import BY
from spoolmta.reports.report import Plot, Report, Table, local, thinned

Rows = list[tuple[Any, ...]]


class Asked(msgspec.Struct, frozen=True):
    """What a report is asked for. `ask` answers SQL over `chosen`, the rows of the log that were chosen. `by` is a key
    of chosen.BY or "" (no groups), `top` how many rows a table may have, `total` how many recipients a campaign has
    (None: what was received), `now` Unix seconds."""

    ask: Callable[[str], Rows]
    by: str = ""
    top: int = 20
    total: int | None = None
    now: float = 0.0


def key(asked: Asked) -> str:
    return BY[asked.by] if asked.by else "NULL"


def named(asked: Asked) -> str:
    return f"{asked.by or 'all'}:text"


def shown_name(value: Any) -> str:
    """A value from the log as one harmless line, whatever a stranger wrote into it."""
    text = "(none)" if value is None else str(value)
    return text if text.isprintable() else "".join(ch if ch.isprintable() else " " for ch in text)


def most(asked: Asked) -> str:
    return f"LIMIT {asked.top}" if asked.top else ""


COUNTS = """count(*) FILTER (type = 'r') AS received, count(*) FILTER (type = 'd') AS delivered,
    count(*) FILTER (type = 'b') AS bounced,
    count(*) FILTER (type = 'b' AND bounceCat = 'message-expired') AS expired,
    count(*) FILTER (type = 't') AS deferrals, sum(dlvSize) AS bytes"""
SPAN = "epoch(min(timeLogged)) AS first, epoch(max(timeLogged)) AS last, count(*) AS number"
SECONDS = """CASE WHEN timeLogged >= timeQueued THEN (epoch(timeLogged) - epoch(timeQueued))::BIGINT
    WHEN timeLogged < timeQueued THEN 0 END"""


def over_time(title: str, minutes: Rows, names: tuple[str, ...], is_rate: bool = False) -> Plot:
    wide, points = thinned([(at, [float(value) for value in values]) for at, *values in minutes], 60)
    labels = [when(at, points) for at, _ in points]
    by = wide / 60 if is_rate else 1
    series = {name: [values[place] / by for _, values in points] for place, name in enumerate(names)}
    return Plot(title, "lines" if is_rate else "bars", labels, series)


def when(at: int, points: list[Any]) -> str:
    is_short = points[-1][0] - points[0][0] < 86_400
    return local(at).strftime("%H:%M" if is_short else "%b %d %H:%M")


def span_of(asked: Asked, table: str) -> tuple[Any, ...]:
    return asked.ask(f"SELECT min(first), max(last), coalesce(sum(number), 0)::BIGINT FROM {table}")[0]


def missing_deferrals(count: int) -> list[str]:
    return [] if count else ["there are no t rows (deferrals): either there were none, or the log's records have no t"]


def made(tables: list[Table], plots: list[Plot], span: Any, notes: list[str] | None = None) -> Report:
    """A report without its name. `span` is when its first and last row were logged, and how many rows it is made of."""
    first, last, number = span
    return Report("", "", tables, [plot for plot in plots if plot.labels], notes or [], first, last, number)
