from __future__ import annotations

import math

import msgspec
import pytest

from spoolmta.model import (
    UNLIMITED,
    Answer,
    Change,
    Config,
    DomainPolicy,
    FailureKind,
    Rate,
    Reply,
    ResponseAction,
    ResponseRule,
    Stage,
    Trigger,
)
from spoolmta.response import REMEMBERED, Rules, apply
from spoolmta.trigger import BUCKETS, Responses, Triggers
from tests.support.rules import made_up, reply, rule


def test_the_first_rule_that_matches_wins() -> None:
    first, second = rule("too many", name="first"), rule("^421", name="second")
    rules = Rules([first, second])
    assert rules.match(Stage.RCPT, reply("421 too many")) is first
    assert rules.match(Stage.RCPT, reply("421 go away")) is second
    assert rules.match(Stage.RCPT, reply("450 go away")) is None
    assert rules.match(Stage.RCPT, reply("421 too many")) is first  # from memory


def test_a_rule_for_a_stage_sees_that_stage_only() -> None:
    greeting = rule("spam", stages=(Stage.GREETING,))
    anywhere = rule("spam", name="anywhere")
    rules = Rules([greeting, anywhere])
    assert rules.match(Stage.GREETING, reply("554 spam")) is greeting
    assert rules.match(Stage.EOD, reply("554 spam")) is anywhere


def test_local_failures_are_matched_by_their_text() -> None:
    refused = rule("connection refused$")
    failure = made_up("cannot connect to 192.0.2.1: Connection refused")
    assert Rules([refused]).match(Stage.CONNECT, failure) is refused


@pytest.mark.parametrize("kind", [FailureKind.EXPIRED, FailureKind.HELD, FailureKind.LOCAL])
def test_no_rule_looks_at_what_we_made_up_ourselves(kind: FailureKind) -> None:
    failure = made_up("delivery time expired, last: 421 too many", kind)
    assert Rules([rule("too many")]).match(Stage.RCPT, failure) is None


def test_a_message_that_was_taken_calls_up_only_a_rule_that_was_made_for_it() -> None:
    spam, taken = rule("spam"), rule("^250 .*slowly", name="taken")
    assert Rules([spam]).match(Stage.EOD, reply("250 no spam here")) is None
    assert Rules([spam, taken]).match(Stage.EOD, reply("250 no spam here, slowly please")) is taken


def test_what_was_said_is_remembered_within_bounds() -> None:
    rules = Rules([rule("nine")])
    for number in range(3 * REMEMBERED):
        assert rules.match(Stage.RCPT, Reply(450, (f"number {number}",))) is None
    assert len(rules._memory) == REMEMBERED


POLICY = DomainPolicy(max_smtp_out=10, max_msg_rate=Rate(600, 3600), max_msg_per_connection=0)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (Change("max_smtp_out", 2), 2),
        (Change("max_smtp_out", 20), 20),
        (Change("max_smtp_out", factor=0.5, floor=1), 5),
        (Change("max_smtp_out", factor=0.25, floor=4), 4),
        (Change("max_smtp_out", factor=0.25, floor=40), 10),
        (Change("max_msg_rate", factor=0.5, floor=Rate(1, 60)), Rate(300, 3600)),
        (Change("max_msg_rate", factor=0.5, floor=Rate(8, 60)), Rate(480, 3600)),
        (Change("max_msg_rate", factor=0.5, floor=Rate(99, 1)), Rate(600, 3600)),
        (Change("max_msg_rate", factor=0.001, floor=Rate(1, 86_400)), Rate(1, 6000)),
        (Change("max_msg_per_connection", factor=0.5, floor=5), 5),
        (Change("retry_after", (60.0,)), (60.0,)),
    ],
)
def test_a_change_sets_a_limit_or_makes_it_stricter(change: Change, value: object) -> None:
    changed = apply(POLICY, [change])
    assert getattr(changed, change.field) == value
    assert msgspec.structs.replace(changed, **{change.field: getattr(POLICY, change.field)}) == POLICY


def test_of_what_has_no_limit_the_floor_is_the_limit() -> None:
    policy = msgspec.structs.replace(POLICY, max_msg_rate=UNLIMITED)
    assert apply(policy, [Change("max_msg_rate", factor=0.5, floor=Rate(10, 60))]).max_msg_rate == Rate(10, 60)
    assert apply(POLICY, []) is POLICY


def test_a_rule_at_once_fires_each_time_and_tells_for_how_long() -> None:
    at_once, for_ever = rule("x", duration=60.0), rule("y", name="y")
    triggers = Triggers()
    fired = triggers.note(100.0, "site", "", Rules([at_once]), at_once, "421 x")
    assert fired is not None
    assert (fired.rule, fired.at, fired.until, fired.text) == (at_once, 100.0, 160.0, "421 x")
    assert str(fired) == "etc/policy.toml:7: 421 x"
    fired = triggers.note(100.0, "site", "", Rules([for_ever]), for_ever, "421 y")
    assert fired is not None
    assert fired.until is None


def test_a_count_fires_with_the_nth_within_the_window_and_starts_over() -> None:
    counted = rule("x", trigger=Trigger(3, 60.0))
    rules, triggers = Rules([counted]), Triggers()
    fired = [
        triggers.note(now, "site", "", rules, counted, "421 x") for now in (0.0, 30.0, 60.0, 61.0, 62.0, 63.0, 64.0)
    ]
    assert [bool(one) for one in fired] == [False, False, False, True, False, False, True]
    assert fired[3] is not None
    assert fired[3].matches == 3
    assert "3 in 60 s" in str(fired[3])


def test_sites_are_counted_apart_and_addresses_where_the_rule_is_about_one() -> None:
    of_site = rule("x", name="site", trigger=Trigger(2, 60.0))
    of_address = rule("y", trigger=Trigger(2, 60.0), actions=(ResponseAction.DISABLE_SOURCE_IP,))
    rules, triggers = Rules([of_site, of_address]), Triggers()

    def note(site: str, source: str, which: object) -> bool:
        one = of_site if which is of_site else of_address
        return triggers.note(1.0, site, source, rules, one, "x") is not None

    assert [note("a", "192.0.2.1", of_site), note("b", "192.0.2.1", of_site)] == [False, False]
    assert note("a", "192.0.2.2", of_site)
    assert [note("a", "192.0.2.1", of_address), note("a", "192.0.2.2", of_address)] == [False, False]
    assert note("a", "192.0.2.1", of_address)


def test_a_share_fires_when_its_part_of_enough_answers_is_reached() -> None:
    share = rule("x", trigger=Trigger(20, 3600.0, 0.25))
    rules, triggers = Rules([share]), Triggers()
    assert rules.shares == (share,)
    for now in range(15):
        assert triggers.note(float(now), "site", "", rules, None, "250 ok") is None
    fired = [triggers.note(20.0 + number, "site", "", rules, share, "421 x") for number in range(6)]
    assert [bool(one) for one in fired] == [False, False, False, False, True, False]
    assert fired[4] is not None
    assert (fired[4].matches, fired[4].answers) == (5, 20)
    assert "5 of 20 in 3600 s" in str(fired[4])


def test_a_share_forgets_what_is_a_period_old() -> None:
    share = rule("x", trigger=Trigger(10, 64.0, 0.5))
    rules, triggers = Rules([share]), Triggers()
    for _ in range(9):
        assert triggers.note(0.0, "site", "", rules, share, "x") is None
    assert triggers.note(float(BUCKETS), "site", "", rules, share, "x") is None


def test_what_is_over_is_forgotten_and_memory_is_bounded() -> None:
    counted, share = rule("x", trigger=Trigger(9, 10.0)), rule("y", trigger=Trigger(9, 10.0, 0.9))
    rules, triggers = Rules([counted, share]), Triggers()
    for number in range(20_000):
        triggers.note(number / 10, f"site-{number}", "", rules, counted, "x")
    assert len(triggers._counts) + len(triggers._shares) < 1200


def test_what_cannot_be_read_or_lies_in_the_future_counts_as_nothing() -> None:
    counted = rule("x", trigger=Trigger(2, 60.0))
    triggers = Triggers()
    for state in (None, {"counts": 3}, {"counts": {counted.id: {"site": [math.inf, 500.0]}}}, {"counts": {"gone": {}}}):
        triggers.restore(state, [counted], 100.0)
    assert triggers.note(100.0, "site", "", Rules([counted]), counted, "x") is None


def responses(*rules: ResponseRule) -> Responses:
    return Responses(Config(host_name="", spool="", responses=rules, providers={"big": ("mx.example.com",)}), "news")


def test_the_rules_of_a_provider_hold_at_its_site_only() -> None:
    noted = responses(msgspec.structs.replace(rule("too many"), provider="big"))
    answer = Answer(Stage.RCPT, reply("421 too many"))
    assert noted.note(1.0, "big", "", answer) is None  # a domain of that name
    assert noted.note(1.0, "example.com", "", answer) is None
    fired = noted.note(1.0, "big.rollup", "", answer)
    assert fired is not None
    assert fired.text == "421 too many"


def test_what_we_made_up_is_not_even_an_answer_of_a_share() -> None:
    noted = responses(rule("^4", trigger=Trigger(2, 60.0, 0.5)))
    for _ in range(9):
        assert noted.note(1.0, "site", "", Answer(Stage.RCPT, made_up("held", FailureKind.HELD))) is None
    assert noted.note(1.0, "site", "", Answer(Stage.RCPT, reply("421 x"))) is None
    assert noted.note(1.0, "site", "", Answer(Stage.EOD, reply("250 ok"))) is None
    assert noted.note(1.0, "site", "", Answer(Stage.RCPT, reply("421 x"))) is not None


def test_counts_go_on_after_a_sleep() -> None:
    counted = rule("x", trigger=Trigger(2, 60.0))
    before, after = responses(counted), responses(counted)
    assert before.note(1.0, "site", "", Answer(Stage.RCPT, reply("421 x"))) is None
    after.restore(msgspec.json.decode(msgspec.json.encode(before.export())), 30.0)
    assert after.note(31.0, "site", "", Answer(Stage.RCPT, reply("421 x"))) is not None
