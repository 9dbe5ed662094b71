"""The queue, looked at: listed, counted, shown, audited."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from spoolmta.cli.choice import chosen, filters
from spoolmta.cli.frame import Group, cli, json_option, layout_of, load, moment, plain, show
from spoolmta.errors import DataError
from spoolmta.model import Config
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
@click.argument("name", metavar="ID|SITE/VMTA")
@json_option
@click.option("--max-items", default=20, show_default=True, help="At most so many messages of a queue.")
@click.pass_context
def queue_show(context: click.Context, name: str, as_json: bool, max_items: int) -> None:
    """One message (by its id, the msgId of the log), or one queue: its mode and who changed it, what holds it now, its
    last reply, its limits and where they stand, its messages."""
    layout = layout_of(context)
    known: dict[str, Any] = {}
    if "/" in name:
        known, items = look_at(load(context), layout, name)
        items = sorted(items, key=lambda item: item.received)[:max_items]
    else:
        items = [item for item in spool_audit.items(layout) if item.id == name]
        if not items:
            raise DataError(f"nothing in the queue is called {name}")
    shown = [describe(layout, item) for item in items]
    if as_json:
        answer = {"queue": known, "messages": shown} if known else shown
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return
    if known:
        print_queue(known)
    for number, one in enumerate(shown):
        if number or known:
            click.echo()
        print_values(one)


def look_at(config: Config, layout: Layout, name: str) -> tuple[dict[str, Any], list[Item]]:
    """What is known of a queue, and its messages; those of one domain, if it names a domain of a queue of several."""
    from spoolmta import condition, standin, view

    site, _, vmta = name.lower().partition("/")
    if vmta not in standin.vmtas(config, layout):
        raise DataError(f"{name}: there is no VMTA called {vmta}")
    found = standin.look(config, layout, vmta)
    states = {one["site"]: one for one in found["sites"]}
    known = states.get(site) or next((one for one in states.values() if site in one["domains"]), None)
    if known is None:
        raise DataError(f"there is no mail for {name}, and nothing is known of it")
    wanted = known["domains"] if known["site"] == site else [site]
    items = [item for domain in wanted for item in spool_audit.items(layout, vmta, domain)]
    state = msgspec.convert(known.pop("condition"), condition.Condition)
    known["limits"] = view.limits(config, vmta, known["site"], site, state)
    head = {"queue": f"{known['site']}/{vmta}", "process": found["process"]}
    return {**head, **known}, items


TIMES = ("mode_changed", "mode_until", "paused_until", "blocked_until", "next_retry")


def print_queue(known: dict[str, Any]) -> None:
    """A queue for a person: what is not the case is left out."""
    plainly = {key: value for key, value in known.items() if key not in ("limits", "events", "overrides", "site")}
    plainly |= {key: moment(known[key]) for key in TIMES}
    plainly["disabled_sources"] = [f"{one} ({hold['reason']})" for one, hold in known["disabled_sources"].items()]
    plainly["held_jobs"] = [held_words(one) for one in known["held_jobs"]]
    plainly["process"] = "running" if known["process"] else "none"
    print_values({key.replace("_", " "): value for key, value in plainly.items() if value or value == 0})
    for event in known["events"]:
        click.echo(f"{'event:':<17} {moment(event['time'])} {plain(event['text'])}")
    for limit in known["limits"]:
        if limit["where"] != "default" or limit["changed_by"]:
            because = f", changed by {limit['changed_by']}" if limit["changed_by"] else ""
            click.echo(f"{'limit:':<17} {limit['directive']} = {plain(limit['value'])} ({limit['where']}{because})")


def held_words(held: dict[str, Any]) -> str:
    """A paused job for a person."""
    end = f" until {moment(held['until'])}" if held["until"] else ""
    return f"{held['job']} ({held['messages']} messages, paused by {held['held_by']}{end})"


def print_values(values: dict[str, Any]) -> None:
    for key, value in values.items():
        click.echo(f"{key + ':':<17} {plain(value)}")


def describe(layout: Layout, item: Item) -> dict[str, Any]:
    """Everything an operator wants to know of one entry."""
    from spoolmta import entry, standin

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
    held = standin.held_jobs(layout, item.vmta).get(entry.flow(item.name)[1])
    if held is not None:
        known |= {"job paused by": held.reason, "job paused until": moment(held.until) or "it is resumed"}
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
