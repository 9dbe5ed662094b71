"""Why mail bounced or was deferred."""

from __future__ import annotations

from spoolmta.reports.asking import SPAN, Asked, key, made, missing_deferrals, most, named, shown_name, span_of
from spoolmta.reports.chosen import BY, quoted
from spoolmta.reports.report import Plot, Report, Table, columns, share

_VARYING = (
    (r"<?[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+>?", "<address>"),
    (r"https?://[^ ]+", "<link>"),
    (r"\[?(\b[0-9]{1,3}(\.[0-9]{1,3}){3}\b|\b(IPv6:)?[0-9A-Fa-f]{1,4}(:[0-9A-Fa-f]{0,4}){3,7})\]?", "<ip>"),
    (r"\b([A-Za-z0-9_-]+\.)+[A-Za-z]{2,}\b", "<host>"),
    (r"\b([A-Za-z0-9_-]{6,}[0-9][A-Za-z0-9_-]*|[A-Za-z_-]*[0-9][A-Za-z0-9_-]{6,}|[0-9A-Fa-f]{6,})\b", "<id>"),
    (r"\b[0-9]+(\.[0-9]+)*\b", "<n>"),
)
"""What is another in each reply of the same meaning, in the order in which it is taken out (RE2, as duckdb has it)."""


def reason(column: str = "dsnDiag") -> str:
    """What a reply says without whom it says it of, as SQL: the code and the enhanced code stay as they are."""
    text = f"left({column}, 400)"
    code = f"regexp_extract({text}, '^smtp;([0-9]{{3}}([ -][0-9]\\.[0-9]{{1,3}}\\.[0-9]{{1,3}})?)?')"
    rest = f"substr({text}, length({code}) + 1)"
    for pattern, word in _VARYING:
        rest = f"regexp_replace({rest}, {quoted(pattern)}, {quoted(word)}, 'g')"
    return f"trim(regexp_replace({code}, '^smtp;', '') || {rest})"


def bounce_categories(asked: Asked) -> Report:
    asked.ask(
        f"CREATE TEMP TABLE categories AS SELECT {key(asked)} AS name, bounceCat AS category,"
        f" count(*) FILTER (type = 'b') AS bounced, count(*) FILTER (type = 't') AS deferrals, {SPAN}"
        " FROM chosen WHERE type IN ('b', 't') GROUP BY ALL"
    )
    span = span_of(asked, "categories")
    all_bounced, all_deferrals = asked.ask(
        "SELECT coalesce(sum(bounced), 0), coalesce(sum(deferrals), 0) FROM categories"
    )[0]
    found = asked.ask(
        "SELECT category, sum(bounced), sum(deferrals) FROM categories GROUP BY 1 ORDER BY 2 DESC, 3 DESC, 1"
    )
    tables = [
        Table(
            "categories",
            "Bounces and deferrals by category",
            columns("category:text", "bounced", "bounced %:percent", "deferrals", "deferrals %:percent"),
            [
                (shown_name(category), bounced, share(bounced, all_bounced), deferrals, share(deferrals, all_deferrals))
                for category, bounced, deferrals in found
            ],
        )
    ]
    if asked.by:
        within = asked.ask(
            "SELECT categories.name, category, bounced, deferrals FROM categories JOIN (SELECT name, sum(bounced) AS b,"
            f" sum(deferrals) AS t FROM categories GROUP BY 1 ORDER BY 2 DESC, 3 DESC, 1 {most(asked)}) AS most"
            " ON categories.name IS NOT DISTINCT FROM most.name ORDER BY b DESC, t DESC, most.name, 3 DESC, 4 DESC, 2"
        )
        names = columns(named(asked), "category:text", "bounced", "deferrals")
        tables.append(
            Table("groups", f"By {asked.by}", names, [(*map(shown_name, row[:2]), *row[2:]) for row in within])
        )
    plot = Plot(
        "Recipients by category",
        "names",
        [shown_name(row[0]) for row in found],
        {"bounced": [row[1] for row in found], "deferrals": [row[2] for row in found]},
    )
    return made(tables, [plot], span, missing_deferrals(all_deferrals))


def top_bounce(asked: Asked) -> Report:
    asked.ask(
        f"CREATE TEMP TABLE bounces AS SELECT {key(asked)} AS name, count(*) AS recipients,"
        " count(*) FILTER (type = 'b') AS bounced, mode(bounceCat) FILTER (type = 'b') AS category,"
        f" {SPAN} FROM chosen WHERE type IN ('d', 'b') GROUP BY 1"
    )
    span = span_of(asked, "bounces")
    found = asked.ask(
        f"SELECT name, recipients, bounced, category FROM bounces WHERE bounced > 0 ORDER BY 3 DESC, 1 {most(asked)}"
    )
    rows = [
        (shown_name(name), recipients, bounced, share(bounced, recipients), shown_name(category))
        for name, recipients, bounced, category in found
    ]
    names = columns(named(asked), "recipients", "bounced", "bounced %:percent", "mostly:text")
    tables = [Table("bounces", f"Most bounces by {asked.by}", names, rows), _reasons(asked, "b")]
    plot = Plot(
        f"Bounced recipients by {asked.by}", "names", [row[0] for row in rows], {"bounced": [row[2] for row in rows]}
    )
    return made(tables, [plot], span)


def vmta_top_bounce(asked: Asked) -> Report:
    asked.ask(
        "CREATE TEMP TABLE bounces AS SELECT vmta, domain, count(*) AS recipients,"
        " count(*) FILTER (type = 'b') AS bounced, mode(bounceCat) FILTER (type = 'b') AS category,"
        f" {SPAN} FROM chosen WHERE type IN ('d', 'b') GROUP BY 1, 2"
    )
    span = span_of(asked, "bounces")
    first = f"AND place <= {asked.top}" if asked.top else ""
    found = asked.ask(
        "SELECT vmta, domain, recipients, bounced, category FROM (SELECT *, row_number() OVER (PARTITION BY vmta ORDER"
        " BY bounced DESC, domain) AS place, sum(bounced) OVER (PARTITION BY vmta) AS whole FROM bounces)"
        f" WHERE bounced > 0 {first} ORDER BY whole DESC, vmta, bounced DESC, domain"
    )
    rows = [
        (shown_name(vmta), shown_name(domain), recipients, bounced, share(bounced, recipients), shown_name(category))
        for vmta, domain, recipients, bounced, category in found
    ]
    names = columns("vmta:text", "domain:text", "recipients", "bounced", "bounced %:percent", "mostly:text")
    found = asked.ask(
        "SELECT vmta, sum(recipients), sum(bounced) FROM bounces GROUP BY 1 HAVING sum(bounced) > 0 ORDER BY 3 DESC, 1"
    )
    plot = Plot(
        "Bounced recipients of each VMTA",
        "names",
        [shown_name(row[0]) for row in found],
        {"bounced": [row[2] for row in found]},
    )
    return made([Table("bounces", "Most bounces of each VMTA", names, rows)], [plot], span)


def deferral_reasons(asked: Asked) -> Report:
    span = asked.ask(f"SELECT {SPAN} FROM chosen WHERE type IN ('t', 'tq')")[0]
    reasons = _reasons(asked, "t")
    queues = _reasons(asked, "tq")
    tables = [reasons, *([queues] if queues.rows else [])]
    place = [column.name for column in reasons.columns].index("number")
    shown = reasons.rows[:15]
    plot = Plot(
        "Deferrals by reason",
        "names",
        [str(row[place - 2]) for row in shown],
        {"deferrals": [row[place] for row in shown]},
    )
    return made(tables, [plot] if shown else [], span, missing_deferrals(span[2]))


_REASON_TITLES = {
    "b": "Why mail bounced",
    "t": "Why recipients were deferred",
    "tq": "Why attempts of whole queues failed",
}


def _reasons(asked: Asked, kind: str) -> Table:
    """The most frequent reasons, of each group if there are groups, without addresses and numbers."""
    is_grouped = bool(asked.by) and kind != "b"
    key = f"{BY[asked.by]} AS name" if is_grouped else "NULL AS name"
    found = asked.ask(
        f"WITH reasons AS (SELECT {key}, {reason()} AS reason, mode(bounceCat) AS category, count(*) AS number,"
        f" mode(domain) AS domain FROM chosen WHERE type = {quoted(kind)} GROUP BY ALL)"
        " SELECT name, reason, category, number, sum(number) OVER () AS whole, domain FROM reasons"
        f" ORDER BY number DESC, name, reason {most(asked)}"
    )
    rows = [
        (
            *([shown_name(name)] if is_grouped else []),
            shown_name(text or None),
            shown_name(category),
            number,
            share(number, whole),
            shown_name(domain),
        )
        for name, text, category, number, whole, domain in found
    ]
    names = ["reason:text", "category:text", "number", "share:percent", "mostly at:text"]
    return Table(
        {"b": "reasons", "t": "reasons", "tq": "queues"}[kind],
        _REASON_TITLES[kind],
        columns(*([named(asked)] if is_grouped else []), *names),
        rows,
    )
