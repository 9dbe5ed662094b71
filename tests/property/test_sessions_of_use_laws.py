"""How many sessions a site gets by how fast it answers: a site that takes a message in so many seconds, in simulated
time."""

from __future__ import annotations

import heapq
import math

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.action import Assign, Close, Locate, Open
from spoolmta.concurrency import HANGS, WITHIN, carries, note_pace
from spoolmta.condition import Condition
from spoolmta.limits import Limits
from spoolmta.model import DomainPolicy
from spoolmta.site import Site
from tests.support.schedule_kit import everywhere, scheduler

START = 1_700_000_000.0
LIMIT = 20
POLICY = DomainPolicy(max_smtp_out=LIMIT)


class Receiver:
    """`seconds` to a message, and twice as many until a session is open; the message with number `hangs` never ends."""

    def __init__(self, seconds: float, hangs: int = -1) -> None:
        self.scheduler = scheduler()
        self.seconds, self.hangs = seconds, hangs
        self.now = START
        self.events: list[tuple[float, int, bool]] = []
        self.sent = self.opened = self.open = self.most = 0

    def add(self, count: int) -> None:
        for number in range(self.sent, self.sent + count):
            name = f"{int(START)}.M{number:06d}P1Q{number}.mx,S=1,C=00000000,J=0"
            self.scheduler.add("a.test", name, 0, self.now)

    def run(self, until: float) -> None:
        """Until then, or until nothing more happens."""
        while True:
            actions, wake = self.scheduler.step(self.now)
            for action in actions:
                self._take(action)
            if actions:
                continue
            now = min(wake, self.events[0][0] if self.events else math.inf)
            if now > until:
                self.now = until
                return
            self.now = now
            while self.events and self.events[0][0] <= now:
                _, number, is_opening = heapq.heappop(self.events)
                if is_opening:
                    self.scheduler.opened(number, now)
                else:
                    self.sent += 1
                    self.scheduler.finished(number, now, answered=True, delivered=True, reusable=True)

    def _take(self, action: object) -> None:
        if isinstance(action, Locate):
            self.scheduler.located("a.test", "a.test", everywhere(POLICY), self.now)
        elif isinstance(action, Open):
            self.opened, self.open = self.opened + 1, self.open + 1
            self.most = max(self.most, self.open)
            heapq.heappush(self.events, (self.now + 2 * self.seconds, action.session, True))
        elif isinstance(action, Close):
            self.open -= 1
        elif isinstance(action, Assign) and not action.name.split("Q")[1].startswith(f"{self.hangs}."):
            heapq.heappush(self.events, (self.now + self.seconds, action.session, False))


@given(st.floats(0.001, 3.0), st.integers(1, 200))
def test_mail_is_gone_about_as_soon_as_with_all_the_sessions_there_may_be(seconds: float, count: int) -> None:
    receiver = Receiver(seconds)
    receiver.add(count)
    receiver.run(START + 3600)
    assert receiver.sent == count
    slow_start = (math.log2(LIMIT) + 2) * 3 * seconds
    ideal = math.ceil(count / LIMIT) * seconds
    receiver = Receiver(seconds)
    receiver.add(count)
    receiver.run(START + ideal + slow_start + 2 * HANGS)
    assert receiver.sent == count


@given(st.floats(0.001, 0.01), st.integers(1, 40))
def test_a_site_that_answers_fast_gets_few_sessions(seconds: float, count: int) -> None:
    receiver = Receiver(seconds)
    for _ in range(20):
        receiver.add(count)
        receiver.run(receiver.now + 2 * count * seconds)
        receiver.run(receiver.now + 4 * seconds)
    assert receiver.sent == 20 * count
    assert receiver.most <= 3 + math.ceil(count * seconds / WITHIN)


@given(st.floats(0.001, 0.05))
def test_behind_a_session_that_hangs_nobody_waits(seconds: float) -> None:
    receiver = Receiver(seconds)
    receiver.add(1)
    receiver.run(START + 1)
    receiver.hangs = 1
    receiver.add(6)
    receiver.run(receiver.now + 2 * HANGS + 10 * seconds)
    assert receiver.sent == 6


@given(st.lists(st.floats(0.0, 10.0), min_size=1))
def test_a_pace_lies_between_the_fastest_and_the_slowest(times: list[float]) -> None:
    site = Site("a.test", POLICY, Condition(), Limits("a.test", POLICY, POLICY, lambda _: None, START))
    for time in times:
        note_pace(site, time)
    known = [time for time in times if time > 0] or [0.0]
    assert min(known) * 0.999 <= site.pace <= max(known) * 1.001
    assert carries(site) >= 1
