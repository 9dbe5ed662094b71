from __future__ import annotations

import math
import tracemalloc

from spoolmta.action import Assign, Close, Expire, Locate, Open, Reject, VmtaLimits
from spoolmta.concurrency import CALM
from spoolmta.condition import MAX_REMEMBERED, Condition
from spoolmta.model import DomainPolicy, Failure, FailureKind, Rate
from spoolmta.rate import RateLimiter, next_due, pick
from spoolmta.schedule import Scheduler
from spoolmta.sessions import FAIR_SHARE
from tests.support.schedule_kit import everywhere
from tests.support.schedule_kit import scheduler as make

NOW = 1_700_000_000.0
POLICY = DomainPolicy(max_smtp_out=2, retry_after=(600.0, 1200.0), bounce_after=3600.0)
NULL_MX = Failure(FailureKind.NULL_MX, "accepts no mail")


def name(number: int, age: float = 0.0, attempts: int = 0, recipients: int = 1) -> str:
    more = f",N={recipients}" if recipients > 1 else ""
    state = f":1,{attempts},{int(NOW)}" if attempts else ""
    return f"{int(NOW - age)}.M{number:06d}P1Q{number}.mx,S=1,C=00000000,J=0{more}{state}"


def ready(count: int, policy: DomainPolicy = POLICY, limit: int = 0, domain: str = "a.test") -> Scheduler:
    """A scheduler with mail for one located domain, before the step that opens sessions."""
    scheduler = make(limit)
    for number in range(count):
        scheduler.add(domain, name(number), 0, NOW)
    assert scheduler.step(NOW) == ([Locate(domain)], math.inf)
    scheduler.located(domain, domain, everywhere(policy), NOW)
    return scheduler


def test_a_domain_is_located_once_then_a_session_opened_then_mail_assigned() -> None:
    scheduler = ready(1)
    assert scheduler.step(NOW)[0] == [Open(1, "a.test", "a.test")]
    assert scheduler.step(NOW)[0] == []
    scheduler.opened(1, NOW)
    assert scheduler.step(NOW)[0] == [Assign(1, "a.test", name(0))]
    assert scheduler.size == 0
    scheduler.finished(1, NOW, answered=True, reusable=True)
    assert scheduler.step(NOW)[0] == [Close(1)]
    assert (scheduler.sites, scheduler.queues, scheduler.sessions) == ({}, {}, 0)


def test_mail_waits_for_its_time() -> None:
    scheduler = make()
    scheduler.add("a.test", name(0), NOW + 60, NOW)
    scheduler.add("a.test", name(1), NOW + 30, NOW)
    assert scheduler.step(NOW) == ([], NOW + 30)
    assert scheduler.next_due() == NOW + 30
    assert scheduler.step(NOW + 30)[0] == [Locate("a.test")]


def test_a_session_ends_after_max_msg_per_connection() -> None:
    scheduler = ready(3, DomainPolicy(max_smtp_out=1, max_msg_per_connection=1))
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    scheduler.finished(1, NOW, answered=True, reusable=True)
    assert scheduler.step(NOW)[0] == [Close(1), Open(2, "a.test", "a.test")]


def test_an_idle_session_is_kept_for_connection_idle_timeout() -> None:
    scheduler = ready(1, DomainPolicy(connection_idle_timeout=5.0))
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    scheduler.finished(1, NOW + 1, answered=True, reusable=True)
    assert scheduler.step(NOW + 1) == ([], NOW + 6)
    scheduler.add("a.test", name(1), 0, NOW + 2)
    assert scheduler.step(NOW + 2)[0] == [Assign(1, "a.test", name(1))]
    scheduler.finished(1, NOW + 3, answered=True, reusable=True)
    assert scheduler.step(NOW + 7.9)[0] == []
    assert scheduler.step(NOW + 8)[0] == [Close(1)]


def test_a_site_that_fails_is_left_alone_and_then_tried_with_one_session() -> None:
    scheduler = ready(5)
    assert len(scheduler.step(NOW)[0]) == 2
    assert scheduler.open_failed(1, NOW, "refused") is True
    assert scheduler.open_failed(2, NOW, "refused") is False
    assert scheduler.step(NOW) == ([], NOW + 600)
    scheduler.add("a.test", name(9), 0, NOW + 1)
    assert scheduler.step(NOW + 1) == ([], NOW + 600)
    assert scheduler.step(NOW + 600)[0] == [Open(3, "a.test", "a.test")]
    assert scheduler.open_failed(3, NOW + 600, "refused") is True
    assert scheduler.step(NOW + 600) == ([], NOW + 1800)


def test_a_success_lets_the_other_sessions_follow() -> None:
    scheduler = ready(9)
    scheduler.step(NOW)
    scheduler.open_failed(1, NOW, "refused")
    scheduler.open_failed(2, NOW, "refused")
    scheduler.step(NOW)
    scheduler.step(NOW + 600)
    scheduler.opened(3, NOW + 600)
    assert [type(action) for action in scheduler.step(NOW + 600)[0]] == [Assign]
    scheduler.finished(3, NOW + 601, answered=True, reusable=True)
    assert [type(action) for action in scheduler.step(NOW + 601)[0]] == [Assign, Open]


def test_a_refused_connection_does_not_stop_the_sessions_that_work() -> None:
    scheduler = ready(9)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    assert scheduler.open_failed(2, NOW, "421 too many connections")
    scheduler.finished(1, NOW + 1, answered=True, reusable=True)
    assert scheduler.step(NOW + 1)[0] == [Assign(1, "a.test", name(1))]


def test_our_own_trouble_holds_a_site_for_a_minute_and_is_no_failure_of_it() -> None:
    scheduler = ready(1)
    scheduler.step(NOW)
    scheduler.open_failed(1, NOW, "cannot bind", ours=True)
    assert scheduler.step(NOW) == ([], NOW + 60)
    assert scheduler.known.conditions(NOW)["a.test"].failures == 0
    assert scheduler.known.conditions(NOW + 60) == {}


def test_a_session_that_breaks_before_it_delivered_is_a_failure_of_the_site_and_later_it_is_not() -> None:
    scheduler = ready(4)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.opened(2, NOW)
    scheduler.step(NOW)
    scheduler.finished(1, NOW, answered=True, reusable=True)
    scheduler.step(NOW)
    assert scheduler.finished(1, NOW, answered=False, reusable=False, reason="lost") is False
    assert scheduler.finished(2, NOW, answered=False, reusable=False, reason="lost") is True


def test_failures_are_remembered_over_a_sleep() -> None:
    scheduler = ready(1)
    scheduler.step(NOW)
    scheduler.open_failed(1, NOW, "refused")
    scheduler.step(NOW)
    states = scheduler.known.conditions(NOW)
    assert states == {"a.test": Condition(failures=1, blocked_until=NOW + 600, reason="refused")}
    woken = make()
    woken.known.memory.put("a.test", states["a.test"])
    woken.add("a.test", name(0), 0, NOW)
    woken.step(NOW)
    woken.located("a.test", "a.test", everywhere(POLICY), NOW)
    assert woken.step(NOW) == ([], NOW + 600)


def test_what_is_remembered_is_bounded() -> None:
    scheduler = make()
    for number in range(MAX_REMEMBERED + 5):
        scheduler.known.memory.put(f"{number}.test", Condition(failures=1))
    assert len(scheduler.known.conditions(NOW)) == MAX_REMEMBERED
    assert "0.test" not in scheduler.known.conditions(NOW)


def test_a_site_that_has_recovered_is_not_remembered_as_failing() -> None:
    scheduler = ready(2)
    scheduler.step(NOW)
    scheduler.open_failed(1, NOW, "refused")
    scheduler.open_failed(2, NOW, "refused")
    scheduler.step(NOW + 600)
    scheduler.opened(3, NOW + 600)
    scheduler.step(NOW + 600)
    scheduler.finished(3, NOW + 600, answered=True, reusable=False)
    assert scheduler.known.conditions(NOW + 600) == {}


def test_a_domain_that_takes_no_mail_has_its_mail_rejected() -> None:
    scheduler = make()
    scheduler.add("a.test", name(0), 0, NOW)
    scheduler.step(NOW)
    scheduler.condemned("a.test", NULL_MX, NOW + 300, 3600.0)
    assert scheduler.step(NOW)[0] == [Reject("a.test", name(0), NULL_MX)]
    assert scheduler.size == 0
    scheduler.add("a.test", name(1), 0, NOW)
    assert scheduler.step(NOW)[0] == [Reject("a.test", name(1), NULL_MX)]


def test_a_big_condemned_queue_is_rejected_in_parts() -> None:
    scheduler = make()
    for number in range(1200):
        scheduler.add("a.test", name(number), 0, NOW)
    scheduler.step(NOW)
    scheduler.condemned("a.test", NULL_MX, NOW + 300, 3600.0)
    counts, now = [], NOW
    while scheduler.size:
        actions, wake = scheduler.step(now)
        counts.append(len(actions))
        assert wake > now
        now = wake
    assert counts == [500, 500, 200]


def test_a_failed_look_up_is_repeated_and_old_mail_is_given_up() -> None:
    scheduler = make()
    scheduler.add("a.test", name(0), 0, NOW)
    scheduler.add("a.test", name(1, age=5000), 0, NOW)
    scheduler.step(NOW)
    scheduler.unlocated("a.test", NOW, NOW + 600, "SERVFAIL", 3600.0)
    assert scheduler.step(NOW) == ([Expire("a.test", name(1, age=5000), "SERVFAIL")], NOW + 600)
    assert scheduler.step(NOW + 600)[0] == [Locate("a.test")]


def test_mail_that_was_tried_is_given_up_after_bounce_after_and_mail_that_was_not_gets_its_try() -> None:
    scheduler = ready(1)
    scheduler.add("a.test", name(7, age=5000, attempts=3), 0, NOW)
    scheduler.add("a.test", name(8, age=5000), 0, NOW)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.opened(2, NOW)
    actions = scheduler.step(NOW)[0]
    assert Expire("a.test", name(7, age=5000, attempts=3), "") in actions
    assert Assign(2, "a.test", name(0)) in actions
    assert Assign(1, "a.test", name(8, age=5000)) in actions


def test_mail_that_comes_due_at_its_expiry_does_not_wait_behind_younger_mail_of_a_blocked_site() -> None:
    scheduler = ready(2)
    old = name(7, age=3600 - 100, attempts=1)
    scheduler.add("a.test", old, NOW + 100, NOW)
    scheduler.step(NOW)
    scheduler.open_failed(1, NOW, "refused")
    assert scheduler.step(NOW + 101)[0] == [Expire("a.test", old, "refused")]


def test_a_rate_holds_while_its_site_comes_and_goes() -> None:
    policy = DomainPolicy(max_msg_rate=Rate(2, 3600))
    scheduler, now, sent = make(), NOW, []
    for number in range(4):
        scheduler.add("a.test", name(number), 0, now)
        for _ in range(4):
            for action in scheduler.step(now)[0]:
                if isinstance(action, Locate):
                    scheduler.located("a.test", "a.test", everywhere(policy), now)
                elif isinstance(action, Open):
                    scheduler.opened(action.session, now)
                elif isinstance(action, Assign):
                    sent.append(now)
                    scheduler.finished(action.session, now, answered=True, reusable=True)
        now += 1
    assert len(sent) <= 2
    assert scheduler.size == 4 - len(sent)


def test_no_more_sessions_are_opened_than_a_rate_has_mail_for() -> None:
    scheduler = ready(50, DomainPolicy(max_smtp_out=20, max_msg_rate=Rate(1, 60)))
    assert len(scheduler.step(NOW)[0]) == 1


def test_sites_that_wait_for_a_session_of_the_vmta_get_one_in_turn() -> None:
    scheduler = ready(200, DomainPolicy(max_smtp_out=5), limit=1)
    for other in ("b.test", "c.test"):
        scheduler.add(other, name(1000), 0, NOW)
    scheduler.step(NOW)
    scheduler.located("b.test", "b.test", everywhere(POLICY), NOW)
    scheduler.step(NOW)
    scheduler.located("c.test", "c.test", everywhere(POLICY), NOW)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    order = []
    for _ in range(1000):
        for action in scheduler.step(NOW)[0]:
            if isinstance(action, Open):
                order.append(action.site)
                scheduler.opened(action.session, NOW)
            elif isinstance(action, Assign):
                scheduler.finished(action.session, NOW, answered=True, reusable=True)
        assert scheduler.sessions <= 1
    assert order == ["a.test", "b.test", "c.test"]  # the first was the first to want one more
    assert scheduler.size == 0
    assert FAIR_SHARE == 100


def test_an_idle_session_makes_room_for_a_site_that_waits() -> None:
    scheduler = ready(1, DomainPolicy(connection_idle_timeout=60.0), limit=1)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    scheduler.finished(1, NOW, answered=True, reusable=True)
    scheduler.step(NOW)
    scheduler.add("b.test", name(1), 0, NOW)
    scheduler.step(NOW)
    scheduler.located("b.test", "b.test", everywhere(POLICY), NOW)
    assert scheduler.step(NOW)[0] == [Close(1), Open(2, "b.test", "b.test")]


def test_draining_begins_nothing_and_closes_what_is_idle() -> None:
    scheduler = ready(3)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    scheduler.drain()
    scheduler.opened(2, NOW)
    assert scheduler.step(NOW)[0] == [Close(2)]
    scheduler.finished(1, NOW, answered=True, reusable=True)
    assert scheduler.step(NOW)[0] == [Close(1)]
    assert scheduler.size == 2


def test_a_lower_limit_ends_sessions_with_their_message() -> None:
    scheduler = ready(9)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.opened(2, NOW)
    scheduler.step(NOW)
    scheduler.reconfigure(VmtaLimits(), everywhere(DomainPolicy(max_smtp_out=1)), NOW)
    scheduler.finished(1, NOW, answered=True, reusable=True)
    scheduler.finished(2, NOW, answered=True, reusable=True)
    assert [type(action) for action in scheduler.step(NOW)[0]] == [Close, Assign]


def test_an_idle_session_that_has_carried_more_than_a_reload_allows_is_closed() -> None:
    scheduler = ready(1, DomainPolicy(connection_idle_timeout=60.0))
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    scheduler.finished(1, NOW, answered=True, reusable=True)
    scheduler.step(NOW)
    policy = DomainPolicy(connection_idle_timeout=60.0, max_msg_per_connection=1)
    scheduler.reconfigure(VmtaLimits(), everywhere(policy), NOW)
    assert scheduler.step(NOW)[0] == [Close(1)]


def test_a_block_outlives_its_site() -> None:
    scheduler = ready(3)
    scheduler.step(NOW)
    scheduler.open_failed(1, NOW, "cannot bind", ours=True)
    scheduler.opened(2, NOW)
    for _ in range(3):
        scheduler.step(NOW)
        scheduler.finished(2, NOW, answered=True, reusable=True)
    scheduler.step(NOW)
    assert scheduler.sites == {}
    scheduler.add("a.test", name(9), 0, NOW)
    scheduler.step(NOW)
    scheduler.located("a.test", "a.test", everywhere(POLICY), NOW)
    assert scheduler.step(NOW) == ([], NOW + 60)


def test_a_higher_limit_is_used_at_once() -> None:
    scheduler = ready(9, limit=1)
    assert len(scheduler.step(NOW)[0]) == 1
    scheduler.reconfigure(VmtaLimits(5), everywhere(POLICY), NOW)
    assert len(scheduler.step(NOW)[0]) == 1  # the site's own limit is 2


def test_reports_about_a_session_that_is_gone_are_ignored() -> None:
    scheduler = ready(2)
    scheduler.step(NOW)
    scheduler.lost(1)
    scheduler.lost(1)
    scheduler.opened(1, NOW)
    assert scheduler.open_failed(1, NOW, "x") is False
    assert scheduler.finished(1, NOW, answered=True, reusable=True) is False
    assert [type(action) for action in scheduler.step(NOW)[0]] == [Open]


def test_timers_that_are_out_of_date_do_not_pile_up() -> None:
    scheduler, now = make(), NOW
    scheduler.add("a.test", name(0), NOW + 1e6, now)
    scheduler.add("a.test", name(1), 0, now)
    scheduler.step(now)
    scheduler.condemned("a.test", NULL_MX, NOW + 1e6, 3600.0)
    for number in range(20_000):
        scheduler.add("a.test", name(2 + number), now + 1, now)
        now += 2
        scheduler.step(now)
    assert len(scheduler._agenda._timers) < 3000


def test_a_waiting_name_costs_little_memory() -> None:
    scheduler = make()
    names = [name(number) for number in range(200_000)]
    tracemalloc.start()
    for number, text in enumerate(names):
        scheduler.add(f"{number % 100}.test", text, NOW + 600 + number % 3600, NOW)
    used = tracemalloc.get_traced_memory()[0] / len(names)
    tracemalloc.stop()
    assert used < 120  # and about 110 for the name itself


def test_the_last_value_of_a_schedule_repeats() -> None:
    assert [pick((1.0, 2.0, 4.0), failures) for failures in (0, 1, 2, 3, 4, 99)] == [1, 1, 2, 4, 4, 4]


def test_a_retry_is_never_behind_the_expiry_and_never_in_the_past() -> None:
    assert next_due((600.0,), 1, 100.0, 1000.0) == 700.0
    assert next_due((600.0,), 1, 100.0, 500.0) == 500.0
    assert next_due((600.0,), 1, 100.0, 50.0) == 100.0


def test_a_message_with_more_recipients_than_a_whole_period_goes_alone() -> None:
    limiter = RateLimiter(Rate(10, 60))
    assert limiter.wait(NOW, 25) == 0
    limiter.take(NOW, 25)
    assert 60 < limiter.wait(NOW, 1) <= 150
    assert limiter.busy_until() == NOW + 150


def test_unlimited_costs_nothing() -> None:
    limiter = RateLimiter(Rate(math.inf))
    limiter.take(NOW, 10**9)
    assert limiter.wait(NOW, 10**9) == 0
    assert limiter.allowance(NOW) == math.inf


def test_a_site_that_serves_us_on_other_sessions_is_not_blamed_for_refusing_one_more() -> None:
    scheduler = make()
    policy = DomainPolicy(max_smtp_out=2, retry_after=(600.0,), connection_idle_timeout=5.0)
    for number in range(4):
        scheduler.add("a.test", f"{int(NOW)}.M00000{number}P1Q{number}.mx,S=1,C=00000000,J=0", 0, NOW)
    scheduler.step(NOW)
    scheduler.located("a.test", "a.test", everywhere(policy), NOW)
    opened = [action for action in scheduler.step(NOW)[0] if isinstance(action, Open)]
    scheduler.opened(opened[0].session, NOW)
    scheduler.step(NOW)
    assert scheduler.open_failed(opened[1].session, NOW, "421 too many connections")
    site = scheduler.sites["a.test"]
    assert (site.condition.failures, site.condition.blocked_until) == (0, 0)
    assert (site.condition.window, site.calm_until) == (1.0, NOW + CALM)


def test_a_domain_that_its_own_rate_holds_goes_on_in_time_though_a_retry_was_due_before() -> None:
    shared = DomainPolicy(max_smtp_out=1, max_msg_rate=Rate(1000, 1))
    own = DomainPolicy(max_smtp_out=1, max_msg_rate=Rate(1, 60))
    scheduler = make()
    for number in range(2):
        scheduler.add("a.test", name(number), 0, NOW)
    scheduler.add("a.test", name(2), NOW + 10, NOW)
    scheduler.step(NOW)
    scheduler.located("a.test", "one", lambda _, domain: own if domain == "a.test" else shared, NOW)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    assert scheduler.step(NOW)[0] == [Assign(1, "a.test", name(0))]
    scheduler.finished(1, NOW, answered=True, reusable=True)
    now, seen = NOW, 0
    while now < NOW + 200:
        actions, wake = scheduler.step(now)
        seen += sum(isinstance(action, Assign) for action in actions)
        for action in actions:
            if isinstance(action, Open):
                scheduler.opened(action.session, now)
            elif isinstance(action, Assign):
                scheduler.finished(action.session, now, answered=True, reusable=True)
        now = now if actions else wake
    assert seen == 2


def of_job(number: int, job: str = "aaaaaaaa", age: float = 0.0) -> str:
    return name(number, age).replace("J=0", f"J={job}")


def test_the_mail_of_a_held_job_is_passed_over_until_it_is_let_go() -> None:
    scheduler = make()
    assert scheduler.hold_jobs({"aaaaaaaa"})
    assert not scheduler.hold_jobs({"aaaaaaaa"})
    for one in (of_job(0), of_job(1, "bbbbbbbb")):
        scheduler.add("a.test", one, 0, NOW)
    scheduler.step(NOW)
    scheduler.located("a.test", "a.test", everywhere(POLICY), NOW)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    assert scheduler.step(NOW)[0] == [Assign(1, "a.test", of_job(1, "bbbbbbbb"))]
    scheduler.finished(1, NOW, answered=True, reusable=True)
    assert scheduler.step(NOW)[0] == [Close(1)]
    assert scheduler.next_due() == NOW + 3600
    assert (scheduler.size, [*scheduler.queues], [*scheduler.sites]) == (1, ["a.test"], ["a.test"])
    scheduler.hold_jobs(())
    assert scheduler.step(NOW + 1)[0] == [Open(2, "a.test", "a.test")]


def test_what_is_held_expires_wherever_it_is() -> None:
    for located in (True, False):
        scheduler = make()
        scheduler.hold_jobs({"aaaaaaaa"})
        scheduler.add("a.test", of_job(0), 0, NOW)
        assert scheduler.next_due() <= NOW  # how long it may wait is not known yet
        assert scheduler.step(NOW)[0] == [Locate("a.test")]
        if located:
            scheduler.located("a.test", "a.test", everywhere(POLICY), NOW)
        else:
            scheduler.condemned("a.test", NULL_MX, NOW + 300, 3600.0)
        assert scheduler.step(NOW) == ([], NOW + 3600)
        assert scheduler.next_due() == NOW + 3600
        assert scheduler.step(NOW + 3600)[0] == [Expire("a.test", of_job(0), "the job is paused")]
        assert (scheduler.size, scheduler.queues) == (0, {})


def test_a_domain_that_takes_no_mail_has_held_mail_rejected_when_it_is_let_go() -> None:
    scheduler = make()
    scheduler.hold_jobs({"aaaaaaaa"})
    scheduler.add("a.test", of_job(0), 0, NOW)
    scheduler.step(NOW)
    scheduler.condemned("a.test", NULL_MX, NOW + 300, 3600.0)
    scheduler.step(NOW)
    scheduler.hold_jobs(())
    assert scheduler.step(NOW)[0] == [Reject("a.test", of_job(0), NULL_MX)]


OLD, NEW = frozenset({"old.mx"}), frozenset({"new.mx"})


def busy_at_the_old_hosts(policy: DomainPolicy, messages: int = 1) -> Scheduler:
    """A scheduler whose session 1 carries mail when a reload moves its domain."""
    scheduler = make()
    scheduler.add("a.test", name(0), 0, NOW)
    scheduler.step(NOW)
    scheduler.located("a.test", "a.test", everywhere(policy), NOW, OLD)
    scheduler.step(NOW)
    scheduler.opened(1, NOW)
    scheduler.step(NOW)
    scheduler.move([scheduler.queues["a.test"]])
    for number in range(1, messages):
        scheduler.add("a.test", name(number), 0, NOW)
    return scheduler


def test_a_domain_that_moved_is_located_anew_and_its_old_session_carries_nothing_more() -> None:
    scheduler = busy_at_the_old_hosts(DomainPolicy(max_smtp_out=2, connection_idle_timeout=60.0), messages=2)
    assert scheduler.step(NOW)[0] == [Locate("a.test")]
    scheduler.located("a.test", "a.test", everywhere(POLICY), NOW, NEW)
    assert scheduler.step(NOW)[0] == [Open(2, "a.test", "a.test")]
    scheduler.finished(1, NOW, answered=True, reusable=True, delivered=True)
    assert scheduler.step(NOW)[0] == [Close(1)]
    scheduler.opened(2, NOW)
    assert scheduler.step(NOW)[0] == [Assign(2, "a.test", name(1))]
    assert [group.mx for group in scheduler.sites["a.test"].groups.values()] == [NEW]


def test_a_session_that_opens_after_its_domain_moved_is_closed_and_one_that_fails_is_nobodys_failure() -> None:
    for is_open in (True, False):
        scheduler = ready(1)
        scheduler.step(NOW)
        scheduler.move([scheduler.queues["a.test"]])
        scheduler.located("a.test", "a.test", everywhere(POLICY), NOW, NEW)
        if is_open:
            scheduler.opened(1, NOW)
        else:
            assert scheduler.open_failed(1, NOW, "refused") is False
        actions = scheduler.step(NOW)[0]
        assert set(actions) == {Open(2, "a.test", "a.test"), *([Close(1)] if is_open else [])}


def test_a_failure_of_the_old_hosts_does_not_hold_mail_for_the_new_ones() -> None:
    scheduler = ready(1)
    scheduler.step(NOW)
    scheduler.open_failed(1, NOW, "refused")
    assert scheduler.step(NOW) == ([], NOW + 600)
    scheduler.move([scheduler.queues["a.test"]])
    assert scheduler.step(NOW)[0] == [Locate("a.test")]
    scheduler.located("a.test", "a.test", everywhere(POLICY), NOW, NEW)
    assert scheduler.step(NOW)[0] == [Open(2, "a.test", "a.test")]


def test_a_domain_that_is_condemned_or_waits_for_its_look_up_is_looked_up_at_once_when_it_moves() -> None:
    for is_condemned in (True, False):
        scheduler = make()
        scheduler.add("a.test", name(0), 0, NOW)
        scheduler.step(NOW)
        if is_condemned:
            scheduler.condemned("a.test", NULL_MX, NOW + 300, 3600.0)
        else:
            scheduler.unlocated("a.test", NOW, NOW + 300, "SERVFAIL", 3600.0)
        scheduler.move([scheduler.queues["a.test"]])
        assert scheduler.step(NOW)[0] == [Locate("a.test")]


def test_a_queue_that_moved_is_forgotten_when_its_last_message_is_done_and_not_before() -> None:
    empty = busy_at_the_old_hosts(POLICY)
    assert empty.step(NOW)[0] == []
    assert empty.queues["a.test"].active == 1
    located = busy_at_the_old_hosts(POLICY, messages=2)
    located.step(NOW)
    located.located("a.test", "other", everywhere(POLICY), NOW, NEW)
    assert len(located.withdraw("a.test", lambda _: True)) == 1
    assert located.step(NOW)[0] == []
    assert located.queues["a.test"].active == 1
    for scheduler in (empty, located):
        scheduler.finished(1, NOW, answered=True, reusable=False, delivered=True)
        scheduler.step(NOW)
        assert (scheduler.queues, scheduler.sites, scheduler.sessions) == ({}, {}, 0)
