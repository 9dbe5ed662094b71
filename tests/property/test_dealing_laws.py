from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta.dealing import BACK, choose

weights_ = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def deal(weights: list[int], owed: list[int], turns: int, free: list[bool] | None = None) -> list[int]:
    return [choose(weights, owed, free or [True] * len(weights)) for _ in range(turns)]


@given(weights_, st.integers(0, 60))
def test_every_window_of_a_full_cycle_holds_exactly_the_weights(weights: list[int], start: int) -> None:
    cycle = sum(weights)
    dealt = deal(weights, [0] * len(weights), start + 2 * cycle)
    for begin in range(start, start + cycle):
        assert Counter(dealt[begin : begin + cycle]) == Counter(dict(enumerate(weights)))


@st.composite
def outages(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, list[bool]]]]:
    """Weights, and how many turns who is free."""
    weights = draw(weights_)
    free = st.lists(st.booleans(), min_size=len(weights), max_size=len(weights)).filter(any)
    return weights, draw(st.lists(st.tuples(st.integers(1, 15), free), max_size=6))


@given(outages())
def test_who_is_not_free_is_not_chosen_and_is_paid_back_later(
    case: tuple[list[int], list[tuple[int, list[bool]]]],
) -> None:
    weights, phases = case
    owed = [0] * len(weights)
    dealt: list[int] = []
    for turns, free in phases:
        found = deal(weights, owed, turns, free)
        assert all(free[index] for index in found)
        dealt += found
    dealt += deal(weights, owed, 100 * sum(weights))
    counts = Counter(dealt)
    for index, weight in enumerate(weights):
        assert abs(counts[index] - len(dealt) * weight / sum(weights)) <= 1


@given(weights_.filter(lambda weights: len(weights) > 1), st.integers(0, 5000), st.integers(1, 300), st.data())
def test_a_member_that_was_away_for_long_gets_no_more_than_the_bound_back(
    weights: list[int], away: int, after: int, data: st.DataObject
) -> None:
    absent = data.draw(st.integers(0, len(weights) - 1))
    owed = [0] * len(weights)
    deal(weights, owed, away, [index != absent for index in range(len(weights))])
    counts = Counter(deal(weights, owed, after))
    assert counts[absent] <= after * weights[absent] / sum(weights) + BACK + 1


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_whatever_was_left_by_other_weights_is_forgotten_after_a_while(weights: list[int], data: st.DataObject) -> None:
    left = st.integers(-(2**40), 2**40)
    owed = data.draw(st.lists(left, min_size=len(weights), max_size=len(weights)))
    deal(weights, owed, 2 * len(weights) * BACK * sum(weights))
    cycle = sum(weights)
    assert Counter(deal(weights, owed, cycle)) == Counter(dict(enumerate(weights)))
