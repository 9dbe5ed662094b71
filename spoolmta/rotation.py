"""The rotation of accounting files, as the supervisor does it: loses no row while hundreds of processes write.

The file is renamed to `NAME.rotating`, a new one with its header put in the old place, and the generation raised in the
shared page; every writer reopens at its next write (or when signalled) and says so in its row of the page. When all
have, the old file gets its final name, `NAME-YYYY-MM-DD-NNNN.csv`, beside it or in `move-to`.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import math
import os
import re
import time

from spoolmta import disk
from spoolmta import log as acct_log
from spoolmta.accounting import columns_in, count_rows, csv_line, header, make, write_header
from spoolmta.errors import DataError, SpoolError
from spoolmta.model import AcctFile
from spoolmta.shared import Page

log = logging.getLogger("spoolmta")

CLEANING = 600.0
"""Seconds between two looks for files that are old enough to be deleted."""


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
        self._pending: list[tuple[AcctFile, str]] = []
        self._since = dict.fromkeys((file.path for file in files), now)
        self._outdated: set[str] = set()
        self._clean_at = now
        self._latest: dict[str, tuple[str, int]] = {}
        for file in files:
            try:
                make(file)
                _mend(file.path)
            except OSError as error:
                raise SpoolError(f"cannot make the accounting file {file.path}: {error.strerror}") from error
            self._check_place(file)
            if file.command:
                self._latest[file.path] = _last_passed(file)
            rotating = file.path + ".rotating"
            if os.path.exists(rotating):
                if os.path.samefile(rotating, file.path):
                    os.unlink(rotating)  # a crash before the new file was in place: nothing was rotated
                else:
                    self._pending.append((file, self._final_name(file, now)))
            if columns_in(file) != header(file):
                self._outdated.add(file.path)
            # A file begun before we were started is as old as its last row says: yesterday's is rotated now.
            self._since[file.path] = min(now, os.path.getmtime(file.path))

    def _check_place(self, file: AcctFile) -> None:
        """A file is moved by one rename, so both places are on one filesystem."""
        if file.move_to:
            try:
                os.makedirs(file.move_to, exist_ok=True)
                is_near = os.stat(file.move_to).st_dev == os.stat(file.path).st_dev
            except OSError as error:
                raise SpoolError(f"cannot move {file.path} to {file.move_to}: {error.strerror}") from error
            if not is_near:
                raise SpoolError(f"cannot move {file.path} to {file.move_to}: they are on different filesystems")

    def __repr__(self) -> str:
        return f"Rotation(pending={self._pending}, since={self._since})"

    def delete_old(self, now: float) -> None:
        """Delete rotated files that are older than delete-after, packed ones too; at most every CLEANING seconds. What
        goes to `move-to` belongs to somebody else, that of a pipe to the process that reads it."""
        if now < self._clean_at:
            return
        self._clean_at = now + CLEANING
        for file in self._files:
            if file.move_to or file.command or math.isinf(file.delete_after):
                continue
            for name in self._rotated(file):
                with contextlib.suppress(OSError):
                    if os.path.getmtime(name) < now - file.delete_after:
                        disk.remove(name)
                        log.info("%s is deleted: it is older than delete-after", name)

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
            fresh, rotating = write_header(file), file.path + ".rotating"
            # No moment without a file of this name: a process that starts now opens the old one or the new one.
            try:
                disk.link(file.path, rotating)
                self._pending.append((file, self._final_name(file, now)))
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
                file, target = self._pending[0]
                with contextlib.suppress(FileNotFoundError):  # taken away by somebody
                    disk.rename(file.path + ".rotating", target)
                    if file.count_moved_records:
                        log.info("%s is moved to %s: %d records", file.path, target, count_rows(target))
                del self._pending[0]
        return not self._pending

    @property
    def files(self) -> list[AcctFile]:
        return list(self._files)

    def _has_rows(self, file: AcctFile, size: int) -> bool:
        return size > len(csv_line(header(file)).encode())

    def _final_name(self, file: AcctFile, now: float) -> str:
        """`acct.csv` becomes `acct-YYYY-MM-DD-NNNN.csv`. Names only rise, whatever was taken away meanwhile and however
        the clock was set: readers go by them."""
        base, ending = os.path.splitext(os.path.basename(file.path))
        found = [_NUMBER.search(name) for name in self._rotated(file)]
        latest = max([self._latest.get(file.path, ("", 0)), *((match[1], int(match[2])) for match in found if match)])
        day = time.strftime("%Y-%m-%d", time.localtime(now))
        self._latest[file.path] = day, number = (day, 0) if day > latest[0] else (latest[0], latest[1] + 1)
        return f"{file.move_to or os.path.dirname(file.path)}/{base}-{day}-{number:04d}{ending}"

    def _rotated(self, file: AcctFile) -> list[str]:
        base, ending = os.path.splitext(os.path.basename(file.path))
        folders = dict.fromkeys((os.path.dirname(file.path), *([file.move_to] if file.move_to else [])))
        pattern = f"{glob.escape(base)}-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]-[0-9]*{glob.escape(ending)}*"
        found = [name for folder in folders for name in glob.glob(f"{glob.escape(folder)}/{pattern}")]
        return [name for name in found if _NUMBER.search(name)]


def _last_passed(file: AcctFile) -> tuple[str, int]:
    """Day and number of the last file that the program of a pipe has read: it is deleted, and names go on from it."""
    try:
        after = str((acct_log.read_position(file.position) or {}).get("after", ""))
    except DataError:
        return "", 0
    day, _, number = after.rpartition("-")
    return (day, int(number)) if number.isdecimal() else ("", 0)


_NUMBER = re.compile(r"-(\d{4}-\d\d-\d\d)-(\d{4,})(?:\.[^/-]*)?\Z")
