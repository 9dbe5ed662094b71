"""What several processes share of one limit, in a mapped file: how many connections each has, and the window of a rate.

    header      the time the clock counts from, until when somebody wants some, a limiter's cells for recipients and for
                bytes, each with its lock in common
    slots       of each process that ever took part: its connections, and whether it takes part now

A process writes its own slot only, whose lock it holds for its life: a slot without that lock is nobody's any more, and
counts for nothing, so nobody has to clean up after a killed process, and none can be forgotten. Sums and windows are
looked at and changed under the lock of the header, which the kernel takes from the dead as well. The clock is one for
all processes of the machine: each of them may start with another idea of the time of day.

Without room on the disk for the file, each process keeps to the limit by itself.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import time
from collections.abc import Iterator, MutableSequence
from typing import cast

from spoolmta import disk, sharing
from spoolmta.model import UNLIMITED, Rate
from spoolmta.rate import CELLS, RateLimiter
from spoolmta.sharing import WANTED_FOR

_EPOCH, _WANTED, _RECIPIENTS = 0, 1, 2
_BYTES = _RECIPIENTS + CELLS
_HEADER = 512
"""Numbers before the first slot: one page."""
_CONNECTIONS, _TAKES_PART, _SLOT = 0, 1, 2
_GROWTH = 256
"""Slots added at a time: one page."""
SWEEP = 1.0
"""Seconds after which one who is refused looks again for slots that nobody holds any more."""
RESTS_AFTER = 3.0
"""Seconds without asking for anything after which a process with no connection takes no part any more."""

Numbers = MutableSequence[float]


class Common:
    """One shared limit, as one process sees it. `connections_held` and `rates_held` are for the operator: which
    directive holds him, and of whom it is. `connections` 0 means that they are not limited."""

    def __init__(self, path: str, connections_held: str, rates_held: str = "") -> None:
        self.connections_held = connections_held
        self.rates_held = rates_held
        self.connections = 0
        self.own = 0
        self._recipients = self._bytes = RateLimiter(UNLIMITED)
        self._asked_at = self._swept_at = -math.inf
        self._slot = -1
        self._file = -1
        self._mapped = 0
        self._locks: disk.KeyLocks | None = None
        self._numbers: Numbers = [0.0] * (_HEADER + _SLOT)
        with contextlib.suppress(OSError):
            # a file of their own: unmapping closes a descriptor of the mapped one, which would free all locks on it
            self._locks = disk.KeyLocks(f"{path}.lock")
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        with self.locked():
            if not self._numbers[_EPOCH]:
                self._numbers[_EPOCH] = time.time() - time.monotonic()

    def __repr__(self) -> str:
        return f"Common({self.connections_held}, {self.own} of {self.connections}, slot {self._slot})"

    def close(self) -> None:
        if self._locks is not None:
            self._locks.close()
        if self._file >= 0:
            os.close(self._file)

    def set_limits(self, own: int, connections: int, recipients: Rate = UNLIMITED, volume: Rate = UNLIMITED) -> None:
        """New limits, for a process that has so many connections; what has been counted stays."""
        self.own, self.connections = own, connections
        with self.locked():
            if own:
                self._take_part()
            self._recipients = self._follow(self._recipients, recipients, _RECIPIENTS)
            self._bytes = self._follow(self._bytes, volume, _BYTES)

    def _follow(self, limiter: RateLimiter, rate: Rate, place: int) -> RateLimiter:
        if limiter.rate == rate:
            return limiter
        if rate == UNLIMITED or limiter.rate == UNLIMITED:
            return RateLimiter(rate, self._numbers[place : place + CELLS])
        limiter.set_rate(rate, self.now())
        return limiter

    @property
    def has_rates(self) -> bool:
        return min(self._recipients.rate.count, self._bytes.rate.count) < math.inf

    @property
    def most(self) -> float:
        return self._recipients.rate.count

    def now(self) -> float:
        """The clock of this limit."""
        return self._numbers[_EPOCH] + time.monotonic()

    # Connections

    def open(self) -> bool:
        """Take one connection more, if there is one."""
        with self.locked():
            self._take_part()
            now = self.now()
            slots = self._numbers[_HEADER:]
            self._asked_at = now
            if self._may_open(slots, now) or (self._sweep(now) and self._may_open(slots, now)):
                self.own += 1
                self._publish()
                return True
            users = int(sum(slots[_TAKES_PART::_SLOT]))
            if sharing.may_want(self.connections, self.own, users):
                self._numbers[_WANTED] = now + WANTED_FOR
            return False

    def _may_open(self, slots: Numbers, now: float) -> bool:
        total, users = int(sum(slots[_CONNECTIONS::_SLOT])), int(sum(slots[_TAKES_PART::_SLOT]))
        return sharing.may_have(self.connections, total, self.own, users, is_wanted=self._is_word_out(now))

    def _is_word_out(self, now: float) -> bool:
        """Whether somebody wants some. What was said before the machine started again may lie in the future."""
        return now < self._numbers[_WANTED] <= now + WANTED_FOR

    def close_one(self) -> None:
        """Give one connection back."""
        self.own -= 1
        self._publish()

    def is_wanted(self) -> bool:
        """Whether somebody with less wants some of what this process has. Read without the lock: it is only a word."""
        if not self.own or not self._is_word_out(self.now()):
            return False
        users = int(sum(self._numbers[_HEADER + _TAKES_PART :: _SLOT]))
        return self.own > sharing.part(self.connections, users)

    def rest(self) -> None:
        """A process that has nothing and has not asked for a while takes no part: its part is for the others."""
        if self._slot >= 0 and not self.own and self.now() - self._asked_at > RESTS_AFTER:
            self._numbers[_HEADER + self._slot * _SLOT + _TAKES_PART] = 0.0

    def _publish(self) -> None:
        self._numbers[_HEADER + self._slot * _SLOT + _CONNECTIONS] = self.own

    def _take_part(self) -> None:
        """Have a slot: the first whose lock is free."""
        if self._slot < 0:
            slot = next(slot for slot in range(1 << 20) if self._has(slot))
            while len(self._numbers) < _HEADER + (slot + 1) * _SLOT:
                if not self._grow():
                    slot = 0  # a list of our own has one
            self._slot = slot
        self._publish()
        self._numbers[_HEADER + self._slot * _SLOT + _TAKES_PART] = 1.0

    def _has(self, slot: int) -> bool:
        """Take a slot's lock, unless a living process has it."""
        return self._locks is None or self._locks.try_lock(1 + slot)

    def _sweep(self, now: float) -> bool:
        """Clear the slots whose processes are gone; whether there were any."""
        if self._locks is None or now - self._swept_at < SWEEP:
            return False
        self._swept_at = now
        found = False
        for slot in range((len(self._numbers) - _HEADER) // _SLOT):
            place = _HEADER + slot * _SLOT
            takes_part = self._numbers[place + _CONNECTIONS] or self._numbers[place + _TAKES_PART]
            if takes_part and slot != self._slot and self._locks.try_lock(1 + slot):
                self._numbers[place + _CONNECTIONS] = self._numbers[place + _TAKES_PART] = 0.0
                self._locks.unlock(1 + slot)
                found = True
        return found

    # Rates

    def take(self, recipients: int, size: int) -> tuple[float, str]:
        """Count a message: (0, ""), or seconds until it may go, and which of the rates forbids it."""
        with self.locked():
            now = self.now()
            for limiter, count, held in (
                (self._recipients, recipients, "max-smtp-msg-rate"),
                (self._bytes, size, "max-smtp-data-volume-rate"),
            ):
                pause = limiter.wait(now, count)
                if pause > 0:
                    return pause, f"{held}{self.rates_held}"
            self._recipients.take(now, recipients)
            self._bytes.take(now, size)
            return 0.0, ""

    def give_back(self, recipients: int, size: int, age: float) -> None:
        """What was counted so many seconds ago was not used."""
        with self.locked():
            now = self.now()
            self._recipients.give_back(now - age, now, recipients)
            self._bytes.give_back(now - age, now, size)

    def pace(self) -> float:
        """Seconds in which a limiter lets through what has become free meanwhile, without losing any of it."""
        return min(1.0, min(self._recipients.rate.period, self._bytes.rate.period) / 20)

    # The file

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        if self._locks is None:
            yield
            return
        with self._locks.held(0):
            self._follow_file()
            yield

    def _follow_file(self) -> None:
        """Map what others have added."""
        if self._file < 0:
            return
        size = os.fstat(self._file).st_size // 8
        if size < _HEADER:
            self._grow()
        elif size != self._mapped:
            self._map(size)

    def _grow(self) -> bool:
        """More slots. The room is allocated: a write into a hole of a mapped file on a full disk would end the
        process."""
        size = max(self._mapped, _HEADER) + _GROWTH * _SLOT
        try:
            os.posix_fallocate(self._file, 0, 8 * size)
        except OSError:
            return False
        self._map(size)
        return True

    def _map(self, size: int) -> None:
        """What a limiter uses already goes on showing the same memory."""
        self._mapped = size
        self._numbers = cast(Numbers, memoryview(mmap.mmap(self._file, 8 * size)).cast("d"))
