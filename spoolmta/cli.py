"""The command line: parse, call one function, print. Tables for a terminal, tab-separated lines otherwise, `--json` for
programs. Errors are sentences on stderr; the exit status is the error's (sysexits)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import click
import msgspec

from spoolmta import __version__
from spoolmta.errors import ConfigError, DataError, SpoolError, SpoolmtaError, UnavailableError, UsageError
from spoolmta.model import Config
from spoolmta.spool import audit as spool_audit
from spoolmta.spool.audit import Item
from spoolmta.spool.layout import Layout

SEARCHED = ("etc/spoolmta.toml", "/etc/spoolmta/spoolmta.toml")


class Group(click.Group):
    """A group whose errors are our sentences and exit statuses."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SpoolmtaError as error:
            fail(error)


def fail(error: SpoolmtaError) -> NoReturn:
    for line in str(error).splitlines():
        click.echo(line if isinstance(error, ConfigError) else f"spoolmta: {line}", err=True)
    sys.exit(error.exit_status)


def main() -> None:
    """Entry point. A closed pipe (`| head`) is no error."""
    try:
        cli.main(prog_name="spoolmta", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except PermissionError as error:
        fail(UnavailableError(f"no permission to read {error.filename}: run this as the user that runs spoolmta"))
    except KeyboardInterrupt:
        sys.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spoolmta")
@click.option("--config", "path", metavar="PATH", help="Configuration file [$SPOOLMTA_CONFIG, etc/spoolmta.toml, ...].")
@click.pass_context
def cli(context: click.Context, path: str | None) -> None:
    """An outbound mail server with many VirtualMTAs."""
    context.obj = path


def config_path(given: str | None) -> str:
    """The configuration file in use: the one given, $SPOOLMTA_CONFIG, or the first that exists."""
    if given:
        return given
    if os.environ.get("SPOOLMTA_CONFIG"):
        return os.environ["SPOOLMTA_CONFIG"]
    for path in SEARCHED:
        if os.path.exists(path):
            return path
    raise ConfigError(f"no configuration: give --config PATH, set $SPOOLMTA_CONFIG, or write {' or '.join(SEARCHED)}")


def load(context: click.Context) -> Config:
    from spoolmta import config

    return config.load(config_path(context.obj))


def layout_of(context: click.Context) -> Layout:
    """The spool of the configuration, for commands that only read it."""
    from spoolmta.spool.layout import check_format

    root = load(context).spool
    if not os.path.isdir(os.path.join(root, "queue")):
        raise UnavailableError(f"the spool {root} has not been used yet: start `spoolmta run` first")
    check_format(root)
    return Layout(root)


def show(rows: Iterable[dict[str, Any]], as_json: bool, empty: str) -> None:
    """Print rows of one shape: JSON lines' array, a table on a terminal, tab-separated lines with a header else."""
    listed = list(rows)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(listed)).decode())
        return
    if not listed:
        click.echo(empty)
        return
    if not sys.stdout.isatty():
        click.echo("\t".join(listed[0]))
        for row in listed:
            click.echo("\t".join(plain(value) for value in row.values()))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, value in listed[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(plain(value)) for value in row.values()))
    Console().print(table)


def plain(value: object) -> str:
    """A value as one harmless word or line: addresses and replies come from strangers."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if text.isprintable() else "".join(ch if ch.isprintable() else " " for ch in text)


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


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
    from spoolmta import policy

    config = load(context)
    for warning in policy.warnings(config):
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


@cli.group(cls=Group)
def queue() -> None:
    """The queue, with or without the system running."""


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
