"""What the benchmark measures with: a log whose rows are counted, a process tree that is sampled, medians.

Deliveries are counted from the log each system writes anyway, by reading what was appended every 50 ms
and counting whole lines; the clock is the machine's monotonic one. Both systems are watched by the same loop.

CPU is user plus system time from `/proc/PID/stat`. The total of a system is that of its living processes
plus what their parents have collected of the dead ones (`cutime`, `cstime`), so nothing is lost. The split by
role comes from samples five times a second: what a process used between its last sample and its death is
in the total only and shows up as `(unseen)`.

Memory is the peak of the sum over all processes of their PSS (shared pages are divided among their users), or
of their RSS where the kernel does not let us read PSS; `memory_kind` says which.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.05
SAMPLE_SECONDS = 0.2
MEMORY_SECONDS = 0.5
STALL_SECONDS = 30.0
TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class BenchError(Exception):
    """The benchmark cannot go on; the text says why in one sentence."""


@dataclass
class Round:
    """What one round of one system came to; it counts only without `problems`."""

    system: str
    messages: int
    seconds: float
    rate: float
    cpu_us: dict[str, float]
    cpu_total_us: float
    feeder_us: float
    sink_us: float
    peak_memory: int
    memory_kind: str
    halves: tuple[float, float]
    idle_share: float
    other_share: float
    sink_share: float
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of_cpu(cls, system: str, messages: int, seconds: float, cpu_us: float) -> "Round":
        """A round of which only the CPU time a message is known."""
        return cls(system, messages, seconds, messages / seconds, {}, cpu_us, 0, 0, 0, "", (0, 0), 0, 0, 0)


class RowCounter:
    """Counts the whole lines appended to a log since the counter was made, by marker."""

    def __init__(self, path: Path, markers: dict[str, bytes]) -> None:
        self.path = path
        self.markers = markers
        self.counts = dict.fromkeys(markers, 0)
        self._offset = path.stat().st_size if path.exists() else 0
        # Starts with the line end before it, so that a marker can say "at the start of a line".
        self._tail = b"\n"
        self._descriptor = -1

    def __repr__(self) -> str:
        return f"RowCounter({self.path}, {self.counts}, offset={self._offset})"

    def poll(self) -> dict[str, int]:
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return self.counts
        while chunk := os.pread(self._descriptor, 1 << 20, self._offset):
            self._offset += len(chunk)
            data = self._tail + chunk
            end = data.rfind(b"\n")
            for name, marker in self.markers.items():
                self.counts[name] += data.count(marker, 0, end)
            self._tail = data[end:]
        return self.counts

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class ProcessStat:
    pid: int
    parent: int
    command: str
    own_us: int
    reaped_us: int
    started: int
    resident: int


def read_stat(pid: int) -> ProcessStat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command stands in parentheses and may hold anything, so the fields are counted from its end.
    close = text.rindex(b")")
    command = text[text.index(b"(") + 1 : close].decode(errors="replace")
    f = text[close + 2 :].split()
    own, reaped = int(f[11]) + int(f[12]), int(f[13]) + int(f[14])
    resident = int(f[21]) * PAGE_SIZE
    return ProcessStat(pid, int(f[1]), command, own * TICK_US, reaped * TICK_US, int(f[19]), resident)


def read_run_us(stat: ProcessStat) -> int:
    """What a process has used itself; finer than the ticks of 10 ms in `stat` where it has one thread."""
    try:
        with open(f"/proc/{stat.pid}/schedstat", "rb") as file:
            # Only the first thread's; with several threads the ticks, which are of all of them, say more.
            return max(int(file.read().split()[0]) // 1000, stat.own_us)
    except (OSError, IndexError):
        return stat.own_us


def read_machine() -> dict[str, int]:
    """Microseconds the machine's processors have been `idle` (or waited for a disk) and `busy` (or stolen)."""
    with open("/proc/stat", "rb") as file:
        f = [int(part) for part in file.readline().split()[1:9]]
    idle = f[3] + f[4]
    return {"idle": idle * TICK_US, "busy": (sum(f) - idle) * TICK_US}


def read_pss(pid: int) -> int | None:
    """Proportional set size in bytes; None where we may not look; 0 for a process that has just left."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:
        return None
    return 0


def read_tree(root: int) -> list[ProcessStat]:
    """The process `root` and all its descendants that live now, from one pass over /proc."""
    children: dict[int, list[ProcessStat]] = {}
    tree: list[ProcessStat] = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and (stat := read_stat(int(name))) is not None:
            children.setdefault(stat.parent, []).append(stat)
            if stat.pid == root:
                tree.append(stat)
    for stat in tree:  # grows while we walk it
        tree.extend(children.get(stat.pid, ()))
    return tree


class ProcessTree:
    """CPU by role and peak memory of a process and its descendants, from the first sample on."""

    def __init__(self, root: int, role_of: Callable[[ProcessStat], str], from_start: bool) -> None:
        self.root = root
        self.role_of = role_of
        self.peak_memory = 0
        self.memory_kind = "PSS"
        self._base: dict[tuple[int, int], int] = {}
        self._last: dict[tuple[int, int], tuple[str, int]] = {}
        self._total_base = 0
        self._total = 0
        self._memory_due = 0.0
        if not from_start:
            tree = read_tree(root)
            self._base = {(stat.pid, stat.started): read_run_us(stat) for stat in tree}
            self._total_base = sum(stat.own_us + stat.reaped_us for stat in tree)

    def __repr__(self) -> str:
        return f"ProcessTree(root={self.root}, total_us={self.total_us}, peak_memory={self.peak_memory})"

    @property
    def total_us(self) -> int:
        return self._total - self._total_base

    def sample(self) -> None:
        tree = read_tree(self.root)
        for stat in tree:
            key = (stat.pid, stat.started)
            self._last[key] = (self.role_of(stat), read_run_us(stat) - self._base.get(key, 0))
        # A process that dies between being listed and its parent being read can be missed once: never go back.
        self._total = max(self._total, sum(stat.own_us + stat.reaped_us for stat in tree))
        if time.monotonic() >= self._memory_due:
            self._sample_memory(tree)

    def _sample_memory(self, tree: list[ProcessStat]) -> None:
        begun = time.monotonic()
        sizes = [read_pss(stat.pid) for stat in tree] if self.memory_kind == "PSS" else [None]
        if any(size is None for size in sizes):
            if self.memory_kind == "PSS":
                self.memory_kind, self.peak_memory = "RSS", 0
            total = sum(stat.resident for stat in tree)
        else:
            total = sum(size for size in sizes if size is not None)
        self.peak_memory = max(self.peak_memory, total)
        # Reading PSS walks page tables: it gets at most one per cent of one processor.
        now = time.monotonic()
        self._memory_due = now + max(MEMORY_SECONDS, 100 * (now - begun))

    def by_role(self) -> dict[str, float]:
        roles: dict[str, float] = {}
        for role, used in self._last.values():
            roles[role] = roles.get(role, 0.0) + used
        unseen = self.total_us - sum(roles.values())
        if unseen > TICK_US:
            roles["(unseen)"] = unseen
        return roles


@dataclass
class Timeline:
    """When the deliveries of a round were seen: `first` at the first poll that saw any, `last` at the final one."""

    first_at: float = 0.0
    first_count: int = 0
    last_at: float = 0.0
    last_count: int = 0
    failed: int = 0
    deferred: int = 0
    stalled: bool = False
    halves: tuple[float, float] = (0.0, 0.0)

    def rate_between(self) -> float:
        """Deliveries per second from the first to the last, without those the first poll found done."""
        elapsed = self.last_at - self.first_at
        return (self.last_count - self.first_count) / elapsed if elapsed > 0 else 0.0


def watch(
    rows: RowCounter, tree: ProcessTree, turn: Callable[[int], int | None], stall: float = STALL_SECONDS
) -> Timeline:
    """Follow the log until all is delivered; `turn(delivered)` says how many there are, or None while more come.

    A message that bounces is one delivery too: that of the report to its sender. `rows` counts "delivered", "bounced"
    and "deferred". A round in which nothing moves for `stall` seconds ends there.
    """
    line = Timeline()
    history: list[tuple[float, int]] = []
    next_sample = 0.0
    moved_at = time.monotonic()
    while True:
        counts = rows.poll()
        now = time.monotonic()
        line.failed, line.deferred = counts["bounced"], counts["deferred"]
        if counts["delivered"] > line.last_count:
            line.last_at = moved_at = now
            line.last_count = counts["delivered"]
            history.append((now, line.last_count))
            if line.first_at == 0.0:
                line.first_at, line.first_count = now, line.last_count
        expected = turn(line.last_count)
        if expected is not None and line.last_count >= expected:
            break
        if now - moved_at > stall:
            line.stalled = True
            break
        if now >= next_sample:
            tree.sample()
            # With a thousand processes a look takes a while: it gets a twentieth of one processor at most.
            next_sample = now + max(SAMPLE_SECONDS, 20 * (time.monotonic() - now))
        time.sleep(max(0.0, now + POLL_SECONDS - time.monotonic()))
    tree.sample()
    line.halves = half_rates(history)
    return line


def half_rates(history: list[tuple[float, int]]) -> tuple[float, float]:
    """Rates of the first and second half of a round's time: whether it ran at one speed throughout."""
    if len(history) < 3:
        return (0.0, 0.0)
    (begin, begun), (end, ended) = history[0], history[-1]
    middle, count = min(history[1:-1], key=lambda point: abs(point[0] - (begin + end) / 2))
    return ((count - begun) / (middle - begin), (ended - count) / (end - middle))


def spread(values: Iterable[float], form: str = ",.0f") -> str:
    """Median [lowest - highest]."""
    numbers = sorted(values)
    if not numbers:
        return "none"
    return f"{statistics.median(numbers):{form}} [{numbers[0]:{form}} - {numbers[-1]:{form}}]"
