"""Which entries a command is about: the options that choose, and what they choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
import msgspec

from spoolmta.cli.frame import json_option, moment, show
from spoolmta.journal import Record, escape, folder
from spoolmta.journal import read as read_journal
from spoolmta.spool import audit as spool_audit
from spoolmta.spool.audit import Item
from spoolmta.spool.layout import Layout

SHOWN = 20


def entry_filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose entries by what they are, not by where they wait."""
    for option in reversed(
        (
            click.option("--job", default="", help="Only this job."),
            click.option("--rcpt", default="", help="Only messages to this recipient."),
            click.option("--orig", default="", help="Only messages from this sender."),
            click.option("--older-than", default="", metavar="DURATION", help="Only messages accepted longer ago."),
        )
    ):
        command = option(command)
    return command


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose entries."""
    command = entry_filters(json_option(command))
    command = click.option("--domain", default="", help="Only this recipient domain.")(command)
    return click.option("--vmta", default="", help="Only this VMTA.")(command)


def chosen(layout: Layout, vmta: str, domain: str, job: str, rcpt: str, orig: str, older_than: str) -> Iterable[Item]:
    """Entries that pass all filters. Files are opened only for what their names do not tell."""
    from spoolmta import clock, entry
    from spoolmta.config import parse_duration

    before = clock.now() - parse_duration(older_than) if older_than else None
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


class Meant(msgspec.Struct, frozen=True):
    """An entry the operator means: how many of its recipients are unsettled and meant, and which are settled."""

    item: Item
    recipients: int
    settled: list[str]


def meant(layout: Layout, choice: dict[str, str]) -> list[Meant]:
    """The entries that pass the filters, and have any such recipient that is not settled yet; oldest first."""
    journals: dict[str, Record] = {}
    wanted = escape(choice["rcpt"]).lower()
    found = []
    for item in chosen(layout, **choice):
        if item.vmta not in journals:
            journals[item.vmta] = read_journal(layout.journal(item.vmta))
        settled = [one for one in journals[item.vmta].addresses(item.id) if folder(one) == item.domain]
        count = item.recipients - len(settled)
        if wanted:
            count = 0 if wanted in (one.lower() for one in settled) else 1
        if count > 0:
            found.append(Meant(item, count, settled))
    return sorted(found, key=lambda one: one.item.received)


def show_meant(found: list[Meant], verb: str, total: int, as_json: bool) -> None:
    rows = [
        {
            "id": one.item.id,
            "queue": one.item.queue,
            "recipients": one.recipients,
            "bytes": one.item.size,
            "accepted": moment(one.item.received),
            "attempts": one.item.attempts,
        }
        for one in found[:SHOWN]
    ]
    if as_json:
        answer = {"messages": len(found), "recipients": total, "first": rows}
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return
    show(rows, False, "nothing in the queue is meant")
    if len(found) > SHOWN:
        click.echo(f"... and {len(found) - SHOWN} more")
    click.echo(f"would {verb} {len(found)} messages for {total} recipients")
