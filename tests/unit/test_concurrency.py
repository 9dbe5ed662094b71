"""How many sessions a site bears, against a receiver with a limit of its own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta import concurrency
from spoolmta.action import Assign, Close, Open
from spoolmta.model import DomainPolicy
from tests.support.schedule_kit import everywhere, scheduler

NOW = 1_700_000_000.0


class Receiver:
    """Takes so many connections and refuses more in its greeting; each message takes a second, or what `pace` says."""

    def __init__(self, limit: int, policy: DomainPolicy, pace: float = 1.0) -> None:
        self.limit = limit
        self.pace = pace
        self.now = NOW
        self.scheduler = scheduler()
        self.policy = policy
        self.number = self.answers = self.refusals = 0
        self.open: set[int] = set()
        self.busy: set[int] = set()
        self.feed(1)
        self.scheduler.step(self.now)
        self.scheduler.located("a.test", "a.test", everywhere(policy), self.now)

    def feed(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            name = f"{int(NOW)}.M000000P1Q{self.number}.mx,S=1,C=00000000,J=0"
            self.scheduler.add("a.test", name, 0, self.now)

    def second(self, answer: str = "250") -> int:
        """One second (or pace) passes; how many connections there were at its end."""
        self.now += self.pace
        self.feed(100 - self.scheduler.size)
        done, self.busy = self.busy, set()
        for session in sorted(done):
            self.answers += 1
            self.scheduler.finished(session, self.now, answered=True, delivered=answer == "250", reusable=True)
        for _ in range(20):
            actions, _ = self.scheduler.step(self.now)
            if not actions:
                break
            for action in actions:
                if isinstance(action, Assign):
                    self.busy.add(action.session)
                elif isinstance(action, Open) and len(self.open) < self.limit:
                    self.open.add(action.session)
                    self.scheduler.opened(action.session, self.now)
                elif isinstance(action, Open):
                    self.refusals += 1
                    self.scheduler.open_failed(action.session, self.now, "421 too many connections")
                elif isinstance(action, Close):
                    self.open.discard(action.session)
        return len(self.open)


def test_it_settles_at_what_the_receiver_bears_with_few_refusals() -> None:
    receiver = Receiver(5, DomainPolicy(max_smtp_out=20))
    seen = [receiver.second() for _ in range(400)]
    assert set(seen[5:]) == {5}
    # Postfix's coarse feedback (one step for each) has half of its 2,000 attempts deferred, its finest a sixth.
    assert receiver.refusals / (receiver.answers + receiver.refusals) < 0.03


def test_when_the_receiver_bears_more_again_the_window_widens_to_the_limit_within_two_hundred_answers() -> None:
    receiver = Receiver(5, DomainPolicy(max_smtp_out=20))
    for _ in range(60):
        receiver.second()
    receiver.limit, receiver.answers = 1000, 0
    while receiver.second() < 20:
        assert receiver.answers <= 200
    assert receiver.scheduler.sites["a.test"].condition.window in (0.0, 20.0) or len(receiver.open) == 20


def test_when_it_bears_a_little_more_the_window_settles_there_with_few_refusals() -> None:
    receiver = Receiver(5, DomainPolicy(max_smtp_out=20))
    for _ in range(60):
        receiver.second()
    receiver.limit, receiver.answers, receiver.refusals = 8, 0, 0
    seen = [receiver.second() for _ in range(60)]
    assert set(seen[20:]) == {8}
    assert receiver.refusals <= 4 + receiver.answers / concurrency.ANSWERS


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 19), st.sampled_from([5.0, 1.0, 0.1, 0.01]))
def test_few_attempts_are_refused_whatever_the_receiver_bears_and_however_fast_it_answers(
    limit: int, pace: float
) -> None:
    receiver = Receiver(limit, DomainPolicy(max_smtp_out=20), pace)
    while receiver.answers < 500:
        receiver.second()
    receiver.answers = receiver.refusals = 0
    begin = receiver.now
    while receiver.answers < 1000:
        assert receiver.second() == limit
    assert receiver.refusals <= receiver.answers / concurrency.ANSWERS + 1
    assert receiver.refusals <= (receiver.now - begin) / concurrency.CALM + 1


def test_sessions_that_end_after_a_refusal_are_replaced() -> None:
    receiver = Receiver(5, DomainPolicy(max_smtp_out=20, max_msg_per_connection=1))
    for _ in range(120):
        receiver.second()
    assert receiver.answers > 0.9 * 5 * 120
    assert receiver.refusals / receiver.answers < 0.03


def test_what_is_said_of_recipients_never_narrows_it() -> None:
    receiver = Receiver(1000, DomainPolicy(max_smtp_out=20))
    seen = [receiver.second("550") for _ in range(30)]
    assert seen[-1] == 20
    assert receiver.scheduler.sites["a.test"].condition.window == 0.0


def test_connections_that_were_refused_together_count_once() -> None:
    receiver = Receiver(1000, DomainPolicy(max_smtp_out=64))
    for _ in range(10):
        receiver.second()
    site = receiver.scheduler.sites["a.test"]
    assert len(receiver.open) == 64
    cohort = sorted(receiver.open)[32:]
    for session in cohort:
        receiver.scheduler.lost(session, receiver.now)
        receiver.open.discard(session)
        receiver.busy.discard(session)
    actions, _ = receiver.scheduler.step(receiver.now)
    opening = [action.session for action in actions if isinstance(action, Open)]
    assert len(opening) == 32
    news = [receiver.scheduler.open_failed(session, receiver.now, "421") for session in opening]
    assert news == [True] + [False] * 31
    assert site.condition.window == 32.0
