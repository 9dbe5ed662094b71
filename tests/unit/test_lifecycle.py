from __future__ import annotations

from spoolmta.lifecycle import (
    Change,
    Health,
    after_exit,
    difference,
    needs_restart,
    next_event,
    to_wake,
)
from spoolmta.model import Config, Vmta


def config(*vmtas: str, spool: str = "/spool", user: str = "") -> Config:
    return Config(host_name="mx", spool=spool, user=user, vmtas={name: Vmta(name=name) for name in vmtas})


def test_deaths_without_work_pause_longer_and_longer() -> None:
    health, pauses = Health(), []
    for _ in range(9):
        health = after_exit(health, clean=False, worked=False, now=100.0)
        pauses.append(health.restart_at - 100.0)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_first_death_after_work_costs_no_pause() -> None:
    assert after_exit(Health(), clean=False, worked=True, now=5.0) == Health(1, 5.0)


def test_a_process_that_works_a_little_and_dies_again_and_again_does_not_spin() -> None:
    health = after_exit(Health(), clean=False, worked=True, now=5.0)
    assert after_exit(health, clean=False, worked=True, now=6.0) == Health(1, 7.0)


def test_a_clean_exit_is_no_death() -> None:
    assert after_exit(Health(7, 9.0), clean=True, worked=False, now=5.0) == Health()


def test_a_reload_says_who_came_and_who_went() -> None:
    assert difference(config("a", "b"), config("b", "d", "c")) == Change(("c", "d"), ("a",))


def test_what_cannot_be_changed_while_running_is_said() -> None:
    assert needs_restart(config(), config()) == []
    problems = needs_restart(config(), config(spool="/other", user="mail"))
    assert problems == [
        "spool.directory changed from /spool to /other: this needs a restart",
        "user changed: this needs a restart",
    ]


def test_who_is_due_is_woken() -> None:
    assert to_wake({"a": 1.0, "b": 2.0, "c": 3.0}, 2.0) == ["a", "b"]


def test_of_many_vmtas_some_are_woken_and_all_in_the_end() -> None:
    waiting = {f"v{number}": 0.0 for number in range(1000)}
    turns = 0
    while waiting:
        woken = to_wake(waiting, 1.0)
        assert 0 < len(woken) <= 8
        for vmta in woken:
            del waiting[vmta]
        turns += 1
    assert turns == 125


def test_the_supervisor_sleeps_until_the_first_event_but_not_longer_than_told() -> None:
    assert next_event([], 10.0, 5.0) == 5.0
    assert next_event([12.0, 11.0], 10.0, 5.0) == 1.0
    assert next_event([9.0], 10.0, 5.0) == 0.0
    assert next_event([99.0], 10.0, 5.0) == 5.0
