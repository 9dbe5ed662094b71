from __future__ import annotations

import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from spoolmta import condition
from spoolmta.condition import BACKOFF, FOREVER, NORMAL, RECOVERING, Condition, Memory, Override
from spoolmta.model import UNLIMITED, DomainPolicy, Rate

NOW = 1_700_000_000.0
rates = st.builds(Rate, st.integers(1, 10_000).map(float), st.sampled_from([1.0, 60.0, 3600.0])) | st.just(UNLIMITED)
policies = st.builds(
    DomainPolicy,
    max_smtp_out=st.integers(1, 100),
    backoff_max_smtp_out=st.integers(1, 100),
    max_msg_rate=rates,
    backoff_max_msg_rate=rates,
    max_connect_rate=rates,
    backoff_max_connect_rate=rates,
    backoff_to_normal_after=st.sampled_from([60.0, 3600.0, math.inf]),
    backoff_recovery_interval=st.sampled_from([0.0, 60.0, 600.0]),
)
signals = st.sampled_from(["enter", "leave", "normal", "pause", "resume", "disable", "enable", "halve", "wait"])


def speed(rate: Rate) -> float:
    return rate.count / rate.period


def is_no_looser(one: DomainPolicy, other: DomainPolicy) -> bool:
    return (
        one.max_smtp_out <= other.max_smtp_out
        and speed(one.max_msg_rate) <= speed(other.max_msg_rate)
        and speed(one.max_connect_rate) <= speed(other.max_connect_rate)
    )


def signal(state: Condition, policy: DomainPolicy, what: str, now: float) -> None:
    if what == "enter":
        condition.enter_backoff(state, policy, now, "a rule")
    elif what == "leave":
        condition.leave_backoff(state, policy, now, "a rule")
    elif what == "normal":
        condition.set_normal(state, now, "the operator")
    elif what == "pause":
        condition.pause(state, now, "the operator", now + 100)
    elif what == "resume":
        condition.resume(state, now, "the operator")
    elif what == "disable":
        condition.disable_source(state, now, "192.0.2.1", "a rule", now + 50)
    elif what == "enable":
        condition.enable_source(state, now, "192.0.2.1", "the operator")
    elif what == "halve":
        condition.set_limit(state, now, Override("max_smtp_out", now + 70, "a rule", factor=0.5, floor="2"))


@given(policies, st.lists(st.tuples(signals, st.floats(0, 500)), max_size=30))
def test_whatever_happens_there_are_three_modes_and_no_limit_looser_than_normal(
    policy: DomainPolicy, story: list[tuple[str, float]]
) -> None:
    state, now = Condition(), NOW
    for what, pause in story:
        now += pause
        condition.tick(state, policy, now)
        signal(state, policy, what, now)
        assert state.mode in (NORMAL, BACKOFF, RECOVERING)
        assert is_no_looser(condition.in_force(policy, state), policy) or any(
            override.floor for override in state.overrides
        )
        assert len(state.events) <= condition.MAX_EVENTS
        assert msgspec.json.decode(msgspec.json.encode(state), type=Condition).mode == state.mode


@given(policies, st.lists(st.tuples(signals, st.floats(0, 500)), max_size=20))
def test_nothing_changes_before_its_time_and_something_does_at_it(
    policy: DomainPolicy, story: list[tuple[str, float]]
) -> None:
    state, now = Condition(), NOW
    for what, pause in story:
        now += pause
        condition.tick(state, policy, now)
        signal(state, policy, what, now)
    again = condition.next_time(state)
    before = msgspec.json.encode(state)
    if again > now:
        assert not condition.tick(state, policy, math.nextafter(min(again, now + 1e9), 0.0))
        assert msgspec.json.encode(state) == before
    if again < math.inf:
        assert condition.tick(state, policy, again)
        assert condition.next_time(state) > again


@given(policies, st.lists(st.tuples(signals, st.floats(0, 500), st.booleans()), max_size=30))
def test_every_event_is_told_once_and_what_nobody_was_told_of_is_not_forgotten(
    policy: DomainPolicy, story: list[tuple[str, float, bool]]
) -> None:
    memory, now, told, kept = Memory(), NOW, 0, 0
    for what, pause, is_told in story:
        now += pause
        state = memory.of("a.test")
        before = state.noted
        condition.tick(state, policy, now)
        signal(state, policy, what, now)
        kept += state.noted - before
        if is_told:
            waiting = state.noted - state.told
            found = state.tell()
            assert len(found) == min(waiting, condition.MAX_EVENTS)
            assert found == state.events[len(state.events) - len(found) :]
            told += waiting
        memory.tidy("a.test", now)
        assert memory.next_time <= min((condition.next_time(one) for one in memory.all().values()), default=math.inf)
    told += memory.of("a.test").noted - memory.of("a.test").told
    assert told == kept


@given(policies)
def test_a_recovery_climbs_step_by_step_and_ends_at_normal(policy: DomainPolicy) -> None:
    state, now = Condition(), NOW
    condition.enter_backoff(state, policy, now, "a rule")
    force = condition.in_force(policy, state)
    condition.leave_backoff(state, policy, now, "a rule")
    for _ in range(40):
        before, force = force, condition.in_force(policy, state)
        assert is_no_looser(before, force)
        assert is_no_looser(force, policy)
        if state.mode == NORMAL:
            break
        now = condition.next_time(state)
        condition.tick(state, policy, now)
    assert state.mode == NORMAL
    assert condition.in_force(policy, state) == policy


def test_back_off_holds_its_own_limits_and_retries_and_says_why() -> None:
    policy = DomainPolicy(
        max_smtp_out=20,
        backoff_max_smtp_out=2,
        backoff_max_msg_rate=Rate(10, 3600),
        backoff_retry_after=(99.0,),
        backoff_to_normal_after=100.0,
    )
    state = Condition()
    assert condition.enter_backoff(state, policy, NOW, "rule 7: 421 too fast")
    assert not condition.enter_backoff(state, policy, NOW + 50, "rule 7: 421 too fast")
    force = condition.in_force(policy, state)
    assert (force.max_smtp_out, force.max_msg_rate, force.retry_after) == (2, Rate(10, 3600), (99.0,))
    assert not condition.tick(state, policy, NOW + 149)
    assert condition.tick(state, policy, NOW + 150)
    assert condition.in_force(policy, state) == policy
    assert [event.text for event in state.events] == ["backoff: rule 7: 421 too fast", "normal: its time is over"]


def test_a_complaint_during_recovery_begins_anew() -> None:
    policy = DomainPolicy(max_smtp_out=16, backoff_max_smtp_out=1, backoff_recovery_interval=60.0)
    state = Condition()
    condition.enter_backoff(state, policy, NOW, "first")
    condition.leave_backoff(state, policy, NOW, "delivery")
    condition.tick(state, policy, NOW + 60)
    assert (state.mode, condition.in_force(policy, state).max_smtp_out) == (RECOVERING, 4)
    assert condition.enter_backoff(state, policy, NOW + 61, "again")
    assert (state.mode, condition.in_force(policy, state).max_smtp_out) == (BACKOFF, 1)


def test_a_limit_is_set_to_a_value_or_a_factor_with_a_floor_and_returns() -> None:
    policy = DomainPolicy(max_smtp_out=20, max_msg_rate=Rate(100, 60))
    state = Condition()
    condition.set_limit(state, NOW, Override("max_smtp_out", NOW + 10, "a rule", value="3"))
    condition.set_limit(state, NOW, Override("max_msg_rate", FOREVER, "a rule", factor=0.01, floor='"600/h"'))
    force = condition.in_force(policy, state)
    assert (force.max_smtp_out, force.max_msg_rate) == (3, Rate(10, 60))
    condition.tick(state, policy, NOW + 10)
    assert condition.in_force(policy, state).max_smtp_out == 20
