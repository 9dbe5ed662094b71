"""How large a system may be: its memory, how fast it starts, and what a message costs, with much mail and many VMTAs.

    .venv/bin/python scripts/scale.py                         # everything, in a temporary directory: some minutes
    .venv/bin/python scripts/scale.py --dir /dev/shm backlog  # one scene; a spool of a million names wants a tmpfs
    .venv/bin/python scripts/scale.py --messages 10000 --vmtas 200

A queue of a million entries is made of a thousand files: all entries of a domain are links to one message, since
only their names differ. The receiver is smtp-sink, or our own where there is none. Memory is read from
/proc/PID/smaps_rollup. The last thing printed is one table, target and measured; exit status 1: a target is missed.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_machine import Sink, raise_descriptor_limit, refuse_listened_port, stop_process, wait_for_port
from bench_measure import BenchError, ProcessStat, RowCounter, read_run_us, read_stat, read_tree

from spoolmta import control
from spoolmta.errors import SpoolmtaError

DOMAINS = 1000
LONGEST = 300.0
PROGRAM = (sys.executable, "-m", "spoolmta")
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    target: str
    measured: str
    is_met: bool

    def __str__(self) -> str:
        return f"{self.what:58} {self.target:>12} {self.measured:>14}  {'ok' if self.is_met else 'MISSED'}"


def at_most(what: str, limit: float, value: float, unit: str) -> Row:
    return Row(what, f"<= {limit:,.4g} {unit}", f"{value:,.3g} {unit}", value <= limit)


# The spool


def message(domain: str, vmta: str, user: str = "user") -> bytes:
    head = (
        f"x-sender: sender@scale.test\nx-receiver: {user}@{domain}\nx-virtual-mta: {vmta}\n"
        f"From: sender@scale.test\nTo: {user}@{domain}\nDate: Mon, 01 Jan 2024 00:00:00 +0000\n"
        f"Message-Id: <1@{domain}>\n\n"
    )
    return (head + "spoolmta scale\n" * 60).encode()


def domain_name(number: int) -> str:
    return f"d{number:03}.scale.test"


class Filler:
    """Puts entries into queues of a spool that nobody works on."""

    def __init__(self, spool: Path) -> None:
        self.user = "user"
        self._queue = spool / "queue"
        self._number = 0

    def fill(self, vmta: str, domains: range, count: int, due: Callable[[int], int] = lambda _: 0) -> None:
        """So many entries for each domain; `due` 0 is one that was never tried."""
        now = int(time.time())
        for number in domains:
            domain = domain_name(number)
            content = message(domain, vmta, self.user)
            new, cur = (self._queue / vmta / domain / folder for folder in ("new", "cur"))
            for folder in (new, cur):
                folder.mkdir(parents=True, exist_ok=True)
            first = ""
            for _ in range(count):
                self._number += 1
                id_ = f"{now - 60}.M{self._number % 1_000_000:06}P{os.getpid()}Q{self._number}.mx1-scale-test"
                name = f"{id_},S={len(content)},C={zlib.crc32(content):08x},J=0"
                at = due(self._number)
                path = f"{cur}/{name}:1,1,{at}" if at else f"{new}/{name}"
                if self._number % 30_000 and first:  # a file may not have more links everywhere
                    os.link(first, path)
                else:
                    Path(path).write_bytes(content)
                first = path


class System:
    """spoolmta on a spool of its own."""

    def __init__(self, base: Path, port: int, vmtas: int, max_smtp_out: int = 20) -> None:
        self.base, self.spool = base, base / "spool"
        shutil.rmtree(self.spool, ignore_errors=True)
        for folder in ("", "pickup", "queue", "tmp-drop"):
            (self.spool / folder).mkdir(mode=0o2770)
        blocks = [
            'host-name = "scale.test"\nsleep-after = "1h"',
            f'[spool]\ndirectory = "{self.spool}"\nmin-free-space = "50M"',
            '[source.pickup]\ndefault-virtual-mta = "v0"',
            *(f"[vmta.v{number}]" for number in range(vmtas)),
            f'[domain."*"]\nsmtp-hosts = ["[127.0.0.1]:{port}"]\nmax-smtp-out = {max_smtp_out}',
            'retry-recipients-after = "6h"',
            f'[[acct-file]]\npath = "{self.spool}/accounting/acct.csv"\nrecords = ["d", "b", "t"]',
        ]
        self.config = base / "spoolmta.toml"
        self.config.write_text("\n".join(blocks) + "\n")
        self.filler = Filler(self.spool)
        self.started = self._asked_at = self.slowest = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"System({self.base}, process={self._process})"

    def __enter__(self) -> "System":
        self.started = time.monotonic()
        command = [*PROGRAM, "--config", str(self.config), "run"]
        with (self.base / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_for(lambda: self.status() != {}, "an answer")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            stop_process(self._process, 60.0)

    @property
    def age(self) -> float:
        return time.monotonic() - self.started

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = LONGEST) -> float:
        """Poll until it holds; the seconds since the start of the system."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or (self._process is not None and self._process.poll() is not None):
                raise BenchError(f"no {what} within {seconds:.0f} s; see {self.base}/log")
            time.sleep(0.02)
        return self.age

    def status(self) -> dict[str, object]:
        self._asked_at = time.monotonic()
        try:
            return control.ask(f"{self.spool}/run/control", {"ask": "status"}, 60.0)
        except (OSError, SpoolmtaError):
            return {}

    def vmtas(self) -> list[dict[str, Any]]:
        """What is shown of each, in the order of their numbers."""
        found: Any = None
        while not found:
            found = self.status().get("vmtas")
            self.slowest = max(self.slowest, time.monotonic() - self._asked_at)
        return sorted((one for one in found if one["name"] != "default"), key=lambda one: int(one["name"][1:]))

    def is_ready(self) -> bool:
        """Whether the pickup process has begun to work."""
        intake = self.status().get("pickup", {})
        return isinstance(intake, dict) and bool(intake["pid"])

    def rows(self) -> RowCounter:
        return RowCounter(self.spool / "accounting" / "acct.csv", {"delivered": b"\nd,", "other": b"\nt,"})

    def tree(self) -> list[ProcessStat]:
        assert self._process is not None
        return read_tree(self._process.pid)

    def pid_of(self, vmta: int = 0) -> int:
        return int(self.vmtas()[vmta]["pid"])

    def queued(self) -> int:
        return int(self.vmtas()[0]["queued"])

    def drop(self, domains: range, count: int, vmta: str = "v0") -> None:
        """Messages dropped into `pickup/`, over the domains in turn."""
        for number in range(count):
            name = f"{time.monotonic_ns()}-{number}"
            path = self.spool / "tmp-drop" / name
            path.write_bytes(message(domain_name(domains[number % len(domains)]), vmta))
            path.rename(self.spool / "pickup" / f"{name}.eml")


def memory(pid: int, *kinds: str) -> float:
    """MiB of a process: the sum of these lines of its smaps_rollup."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.partition(":")[0] in kinds) / 1024


def private(pid: int) -> float:
    """What is its own; a clean page of a library that nobody else happens to use now is not."""
    return memory(pid, "Private_Dirty")


def whole(system: System) -> float:
    return sum(memory(stat.pid, "Pss") for stat in system.tree())


def peak(pid: int) -> float:
    """MiB resident at most, ever."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


# The scenes


@dataclass(frozen=True)
class Stage:
    """Where the scenes play, and how large they are."""

    base: Path
    port: int
    messages: int
    vmtas: int

    @property
    def domains(self) -> range:
        return range(min(DOMAINS, self.messages // 10))


def idle(stage: Stage) -> list[Row]:
    """Many VMTAs without mail, then a message for one."""
    count = 10 * stage.vmtas
    system = System(stage.base, stage.port, count)
    with system:
        ready = system.wait_for(system.is_ready, "start")
        time.sleep(1.0)
        total = whole(system)
        rows = system.rows()
        for vmta in range(3):  # what only the supervisor has copied is shared by the others, where there are any
            system.drop(range(1), 1, f"v{vmta}")
        system.wait_for(lambda: rows.poll()["delivered"] == 3, "delivery")
        time.sleep(3.0)
        alone = private(system.pid_of())
    return [
        at_most(f"{count:,} VMTAs without mail: start", 20, ready, "s"),
        at_most(f"{count:,} VMTAs without mail: the whole system", 200, total, "MiB"),
        at_most(f"a delivery process of {count:,}, idle, private", 4, alone, "MiB"),
    ]


def busy(stage: Stage) -> list[Row]:
    """A process with 100 connections to a receiver that takes its time."""
    system = System(stage.base, stage.port + 1, 8, max_smtp_out=100)
    system.filler.user = "slow-1s"
    system.filler.fill("v0", range(1), 2000)
    most = connections = 0.0
    with slow_sink(stage.port + 1), system:
        rows = system.rows()
        while rows.poll()["delivered"] < 1500 and system.age < LONGEST:
            one = system.vmtas()[0]
            connections = max(connections, one["connections"])
            most = max(most, private(one["pid"]) if one["pid"] else 0.0)
            time.sleep(0.2)
        system.wait_for(lambda: rows.poll()["delivered"] == 2000, "delivery")
        time.sleep(3.0)
        after = private(system.pid_of())
    return [
        Row("connections it had meanwhile", "100", f"{connections:.0f}", connections == 100),
        at_most("a delivery process, 100 connections, private", 12, most, "MiB"),
        at_most("the same with nothing to do afterwards (no target)", 12, after, "MiB"),
    ]


@contextlib.contextmanager
def slow_sink(port: int) -> Iterator[None]:
    """Our own receiver, which can be told to take its time."""
    refuse_listened_port(port)
    with subprocess.Popen([*PROGRAM, "sink", f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port)
            yield
        finally:
            process.terminate()


def active(stage: Stage) -> list[Row]:
    """Many VMTAs with mail at once; only those count that had some all the time, since the first may be done early."""
    system = System(stage.base, stage.port, stage.vmtas, max_smtp_out=2)
    for number in range(stage.vmtas):
        system.filler.fill(f"v{number}", range(number % DOMAINS, number % DOMAINS + 1), 1000)
    with system:
        rows = system.rows()
        begun = system.wait_for(lambda: all(one["pid"] for one in system.vmtas()), "process for each")
        system.wait_for(lambda: all(is_at_work(one) for one in system.vmtas()), "connection for each")
        pids = [one["pid"] for one in system.vmtas()]
        before, done, since = {pid: cpu(pid) for pid in pids}, rows.poll()["delivered"], system.age
        system.wait_for(lambda: system.age > since + max(2.0, stage.vmtas / 20), "time")
        had_mail = [one["pid"] for one in system.vmtas() if one["queued"] > 0]
        shares = sorted(cpu(pid) - before[pid] for pid in had_mail if pid in before)
        rate = (rows.poll()["delivered"] - done) / (system.age - since)
        total = whole(system)
    middle = shares[len(shares) // 2]
    least, most = shares[len(shares) // 20] / middle, shares[-len(shares) // 20] / middle
    return [
        at_most(f"{stage.vmtas:,} VMTAs at work: the whole system", 8192, total, "MiB"),
        Row("their CPU, 5th percentile / median", f">= {LEAST_SHARE}", f"{least:.2f}", least >= LEAST_SHARE),
        at_most("their CPU, 95th percentile / median", 1 / LEAST_SHARE, most, "x"),
        Row("of these had mail all the time (no target)", "", f"{len(shares):,}", True),
        at_most("all run after (no target)", LONGEST, begun, "s"),
        at_most("slowest answer of the supervisor meanwhile (no target)", 60, system.slowest, "s"),
        Row("messages a second meanwhile (no target)", "", f"{rate:,.0f}", True),
    ]


def is_at_work(vmta: dict[str, Any]) -> bool:
    return bool(vmta["connections"] or vmta["delivered"])


def cpu(pid: int) -> float:
    stat = read_stat(pid)
    return read_run_us(stat) if stat is not None else 0.0


def backlog(stage: Stage) -> list[Row]:
    """A long queue that waits for its time, and some mail that is due."""
    system = System(stage.base, stage.port, 1)
    now = int(time.time())
    each = stage.messages // len(stage.domains)
    system.filler.fill("v0", stage.domains, each, lambda number: now + 3600 + number * 7919 % 14_400)
    system.filler.fill("v0", stage.domains, 1)
    before = entries(system, "cur")
    with system:
        rows = system.rows()
        first = system.wait_for(lambda: rows.poll()["delivered"] > 0, "delivery")
        last = system.wait_for(lambda: rows.poll()["delivered"] == len(stage.domains), "last delivery")
        system.wait_for(lambda: system.queued() == len(before), "end of the scan")
        time.sleep(2.0)
        pid = system.pid_of()
        resident, most = memory(pid, "Rss"), peak(pid)
    kept = len(before & entries(system, "cur"))
    return [
        at_most(f"{len(before):,} waiting: first delivery after", 5, first, "s"),
        at_most("what is due of all domains delivered after (no target)", LONGEST, last, "s"),
        at_most("resident", 300, resident, "MiB"),
        at_most("resident, peak", 300, most, "MiB"),
        Row("due times kept over the restart", f"{len(before):,}", f"{kept:,}", kept == len(before)),
    ]


def entries(system: System, folder: str) -> set[str]:
    return {
        f"{path.name}/{name}"
        for path in (system.spool / "queue" / "v0").iterdir()
        for name in os.listdir(path / folder)
    }


def stampede(stage: Stage) -> list[Row]:
    """A long queue of which everything has become due while nothing ran."""
    system = System(stage.base, stage.port, 1, max_smtp_out=2)
    now = int(time.time())
    system.filler.fill(
        "v0", stage.domains, stage.messages // len(stage.domains), lambda number: now - number % 3600 - 1
    )
    count = stage.messages // len(stage.domains) * len(stage.domains)
    slowest = connections = 0.0
    with system:
        rows = system.rows()
        first = system.wait_for(lambda: rows.poll()["delivered"] > 0, "delivery")
        while system.age < first + 20.0 and rows.poll()["delivered"] < count:
            begun = time.monotonic()
            control.ask(f"{system.spool}/run/v0.control", {"ask": "nothing"})
            slowest = max(slowest, time.monotonic() - begun)
            connections = max(connections, system.vmtas()[0]["connections"])
            time.sleep(0.05)
        rate = rows.poll()["delivered"] / (system.age - first)
        most = peak(system.pid_of())
    return [
        at_most(f"{count:,} due at once: first delivery after", 5, first, "s"),
        at_most("its slowest answer to a question meanwhile", 1, slowest, "s"),
        at_most("connections at once, of 2 a domain", 2 * len(stage.domains), connections, ""),
        at_most("resident, peak", 300, most, "MiB"),
        Row("messages a second meanwhile (no target)", "", f"{rate:,.0f}", True),
    ]


def cost(stage: Stage) -> list[Row]:
    """What a message costs beside a long queue, and beside one of a hundredth, over the same domains."""
    sizes = (stage.messages // 100, stage.messages)
    domains = stage.domains[: sizes[0]]
    few, many = (min(cost_beside(stage, size, domains) for _ in range(2)) for size in sizes)
    return [
        Row("CPU a message (microseconds), small queue", "", f"{few:.0f}", True),
        Row("CPU a message (microseconds), long queue", "", f"{many:.0f}", True),
        at_most(f"a message with {sizes[1]:,} queued costs, against {sizes[0]:,}", 1.3, many / few, "x"),
    ]


def cost_beside(stage: Stage, size: int, domains: range) -> float:
    """The delivery process's microseconds a message, beside so many that wait."""
    system = System(stage.base, stage.port, 1)
    now = int(time.time())
    first, count = 2 * len(domains), min(stage.messages, 20_000)
    system.filler.fill("v0", domains, size // len(domains), lambda number: now + 3600 + number * 7919 % 14_400)
    with system:
        system.wait_for(lambda: system.queued() == size, "end of the scan")
        rows = system.rows()
        system.drop(domains, first)
        system.wait_for(lambda: rows.poll()["delivered"] == first, "delivery")
        pid = system.pid_of()
        before = cpu(pid)
        system.drop(domains, count)
        system.wait_for(lambda: rows.poll()["delivered"] == first + count, "last delivery")
        return (cpu(pid) - before) / count


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def fast_sink(port: int, log: Path) -> Iterator[None]:
    """smtp-sink, or our own where that is not installed."""
    if shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        with slow_sink(port):
            yield
        return
    sink = Sink(port, log)
    try:
        yield
    finally:
        sink.close()


SCENES = {scene.__name__: scene for scene in (idle, busy, active, backlog, stampede, cost)}


def main() -> int:
    parser = argparse.ArgumentParser(description="How large a system may be.")
    parser.add_argument("scenes", nargs="*", help=f"of {', '.join(SCENES)}; all unless some are named")
    parser.add_argument("--dir", type=Path, help="a directory for the spool, at best a tmpfs")
    parser.add_argument("--messages", type=int, default=1_000_000, help="of the long queue")
    parser.add_argument("--vmtas", type=int, default=1000, help="at work at once; ten times as many without mail")
    parser.add_argument("--port", type=int, default=12_600, help="of the receiver, and the next one; 0: a free one")
    parser.add_argument("--json", type=Path, help="a file for the table")
    given = parser.parse_args()
    if unknown := set(given.scenes) - SCENES.keys():
        parser.error(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    raise_descriptor_limit()
    port = given.port or free_port()
    base = Path(tempfile.mkdtemp(prefix="spoolmta-scale-", dir=given.dir)).resolve()
    table: list[Row] = []
    try:
        with fast_sink(port, base / "sink.log"):
            for name in given.scenes or SCENES:
                print(f"scale: {name}", file=sys.stderr, flush=True)
                found = SCENES[name](Stage(base, port, given.messages, given.vmtas))
                print("\n".join(map(str, found)), file=sys.stderr, flush=True)
                table += found
    except BenchError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    else:
        shutil.rmtree(base, ignore_errors=True)
    print("\n".join(map(str, table)))
    if given.json:
        given.json.write_text(json.dumps([vars(row) for row in table], indent=1) + "\n")
    return 0 if all(row.is_met for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
