"""Which rows of the log a report is made of, and by what they are put together, as SQL."""

from __future__ import annotations

import re

from spoolmta.sought import Sought

BY = {
    "vmta": "vmta",
    "job": "jobId",
    "domain": "domain",
    "provider": "provider",
    "sender": "orig",
    "source-ip": "dlvSourceIp",
}
"""By what rows can be put together, and the column of the view `log` that says it."""

_COLUMNS = {"rcpt": "rcpt", "orig": "orig", "job": "jobId", "vmta": "vmta", "domain": "domain", "category": "bounceCat"}


def condition(sought: Sought) -> str:
    """What `sought.Sieve` takes, as a condition on the view `log`."""
    found = []
    for field, column in _COLUMNS.items():
        if pattern := getattr(sought, field):
            found.append(f"coalesce({column}, '') ILIKE {quoted(_like(pattern))} ESCAPE '\\'")
    if sought.types:
        found.append(f"type IN ({', '.join(map(quoted, sought.types))})")
    if sought.since:
        found.append(f"epoch(timeLogged) >= {sought.since!r}")
    if sought.until != float("inf"):
        found.append(f"epoch(timeLogged) <= {sought.until!r}")
    return " AND ".join(found) or "true"


def quoted(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def _like(pattern: str) -> str:
    return re.sub(r"[\\%_]", r"\\\g<0>", pattern).replace("*", "%")


def words(sought: Sought) -> list[str]:
    """What was chosen, for people (its times are those of the report)."""
    return [f"{field} {text}" for field in _COLUMNS if (text := getattr(sought, field))]
