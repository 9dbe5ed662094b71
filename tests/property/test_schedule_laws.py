from __future__ import annotations

import math
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spoolmta import action as schedule
from spoolmta import concurrency, entry
from spoolmta.action import VmtaLimits
from spoolmta.model import DomainPolicy, Failure, FailureKind, Rate
from spoolmta.rate import RateLimiter, believed, next_due
from tests.support.schedule_kit import scheduler

START = 1_700_000_000.0
DOMAINS = ["a.test", "b.test", "c.test", "d.test"]
Way = tuple[str, frozenset[str]]
"""Where mail goes: the site, and the hosts there."""
OLD, NEW = frozenset({"old.mx"}), frozenset({"new.mx"})
WAYS: dict[str, Way] = {
    "a.test": ("one", OLD),
    "b.test": ("one", OLD),
    "c.test": ("two", OLD),
    "d.test": ("three", OLD),
}

policies = st.builds(
    DomainPolicy,
    max_smtp_out=st.integers(1, 3),
    max_msg_per_connection=st.integers(0, 3),
    max_msg_rate=st.sampled_from([Rate(math.inf), Rate(5, 60), Rate(3, 10), Rate(100, 3600)]),
    retry_after=st.sampled_from([(30.0,), (10.0, 60.0)]),
    bounce_after=st.sampled_from([3600.0, 86400.0]),
    connection_idle_timeout=st.sampled_from([0.0, 5.0]),
)


class SchedulerLaws(RuleBasedStateMachine):
    """A process around a scheduler: it performs what it is told, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.limit = 3
        self.scheduler = scheduler(self.limit)
        self.policy = dict.fromkeys(("one", "two", "three"), DomainPolicy(max_smtp_out=2, bounce_after=3600.0))
        self.number = 0
        self.inside: Counter[str] = Counter()
        self.locating: set[str] = set()
        self.ways = dict(WAYS)
        self.opening: dict[int, Way] = {}
        self.open: dict[int, Way] = {}
        self.busy: dict[int, tuple[str, str]] = {}
        self.carried: Counter[int] = Counter()
        self.sent: dict[str, deque[tuple[float, int]]] = {site: deque() for site in self.policy}
        self.blocked: dict[str, float] = {}
        self.held: frozenset[str] = frozenset()
        self.calm: dict[str, tuple[float, int]] = {}
        self.draining = False

    def policy_of(self, site: str, _domain: str) -> DomainPolicy:
        return self.policy[site]

    def locate(self, domain: str) -> None:
        site, hosts = self.ways[domain]
        self.scheduler.located(domain, site, self.policy_of, self.now, hosts)

    def step(self) -> float:
        actions, wake = self.scheduler.step(self.now)
        for action in actions:
            self.perform(action)
        assert wake > self.now
        if not actions:
            again, _ = self.scheduler.step(self.now)
            assert again == []
        return wake

    def perform(self, action: schedule.Action) -> None:
        if isinstance(action, schedule.Locate):
            assert action.domain not in self.locating
            assert not self.draining
            self.locating.add(action.domain)
        elif isinstance(action, schedule.Open):
            assert not self.draining
            alive = [site for site, _ in (*self.opening.values(), *self.open.values())]
            assert self.blocked.get(action.site, 0.0) <= self.now
            assert action.site == self.ways[action.domain][0]
            self.opening[action.session] = self.ways[action.domain]
            alive.append(action.site)
            until, most = self.calm.get(action.site, (0.0, 0))
            assert until <= self.now or alive.count(action.site) <= most
            assert alive.count(action.site) <= self.policy[action.site].max_smtp_out
            assert self.limit == 0 or len(alive) <= self.limit
        elif isinstance(action, schedule.Close):
            assert action.session in self.open
            assert action.session not in self.busy
            del self.open[action.session]
        elif isinstance(action, schedule.Assign):
            site, _ = self.open[action.session]
            assert self.ways[action.domain] == self.open[action.session], "mail for hosts that are not its own any more"
            assert action.session not in self.busy
            assert not self.draining
            assert not self.is_held(action.name)
            self.take_out(action.name)
            self.busy[action.session] = (action.domain, action.name)
            self.carried[action.session] += 1
            most = self.policy[site].max_msg_per_connection
            assert not most or self.carried[action.session] <= most
            self.check_rate(site, action.name)
        else:
            if isinstance(action, schedule.Expire):
                assert entry.is_older(action.name, self.now - 3600.0)
            else:
                assert not self.is_held(action.name)
            self.take_out(action.name)

    def is_held(self, name: str) -> bool:
        return entry.flow(name)[1] in self.held

    def take_out(self, name: str) -> None:
        assert self.inside[name] == 1, "lost, or assigned twice"
        del self.inside[name]

    def check_rate(self, site: str, name: str) -> None:
        rate, window = self.policy[site].max_msg_rate, self.sent[site]
        window.append((self.now, 2 if ",N=2" in name else 1))
        while window[0][0] <= self.now - rate.period:
            window.popleft()
        assert sum(count for _, count in window) <= rate.count

    def enter(self, domain: str, name: str, due: float) -> None:
        self.inside[name] += 1
        self.scheduler.add(domain, name, due, self.now)

    @rule(
        domain=st.sampled_from(DOMAINS),
        wait=st.sampled_from([0, 0, 0, 5, 100]),
        recipients=st.integers(1, 2),
        job=st.sampled_from(["0", "aaaaaaaa", "bbbbbbbb"]),
        urgent=st.sampled_from(["", ",P=90"]),
    )
    def enqueue(self, domain: str, wait: float, recipients: int, job: str, urgent: str) -> None:
        self.number += 1
        more = ",N=2" if recipients == 2 else ""
        name = f"{int(self.now)}.M000000P1Q{self.number}.mx,S=1,C=00000000,J={job}{more}{urgent}"
        self.enter(domain, name, self.now + wait)
        self.step()

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0, 11.0, 61.0, 700.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(10_000):
            wake = self.step()
            if wake > until:
                break
            self.now = wake
        else:
            raise AssertionError("a busy loop")
        self.now = until
        self.step()

    @precondition(lambda self: self.locating)
    @rule(data=st.data(), how=st.sampled_from(["found", "found", "found", "trouble", "none"]))
    def look_up(self, data: st.DataObject, how: str) -> None:
        domain = data.draw(st.sampled_from(sorted(self.locating)))
        self.locating.discard(domain)
        if how == "found":
            self.locate(domain)
        elif how == "trouble":
            self.scheduler.unlocated(domain, self.now, self.now + 30.0, "SERVFAIL", 3600.0)
        else:
            self.scheduler.condemned(domain, Failure(FailureKind.NULL_MX, "no mail"), self.now + 30.0, 3600.0)
        self.step()

    @precondition(lambda self: self.opening)
    @rule(data=st.data(), how=st.sampled_from(["opens", "opens", "opens", "fails", "ours"]))
    def connect(self, data: st.DataObject, how: str) -> None:
        session = data.draw(st.sampled_from(sorted(self.opening)))
        way = site, _ = self.opening.pop(session)
        if how == "opens":
            self.open[session] = way
            self.scheduler.opened(session, self.now)
        elif self.scheduler.open_failed(session, self.now, "refused", ours=how == "ours"):
            if how != "ours" and any(site == other for other, _ in self.open.values()):
                others = [other for other, _ in (*self.opening.values(), *self.open.values())].count(site)
                self.calm[site] = (self.now + concurrency.CALM, others)
            else:
                pause = 60.0 if how == "ours" else min(self.policy[site].retry_after)
                self.blocked[site] = self.now + pause
        self.step()

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), how=st.sampled_from(["delivered", "delivered", "deferred", "lost", "lost after"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        session = data.draw(st.sampled_from(sorted(self.busy)))
        domain, name = self.busy.pop(session)
        reusable = how in ("delivered", "deferred")
        site, _ = self.open[session]
        if not reusable:
            del self.open[session]
        if how in ("deferred", "lost"):
            self.number += 1
            bare, _, state = name.partition(":1,")
            attempts = int(state.partition(",")[0] or 0) + 1
            self.enter(domain, f"{bare}:1,{attempts},{int(self.now) + 60}", self.now + 60)
        delivered = how.startswith("delivered") or how == "lost after"
        if self.scheduler.finished(session, self.now, answered=delivered, reusable=reusable, reason=how):
            self.blocked[site] = self.now + min(self.policy[site].retry_after)
        self.step()

    @precondition(lambda self: bool(set(self.open) - set(self.busy)))
    @rule(data=st.data())
    def idle_session_is_lost(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(set(self.open) - set(self.busy))))
        del self.open[session]
        self.scheduler.lost(session)
        self.step()

    @rule(jobs=st.frozensets(st.sampled_from(["0", "aaaaaaaa", "bbbbbbbb"])))
    def hold(self, jobs: frozenset[str]) -> None:
        """Some jobs are held, others let go."""
        assert self.scheduler.hold_jobs(jobs) == (jobs != self.held)
        self.held = jobs
        self.step()

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def take_mail_out(self, data: st.DataObject) -> None:
        """The operator deletes a message, held or not."""
        meant = data.draw(st.sampled_from(sorted(self.inside)))
        taken = [name for domain in DOMAINS for name in self.scheduler.withdraw(domain, lambda name: name == meant)]
        assert len(taken) <= 1
        for name in taken:
            self.take_out(name)
        self.step()

    @rule(domain=st.sampled_from(DOMAINS), odd=st.booleans())
    def try_again(self, domain: str, odd: bool) -> None:
        """The operator has some mail of a site tried now."""
        site = self.scheduler.site_of(domain)
        self.blocked.pop(site, None)
        self.scheduler.hasten(site, self.now, lambda _, name: (len(name) % 2 == 1) == odd)
        self.step()

    @rule(limit=st.integers(0, 4), policy=policies)
    def reload(self, limit: int, policy: DomainPolicy) -> None:
        for site, old in self.policy.items():
            if old.max_msg_rate != policy.max_msg_rate:
                self.sent[site].clear()
            self.policy[site] = policy
        self.limit = limit
        self.scheduler.reconfigure(VmtaLimits(limit), self.policy_of, self.now)
        self.step()

    @rule(data=st.data(), hosts=st.sampled_from([OLD, NEW]), limit=st.integers(1, 4))
    def reload_moves_domains(self, data: st.DataObject, hosts: frozenset[str], limit: int) -> None:
        """Other hosts for some domains, perhaps at another site; what is under way is left alone."""
        domains = data.draw(st.lists(st.sampled_from(DOMAINS), min_size=1, unique=True))
        site = data.draw(st.sampled_from([None, *self.policy]))
        before = Counter(self.busy.values())
        for domain in domains:
            self.ways[domain] = (site or self.ways[domain][0], hosts)
        self.scheduler.move([self.scheduler.queues[domain] for domain in domains if domain in self.scheduler.queues])
        for key, left in self.scheduler.sites.items():
            if not any(group.queues for group in left.groups.values()):
                self.blocked.pop(key, None)
        self.limit = limit
        self.scheduler.reconfigure(VmtaLimits(limit), self.policy_of, self.now)
        assert all(self.scheduler.queues[domain].group is None for domain in domains if domain in self.scheduler.queues)
        self.step()
        assert not before - Counter(self.busy.values())

    @precondition(lambda self: self.number > 8 and not self.draining)
    @rule(chance=st.integers(0, 9))
    def drain(self, chance: int) -> None:
        if chance == 0:
            self.draining = True
            self.scheduler.drain()
            self.step()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.scheduler.size == self.inside.total()
        queues = self.scheduler.queues.values()
        names = [name for queue in queues for line in queue.lines.values() for name in line.names]
        names += [name for queue in queues for name in queue.waiting]
        assert Counter(names) == self.inside
        assert self.scheduler.sessions == len(self.opening) + len(self.open)

    @invariant()
    def nothing_is_awaited_for_held_mail_but_its_end(self) -> None:
        """A process whose only mail is held may sleep, and is woken in time."""
        queues = self.scheduler.queues.values()
        is_settled = all(queue.group is not None and not queue.waiting for queue in queues)
        if self.inside and is_settled and all(map(self.is_held, self.inside)):
            assert self.now < self.scheduler.next_due() <= self.now + 86400.0

    @invariant()
    def what_is_idle_is_for_somebody(self) -> None:
        groups = {(queue.group.site.key, queue.group.mx) for queue in self.scheduler.queues.values() if queue.group}
        assert {way for session, way in self.open.items() if session not in self.busy} <= groups
        known = {(site.key, group.mx) for site in self.scheduler.sites.values() for group in site.groups.values()}
        assert known <= groups | {*self.open.values(), *self.opening.values()}

    @invariant()
    def what_is_being_sent_is_counted(self) -> None:
        active = {domain: queue.active for domain, queue in self.scheduler.queues.items() if queue.active}
        assert active == Counter(domain for domain, _ in self.busy.values())

    def teardown(self) -> None:
        """With nothing in the way all mail is assigned in the end."""
        if self.draining:
            return
        self.hold(frozenset())
        for _ in range(20_000):
            if not self.inside and not self.busy:
                return
            for domain in sorted(self.locating):
                self.locate(domain)
            self.locating.clear()
            for session, way in list(self.opening.items()):
                self.open[session] = way
                self.scheduler.opened(session, self.now)
            self.opening.clear()
            for session in list(self.busy):
                del self.busy[session]
                self.scheduler.finished(session, self.now, answered=True, reusable=True)
            wake = self.step()
            if not (self.locating or self.opening or self.busy or self.scheduler._decided):
                assert wake < math.inf or not self.inside, "mail that nothing will wake"
                self.now = min(wake, self.now + 1e6)
        raise AssertionError(f"no progress: {self.scheduler}")


SchedulerLaws.TestCase.settings = settings(max_examples=120, stateful_step_count=50)
TestSchedulerLaws = SchedulerLaws.TestCase

RATES = [Rate(1, 60), Rate(7, 60), Rate(1, 1), Rate(10, 1), Rate(50, 60), Rate(100, 3600), Rate(100_000, 3600)]


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{rate.count} in {rate.period:g} s")
@pytest.mark.parametrize("start", [START, START + 0.4999, 0.0])
def test_a_rate_is_never_exceeded_and_nearly_used_up(rate: Rate, start: float) -> None:
    periods = max(6, min(60, int(60_000 / rate.count)))
    if rate.count > 10_000:
        periods = 3
    limiter, now, sent = RateLimiter(rate), start, []
    while now < start + periods * rate.period:
        pause = limiter.wait(now, 1)
        if pause > 0:
            now += max(pause, 0.001)
            continue
        limiter.take(now, 1)
        sent.append(now)
    limit = int(rate.count)
    assert all(late - early >= rate.period for early, late in zip(sent, sent[limit:], strict=False))
    assert len(sent) >= 0.95 * rate.count * periods


@given(
    st.integers(1, 50),
    st.sampled_from([1.0, 60.0, 3600.0]),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 60)), min_size=1, max_size=60),
)
def test_no_window_holds_more_than_the_limit_whatever_the_demand(
    limit: int, period: float, demand: list[tuple[float, int]]
) -> None:
    limiter, now, sent = RateLimiter(Rate(limit, period)), START, deque[tuple[float, int]]()
    for pause, count in demand:
        now += pause
        if limiter.wait(now, count) > 0:
            continue
        limiter.take(now, count)
        sent.append((now, count))
        while sent[0][0] <= now - period:
            sent.popleft()
        assert sum(amount for _, amount in sent) <= limit or len(sent) == 1


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=5).map(lambda values: tuple(sorted(values))),
    st.integers(0, 20),
    st.floats(0, 1e10),
    st.floats(0, 1e10),
)
def test_a_retry_lies_between_now_and_the_expiry_and_later_for_more_attempts(
    pauses: tuple[float, ...], attempts: int, now: float, expires: float
) -> None:
    due = next_due(pauses, attempts, now, expires)
    assert now <= due <= max(now, expires)
    assert due <= next_due(pauses, attempts + 1, now, expires)


@given(
    st.lists(st.floats(1, 1e6), min_size=1, max_size=5).map(tuple),
    st.floats(0, 1e10),
    st.floats(0, 1e10),
)
def test_a_due_time_that_a_pause_can_have_made_is_believed_and_any_other_is_now(
    pauses: tuple[float, ...], due: float, now: float
) -> None:
    assert believed(due, pauses, now) in (due, now)
    assert believed(due, pauses, now) <= now + max(3600.0, *pauses)
    assert believed(now + max(pauses), pauses, now) == now + max(pauses)
