"""Laws of mail that waits for its time: it behaves as a sorted list does, and costs far less."""

from __future__ import annotations

import math
import tracemalloc

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spoolmta.waiting import Waiting


class WaitingIsASortedList(RuleBasedStateMachine):
    @initialize(size=st.integers(0, 300))
    def begin(self, size: int) -> None:
        self.waiting = Waiting()
        self.items: list[tuple[float, str]] = []
        for number in range(size):
            self.push(number * 7919 % 101, 1)

    @rule(due=st.integers(0, 100), count=st.integers(1, 100))
    def push(self, due: int, count: int) -> None:
        for _ in range(count):
            item = (due, f"{len(self.items)}-{due}")
            if item not in self.items:
                self.items.append(item)
                self.waiting.push(*item)

    @precondition(lambda self: self.items)
    @rule(count=st.integers(1, 200))
    def pop(self, count: int) -> None:
        self.items.sort()
        count = min(count, len(self.items))
        taken = [self.waiting.pop() for _ in range(count)]
        assert taken == [name for _, name in self.items[:count]]
        del self.items[:count]

    @rule(digit=st.sampled_from("0123456789"))
    def take(self, digit: str) -> None:
        meant = sorted(item for item in self.items if item[1].endswith(digit))
        assert self.waiting.take(lambda name: name.endswith(digit)) == [name for _, name in meant]
        self.items = [item for item in self.items if item not in meant]

    @invariant()
    def it_holds_the_same(self) -> None:
        assert sorted(self.waiting) == sorted(name for _, name in self.items)
        assert len(self.waiting) == len(self.items)
        assert self.waiting.first_due == min((due for due, _ in self.items), default=math.inf)


TestWaitingIsASortedList = WaitingIsASortedList.TestCase


def test_a_waiting_name_costs_at_most_25_bytes_beside_itself() -> None:
    names = [f"{number}" for number in range(10_000)]
    tracemalloc.start()
    try:
        waiting = Waiting()
        for number, name in enumerate(names):
            waiting.push(1_700_000_000 + number * 7919 % 10_007, name)
        assert tracemalloc.get_traced_memory()[0] / len(names) < 25
    finally:
        tracemalloc.stop()
    assert len(waiting) == len(names)
