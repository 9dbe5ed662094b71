"""Reports of the accounting log, questions to it in SQL, exports."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import TypeVar

import click
import msgspec

from spoolmta import disk, warehouse
from spoolmta.cli.frame import cli, plain
from spoolmta.cli.log import choosing, log, places_of, sought_between, tell_skipped, times
from spoolmta.errors import UnavailableError, UsageError
from spoolmta.export import FORMS, Csv
from spoolmta.log import Search
from spoolmta.reports import chosen, forms, known
from spoolmta.reports.asking import Asked
from spoolmta.reports.report import Report
from spoolmta.row import Columns
from spoolmta.sought import Sieve
from spoolmta.warehouse import Warehouse

Made = TypeVar("Made")
Rows = Iterator[tuple[object, ...]]

PATIENCE = 1.0
"""Seconds after which a bar shows how far it is."""

REPORTS = "\b\nReports:\n" + "\n".join(f"  {name:<20} {report.title}" for name, report in known.KNOWN.items())


def reading(command: Callable[..., None]) -> Callable[..., None]:
    """The options of all commands that read the whole log."""
    options = [
        click.option("--file", default="", metavar="FILE", help="Another log than the first of the configuration."),
        click.option("--moved-to", default="", metavar="FOLDER", help="Where else rotated files lie."),
        click.option("--output", default="", metavar="FILE", help="Write it here, and not to the standard output."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command("report", epilog=REPORTS)
@click.argument("name", type=click.Choice([*known.KNOWN]), metavar="NAME")
@click.option("--by", type=click.Choice([*chosen.BY]), help="Put rows together by this.")
@choosing
@times
@click.option(
    "--top", type=click.IntRange(0, 1 << 31), default=None, help="How many rows a table may have; 0 is all [20]."
)
@click.option("--total", type=click.IntRange(1), help="campaign: how many recipients it has.")
@click.option("--text", "form", flag_value="text", default=True, help="Tables (the default).")
@click.option("--csv", "form", flag_value="csv", help="The first table, or that of --table.")
@click.option("--json", "form", flag_value="json", help="All tables.")
@click.option("--xml", "form", flag_value="xml", help="All tables.")
@click.option("--html", "form", flag_value="html", help="A page with plots in one file, which opens offline.")
@click.option("--table", default="", metavar="NAME", help="Which table to write as CSV; --json shows their names.")
@click.option("--output", default="", metavar="FILE", help="Write it here, and not to the standard output.")
@click.pass_context
def report(
    context: click.Context,
    /,
    name: str,
    by: str | None,
    since: str,
    until: str,
    top: int | None,
    total: int | None,
    form: str,
    table: str,
    file: str,
    moved_to: str,
    output: str,
    **texts: str,
) -> None:
    """What became of the mail, counted from the accounting log: current, rotated and packed files."""
    if by and known.KNOWN[name].is_fixed and by != known.KNOWN[name].by:
        raise UsageError(f"{name} is always by {known.KNOWN[name].by}")
    now = time.time()
    wanted = sought_between(texts, since, until)
    top = top if top is not None else 5 if name == "vmta-top-bounce" else 20
    path, done = places_of(context, file, moved_to)

    def make(house: Warehouse) -> Report:
        house.ask(f"CREATE TEMP VIEW chosen AS SELECT * FROM log WHERE {chosen.condition(wanted)}")
        return known.report(name, Asked(house.ask, by or "", top, total, min(now, wanted.until)))

    found, skipped = ask(path, done, wanted.since, make)
    found.skipped, found.filters = skipped, [plain(item) for item in chosen.words(wanted)]
    width = shutil.get_terminal_size().columns if is_terminal(output) else 0
    with written(output) as write:
        write(told(found, form, table, now, width))
    tell_skipped(skipped)


def told(found: Report, form: str, table: str, now: float, width: int) -> str:
    if form == "html":
        from spoolmta.reports import page

        return page.page(found, resources.files("spoolmta.reports").joinpath("page.html").read_text(), now)
    if form == "csv":
        chosen_table = next((one for one in found.tables if table in ("", one.name)), None)
        if chosen_table is None:
            names = ", ".join(one.name for one in found.tables) or "none"
            raise UsageError(f'there is no table "{plain(table)}" in this report: it has {names}')
        return forms.csv(chosen_table)
    if form == "text":
        return forms.text(found, width)
    return forms.json(found) if form == "json" else forms.xml(found)


@cli.command("sql")
@click.argument("query")
@click.option("--csv", "form", flag_value="csv", help="CSV, safe for spreadsheets.")
@click.option("--json", "form", flag_value="json", help="A JSON object a line, every value as it is.")
@reading
@click.pass_context
def sql(context: click.Context, /, query: str, form: str | None, file: str, moved_to: str, output: str) -> None:
    """Ask the accounting log in SQL (duckdb's). It is the table `log`: a column for each of the files, times as
    timestamps, numbers as numbers, empty values NULL, and `domain` and `provider` in addition.

    \b
    spoolmta sql "select vmta, count(*) from log group by 1"
    """
    path, done = places_of(context, file, moved_to)

    def answer(house: Warehouse) -> None:
        names, rows = house.stream(query)
        with written(output) as write:
            for line in lines_of(form, is_terminal(output))(names, rows):
                write(line)

    _, skipped = ask(path, done, 0.0, answer)
    tell_skipped(skipped)


@log.command("export")
@click.option("--format", "form", type=click.Choice([*FORMS, "parquet"]), required=True, help="Of what is written.")
@choosing
@times
@click.option("--output", default="", metavar="FILE", help="Write it here; parquet needs a file.")
@click.pass_context
def log_export(
    context: click.Context,
    /,
    form: str,
    since: str,
    until: str,
    file: str,
    moved_to: str,
    output: str,
    **texts: str,
) -> None:
    """Rows of the log for other programs: CSV is safe for spreadsheets, JSON is an object a line, parquet has times and
    numbers as such and is compressed."""
    wanted = sought_between(texts, since, until)
    path, done = places_of(context, file, moved_to)
    if form == "parquet":
        if not output or not is_replaceable(output):
            raise UsageError("parquet is no text: name a file with --output")
        _, skipped = ask(path, done, wanted.since, lambda house: write_parquet(house, chosen.condition(wanted), output))
    else:
        search = Search(path, Sieve(wanted), done)
        made = FORMS[form](plain if is_terminal(output) else str)
        with written(output) as write:
            write(made.begin())
            for columns, values in search.rows():
                write(made.row(columns, values))
            write(made.end())
        skipped = search.skipped
    tell_skipped(skipped)


def write_parquet(house: Warehouse, condition: str, output: str) -> None:
    with replaced(output) as temporary:
        house.ask("SET preserve_insertion_order = true")
        names = ", ".join(map(warehouse.identifier, house.columns))
        house.ask(
            f"COPY (SELECT {names} FROM log WHERE {condition}) TO {chosen.quoted(temporary)}"
            " (FORMAT parquet, COMPRESSION zstd)"
        )


def is_terminal(output: str) -> bool:
    return not output and sys.stdout is not None and sys.stdout.isatty()


def lines_of(form: str | None, is_shown: bool) -> Callable[[list[str], Rows], Iterator[str]]:
    """How rows become lines; what controls a terminal does not reach one."""
    clean = plain if is_shown else str
    if form == "csv":
        return functools.partial(csv_lines, Csv(clean))
    if form == "json":
        return functools.partial(json_lines, clean)
    return table_lines if is_shown else tab_lines


def csv_lines(form: Csv, names: list[str], rows: Rows) -> Iterator[str]:
    columns = Columns(names)
    yield form.header(columns)
    for row in rows:
        yield form.row(columns, ["" if value is None else str(value) for value in row])


def json_lines(clean: Callable[[str], str], names: list[str], rows: Rows) -> Iterator[str]:
    for row in rows:
        found = {
            clean(name): clean(value) if isinstance(value, str) else value
            for name, value in zip(names, row, strict=True)
        }
        yield msgspec.json.encode(found, enc_hook=str).decode() + "\n"


def tab_lines(names: list[str], rows: Rows) -> Iterator[str]:
    for row in itertools.chain([tuple(names)], rows):
        yield "\t".join("" if value is None else plain(value) for value in row) + "\n"


def table_lines(names: list[str], rows: Rows) -> Iterator[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(Text(plain(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if value is None else plain(value)) for value in row))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    yield captured.get()


def ask(path: str, moved_to: str, since: float, make: Callable[[Warehouse], Made]) -> tuple[Made, int]:
    """(what is made of the log, how many lines were no rows), with a bar on a terminal where it takes long. Where
    duckdb fails within itself (seen once in sixty reports of ten million rows, in version 2.0.1, at the end of a
    buffer), once more with one thread."""
    ended = end_by_signals()
    for is_careful in (False, True):
        try:
            with progress(ended) as tell, Warehouse(path, moved_to, since, tell, is_careful) as house:
                return make(house), house.skipped
        except warehouse.BrokenError:
            if is_careful:
                raise
    raise AssertionError


def end_by_signals() -> list[int]:
    """Where the number of a signal is noted, which ends the command a moment later, so that what was written for the
    time being goes: an exception out of a handler is lost within duckdb, or makes it abort."""
    ended: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda given, _frame: ended.append(given))
    return ended


@contextlib.contextmanager
def progress(ended: list[int]) -> Iterator[warehouse.Told]:
    """Whom to tell how far it is: a bar, on a terminal. Raises SystemExit behind a signal."""

    def check() -> None:
        if ended:
            sys.exit(128 + ended[0])

    if not sys.stderr.isatty():
        yield lambda _, __: check()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("reading", total=1.0)
    begun = time.monotonic()

    def tell(what: str, part: float) -> None:
        check()
        if time.monotonic() - begun > PATIENCE:
            bar.start()
            bar.update(task, description=what, completed=part)

    try:
        yield tell
    finally:
        bar.stop()


@contextlib.contextmanager
def written(output: str) -> Iterator[Callable[[str], object]]:
    """Where to write."""
    if output and is_replaceable(output):
        with replaced(output) as place, open(place, "w", encoding="utf-8", errors="replace", newline="") as file:
            yield file.write
        return
    try:
        if output:
            with open(output, "w", encoding="utf-8", errors="replace", newline="") as file:
                yield file.write
            return
        if sys.stdout is None:
            raise UnavailableError("there is no standard output: give --output FILE")
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield sys.stdout.write
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnavailableError(f"cannot write {output or 'the standard output'}: {error.strerror}") from error


def is_replaceable(output: str) -> bool:
    """Whether it is a file or nothing yet, and not a device or a FIFO."""
    return os.path.isfile(output) or not os.path.exists(output)


@contextlib.contextmanager
def replaced(output: str) -> Iterator[str]:
    """The name under which a file is written, which is there as a whole or not at all; behind a link it is the file."""
    target = os.path.realpath(output)
    temporary = f"{target}.{os.getpid()}.new"
    if not os.path.isdir(os.path.dirname(target)):
        raise UnavailableError(f"cannot write {output}: there is no such folder")
    try:
        yield temporary
        disk.sync_path(temporary)
        os.rename(temporary, target)
    except OSError as error:
        raise UnavailableError(f"cannot write {output}: {error.strerror}") from error
    finally:
        disk.remove(temporary)
