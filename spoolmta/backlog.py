"""Which ready message is next: priorities first, then the jobs in fair shares, then the domains in turn.

    a Line      is the mail of one job and one priority at one queue, first come, first served
    a Job       is its lines at one site, which take turns; it has a virtual time
    a Backlog   is the jobs of one group of domains, by priority

Jobs share by start-time fair queueing (Goyal, Vin, Cheng 1996): the job with the smallest virtual time is next, and
each recipient sent moves its time on by one. A job that comes new starts at the time of the whole, which moves on by
each job's part, so that a stream of new jobs cannot keep an old one waiting. Unlike the rounds of deficit round robin
there is no quantum: a job of 10 waits for one message of each other job, however large they are, and a message to
1,000 recipients costs its job 1,000 turns.
A higher priority goes first, but every EIGHTH message comes from the next lower one, so that bulk still moves.

Laws. What is pushed is taken exactly once, in order within a line. With all jobs waiting, any two of one priority
differ by at most one message's recipients. A priority is never without its eighth while it has mail.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING

from spoolmta import entry

if TYPE_CHECKING:
    from spoolmta.site import Queue

EIGHTH = 8
"""Of so many messages one is from the next lower priority."""


class Line:
    """The names of one job and priority at one queue. `is_listed` while they count for the site's backlog, which they
    do not while their job `is_held`."""

    __slots__ = ("is_held", "is_listed", "job", "names", "priority", "queue")

    def __init__(self, queue: Queue, priority: int, job: str, is_held: bool = False) -> None:
        self.queue = queue
        self.priority = priority
        self.job = job
        self.names: deque[str] = deque()
        self.is_listed = False
        self.is_held = is_held

    def __repr__(self) -> str:
        return f"Line({self.queue.domain}, priority={self.priority}, job={self.job}, {len(self.names)} names)"

    def take_older(self, time: float) -> list[str]:
        """The names at its head that were accepted at `time` or before, taken."""
        taken: list[str] = []
        while self.names and entry.is_older(self.names[0], time):
            taken.append(self.names.popleft())
        return taken

    def first_received(self) -> float:
        """When its first message was accepted; infinity for a name that does not tell."""
        try:
            return entry.received(self.names[0])
        except ValueError:
            return math.inf


class _Job:
    __slots__ = ("lines", "number", "time")

    def __init__(self, time: float, number: int) -> None:
        self.time = time
        self.number = number
        self.lines: deque[Line] = deque()

    def __lt__(self, other: _Job) -> bool:
        return (self.time, self.number) < (other.time, other.number)


class _Level:
    """The jobs of one priority."""

    __slots__ = ("heap", "jobs", "numbers", "time")

    def __init__(self) -> None:
        self.jobs: dict[str, _Job] = {}
        self.heap: list[_Job] = []
        self.time = 0.0
        self.numbers = 0

    def push(self, line: Line) -> None:
        job = self.jobs.get(line.job)
        if job is None:
            self.numbers += 1
            job = self.jobs[line.job] = _Job(self.time, self.numbers)
            heapq.heappush(self.heap, job)
        job.lines.append(line)

    def remove(self, line: Line) -> None:
        job = self.jobs[line.job]
        job.lines.remove(line)
        if not job.lines:
            del self.jobs[line.job]
            self.heap.remove(job)
            heapq.heapify(self.heap)

    def take(self) -> tuple[Line, str]:
        job = self.heap[0]
        line = job.lines[0]
        name = line.names.popleft()
        cost = entry.recipients(name)
        self.time = max(job.time, self.time + cost / len(self.heap))
        job.time += cost
        if not line.names:
            job.lines.popleft()
            line.is_listed = False
        elif len(job.lines) > 1:
            job.lines.rotate(-1)
        if job.lines:
            if len(self.heap) > 1:
                heapq.heapreplace(self.heap, job)
        else:
            heapq.heappop(self.heap)
            del self.jobs[line.job]
        return line, name


class Backlog:
    """Ready mail. `len` is not kept: who needs a number asks `at_least`."""

    __slots__ = ("_levels", "_priorities", "_streaks")

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._priorities: list[int] = []
        self._streaks: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"Backlog({ {priority: [*level.jobs] for priority, level in self._levels.items()} })"

    def __bool__(self) -> bool:
        return bool(self._levels)

    def push(self, line: Line) -> None:
        """List a line that has names; one that is listed already stays where it is."""
        if line.is_listed:
            return
        line.is_listed = True
        level = self._levels.get(line.priority)
        if level is None:
            level = self._levels[line.priority] = _Level()
            self._streaks[line.priority] = 0
            self._priorities = sorted(self._levels, reverse=True)
        level.push(line)

    def remove(self, line: Line) -> None:
        """Take a line off the list, with its names."""
        if line.is_listed:
            line.is_listed = False
            self._levels[line.priority].remove(line)
            self._forget_if_empty(line.priority)

    def peek(self) -> tuple[Line, str] | None:
        """What `take` would give."""
        if not self._levels:
            return None
        line = self._levels[self._choose()].heap[0].lines[0]
        return line, line.names[0]

    def take(self) -> tuple[Line, str]:
        """The next message, taken. IndexError if there is none."""
        priority = self._choose()
        if len(self._priorities) > 1:
            self._count(priority)
        found = self._levels[priority].take()
        self._forget_if_empty(priority)
        return found

    def at_least(self, most: int) -> int:
        """How many messages there are, counted up to `most`."""
        count = 0
        for level in self._levels.values():
            for job in level.heap:
                for line in job.lines:
                    count += len(line.names)
                    if count >= most:
                        return most
        return count

    def lines(self) -> list[Line]:
        return [line for level in self._levels.values() for job in level.heap for line in job.lines]

    def _choose(self) -> int:
        """The highest priority whose turn it is: each but the lowest lets the next one pass once in EIGHTH."""
        for priority in self._priorities[:-1]:
            if self._streaks[priority] < EIGHTH - 1:
                return priority
        return self._priorities[-1]

    def _count(self, chosen: int) -> None:
        for priority in self._priorities:
            if priority == chosen:
                self._streaks[priority] += 1
                return
            self._streaks[priority] = 0

    def _forget_if_empty(self, priority: int) -> None:
        if not self._levels[priority].heap:
            del self._levels[priority]
            del self._streaks[priority]
            self._priorities.remove(priority)
