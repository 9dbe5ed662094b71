"""Switches: queues paused and resumed, their mode, tried again now; source addresses disabled and enabled."""

from __future__ import annotations

import getpass
import ipaddress
import os
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from spoolmta.cli.choice import Meant, entry_filters, meant, show_meant
from spoolmta.cli.frame import Group, cli, json_option, layout_of, load, moment, show
from spoolmta.cli.queue import queue
from spoolmta.errors import DataError, UsageError
from spoolmta.model import Config
from spoolmta.spool.layout import Layout
from spoolmta.switch import BACKOFF, DISABLE, ENABLE, EVERYWHERE, NORMAL, PAUSE, RESUME, Switch, matches

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
    process.drop_privileges(config)
    return config, layout


def until(context: click.Context, duration: str) -> float:
    from spoolmta import clock
    from spoolmta.config import parse_duration

    if not duration:
        return 0.0
    layout_of(context)  # by the clock of the system there
    return clock.now() + parse_duration(duration)


def targets(config: Config, layout: Layout, *names: str) -> list[tuple[str, str]]:
    """Each SITE/VMTA, either with wildcards, to (pattern of sites, VMTA). Raises UsageError, DataError."""
    from spoolmta import standin

    every = standin.vmtas(config, layout)
    found: dict[tuple[str, str], None] = {}
    for name in names:
        site, slash, vmta = name.rpartition("/")
        if not slash or not site or not vmta:
            raise UsageError(f'expected a queue like "example.com/news" or "*/news", got "{name}"')
        named = [one for one in every if matches(vmta.lower(), one)]
        if not named:
            raise DataError(f"{name}: there is no VMTA called {vmta}")
        found |= dict.fromkeys((site.lower(), one) for one in named)
    return [*found]


class Named(msgspec.Struct, frozen=True):
    """Which queues a command is about, as it was given, and how it is to answer."""

    queues: tuple[str, ...]
    vmta: str
    domain: str
    dry_run: bool
    as_json: bool

    def patterns(self) -> tuple[str, ...]:
        """The queues by name. Raises UsageError."""
        if self.queues and (self.vmta or self.domain):
            raise UsageError("name the queues as arguments or by --vmta and --domain, not both ways")
        if not (self.queues or self.vmta or self.domain):
            raise UsageError('which queues? Name them like "example.com/news" or "*/news", or give --vmta or --domain')
        return self.queues or (f"{self.domain or '*'}/{self.vmta or '*'}",)


def naming(command: Callable[..., None]) -> Callable[..., None]:
    """The ways to name queues, in the words of `Named`."""
    for option in reversed(
        (
            click.argument("queues", nargs=-1, metavar="[QUEUE]..."),
            click.option("--vmta", default="", help="The queues of this VMTA."),
            click.option("--domain", default="", help="The queues of this domain."),
            click.option("--dry-run", is_flag=True, help="Only show what it would be about."),
            json_option,
        )
    ):
        command = option(command)
    return command


def turn_all(context: click.Context, named: Named, wanted: Switch, done: str, verb: str) -> None:
    """Turn a switch at all named queues, and say what came of it."""
    from spoolmta import standin

    patterns = named.patterns()
    config, layout = become_the_user(context)
    act = standin.rehearse if named.dry_run else standin.turn
    answers = [
        (vmta, site, act(config, layout, vmta, site, wanted)) for site, vmta in targets(config, layout, *patterns)
    ]
    if named.dry_run:
        show_plan(answers, verb, named.as_json)
    else:
        tell(answers, done, named.as_json)


def turn_job(context: click.Context, named: Named, job: str, wanted: Switch, done: str, verb: str) -> None:
    """Pause or resume a job in one VMTA, or in all."""
    from spoolmta import entry, standin

    if named.queues or named.domain:
        raise UsageError(f"queue {verb} --job is about all queues of a VMTA: it goes with --vmta, or alone")
    wanted = msgspec.structs.replace(wanted, job=entry.job_hash(job), job_name=job)
    config, layout = become_the_user(context)
    vmtas = [vmta for _, vmta in targets(config, layout, f"{EVERYWHERE}/{named.vmta or '*'}")]
    if named.dry_run:
        show_plan([(one, "*", standin.rehearse_job(layout, one, wanted)) for one in vmtas], verb, named.as_json)
        return
    answers = [(one, standin.turn(config, layout, one, EVERYWHERE, wanted)) for one in vmtas]
    rows = [{"job": job, "vmta": vmta, "done": done} for vmta, answer in answers if answer["changed"]]
    show(rows, named.as_json, "nothing to change")


def show_plan(answers: list[tuple[str, str, dict[str, Any]]], verb: str, as_json: bool) -> None:
    """The queues a command would change, and the mail in each."""
    rows = {
        f"{one['site']}/{vmta}": {"ready": one["ready"] + one.get("held", 0), "waiting": one["waiting"]}
        for vmta, _, answer in answers
        for one in answer.get("changed", ())
    }
    show([{"queue": queue, **mail} for queue, mail in rows.items()], as_json, "nothing to change")
    if rows and not as_json:
        ready, waiting = (sum(mail[key] for mail in rows.values()) for key in ("ready", "waiting"))
        click.echo(f"would {verb} {len(rows)} queues with {ready} messages ready and {waiting} waiting")
    complain(answers)


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
    complain(answers)


def complain(answers: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Say where the state is that was meant, where it is another queue's. Raises DataError."""
    elsewhere = [
        f"the mail of {site} is in the queue {answer['elsewhere']}/{vmta} with that of other domains: name that one"
        for vmta, site, answer in answers
        if "elsewhere" in answer
    ]
    if elsewhere:
        raise DataError("\n".join(elsewhere))


@queue.command("pause")
@naming
@click.option("--job", default="", help="Hold the mail of this job instead, in all queues.")
@for_option
@reason_option
@click.pass_context
def queue_pause(context: click.Context, /, duration: str, reason: str, job: str, **named: Any) -> None:
    """Send nothing from these queues (SITE/VMTA, `*` is any text) until they are resumed; with --job nothing of a job.

    What is being sent is finished. A wildcard also stands for queues that come later, a job for mail that does."""
    wanted = Switch(PAUSE, who() + (f": {reason}" if reason else ""), until(context, duration))
    if job:
        turn_job(context, Named(**named), job, wanted, "paused", "pause")
    else:
        turn_all(context, Named(**named), wanted, "paused", "pause")


@queue.command("resume")
@naming
@click.option("--job", default="", help="Let the mail of this job go on.")
@click.pass_context
def queue_resume(context: click.Context, /, job: str, **named: Any) -> None:
    """Let paused queues go on, or a paused job."""
    if job:
        turn_job(context, Named(**named), job, Switch(RESUME, who()), "resumed", "resume")
    else:
        turn_all(context, Named(**named), Switch(RESUME, who()), "resumed", "resume")


@queue.command("mode")
@click.argument("mode", type=click.Choice([NORMAL, BACKOFF]))
@naming
@for_option
@reason_option
@click.pass_context
def queue_mode(context: click.Context, /, mode: str, duration: str, reason: str, **named: Any) -> None:
    """Put queues into back-off (their backoff- limits hold), or back to normal."""
    if duration and mode == NORMAL:
        raise UsageError("--for goes with mode backoff only")
    text = who() + (f": {reason}" if reason else "")
    turn_all(context, Named(**named), Switch(mode, text, until(context, duration)), mode, f"put into mode {mode}")


@queue.command("retry")
@naming
@entry_filters
@click.pass_context
def queue_retry(context: click.Context, /, job: str, rcpt: str, orig: str, older_than: str, **options: Any) -> None:
    """Try the mail of these queues now that waits for its time; with filters only what they choose, in these queues or
    in all."""
    from spoolmta import standin

    named = Named(**options)
    choice = {"job": job, "rcpt": rcpt, "orig": orig, "older_than": older_than}
    is_chosen = any(choice.values())
    is_anywhere = is_chosen and not (named.queues or named.vmta or named.domain)
    patterns = ("*/*",) if is_anywhere else named.patterns()
    config, layout = become_the_user(context)
    wanted = targets(config, layout, *patterns)
    if is_chosen:
        retry_some(config, layout, named, wanted, choice)
        return
    if named.dry_run:
        plans = [(vmta, site, standin.rehearse(config, layout, vmta, site, None)) for site, vmta in wanted]
        show_plan(plans, "retry", named.as_json)
    else:
        tell([(vmta, site, standin.retry(layout, vmta, site)) for site, vmta in wanted], "retried", named.as_json)


def retry_some(
    config: Config, layout: Layout, named: Named, wanted: list[tuple[str, str]], choice: dict[str, str]
) -> None:
    """Try chosen entries now."""
    from spoolmta import standin
    from spoolmta.clearance import Chosen

    patterns: dict[str, list[str]] = {}
    for site, vmta in wanted:
        patterns.setdefault(vmta, []).append(site)
    found = {vmta: meant_at(config, layout, vmta, sites, choice) for vmta, sites in patterns.items()}
    if named.dry_run:
        every = sorted((one for some in found.values() for one in some), key=lambda one: one.item.received)
        show_meant(every, "retry", sum(one.recipients for one in every), named.as_json)
        return
    answers = [
        (vmta, "", standin.retry_some(layout, vmta, [Chosen(one.item.domain, one.item.name) for one in some]))
        for vmta, some in found.items()
        if some
    ]
    if answers or named.as_json:
        tell(answers, "retried", named.as_json)
    else:
        click.echo("nothing in the queue is meant")


def meant_at(config: Config, layout: Layout, vmta: str, sites: list[str], choice: dict[str, str]) -> list[Meant]:
    """The entries of a VMTA that pass the filters, and wait at one of these sites or for a domain of this name."""
    from spoolmta import standin

    found = meant(layout, {"vmta": vmta, "domain": "", **choice})
    if EVERYWHERE in sites or not found:
        return found
    known = standin.look(config, layout, vmta)["sites"]
    site_of = {domain: one["site"] for one in known for domain in one["domains"]}

    def is_there(domain: str) -> bool:
        names = (domain, site_of.get(domain, domain))
        return any(matches(site, name) for site in sites for name in names)

    return [one for one in found if is_there(one.item.domain)]


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
    switch_source(context, address, queue_name.lower(), Switch(DISABLE, text, until(context, duration)), as_json)


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
