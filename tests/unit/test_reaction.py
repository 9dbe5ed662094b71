"""What a response rule does, and what a reply asks for."""

from __future__ import annotations

import pytest

from spoolmta import reaction
from spoolmta.model import Answer, Failure, FailureKind, Outcome, Reply, ResponseAction, ResponseRule, Stage
from spoolmta.reaction import SKIP, asked_pause, ruled, skip_until
from spoolmta.trigger import Fired
from spoolmta.verdict import judge


@pytest.mark.parametrize(
    ("code", "text", "pause"),
    [
        (451, "4.7.1 Greylisted, please try again in 300 seconds", 301),
        (450, "4.2.0 <a@b>: Recipient address rejected: Greylisted, see help; retry in 5 minutes", 301),
        (421, "Too much mail, wait 2 hours", 7201),
        (451, "try again later (00:04:59)", 0),
        (451, "4.7.650 The mail server [192.0.2.1] has been temporarily rate limited", 0),
        (550, "try again in 300 seconds", 0),
        (451, "please retry in 99999 minutes", 86_400),
        (250, "queued, try again in 5 s", 0),
    ],
)
def test_a_reply_that_asks_us_to_wait_is_obeyed(code: int, text: str, pause: float) -> None:
    assert asked_pause(Reply(code, (text,))) == pause


def test_a_failure_asks_for_nothing() -> None:
    assert asked_pause(Failure(FailureKind.LOST, "try again in 5 seconds")) == 0


def fired(*actions: ResponseAction, duration: float | None = None) -> Fired:
    rule = ResponseRule(id="1", reply=("x",), actions=actions, duration=duration)
    return Fired(rule, 1000.0, None if duration is None else 1000.0 + duration, "text")


def test_bounce_rcpt_makes_a_refusal_for_now_of_a_recipient_final_and_nothing_else() -> None:
    rule = fired(ResponseAction.BOUNCE_RCPT)
    assert judge(ruled(Answer(Stage.RCPT, Reply(450, ("no",))), rule)).outcome is Outcome.BOUNCED
    assert judge(ruled(Answer(Stage.EOD, Reply(450, ("no",))), rule)).outcome is None
    assert judge(ruled(Answer(Stage.RCPT, Failure(FailureKind.LOST, "lost")), rule)).outcome is None


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.EOD])
def test_skip_mx_keeps_the_message_even_after_a_5xx(stage: Stage) -> None:
    rule = fired(ResponseAction.SKIP_MX)
    assert judge(ruled(Answer(stage, Reply(554, ("no",))), rule)).outcome is None
    assert skip_until(rule) == 1000.0 + SKIP
    assert skip_until(fired(ResponseAction.SKIP_MX, duration=5.0)) == 1005.0
    assert skip_until(fired(ResponseAction.BACKOFF)) == 0.0


def test_bounce_queue_bounces_what_fired_it_too() -> None:
    answer = ruled(Answer(Stage.RCPT, Reply(450, ("no",))), fired(ResponseAction.BOUNCE_QUEUE))
    assert judge(answer).outcome is Outcome.BOUNCED


def test_what_a_rule_leads_to_is_never_looked_at_by_a_rule() -> None:
    assert not FailureKind.CONDEMNED.is_observed
    assert not FailureKind.HELD.is_observed
    assert not FailureKind.EXPIRED.is_observed
    assert reaction.ruled(Answer(Stage.RCPT, Reply(550, ("no",))), fired(ResponseAction.PAUSE)).ruling is None
