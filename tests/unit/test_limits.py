"""Limits of a site, of its source addresses, of a domain within it and of the VMTA, through the scheduler's actions."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import pytest

from spoolmta import condition
from spoolmta.action import Assign, Close, Open, VmtaLimits
from spoolmta.condition import Override
from spoolmta.limits import limit_of
from spoolmta.model import DomainPolicy, Rate
from spoolmta.schedule import Scheduler

NOW = 1_700_000_000.0
A, B, C6 = "192.0.2.1", "192.0.2.2", "2001:db8::1"


class Story:
    """A scheduler whose sessions open at once and whose messages are answered at once, over a span of time."""

    def __init__(self, policy: DomainPolicy, vmta: VmtaLimits = VmtaLimits(), mail: int = 500) -> None:  # noqa: B008
        self.now = NOW
        self.policy = policy
        self.own = policy
        self.scheduler = Scheduler(vmta)
        self.sent: list[tuple[float, str, str]] = []
        self.opened: list[tuple[float, str]] = []
        self.open: dict[int, str] = {}
        self.delivers = True
        self.number = 0
        self.feed("a.test", mail)

    def feed(self, domain: str, count: int, recipients: int = 1, size: int = 1) -> None:
        more = f",N={recipients}" if recipients > 1 else ""
        for _ in range(count):
            self.number += 1
            name = f"{int(NOW)}.M000000P1Q{self.number}.mx,S={size},C=00000000,J=0{more}"
            self.scheduler.add(domain, name, 0, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            for _ in range(10_000):
                actions, wake = self.scheduler.step(self.now)
                if not actions:
                    break
                for action in actions:
                    self.perform(action)
            if wake > end:
                self.now = end
                return
            self.now = wake

    def perform(self, action: object) -> None:
        if isinstance(action, Open):
            source = action.sources[0] if action.sources else ""
            self.opened.append((self.now, source))
            self.open[action.session] = source
            self.scheduler.opened(action.session, self.now, source)
        elif isinstance(action, Assign):
            self.sent.append((self.now, action.domain, self.open[action.session]))
            self.scheduler.finished(action.session, self.now, answered=True, delivered=self.delivers, reusable=True)
        elif isinstance(action, Close):
            del self.open[action.session]
        else:
            domain = getattr(action, "domain", "")
            self.scheduler.located(domain, "site", self.policy_of, self.now, frozenset({"mx"}))

    def policy_of(self, site: str, domain: str) -> DomainPolicy:
        return self.own if site != domain else self.policy

    def most_in(self, period: float, times: list[float]) -> int:
        return max(sum(1 for other in times if time <= other < time + period) for time in times)


def test_connections_are_begun_no_faster_than_max_connect_rate() -> None:
    story = Story(DomainPolicy(max_connect_rate=Rate(6, 60), max_msg_per_connection=1))
    story.run(300)
    times = [time for time, _ in story.opened]
    assert story.most_in(59.9, times) == 6
    assert len(times) >= 28


def test_each_source_address_has_its_own_connect_rate() -> None:
    policy = DomainPolicy(source_ip_max_connect_rate=(("192.0.2.2/32", Rate(2, 60)),), max_msg_per_connection=1)
    story = Story(policy, VmtaLimits(sources=(A, B)), mail=0)
    for _ in range(59):
        story.feed("a.test", 1)
        story.run(1)
    found = Counter(source for _, source in story.opened)
    assert found == {A: 57, B: 2}


def test_a_ramp_up_interval_lies_between_two_connections() -> None:
    story = Story(DomainPolicy(smtp_out_rampup_interval=5.0, max_msg_per_connection=1), mail=10)
    story.run(100)
    times = [time for time, _ in story.opened]
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(times))
    assert len(times) == 10


def test_addresses_take_turns_by_connection_one_of_each_ip_version() -> None:
    story = Story(DomainPolicy(max_msg_per_connection=1), VmtaLimits(sources=(A, B, C6)), mail=1)
    actions: list[object] = []
    for _ in range(4):
        found, _ = story.scheduler.step(story.now)
        actions += [action for action in found if isinstance(action, Open)]
        for action in found:
            story.perform(action)
        story.feed("a.test", 1)
    sources = [action.sources for action in actions if isinstance(action, Open)]
    assert all(len(pair) == 2 and C6 in pair for pair in sources)
    assert {pair[0] for pair in sources} == {A, B}


def test_an_address_has_no_more_connections_than_it_may() -> None:
    policy = DomainPolicy(source_ip_max_smtp_out=(("192.0.2.0/24", 3), ("192.0.2.1/32", 1)), max_smtp_out=50)
    scheduler = Scheduler(VmtaLimits(sources=(A, B)))
    for number in range(40):
        scheduler.add("a.test", f"{int(NOW)}.M000000P1Q{number}.mx,S=1,C=00000000,J=0", 0, NOW)
    scheduler.step(NOW)
    scheduler.located("a.test", "a.test", lambda *_: policy, NOW)
    opened: list[Open] = []
    for _ in range(20):
        found = [action for action in scheduler.step(NOW)[0] if isinstance(action, Open)]
        for action in found:
            scheduler.opened(action.session, NOW, action.sources[0])
        opened += found
    assert Counter(action.sources for action in opened) == {(A,): 1, (B,): 3}
    assert scheduler.sites["a.test"].hold == "source-ip-max-smtp-out"


def test_an_address_that_cannot_be_bound_is_set_aside_and_the_others_are_used() -> None:
    story = Story(DomainPolicy(max_msg_per_connection=1, max_smtp_out=1), VmtaLimits(sources=(A, B)), mail=4)
    story.scheduler.step(story.now)
    story.scheduler.located("a.test", "site", story.policy_of, story.now)
    (action,) = story.scheduler.step(story.now)[0]
    assert isinstance(action, Open)
    bad = action.sources[0]
    assert story.scheduler.open_failed(action.session, story.now, "cannot bind", ours=True, unbound=bad)
    story.run(30)
    assert len(story.sent) == 4
    assert {source for _, _, source in story.sent} == {A, B} - {bad}


def test_without_any_address_that_can_be_bound_mail_waits_and_is_tried_again() -> None:
    story = Story(DomainPolicy(max_smtp_out=1), VmtaLimits(sources=(A,)), mail=1)
    story.scheduler.step(story.now)
    story.scheduler.located("a.test", "site", story.policy_of, story.now)
    (action,) = story.scheduler.step(story.now)[0]
    assert isinstance(action, Open)
    story.scheduler.open_failed(action.session, story.now, "cannot bind", ours=True, unbound=A)
    assert story.scheduler.step(story.now) == ([], story.now + 60)
    assert "cannot be bound" in story.scheduler.sites["site"].hold
    assert not story.scheduler.sites["site"].condition.failures
    story.run(61)
    assert len(story.sent) == 1


def test_a_disabled_address_is_not_used_at_that_site_and_all_disabled_may_mean_back_off() -> None:
    policy = DomainPolicy(max_msg_per_connection=1, backoff_upon_all_sources_disabled=True)
    story = Story(policy, VmtaLimits(sources=(A, B)), mail=6)
    story.scheduler.step(story.now)
    story.scheduler.located("a.test", "site", story.policy_of, story.now)
    state = story.scheduler.known.condition_of("site")
    condition.disable_source(state, story.now, A, "blocked", story.now + 600)
    story.scheduler.changed("site", story.now)
    story.run(1)
    assert {source for _, _, source in story.sent} == {B}
    story.feed("a.test", 1)
    story.scheduler.step(story.now)
    state = story.scheduler.known.condition_of("site")
    condition.disable_source(state, story.now, B, "blocked", story.now + 600)
    story.scheduler.changed("site", story.now)
    assert state.mode == condition.BACKOFF or story.scheduler.sites == {}


def test_a_source_address_sends_no_faster_than_its_own_rate() -> None:
    policy = DomainPolicy(source_ip_max_msg_rate=(("192.0.2.1/32", Rate(5, 60)),), connection_idle_timeout=600.0)
    story = Story(policy, VmtaLimits(sources=(A,)))
    story.run(300)
    assert story.most_in(60, [time for time, _, _ in story.sent]) == 5
    assert len(story.sent) >= 24
    other = Story(policy, VmtaLimits(sources=(B,)))
    other.run(1)
    assert len(other.sent) == 500


def test_the_vmta_sends_no_faster_than_its_own_rate_over_all_sites() -> None:
    story = Story(DomainPolicy(), VmtaLimits(max_smtp_msg_rate=Rate(30, 60)))
    story.run(300)
    assert story.most_in(60, [time for time, _, _ in story.sent]) == 30
    assert len(story.sent) >= 145
    assert story.scheduler.sites["site"].hold == "max-smtp-msg-rate of the VMTA"


def test_only_what_is_delivered_counts_for_a_volume() -> None:
    story = Story(DomainPolicy(max_data_volume_rate=Rate(1000, 60)), mail=0)
    story.feed("a.test", 100, size=100)
    story.delivers = False
    story.run(1)
    assert len(story.sent) == 100
    story.delivers = True
    story.feed("a.test", 100, size=100)
    story.run(58)
    assert len(story.sent) == 110
    story.run(241)
    assert 145 <= len(story.sent) <= 160


def test_a_message_to_more_recipients_than_a_rate_allows_goes_in_parts() -> None:
    story = Story(DomainPolicy(max_msg_rate=Rate(10, 60)), mail=0)
    story.feed("a.test", 1, recipients=25)
    actions: list[object] = []
    story.scheduler.step(NOW)
    story.scheduler.located("a.test", "site", story.policy_of, NOW)
    story.scheduler.step(NOW)
    story.scheduler.opened(1, NOW)
    actions += story.scheduler.step(NOW)[0]
    assert [action.most for action in actions if isinstance(action, Assign)] == [10]


def test_a_domains_own_rate_lets_the_others_of_its_site_pass() -> None:
    story = Story(DomainPolicy(), mail=100)
    story.own = msgspec.structs.replace(story.policy, max_msg_rate=Rate(6, 60))
    story.run(0.5)
    story.own = story.policy
    story.feed("b.test", 100)
    story.run(50)
    found = Counter(domain for _, domain, _ in story.sent)
    assert found["b.test"] == 100
    assert 5 <= found["a.test"] <= 6


def test_a_limit_that_a_rule_sets_counts_from_then_on() -> None:
    story = Story(DomainPolicy(connection_idle_timeout=600.0), mail=1000)
    story.run(0.1)
    before = len(story.sent)
    assert before == 1000
    state = story.scheduler.known.condition_of("site")
    condition.set_limit(state, story.now, Override("max_msg_rate", story.now + 120, "a rule", value='"12/m"'))
    story.scheduler.changed("site", story.now)
    story.feed("a.test", 1000)
    story.run(60)
    assert 11 <= len(story.sent) - before <= 13
    story.run(100)
    assert len(story.sent) == 2000


def test_in_back_off_there_are_no_more_connections_than_it_allows() -> None:
    policy = DomainPolicy(max_smtp_out=8, backoff_max_smtp_out=1, connection_idle_timeout=600.0)
    story = Story(policy)
    story.run(1)
    assert len(story.open) > 1
    state = story.scheduler.known.condition_of("site")
    condition.enter_backoff(state, policy, story.now, "a rule")
    story.scheduler.changed("site", story.now)
    story.feed("a.test", 100)
    story.run(1)
    assert len(story.open) == 1


def test_a_paused_site_sends_nothing_until_it_is_resumed() -> None:
    story = Story(DomainPolicy(connection_idle_timeout=600.0), mail=1)
    story.run(1)
    state = story.scheduler.known.condition_of("site")
    condition.pause(state, story.now, "the operator", story.now + 50)
    story.scheduler.changed("site", story.now)
    story.feed("a.test", 5)
    story.run(49)
    assert (len(story.sent), story.scheduler.sites["site"].hold) == (1, "pause")
    story.run(2)
    assert len(story.sent) == 6


def test_the_network_with_the_longest_prefix_counts() -> None:
    limits = (("0.0.0.0/0", 9), ("192.0.2.0/24", 5), ("192.0.2.1/32", 1))
    assert [limit_of(limits, address, 0) for address in (A, B, "198.51.100.1", C6)] == [1, 5, 9, 0]


@pytest.mark.parametrize("interrupts", [True, False])
def test_a_site_of_a_higher_priority_gets_the_next_free_connection_of_the_vmta(interrupts: bool) -> None:
    scheduler = Scheduler(VmtaLimits(max_smtp_out=1))
    low = DomainPolicy(queue_priority=10, allow_priority_interruption=interrupts)
    for number in range(150):
        scheduler.add("low.test", f"{int(NOW)}.M000000P1Q{number}.mx,S=1,C=00000000,J=0", 0, NOW)
    scheduler.step(NOW)
    scheduler.located("low.test", "low.test", lambda *_: low, NOW)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    for domain, priority in (("middle.test", 50), ("high.test", 90)):
        scheduler.add(domain, f"{int(NOW)}.M000001P1Q{priority}.mx,S=1,C=00000000,J=0", 0, NOW)
        scheduler.step(NOW)
        policy = DomainPolicy(queue_priority=priority)
        scheduler.located(domain, domain, lambda *_, policy=policy: policy, NOW)
        scheduler.step(NOW)
    carried = 1
    while True:
        scheduler.finished(1, NOW, answered=True, delivered=True, reusable=True)
        actions, _ = scheduler.step(NOW)
        if Close(1) in actions:
            break
        carried += 1
    assert carried == (1 if interrupts else 100)
    (opened,) = [action for action in actions if isinstance(action, Open)]
    assert opened.domain == "high.test"


def test_new_mail_wakes_a_site_in_retry_only_where_it_may() -> None:
    for may in (False, True):
        scheduler = Scheduler()
        policy = DomainPolicy(retry_upon_new_mail=may)
        scheduler.add("a.test", f"{int(NOW)}.M000000P1Q1.mx,S=1,C=00000000,J=0", 0, NOW)
        scheduler.step(NOW)
        scheduler.located("a.test", "a.test", lambda *_, policy=policy: policy, NOW)
        scheduler.step(NOW)
        scheduler.open_failed(1, NOW, "refused")
        assert scheduler.step(NOW)[0] == []
        scheduler.add("a.test", f"{int(NOW)}.M000000P1Q2.mx,S=1,C=00000000,J=0", 0, NOW + 1)
        opened = [action for action in scheduler.step(NOW + 1)[0] if isinstance(action, Open)]
        assert len(opened) == int(may)


def test_a_pause_ends_also_for_mail_that_was_deferred_before_it() -> None:
    story = Story(DomainPolicy(connection_idle_timeout=1.0), mail=1)
    name = f"{int(NOW)}.M000000P1Q9.mx,S=1,C=00000000,J=0:1,1,{int(NOW) + 1}"
    story.run(0.1)
    story.scheduler.add("a.test", name, NOW + 1, NOW)
    state = story.scheduler.known.condition_of("site")
    condition.pause(state, NOW, "a rule", NOW + 3)
    story.scheduler.changed("site", NOW)
    story.run(2.8)
    assert len(story.sent) == 1
    story.run(1)
    assert len(story.sent) == 2
