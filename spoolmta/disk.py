"""The one door to durability: the only `fsync`, `rename`, `link` and `flock` in the program.

What holds on ext4 and xfs (measured by copying the block device under a mounted filesystem):

* a name given *before* a sync is there after it; a name given *after* the sync is not;
* metadata operations reach the disk in the order in which they were made, so a later name never
  survives a power cut that an earlier one did not;
* a removal that was not synced comes back.

So: give the final name, then sync once for many files (`Committer.sync`, 4 ms for 64 files against
1 ms for each file alone), and remove only what an earlier sync has made unnecessary.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
import time
from collections.abc import Iterator

from spoolmta.errors import SpoolError, SyncFailed

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = _libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_FALLOC_FL_KEEP_SIZE = 1
_FLOCK = "hhqqi"
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

GUARDED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags to open a file somebody else put there: no symlink is followed, a FIFO does not hang."""


def rename(source: str, target: str) -> None:
    """Rename without ever replacing: FileExistsError if `target` is there (rename(2) would silently drop it, and
    does nothing at all when both are links of one inode). Falls back to link and unlink where the filesystem
    has no RENAME_NOREPLACE (NFS)."""
    if _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EINVAL:
        os.link(source, target)
        os.unlink(source)
        return
    raise OSError(code, os.strerror(code), source, None, target)


def link(source: str, target: str) -> None:
    """A second name for the same bytes; FileExistsError if `target` is there."""
    os.link(source, target)


def remove(path: str) -> None:
    """Remove a name that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class Committer:
    """Group commit. One descriptor is held for life, because `syncfs` reports a write-back error only to
    descriptors that were open before it happened."""

    def __init__(self, directory: str) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> int:
        """Make durable everything done on the filesystem before this call.

        Returns the monotonic time in nanoseconds at which the sync began: what was written before it is safe.
        Raises SpoolError when the disk failed; the same files must then never be synced again (the kernel has
        marked their pages clean), they are written anew.
        """
        began = time.monotonic_ns()
        if _libc.syncfs(self._descriptor) != 0:
            code = ctypes.get_errno()
            raise SpoolError(f"the disk failed to make the spool durable: {os.strerror(code)}")
        return began

    def close(self) -> None:
        os.close(self._descriptor)


def lock_folder(path: str) -> int | None:
    """Take the exclusive lock of a folder; the descriptor that holds it, or None if somebody else does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


class KeyLocks:
    """Locks between processes by number (0 to 2**32 - 1), in one file; one process cannot shut itself out. The file
    stays open, because closing any descriptor of it would free them all (fcntl(2))."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def try_lock(self, key: int) -> bool:
        """Take a lock, or say that somebody else has it. It is free when its holder ends, however that happens."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, key)
        except (BlockingIOError, PermissionError):
            return False
        return True

    @contextlib.contextmanager
    def held(self, key: int) -> Iterator[None]:
        """Wait for a lock, and hold it for a few instructions."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, key)
        try:
            yield
        finally:
            self.unlock(key)

    def unlock(self, key: int) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, key)

    def close(self) -> None:
        os.close(self._descriptor)


def lock_process(path: str) -> int | str:
    """Take the lock that one process holds for itself and not for its children (an fcntl lock: fork does not
    inherit it, as it would a flock). Returns the descriptor, or the text the holder left in the file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        text = os.read(descriptor, 200).decode("ascii", "replace").strip()
        os.close(descriptor)
        return text
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


@contextlib.contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Hold a file's lock against other processes that take it, for a few instructions. It goes with the process, and
    when the process closes any descriptor of the file (fcntl(2))."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)


def is_open_for_writing(descriptor: int) -> bool:
    """Whether anybody has the file open for writing: a read lease is refused then (fcntl(2), 4.5 microseconds).

    On False the lease is held until the descriptor is closed, so nobody can open the file for writing between
    this answer and the rename that takes it. Where leases do not exist (NFS), the answer is False.

    The kernel tells who holds a lease that somebody wants to write, by SIGIO, which would end the process: here by a
    signal that nobody hears unless he listens.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def has_writers(descriptor: int) -> bool:
    """The same of a file that is only read: nothing is held after the answer. Of another user's file it is False."""
    if is_open_for_writing(descriptor):
        return True
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def preallocate(descriptor: int, start: int, length: int) -> bool:
    """Reserve the space from `start` on, length of the file unchanged, so that a full disk neither stops nor tears what
    must still be written. False if the disk is full; filesystems without fallocate are left as they are."""
    if _fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, start, length) == 0:
        return True
    return ctypes.get_errno() not in _FULL


class AppendFile:
    """A file that is only appended to, whole lines with one `write` each. Reserves space ahead of itself: what does not
    fit into it is not begun, so a full disk leaves no half line for other writers of the file to continue.
    `shared` keeps a quarter of the reserve back for what those write at the same moment."""

    def __init__(self, path: str, reserve: int = 65536, mode: int = 0o640, *, shared: bool = False) -> None:
        self.path = path
        self._reserve = reserve
        self._spare = reserve // 4 if shared else 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
        self._reserved = 0
        self._rest = b""
        # Now, not with the first line: the first line may come when the disk is full.
        size = os.fstat(self._descriptor).st_size
        if preallocate(self._descriptor, size, reserve):
            self._reserved = size + reserve

    def __repr__(self) -> str:
        return f"AppendFile({self.path}, reserved to {self._reserved}, {len(self._rest)} bytes wait)"

    def cut_partial_line(self) -> None:
        """Drop a last line without its end, which a crash in the middle of a write leaves. Only for the owner."""
        size = os.fstat(self._descriptor).st_size
        position = size
        while position > 0:
            start = max(0, position - 4096)
            found = os.pread(self._descriptor, position - start, start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position != size:
            os.ftruncate(self._descriptor, position)

    def append(self, lines: bytes) -> None:
        """Append whole lines. What a full disk did not take is kept and written first next time.
        Raises SpoolError when not everything could be written."""
        data = self._rest + lines
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        need = start + len(data) + self._spare
        if need > self._reserved:
            if preallocate(self._descriptor, start, len(data) + self._reserve):
                self._reserved = start + len(data) + self._reserve
            elif preallocate(self._descriptor, start, len(data) + self._spare):
                self._reserved = need
            else:
                self._rest = data
                raise SpoolError(f"cannot write {self.path}: No space left on device")
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self._rest = data
            raise SpoolError(f"cannot write {self.path}: {error.strerror}") from error
        self._rest = data[written:]
        if self._rest:
            self._take_back(data, written)
            raise SpoolError(f"cannot write {self.path}: No space left on device")

    def _take_back(self, data: bytes, written: int) -> None:
        """The disk took part of a line (a filesystem without fallocate): cut it off, if it is still the end."""
        whole = data.rfind(b"\n", 0, written) + 1
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if whole < written and os.fstat(self._descriptor).st_size == end:
            os.ftruncate(self._descriptor, end - (written - whole))
            self._rest = data[whole:]
            self._reserved = 0

    def sync(self) -> None:
        """Make what was appended durable. Raises SpoolError."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise SpoolError(f"cannot sync {self.path}: {error.strerror}") from error

    @property
    def has_rest(self) -> bool:
        return bool(self._rest)

    def is_at(self, path: str) -> bool:
        """Whether this is the file of that name now."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close, and give back what was reserved (a file that others write too keeps it)."""
        if not self._spare and is_regular(os.fstat(self._descriptor)):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)
        os.close(self._descriptor)


SMALL = 1 << 20
"""Bytes of a file that is read without asking for its size first: a call less for nearly every message."""


def read_guarded(path: str, size: int) -> bytes:
    """A file that is promised to be of this size; nothing, or something of another size, if it is not."""
    descriptor = os.open(path, GUARDED)
    try:
        if size <= SMALL:
            return os.read(descriptor, size + 1)  # one byte more would show that it is too long
        status = os.fstat(descriptor)
        if status.st_size != size or not is_regular(status):
            return b""  # of no use, and the size in a damaged name may be more than there is memory
        data = os.read(descriptor, size)
        while 0 < len(data) < size:
            more = os.read(descriptor, size - len(data))
            if not more:
                break
            data += more
    finally:
        os.close(descriptor)
    return data


def write_new(path: str, data: bytes, mode: int = 0o640) -> None:
    """Write a file that must not exist yet; checks every write. Not synced: the group commit does that."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        os.close(descriptor)
        remove(path)
        raise
    os.close(descriptor)


def replace(path: str, data: bytes, mode: int = 0o640) -> None:
    """Replace a small state file: after a crash it is the old one or the new one, whole (write, sync, rename,
    sync of the folder)."""
    temporary = f"{path}.{os.getpid()}.new"
    remove(temporary)
    write_new(temporary, data, mode)
    try:
        sync_path(temporary)
        os.rename(temporary, path)
    except OSError:
        remove(temporary)
        raise
    sync_path(os.path.dirname(path))


def sync_path(path: str) -> None:
    """fsync one file or folder by name. Raises SyncFailed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def free(path: str) -> tuple[int, int]:
    """Free bytes and inodes for us where `path` lies; a filesystem that does not count inodes reports plenty."""
    status = os.statvfs(path)
    inodes = status.f_favail if status.f_files else 1 << 62
    return status.f_bavail * status.f_frsize, inodes


def is_locked(path: str) -> bool:
    """Whether a living process holds the lock of `lock_process`. Only asks: whoever takes it now is not disturbed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def may_remove(folder: str, status: os.stat_result) -> bool:
    """Whether a file can be removed from its folder: one that stayed behind would be sent again after a restart."""
    place = os.stat(folder)
    if place.st_mode & stat.S_ISVTX and os.geteuid() not in (0, place.st_uid, status.st_uid):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def read_all(descriptor: int, size: int) -> bytes:
    """A file of this size as it is now: whole, and no more than a byte longer."""
    data = os.read(descriptor, size + 1)
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data
