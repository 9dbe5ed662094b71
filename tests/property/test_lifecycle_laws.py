from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.lifecycle import Change, Health, after_exit, difference, needs_restart, next_event
from spoolmta.model import Config, Vmta

names = st.frozensets(st.sampled_from("abcdef"))


def config(vmtas: frozenset[str]) -> Config:
    return Config(host_name="mx", spool="/spool", vmtas={name: Vmta(name=name) for name in vmtas})


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_a_role_that_always_dies_at_once_is_started_at_most_once_a_second(worked: list[bool]) -> None:
    health, now, starts = Health(), 0.0, 0
    for word in worked:
        health = after_exit(health, clean=False, worked=word, now=now)
        assert now <= health.restart_at <= now + 60.0
        now = health.restart_at
        starts += 1
    assert starts <= now + 1


@given(names)
def test_equal_configurations_differ_in_nothing(vmtas: frozenset[str]) -> None:
    assert difference(config(vmtas), config(vmtas)) == Change((), ())
    assert needs_restart(config(vmtas), config(vmtas)) == []


@given(names, names)
def test_the_old_with_its_changes_is_the_new(old: frozenset[str], new: frozenset[str]) -> None:
    change = difference(config(old), config(new))
    assert (old | set(change.added)) - set(change.removed) == new
    assert not set(change.added) & old
    assert set(change.removed) <= old


@given(st.lists(st.floats(0, 1e10)), st.floats(0, 1e10), st.floats(0, 3600))
def test_a_sleep_is_never_negative_nor_too_long(times: list[float], now: float, longest: float) -> None:
    assert 0.0 <= next_event(times, now, longest) <= longest
