"""Which entries a command is about: the options that choose, and what they choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import click

from spoolmta.cli.frame import json_option
from spoolmta.spool import audit as spool_audit
from spoolmta.spool.audit import Item
from spoolmta.spool.layout import Layout


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose entries."""
    for option in reversed(
        (
            click.option("--vmta", default="", help="Only this VMTA."),
            click.option("--domain", default="", help="Only this recipient domain."),
            click.option("--job", default="", help="Only this job."),
            click.option("--rcpt", default="", help="Only messages to this recipient."),
            click.option("--orig", default="", help="Only messages from this sender."),
            click.option("--older-than", default="", metavar="DURATION", help="Only messages accepted longer ago."),
            json_option,
        )
    ):
        command = option(command)
    return command


def chosen(layout: Layout, vmta: str, domain: str, job: str, rcpt: str, orig: str, older_than: str) -> Iterable[Item]:
    """Entries that pass all filters. Files are opened only for what their names do not tell."""
    from spoolmta import entry
    from spoolmta.config import parse_duration

    before = time.time() - parse_duration(older_than) if older_than else None
    wanted = f",J={entry.job_hash(job)}" if job else ""
    for item in spool_audit.items(layout, vmta, domain.lower()):
        if (before is not None and item.received > before) or wanted not in item.name:
            continue
        if rcpt or orig or job:
            found = spool_audit.envelope(layout, item)
            if found is None:
                continue
            envelope = found[0]
            if job and envelope.job != job:
                continue
            if orig and envelope.sender.lower() != orig.lower():
                continue
            if rcpt and rcpt.lower() not in (r.address.lower() for r in envelope.recipients if r.domain == item.domain):
                continue
        yield item
