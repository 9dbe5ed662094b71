"""What all commands share: the configuration, the spool, printing, errors. Tables for a terminal, tab-separated lines
otherwise, `--json` for programs. Errors are sentences on stderr; the exit status is the error's (sysexits)."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import click
import msgspec

from spoolmta import __version__
from spoolmta.errors import ConfigError, SpoolmtaError, UnavailableError, UsageError
from spoolmta.model import Config
from spoolmta.spool.layout import Layout

SEARCHED = ("etc/spoolmta.toml", "/etc/spoolmta/spoolmta.toml")


MODULES = (
    "system", "queue", "log", "report", "figures", "switches", "removal", "explain", "classify", "doctor", "dkim",
)  # fmt: skip
"""Where commands are, those that need least first: a script asks `status` often, and all of them take 0.2 s to load."""


class Group(click.Group):
    """A group whose errors are our sentences and exit statuses, and whose commands are loaded when they are wanted."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module in MODULES:
            if (found := super().get_command(ctx, cmd_name)) is not None:
                return found
            importlib.import_module(f"spoolmta.cli.{module}")
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        for module in MODULES:
            importlib.import_module(f"spoolmta.cli.{module}")
        return super().list_commands(ctx)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SpoolmtaError as error:
            fail(error)
        except BrokenPipeError:  # `| head` is no error; click would make one of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


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
    """The spool of the configuration, for commands that only read it, by the clock of the system, if one runs."""
    from spoolmta import clock, disk
    from spoolmta.spool.layout import check_format

    root = load(context).spool
    if not os.path.isdir(os.path.join(root, "queue")):
        raise UnavailableError(f"the spool {root} has not been used yet: start `spoolmta run` first")
    check_format(root)
    layout = Layout(root)
    if disk.is_locked(layout.lock):
        with contextlib.suppress(FileNotFoundError), open(layout.clock, "rb") as file:  # it may just be starting
            clock.follow(file.read())
    return layout


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
