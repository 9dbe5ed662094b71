"""The files of an accounting log as they are found and read: the current one, the one being rotated, and the rotated
ones, packed or not. Whatever a file is called by now, a `Position` finds it again."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import lzma
import os
import re
import time
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import msgspec

from spoolmta import disk
from spoolmta.errors import DataError, SpoolmtaError, UnavailableError

CHUNK = 262_144
HEAD = 4096
TRIES = 100
PACKED = (".gz", ".bz2", ".xz", ".zst")
_UNPACK_ERRORS = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Behind a row, whatever its file is called by now: the file comes after the rotated one `after` (the day and
    number in its name), its first `head` bytes have this `digest`, and its `inode` decides between several of which
    that is true. `header` and `offset` (bytes, of what is unpacked) are where its columns stand and where to go on. An
    offset of 0 is the beginning of the file that comes next, which has this inode (if any) until it is rotated."""

    after: str = ""
    inode: int = 0
    head: int = 0
    digest: str = ""
    header: int = 0
    offset: int = 0


class LogFile:
    """An open file of the log. `name` is the day and number in the name of a rotated one, else empty."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        descriptor = _open(path)
        self.status = os.fstat(descriptor)
        self._file: BinaryIO = os.fdopen(descriptor, "rb", buffering=0)
        self._descriptor = descriptor
        self._stream: BinaryIO | None = None
        self._held, self._start = b"", 0
        self._digested = -1, ""
        try:
            self._stream = _unpacked(path, self._file)
            self._head = self.read(0, HEAD)
        except SpoolmtaError:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"LogFile({self.path})"

    def read(self, offset: int, size: int = CHUNK) -> bytes:
        """Bytes from here, fewer only at the end. In a packed file going back costs reading it from its
        beginning, except to where the last read began."""
        try:
            if self._stream is None:
                return os.pread(self._descriptor, size, offset)
            if offset < self._start:
                self._stream.seek(0)
                self._held, self._start = b"", 0
            while self._start + len(self._held) < offset:
                self._start += len(self._held)
                self._held = self._stream.read(CHUNK)
                if not self._held:
                    return b""
            self._held, self._start = self._held[offset - self._start :], offset
            while len(self._held) < size and (more := self._stream.read(size - len(self._held))):
                self._held += more
            return self._held[:size]
        except _UNPACK_ERRORS as error:
            raise DataError(f"{self.path} is damaged, or not packed to its end: {error}") from error
        except OSError as error:
            raise UnavailableError(f"cannot read {self.path}: {error.strerror or error}") from error

    def fileno(self) -> int:
        """The descriptor of the file as it lies on the disk."""
        return self._descriptor

    @property
    def is_packed(self) -> bool:
        return self._stream is not None

    def digest(self, length: int) -> str:
        if length == self._digested[0]:
            return self._digested[1]
        if len(self._head) < length and self._stream is None:
            self._head = self.read(0, HEAD)
        head = self._head[:length]
        if len(head) < length:
            return ""
        self._digested = length, hashlib.blake2b(head, digest_size=8).hexdigest()
        return self._digested[1]

    def sync(self) -> None:
        """Make durable what is in it, whoever wrote it."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise UnavailableError(f"cannot sync {self.path}: {error.strerror}") from error

    def is_same(self, status: os.stat_result) -> bool:
        return os.path.samestat(self.status, status)

    def has_writers(self) -> bool:
        """Whether somebody may still append to it. Who has it open an hour after the last row is no writer of ours."""
        is_new = time.time() - os.fstat(self._descriptor).st_mtime < 3600
        return is_new and disk.has_writers(self._descriptor)

    def is_shorter_than(self, offset: int) -> bool:
        return self._stream is None and os.fstat(self._descriptor).st_size < offset

    def last_line_end(self) -> int:
        """Where the last whole line ends. Only of a file that is not packed."""
        position = os.fstat(self._descriptor).st_size
        while position > 0:
            start = max(0, position - CHUNK)
            found = self.read(start, position - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
        return 0

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._file.close()


def _open(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    if not disk.is_regular(os.fstat(descriptor)):
        os.close(descriptor)
        raise DataError(f"{path} is no file that can be a log: name one like accounting/acct.csv")
    return descriptor


def _unpacked(path: str, file: BinaryIO) -> BinaryIO | None:
    """The stream of what is packed in it; None if nothing is."""
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    if path.endswith(".bz2"):
        return cast(BinaryIO, bz2.BZ2File(file))
    if path.endswith(".xz"):
        return cast(BinaryIO, lzma.LZMAFile(file))
    if not path.endswith(".zst"):
        return None
    try:
        return cast(BinaryIO, importlib.import_module("compression.zstd").ZstdFile(file))
    except ImportError:
        raise UnavailableError(
            f"cannot read {path}: this Python has no zstd (3.14 has): unpack it, or use gzip"
        ) from None


class LogFiles:
    """The files of a log by their names: the current one, the one being rotated, the rotated ones."""

    def __init__(self, path: str, moved_to: str) -> None:
        self.path = path
        self._folders = [os.path.dirname(path) or ".", *([moved_to] if moved_to else [])]
        base, ending = os.path.splitext(os.path.basename(path))
        packed = "|".join(map(re.escape, PACKED))
        self._pattern = re.compile(
            rf"{re.escape(base)}-(\d{{4}}-\d\d-\d\d-\d{{4,}}){re.escape(ending)}({packed})?", re.ASCII
        )

    def rotated(self, after: str = "") -> list[tuple[str, str]]:
        """(day and number, path) of those that come after this one, in order. A file that is being packed is there
        twice: it is read as it was."""
        found: dict[tuple[int, ...], tuple[str, str]] = {}
        for folder in self._folders:
            try:
                names = os.listdir(folder)
            except OSError as error:
                raise _unreadable(folder, error) from error
            for name in names:
                match = self._pattern.fullmatch(name)
                if match and (not after or _order(match[1]) > _order(after)):
                    path = os.path.join(folder, name)
                    if not match[2] or _order(match[1]) not in found:
                        found[_order(match[1])] = match[1], path
        return [found[order] for order in sorted(found)]

    def present(self, since: float) -> Iterator[LogFile]:
        """All files there are now, open, one after another, but for those that were last written before `since`. What
        is rotated meanwhile is among them once: the current one is opened first. Who takes one closes it."""
        current = self.current()
        rotating = self._opened(self.path + ".rotating")
        last = [source for source in (rotating, current) if source]
        try:
            for name, path in self.rotated():
                status = _stat(path)
                if status is None or status.st_mtime >= since:
                    source = self._opened(path, name) or self._opened(dict(self.rotated()).get(name, ""), name)
                    if source and not any(source.is_same(other.status) for other in last):
                        yield source
                    elif source:
                        source.close()
            if rotating and current and rotating.is_same(current.status):
                last.remove(rotating)
                rotating.close()
            while last:
                yield last.pop(0)
        finally:
            for source in last:
                source.close()

    def following(self, after: str) -> LogFile | None:
        """The file that comes after this rotated one, open; None if it is not there yet. Looks at the current file
        first and lists the rotated ones last: what is renamed meanwhile is seen at least once."""
        for _ in range(TRIES):
            current, rotating = _stat(self.path), _stat(self.path + ".rotating")
            for name, path in self.rotated(after)[:1]:
                source, expected = self._opened(path, name), None
                break
            else:
                is_rotating = rotating is not None and not (current and os.path.samestat(rotating, current))
                expected = rotating if is_rotating else current
                if expected is None:
                    return None
                source = self._opened(self.path + ".rotating" if is_rotating else self.path)
            if source and (expected is None or source.is_same(expected)):
                return source
            if source:
                source.close()  # rotated just now
        raise UnavailableError(f"the files of {self.path} change too fast to be read")

    def at(self, position: Position) -> LogFile | None:
        """The file of a position, whatever it is called by now; None if it is gone."""
        for _ in range(3):  # in the middle of a rotation it may be missed
            places = [*self.rotated(position.after), ("", self.path + ".rotating"), ("", self.path)]
            statuses = [_stat(path) for _, path in places]
            order = sorted(
                (number for number, status in enumerate(statuses) if status),
                key=lambda number: cast(os.stat_result, statuses[number]).st_ino != position.inode,
            )
            for name, path in (places[number] for number in order):
                source = self._opened(path, name)
                if source and source.digest(position.head) == position.digest:
                    return source
                if source:
                    source.close()
        return None

    def have_left(self, source: LogFile) -> bool:
        """Whether no writer appends to this file any more. Asked of the current name first: it is given away last. One
        whose supervisor was killed may still have a file that has got its final name."""
        if not source.name:
            current = _stat(self.path)
            if current is None or source.is_same(current):
                return False
            rotating = _stat(self.path + ".rotating")
            if rotating is not None and source.is_same(rotating):
                return False
        return not source.has_writers()

    def name_of(self, source: LogFile, position: Position) -> str:
        """The name that a file which was left has got: by its inode, or, if it was packed at once, by what is in it."""
        if source.name:
            return source.name
        listed = self.rotated(position.after)
        for name, path in listed:
            status = _stat(path)
            if status and source.is_same(status):
                return name
        for name, path in listed if position.offset else ():
            other = self._opened(path, name)
            if other:
                is_it = other.digest(position.head) == position.digest
                other.close()
                if is_it:
                    return name
        return ""

    def current(self) -> LogFile | None:
        return self._opened(self.path)

    @staticmethod
    def _opened(path: str, name: str = "") -> LogFile | None:
        try:
            return LogFile(path, name)
        except FileNotFoundError:
            return None


def is_name(text: str) -> bool:
    """Whether this is the day and number in the name of a rotated file, or none."""
    return not text or re.fullmatch(r"\d{4}-\d\d-\d\d-\d{4,}", text, re.ASCII) is not None


def comes_next(before: str, name: str) -> bool:
    """Whether no file can have been between these two: numbers go on, or begin on another day."""
    if not before:
        return True
    day, number = before.rsplit("-", 1)
    next_day, next_number = name.rsplit("-", 1)
    return int(next_number) == int(number) + 1 if next_day == day else int(next_number) <= 1


def _order(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("-")))


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> UnavailableError:
    hint = ": run this as the user that runs spoolmta" if isinstance(error, PermissionError) else ""
    return UnavailableError(f"cannot read {path}: {error.strerror}{hint}")
