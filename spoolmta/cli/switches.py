"""Switches: queues paused and resumed, their mode, tried again now; source addresses disabled and enabled."""

from __future__ import annotations

import getpass
import ipaddress
import os
import sys
import time
from typing import Any

import click

from spoolmta.cli.frame import Group, cli, json_option, layout_of, load, moment, show
from spoolmta.cli.queue import queue
from spoolmta.errors import DataError, UsageError
from spoolmta.model import Config
from spoolmta.spool.layout import Layout
from spoolmta.switch import BACKOFF, DISABLE, ENABLE, NORMAL, PAUSE, RESUME, Switch, matches

queues_argument = click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
for_option = click.option("--for", "duration", default="", metavar="DURATION", help="Until so much later.")
reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; `queue show` tells it.")


def who() -> str:
    """The operator, as far as it can be told."""
    name = os.environ.get("SUDO_USER", "")
    if not name:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            name = str(os.getuid())
    return f"operator {name}"


def become_the_user(context: click.Context) -> tuple[Config, Layout]:
    """What is written into the spool belongs to the user that runs the system, also if root gives the command."""
    from spoolmta import process, standin  # noqa: F401  (may not be readable any more afterwards)

    if sys.stdout.isatty():
        import rich.console
        import rich.table
        import rich.text  # noqa: F401
    layout = layout_of(context)
    config = load(context)
    process.drop_privileges(config.user)
    return config, layout


def until(duration: str) -> float:
    from spoolmta.config import parse_duration

    return time.time() + parse_duration(duration) if duration else 0.0


def targets(config: Config, layout: Layout, name: str) -> list[tuple[str, str]]:
    """SITE/VMTA, either with wildcards, to (pattern of sites, VMTA). Raises UsageError, DataError."""
    from spoolmta import standin

    site, slash, vmta = name.rpartition("/")
    if not slash or not site or not vmta:
        raise UsageError(f'expected a queue like "example.com/news" or "*/news", got "{name}"')
    found = [one for one in standin.vmtas(config, layout) if matches(vmta.lower(), one)]
    if not found:
        raise DataError(f"{name}: there is no VMTA called {vmta}")
    return [(site.lower(), one) for one in found]


def turn_all(context: click.Context, queues: tuple[str, ...], wanted: Switch, done: str, as_json: bool) -> None:
    """Turn a switch at all named queues, and say what came of it."""
    from spoolmta import standin

    config, layout = become_the_user(context)
    named = [target for name in queues for target in targets(config, layout, name)]
    tell([(vmta, site, standin.turn(config, layout, vmta, site, wanted)) for site, vmta in named], done, as_json)


def tell(answers: list[tuple[str, str, dict[str, Any]]], done: str, as_json: bool) -> None:
    """A line for each queue that was changed; one sentence for those whose state is another queue's."""
    rows = []
    for vmta, _, answer in answers:
        messages = {"messages": answer["messages"]} if "messages" in answer else {}
        rows += [{"queue": f"{site}/{vmta}", "done": done, **messages} for site in answer.get("changed", ())]
    if as_json or rows:
        show(rows, as_json, "")
    for vmta, _, answer in answers:
        if not as_json and not answer.get("changed") and "elsewhere" not in answer:
            click.echo(f"{vmta}: nothing to change")
    elsewhere = [
        f"the mail of {site} is in the queue {answer['elsewhere']}/{vmta} with that of other domains: name that one"
        for vmta, site, answer in answers
        if "elsewhere" in answer
    ]
    if elsewhere:
        raise DataError("\n".join(elsewhere))


@queue.command("pause")
@queues_argument
@for_option
@reason_option
@json_option
@click.pass_context
def queue_pause(context: click.Context, queues: tuple[str, ...], duration: str, reason: str, as_json: bool) -> None:
    """Send nothing from these queues (SITE/VMTA, `*` is any text) until they are resumed.

    What is being sent is finished. A wildcard also stands for queues that come later."""
    text = who() + (f": {reason}" if reason else "")
    turn_all(context, queues, Switch(PAUSE, text, until(duration)), "paused", as_json)


@queue.command("resume")
@queues_argument
@json_option
@click.pass_context
def queue_resume(context: click.Context, queues: tuple[str, ...], as_json: bool) -> None:
    """Let paused queues go on."""
    turn_all(context, queues, Switch(RESUME, who()), "resumed", as_json)


@queue.command("mode")
@click.argument("mode", type=click.Choice([NORMAL, BACKOFF]))
@queues_argument
@for_option
@reason_option
@json_option
@click.pass_context
def queue_mode(
    context: click.Context, mode: str, queues: tuple[str, ...], duration: str, reason: str, as_json: bool
) -> None:
    """Put queues into back-off (their backoff- limits hold), or back to normal."""
    if duration and mode == NORMAL:
        raise UsageError("--for goes with mode backoff only")
    text = who() + (f": {reason}" if reason else "")
    turn_all(context, queues, Switch(mode, text, until(duration)), mode, as_json)


@queue.command("retry")
@queues_argument
@json_option
@click.pass_context
def queue_retry(context: click.Context, queues: tuple[str, ...], as_json: bool) -> None:
    """Try the mail of these queues now that waits for its time."""
    from spoolmta import standin

    config, layout = become_the_user(context)
    named = [target for name in queues for target in targets(config, layout, name)]
    tell([(vmta, site, standin.retry(layout, vmta, site)) for site, vmta in named], "retried", as_json)


@cli.group(cls=Group)
def source() -> None:
    """The source addresses of the VMTAs."""


def holders(config: Config, address: str) -> list[tuple[str, str]]:
    """(VMTA, the address as it is written there) of all VMTAs that have a source address."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        raise UsageError(f'"{address}" is no IP address') from None
    found = [
        (vmta.name, host.address)
        for vmta in config.vmtas.values()
        for host in vmta.source_hosts
        if ipaddress.ip_address(host.address) == wanted
    ]
    if not found:
        raise DataError(f"no VMTA has the source address {address}")
    return found


def switch_source(context: click.Context, address: str, name: str, wanted: Switch, as_json: bool) -> None:
    from spoolmta import standin

    config, layout = become_the_user(context)
    site, _, vmta = name.rpartition("/")
    named = [one for one in holders(config, address) if matches(vmta, one[0])]
    if not site or not named:
        raise DataError(f"{name}: no VMTA of this name has the source address {address}")
    answers = []
    for one, text in named:
        switch = Switch(wanted.do, wanted.reason, wanted.until, text)
        answers.append((one, site, standin.turn(config, layout, one, site, switch)))
    if as_json:
        tell(answers, wanted.do, True)
        return
    for one, _, answer in answers:
        others = f", {len(answer['changed'])} queues changed" if "changed" in answer else ""
        click.echo(f"{address} {wanted.do}d for {site}/{one}{others}")
    tell([answer for answer in answers if "elsewhere" in answer[2]], wanted.do, False)


@source.command("disable")
@click.argument("address")
@click.argument("queue_name", metavar="[QUEUE]", default="*/*")
@for_option
@reason_option
@json_option
@click.pass_context
def source_disable(
    context: click.Context, address: str, queue_name: str, duration: str, reason: str, as_json: bool
) -> None:
    """Use a source address no more: for all queues, or for QUEUE. Mail goes out by the VMTA's other addresses, or
    waits."""
    text = who() + (f": {reason}" if reason else "")
    switch_source(context, address, queue_name.lower(), Switch(DISABLE, text, until(duration)), as_json)


@source.command("enable")
@click.argument("address")
@click.argument("queue_name", metavar="[QUEUE]", default="*/*")
@json_option
@click.pass_context
def source_enable(context: click.Context, address: str, queue_name: str, as_json: bool) -> None:
    """Use a source address again."""
    switch_source(context, address, queue_name.lower(), Switch(ENABLE, who()), as_json)


@source.command("list")
@json_option
@click.pass_context
def source_list(context: click.Context, as_json: bool) -> None:
    """The source addresses, and where they are disabled."""
    from spoolmta import standin

    config, layout = load(context), layout_of(context)
    rows = []
    for vmta in config.vmtas.values():
        known = standin.look(config, layout, vmta.name) if vmta.source_hosts else {}
        for host in vmta.source_hosts:
            orders = [order for order in known["orders"] if order["switch"].get("address") == host.address]
            held = {order["pattern"]: order["switch"] for order in orders}
            held |= {
                site["site"]: site["disabled_sources"].get(host.address)
                for site in known["sites"]
                if not any(matches(pattern, site["site"]) for pattern in held)
            }
            found = {name: hold for name, hold in held.items() if hold}
            rows += [
                {
                    "address": host.address,
                    "vmta": vmta.name,
                    "host_name": host.host_name or vmta.host_name or config.host_name,
                    "disabled_for": f"{name}/{vmta.name}" if name else "",
                    "until": moment(hold.get("until", 0.0)) if hold else "",
                    "reason": hold["reason"] if hold else "",
                }
                for name, hold in (found or {"": None}).items()
            ]
    show(rows, as_json, "no VMTA has a source address of its own")
