"""Percentiles and histograms from counts are those of the list that was counted."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.reports.drawing import ticks
from spoolmta.reports.report import thinned
from spoolmta.reports.spread import BUCKETS, EDGES, SHARES, average, fastest, histogram

times = st.lists(st.integers(0, 100_000) | st.sampled_from(EDGES), min_size=1, max_size=60)


@given(times)
def test_the_fastest_share_has_the_average_and_maximum_of_its_deliveries(listed: list[int]) -> None:
    listed.sort()
    counts = sorted(Counter(listed).items())
    for share, (count, mean, most) in zip(SHARES, fastest(counts), strict=True):
        part = listed[: max(1, math.ceil(round(len(listed) * share, 6) / 100))]
        assert count == len(part)
        assert most == part[-1]
        assert math.isclose(mean, sum(part) / len(part))
    assert math.isclose(average(counts), sum(listed) / len(listed))


@given(times)
def test_every_delivery_is_in_the_bucket_of_its_time(listed: list[int]) -> None:
    found = histogram(sorted(Counter(listed).items()))
    ends = [*EDGES[1:], math.inf]
    assert found == [sum(low <= time < high for time in listed) for low, high in zip(EDGES, ends, strict=True)]
    assert len(found) == len(BUCKETS)


@given(
    st.dictionaries(
        st.integers(0, 60_000_000).map(lambda minute: minute * 60), st.integers(1, 9), min_size=1, max_size=30
    )
)
def test_thinning_keeps_every_count_and_leaves_no_gap(counted: dict[int, int]) -> None:
    wide, points = thinned([(at, [counted[at]]) for at in sorted(counted)], 60)
    assert sum(values[0] for _, values in points) == sum(counted.values())
    assert [at for at, _ in points] == list(range(points[0][0], points[-1][0] + 1, wide))
    assert len(points) <= 122


@given(st.just(0.0) | st.floats(1e-6, 1e12))
def test_an_axis_has_few_round_marks_and_reaches_the_largest_value(most: float) -> None:
    marks = ticks(most)
    assert marks[0] == 0
    assert marks[-1] >= most * (1 - 1e-9)
    assert 2 <= len(marks) <= 7
