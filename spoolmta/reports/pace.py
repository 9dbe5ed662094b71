"""How fast mail went: the time of deliveries, rates, the progress of campaigns."""

from __future__ import annotations

from typing import Any

from spoolmta.reports import spread
from spoolmta.reports.asking import (
    COUNTS,
    SECONDS,
    SPAN,
    Asked,
    Rows,
    key,
    made,
    most,
    named,
    over_time,
    shown_name,
    span_of,
    when,
)
from spoolmta.reports.report import Plot, Report, Table, columns, share, thinned


def delivery_times(asked: Asked) -> Report:
    span = _take_times(asked)
    every = asked.ask("SELECT seconds, sum(number)::BIGINT FROM times GROUP BY 1 ORDER BY 1")
    tables, plots = [], []
    if every:
        rows: Rows
        total = sum(number for _, number in every)
        counts = spread.histogram(every)
        rows = [
            (f"{percent:g} %", count, round(mean, 2), most)
            for percent, (count, mean, most) in zip(spread.SHARES, spread.fastest(every), strict=True)
        ]
        names = columns("fastest:text", "recipients", "average:seconds", "maximum:seconds")
        tables.append(Table("percentiles", "Time from queued to delivered", names, rows))
        names = columns("time:text", "recipients", "share:percent")
        rows = [(name, number, share(number, total)) for name, number in zip(spread.BUCKETS, counts, strict=True)]
        tables.append(Table("histogram", "How many took how long", names, rows))
        plots.append(
            Plot("Recipients by delivery time", "bars", [*spread.BUCKETS], {"delivered": [*map(float, counts)]})
        )
        if asked.by:
            tables.append(_times_by(asked))
    return made(tables, plots, span)


def _take_times(asked: Asked) -> tuple[Any, ...]:
    asked.ask(
        f"CREATE TEMP TABLE times AS SELECT {key(asked)} AS name, {SECONDS} AS seconds, {SPAN} FROM chosen"
        " WHERE type = 'd' AND timeQueued IS NOT NULL AND timeLogged IS NOT NULL GROUP BY 1, 2"
    )
    return span_of(asked, "times")


def _grouped(asked: Asked) -> list[tuple[str, Rows]]:
    """The times of each group of the top ones, most deliveries first."""
    found: dict[Any, Rows] = {}
    for name, seconds, number in asked.ask(
        "SELECT times.name, seconds, number FROM times JOIN (SELECT name, sum(number) AS total FROM times GROUP BY 1"
        f" ORDER BY 2 DESC, 1 {most(asked)}) AS most ON times.name IS NOT DISTINCT FROM most.name"
        " ORDER BY total DESC, most.name, seconds"
    ):
        found.setdefault(name, []).append((seconds, number))
    return [(shown_name(name), counts) for name, counts in found.items()]


def _times_by(asked: Asked) -> Table:
    rows = []
    for name, counts in _grouped(asked):
        shares = [most for _, _, most in spread.fastest(counts, (50, 90, 95, 99, 100))]
        rows.append((name, sum(number for _, number in counts), round(spread.average(counts), 2), *shares))
    names = columns(
        named(asked),
        "delivered",
        "average:seconds",
        *(f"{item}:seconds" for item in ("50 %", "90 %", "95 %", "99 %", "maximum")),
    )
    return Table("groups", f"By {asked.by}", names, rows)


def time_breakdown(asked: Asked) -> Report:
    span = _take_times(asked)
    groups = [(name, spread.histogram(counts)) for name, counts in _grouped(asked)]
    used = [place for place in range(len(spread.BUCKETS)) if any(counts[place] for _, counts in groups)]
    rows = [(name, sum(counts), *(counts[place] for place in used)) for name, counts in groups]
    names = columns(named(asked), "delivered", *(spread.BUCKETS[place] for place in used))
    series = {spread.BUCKETS[place]: [float(counts[place]) for _, counts in groups] for place in used}
    plot = Plot(f"Recipients of each {asked.by} by delivery time", "names", [name for name, _ in groups], series)
    table = Table("times", f"How long the deliveries of each {asked.by} took", names, rows)
    return made([table], [plot], span)


def top_rates(asked: Asked) -> Report:
    asked.ask(
        f"CREATE TEMP TABLE minutes AS SELECT {key(asked)} AS name, floor(epoch(timeLogged) / 60)::BIGINT AS minute,"
        f" {SPAN} FROM chosen WHERE type = 'd' AND timeLogged IS NOT NULL GROUP BY 1, 2"
    )
    span = span_of(asked, "minutes")
    groups = ["'all'", *(["name"] if asked.by else [])]
    found: Rows = []
    for group in groups:
        window = "sum(number) OVER (PARTITION BY name ORDER BY minute RANGE BETWEEN {} PRECEDING AND CURRENT ROW)"
        best = "max({0}), 60 * (arg_max(minute, {0}) - {1})"
        found += asked.ask(
            f"SELECT name, sum(one), {best.format('one', 0)}, {best.format('five', 4)}, {best.format('hour', 59)} FROM"
            f" (SELECT name, minute, number AS one, {window.format(4)} AS five, {window.format(59)} AS hour FROM"
            f" (SELECT {group} AS name, minute, sum(number) AS number FROM minutes GROUP BY 1, 2))"
            f" GROUP BY 1 ORDER BY 2 DESC, 1 {most(asked)}"
        )
    names = columns(
        named(asked),
        "delivered",
        "best minute",
        "minute from:time",
        "best 5 minutes",
        "5 minutes from:time",
        "best hour",
        "hour from:time",
    )
    every = asked.ask("SELECT minute * 60, sum(number) FROM minutes GROUP BY 1 ORDER BY 1")
    rows = [(shown_name(name), *rest) for name, *rest in found]
    plot = over_time("Delivered recipients a minute", every, ("delivered",), is_rate=True)
    return made([Table("rates", "Best rates of delivery", names, rows)], [plot], span)


NEVER = 250_000_000_000.0
"""A time that no calendar of ours reaches."""
RECENT = 300
"""Seconds over which the present rate of a campaign is taken."""


def campaign(asked: Asked) -> Report:
    """The jobs; of the only one also how it went over time. What is left is what was received without being settled."""
    asked.ask(
        f"CREATE TEMP TABLE jobs AS SELECT jobId AS name, floor(epoch(timeLogged) / 60)::BIGINT AS minute, {COUNTS},"
        f" count(*) FILTER (type IN ('d', 'b') AND epoch(timeLogged) > {asked.now - RECENT!r}"
        f" AND epoch(timeLogged) <= {asked.now!r}) AS recent,"
        f" epoch(min(timeLogged) FILTER (type IN ('d', 'b'))) AS began, {SPAN} FROM chosen GROUP BY 1, 2"
    )
    span = span_of(asked, "jobs")
    found = asked.ask(
        "SELECT name, sum(received), sum(delivered), sum(bounced), sum(deferrals), sum(recent), min(began), max(last)"
        f" FROM jobs GROUP BY 1 ORDER BY max(last) DESC, 1 {most(asked)}"
    )
    notes = []
    if asked.total is None and any(
        not received and delivered + bounced for _, received, delivered, bounced, *_ in found
    ):
        notes.append(
            "this log has no r rows (received) of some jobs, so what is left of them is not known: add r to its"
            " records, or give --total"
        )
    if asked.total is None and any(0 < received < delivered + bounced for _, received, delivered, bounced, *_ in found):
        notes.append("more is settled of some jobs than was received in this time: what is left of them is not known")
    rows = [_progress(row, asked) for row in found]
    names = columns(
        "job:text", "recipients", "delivered", "bounced", "deferrals", "left", "done:percent", "began:time",
        "last:time", "now:rate", "on average:rate", "ends about:time",
    )  # fmt: skip
    tables = [Table("jobs", "Campaigns", names, rows)]
    minutes = asked.ask(
        "SELECT minute * 60, sum(delivered), sum(bounced), sum(deferrals) FROM jobs WHERE minute IS NOT NULL"
        " GROUP BY 1 ORDER BY 1"
    )
    plots = [over_time("Recipients over time", minutes, ("delivered", "bounced", "deferrals"))]
    if len(rows) == 1 and rows[0][1]:
        plots.insert(0, _progress_over_time(minutes, rows[0][1]))
    return made(tables, plots, span, notes)


def _progress(row: tuple[Any, ...], asked: Asked) -> tuple[Any, ...]:
    name, received, delivered, bounced, deferrals, recent, began, last = row
    settled = delivered + bounced
    total = asked.total or received or None
    left = None if total is None else max(0, total - settled)
    rate = recent * 3600 / RECENT
    mean = settled * 3600 / max(1.0, last - began) if settled and last is not None else None
    end = asked.now + left * 3600 / rate if left and rate else None
    if end is not None and end > NEVER:
        end = None
    done = None if total is None else min(100.0, share(settled, total) or 0.0)
    return shown_name(name), total, delivered, bounced, deferrals, left, done, began, last, rate, mean, end


def _progress_over_time(minutes: Rows, total: int) -> Plot:
    _, points = thinned([(at, [delivered + bounced]) for at, delivered, bounced, _ in minutes], 60)
    settled, labels, done = 0.0, [], []
    for at, (number,) in points:
        settled += number
        labels.append(when(at, points))
        done.append(min(100.0, 100 * settled / total))
    return Plot("Progress", "lines", labels, {"settled": done}, "percent")
