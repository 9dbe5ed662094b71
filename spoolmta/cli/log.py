"""The accounting log, searched and followed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import click
import msgspec

from spoolmta.cli.frame import Group, cli, load, plain
from spoolmta.errors import UsageError
from spoolmta.export import FORMS, Form
from spoolmta.log import Follower, Search, follow, keep_position, read_position
from spoolmta.sought import Sieve, Sought

PAUSE = 0.2
TYPES = {"d", "b", "t", "tq", "r", "rb", "rs", "f"}
BLOCK = 65_536


@cli.group(cls=Group)
def log() -> None:
    """The accounting log: current, rotated and compressed files, with or without the system running."""


def choosing(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose rows, and the log."""
    texts = ("rcpt", "recipient"), ("orig", "sender"), ("job", "job"), ("vmta", "VMTA"), ("domain", "recipient domain")
    options = [click.option(f"--{name}", default="", help=f"Only this {what}; * is any text.") for name, what in texts]
    options += [
        click.option("--category", default="", help="Only this bounce category; * is any text."),
        click.option("--type", "types", default="", help="Only these record types, like d or b,t."),
        click.option("--moved-to", default="", metavar="FOLDER", help="Where else rotated files lie."),
        click.argument("file", default="", metavar="[FILE]"),
    ]
    return with_options(command, options)


def forms(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how rows are written, and how many."""
    options = [
        click.option("--csv", "form", flag_value="csv", default=True, help="CSV, safe for spreadsheets (the default)."),
        click.option("--json", "form", flag_value="json", help="A JSON object a line, every value as it is."),
        click.option("--xml", "form", flag_value="xml", help="XML."),
        click.option("--max", "most", type=click.IntRange(1), metavar="N", help="At most so many rows."),
    ]
    return with_options(command, options)


def times(command: Callable[..., None]) -> Callable[..., None]:
    since = 'Not before: "2026-11-26 14:00", or how long ago, like 2h.'
    options = [
        click.option("--since", default="", metavar="TIME", help=since),
        click.option("--until", default="", metavar="TIME", help="Not after."),
    ]
    return with_options(command, options)


def with_options(command: Callable[..., None], options: list[Callable[..., Any]]) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)
    return command


@log.command("find")
@choosing
@forms
@times
@click.pass_context
def log_find(
    context: click.Context,
    /,
    file: str,
    moved_to: str,
    form: str,
    most: int | None,
    since: str,
    until: str,
    **texts: str,
) -> None:
    """Rows of the log (the first in the configuration, or FILE), oldest first."""
    sieve = Sieve(sought_between(texts, since, until))
    path, done = places_of(context, file, moved_to)
    search = Search(path, sieve, done)
    output = Output(form, most)
    output.begin()
    for columns, values in search.rows():
        output.row(output.form.row(columns, values))
        if output.is_done:
            break
    output.end()
    tell_skipped(search.skipped)


@log.command("follow")
@choosing
@forms
@click.option("--position", "position_file", default="", metavar="FILE", help="Go on where this file says; keep it.")
@click.option(
    "--on-missing",
    type=click.Choice(["error", "continue"]),
    default="error",
    help="Where a file is gone that was not read to its end: say so, or go on with those that came later.",
)
@click.option("--from-start", is_flag=True, help="Begin with the oldest row, not with what comes from now on.")
@click.pass_context
def log_follow(
    context: click.Context,
    /,
    file: str,
    moved_to: str,
    form: str,
    most: int | None,
    position_file: str,
    on_missing: Literal["error", "continue"],
    from_start: bool,
    **texts: str,
) -> None:
    """Rows of the log as they come, over rotations, until SIGINT, SIGTERM or nobody reads them any more.

    With --position a row is repeated only if this was killed between writing it and keeping the position."""
    sieve = Sieve(sought(texts))
    output = Output(form, most)
    kept = read_position(position_file) if position_file else None
    begin: Literal["start", "end"] = "start" if from_start else "end"
    path, done = places_of(context, file, moved_to)
    rows = follow(path, kept or begin, wait=False, on_missing=on_missing, moved_to=done)
    with output.until_signalled(), rows:
        if position_file and kept is None:
            keep_position(position_file, rows.position)
        output.begin()
        output.flush()
        while not output.is_done and not is_closed(sys.stdout.fileno()):
            write_present(rows, sieve, output, position_file)
            if not output.is_done:
                time.sleep(PAUSE)
        output.end()
        tell_skipped(rows.skipped)


def write_present(rows: Follower, sieve: Sieve, output: Output, position_file: str) -> None:
    """What there is now, and the position behind it; for a long log the position is kept once a second."""
    before, kept = rows.position, time.monotonic()
    for columns, values in rows.rows(sieve):
        output.row(output.form.row(columns, values))
        if output.is_done:
            break
        if position_file and time.monotonic() - kept > 1:
            output.flush()
            keep_position(position_file, rows.position)
            kept = time.monotonic()
    output.flush()
    if position_file and rows.position != before:
        keep_position(position_file, rows.position)


class Output:
    """Rows in one form to the standard output, in blocks. What controls a terminal does not reach one.

    A signal ends `log follow` at the next row, with what was written and the position in agreement; only what waits for
    a reader is not written any more.
    """

    def __init__(self, form: str, most: int | None) -> None:
        is_terminal = sys.stdout.isatty()
        self.form: Form = FORMS[form](plain if is_terminal else str)
        self._left = most
        self._block: list[str] = []
        self._size = 0
        self._is_signalled = False

    def begin(self) -> None:
        self._add(self.form.begin())

    def row(self, text: str) -> None:
        self._add(text)
        if self._left is not None:
            self._left -= 1

    def end(self) -> None:
        self._add(self.form.end())
        self.flush()

    def _add(self, text: str) -> None:
        self._block.append(text)
        self._size += len(text)
        if self._size > BLOCK:
            self.flush()

    def flush(self) -> None:
        data = memoryview("".join(self._block).encode("utf-8", "replace"))
        self._block.clear()
        self._size = 0
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        while data:
            if poll.poll(PAUSE * 1000):
                data = data[os.write(sys.stdout.fileno(), data[: select.PIPE_BUF]) :]  # so much never blocks
            elif self._is_signalled:
                raise Broken

    @property
    def is_done(self) -> bool:
        """Whether there is to be no further row."""
        return self._is_signalled or (self._left is not None and self._left <= 0)

    @contextlib.contextmanager
    def until_signalled(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        with contextlib.suppress(Broken):
            yield

    def _signalled(self, *_: object) -> None:
        self._is_signalled = True


class Broken(Exception):
    """There was a signal while nobody took what is written."""


def is_closed(descriptor: int) -> bool:
    """Whether nobody reads any more what is written to this pipe."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def places_of(context: click.Context, file: str, moved_to: str) -> tuple[str, str]:
    """(the current file, the folder for those that were moved away): the first in the configuration that is no pipe,
    or as given."""
    if file:
        return file, moved_to
    first = load(context).log
    if first is None:
        raise UsageError("all accounting goes to programs, there is no file to read: add an [[acct-file]] with a path")
    return first.path, moved_to or first.move_to


def sought(texts: dict[str, str], since: float = 0.0, until: float = float("inf")) -> Sought:
    """Raises UsageError."""
    types = tuple(kind.strip() for kind in texts.pop("types").split(",") if kind.strip())
    if unknown := set(types) - TYPES:
        raise UsageError(f"there are no rows of type {plain(sorted(unknown))}: the types are {plain(sorted(TYPES))}")
    return msgspec.convert({"types": types, "since": since, "until": until, **texts}, Sought)


def sought_between(texts: dict[str, str], since: str, until: str) -> Sought:
    """The same with times as they are written on a command line."""
    begin = moment_of(since) if since else 0.0
    return sought(texts, since=begin, until=moment_of(until) if until else float("inf"))


def moment_of(text: str) -> float:
    """Unix seconds of a time given on a command line: ISO 8601, or a duration before now. Raises UsageError."""
    from spoolmta import row
    from spoolmta.config import parse_duration

    if "-" not in text:
        try:
            return time.time() - parse_duration(text)
        except UsageError:
            pass
    elif (found := row.moment(text)) is not None:
        return found
    raise UsageError(f'expected a time like "2026-11-26 14:00", or how long ago, like "4d12h", got "{plain(text)}"')


def tell_skipped(count: int) -> None:
    if count:
        click.echo(f"spoolmta: {count} lines were no rows of the log and were left out", err=True)
