"""What would become of a message, and why. Nothing is sent."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import click
import msgspec

from spoolmta.cli.frame import cli, json_option, layout_of, load, moment, plain
from spoolmta.errors import DataError, UnavailableError, UsageError
from spoolmta.model import Config, Envelope
from spoolmta.spool.layout import Layout

if TYPE_CHECKING:
    from spoolmta.condition import Condition
    from spoolmta.policy import PolicyTable


@cli.command()
@click.argument("file", required=False, metavar="[FILE.eml]")
@click.option("--domain", default="", help="A recipient domain instead of a message.")
@click.option("--vmta", default="", help="With --domain: the VMTA.")
@click.option("--source", "source_name", default="pickup", show_default=True, help="The way in.")
@click.option("--mx", multiple=True, metavar="HOST", help="Take these as the MX hosts, and ask no name server.")
@click.option("--all", "everything", is_flag=True, help="Also the limits that nobody configured.")
@json_option
@click.pass_context
def explain(
    context: click.Context,
    file: str | None,
    domain: str,
    vmta: str,
    source_name: str,
    mx: tuple[str, ...],
    everything: bool,
    as_json: bool,
) -> None:
    """Say which VMTA a message gets and why, and for each recipient domain the queue it goes to, every limit in force
    with the file and line where it stands, and when it would be tried. Sends nothing."""
    if bool(file) == bool(domain) or (domain and not vmta):
        raise UsageError("explain takes a FILE.eml, or --domain with --vmta")
    config = load(context)
    shown: dict[str, Any] = {}
    if file:
        shown, recipients = of_message(config, file, source_name)
        vmta = shown["vmta"]
    else:
        vmta, recipients = vmta.lower(), {domain.lower(): []}
        if vmta not in config.vmtas:
            raise DataError(f"there is no VMTA called {vmta}")
    if vmta:
        states, orders = known(context, config, vmta)
        routes = asyncio.run(routes_of(config, vmta, [*recipients], mx))
        shown["domains"] = [
            {"recipients": addresses, **of_domain(config, vmta, name, routes[name], states, orders)}
            for name, addresses in recipients.items()
        ]
        tell_of_job(shown, orders)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
    else:
        tell(shown, everything)


def of_message(config: Config, path: str, source_name: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """(what the message says and which VMTA it gets, its recipients by domain)."""
    from spoolmta import message, reasons

    source = config.sources.get(source_name)
    if source is None:
        raise DataError(f"there is no source called {source_name}")
    try:
        with click.open_file(path, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}") from None
    parsed = message.parse(data)
    envelope: Envelope = parsed.envelope
    choice = reasons.why_vmta(config, source, parsed, data)
    recipients: dict[str, list[str]] = {}
    for recipient in envelope.recipients:
        recipients.setdefault(recipient.domain, []).append(recipient.address)
    shown = {
        "from": envelope.sender,
        "source": source_name,
        "job": envelope.job if source.process_x_job else "",
        "vmta": choice.vmta,
        "pool": choice.pool,
        "priority": choice.priority,
        "refused": choice.refused,
        "why": [msgspec.to_builtins(reason) for reason in choice.reasons],
    }
    return shown, recipients


def known(context: click.Context, config: Config, vmta: str) -> tuple[dict[str, dict[str, Any]], list[Any]]:
    """The queues of a VMTA as they are now, and the orders that stand for others; nothing of an unused spool."""
    from spoolmta import standin
    from spoolmta.switch import Order

    try:
        layout: Layout = layout_of(context)
    except UnavailableError:
        return {}, []
    found = standin.look(config, layout, vmta)
    return {one["site"]: one for one in found["sites"]}, msgspec.convert(found["orders"], list[Order])


def tell_of_job(shown: dict[str, Any], orders: list[Any]) -> None:
    """A job that is paused holds the message before anything else does."""
    from spoolmta import clock, entry, switch

    held = switch.held_jobs(orders, clock.now()).get(entry.job_hash(shown.get("job", "")))
    if held is not None:
        end = f"after {moment(held.until)}" if held.until else "when somebody resumes the job"
        for one in shown["domains"]:
            one["when"] = f"{end} (job paused by {held.reason})"


async def routes_of(
    config: Config, vmta: str, domains: list[str], mx: tuple[str, ...]
) -> dict[str, tuple[str, list[str], str]]:
    """By domain: its site, the hosts that are tried, and why there are none."""
    from spoolmta.policy import PolicyTable
    from spoolmta.resolver import Resolver, Unroutable

    table = PolicyTable(config, vmta)
    resolver = Resolver(config.nameservers, random.Random(), patience=5.0)
    found: dict[str, tuple[str, list[str], str]] = {}
    for domain in domains:
        if mx and not table.resolve("", domain).smtp_hosts:
            names = [host.lower().rstrip(".") for host in mx]
            found[domain] = table.site_of(domain, names), [*mx], ""
            continue
        try:
            located, route = await resolver.locate(table, domain)
        except Unroutable as error:
            found[domain] = table.site_of(domain, ()), [], error.failure.text
        else:
            found[domain] = located.site, [host.name for host in route.hosts], ""
    return found


def of_domain(
    config: Config,
    vmta: str,
    domain: str,
    route: tuple[str, list[str], str],
    states: dict[str, dict[str, Any]],
    orders: list[Any],
) -> dict[str, Any]:
    """What holds for one recipient domain."""
    from spoolmta import clock, condition, switch, view
    from spoolmta.policy import PolicyTable

    site, hosts, failure = route
    table = PolicyTable(config, vmta)
    now = clock.now()
    if site in states:
        queue = states[site]
    else:
        state = condition.Condition()
        for order in switch.standing(orders, site, now):
            switch.apply(state, table.resolve(site, site), now, order)
        queue = view.of_condition(site, state, now)
    state = msgspec.convert(queue["condition"], condition.Condition)
    limits = view.limits(config, vmta, site, domain, state)
    shared = view.limits(config, vmta, site, site, state) if site != domain else []
    return {
        "domain": domain,
        "queue": f"{site}/{vmta}",
        "hosts": hosts,
        "no_hosts_because": failure,
        "mode": queue["mode"],
        "paused": queue["paused"],
        "ahead": queue["ready"],
        "when": instead(table, vmta, site, domain, state) or when(queue, failure),
        "limits": limits,
        "limits_of_the_queue": [limit for limit in shared if limit not in limits],
    }


def instead(table: PolicyTable, vmta: str, site: str, domain: str, state: Condition) -> str:
    """Which VMTA sends it instead, and where that stands; "" if none does."""
    from spoolmta import condition

    target = condition.goes_to(table.resolve(site, domain), state)
    if not target or target == vmta:
        return ""
    settings = table.explain(site, domain)
    fields = ("backoff_reroute_to_virtual_mta", "reroute_to_virtual_mta")[state.mode != condition.BACKOFF :]
    field = next(field for field in fields if settings[field].value)
    setting = settings[field]
    return f"it goes to {target} instead ({field.replace('_', '-')}, {setting.file}:{setting.line})"


def when(queue: dict[str, Any], failure: str) -> str:
    """When it would be tried, as far as that is known now."""
    if failure:
        return f"when its mail hosts are known: {failure}"
    if queue["paused"]:
        end = f"after {moment(queue['paused_until'])}" if queue["paused_until"] else "when somebody resumes the queue"
        return f"{end} (paused by {queue['paused_by']})"
    if queue["blocked_until"]:
        return f"after {moment(queue['blocked_until'])} (retry-after, last failure: {queue['last_failure']})"
    if queue["ready"]:
        return f"after {queue['ready']} others" + (f", held by {queue['held_by']}" if queue["held_by"] else "")
    return "at once"


def tell(shown: dict[str, Any], everything: bool) -> None:
    """For a person."""
    if "why" in shown:
        click.echo(f"from:    {plain(shown['from']) or '<>'}")
        click.echo(f"VMTA:    {shown['vmta'] or 'none, the message is refused'}")
        for reason in shown["why"]:
            click.echo(f"         {reason['rule']}: {plain(reason['says'])}")
    for one in shown.get("domains", ()):
        click.echo()
        click.echo(f"domain:  {one['domain']}")
        if one["recipients"]:
            click.echo(f"to:      {plain(one['recipients'])}")
        click.echo(f"queue:   {one['queue']}, mode {one['mode']}" + (", paused" if one["paused"] else ""))
        click.echo(f"hosts:   {plain(one['hosts']) or 'none: ' + plain(one['no_hosts_because'])}")
        click.echo(f"when:    {plain(one['when'])}")
        for title, limits in (("limit", one["limits"]), ("of the queue", one["limits_of_the_queue"])):
            for limit in limits:
                if everything or limit["where"] != "default" or limit["changed_by"]:
                    because = f", changed by {limit['changed_by']}" if limit["changed_by"] else ""
                    click.echo(f"{title}: {limit['directive']} = {plain(limit['value'])} ({limit['where']}{because})")
