"""The process of a pipe: one program that gets the rows of an accounting file, each once, as they come.

All others write the file, as any accounting file; this process follows it, and keeps the position behind what the
program has read. So nobody waits for the program, and what it has not read when it breaks is given to the next one.

| the program | what happens |
|---|---|
| is started | it gets the header of the first row that comes, then rows |
| ends, closes its input, cannot be started, or reads nothing for write-timeout | it is ended, and started again after
  retry-interval or at a reload, from the first row on that it has not read |
| would get a row of other columns | its input ends, and it is started again at once |
| falls back further than delete-after | rows that are older are dropped, and that is told |

A row is read when the program has taken all its bytes out of the pipe: what becomes of it then is the program's
affair. Rows may be given twice after a `kill -9` of this process or a power cut: those that were in the pipe, and those
that were read in the second before.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import shlex
import signal
import time
from collections.abc import Callable, Iterator

import msgspec

from spoolmta import accounting, disk
from spoolmta import log as acct_log
from spoolmta.errors import DataError, SpoolmtaError
from spoolmta.flight import Flight, Position
from spoolmta.logfiles import LogFiles
from spoolmta.model import AcctFile, Config
from spoolmta.program import Program
from spoolmta.row import Columns
from spoolmta.shared import Cell, Page, Row

log = logging.getLogger("spoolmta")

KEEP = 1.0
"""Seconds between two times that the position is kept, and that the figures are told."""
SHORTEST, LONGEST = 0.02, 0.5
"""Seconds between two looks at the file, the longer the longer nothing has come."""
CLEANING = 600.0
LAST, PATIENCE = 10.0, 5.0
"""Seconds at the end: for the rows that are there, and for the program to do with them what it does."""
BLOCKS = 64
"""Writes between two looks at signals and at the program."""


class Line(msgspec.Struct, frozen=True):
    """One row, as the program gets it, with its columns and the position behind it."""

    names: tuple[str, ...]
    data: bytes
    position: Position


class Source:
    """The rows behind a position. A file that is gone, or was cut short by a power cut, is told of."""

    def __init__(self, path: str, position: Position) -> None:
        self._path = path
        self._follower = self._follow(position)
        self._lines: Iterator[tuple[Columns, list[str]]] | None = None
        self._next: Line | None = None

    def _follow(self, position: Position) -> acct_log.Follower:
        try:
            return acct_log.follow(self._path, position or "start", wait=False)
        except acct_log.PositionLost:
            return self._go_on(position)

    def _go_on(self, position: Position) -> acct_log.Follower:
        log.error("a file of %s that was being read is gone or shorter: rows may be missing, or come again", self._path)
        behind = {"after": position.get("after", "")}
        return acct_log.follow(self._path, behind, wait=False, on_missing="continue")

    def peek(self) -> Line | None:
        """The next row, if it is there by now."""
        if self._next is None:
            try:
                self._next = self._read()
            except acct_log.PositionLost:
                position = self._follower.position
                self.close()
                self._follower = self._go_on(position)
            except DataError as error:
                self._pass_over(error)
        return self._next

    def _pass_over(self, error: DataError) -> None:
        """Go on behind a file that is none of ours; the current one is looked at again when it is rotated."""
        later = LogFiles(self._path, "").rotated(self._follower.position.get("after", ""))
        if later:
            log.error("%s: it is left out", error)
            self.close()
            behind = {"after": later[0][0]}
            self._follower = acct_log.follow(self._path, behind, wait=False, on_missing="continue")

    def _read(self) -> Line | None:
        if self._lines is None:
            self._lines = self._follower.rows()
        for columns, values in self._lines:
            data = accounting.csv_line(values).encode("utf-8", "replace")
            return Line(columns.names, data, self._follower.position)
        self._lines = None
        return None

    def take(self) -> None:
        self._next = None

    @property
    def position(self) -> Position:
        """Behind the last row that was taken, in the file that comes now: only where there is no next row."""
        return self._follower.position

    def sync(self) -> None:
        self._follower.sync()

    def close(self) -> None:
        self._lines = None
        self._follower.close()
        if self._follower.skipped:
            log.warning("%d lines of %s were no rows and were left out", self._follower.skipped, self._path)


class Feeder:
    """One pipe. `row` is where it is seen: MESSAGES rows read, QUEUED bytes that are not, READY that the program runs,
    TROUBLE that it broke."""

    def __init__(self, file: AcctFile, page: Page, row: Row) -> None:
        self._file, self._page, self._row = file, page, row
        self._what = shlex.join(file.command)
        self._files = LogFiles(file.path, "")
        self._flight = Flight(self._kept_position())
        self._kept = self._flight.settled
        self._program: Program | None = None
        self._source: Source | None = None
        self._names: tuple[str, ...] = ()
        self._block = b""
        self._start_at = self._taken_at = self._keep_at = self._clean_at = 0.0
        self._is_changing = self._is_leaving = self._is_told = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._new_file: AcctFile | None = None

    def __repr__(self) -> str:
        return f"Feeder({self._file.pipe}, {self._program}, {self._flight})"

    def _kept_position(self) -> Position:
        try:
            return acct_log.read_position(self._file.position) or {}
        except DataError as error:
            log.error("%s: all rows that are there are given", error)
            return {}

    # The life of the process

    def ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def leave(self) -> None:
        self._is_leaving = True
        self.ring()

    def reconfigure(self, file: AcctFile | None) -> None:
        """Other settings; a program that broke is started at once. Without any the pipe is not wanted any more."""
        self._is_leaving = self._is_leaving or file is None
        self._new_file = file
        self.ring()

    def run(self, is_orphan: Callable[[], bool]) -> None:
        """Work until told to stop or the parent is gone; then give what is there, and let the program end."""
        pause = SHORTEST
        while not self._is_leaving and not is_orphan():
            self._apply_config()
            has_moved = self._turn(time.monotonic())
            pause = SHORTEST if has_moved else min(2 * pause, LONGEST)
            self._wait(pause)
        self._finish()

    def _apply_config(self) -> None:
        if self._new_file is not None:
            self._row[Cell.CONFIG_GENERATION] = self._page.config_generation
            self._file, self._new_file = self._new_file, None
            self._start_at = 0.0

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if self._program is not None:
            self._program.register(poll, bool(self._block))
        poll.poll(seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _turn(self, now: float) -> bool:
        """Whether anything was given or read."""
        if self._program is None and now >= self._start_at:
            self._begin(now)
        has_moved = self._program is not None and self._feed(self._program, now)
        if now >= self._keep_at:
            self._keep_at = now + KEEP
            self._keep()
            self._tell_figures()
        if now >= self._clean_at:
            self._clean_at = now + CLEANING
            self._clean()
        return has_moved

    def _finish(self) -> None:
        deadline = time.monotonic() + LAST
        while self._program is not None and self._has_more() and time.monotonic() < deadline:
            self._feed(self._program, time.monotonic())
            self._wait(SHORTEST)
        if self._program is not None:
            self._end(self._program, PATIENCE)
        self._keep()
        self._tell_figures()

    def _has_more(self) -> bool:
        """Whether there is a row that the program has not read."""
        return not self._flight.is_over or (self._source is not None and self._source.peek() is not None)

    # The program

    def _begin(self, now: float) -> None:
        """Start the program where the last one has stopped reading, and give it the header of what comes."""
        self._drop()
        self._is_changing = False
        source = Source(self._file.path, self._flight.settled)
        first = source.peek()
        self._names = first.names if first is not None else tuple(accounting.columns_in(self._file))
        try:
            self._program = Program(self._file.command, lambda text: log.warning("its program says: %s", text))
        except OSError as error:
            source.close()
            self._retry_later(f"cannot be started: {error.strerror}", now)
            return
        self._source, self._flight = source, Flight(self._flight.settled)
        self._block = accounting.csv_line(list(self._names)).encode()
        self._flight.give(len(self._block))
        self._taken_at = now
        self._row[Cell.READY], self._row[Cell.TROUBLE] = 1, 0
        log.info("%s is started (process %d)", self._what, self._program.pid)

    def _feed(self, program: Program, now: float) -> bool:
        """Give the program what it takes, see how far it has read, and whether it is well."""
        has_moved = self._write(program)
        program.listen()
        trouble = program.trouble()
        before = self._flight.done
        if self._see_read(len(self._block) + program.unread):
            self._taken_at = now
        elif now - self._taken_at > self._file.write_timeout:
            trouble = trouble or f"has read nothing for {self._file.write_timeout:.0f} s"
        if trouble:
            self._end(program, 0.0)
            self._retry_later(f"{trouble} after {self._flight.rows} rows", now)
        elif self._is_changing and self._flight.is_over:
            self._end(program, PATIENCE)
        return has_moved or self._flight.done != before

    def _write(self, program: Program) -> bool:
        has_moved = False
        for _ in range(BLOCKS):
            if not self._block:
                self._load()
            written = program.write(self._block) if self._block else 0
            if not written:
                break
            self._block = self._block[written:]
            has_moved = True
        return has_moved

    def _load(self) -> None:
        """The next block: whole rows, so many that the pipe takes them all or none. One of other columns is for another
        start of the program, which knows these only."""
        assert self._source is not None
        lines: list[bytes] = []
        size = 0
        while not self._is_changing and (line := self._source.peek()) is not None:
            if line.names != self._names:
                self._is_changing = True
            if self._is_changing or (lines and size + len(line.data) > select.PIPE_BUF):
                break
            self._source.take()
            self._flight.give(len(line.data), line.position)
            lines.append(line.data)
            size += len(line.data)
        self._block = b"".join(lines)

    def _see_read(self, unread: int) -> bool:
        before = self._flight.rows
        is_forward = self._flight.read(unread)
        self._row.add(Cell.MESSAGES, self._flight.rows - before)
        return is_forward

    def _end(self, program: Program, patience: float) -> None:
        """No program from here on. What it has not read stays where it is."""
        unread = len(self._block) + program.end(patience)
        self._see_read(unread)
        self._keep()
        self._program, self._block = None, b""
        self._row[Cell.READY] = 0
        if self._source is not None:
            self._source.close()
            self._source = None

    def _retry_later(self, trouble: str, now: float) -> None:
        self._start_at = now + self._file.retry_interval
        self._row[Cell.TROUBLE] = 1
        log.error(
            "%s %s: it is started again in %.0f s, or at a reload, and gets the rows that it has not read",
            self._what,
            trouble,
            self._file.retry_interval,
        )

    # What lies on the disk

    def _keep(self) -> None:
        """Keep the position behind what the program has read, the rows before it first; then their files may go."""
        if self._source is not None and not self._has_more():
            self._flight.go_on_to(self._source.position)
        settled = self._flight.settled
        if settled == self._kept:
            return
        try:
            if self._source is not None:
                self._source.sync()
            acct_log.keep_position(self._file.position, settled)
        except SpoolmtaError as error:
            if not self._is_told:
                log.error("%s; rows may be given twice until it can", error)
            self._is_told = True
            return
        is_another = settled.get("after") != self._kept.get("after")
        self._kept, self._is_told = settled, False
        if is_another:
            self._delete_passed()

    def _delete_passed(self) -> None:
        """Delete what lies before the position that is kept: names go on from it. Listed first is what may go: a file
        that is rotated in between is among the later ones only."""
        every = self._files.rotated()
        later = self._files.rotated(self._kept.get("after", ""))
        for entry in every:
            if entry not in later:
                disk.remove(entry[1])

    def _unread_files(self) -> list[tuple[str, str]]:
        return self._files.rotated(self._flight.settled.get("after", ""))

    def _too_old(self) -> list[tuple[str, str]]:
        """Files with rows that the program has not read and that are older than delete-after."""
        if math.isinf(self._file.delete_after):
            return []
        oldest = time.time() - self._file.delete_after
        return [(name, path) for name, path in self._unread_files() if _changed(path) < oldest]

    def _clean(self) -> None:
        self._delete_passed()
        if self._program is None:
            self._drop()
        elif self._too_old():
            self._is_changing = True  # dropped before the program is started anew

    def _drop(self) -> None:
        """Give up what nobody has read for too long: the disk is for mail."""
        for name, path in self._too_old():
            count = accounting.count_rows(path, self._flight.settled.get("offset", 0))
            log.error("%d rows are dropped unread, in %s: they are older than delete-after", count, path)
            self._flight = Flight({"after": name})
        self._keep()

    def _tell_figures(self) -> None:
        """How many bytes are there that the program has not read."""
        offset = self._flight.settled.get("offset", 0)
        head = len(accounting.csv_line(accounting.header(self._file)).encode())
        paths = [path for _, path in self._unread_files()]
        sizes = [_size(path) for path in (*paths, f"{self._file.path}.rotating", self._file.path)]
        unread = sum(max(0, size - head) for size in sizes) - max(0, offset - head)
        self._row[Cell.QUEUED] = max(0, unread)


def _changed(path: str) -> float:
    try:
        return os.path.getmtime(path)
    except FileNotFoundError:
        return math.inf


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def take(file: AcctFile, is_wanted: Callable[[], bool]) -> bool:
    """Wait until a process before us, which may still be giving what was there, has let go of the pipe; it is ours as
    long as this process lives."""
    while isinstance(disk.lock_process(f"{os.path.dirname(file.path)}/lock"), str):
        if not is_wanted():
            return False
        time.sleep(0.05)
    return True


def run(file: AcctFile, page: Page, row: Row, reload: Callable[[], Config], is_orphan: Callable[[], bool]) -> None:
    """The process. SIGTERM: give what is there and leave; SIGHUP: the new configuration."""
    if not take(file, lambda: not is_orphan()):
        return
    feeder = Feeder(file, page, row)
    signal.signal(signal.SIGTERM, lambda _number, _frame: feeder.leave())
    signal.signal(signal.SIGHUP, lambda _number, _frame: feeder.reconfigure(reload().pipes.get(file.pipe)))
    # Ctrl-C is for the supervisor. By a handler, so that for the program everything is as by default.
    for ignored in (signal.SIGINT, signal.SIGUSR1, signal.SIGIO):
        signal.signal(ignored, lambda _number, _frame: None)
    feeder.run(is_orphan)
