"""Laws of what an operator switches."""

from __future__ import annotations

import copy
import math

from hypothesis import given
from hypothesis import strategies as st

from spoolmta import switch
from spoolmta.condition import Condition
from spoolmta.model import DomainPolicy
from spoolmta.switch import BACKOFF, DISABLE, ENABLE, NORMAL, PAUSE, RESUME, Order, Switch

POLICY = DomainPolicy()
OPPOSITES = {PAUSE: RESUME, BACKOFF: NORMAL, DISABLE: ENABLE}
SITES = ["a.test", "b.test", "big.rollup", "x.big.rollup"]
PATTERNS = ["*", "*.test", "*.rollup", "b*", *SITES]

switches = st.builds(
    lambda do, until, address: Switch(do, "operator x", until, address if do in (DISABLE, ENABLE) else ""),
    st.sampled_from([*OPPOSITES, *OPPOSITES.values()]),
    st.sampled_from([0.0, 50.0, 1000.0]),
    st.sampled_from(["192.0.2.1", "192.0.2.2"]),
)
JOBS = ["0", "0badcafe", "cafebabe"]
of_jobs = st.builds(
    lambda do, until, job: Switch(do, "operator x", until, job=job, job_name=f"name of {job}"),
    st.sampled_from([PAUSE, RESUME]),
    st.sampled_from([0.0, 50.0, 1000.0]),
    st.sampled_from(JOBS),
)
given_ = st.lists(st.tuples(st.sampled_from(PATTERNS), switches), max_size=12)


def orders_of(history: list[tuple[str, Switch]]) -> list[Order]:
    orders: list[Order] = []
    for pattern, wanted in history:
        orders = switch.order(orders, pattern, wanted)
    return orders


@given(given_, switches)
def test_a_switch_twice_is_a_switch_once(history: list[tuple[str, Switch]], wanted: Switch) -> None:
    state = Condition()
    for _, one in history:
        switch.apply(state, POLICY, 100.0, one)
    switch.apply(state, POLICY, 100.0, wanted)
    before = copy.deepcopy(state)
    assert not switch.apply(state, POLICY, 100.0, wanted)
    assert state == before


@given(given_, st.sampled_from(PATTERNS), switches, st.sampled_from(SITES))
def test_an_order_and_its_end_for_the_same_pattern_leave_nothing(
    history: list[tuple[str, Switch]], pattern: str, wanted: Switch, site: str
) -> None:
    do = wanted.do if wanted.do in OPPOSITES else PAUSE
    begun = Switch(do, "x", 0.0, wanted.address)
    orders = switch.order(orders_of(history), pattern, begun)
    orders = switch.order(orders, pattern, Switch(OPPOSITES[do], "x", 0.0, wanted.address))
    if switch.matches(pattern, site):
        assert not any((s.do, s.address) == (do, wanted.address) for s in switch.standing(orders, site, 10.0))


@given(given_, st.sampled_from(SITES))
def test_what_stands_for_a_site_is_what_the_last_switch_that_names_it_left(
    history: list[tuple[str, Switch]], site: str
) -> None:
    """A site that was there all the time and one that comes at the end are in the same state (events aside), where
    only wildcards were given."""
    history = [(pattern, wanted) for pattern, wanted in history if switch.is_pattern(pattern) and not wanted.until]
    there = Condition()
    for pattern, wanted in history:
        if switch.matches(pattern, site):
            switch.apply(there, POLICY, 100.0, wanted)
    late = Condition()
    for wanted in switch.standing(orders_of(history), site, 100.0):
        switch.apply(late, POLICY, 100.0, wanted)
    assert (late.paused is None, late.mode, sorted(late.disabled)) == (
        there.paused is None,
        there.mode,
        sorted(there.disabled),
    )


@given(st.sampled_from(PATTERNS), st.text(max_size=20))
def test_a_star_is_any_text_and_everything_else_is_itself(pattern: str, text: str) -> None:
    assert switch.matches(pattern, pattern.replace("*", text))
    assert switch.matches(pattern, text) == (text == pattern) or "*" in pattern


@given(st.lists(of_jobs | st.tuples(st.sampled_from(PATTERNS), switches), max_size=12), st.sampled_from([10.0, 100.0]))
def test_a_job_is_held_as_the_last_switch_for_it_says_and_no_site_notices(
    history: list[Switch | tuple[str, Switch]], now: float
) -> None:
    """Switches for jobs and for sites, in any order: neither knows of the other."""
    orders: list[Order] = []
    last: dict[str, Switch] = {}
    for one in history:
        if isinstance(one, Switch):
            before = switch.held_jobs(orders, 10.0)
            orders, is_news = switch.order_job(orders, one, 10.0)
            assert is_news == (switch.held_jobs(orders, 10.0) != before)
            assert not switch.order_job(orders, one, 10.0)[1]
            last[one.job] = one
        else:
            orders = switch.order(orders, *one)
    in_time = {job: one for job, one in last.items() if one.do == PAUSE and (not one.until or one.until > now)}
    assert switch.held_jobs(orders, now) == in_time
    ends = [one.until for one in in_time.values() if one.until]
    assert switch.next_release(orders, now) == min(ends, default=math.inf)
    without = orders_of([one for one in history if not isinstance(one, Switch)])
    for site in SITES:
        assert switch.standing(orders, site, now) == switch.standing(without, site, now)
