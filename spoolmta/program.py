"""A program that reads what we write into a pipe: started without a shell, in a process group of its own, with no
descriptor of ours but its standard input. What it says on its standard error becomes lines of our notices.

How much of the pipe it has not read yet is asked of the kernel, which tells it also when the program is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence

LONGEST, MOST = 500, 10
"""Characters of a line, and lines a second, that a program may put into our notices."""
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
LOOK = 0.02


class Voice:
    """What a program says, as lines: no longer than LONGEST, no more than MOST a second, of printable characters."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = b""
        self._second, self._count = 0, 0

    def hear(self, data: bytes, now: float) -> None:
        """Some bytes more; none is the end."""
        *lines, rest = (self._rest + data).split(b"\n")
        if not data or len(rest) > 4 * LONGEST:
            lines, rest = [*lines, rest], b""
        self._rest = rest
        for line in lines:
            text = line[: 4 * LONGEST].decode("utf-8", "replace")
            text = "".join(ch if ch.isprintable() else " " for ch in text).strip()
            if text and self._may_speak(int(now)):
                self._say(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")
        if not data:
            self._begin(0)

    def _may_speak(self, second: int) -> bool:
        if second != self._second:
            self._begin(second)
        self._count += 1
        return self._count <= MOST

    def _begin(self, second: int) -> None:
        """Another second, for as many lines again."""
        if self._count > MOST:
            self._say(f"({self._count - MOST} more lines are left out)")
        self._second, self._count = second, 0


class Program:
    """The running program. It may end, or close its input, at any time: `trouble` tells."""

    def __init__(self, words: Sequence[str], say: Callable[[str], None]) -> None:
        """Start it. Raises OSError."""
        theirs, self._input = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                words,
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError:
            os.close(self._input)
            raise
        finally:
            os.close(theirs)
        assert self._process.stderr is not None
        self._errors = self._process.stderr
        self._is_silent = False
        self._voice = Voice(say)
        for descriptor in (self._input, self._errors.fileno()):
            os.set_blocking(descriptor, False)

    def __repr__(self) -> str:
        return f"Program({self.pid}, {self._process.args!r})"

    @property
    def pid(self) -> int:
        return self._process.pid

    def register(self, poll: select.poll, has_more: bool) -> None:
        """What to wait for: that it goes away, speaks, or has room for more."""
        poll.register(self._input, select.POLLOUT if has_more else 0)
        if not self._is_silent:
            poll.register(self._errors.fileno(), select.POLLIN)

    def write(self, data: bytes) -> int:
        """How many of the bytes the pipe takes now: all or none, if they are no more than PIPE_BUF."""
        try:
            return os.write(self._input, data)
        except (BlockingIOError, BrokenPipeError):
            return 0

    @property
    def unread(self) -> int:
        """Bytes that were written and that the program has not read."""
        return _unread(self._input)

    def listen(self) -> None:
        """Pass on what it has said by now; one that says more than we hear may wait."""
        for _ in range(4):
            if self._is_silent:
                return
            try:
                data = os.read(self._errors.fileno(), 65_536)
            except BlockingIOError:
                return
            self._is_silent = not data
            self._voice.hear(data, time.monotonic())
            if len(data) < 65_536:
                return

    def trouble(self) -> str:
        """Why it reads no more, as the end of a sentence; nothing if it is well."""
        poll = select.poll()
        poll.register(self._input, 0)
        is_closed = bool(poll.poll(0))
        if is_closed:
            self._ends_within(0.5)  # who ends closes its input first
        if not self._has_ended():
            return "has closed its input" if is_closed else ""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert found is not None
        if found.si_code == os.CLD_EXITED:
            return f"ended with status {found.si_status}"
        return f"was ended by signal {found.si_status}"

    def end(self, patience: float) -> int:
        """Close its input, and wait for its end: `patience` seconds, then with SIGTERM, then with SIGKILL to its whole
        group. Without patience SIGTERM goes to what is left of the group also where the program has ended itself.
        Returns how many bytes were never read."""
        left = os.open(f"/proc/self/fd/{self._input}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(self._input)
        for seconds, number in ((patience, signal.SIGTERM), (GRACE, signal.SIGKILL)):
            if seconds and self._ends_within(seconds):
                break
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self.listen()
        self._voice.hear(b"", time.monotonic())
        self._errors.close()
        unread = _drained(left)
        os.close(left)
        return unread

    def _ends_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._has_ended():
            if time.monotonic() >= deadline:
                return False
            self.listen()
            time.sleep(LOOK)
        return True

    def _has_ended(self) -> bool:
        """Only looks: until it is waited for, nobody else is called by its number."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _drained(descriptor: int) -> int:
    """How many bytes are taken out of the pipe: what we have nobody else reads, such as a child that is still there."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while data := os.read(descriptor, 65_536):
            count += len(data)
    return count


def _unread(descriptor: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)
