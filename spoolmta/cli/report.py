"""Reports of the accounting log, questions to it in SQL, exports."""

from __future__ import annotations

import contextlib
import os
import shutil
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
@click.option("--top", type=click.IntRange(0), default=None, help="How many rows a table may have; 0 is all [20].")
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
    with written(output) as write:
        write(told(found, form, table, now))
    tell_skipped(skipped)


def told(found: Report, form: str, table: str, now: float) -> str:
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
        return forms.text(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else 0)
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
            lines_of = {"csv": csv_lines, "json": json_lines}.get(form or "", tab_lines)
            for line in lines_of(names, rows):
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
        if not output:
            raise UsageError("parquet is no text: name a file with --output")
        _, skipped = ask(path, done, wanted.since, lambda house: write_parquet(house, chosen.condition(wanted), output))
    else:
        search = Search(path, Sieve(wanted), done)
        made = FORMS[form]()
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


def csv_lines(names: list[str], rows: Iterator[tuple[object, ...]]) -> Iterator[str]:
    made, columns = Csv(), Columns(names)
    yield made.header(columns)
    for row in rows:
        yield made.row(columns, ["" if value is None else str(value) for value in row])


def json_lines(names: list[str], rows: Iterator[tuple[object, ...]]) -> Iterator[str]:
    for row in rows:
        yield msgspec.json.encode(dict(zip(names, row, strict=True)), enc_hook=str).decode() + "\n"


def tab_lines(names: list[str], rows: Iterator[tuple[object, ...]]) -> Iterator[str]:
    for row in (tuple(names), *rows) if not sys.stdout.isatty() else ():
        yield "\t".join("" if value is None else plain(value) for value in row) + "\n"
    if sys.stdout.isatty():
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
    for is_careful in (False, True):
        try:
            with progress() as tell, Warehouse(path, moved_to, since, tell, is_careful) as house:
                return make(house), house.skipped
        except warehouse.BrokenError:
            if is_careful:
                raise
    raise AssertionError


@contextlib.contextmanager
def progress() -> Iterator[warehouse.Told]:
    if not sys.stderr.isatty():
        yield lambda _, __: None
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
    if not output:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield sys.stdout.write
        sys.stdout.flush()
        return
    with replaced(output) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
        yield file.write


@contextlib.contextmanager
def replaced(output: str) -> Iterator[str]:
    """The name under which a file is written, which is there as a whole or not at all."""
    temporary = f"{output}.{os.getpid()}.new"
    try:
        yield temporary
        os.rename(temporary, output)
    except OSError as error:
        raise UnavailableError(f"cannot write {output}: {error.strerror}") from error
    finally:
        disk.remove(temporary)
