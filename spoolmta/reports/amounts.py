"""How many recipients, where, and what became of them."""

from __future__ import annotations

from spoolmta.reports.asking import (
    COUNTS,
    SECONDS,
    SPAN,
    Asked,
    key,
    made,
    missing_deferrals,
    most,
    named,
    over_time,
    shown_name,
    span_of,
)
from spoolmta.reports.report import Plot, Report, Table, columns, share


def message_counts(asked: Asked) -> Report:
    minute = "floor(epoch(timeLogged) / 60)::BIGINT"
    asked.ask(
        f"CREATE TEMP TABLE counts AS SELECT grouping(name, minute) AS level, name, minute, {COUNTS}, {SPAN}"
        f" FROM (SELECT {key(asked)} AS name, {minute} AS minute, * FROM chosen)"
        " GROUP BY GROUPING SETS ((name), (minute), ())"
    )
    told = "received, delivered, bounced, expired, deferrals, bytes"
    every = asked.ask(f"SELECT {told}, first, last, number FROM counts WHERE level = 3")[0]
    found = [("all", *every[:6])]
    if asked.by:
        order = "delivered + bounced DESC, deferrals DESC, name"
        found += asked.ask(f"SELECT name, {told} FROM counts WHERE level = 1 ORDER BY {order} {most(asked)}")
    rows = [
        (
            shown_name(name),
            received,
            delivered,
            bounced,
            expired,
            share(delivered, delivered + bounced),
            deferrals,
            size or 0,
        )
        for name, received, delivered, bounced, expired, deferrals, size in found
    ]
    names = columns(
        named(asked), "received", "delivered", "bounced", "expired", "delivered %:percent", "deferrals", "bytes:bytes"
    )
    minutes = asked.ask(
        "SELECT minute * 60, delivered, bounced, deferrals FROM counts WHERE level = 2 AND minute IS NOT NULL"
        " ORDER BY 1"
    )
    plots = [over_time("Recipients over time", minutes, ("delivered", "bounced", "deferrals"))]
    return made([Table("counts", "Recipients", names, rows)], plots, every[6:], [*missing_deferrals(every[4])])


def top_domains(asked: Asked) -> Report:
    asked.ask(
        f"CREATE TEMP TABLE domains AS SELECT {key(asked)} AS name, {COUNTS},"
        f" avg({SECONDS}) FILTER (type = 'd') AS mean,"
        f" max({SECONDS}) FILTER (type = 'd') AS most, {SPAN} FROM chosen WHERE type IN ('d', 'b', 't') GROUP BY 1"
    )
    span = span_of(asked, "domains")
    found = asked.ask(
        "SELECT name, delivered + bounced AS recipients, sum(delivered + bounced) OVER () AS whole, delivered, bounced,"
        f" deferrals, mean, most FROM domains ORDER BY 2 DESC, deferrals DESC, 1 {most(asked)}"
    )
    rows = [
        (
            shown_name(name), recipients, share(recipients, whole), delivered, bounced,
            share(bounced, recipients), deferrals, None if mean is None else round(mean, 2), most,
        )
        for name, recipients, whole, delivered, bounced, deferrals, mean, most in found
    ]  # fmt: skip
    names = columns(
        named(asked), "recipients", "of all:percent", "delivered", "bounced", "bounced %:percent", "deferrals",
        "average:seconds", "maximum:seconds",
    )  # fmt: skip
    series = {"delivered": [float(row[3]) for row in rows], "bounced": [float(row[4]) for row in rows]}
    plot = Plot(f"Recipients by {asked.by}", "names", [row[0] for row in rows], series)
    return made([Table("domains", f"Most recipients by {asked.by}", names, rows)], [plot], span)


def vmta_summary(asked: Asked) -> Report:
    asked.ask(
        f"CREATE TEMP TABLE summary AS SELECT vmta, dlvSourceIp AS address, {COUNTS},"
        f" avg({SECONDS}) FILTER (type = 'd') AS mean, {SPAN} FROM chosen WHERE type IN ('d', 'b', 't') GROUP BY 1, 2"
    )
    span = span_of(asked, "summary")
    found = asked.ask(
        "SELECT vmta, address, delivered + bounced, delivered, bounced, deferrals, bytes, mean FROM summary"
        f" ORDER BY sum(delivered + bounced) OVER (PARTITION BY vmta) DESC, vmta, 3 DESC, address {most(asked)}"
    )
    rows = [
        (
            shown_name(vmta), shown_name(address), recipients, delivered, bounced,
            share(bounced, recipients), deferrals, size or 0, None if mean is None else round(mean, 2),
        )
        for vmta, address, recipients, delivered, bounced, deferrals, size, mean in found
    ]  # fmt: skip
    names = columns(
        "vmta:text", "source-ip:text", "recipients", "delivered", "bounced", "bounced %:percent", "deferrals",
        "bytes:bytes", "average time:seconds",
    )  # fmt: skip
    totals: dict[str, list[float]] = {}
    for vmta, _, _, delivered, bounced, _, deferrals, *_ in rows:
        told = totals.setdefault(vmta, [0, 0, 0])
        totals[vmta] = [told[0] + delivered, told[1] + bounced, told[2] + deferrals]
    series = {
        name: [told[place] for told in totals.values()]
        for place, name in enumerate(("delivered", "bounced", "deferrals"))
    }
    plot = Plot("Recipients of each VMTA", "names", [*totals], series)
    return made([Table("summary", "VMTAs and their addresses", names, rows)], [plot], span)
