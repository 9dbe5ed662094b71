"""The accounting log: events to CSV rows, appended by every process (`rotation` says how one rotates the files).

RFC 4180, UTF-8, CRLF, header line first, one row per recipient (`tq`: per failed queue attempt). Control characters in
values become spaces, so that a row is a line.

Nothing in the system reads the log back to decide what to do with mail: that is what the journal is for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from spoolmta import columns, disk, privacy
from spoolmta.columns import QUEUED, USUAL, Shape
from spoolmta.errors import SpoolError
from spoolmta.model import AcctFile
from spoolmta.shared import Cell, Page, Row

RESERVE = 1 << 20
WORLD_READABLE, OURS = 0o644, 0o640
_QUEUE_PLACES = {record: USUAL[record].index("queue") for record in QUEUED}


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
    """One open accounting file, and how events of each record type become rows of it."""

    def __init__(self, settings: AcctFile, file: disk.AppendFile, shapes: dict[str, Shape], columns: list[str]) -> None:
        self.path, self.file, self.shapes, self.columns = settings.path, file, shapes, columns
        self.is_synced = settings.sync
        self.lines: list[str] = []
        self._filters = settings.queue_filter
        self._taken: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"_Target({self.path}, {len(self.lines)} lines)"

    def add(self, values: list[str]) -> None:
        record = values[0]
        shape = self.shapes.get(record)
        if shape is not None and not (self._filters and record in QUEUED and not self._takes(record, values)):
            self.lines.append(csv_line(shape.cells(values)))

    def _takes(self, record: str, values: list[str]) -> bool:
        queue = values[_QUEUE_PLACES[record]]
        known = self._taken.get(queue)
        if known is None:
            if len(self._taken) >= 10_000:
                self._taken.clear()
            known = self._taken[queue] = columns.takes(self._filters, queue)
        return known


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
        self.headers: list[str] = []
        """Header fields whose values stand behind all others in an event. A new configuration only adds to them: an
        event may be made before it and written behind it."""
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
        appended, names = _open_with_header(file)
        self.headers += [name for name in _headers_of(file) if name not in self.headers]
        shapes = {record: _shape(file, record, names, self.headers) for record in file.records}
        return _Target(file, appended, shapes, names)

    def _opened(self) -> None:
        self._wanted = frozenset(record for file in self._files for record in file.records)
        self._row[Cell.LOG_GENERATION] = self._generation

    def wants(self, record: str) -> bool:
        """Whether any file takes this record type; a row nobody takes need not be made."""
        return record in self._wanted

    def write(self, values: list[str]) -> None:
        """Collect one event: the values of columns.USUAL and MORE of its type, in order, then those of `headers`."""
        self.is_dirty = True
        for target in self._targets:
            target.add(values)

    def flush(self) -> None:
        """Append what was collected; reopens first if the files were rotated. Raises SpoolError (nothing is
        forgotten: it is written with the next flush)."""
        self.reopen_if_rotated()
        for target in self._targets:
            if target.lines or target.file.has_rest:
                lines, target.lines = target.lines, []
                target.file.append("".join(lines).encode("utf-8", "replace"))
                if target.is_synced:
                    target.file.sync()
        self.is_dirty = False
        if self._next is not None:
            files, self._next = self._next, None
            self._switch(files)

    def catch_up(self) -> bool:
        """Write what could not be written before; False if it still cannot."""
        try:
            if self.is_dirty:
                self.flush()
        except SpoolError:
            return False
        return True

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


def _headers_of(file: AcctFile) -> list[str]:
    """The header fields that this file shows."""
    shown = [name for record in file.records for name in file.record_fields.get(record, ())]
    shown += [name for taken in file.map_header_to_field.values() for name in taken]
    return [found for name in shown if (found := columns.header_field(name))]


def _shape(file: AcctFile, record: str, names: list[str], headers: list[str]) -> Shape:
    own = columns.resolve(record, file.record_fields.get(record, ("*",)))
    taken_from = {
        column: columns.header_field(field) for field, column in file.map_header_to_field.get(record, {}).items()
    }
    changes: dict[str, Callable[[str], str]] = {}
    hide = privacy.hider(file.privacy_policy.text)
    if hide is not None:
        changes |= dict.fromkeys(columns.PRIVATE, hide)
    if not file.iso_times:
        changes |= dict.fromkeys(columns.TIMES, columns.epoch)
    constants = {"userString": file.user_string} if file.user_string else {}
    return Shape(record, names, [name for name in own if name in names], headers, constants, taken_from, changes)


def header(file: AcctFile) -> list[str]:
    """The columns a file has when it is begun."""
    return columns.header(file.records, file.record_fields)


def _open_with_header(file: AcctFile) -> tuple[disk.AppendFile, list[str]]:
    """The open file and the columns it has: a file that was begun under another configuration keeps its header until it
    is rotated, and rows must fit it."""
    while True:
        make(file)
        appended = disk.AppendFile(file.path, RESERVE, _mode(file), shared=True)
        columns = columns_in(file)
        if appended.is_at(file.path):
            return appended, columns
        appended.close()  # rotated just now


def columns_in(file: AcctFile) -> list[str]:
    """The columns in a file's header; those it should have where it has none."""
    try:
        with open(file.path, encoding="utf-8", errors="replace", newline="") as stream:
            first = stream.readline(65_536)
    except FileNotFoundError:
        first = ""
    return first.rstrip("\r\n").split(",") if first.startswith("type,") else header(file)


def count_rows(path: str, offset: int = 0) -> int:
    """The rows of a file from here on, without its header. A row is a line: there are no line breaks in values."""
    count = 0 if offset else -1
    with open(path, "rb") as stream:
        stream.seek(offset)
        while block := stream.read(RESERVE):
            count += block.count(b"\n")
    return max(0, count)


def _mode(file: AcctFile) -> int:
    return WORLD_READABLE if file.world_readable else OURS


def make(file: AcctFile) -> None:
    """See that the file is there with its header, complete before anybody can open it."""
    if os.path.exists(file.path) and os.path.getsize(file.path) > 0:
        return
    temporary = write_header(file)
    try:
        disk.link(temporary, file.path)
    except FileExistsError:
        if os.path.getsize(file.path) == 0:
            os.rename(temporary, file.path)
    disk.remove(temporary)


def write_header(file: AcctFile) -> str:
    temporary = f"{file.path}.making.{os.getpid()}"
    os.makedirs(os.path.dirname(file.path), exist_ok=True)
    disk.remove(temporary)
    disk.write_new(temporary, csv_line(header(file)).encode(), OURS)
    os.chmod(temporary, _mode(file))  # whatever the umask says
    return temporary
