"""Whoever reads an accounting file by the names in its header finds each value under its own name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spoolmta import columns
from spoolmta.columns import MORE, USUAL, WITH_HEADERS, Shape, resolve

HEADERS = ("x-a", "x-b")


@st.composite
def fields(draw: st.DrawFn, record: str) -> tuple[str, ...]:
    known = [*USUAL[record], *MORE[record], *([f"header_{name}" for name in HEADERS] if record in WITH_HEADERS else [])]
    names = draw(st.lists(st.sampled_from([*known, "*"]), unique=True, max_size=12))
    without = draw(st.lists(st.sampled_from([f"!{name}" for name in USUAL[record][1:]]), unique=True, max_size=3))
    return (*names, *without) or ("*",)


@st.composite
def files(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    records = draw(st.lists(st.sampled_from(list(USUAL)), unique=True, min_size=1))
    return {record: draw(fields(record)) for record in records}


def value(record: str, name: str) -> str:
    return f"{record} {name}"


def event(record: str) -> list[str]:
    names = [*USUAL[record][1:], *MORE[record], *(f"header_{name}" for name in HEADERS)]
    return [record, *(value(record, name) for name in names)]


@given(files())
def test_each_value_stands_under_its_name_and_nothing_under_what_its_type_has_not(
    file: dict[str, tuple[str, ...]],
) -> None:
    names = columns.header(file, file)
    assert len(names) == len(set(names))
    for record, wanted in file.items():
        own = resolve(record, wanted)
        cells = Shape(record, names, own, HEADERS, {}, {}, {}).cells(event(record))
        expected = {name: value(record, name) if name in own else "" for name in names} | {"type": record}
        assert dict(zip(names, cells, strict=True)) == expected


@given(st.sampled_from(["d", "b", "t"]), st.data())
def test_the_usual_columns_keep_their_place_whatever_else_a_file_has(record: str, data: st.DataObject) -> None:
    others = {
        other: data.draw(fields(other)) for other in data.draw(st.lists(st.sampled_from(list(USUAL)), unique=True))
    }
    names = columns.header({**others, record: ("*",)}, {**others, record: ("*",)})
    assert tuple(names[: len(USUAL["d"])]) == USUAL["d"]


@given(st.lists(st.sampled_from(["*/a", "!*/a", "x.test/*", "!x.test/b", "*/*"]), max_size=4), st.sampled_from("ab"))
def test_a_pattern_that_stands_before_another_is_stronger(patterns: list[str], vmta: str) -> None:
    queue = f"x.test/{vmta}"
    assert columns.takes(["x.test/*", *patterns], queue)
    assert not columns.takes(["!x.test/*", *patterns], queue)
