"""How many sessions a site bears, learned from what happens to them.

A session that is refused while others work is no outage: the window is cut to the sessions that work, by half at most,
once for all that began together (a cohort), and for some seconds none is opened. Each answer to a message then widens
the window by 1/window, so it is one wider when every session has had one. At its limit it is forgotten.
With a receiver that takes 5 this settles at 5 and tries a 6th now and then; a plain cut by half would swing between 2
and 6 (Postfix's SCHEDULER_README measures the same of coarse feedback).
What is said of a recipient or a message is an answer like any other.
"""

from __future__ import annotations

from collections.abc import Callable

from spoolmta.site import Site

CALM = 10.0
"""Seconds, and up to a fifth more, in which a site that refused one more session gets none."""
ENOUGH = 3
"""Sessions a site may have when our own processor is what holds us up: one sends while another waits."""


def narrow(site: Site, number: int, newest: int, now: float, chance: Callable[[], float]) -> bool:
    """A session was refused while others work; True if that is news. `newest` is the last session begun anywhere."""
    if number < site.cohort:
        return False
    established = len(site.sessions) - site.opening
    before = site.condition.window or float(len(site.sessions) + 1)
    site.condition.window = max(1.0, float(established), before / 2)
    site.cohort = newest + 1
    site.calm, site.calm_until = "it refused one more connection just now", now + CALM * (1 + 0.2 * chance())
    return True


def widen(site: Site) -> None:
    """A message was answered."""
    state = site.condition
    if state.window and state.window < len(site.sessions) + 1:  # one that is not used up tells nothing
        state.window += 1 / state.window
        if state.window >= site.limits.force.max_smtp_out:
            state.window = 0.0


def room(site: Site, now: float, is_saturated: bool) -> tuple[int, str]:
    """(sessions that may be opened now; what keeps it from being more)."""
    sessions = len(site.sessions)
    state = site.condition
    if site.calm_until > now:
        return 0, site.calm
    limit, held = site.limits.force.max_smtp_out, "max-smtp-out"
    if site.limits.force.max_smtp_out < site.policy.max_smtp_out and state.mode != "normal":
        held = "backoff-max-smtp-out"
    if state.window and int(state.window) < limit:
        limit, held = int(state.window), "it refused more connections"
    if state.failures:
        limit, held = 1, "one connection goes first after a failure"
    # Slow start: as many more as are open already. A queue is often empty before a second session is.
    opening = site.opening
    established = sessions - opening
    if is_saturated and established >= ENOUGH:
        return 0, ""
    slowly = (2 if is_saturated else max(2, established)) - opening
    return min(limit - sessions, slowly), held if limit <= sessions else ""
