"""How many sessions a site bears, against a receiver with a limit of its own."""

from __future__ import annotations

from spoolmta.action import Assign, Open
from spoolmta.model import DomainPolicy
from tests.support.schedule_kit import everywhere, scheduler

NOW = 1_700_000_000.0


class Receiver:
    """Takes so many connections and refuses more in its greeting; each message takes a second."""

    def __init__(self, limit: int, policy: DomainPolicy) -> None:
        self.limit = limit
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
        """One second passes; how many connections there were at its end."""
        self.now += 1.0
        self.feed(100)
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
        return len(self.open)


def test_it_settles_at_what_the_receiver_bears_with_few_refusals() -> None:
    receiver = Receiver(5, DomainPolicy(max_smtp_out=20))
    seen = [receiver.second() for _ in range(400)]
    assert set(seen[5:]) == {5}
    # Postfix's coarse feedback (one step for each) has half of its 2,000 attempts deferred, its finest a sixth.
    assert receiver.refusals / (receiver.answers + receiver.refusals) < 0.03


def test_when_the_receiver_bears_more_again_the_window_widens_to_the_limit() -> None:
    receiver = Receiver(5, DomainPolicy(max_smtp_out=20))
    for _ in range(60):
        receiver.second()
    receiver.limit, receiver.answers = 1000, 0
    while receiver.second() < 20:
        assert receiver.answers < 400
    assert receiver.scheduler.sites["a.test"].condition.window in (0.0, 20.0) or len(receiver.open) == 20


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
