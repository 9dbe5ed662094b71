"""Plots as SVG, for a page that needs nothing else: no script, no font, no other file.

Bars over time stand upright; bars of names lie, because names are long. Colours are classes (`a0` ...), so that the
page decides what they are by day and by night.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from spoolmta.reports.report import Kind, Plot, shown

WIDTH, HEIGHT = 960, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 28
ROW, NAMES = 24, 300
COLOURS = {"delivered": 0, "settled": 0, "bounced": 1, "deferrals": 2}


def draw(plot: Plot) -> str:
    """The SVG of a plot, without a legend."""
    if plot.form == "lines":
        return _svg(HEIGHT, _lines(plot))
    if plot.form == "names":
        return _svg(len(plot.labels) * ROW + 8, _lying(plot))
    return _svg(HEIGHT, _upright(plot))


def colour(plot: Plot, name: str) -> str:
    """The class of a series' colour."""
    if set(plot.series) <= COLOURS.keys():
        return f"a{COLOURS[name]}"
    return f"a{list(plot.series).index(name) % 12}"


def ticks(most: float) -> list[float]:
    """Round numbers from 0 up to the first that is not below `most`."""
    if most <= 0:
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(most))
    step = next(size for size in (step / 5, step / 2, step, 2 * step) if most / size <= 5)
    if most >= 1:
        step = max(1.0, step)
    return [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]


def _svg(height: int, parts: Iterator[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _axes(plot: Plot, most: float) -> Iterator[str]:
    marks = ticks(most)
    kind: Kind = "count" if plot.kind == "count" and marks[1] >= 1 else plot.kind
    for mark in marks:
        y = _y(mark, marks[-1])
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        told = f"{mark:g}" if mark < 1 else shown(kind, mark)
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(told)}</text>'
    wide = (WIDTH - LEFT - RIGHT) / len(plot.labels)
    every = math.ceil(len(plot.labels) / max(1, (WIDTH - LEFT - RIGHT) // (max(map(len, plot.labels)) * 6.5 + 8)))
    for place in range(0, len(plot.labels), every):
        x = LEFT + (place + 0.5) * wide
        yield f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(plot.labels[place])}</text>'


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM)


def _upright(plot: Plot) -> Iterator[str]:
    most = max(_sums(plot))
    yield from _axes(plot, most)
    top = ticks(most)[-1]
    wide = (WIDTH - LEFT - RIGHT) / len(plot.labels)
    for place, label in enumerate(plot.labels):
        below = 0.0
        for name, values in plot.series.items():
            if values[place]:
                y, height = _y(below + values[place], top), _y(below, top) - _y(below + values[place], top)
                x = LEFT + place * wide + wide * 0.1
                yield _bar(plot, name, label, values[place], x, y, wide * 0.8, height)
                below += values[place]


def _lying(plot: Plot) -> Iterator[str]:
    most = max(_sums(plot)) or 1
    room = WIDTH - NAMES - RIGHT - 70
    for place, (label, whole) in enumerate(zip(plot.labels, _sums(plot), strict=True)):
        y = 4 + place * ROW
        told = label if len(label) <= 44 else label[:43] + "…"
        title = f"<title>{html.escape(label)}</title>"
        yield f'<text x="{NAMES - 8}" y="{y + 15}" text-anchor="end">{html.escape(told)}{title}</text>'
        x = float(NAMES)
        for name, values in plot.series.items():
            if values[place]:
                wide = values[place] / most * room
                yield _bar(plot, name, label, values[place], x, y + 2, wide, ROW - 6)
                x += wide
        yield f'<text x="{x + 6:.1f}" y="{y + 15}">{html.escape(shown(plot.kind, whole))}</text>'


def _lines(plot: Plot) -> Iterator[str]:
    most = max((value for values in plot.series.values() for value in values), default=0.0)
    yield from _axes(plot, most)
    top = ticks(most)[-1]
    wide = (WIDTH - LEFT - RIGHT) / len(plot.labels)
    for name, values in plot.series.items():
        points = [(LEFT + (place + 0.5) * wide, _y(value, top)) for place, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline class="{colour(plot, name)}" points="{path}"/>'
        for (x, y), label, value in zip(points, plot.labels, values, strict=True):
            title = _title(plot, name, label, value)
            yield f'<circle class="{colour(plot, name)}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">{title}</circle>'


def _bar(plot: Plot, name: str, label: str, value: float, x: float, y: float, wide: float, height: float) -> str:
    return (
        f'<rect class="{colour(plot, name)}" x="{x:.1f}" y="{y:.1f}" width="{max(wide, 1):.1f}"'
        f' height="{max(height, 1):.1f}">{_title(plot, name, label, value)}</rect>'
    )


def _title(plot: Plot, name: str, label: str, value: float) -> str:
    return f"<title>{html.escape(f'{label}: {shown(plot.kind, value)} {name}')}</title>"


def _sums(plot: Plot) -> list[float]:
    return [float(sum(values[place] for values in plot.series.values())) for place in range(len(plot.labels))]
