"""Where dropped files are seen: the pickup folders, what rings for them, and how they came to lie there.

The doorbell. watchdog costs 140 microseconds an event and says nothing when events are lost, so an event only wakes
the process: it stops watching, scans and takes until three scans in a row find nothing, watches again and scans once
more. (`os.scandir` costs 0.7 microseconds a name.) Where nothing can be watched, it scans every half second.

Complete or not. A file that was renamed into the folder is complete. One that was created there may still be written:
it is taken once nobody has it open for writing and it has been quiet for two seconds. The kernel tells the two apart:
a watch for IN_CREATE and IN_CLOSE_WRITE, which droppers that rename from elsewhere never trigger and so never pay for,
names what was created in place, and what its writer has closed (of files that are not ours nothing else tells that).
The name is in the folder before the event only while the creator holds the folder's lock, so a scan followed by a read
of the events knows of every name it saw. What lay there before the watch, or when events were lost, may be either.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import struct
import threading
from collections.abc import Callable

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from spoolmta.model import Source

log = logging.getLogger("spoolmta")

QUIET = 2.0
"""Seconds for which a file that was created in place must not have changed."""


class CreateWatch:
    """Names created in a folder (not renamed into it), and closed by a writer: an inotify watch of our own."""

    _IN_CLOSE_WRITE = 0x8
    _IN_CREATE = 0x100
    _LOST = 0x4000 | 0x8000  # IN_Q_OVERFLOW; IN_IGNORED: the folder was removed

    def __init__(self, folder: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        events = self._IN_CREATE | self._IN_CLOSE_WRITE
        self._descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor >= 0 and libc.inotify_add_watch(self._descriptor, os.fsencode(folder), events) < 0:
            self.close()

    @property
    def works(self) -> bool:
        return self._descriptor >= 0

    def read(self) -> tuple[list[tuple[bytes, bool]], bool]:
        """What happened since the last call, in order, as (name, whether it was closed; else created), and whether
        some of it may be missing."""
        events: list[tuple[bytes, bool]] = []
        is_blind = not self.works
        while self.works:
            try:
                data = os.read(self._descriptor, 1 << 18)
            except BlockingIOError:
                break
            position = 0
            while position < len(data):
                _, mask, _, length = struct.unpack_from("iIII", data, position)
                position += 16
                events.append((data[position : position + length].rstrip(b"\0"), bool(mask & self._IN_CLOSE_WRITE)))
                is_blind = is_blind or bool(mask & self._LOST)
                position += length
        return events, is_blind

    def close(self) -> None:
        if self.works:
            os.close(self._descriptor)
        self._descriptor = -1


class _Bell(FileSystemEventHandler):
    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def on_any_event(self, event: FileSystemEvent) -> None:
        del event
        self._ring()


class Doorbell:
    """Wakes the pickup process when something happens in its folders. An event is a hint to look, never the list."""

    def __init__(self, folders: list[str]) -> None:
        self._folders = folders
        # Not a threading.Event: signal handlers ring too, and its lock would deadlock one that interrupts a wait.
        self._rung = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handler = _Bell(self.ring)
        self._observer: object | None = None

    def watch(self) -> bool:
        """Begin to listen; False where the system cannot (then the caller scans by the clock)."""
        self._clear()
        observer = Observer()
        try:
            for folder in self._folders:
                observer.schedule(self._handler, folder)
            observer.start()
        except OSError as error:
            log.warning("cannot watch the pickup folders (%s); scanning by the clock", error)
            return False
        self._observer = observer
        return True

    def wait(self, seconds: float) -> None:
        """Until it rings, which is then answered: the caller looks, and the next wait is a wait again."""
        select.select([self._rung], [], [], seconds)
        self._clear()

    def ring(self) -> None:
        """Safe in signal handlers and from any thread."""
        os.eventfd_write(self._rung, 1)

    def _clear(self) -> None:
        try:
            os.eventfd_read(self._rung)
        except BlockingIOError:
            pass

    def close(self) -> None:
        self.ignore()
        os.close(self._rung)

    def ignore(self) -> None:
        """Stop listening: in a storm of files nobody needs telling."""
        observer, self._observer = self._observer, None
        if isinstance(observer, threading.Thread):
            observer.stop()  # type: ignore[attr-defined]
            observer.join()


class Folder:
    """One pickup folder with what is remembered of the names in it that were not taken yet.

    `created` are the names that were, or may have been, created in the folder, with whether a writer has closed them
    since; `blind` is for how many scans more a name may be there whose event was lost. `left` are the files that are
    left alone, by what they were then: a name that becomes another file, or gets another mode or owner, is looked at
    again.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = source.pickup
        self.created: dict[str, bool] = {}
        self.seen: dict[str, tuple[float, float]] = {}
        self.left: dict[str, tuple[int, ...]] = {}
        self.later: dict[str, float] = {}
        self.trouble = ""
        self._place = _place(self.path)
        self.watch = CreateWatch(self.path)
        self.blind = 1

    def scan(self, now: float) -> list[str]:
        """Names to look at now: `*.eml`, no leading dot, not left alone, not put off."""
        try:
            if _place(self.path) != self._place:
                self._watch_anew()
            names = [name for name in os.listdir(self.path) if name.endswith(".eml") and not name.startswith(".")]
        except FileNotFoundError:
            self._make_anew()
            return []
        except OSError as error:
            self._complain(f"the pickup folder {self.path} cannot be read: {error.strerror}")
            return []
        self.trouble = ""
        self._read_events(names)
        if self.left or self.later or self.seen or self.created:
            self._forget_all_but(set(names))
        if not self.left and not self.later:
            return names
        return [name for name in names if name not in self.left and self.later.get(name, 0.0) <= now]

    def _read_events(self, names: list[str]) -> None:
        events, is_blind = self.watch.read()
        if is_blind:
            # A name may have come after this listing, and its event been lost before this reading.
            self.blind = 2
            if not self.watch.works:
                self._watch_anew()
        if self.blind:
            self.blind -= 1
            for name in names:
                self.created.setdefault(name, False)
        for raw, is_closed in events:
            name = os.fsdecode(raw)
            if not is_closed or name in self.created:
                self.created[name] = is_closed

    def _watch_anew(self) -> None:
        self.watch.close()
        self._place = _place(self.path)
        self.watch = CreateWatch(self.path)
        self.blind = 2

    def _make_anew(self) -> None:
        """Somebody removed the folder: make it again, as it was made first, and watch the new one."""
        try:
            os.mkdir(self.path, 0o750)
            os.chmod(self.path, 0o2770)
        except OSError as error:
            self._complain(f"the pickup folder {self.path} is gone and cannot be made: {error.strerror}")
            return
        self._watch_anew()

    def _complain(self, trouble: str) -> None:
        """Log a trouble once for as long as it lasts."""
        if trouble != self.trouble:
            self.trouble = trouble
            log.error("%s", trouble)

    def _forget_all_but(self, names: set[str]) -> None:
        self.left = {name: was for name, was in self.left.items() if name in names and self._identity(name) == was}
        self.created = {name: is_closed for name, is_closed in self.created.items() if name in names}
        self.seen = {name: since for name, since in self.seen.items() if name in names}
        self.later = {name: until for name, until in self.later.items() if name in names}

    def _identity(self, name: str) -> tuple[int, ...]:
        try:
            status = os.lstat(f"{self.path}/{name}")
        except OSError:
            return ()
        return status.st_ino, status.st_mode, status.st_uid, status.st_gid

    def is_in_place(self, name: str) -> bool:
        """Whether the file was, or may have been, created in the folder."""
        return name in self.created

    def was_closed(self, name: str) -> bool:
        """Whether a writer has closed the file that was created in the folder."""
        return self.created.get(name, False)

    def leave_alone(self, name: str) -> None:
        self.left[name] = self._identity(name)

    def put_off(self, name: str, until: float) -> None:
        self.later[name] = until

    def waited(self, name: str, changed: float, now: float) -> float:
        """Seconds for which a file has been unfit, counted from the last change to it that we know of."""
        if self.seen.get(name, (None, 0.0))[0] != changed:
            self.seen[name] = changed, now
        return now - self.seen[name][1]


def _place(path: str) -> tuple[int, int]:
    """Which folder has this path now; none has (0, 0)."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino
