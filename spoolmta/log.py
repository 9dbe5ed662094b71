"""The accounting log as a program reads it: the public way to every row, exactly once.

    from spoolmta import log

    with log.follow("/var/spool/spoolmta/accounting/acct.csv", position=saved) as rows:
        for record in rows:                      # spoolmta.row.Record: times in Unix seconds, sizes in bytes
            handle(record)
            save(rows.position)                  # a small dict for JSON; the next reader goes on behind this record

Rows come file by file, each in its order: the rotated files by the day and number in their names, `.gz`, `.bz2`, `.xz`
(and `.zst`, from Python 3.14) too, then the one being rotated, then the current one. A file is left only when its
writers have left it: when it has its final name. A line that is not yet whole is not given out. Works on PowerMTA's own
logs, too: the header says what the columns are.

The log is polled: a look is two calls of `stat` and one of `read`, while inotify would wake a reader for every write of
every process, and cannot see what another machine writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, cast

import msgspec

from spoolmta import disk
from spoolmta.errors import DataError, UnavailableError
from spoolmta.logfiles import CHUNK, HEAD, LogFile, LogFiles, Position, comes_next, is_name
from spoolmta.row import Columns, Reader, Record, rows_in
from spoolmta.sought import Sieve

__all__ = ["Follower", "PositionLost", "Record", "Search", "follow", "keep_position", "read_position"]

MOST = 65_536
"""Bytes of a kept position that are looked at."""


class PositionLost(UnavailableError):
    """What a position speaks of is not there any more, so rows may be missing."""


class Reading:
    """How far one file has been read. `offset` is always behind a whole row."""

    def __init__(self, source: LogFile, offset: int = 0, header: int = 0) -> None:
        self.source = source
        self.offset, self.header = offset, header
        self._skipped = 0
        self._columns: Columns | None = None
        self._begin = -1
        self._is_inside = False
        self._reader = Reader()
        if offset:
            row = next(rows_in(source.read(header), is_all=True), (b"", 0))[0]
            self._take_header(self._reader.values(row) or [], header)
            self._begin = 0

    def __repr__(self) -> str:
        return f"Reading({self.source.path}, {self.offset})"

    def position(self, after: str) -> Position:
        """Where this is; the beginning of the file as long as no row of it has been read."""
        inode = self.source.status.st_ino
        if self._columns is None or self.offset <= self._begin:
            return Position(after, 0 if self.source.name or self._columns is None else inode)
        head = min(self.offset, HEAD)
        digest = self.source.digest(head)
        return Position(after, inode, head, digest, self.header, self.offset)

    def forget_skipped(self) -> int:
        """How many lines were no rows, since this was asked last."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def rows(self, sieve: Sieve | None, is_all: bool) -> Iterator[tuple[Columns, list[str]]]:
        """The rows from here to the present end of the file. `is_all` says that nothing more will come."""
        while data := self.source.read(self.offset):
            before = self.offset
            if self._is_inside:
                end = data.find(b"\n") + 1
                self.offset += end or len(data)
                self._is_inside = not end
            elif sieve is not None and (end := self._end_of_unwanted(data, sieve)):
                self.offset += end
            else:
                yield from self._rows_of(data, is_all and len(data) < CHUNK, sieve)
            if self.offset == before:
                if len(data) < CHUNK:
                    self._skipped += is_all
                    return  # a line that is not yet whole
                self.offset += len(data)
                self._skipped += 1
                self._is_inside = True
        if self.source.is_shorter_than(self.offset):
            raise PositionLost(f"{self.source.path} is shorter than what was read of it: read it from its beginning")

    def _rows_of(self, data: bytes, is_all: bool, sieve: Sieve | None) -> Iterator[tuple[Columns, list[str]]]:
        read = self._reader.values
        for row, size in rows_in(data, is_all):
            start = self.offset
            self.offset += size
            columns = self._columns
            if sieve is not None and columns is not None and not sieve.may_be_in(row) and not row.startswith(b"type,"):
                continue
            values = read(row)
            if values is None:
                self._skipped += 1
            elif not values:
                continue
            elif columns is None or values[columns.type_place : columns.type_place + 1] == ["type"]:
                self._take_header(values, start)
            elif len(values) != len(columns.names):
                self._skipped += 1
            elif sieve is None or sieve.takes(columns, values):
                yield columns, values

    def _end_of_unwanted(self, data: bytes, sieve: Sieve) -> int:
        """Where the whole rows of this block end, if nothing in it is sought and it can be passed over as it is; else
        0."""
        end = data.rfind(b"\n") + 1
        block = data[:end]
        if self._columns is None or block.startswith(b"type,") or b"\ntype," in block or block.count(b'"') & 1:
            return 0  # (a row may go on behind this line break)
        if not sieve.may_be_in(block):
            return end
        last = self._reader.values(block[block.rfind(b"\n", 0, -1) + 1 :]) or ()
        return end if len(last) == len(self._columns.names) and sieve.is_before(self._columns, last) else 0

    def _take_header(self, names: list[str], start: int) -> None:
        """Rows have these columns from now on. A byte order mark is no part of the first name."""
        names = [names[0].removeprefix("\ufeff"), *names[1:]] if names else []
        if "type" not in names:
            raise DataError(f"{self.source.path} is no accounting log: the columns in its header have no type")
        self.header = start
        if self._columns is None:
            self._begin = self.offset
        self._columns = Columns(names)


class Follower:
    """The rows of a log, by `follow`: an iterator of records, and a context manager that closes it. `skipped` counts
    lines that are no rows of their header."""

    def __init__(
        self, files: LogFiles, wait: bool, stop: Callable[[], bool] | None, poll: float, may_miss: bool
    ) -> None:
        self.skipped = 0
        self._files = files
        self._wait, self._stop, self._poll = wait, stop, poll
        self._may_miss, self._is_exact = may_miss, not may_miss
        self._after = ""
        self._next = 0
        self._reading: Reading | None = None
        self._rows: Iterator[tuple[Columns, list[str]]] | None = None
        self._loop = 0
        self._closed_at: Position | None = None

    def __repr__(self) -> str:
        return f"Follower({self._files.path}, after={self._after!r}, {self._reading})"

    def __iter__(self) -> Follower:
        return self

    def __next__(self) -> Record:
        if self._rows is None:
            self._rows = self.rows()
        for columns, values in self._rows:
            return columns.record(values)
        self._rows = None
        raise StopIteration

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. `position` is still there."""
        self._closed_at = self._closed_at or self._where()
        if self._reading is not None:
            self.skipped += self._reading.forget_skipped()
            self._reading.source.close()
            self._reading = None

    def sync(self) -> None:
        """Make durable what was read of the present file; those before it are, since their writers have left them."""
        if self._reading is not None:
            self._reading.source.sync()

    @property
    def position(self) -> dict[str, Any]:
        """Behind the last row that was given out: for `follow`, in a later process too, and for JSON."""
        return cast(dict[str, Any], msgspec.to_builtins(self._where()))

    def rows(self, sieve: Sieve | None = None) -> Iterator[tuple[Columns, list[str]]]:
        """The same as columns and text, as far as they are sought; what the iterator makes records of. A loop over it
        ends when another one begins."""
        self._loop = loop = self._loop + 1
        while not self._has_to_end():
            reading = self._reading or self._open_next()
            if reading is not None:
                has_ended = self._files.have_left(reading.source)  # asked first: what comes later is not missed
                before = reading.offset
                for row in reading.rows(sieve, has_ended):
                    yield row
                    if self._loop != loop or self._has_to_end():
                        return
                self.skipped += reading.forget_skipped()
                if has_ended:
                    self._leave(reading)
                    continue
                if reading.offset != before:
                    continue
            if not self._wait:
                return
            time.sleep(self._poll)

    def _has_to_end(self) -> bool:
        return self._closed_at is not None or (self._stop is not None and self._stop())

    def _open_next(self) -> Reading | None:
        """Open the file that comes next. Raises PositionLost if that is another one than it has to be."""
        source = self._files.following(self._after)
        if source is None:
            return None
        is_it = comes_next(self._after, source.name) if source.name else self._next in (0, source.status.st_ino)
        if not is_it and self._is_exact:
            source.close()
            raise self._lost()
        self._next, self._is_exact = 0, not self._may_miss
        self._reading = Reading(source)
        return self._reading

    def _leave(self, reading: Reading) -> None:
        name = self._files.name_of(reading.source, self._where())
        self._after = name or self._after
        self._is_exact = bool(name) and not self._may_miss  # taken away at once: nobody knows which comes next
        reading.source.close()
        self._reading = None
        self._open_next()

    def _lost(self) -> PositionLost:
        return PositionLost(
            f"{self._files.path}: the file after {self._after or 'the beginning'}, which was not read to its end, is"
            " not there any more, or was changed: put it back, tell where it was moved (moved_to), or go on with the"
            ' files that came after it (on_missing="continue")'
        )

    def _where(self) -> Position:
        if self._closed_at is not None:
            return self._closed_at
        return self._reading.position(self._after) if self._reading else Position(self._after)

    def go_to(self, position: Position) -> None:
        """Go on behind this position."""
        self._after = position.after
        if not position.offset:
            self._next = position.inode
            return
        source = self._files.at(position)
        if source is not None:
            self._reading = Reading(source, position.offset, position.header)
        elif self._is_exact:
            raise self._lost()

    def must_be_there(self) -> None:
        if self._open_next() is None:
            raise UnavailableError(f"there is no log {self._files.path}")

    def go_to_end(self) -> None:
        """Leave out all there is by now."""
        rotated = self._files.rotated()
        self._after = rotated[-1][0] if rotated else ""
        source = self._files.current()
        if source is not None:
            self._reading = Reading(source)
            next(self._reading.rows(None, False), None)  # for the header
            self._reading.offset = max(self._reading.offset, source.last_line_end())


def follow(
    path: str | os.PathLike[str],
    position: Mapping[str, Any] | Literal["start", "end"] = "start",
    *,
    wait: bool = True,
    stop: Callable[[], bool] | None = None,
    poll: float = 0.2,
    on_missing: Literal["error", "continue"] = "error",
    moved_to: str | os.PathLike[str] = "",
) -> Follower:
    """The rows of the log whose current file is `path`, as records, in order, each once.

    position    where to begin: at the "start" (the oldest file there is), at the present "end", or behind a
                `position` that a Follower had, in this process or another.
    wait        at the end of the log wait for more. With False a loop ends there, and another loop over the same
                Follower goes on. While a file is being rotated its end is the end: its writers may still append to it.
    stop        is asked before each row and at each look; the loop ends when it says True.
    poll        seconds between looks at a log that has nothing new.
    on_missing  what to do if a file is gone that was not read to its end, or a number is missing among the names: an
                "error" (PositionLost), or "continue" with the files that came later, without those rows.
    moved_to    another folder in which rotated files may lie. Their names must stay, but for .gz, .bz2, .xz or .zst.

    Errors are sentences: DataError for what is no log or no position, UnavailableError for what cannot be read.
    """
    follower = Follower(LogFiles(os.fspath(path), os.fspath(moved_to)), wait, stop, poll, on_missing == "continue")
    if position == "end":
        follower.go_to_end()
    elif position != "start":
        follower.go_to(_position(position))
    elif not wait:
        follower.must_be_there()
    return follower


def _position(given: Mapping[str, Any] | str) -> Position:
    try:
        position = msgspec.convert(given, Position)
    except msgspec.ValidationError as error:
        raise DataError(f"this is no position in a log: {error}") from error
    if not is_name(position.after) or not 0 <= position.header <= position.offset or not 0 <= position.head <= HEAD:
        raise DataError(f"this is no position in a log: {given}")
    return position


def read_position(path: str) -> dict[str, Any] | None:
    """The position that `keep_position` has kept in a file, if it is there."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(MOST), type=dict[str, Any])
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DataError(f"{path} has no position of a log: {error}") from error
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}") from error


def keep_position(path: str, position: Mapping[str, Any]) -> None:
    """Keep a position: after a crash it is this one or the one before."""
    try:
        disk.replace(os.path.abspath(path), msgspec.json.encode(position) + b"\n")
    except OSError as error:
        raise UnavailableError(f"cannot keep the position in {path}: {error.strerror}") from error


class Search:
    """All rows there are now that are sought, in order of time. Files whose times rule them out are not read, and bytes
    that cannot have such a row in them are not taken apart."""

    def __init__(self, path: str, sieve: Sieve, moved_to: str = "") -> None:
        self.skipped = 0
        self._files = LogFiles(path, moved_to)
        self._sieve = sieve

    def rows(self) -> Iterator[tuple[Columns, list[str]]]:
        is_there = False
        for source in self._files.present(self._sieve.since):
            is_there = True
            try:
                first = next(Reading(source).rows(None, False), None)
                if first is None or self._sieve.is_behind(*first):
                    continue
                reading = Reading(source)
                yield from reading.rows(self._sieve, bool(source.name))
                self.skipped += reading.forget_skipped()
            finally:
                source.close()
        if not is_there and not self._files.rotated():
            raise UnavailableError(f"there is no log {self._files.path}")
