"""The queue, looked at: listed, counted, shown, audited."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from spoolmta.cli.choice import chosen, filters
from spoolmta.cli.frame import Group, cli, json_option, layout_of, moment, plain, show
from spoolmta.errors import DataError
from spoolmta.spool import audit as spool_audit
from spoolmta.spool.audit import Item
from spoolmta.spool.layout import Layout


@cli.group(cls=Group)
def queue() -> None:
    """The queue, with or without the system running."""


@queue.command("list")
@filters
@click.option("--max-items", default=100, show_default=True, help="At most so many messages.")
@click.pass_context
def queue_list(context: click.Context, /, as_json: bool, max_items: int, **choice: str) -> None:
    """Messages in the queue, oldest first."""
    layout = layout_of(context)
    items = sorted(chosen(layout, **choice), key=lambda item: item.received)
    rows = []
    for item in items[:max_items]:
        found = spool_audit.envelope(layout, item)
        envelope = found[0] if found else None
        rows.append(
            {
                "id": item.id,
                "queue": item.queue,
                "from": envelope.sender if envelope else "",
                "to": [r.address for r in envelope.recipients if r.domain == item.domain][:3] if envelope else "",
                "recipients": item.recipients,
                "bytes": item.size,
                "accepted": moment(item.received),
                "attempts": item.attempts,
                "due": moment(item.due),
            }
        )
    show(rows, as_json, "the queue is empty")
    if len(items) > max_items and not as_json:
        click.echo(f"... and {len(items) - max_items} more (--max-items)")


@queue.command("count")
@filters
@click.pass_context
def queue_count(context: click.Context, /, as_json: bool, **choice: str) -> None:
    """Messages and recipients per queue."""
    rows: dict[str, dict[str, Any]] = {}
    for item in chosen(layout_of(context), **choice):
        row = rows.setdefault(
            item.queue,
            {
                "queue": item.queue,
                "messages": 0,
                "recipients": 0,
                "bytes": 0,
                "deferred": 0,
                "oldest": item.received,
                "next_due": 0,
            },
        )
        row["messages"] += 1
        row["recipients"] += item.recipients
        row["bytes"] += item.size
        row["deferred"] += item.attempts > 0
        row["oldest"] = min(row["oldest"], item.received)
        if item.due:
            row["next_due"] = min(row["next_due"] or item.due, item.due)
    listed = sorted(rows.values(), key=lambda row: (-row["recipients"], row["queue"]))
    if not as_json:
        for row in listed:
            row["oldest"], row["next_due"] = moment(row["oldest"]), moment(row["next_due"])
    show(listed, as_json, "the queue is empty")


@queue.command("show")
@click.argument("name", metavar="ID|DOMAIN/VMTA")
@json_option
@click.pass_context
def queue_show(context: click.Context, name: str, as_json: bool) -> None:
    """One message (by its id, the msgId of the log), or one queue."""
    layout = layout_of(context)
    if "/" in name:
        domain, _, vmta = name.partition("/")
        items = list(spool_audit.items(layout, vmta, domain.lower()))
    else:
        items = [item for item in spool_audit.items(layout) if item.id == name]
    if not items:
        raise DataError(f"nothing in the queue is called {name}")
    shown = [describe(layout, item) for item in sorted(items, key=lambda item: item.received)[:100]]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    for number, one in enumerate(shown):
        if number:
            click.echo()
        for key, value in one.items():
            click.echo(f"{key + ':':<12} {plain(value)}")


def describe(layout: Layout, item: Item) -> dict[str, Any]:
    """Everything an operator wants to know of one entry."""
    found = spool_audit.envelope(layout, item)
    known: dict[str, Any] = {"id": item.id, "queue": item.queue}
    if found is not None:
        envelope, header = found
        subject = [
            line for line in header.decode("utf-8", "replace").splitlines() if line.lower().startswith("subject:")
        ]
        known |= {
            "from": envelope.sender,
            "waiting for": spool_audit.unsettled(layout, item, envelope),
            "job": envelope.job,
            "envid": envelope.envid,
            "subject": subject[0][8:].strip() if subject else "",
        }
    return known | {
        "bytes": item.size,
        "accepted": moment(item.received),
        "attempts": item.attempts,
        "due": moment(item.due) or "now",
        "file": spool_audit.path_of(layout, item),
    }


@queue.command("audit")
@json_option
@click.pass_context
def queue_audit(context: click.Context, as_json: bool) -> None:
    """Check that everything accepted is accounted for; exit status 0 if so, 1 if not."""
    result = spool_audit.audit(layout_of(context))
    if as_json:
        values = msgspec.structs.asdict(result) | {"difference": result.difference, "balanced": result.balanced}
        click.echo(msgspec.json.encode(values).decode())
    else:
        click.echo(
            f"accepted {result.accepted} = delivered {result.delivered} + bounced {result.bounced}"
            f" + expired {result.expired} + deleted {result.deleted} + quarantined {result.quarantined}"
            f" + queued {result.queued}"
        )
        click.echo("balanced" if result.balanced else f"NOT BALANCED: difference {result.difference}")
    if not result.balanced:
        sys.exit(1)
