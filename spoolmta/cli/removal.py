"""Mail taken out of the queue: deleted, bounced, moved to another VMTA."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from spoolmta.clearance import Chosen, Learned, Outcome
from spoolmta.cli.choice import SHOWN, Meant, filters, meant, show_meant
from spoolmta.cli.queue import queue
from spoolmta.cli.switches import become_the_user, who
from spoolmta.errors import DataError, UsageError
from spoolmta.journal import read as read_journal
from spoolmta.model import Config
from spoolmta.spool.layout import Layout


def removing(command: Callable[..., None]) -> Callable[..., None]:
    """The options of all commands that take mail out."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask, also on a terminal."),
        click.option("--dry-run", is_flag=True, help="Only show how many messages it would be, and which."),
    ):
        command = option(command)
    return filters(command)


def clear(
    context: click.Context,
    verb: str,
    choice: dict[str, str],
    options: dict[str, Any],
    work: Callable[[Config, Layout, str, list[Meant]], Outcome],
    prepare: Callable[[Config], None] = lambda _: None,
) -> None:
    """Choose, show or ask, and do `work` for each VMTA."""
    if not any(choice.values()):
        raise UsageError(f"queue {verb} needs at least one of --vmta, --domain, --job, --rcpt, --orig, --older-than")
    config, layout = become_the_user(context)
    prepare(config)
    found = [one for one in meant(layout, choice) if one.item.vmta != options.get("target")]
    total = sum(one.recipients for one in found)
    if options["dry_run"]:
        show_meant(found, verb, total, options["as_json"])
        return
    if not options["yes"] and sys.stdin.isatty() and found:
        click.confirm(f"{verb} {len(found)} messages for {total} recipients?", abort=True)
    done = Outcome()
    for vmta in sorted({one.item.vmta for one in found}):
        done.add(work(config, layout, vmta, [one for one in found if one.item.vmta == vmta]))
    if options["as_json"]:
        click.echo(msgspec.json.encode(done).decode())
        return
    click.echo(f"{verb}: {done.messages} messages for {done.recipients} recipients")
    if done.skipped:
        click.echo(f"{len(done.skipped)} skipped: being sent, or gone meanwhile: {', '.join(done.skipped[:SHOWN])}")


def remove(
    context: click.Context, verb: str, choice: dict[str, str], options: dict[str, Any], kind: str, text: str
) -> None:
    from spoolmta import standin

    addresses = [choice["rcpt"].lower()] if choice["rcpt"] else []

    def work(config: Config, layout: Layout, vmta: str, found: list[Meant]) -> Outcome:
        entries = [Chosen(one.item.domain, one.item.name, addresses) for one in found]
        return standin.remove(config, layout, vmta, entries, kind, text)

    clear(context, verb, choice, options, work)


def told(verb: str, choice: dict[str, str], reason: str) -> str:
    """The command as it was given, for the log."""
    words = [word for key, value in choice.items() if value for word in ("--" + key.replace("_", "-"), value)]
    return f"{who()}: spoolmta queue {verb} {shlex.join(words)}" + (f" ({reason})" if reason else "")


@queue.command("delete")
@removing
@click.option("--reason", default="", metavar="TEXT", help="Why; stands in the log.")
@click.pass_context
def queue_delete(
    context: click.Context, /, as_json: bool, dry_run: bool, yes: bool, reason: str, **choice: str
) -> None:
    """Take messages out of the queue without telling their senders. They are `b` rows with 5.7.0 in the log.

    With --rcpt only that recipient. What is being sent is left alone, and told."""
    options = {"as_json": as_json, "dry_run": dry_run, "yes": yes}
    remove(context, "delete", choice, options, "delete", f"deleted by {told('delete', choice, reason)}")


@queue.command("bounce")
@removing
@click.option("--reason", default="", metavar="TEXT", help="What the log says.")
@click.pass_context
def queue_bounce(
    context: click.Context, /, as_json: bool, dry_run: bool, yes: bool, reason: str, **choice: str
) -> None:
    """Bounce messages: their senders hear of it as of every bounce. They are `b` rows with 5.0.0 in the log.

    With --rcpt only that recipient. What is being sent is left alone, and told."""
    options = {"as_json": as_json, "dry_run": dry_run, "yes": yes}
    remove(context, "bounce", choice, options, "bounce", reason or f"bounced by {told('bounce', choice, '')}")


@queue.command("move")
@click.option("--to", "target", required=True, metavar="VMTA", help="The VMTA that is to send them.")
@removing
@click.pass_context
def queue_move(context: click.Context, /, target: str, as_json: bool, dry_run: bool, yes: bool, **choice: str) -> None:
    """Move messages to another VMTA, with their attempts and due times. With --rcpt: those that have this recipient."""
    from spoolmta import standin

    target = target.lower()
    if choice["vmta"] == target:
        raise UsageError(f"these messages are {target}'s already")

    def check(config: Config) -> None:
        if target not in config.vmtas:
            raise DataError(f"there is no VMTA called {target}")

    def work(config: Config, layout: Layout, vmta: str, found: list[Meant]) -> Outcome:
        journal = read_journal(layout.journal(vmta))
        lines = [
            Learned(one.item.id, address, letter, count)
            for one in found
            if one.settled
            for address, (letter, count, _) in journal.settled[one.item.id].items()
            if address in one.settled
        ]
        standin.learn(config, layout, target, lines)
        done = standin.move(
            config, layout, vmta, [Chosen(one.item.domain, one.item.name, one.settled) for one in found], target
        )
        standin.wake(layout, target)
        return done

    options = {"as_json": as_json, "dry_run": dry_run, "yes": yes, "target": target}
    clear(context, "move", choice, options, work, check)
