"""Laws of response rules: the first that matches; a count exactly; a share never too early; nothing lost in sleep."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from spoolmta import pattern
from spoolmta.model import Reply, ResponseRule, Stage, Trigger
from spoolmta.response import Rules, matches
from spoolmta.trigger import Fired, Triggers
from tests.support.rules import rule

words = st.sampled_from(["too many", "rate", "spam", "^421", "^4", "limit$", "later"])
rules_ = st.lists(
    st.builds(
        rule,
        words,
        name=st.sampled_from("abcdefgh"),
        stages=st.sampled_from([(), (Stage.RCPT,), (Stage.EOD, Stage.DATA)]),
    ),
    max_size=6,
)
replies = st.builds(
    Reply,
    st.sampled_from([250, 421, 450, 550]),
    st.lists(st.sampled_from(["too many", "rate limit", "spam later", "ok"]), min_size=1, max_size=3).map(tuple),
)
gaps = st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0, 30.0, 59.9, 60.0, 61.0]), min_size=1, max_size=60)


def times(found: list[float]) -> list[float]:
    now, result = 1_700_000_000.0, []
    for gap in found:
        now += gap
        result.append(now)
    return result


@given(rules_, st.lists(st.tuples(st.sampled_from([*Stage]), replies), max_size=20))
def test_the_first_rule_that_matches_is_found_however_often_it_is_asked(
    found: list[ResponseRule], answers: list[tuple[Stage, Reply]]
) -> None:
    rules = Rules(found)
    for stage, reply in answers * 2:
        text = f"{reply.code} {' '.join(reply.lines)}"
        expected = None
        if reply.code >= 400:
            expected = next((one for one in found if matches(one, stage, text)), None)
        assert rules.match(stage, reply) is expected


@given(st.integers(1, 6), gaps)
def test_a_count_fires_exactly_when_the_nth_since_it_last_fired_lies_within_the_window(
    count: int, found: list[float]
) -> None:
    counted = rule("x", trigger=Trigger(count, 60.0))
    rules, triggers, since = Rules([counted]), Triggers(), []
    for now in times(found):
        since.append(now)
        expected = sum(now - then < 60.0 for then in since) >= count
        assert (triggers.note(now, "site", "", rules, counted, "x") is not None) == expected
        if expected:
            since = []


@given(
    st.integers(1, 12), st.floats(0.01, 1.0), st.lists(st.tuples(st.sampled_from([0.0, 0.3, 5.0, 40.0]), st.booleans()))
)
def test_a_share_never_fires_under_its_minimum_nor_under_its_share(
    least: int, part: float, answers: list[tuple[float, bool]]
) -> None:
    share = rule("x", trigger=Trigger(least, 60.0, part))
    rules, triggers, since = Rules([share]), Triggers(), list[tuple[float, bool]]()
    for now, (_, is_match) in zip(times([gap for gap, _ in answers]), answers, strict=True):
        since.append((now, is_match))
        fired = triggers.note(now, "site", "", rules, share if is_match else None, "x")
        if fired is not None:
            within = [matched for then, matched in since if now - then < 60.0]
            assert is_match
            assert len(within) >= fired.answers >= least
            assert sum(within) >= fired.matches >= part * fired.answers
            since = []


@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 20.0, 61.0]), st.sampled_from(["count", "share", "none"]), st.booleans())
    ),
)
def test_a_sleep_between_any_two_answers_changes_nothing(count: int, answers: list[tuple[float, str, bool]]) -> None:
    found = {"count": rule("x", trigger=Trigger(count, 60.0)), "share": rule("y", trigger=Trigger(count, 60.0, 0.3))}
    rules = Rules(found.values())
    awake, sleeper = Triggers(), Triggers()
    for now, (_, which, sleeps) in zip(times([gap for gap, _, _ in answers]), answers, strict=True):
        if sleeps:
            state = msgspec.json.decode(msgspec.json.encode(sleeper.export()))
            sleeper = Triggers()
            sleeper.restore(state, found.values(), now)
        results: list[Fired | None] = [
            triggers.note(now, "site", "192.0.2.1", rules, found.get(which), "x") for triggers in (awake, sleeper)
        ]
        assert results[0] == results[1]


@given(st.text(st.sampled_from("ab.*+?()[]{}|\\^$,:0123<>=!Pi-# w")))
def test_any_text_is_a_pattern_that_can_be_searched_or_is_refused_with_a_clause(source: str) -> None:
    try:
        found = pattern.compiled(source)
    except pattern.BadPattern:
        return
    found.is_in("421 ab too many")
