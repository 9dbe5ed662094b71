"""Every report there is."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from spoolmta.reports import amounts, pace, refusals
from spoolmta.reports.asking import Asked
from spoolmta.reports.report import Report


class Known(msgspec.Struct, frozen=True):
    """A report there is: what makes it, by what it puts rows together unless told otherwise, whether it can be told."""

    title: str
    make: Callable[[Asked], Report]
    by: str = ""
    is_fixed: bool = False


KNOWN = {
    "message-counts": Known("What became of the recipients", amounts.message_counts),
    "bounce-categories": Known("Why mail bounced or was deferred", refusals.bounce_categories),
    "delivery-times": Known("How long deliveries took", pace.delivery_times),
    "top-bounce": Known("Where most mail bounced, and why", refusals.top_bounce, by="domain"),
    "top-domains": Known("Where most mail went", amounts.top_domains, by="domain"),
    "top-rates": Known("The best minute, five minutes and hour", pace.top_rates),
    "vmta-summary": Known("What each VMTA did from which address", amounts.vmta_summary, by="vmta", is_fixed=True),
    "vmta-time-breakdown": Known("How long the deliveries of each VMTA took", pace.time_breakdown, by="vmta"),
    "vmta-top-bounce": Known(
        "Where most mail of each VMTA bounced", refusals.vmta_top_bounce, by="vmta", is_fixed=True
    ),
    "deferral-reasons": Known("Why mail was deferred", refusals.deferral_reasons),
    "campaign": Known("How far each job is", pace.campaign, by="job", is_fixed=True),
}
"""Every report, by its name."""


def report(name: str, asked: Asked) -> Report:
    """Make this report, by what it is put together unless told otherwise."""
    found = KNOWN[name]
    made = found.make(msgspec.structs.replace(asked, by=asked.by or found.by))
    made.name, made.title = name, found.title
    return made
