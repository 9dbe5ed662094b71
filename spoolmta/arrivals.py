"""Where dropped files are seen: the pickup folders, what rings for them, and how they came to lie there.

The doorbell. watchdog costs 140 microseconds an event and says nothing when events are lost, so an event only wakes
the process: it stops watching, scans and takes until three scans in a row find nothing, watches again and scans once
more. (`os.scandir` costs 0.7 microseconds a name.) Where nothing can be watched, it scans every half second.

Complete or not. A file that was renamed into the folder is complete. One that was created there may still be written:
it is taken once nobody has it open for writing and it has been quiet for two seconds. The kernel tells the two apart:
a watch for IN_CREATE alone, which droppers that rename never trigger and so never pay for, names what was created in
place. The name is in the folder before the event only while the creator holds the folder's lock, so a scan followed by
a read of the events knows of every name it saw.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading
import time
from collections.abc import Callable

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from spoolmta.model import Source

log = logging.getLogger("spoolmta")

QUIET = 2.0
"""Seconds for which a file that was created in place must not have changed."""


class CreateWatch:
    """Names created in a folder (not renamed into it), by an inotify watch of our own for IN_CREATE only."""

    _IN_CREATE = 0x100
    _OVERFLOW = 0x4000

    def __init__(self, folder: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor >= 0 and libc.inotify_add_watch(self._descriptor, os.fsencode(folder), self._IN_CREATE) < 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def works(self) -> bool:
        return self._descriptor >= 0

    def read(self) -> tuple[set[bytes], bool]:
        """Names created since the last call, and whether some may be missing (then every young file is suspect)."""
        names: set[bytes] = set()
        overflow = not self.works
        while self.works:
            try:
                data = os.read(self._descriptor, 1 << 18)
            except BlockingIOError:
                break
            position = 0
            while position < len(data):
                _, mask, _, length = struct.unpack_from("iIII", data, position)
                position += 16
                names.add(data[position : position + length].rstrip(b"\0"))
                overflow = overflow or bool(mask & self._OVERFLOW)
                position += length
        return names, overflow

    def close(self) -> None:
        if self.works:
            os.close(self._descriptor)


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
        self._rung = threading.Event()
        self._handler = _Bell(self._rung.set)
        self._observer: object | None = None

    def watch(self) -> bool:
        """Begin to listen; False where the system cannot (then the caller scans by the clock)."""
        self._rung.clear()
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
        self._rung.wait(seconds)

    def ring(self) -> None:
        self._rung.set()

    def ignore(self) -> None:
        """Stop listening: in a storm of files nobody needs telling."""
        observer, self._observer = self._observer, None
        if isinstance(observer, threading.Thread):
            observer.stop()  # type: ignore[attr-defined]
            observer.join()


class Folder:
    """One pickup folder with what is remembered of the names in it that were not taken yet."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = source.pickup
        self.watch = CreateWatch(source.pickup)
        self.created: set[str] = set()
        self.suspect_until = time.time() + QUIET
        self.seen: dict[str, float] = {}
        self.left: set[str] = set()
        self.later: dict[str, float] = {}

    def scan(self, now: float) -> list[str]:
        """Names to look at now: `*.eml`, no leading dot, not left alone, not put off."""
        try:
            names = [name for name in os.listdir(self.path) if name.endswith(".eml") and not name.startswith(".")]
        except FileNotFoundError:
            self._make_anew()
            return []
        created, overflow = self.watch.read()
        self.created.update(os.fsdecode(name) for name in created)
        if overflow:
            self.suspect_until = now + QUIET
        if self.left or self.later or self.seen or self.created:
            self._forget_all_but(set(names))
        if not self.left and not self.later:
            return names
        return [name for name in names if name not in self.left and self.later.get(name, 0.0) <= now]

    def _make_anew(self) -> None:
        """Somebody removed the folder: make it again, as it was made first, and watch the new one."""
        try:
            os.mkdir(self.path, 0o750)
            os.chmod(self.path, 0o2770)
        except OSError as error:
            log.error("the pickup folder %s is gone and cannot be made: %s", self.path, error.strerror)
            return
        self.watch.close()
        self.watch = CreateWatch(self.path)

    def _forget_all_but(self, names: set[str]) -> None:
        self.left &= names
        self.created &= names
        self.seen = {name: since for name, since in self.seen.items() if name in names}
        self.later = {name: until for name, until in self.later.items() if name in names}

    def is_in_place(self, name: str, now: float) -> bool:
        """Whether the file was, or may have been, created in the folder."""
        return name in self.created or now < self.suspect_until

    def put_off(self, name: str, until: float) -> None:
        self.later[name] = until

    def waited(self, name: str, since: float, now: float) -> float:
        """Seconds for which a file has been unfit, counted from the last change to it that we know of."""
        return now - max(self.seen.setdefault(name, now), since)
