"""What a report is made of: tables and plots of plain values, whatever they are shown as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Kind = Literal["text", "count", "percent", "seconds", "bytes", "rate", "time"]
"""What a value means: counts and bytes are whole numbers; percent is 0 to 100; a rate is recipients an hour; a time is
Unix seconds. None is "not known"."""


class Column(msgspec.Struct, frozen=True):
    name: str
    kind: Kind = "count"


class Table(msgspec.Struct, frozen=True):
    """`name` is one word, for whoever wants this table only."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[Any, ...]]


class Plot(msgspec.Struct, frozen=True):
    """`bars` are stacked, one bar a label, in an order that means something; so are `names`, which may be long; `lines`
    have a point a label. A series has a value for each label."""

    title: str
    form: Literal["bars", "names", "lines"]
    labels: list[str]
    series: dict[str, list[float]]
    kind: Kind = "count"


class Report(msgspec.Struct):
    """`since` and `until` are when its first and last row were logged (Unix seconds), `rows` how many it is made of,
    `skipped` how many lines were none, `filters` what was chosen, `notes` what the reader has to know."""

    name: str
    title: str
    tables: list[Table]
    plots: list[Plot] = []
    notes: list[str] = []
    since: float | None = None
    until: float | None = None
    rows: int = 0
    skipped: int = 0
    filters: list[str] = []


def columns(*written: str) -> tuple[Column, ...]:
    """Columns as `name:kind`, a count without one."""
    return tuple(Column(name, kind or "count") for name, _, kind in (item.partition(":") for item in written))  # type: ignore[arg-type]


def share(part: float, whole: float) -> float | None:
    """Percent."""
    return round(100 * part / whole, 4) if whole else None


def shown(kind: Kind, value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if kind == "text":
        return str(value)
    return _SHOWN[kind](value)


def duration(seconds: float) -> str:
    """`4 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _percent(value: float) -> str:
    return f"{value:.1f} %" if value >= 0.1 or not value else "< 0.1 %"


_SHOWN: dict[str, Callable[[float], str]] = {
    "count": lambda value: f"{value:,.0f}",
    "percent": _percent,
    "seconds": duration,
    "bytes": _size,
    "rate": lambda value: f"{value:,.0f}/h",
    "time": lambda value: local(value).strftime("%Y-%m-%d %H:%M:%S"),
}


def local(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone()


def period(since: float | None, until: float | None) -> str:
    if since is None or until is None:
        return "no rows"
    return f"{shown('time', since)} to {shown('time', until)} ({duration(until - since)})"


def thinned(points: Sequence[tuple[int, Sequence[float]]], step: int, most: int = 120) -> tuple[int, list[Any]]:
    """(seconds a bucket, [(begin, sums)]) of values counted by multiples of `step` seconds, in at most `most` buckets
    of a round length, without gaps."""
    if not points:
        return step, []
    first, last = points[0][0], points[-1][0]
    wide = next((size for size in _STEPS if size >= step and (last - first) // size < most), _STEPS[-1])
    sums: dict[int, list[float]] = {}
    count = len(points[0][1])
    for begin in range(first - first % wide, last + 1, wide):
        sums[begin] = [0.0] * count
    for at, values in points:
        bucket = sums[at - at % wide]
        for number, value in enumerate(values):
            bucket[number] += value
    return wide, list(sums.items())


_STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 604_800, 2_592_000, 31_536_000)
