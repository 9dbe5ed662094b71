"""Commands about the system as a whole, and the tools that come with it."""

from __future__ import annotations

import os
import time
from typing import Any

import click
import msgspec

from spoolmta.cli.frame import Group, cli, config_path, json_option, load, moment, show
from spoolmta.errors import ConfigError, SpoolError, UnavailableError
from spoolmta.spool.layout import Layout


@cli.command()
@click.pass_context
def run(context: click.Context) -> None:
    """Run the whole system in the foreground. SIGTERM drains and stops, SIGHUP reloads."""
    from spoolmta import supervisor

    supervisor.run(os.path.abspath(config_path(context.obj)))


@cli.command()
@click.option("--directory", default="demo", show_default=True, help="Where the demonstration puts its files.")
@click.option("--messages", default=300, show_default=True, help="How many sample messages are dropped.")
def demo(directory: str, messages: int) -> None:
    """Show the main job with nothing else installed: test DNS, test receiver, three VMTAs, sample mail, a report."""
    from spoolmta import demo as demonstration

    demonstration.run(directory, messages)


@cli.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS:PORT]...")
@click.option("--host-name", default="sink.test", show_default=True, help="The name in the greeting.")
@click.option("--greeting", default=220, show_default=True, help="The reply code of the greeting.")
@click.option("--max-connections", default=0, help="From one address at a time; 0 is no limit.")
@click.option("--max-messages", default=0, help="On one connection; 0 is no limit.")
@click.option("--max-recipients", default=1000, show_default=True, help="In one transaction; 0 is no limit.")
@click.option("--pipelining/--no-pipelining", default=True, help="Offer PIPELINING, and so on.")
@click.option("--8bitmime/--no-8bitmime", "eight_bit_mime", default=True)
@click.option("--size/--no-size", default=True)
@click.option("--enhanced-status-codes/--no-enhanced-status-codes", default=True)
@click.option("--smtputf8/--no-smtputf8", default=True)
@click.option("--dsn/--no-dsn", default=True)
@click.option("--chunking/--no-chunking", default=False)
@click.option("--limits", default="", metavar="TEXT", help="Offer LIMITS with this, for example RCPTMAX=10.")
@click.option("--max-size", default=104_857_600, show_default=True, help="Of a message, in bytes.")
@click.option("--auth", default="", metavar="TEXT", help="Want a login by one of these mechanisms.")
@click.option("--login", default="user:password", show_default=True, help="The name and password of a good login.")
@click.option("--tls-certificate", default="", metavar="FILE", help="Offer STARTTLS; PEM with the key.")
@click.option("--tls-version", default="", metavar="VERSION", help="The only TLS version spoken, like 1.2.")
@click.option("--tls-client-ca", default="", metavar="FILE", help="Demand client certificates of this CA.")
@click.option("--starttls", default="ok", show_default=True, help="How: ok, 454, garbage, close or inject.")
@click.option("--reuse-port", is_flag=True, help="Let several processes listen on one address.")
@click.option("--record", default="", metavar="FILE", help="Append a JSON line for every message.")
@click.option("--maildir", default="", metavar="DIR", help="Keep the messages.")
@click.option("--stats", default="", metavar="FILE", help="Write the statistics every second.")
@json_option
def sink(addresses: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """A receiver for tests: the recipient's local part says what becomes of it (550-5.1.1@, once-451@, slow-2s@, ...).

    Listens on 127.0.0.1:2526 unless told otherwise, until SIGINT or SIGTERM; then shows what it saw."""
    from spoolmta import sink as receiver

    def tell(listening: list[str]) -> None:
        click.echo(f"listening on {', '.join(listening)}", err=True)

    seen = receiver.run(addresses or ("127.0.0.1:2526",), receiver.Options(**options), tell)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(seen)).decode())
        return
    show(({**pair, "ehlo": list(pair["ehlo"])} for pair in seen["pairs"]), False, "no connections")
    if seen["trouble"]:
        raise SpoolError(seen["trouble"])


@cli.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Validate the configuration; every error is printed with its file and line."""
    from spoolmta import bounce, policy

    config = load(context)
    for warning in [*policy.warnings(config), *bounce.warnings(config.bounces)]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{config_path(context.obj)}: OK, {len(config.vmtas)} VMTAs, {len(config.domains)} domain tables")


@cli.command()
@json_option
@click.option("--all", "everything", is_flag=True, help="Also VMTAs that have done nothing since the start.")
@click.pass_context
def status(context: click.Context, as_json: bool, everything: bool) -> None:
    """Live figures of the running system."""
    from spoolmta.control import ask

    answer = ask(Layout(load(context).spool).control, {"ask": "status"})
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return
    intake = answer["pickup"]
    click.echo(
        f"spoolmta {answer['version']}, process {answer['pid']}, since {moment(answer['started'])}"
        + (", stopping" if answer["stopping"] else "")
    )
    click.echo(
        f"pickup: {intake['messages']} messages for {intake['recipients']} recipients taken, "
        f"{intake['refused']} refused, {intake['left_alone']} left alone, {intake['waiting']} waiting"
        + (", STOPPED: the disk is full" if intake["disk_full"] else "")
    )
    for name in answer["unconfigured_queues"]:
        click.echo(f"queue {name} holds mail, but no VMTA of this name is configured")
    for pipe in answer["pipes"]:
        state = ", BROKEN: the log says why, and when it is started again" if pipe["state"] == "broken" else ""
        click.echo(f"pipe {pipe['name']}: {pipe['rows']} rows read, {pipe['unread']} bytes unread{state}")
    for one in answer["vmtas"]:
        if one["unsigned"]:
            click.echo(
                f"VMTA {one['name']}: {one['unsigned']} times a message went without a signature: the log says why"
            )
    counted = ("queued", "delivered", "bounced", "deferred", "expired", "connections")
    vmtas = [v for v in answer["vmtas"] if everything or v["state"] != "asleep" or any(v[key] for key in counted)]
    columns = ("name", "state", "pid", *counted, "restarts")
    show(({key: v[key] for key in columns} for v in vmtas), False, f"{len(answer['vmtas'])} VMTAs, all asleep")


@cli.command()
@click.pass_context
def reload(context: click.Context) -> None:
    """Check the configuration, then have the running system take it over."""
    from spoolmta.control import ask

    config = load(context)
    control = Layout(config.spool).control
    answer = ask(control, {"ask": "reload"})
    if answer["problems"]:
        raise ConfigError(answer["problems"])
    generation = answer["generation"]
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        state = ask(control, {"ask": "status"})
        behind = [v["name"] for v in state["vmtas"] if v["config_generation"] < generation]
        if not behind and state["pickup"]["config_generation"] >= generation:
            click.echo(f"generation {generation} is in force")
            return
        time.sleep(0.05)
    raise UnavailableError("the configuration was accepted, but not every process has taken it over after 10 seconds")


@cli.command()
@click.pass_context
def stop(context: click.Context) -> None:
    """Drain and stop the running system; returns when it is gone."""
    from spoolmta import disk
    from spoolmta.control import ask

    layout = Layout(load(context).spool)
    ask(layout.control, {"ask": "stop"})
    deadline = time.monotonic() + 60.0
    while disk.is_locked(layout.lock):
        if time.monotonic() > deadline:
            raise UnavailableError("spoolmta is still draining after 60 seconds")
        time.sleep(0.05)
    click.echo("stopped")


@cli.group(cls=Group)
def acct() -> None:
    """The accounting files."""


@acct.command()
@click.pass_context
def rotate(context: click.Context) -> None:
    """Begin new accounting files now."""
    from spoolmta.control import ask

    for path in ask(Layout(load(context).spool).control, {"ask": "rotate"})["files"]:
        click.echo(f"rotated {path}")
