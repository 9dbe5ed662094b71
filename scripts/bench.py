#!/usr/bin/env python3
"""The same work through spoolmta and through Postfix, in one run, alternating; see README.md beside this file.

4 KB and 40 KB messages to 20 domains go over a fixed route to Postfix's smtp-sink on the same machine.

`fed`: inside the clock a feeder hands messages over as fast as it can: for spoolmta one process that writes and
renames files into `pickup/`, for Postfix twenty smtp-source sessions. Rate = messages / time from the first one
handed over to the last delivery.

`full`: all messages are there before: in `pickup/` before `run`; in Postfix's deferred queue, which is then released.
Rate = messages / time, from the first delivery to the last.

A round counts only if it was long enough and ended with an empty queue and a balanced audit.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Protocol

from bench_machine import Sink, bench_directory, refuse_listened_port
from bench_measure import BenchError, ProcessTree, Round, RowCounter, Timeline, Work, read_machine, watch
from bench_postfix import Postfix
from bench_report import render_table
from bench_spoolmta import Spoolmta

DEFAULT_WORKS = [
    Work(4096, "fed", 8),
    Work(4096, "full", 8),
    Work(4096, "fed", 1),
    Work(4096, "fed", 2),
    Work(40960, "fed", 8),
]
# Where calibration begins, in messages per second.
GUESSES = {"Postfix": {"fed": 600.0, "full": 1200.0}, "spoolmta": {"fed": 3000.0, "full": 3000.0}}
TRIES = 4
# More messages than the last rate asks for, so that few rounds are too short.
HEADROOM = 1.2


class Feeder(Protocol):
    """Who hands messages over in a fed round."""

    problems: list[str]

    @property
    def begun_at(self) -> float: ...
    @property
    def cpu_us(self) -> float: ...
    def turn(self, delivered: int) -> int | None: ...
    def stop(self) -> None: ...


class System(Protocol):
    """What the bench asks of a mail system, in this order: open, (feed or release), close_round; stop at any time."""

    @property
    def name(self) -> str: ...
    @property
    def starts_at_release(self) -> bool: ...
    def open_fed(self, work: Work, /) -> None: ...
    def feed(self, work: Work, messages: int, seconds: float, /) -> Feeder: ...
    def open_full(self, work: Work, messages: int, /) -> None: ...
    def release(self) -> None: ...
    def rows(self) -> RowCounter: ...
    def tree(self, from_start: bool = False) -> ProcessTree: ...
    def warm_up_messages(self, work: Work) -> int: ...
    def close_round(self, expected: int, /) -> list[str]: ...
    def stop(self) -> None: ...


class Meter:
    """What the whole machine and the sink use while a round runs."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._sink_before = sink.cpu_us()
        self._before = read_machine()

    def __repr__(self) -> str:
        return f"Meter({self.sink})"

    def stop(self) -> tuple[float, dict[str, int]]:
        """CPU microseconds of the sink and of the machine since the meter was made."""
        after = read_machine()
        return self.sink.cpu_us() - self._sink_before, {key: after[key] - self._before[key] for key in after}


def run_fed(system: System, sink: Sink, work: Work, messages: int, seconds: float) -> Round:
    system.open_fed(work)
    rows, tree, meter = system.rows(), system.tree(), Meter(sink)
    feeder = system.feed(work, messages, seconds)
    line = watch(rows, tree, feeder.turn)
    rows.close()
    total = feeder.turn(line.last_count)
    sent = line.last_count if total is None else total
    elapsed = max(line.last_at - feeder.begun_at, 1e-9)
    result = sum_up(system.name, line, tree, meter, feeder.cpu_us, elapsed, line.last_count / elapsed)
    return close_round(system, result, line, sent, system.warm_up_messages(work))


def run_full(system: System, sink: Sink, work: Work, messages: int) -> Round:
    system.open_full(work, messages)
    rows, meter = system.rows(), Meter(sink)
    # spoolmta is only started by release(): everything it ever uses counts.
    tree = None if system.starts_at_release else system.tree()
    system.release()
    tree = tree or system.tree(from_start=True)
    line = watch(rows, tree, lambda _delivered: messages)
    rows.close()
    result = sum_up(system.name, line, tree, meter, 0.0, line.last_at - line.first_at, line.rate_between())
    return close_round(system, result, line, messages, 0)


def sum_up(
    name: str, line: Timeline, tree: ProcessTree, meter: Meter, feeder_us: float, elapsed: float, rate: float
) -> Round:
    """The figures of a round, each CPU time divided by its messages."""
    count = max(1, line.last_count)
    sink_us, machine = meter.stop()
    every = max(1, machine["idle"] + machine["busy"])
    return Round(
        system=name,
        messages=line.last_count,
        seconds=elapsed,
        rate=rate,
        cpu_us={role: used / count for role, used in tree.by_role().items()},
        cpu_total_us=tree.total_us / count,
        feeder_us=feeder_us / count,
        sink_us=sink_us / count,
        peak_memory=tree.peak_memory,
        memory_kind=tree.memory_kind,
        halves=line.halves,
        idle_share=machine["idle"] / every,
        other_share=max(0.0, machine["busy"] - tree.total_us - feeder_us - sink_us) / every,
    )


def close_round(system: System, result: Round, line: Timeline, sent: int, warm_up: int) -> Round:
    """Stop the system and add to `result` everything that speaks against it."""
    result.problems += system.close_round(sent + warm_up)
    if line.stalled:
        result.problems.append(f"nothing moved any more at {line.last_count} of {sent} messages")
    if line.failed:
        result.problems.append(f"{line.failed} messages bounced")
    if line.last_count != sent:
        result.problems.append(f"{sent} messages were handed over, {line.last_count} delivered")
    return result


class Bench:
    """One run: works through its list in pairs of rounds and keeps what they came to."""

    def __init__(self, systems: list[System], sink_port: int, base: Path, seconds: float, pairs: int) -> None:
        self.systems = systems
        self.sink_port = sink_port
        self.base = base
        self.seconds = seconds
        self.pairs = pairs
        self.results: dict[Work, list[dict[str, Round]]] = {}
        self.failures: list[str] = []
        self._rates: dict[tuple[str, int, str, int], float] = {}

    def __repr__(self) -> str:
        return f"Bench({self.systems}, {len(self.results)} works done, failures={self.failures})"

    def run(self, works: list[Work]) -> None:
        for work in works:
            pairs = self.results.setdefault(work, [])
            for number in range(self.pairs):
                # Who goes first changes from pair to pair, so that neither always finds the disk just used.
                order = self.systems if number % 2 == 0 else self.systems[::-1]
                sink = Sink(self.sink_port, self.base / "sink.log")
                try:
                    pairs.append({system.name: self._round(system, sink, work, number) for system in order})
                finally:
                    sink.close()

    def _round(self, system: System, sink: Sink, work: Work, number: int) -> Round:
        """One round of at least the seconds asked for; a shorter one is repeated with more messages."""
        key = (system.name, work.size, work.way, work.vmtas if system.name == "spoolmta" else 0)
        if key not in self._rates and (system.name, work.way) != ("spoolmta", "fed"):
            calibration = max(2.0, min(5.0, self.seconds / 3))
            first = self._try(system, sink, work, calibration, GUESSES[system.name][work.way])
            say(work, "calibration", first)
            self._rates[key] = first.rate
        attempt = 0
        while True:
            attempt += 1
            result = self._try(system, sink, work, self.seconds, HEADROOM * self._rates.get(key, 0.0))
            self._rates[key] = max(result.rate, 1.0)
            short = result.seconds < self.seconds and not result.problems
            again = short and attempt < TRIES
            say(work, f"pair {number + 1}{' (too short, again with more)' if again else ''}", result)
            if not again:
                break
        if short:
            result.problems.append(f"lasted only {result.seconds:.1f} s after {TRIES} tries")
        self.failures += [f"{work}: {system.name}, pair {number + 1}: {problem}" for problem in result.problems]
        return result

    def _try(self, system: System, sink: Sink, work: Work, seconds: float, rate: float) -> Round:
        messages = max(100, int(rate * seconds))
        os.sync()
        try:
            if work.way == "fed":
                return run_fed(system, sink, work, messages, seconds)
            return run_full(system, sink, work, messages)
        finally:
            system.stop()


def say(work: Work, what: str, result: Round) -> None:
    """The progress line of a round."""
    early, late = result.halves
    text = (
        f"{time.strftime('%H:%M:%S')} {work}: {what}: {result.system} {result.messages} messages in "
        f"{result.seconds:.1f} s = {result.rate:,.0f}/s (first half {early:,.0f}, second {late:,.0f}), "
        f"{result.cpu_total_us:,.0f} us CPU each, "
        f"machine {result.idle_share:.0%} idle, {result.other_share:.0%} for others"
    )
    print("; ".join([text, *result.problems]), file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The same work through spoolmta and Postfix, alternating.",
        epilog="Without --sizes, --ways, --vmtas: 4096 bytes fed and full at 8 VMTAs, fed at 1 and 2; 40960 fed at 8.",
    )
    add = parser.add_argument
    add("--seconds", type=float, help="the least length of a round (15)")
    add("--pairs", type=int, help="pairs of rounds for each work (5)")
    add("--sizes", type=numbers, help="payload bytes, for instance 4096,40960")
    add("--ways", type=lambda text: text.split(","), help="fed,full")
    add("--vmtas", type=numbers, help="numbers of VMTAs, for instance 1,2,8")
    add("--fs", choices=["ext4", "xfs"], default="ext4", help="the filesystem made for the run by root (ext4)")
    add("--fs-size", default="8G", help="its size; the file below it is sparse (8G)")
    add("--dir", type=Path, help="make no filesystem, use this directory")
    add("--quick", action="store_true", help="2 pairs of 5 s, 4096 bytes, fed and full, 8 VMTAs")
    add("--json", type=Path, metavar="FILE", help="write every round here as well")
    add("--no-postfix", action="store_true", help="only spoolmta")
    add("--no-spoolmta", action="store_true", help="only Postfix")
    add("--keep", action="store_true", help="leave spools and logs behind and say where")
    project = Path(__file__).resolve().parent.parent
    add("--spoolmta", type=Path, default=project / ".venv" / "bin" / "spoolmta", help="the program to run")
    add("--records", default="d,b,t,tq", help="accounting records of spoolmta (d,b,t,tq)")
    add("--max-smtp-out", type=int, default=50, help="connections of a VMTA to a domain (50)")
    add("--sink-port", type=int, default=12525, help="where smtp-sink listens (12525)")
    add("--postfix-port", type=int, default=12526, help="where Postfix listens (12526)")
    options = parser.parse_args()
    if options.no_postfix and options.no_spoolmta:
        parser.error("--no-postfix and --no-spoolmta together leave nothing to measure")
    if options.ways and not set(options.ways) <= {"fed", "full"}:
        parser.error("--ways takes fed and full")
    if any(not 1 <= count <= 200 for count in options.vmtas or []):
        parser.error("--vmtas takes numbers from 1 to 200")
    options.seconds = options.seconds or (5.0 if options.quick else 15.0)
    options.pairs = options.pairs or (2 if options.quick else 5)
    return options


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def choose_works(options: argparse.Namespace) -> list[Work]:
    sizes, ways, vmtas = options.sizes, options.ways, options.vmtas
    if not (sizes or ways or vmtas or options.quick):
        return DEFAULT_WORKS
    return [
        Work(size, way, count) for size in sizes or [4096] for way in ways or ["fed", "full"] for count in vmtas or [8]
    ]


@contextlib.contextmanager
def made_systems(options: argparse.Namespace, base: Path) -> Iterator[list[System]]:
    systems: list[System] = []
    try:
        if not options.no_spoolmta:
            records = options.records.split(",")
            program = options.spoolmta
            systems.append(Spoolmta(base / "spoolmta", program, options.sink_port, records, options.max_smtp_out))
        if not options.no_postfix:
            systems.append(Postfix(base / "postfix", options.postfix_port, options.sink_port))
        yield systems
    finally:
        for system in systems:
            system.stop()


def leave(number: int, _frame: FrameType | None) -> None:
    """A signal becomes an exception, so that everything started is stopped and everything mounted unmounted."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    raise SystemExit(128 + number)


def write_json(path: Path, place: str, bench: Bench) -> None:
    works = [
        {"work": asdict(work), "pairs": [{name: asdict(result) for name, result in pair.items()} for pair in pairs]}
        for work, pairs in bench.results.items()
    ]
    path.write_text(json.dumps({"filesystem": place, "works": works, "failures": bench.failures}, indent=2) + "\n")


def main() -> int:
    options = parse_arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    for port in (options.sink_port, options.postfix_port):
        refuse_listened_port(port)
    with bench_directory(options.fs, options.fs_size, options.dir, options.keep) as (base, place):
        print(f"bench: both spools on {place}; {os.cpu_count()} processors", file=sys.stderr, flush=True)
        with made_systems(options, base) as systems:
            bench = Bench(systems, options.sink_port, base, options.seconds, options.pairs)
            try:
                bench.run(choose_works(options))
            finally:
                print(render_table(bench.results), flush=True)
                if options.json is not None:
                    write_json(options.json, place, bench)
    for failure in bench.failures:
        print(f"bench: does not count: {failure}", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
