"""What a response rule that fired does: to the condition of its site, to the mail that waits there, to the answer.

| action | changes |
|---|---|
| backoff, normal | the mode of the site |
| pause | nothing goes out |
| set | limits |
| disable-source-ip | the address is not used at this site |
| defer-queue | the site waits as after a failure; for the rule's time, if nothing else in the rule takes it |
| bounce-queue | all mail of the site is given back with the reply |
| skip-mx | the host is passed over; the message stays, even after a 5xx |
| bounce-rcpt | a 4xx to RCPT is final |

The last two concern the answer that fired the rule (`ruled`), the others all of the site. What they lead to carries no
observed failure (`FailureKind.is_observed`), so a rule never fires on its own consequence.
"""

from __future__ import annotations

import math
import re

import msgspec

from spoolmta import condition
from spoolmta.condition import FOREVER, Override
from spoolmta.model import Answer, Failure, FailureKind, Reply, ResponseAction, Ruling, Stage
from spoolmta.schedule import Scheduler
from spoolmta.trigger import Fired

SKIP = 600.0
"""Seconds a host is passed over by a rule that does not say how long."""

MOST_ASKED = 86_400.0
"""No server may ask us to wait longer than this."""

_ASKED = re.compile(
    r"(?:try|retry|wait|again|later|delayed)\b[^0-9]{0,40}?\b([0-9]{1,5}) ?"
    r"(s|secs?|seconds?|m|mins?|minutes?|h|hours?)\b",
    re.IGNORECASE,
)

_TAKES_TIME = frozenset(
    {ResponseAction.BACKOFF, ResponseAction.PAUSE, ResponseAction.SET, ResponseAction.DISABLE_SOURCE_IP}
)


def react(scheduler: Scheduler, site_key: str, source: str, fired: Fired, now: float) -> None:
    """Do what a rule says to a site. What changes is an event of its condition, with the rule and the reply."""
    state = scheduler.known.condition_of(site_key)
    policy = scheduler.policy_of(site_key)
    rule, reason = fired.rule, str(fired)
    until = FOREVER if fired.until is None else fired.until
    for action in rule.actions:
        if action is ResponseAction.BACKOFF:
            condition.enter_backoff(state, policy, now, reason, rule.duration or 0.0)
        elif action is ResponseAction.NORMAL:
            condition.leave_backoff(state, policy, now, reason)
        elif action is ResponseAction.PAUSE:
            condition.pause(state, now, reason, until)
        elif action is ResponseAction.SET:
            for change in rule.changes:
                condition.set_limit(state, now, Override.of(change, until, reason))
        elif action is ResponseAction.DISABLE_SOURCE_IP and source:
            again = until or (now + policy.reenable_source_ip_after)
            condition.disable_source(state, now, source, reason, again if again < math.inf else FOREVER)
        elif action is ResponseAction.DEFER_QUEUE:
            pause = None if _TAKES_TIME.intersection(rule.actions) else rule.duration
            if scheduler.defer(site_key, now, fired.text, pause):
                state.note(now, f"deferred: {reason}")
        elif action is ResponseAction.BOUNCE_QUEUE:
            state.note(now, f"{bounce(scheduler, site_key, fired.text)} messages bounced: {reason}")
    scheduler.changed(site_key, now)


def bounce(scheduler: Scheduler, site_key: str, text: str) -> int:
    """Give back all mail that waits for a site; how many messages."""
    failure = Failure(FailureKind.CONDEMNED, text)
    return sum(
        len(scheduler.withdraw(queue.domain, lambda _: True, failure)) for queue in scheduler.queues_of(site_key)
    )


def ruled(answer: Answer, fired: Fired) -> Answer:
    """The answer, with what the rule makes of it."""
    actions = fired.rule.actions
    result = answer.result
    if ResponseAction.SKIP_MX in actions:
        return msgspec.structs.replace(answer, ruling=Ruling.DEFER)
    if ResponseAction.BOUNCE_QUEUE in actions:
        return msgspec.structs.replace(answer, ruling=Ruling.BOUNCE)
    if (
        ResponseAction.BOUNCE_RCPT in actions
        and answer.stage is Stage.RCPT
        and isinstance(result, Reply)
        and result.code < 500
    ):
        return msgspec.structs.replace(answer, ruling=Ruling.BOUNCE)
    return answer


def asked_pause(result: Reply | Failure) -> float:
    """Seconds for which a 4xx reply asks us to wait ("try again in 300 seconds", as greylisting servers say it), 0 if
    it does not. A second more than asked: their clocks count from when they said it."""
    if isinstance(result, Failure) or not 400 <= result.code < 500:
        return 0.0
    found = _ASKED.search(result.text)
    if found is None:
        return 0.0
    unit = {"s": 1, "m": 60, "h": 3600}[found[2][0].lower()]
    return min(int(found[1]) * unit + 1.0, MOST_ASKED)


def skip_until(fired: Fired) -> float:
    """Until when the host that gave the answer is passed over; 0 if the rule does not say so."""
    if ResponseAction.SKIP_MX not in fired.rule.actions:
        return 0.0
    return fired.until if fired.until is not None else fired.at + SKIP
