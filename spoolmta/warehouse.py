"""The log as tables that can be asked in SQL, by duckdb (the extra `report`).

duckdb reads the files where they lie, by descriptors, so that nothing is lost to a rotation meanwhile. It is shown
whole, plain files only. What is not plain is written anew first, by our own reader, into a temporary folder: files that
are packed, those that somebody may still append to (up to their last whole row), and those with odd contents (bytes
that are no text, zeros after a power cut, several headers, rows of more or fewer values), which a reader made for speed
would take for something else. A test has both read the same files and compares. (One thing duckdb does not see: a row
with one value too many at its end that is empty.)
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import operator
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from spoolmta.errors import UnavailableError, UsageError
from spoolmta.log import Reading
from spoolmta.logfiles import LogFile, LogFiles
from spoolmta.reports.chosen import quoted
from spoolmta.row import FIELDS, Reader

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BLOCK = 1 << 20
MEMORY = "256MB"
NUMBERS = {column for column, kind in FIELDS.items() if kind.startswith("int")} | {"totalSecondsQueued"}
TIMES = {column for column, kind in FIELDS.items() if kind.startswith("float")}
EARLIEST, LATEST = "TIMESTAMPTZ '1900-01-01'", "TIMESTAMPTZ '9998-12-31'"
"""Times that can be counted with and shown."""
LINE, BUFFER = 1 << 18, 1 << 22
"""Bytes of the longest row, and of what is read at once: duckdb's own 32 MB a thread do not go well with MEMORY."""
ADDED = ("domain", "provider")
INSTALL = "python -m pip install 'spoolmta[report]'"

Told = Callable[[str, float], None]
"""Is told what is being done, and how much of it is done (0 to 1)."""


Source = tuple[tuple[str, ...], str]
"""Columns, and the file whose rows have them."""


class BrokenError(UnavailableError):
    """duckdb failed within itself, and this connection can answer nothing any more."""


class Warehouse:
    """A log, open for questions: the view `log`, with the columns of all its files, times as TIMESTAMPTZ, numbers as
    BIGINT, all else VARCHAR, empty values NULL, and `domain` and `provider`. `skipped` counts lines that are no rows.

    Files last written before `since` (Unix seconds) are left out. `is_careful` is with one thread, after a
    BrokenError."""

    def __init__(
        self,
        path: str,
        moved_to: str = "",
        since: float = 0.0,
        tell: Told = lambda *_: None,
        is_careful: bool = False,
    ) -> None:
        self.skipped = 0
        self.columns: list[str] = []
        """Those that some row of the log has; the usual ones of an empty log."""
        self._tell = tell
        self._files: list[LogFile] = []
        self._folder = _folder()
        self._written = 0
        try:
            self._connection = _connect(self._folder.name, is_careful)
            self._take(LogFiles(path, moved_to), since)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()
        for source in self._files:
            source.close()
        self._folder.cleanup()

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """The whole answer. Raises UsageError for what is no SQL, UnavailableError for what cannot be done."""
        self._run(sql)
        return self._fetched(self._connection.fetchall)

    def stream(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """(columns, rows) of an answer that may be long."""
        self._run(sql)
        if not self._connection.description:
            return [], iter(())
        names: list[str] = []
        for column in self._connection.description:
            name = str(column[0])
            names.append(name if name not in names else f"{name}_{len(names) + 1}")
        return names, self._rows()

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        while rows := self._fetched(lambda: self._connection.fetchmany(10_000)):
            yield from rows
            self._tell("writing", 1.0)

    @staticmethod
    def _fetched(fetch: Callable[[], list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
        try:
            return fetch()
        except Exception as error:
            raise _sentence(error) from error

    def _run(self, sql: str) -> None:
        """Beside a look at how far it is, which can also end it."""
        failed: list[BaseException] = []
        done = threading.Event()  # a join that was interrupted would not wait a second time (Python 3.11)

        def work() -> None:
            try:
                self._connection.execute(sql)
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()

        threading.Thread(target=work).start()
        try:
            while not done.wait(0.1):
                self._tell("counting", max(0.0, self._connection.query_progress() / 100))
        except BaseException:
            self._connection.interrupt()
            done.wait()
            raise
        if failed:
            raise _sentence(failed[0]) from failed[0]

    def _take(self, files: LogFiles, since: float) -> None:
        sources: list[Source] = []
        found = [*files.present(since)]
        self._files += found
        whole = sum(source.status.st_size for source in found) or 1
        done = 0
        for source in found:
            sources += self._table(source, lambda part, done=done: self._tell("reading", (done + part) / whole))  # type: ignore[misc]
            done += source.status.st_size
        if not found and not files.rotated():
            raise UnavailableError(f"there is no log {files.path}")
        self._show(sources)

    def _table(self, source: LogFile, tell: Callable[[int], None]) -> list[Source]:
        """Each part of the file with the same columns, as duckdb can read it."""
        names = _header(source)
        if names:
            is_left = source.name and not source.is_packed and _is_whole(source)
            place = f"/proc/self/fd/{source.fileno()}" if is_left else self._place()
            with contextlib.nullcontext() if is_left else _opened(place, "wb") as out:
                rest = _scan(source, out, tell)
            if rest is not None and self._is_read(names, place):
                self.skipped += bool(rest and source.name)
                return [(names, place)]
        return self._copy(source, tell)

    def _place(self) -> str:
        self._written += 1
        return os.path.join(self._folder.name, f"{self._written}.csv")

    def _is_read(self, names: tuple[str, ...], place: str) -> bool:
        """Whether duckdb finds nothing odd in this file."""
        connection = self._connection
        connection.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
        try:
            connection.execute(f"SELECT count(*) FROM {_csv(names, [place], 'store_rejects=true, rejects_limit=1')}")
            connection.fetchall()
            return not connection.execute("SELECT * FROM reject_errors LIMIT 1").fetchall()
        except Exception as error:
            told = _sentence(error)
            if not isinstance(told, UsageError):
                raise told from error
            return False  # whatever it does not like

    def _copy(self, source: LogFile, tell: Callable[[int], None]) -> list[Source]:
        """Write the rows of a file anew, one file for each header."""
        made: list[Source] = []
        reading = Reading(source)
        rows = reading.rows(None, bool(source.name))
        for columns, group in itertools.groupby(rows, key=operator.itemgetter(0)):
            places = _distinct(columns.names)
            made.append((tuple(columns.names[place] for place in places), self._place()))
            with _opened(made[-1][1], "w") as out:
                write = csv.writer(out).writerow
                write(range(len(places)))  # names may have line breaks in them; they are told apart from the file
                for count, (_, values) in enumerate(group):
                    write([values[place].replace("\0", "\ufffd") for place in places])
                    if not count % 10_000:
                        tell(reading.offset)
        self.skipped += reading.forget_skipped()
        return made

    def _show(self, sources: list[Source]) -> None:
        """Make the view. Names of columns do not differ by case only, in SQL."""
        spelled = {name.lower(): name for names, _ in sources for name in names} | {
            name.lower(): name for name in FIELDS
        }
        names = [*FIELDS, *(name for lower, name in spelled.items() if name not in FIELDS and lower not in ADDED)]
        there = {name.lower() for columns, _ in sources for name in columns}
        self.columns = [name for name in names if name.lower() in there] or names
        places: dict[tuple[str, ...], list[str]] = {}
        for columns, place in sources:
            places.setdefault(columns, []).append(place)
        selects = [
            f"SELECT {', '.join(_shown(name, name.lower() in lower) for name in names)} FROM {_csv(columns, found)}"
            for columns, found in places.items()
            for lower in ({name.lower() for name in columns},)
        ] or [f"SELECT {', '.join(_shown(name, False) for name in names)} WHERE false"]
        self._connection.execute(
            "CREATE VIEW log AS SELECT *, lower(coalesce(nullif(split_part(rcpt, '@', -1), ''),"
            " split_part(queue, '/', 1))) AS domain, split_part(queue, '/', 1) AS provider FROM"
            f" ({' UNION ALL '.join(selects)})"
        )


@contextlib.contextmanager
def _opened(place: str, mode: str) -> Iterator[IO[Any]]:
    """A file of the temporary folder, to be written."""
    try:
        with open(place, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:  # type: ignore[call-overload]
            yield file
    except OSError as error:
        raise UnavailableError(f"cannot write {place}: {error.strerror}; $TMPDIR names another place") from error


def _folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="spoolmta-")
    except OSError as error:
        raise UnavailableError(f"cannot make a temporary folder: {error.strerror}; $TMPDIR names a place") from error


def _connect(folder: str, is_careful: bool) -> DuckDBPyConnection:
    try:
        import duckdb
    except ImportError:
        raise UnavailableError(f"reports and SQL need duckdb: {INSTALL}") from None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor for each file of the log
    connection = duckdb.connect(
        config={
            "memory_limit": MEMORY,
            "temp_directory": os.path.join(folder, "duckdb"),
            "preserve_insertion_order": False,
            "threads": 1 if is_careful else min(8, os.cpu_count() or 1),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
    return connection


def _sentence(error: BaseException) -> BaseException:
    """Our exception for one of duckdb's: what it says first; it goes on with the query and a caret."""
    import duckdb

    if not isinstance(error, duckdb.Error):
        return error
    text = " ".join(str(error).split("\n\nLINE")[0].split())
    if isinstance(error, duckdb.InternalException | duckdb.FatalException):
        return BrokenError(f"duckdb {duckdb.__version__} failed within itself: {text[:200]}")
    if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
        return UnavailableError(text)
    return UsageError(text)


def _header(source: LogFile) -> tuple[str, ...]:
    """The columns in the first line; none if it is not plain."""
    head = source.read(0, 65_536)
    line = head[: head.find(b"\n") + 1].rstrip(b"\r\n")
    values = Reader().values(line) or []
    return tuple(values) if line.startswith(b"type,") and len(_distinct(values)) == len(values) else ()


def _distinct(names: Sequence[str]) -> list[int]:
    """Where columns stand whose names SQL can tell from those before them."""
    seen: dict[str, int] = {}
    for place, name in enumerate(names):
        seen.setdefault(name.lower(), place)
    return [place for name, place in seen.items() if name]


def _is_whole(source: LogFile) -> bool:
    """Whether it ends with a row's end."""
    size = source.status.st_size
    return size > 0 and source.read(size - 1, 1) == b"\n"


def _scan(source: LogFile, out: IO[bytes] | None, tell: Callable[[int], None]) -> int | None:
    """None unless it is text without zeros and has one header; else how many bytes are behind its last whole row. The
    whole rows are written to `out`."""
    offset, rest = 0, b""
    while block := source.read(offset, BLOCK):
        offset += len(block)
        block = rest + block
        end = block.rfind(b"\n") + 1
        rest, block = block[end:], block[:end]
        if b"\0" in block or b"\ntype," in block or not _is_text(block) or len(rest) > BLOCK:
            return None
        if out is not None:
            out.write(block)
        tell(offset)
    return len(rest)


def _is_text(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _csv(names: Iterable[str], places: Iterable[str], more: str = "ignore_errors=true") -> str:
    kinds = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in names)
    return (
        f"read_csv([{', '.join(map(quoted, places))}], auto_detect=false, header=true, delim=',', quote='\"',"
        f" escape='\"', columns={{{kinds}}}, null_padding=false, strict_mode=true, max_line_size={LINE},"
        f" buffer_size={BUFFER}, {more})"
    )


def identifier(name: str) -> str:
    """The name of a column as SQL."""
    return '"' + name.replace('"', '""') + '"'


def _shown(name: str, is_there: bool) -> str:
    column = identifier(name)
    kind = "BIGINT" if name in NUMBERS else "TIMESTAMPTZ" if name in TIMES else "VARCHAR"
    if not is_there:
        return f"NULL::{kind} AS {column}"
    if name in NUMBERS:
        return f"try_cast({column} AS BIGINT) AS {column}"
    if name in TIMES:
        time = f"coalesce(try_cast({column} AS TIMESTAMPTZ), try(to_timestamp(try_cast({column} AS DOUBLE))))"
        return f"CASE WHEN {time} BETWEEN {EARLIEST} AND {LATEST} THEN {time} END AS {column}"
    return column
