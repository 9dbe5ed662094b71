"""Rounds: one system does one work while it is watched; and pairs of them.

`fed`: inside the clock a feeder hands messages over as fast as it can: for spoolmta one process that writes and
renames files into `pickup/`, for Postfix twenty SMTP sessions. Rate = messages / time from the first one handed over
to the last delivery.

`full`: all messages are there before: in `pickup/` before `run`; in Postfix's deferred queue, which is then released.
Rate = messages / time, from the first delivery to the last.

`beside`: mail is fed to a system whose queue is long and waits (`bench_backlog`).

A round counts only if it was long enough and ended with an empty queue, a balanced audit, and as many refusals as
the sink was to give. Rates count recipients where a message has several.
"""

import os
import sys
import time
from pathlib import Path
from typing import Protocol

from bench_backlog import Backlog
from bench_machine import Sink, make_certificate, own_sink, smtp_sink
from bench_mail import BOUNCED, DEFERRED, Mail, Work
from bench_measure import ProcessTree, Round, RowCounter, Timeline, read_machine, watch
from bench_rows import POSTFIX, Pair, Side, Sides

# Where calibration begins, in messages (or recipients of long lists) a second.
GUESSES = {"fed": 600.0, "full": 1200.0}
GUESS_OF_RECIPIENTS = 4000.0
FULL_GUESS_OF_OURS = 3000.0
TRIES = 4
# More messages than the last rate asks for, so that few rounds are too short.
HEADROOM = 1.2
FOR_EVER = 1e9


class Feeder(Protocol):
    """Who hands messages over in a fed round."""

    problems: list[str]

    @property
    def begun_at(self) -> float: ...
    @property
    def cpu_us(self) -> float: ...
    def turn(self, delivered: int, /) -> int | None: ...
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
    def close_round(self, work: Work, sent: int, /) -> list[str]: ...
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
    return close_round(system, work, result, line, sent)


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
    return close_round(system, work, result, line, messages)


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
        sink_share=sink_us / every,
    )


def close_round(system: System, work: Work, result: Round, line: Timeline, sent: int) -> Round:
    """Stop the system and add to `result` everything that speaks against it."""
    result.problems += system.close_round(work, sent)
    if line.stalled:
        result.problems.append(f"nothing moved any more at {line.last_count} of {sent} messages")
    mail = Mail(work)
    for what, seen, fate in (("bounced", line.failed, BOUNCED), ("were deferred", line.deferred, DEFERRED)):
        # All recipients of a message have one fate.
        if seen != (wanted := mail.count(fate, 0, sent // work.recipients) * work.recipients):
            result.problems.append(f"{seen} {what}, {wanted} were to be")
    if line.last_count != sent:
        result.problems.append(f"{sent} messages were handed over, {line.last_count} delivered")
    return result


class Bench:
    """One run: works through its list in pairs of rounds and keeps what they came to."""

    def __init__(
        self, systems: dict[str, System], backlog: Backlog, sink_port: int, base: Path, seconds: float
    ) -> None:
        self.systems = systems
        self.backlog = backlog
        self.sink_port = sink_port
        self.base = base
        self.seconds = seconds
        self.results: dict[Sides, list[Pair]] = {}
        self.failures: list[str] = []
        self._rates: dict[Side, float] = {}

    def __repr__(self) -> str:
        return f"Bench({list(self.systems)}, {len(self.results)} comparisons done, failures={self.failures})"

    def compare(self, sides: Sides, pairs: int) -> None:
        """So many pairs of rounds; without Postfix only our side of them."""
        results = self.results.setdefault(sides, [])
        present = [side for side in sides if side.system in self.systems]
        try:
            for number in range(pairs):
                # Who goes first changes from pair to pair, so that neither always finds the disk just used.
                order = present if number % 2 == 0 else present[::-1]
                sink = self._open_sink(sides)
                try:
                    results.append({side: self._round(side, sink, number) for side in order})
                finally:
                    sink.close()
        finally:
            self.backlog.clear()

    def _open_sink(self, sides: Sides) -> Sink:
        """smtp-sink against Postfix where it will do; not for ourselves, since its timers cost with connections."""
        log, work = self.base / "sink.log", sides[0].work
        if any(side.system == POSTFIX for side in sides) and not work.needs_own_sink:
            return smtp_sink(self.sink_port, log)
        return own_sink(self.sink_port, log, make_certificate(self.base / "sink.pem") if work.tls else None)

    def _round(self, side: Side, sink: Sink, number: int) -> Round:
        """One round of at least the seconds asked for; a shorter one is repeated with more messages."""
        work = side.work
        is_by_time = side.system != POSTFIX and work.way == "fed"
        if not work.messages and not is_by_time and side not in self._rates:
            first = self._try(side, sink, max(2.0, min(5.0, self.seconds / 3)), guess(side))
            say(side, "calibration", first)
            self._rates[side] = first.rate
        attempt = 0
        while True:
            attempt += 1
            result = self._try(side, sink, self.seconds, HEADROOM * self._rates.get(side, 0.0))
            self._rates[side] = max(result.rate, 1.0)
            is_short = not work.messages and result.seconds < self.seconds and not result.problems
            again = is_short and attempt < TRIES
            say(side, f"pair {number + 1}{' (too short, again with more)' if again else ''}", result)
            if not again:
                break
        if is_short:
            result.problems.append(f"lasted only {result.seconds:.1f} s after {TRIES} tries")
        self.failures += [f"{side}, pair {number + 1}: {problem}" for problem in result.problems]
        return result

    def _try(self, side: Side, sink: Sink, seconds: float, rate: float) -> Round:
        system, work = self.systems[side.system], side.work
        os.sync()
        if work.way == "beside":
            return self.backlog.run(work)
        messages = work.messages or max(100, int(rate * seconds))
        try:
            if work.way == "fed":
                return run_fed(system, sink, work, messages, FOR_EVER if work.messages else seconds)
            return run_full(system, sink, work, messages)
        finally:
            system.stop()


def guess(side: Side) -> float:
    if side.system != POSTFIX:
        return FULL_GUESS_OF_OURS
    return GUESS_OF_RECIPIENTS if side.work.recipients > 1 else GUESSES[side.work.way]


def say(side: Side, what: str, result: Round) -> None:
    """The progress line of a round."""
    early, late = result.halves
    text = (
        f"{time.strftime('%H:%M:%S')} {side}: {what}: {result.messages} in "
        f"{result.seconds:.1f} s = {result.rate:,.0f}/s (first half {early:,.0f}, second {late:,.0f}), "
        f"{result.cpu_total_us:,.0f} us CPU each, "
        f"machine {result.idle_share:.0%} idle, {result.other_share:.0%} for others"
    )
    print("; ".join([text, *result.problems]), file=sys.stderr, flush=True)
