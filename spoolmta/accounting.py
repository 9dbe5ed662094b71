"""The accounting log: events to CSV rows, appended by every process, rotated by one.

RFC 4180, UTF-8, CRLF, header line first, one row per recipient (`tq`: per failed queue attempt); PowerMTA's
columns in its order, ours behind. Control characters in values become spaces, so that a row is a line.

Rotation loses no row: the supervisor renames the file to `NAME.rotating`, puts a new one with its header in the old
place and raises the generation in the shared page; every writer reopens at its next write (or when signalled), and
says so in its row of the page; only when all have, the old file gets its final name `NAME-YYYY-MM-DD-NNNN.csv`.
Nothing in the system reads the log back to decide what to do with mail: that is what the journal is for.
"""

from __future__ import annotations

import glob
import os
import re
import time

from spoolmta import disk
from spoolmta.errors import SpoolError
from spoolmta.model import MORE_COLUMNS, AcctFile
from spoolmta.shared import Cell, Page, Row

DELIVERY_COLUMNS = (
    "type,timeLogged,timeQueued,orig,rcpt,orcpt,dsnAction,dsnStatus,dsnDiag,dsnMta,bounceCat,srcType,srcMta,dlvType,"
    "dlvSourceIp,dlvDestinationIp,dlvEsmtpAvailable,dlvSize,vmta,jobId,envId,queue,vmtaPool,msgId,attempts"
).split(",")
QUEUE_COLUMNS = "type,timeLogged,dsnStatus,dsnDiag,dsnMta,dlvType,dlvSourceIp,dlvDestinationIp,vmta,queue".split(",")
RECEIPT_COLUMNS = (
    "type,timeLogged,orig,rcpt,orcpt,srcType,srcMta,rcvSourceIp,rcvDestinationIp,vmta,jobId,envId,msgId".split(",")
)
COLUMNS = {
    "d": DELIVERY_COLUMNS,
    "b": DELIVERY_COLUMNS,
    "t": DELIVERY_COLUMNS,
    "tq": QUEUE_COLUMNS,
    "r": RECEIPT_COLUMNS,
}
"""The usual columns of each record type. A row's first value is its type; the values of MORE_COLUMNS are behind."""

USUAL: dict[str, tuple[str, ...]] = {}
RESERVE = 1 << 20


def fields_of(record: str, fields: dict[str, tuple[str, ...]]) -> list[str]:
    """The columns of one record type where `record-fields` says so: the usual ones, and more by name."""
    return [*COLUMNS[record], *fields.get(record, ())[1:]]


def header(records: tuple[str, ...], fields: dict[str, tuple[str, ...]] = USUAL) -> list[str]:
    """The columns of a file with these record types: those of `d`, `b`, `t` keep their place, others follow, and
    those that were asked for by name come last."""
    columns: dict[str, None] = {}
    for record in sorted(records, key=lambda record: list(COLUMNS).index(record)):
        columns.update(dict.fromkeys(COLUMNS[record]))
    for record in records:
        columns.update(dict.fromkeys(fields_of(record, fields)))
    return list(columns)


def csv_line(values: list[str]) -> str:
    """One CSV line with its CRLF. 0.7 microseconds where nothing needs quoting, 1.2 where there are only commas, as in
    every list of what a host offers (csv.writer: 4.2)."""
    line = ",".join(values)
    if line.isprintable() and '"' not in line:
        if line.count(",") != len(values) - 1:
            line = ",".join([f'"{value}"' if "," in value else value for value in values])
        return line + "\r\n"
    return ",".join([_quote(value) for value in values]) + "\r\n"


def _quote(value: str) -> str:
    if not value.isprintable():
        value = "".join(ch if ch.isprintable() or (ch > "\x9f" and ch not in "\u2028\u2029") else " " for ch in value)
    if "," in value or '"' in value:
        return '"' + value.replace('"', '""') + '"'
    return value


class Clock:
    """Times as the log writes them, local time with its offset; formatted once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, seconds: float) -> str:
        whole = int(seconds)
        if whole != self._second:
            self._second = whole
            self._text = time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(whole))
        return self._text


class _Target:
    """One open accounting file and how each record type fits its header: `own` is how many values go to the first
    columns as they are; where that is not all that is wanted, `places` says for each column which value it takes (or
    -1). Both in one look-up a row."""

    def __init__(
        self, path: str, file: disk.AppendFile, places: dict[str, tuple[int, list[int] | None]], columns: list[str]
    ) -> None:
        self.path, self.file, self.places, self.columns = path, file, places, columns
        self.lines: list[str] = []

    def __repr__(self) -> str:
        return f"_Target({self.path}, {len(self.lines)} lines)"


class Log:
    """All accounting files, as one process writes them. `write` collects, `flush` appends with one write a file.

    `row` is the process's row in the shared page, where it says which generation it has open.
    """

    def __init__(self, files: tuple[AcctFile, ...], page: Page, row: Row) -> None:
        self._files = files
        self._page = page
        self._row = row
        self._next: tuple[AcctFile, ...] | None = None
        self.is_dirty = False
        self._generation = page.log_generation
        self._targets = self._open(files)
        self._opened()

    def __repr__(self) -> str:
        return f"Log(generation={self._generation}, {self._targets})"

    def _open(self, files: tuple[AcctFile, ...]) -> list[_Target]:
        targets: list[_Target] = []
        for file in files:
            try:
                targets.append(self._open_one(file))
            except OSError as error:
                for target in targets:
                    target.file.close()
                raise SpoolError(f"cannot open {file.path}: {error.strerror}") from error
        return targets

    def _open_one(self, file: AcctFile) -> _Target:
        appended, columns = _open_with_header(file)
        places: dict[str, tuple[int, list[int] | None]] = {}
        for record in file.records:
            own = fields_of(record, file.record_fields)
            all_there = [*COLUMNS[record], *MORE_COLUMNS.get(record, ())]
            is_plain = columns[: len(own)] == own == all_there[: len(own)]
            sources = [all_there.index(name) if name in own else -1 for name in columns]
            places[record] = len(own), None if is_plain else sources
        return _Target(file.path, appended, places, columns)

    def _opened(self) -> None:
        self._wanted = frozenset(record for file in self._files for record in file.records)
        self._row[Cell.LOG_GENERATION] = self._generation

    def wants(self, record: str) -> bool:
        """Whether any file takes this record type; a row nobody takes need not be made."""
        return record in self._wanted

    def write(self, values: list[str]) -> None:
        """Collect one row: the values of COLUMNS[values[0]], and of MORE_COLUMNS, in order."""
        record = values[0]
        self.is_dirty = True
        for target in self._targets:
            if record not in target.places:
                continue
            own, places = target.places[record]
            if places is None:
                cells = values[:own]
                if own < len(target.columns):
                    cells += [""] * (len(target.columns) - own)
            else:
                cells = [values[place] if place >= 0 else "" for place in places]
            target.lines.append(csv_line(cells))

    def flush(self) -> None:
        """Append what was collected; reopens first if the files were rotated. Raises SpoolError (nothing is
        forgotten: it is written with the next flush)."""
        self.reopen_if_rotated()
        for target in self._targets:
            if target.lines or target.file.has_rest:
                lines, target.lines = target.lines, []
                target.file.append("".join(lines).encode("utf-8", "replace"))
        self.is_dirty = False
        if self._next is not None:
            files, self._next = self._next, None
            self._switch(files)

    def reopen_if_rotated(self) -> None:
        """Move on to the new files of a rotation; rows collected stay collected. What a full disk has refused belongs
        to the old file: until it is written there (SpoolError), the rotation waits for us."""
        if self._generation == self._page.log_generation:
            return
        for target in self._targets:
            if target.file.has_rest:
                target.file.append(b"")
        generation = self._page.log_generation
        self._switch(self._files)
        self._generation = generation
        self._opened()

    def reconfigure(self, files: tuple[AcctFile, ...]) -> None:
        """Write to other files from now on; what was collected goes to the old ones, first, if need be later (a full
        disk)."""
        if files == self._files and self._next is None:
            return
        self._next = files
        self.is_dirty = True
        try:
            self.flush()
        except SpoolError:
            pass  # the next flush says so again, or succeeds

    def _switch(self, files: tuple[AcctFile, ...]) -> None:
        """Open these, then close the others, whose rows a later `sync` would not reach any more."""
        targets = self._open(files)
        try:
            self._hand_over(targets)
        except SpoolError:
            for target in targets:
                target.file.close()
            raise
        old, self._targets = self._targets, targets
        self._files = files
        for target in old:
            try:
                target.file.sync()
            finally:
                target.file.close()
        self._opened()

    def _hand_over(self, targets: list[_Target]) -> None:
        """What was collected goes on in the new file of the same path; into the old one if they have other columns."""
        fresh = {target.path: target for target in targets}
        for target in self._targets:
            successor = fresh.get(target.path)
            if successor is not None and successor.columns == target.columns:
                successor.lines = target.lines
            elif successor is not None and target.lines:
                lines, target.lines = target.lines, []
                target.file.append("".join(lines).encode("utf-8", "replace"))

    def sync(self) -> None:
        """Make all rows durable."""
        for target in self._targets:
            target.file.sync()

    def lies_on(self, device: int) -> bool:
        """Whether all files lie on this filesystem, so that one syncfs of it makes them durable."""
        return all(os.stat(target.path).st_dev == device for target in self._targets)

    def close(self) -> None:
        for target in self._targets:
            target.file.close()
        self._targets = []


def _open_with_header(file: AcctFile) -> tuple[disk.AppendFile, list[str]]:
    """The open file and the columns it has: a file that was begun under another configuration keeps its header until it
    is rotated, and rows must fit it."""
    while True:
        make(file)
        appended = disk.AppendFile(file.path, RESERVE, shared=True)
        columns = _columns_in(file)
        if appended.is_at(file.path):
            return appended, columns
        appended.close()  # rotated just now


def _columns_in(file: AcctFile) -> list[str]:
    """The columns in a file's header; those it should have where it has none."""
    try:
        with open(file.path, encoding="utf-8", errors="replace", newline="") as stream:
            first = stream.readline(65_536)
    except FileNotFoundError:
        first = ""
    return first.rstrip("\r\n").split(",") if first.startswith("type,") else header(file.records, file.record_fields)


def make(file: AcctFile) -> None:
    """See that the file is there with its header, complete before anybody can open it."""
    if os.path.exists(file.path) and os.path.getsize(file.path) > 0:
        return
    os.makedirs(os.path.dirname(file.path), exist_ok=True)
    temporary = _write_header(file)
    try:
        disk.link(temporary, file.path)
    except FileExistsError:
        if os.path.getsize(file.path) == 0:
            os.rename(temporary, file.path)
    disk.remove(temporary)


def _write_header(file: AcctFile) -> str:
    temporary = f"{file.path}.making.{os.getpid()}"
    disk.remove(temporary)
    disk.write_new(temporary, csv_line(header(file.records, file.record_fields)).encode())
    return temporary


def _mend(path: str) -> None:
    """Cut off a last row without its end, which a power cut leaves, before the next row runs into it. Looks twice: a
    writer whose supervisor was killed may be in the middle of a row."""
    size = 0
    for _ in range(2):
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read(1) in (b"", b"\n"):
                return
        time.sleep(0.05)
    if os.path.getsize(path) == size:
        torn = disk.AppendFile(path, shared=True)
        torn.cut_partial_line()
        torn.close()


class Rotation:
    """The supervisor's side: makes files, sees when they are due (also where the columns have changed), rotates them,
    finishes when all writers moved on."""

    def __init__(self, files: tuple[AcctFile, ...], now: float) -> None:
        self._files = files
        self._pending: list[tuple[str, str]] = []
        self._since = dict.fromkeys((file.path for file in files), now)
        self._outdated: set[str] = set()
        self._latest: dict[str, tuple[str, int]] = {}
        for file in files:
            try:
                make(file)
                _mend(file.path)
            except OSError as error:
                raise SpoolError(f"cannot make the accounting file {file.path}: {error.strerror}") from error
            rotating = file.path + ".rotating"
            if os.path.exists(rotating):
                if os.path.samefile(rotating, file.path):
                    os.unlink(rotating)  # a crash before the new file was in place: nothing was rotated
                else:
                    self._pending.append((rotating, self._final_name(file.path, now)))
            if _columns_in(file) != header(file.records, file.record_fields):
                self._outdated.add(file.path)
            # A file begun before we were started is as old as its last row says: yesterday's is rotated now.
            self._since[file.path] = min(now, os.path.getmtime(file.path))

    def __repr__(self) -> str:
        return f"Rotation(pending={self._pending}, since={self._since})"

    def due(self, now: float) -> list[AcctFile]:
        """Files to rotate now: older than move-interval, larger than max-size, or begun on another day; and those that
        somebody has taken away."""
        found = []
        for file in self._files:
            began = self._since[file.path]
            other_day = time.localtime(began).tm_yday != time.localtime(now).tm_yday
            try:
                size = os.path.getsize(file.path)
            except FileNotFoundError:
                found.append(file)
                continue
            if file.path in self._outdated or (
                (now - began >= file.move_interval or other_day or size > file.max_size) and self._has_rows(file, size)
            ):
                found.append(file)
        return found

    def begin(self, files: list[AcctFile], page: Page, now: float) -> None:
        """Put new files in place and tell the writers. One rotation at a time: does nothing while one is pending."""
        if self._pending or not files:
            return
        for file in files:
            fresh, rotating = _write_header(file), file.path + ".rotating"
            # No moment without a file of this name: a process that starts now opens the old one or the new one.
            try:
                disk.link(file.path, rotating)
                self._pending.append((rotating, self._final_name(file.path, now)))
            except FileNotFoundError:
                pass  # taken away by somebody: a new one, for all writers
            os.rename(fresh, file.path)
            self._outdated.discard(file.path)
            self._since[file.path] = now
        page.next_log_generation()

    def finish(self, generations: list[int], page: Page) -> bool:
        """Give rotated files their final names once every living writer has moved on (its generation in
        `generations`). True if nothing is pending any more."""
        if self._pending and all(generation >= page.log_generation for generation in generations):
            while self._pending:
                source, target = self._pending[0]
                try:
                    disk.rename(source, target)
                except FileNotFoundError:
                    pass  # taken away by somebody
                del self._pending[0]
        return not self._pending

    @property
    def files(self) -> list[AcctFile]:
        return list(self._files)

    def _has_rows(self, file: AcctFile, size: int) -> bool:
        return size > len(csv_line(header(file.records, file.record_fields)).encode())

    def _final_name(self, path: str, now: float) -> str:
        """`acct.csv` becomes `acct-YYYY-MM-DD-NNNN.csv`. Names only rise, whatever was taken away meanwhile and however
        the clock was set: readers go by them."""
        base, ending = os.path.splitext(path)
        number = re.compile(r"-(\d{4}-\d\d-\d\d)-(\d{4,})")
        found = [number.match(name, len(base)) for name in glob.glob(f"{glob.escape(base)}-*{glob.escape(ending)}*")]
        latest = max([self._latest.get(path, ("", 0)), *((match[1], int(match[2])) for match in found if match)])
        day = time.strftime("%Y-%m-%d", time.localtime(now))
        self._latest[path] = (day, 0) if day > latest[0] else (latest[0], latest[1] + 1)
        return "{}-{}-{:04d}{}".format(base, *self._latest[path], ending)
