"""How many sessions a site bears, learned from what happens to them.

A session that is refused while others work is no outage: the window is cut to the others, by half at most, for all
that began together (a cohort). For so many answers to messages it stays as it is: sessions that end are replaced, but
no more are tried, so that few attempts are refused however fast or slow the site is. Then each answer widens it by
1/window, so it is one wider when every session has had one. Once at least two more work than the last cut left, the
site bears more than it did then, and each answer widens it by one (it doubles). At its limit it is forgotten.
With a receiver that takes 5 this settles at 5 and tries a 6th now and then; a plain cut by half would swing between 2
and 6 (Postfix's SCHEDULER_README measures the same of coarse feedback).
What is said of a recipient or a message is an answer like any other.

How many of them are of use depends on how fast the site answers (`pace`). Opening a session takes a site as long as two
messages do, so another one is opened only for mail that those at work would not have sent within WITHIN. A site that
answers in 5 ms gets one session for each 6 messages that wait; one that takes longer than WITHIN, one for each message.
A session that has been busy for longer than HANGS is not counted on: behind one that hangs nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from spoolmta.site import Session, Site

CALM = 1.0
"""Seconds, and up to a fifth more, in which a site that refused one more session gets no more than it has."""
ANSWERS = 50
"""Answers for which a window stays as it was cut: of so many attempts at most one is refused."""
ENOUGH = 3
"""Sessions a site may have when our own processor is what holds us up: one sends while another waits."""


WITHIN = 0.03
"""Seconds in which the mail that waits should be gone. With 0.1 there are so few sessions that each turn of the loop
has little to do, and costs more a message; with 0.01 as many as without this."""
HANGS = 0.1


def narrow(site: Site, number: int, newest: int, now: float, chance: Callable[[], float]) -> bool:
    """A session was refused while others work; True if that is news. `newest` is the last session begun anywhere."""
    is_news = number >= site.cohort
    others = len(site.sessions)
    before = site.condition.window or float(others + 1)
    if is_news:
        site.cohort, site.answers = newest + 1, 0
        site.floor = max(1.0, before / 2)
        rest(site, now + CALM * (1 + 0.2 * chance()), "it refused one more connection just now")
    site.condition.window = min(before, max(site.floor, float(others)))
    site.bears, site.calm_sessions = int(site.condition.window), others
    return is_news


def rest(site: Site, until: float, reason: str) -> None:
    """No more sessions than there are now, for a while."""
    site.calm, site.calm_until, site.calm_sessions = reason, until, len(site.sessions)


def widen(site: Site) -> None:
    """A message was answered."""
    state = site.condition
    if not state.window:
        return
    site.answers += 1
    if site.answers <= ANSWERS:
        return
    sessions = len(site.sessions)
    is_climbing = sessions - site.opening > site.bears + 1
    if state.window < (2 * sessions if is_climbing else sessions + 1):  # one that is not used up tells nothing
        state.window += 1.0 if is_climbing else 1 / state.window
        if state.window >= site.limits.force.max_smtp_out:
            state.window = 0.0


def room(site: Site, now: float, is_saturated: bool) -> tuple[int, str]:
    """(sessions that may be opened now; what keeps it from being more)."""
    sessions = len(site.sessions)
    state = site.condition
    limit, held = site.limits.force.max_smtp_out, "max-smtp-out"
    if site.limits.force.max_smtp_out < site.policy.max_smtp_out and state.mode != "normal":
        held = "backoff-max-smtp-out"
    if state.window and int(state.window) < limit:
        limit, held = int(state.window), "it refused more connections"
    if site.calm_until > now and site.calm_sessions < limit:
        limit, held = site.calm_sessions, site.calm
    if state.failures:
        limit, held = 1, "one connection goes first after a failure"
    # Slow start: as many more as are open already. A queue is often empty before a second session is.
    opening = site.opening
    established = sessions - opening
    if is_saturated and established >= ENOUGH:
        return 0, ""
    slowly = (2 if is_saturated else max(2, established)) - opening
    return min(limit - sessions, slowly), held if limit <= sessions else ""


def note_pace(site: Site, seconds: float) -> None:
    """How long a message took, while we were not late ourselves. What delays us makes it longer, never shorter: it is
    believed at once when shorter."""
    if seconds > 0:
        site.pace = seconds if not site.pace or seconds < site.pace else site.pace + (seconds - site.pace) / 16


def carries(site: Site) -> float:
    """How many messages a session carries within WITHIN; one where that is not known, or takes longer."""
    return max(1.0, WITHIN / site.pace) if site.pace else 1.0


def useful(waiting: int, carries: float, sessions: Iterable[Session], now: float) -> int:
    """How many sessions more are of use for so many messages, beside those that carry mail or are opening."""
    return math.ceil(waiting / carries) - sum(session.opening or now - session.taken < HANGS for session in sessions)
