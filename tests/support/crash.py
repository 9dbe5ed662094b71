"""Crashing on purpose: `spoolmta run` with a finger on the trigger, and the oracle that counts what is left.

`python -m tests.support.crash CONFIG TRIGGER [MUTATION ...]` is `spoolmta run` in which our own functions are wrapped:
before each check it reads the file TRIGGER (`<point> <n>`), and at the n-th passing of that point since the file is
there, by whichever process comes first, the file goes and the process kills itself with SIGKILL. So nothing in the
program knows of the test, and the process that starts next finds no trigger. A mutation breaks a promise on purpose, to
show that a test would notice.
"""

from __future__ import annotations

import functools
import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import setproctitle

from spoolmta import control, delivery, disk, journal, state, supervisor
from spoolmta.errors import SpoolError, UnavailableError
from spoolmta.ledger import Ledger
from spoolmta.spool import audit
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Partition
from tests.support.mta import ROOT, Mta


class Point(NamedTuple):
    """A place on a message's way: before or after a call of `function` in a process of this role, where `match`
    stands in one of the arguments that are text (or in the journal's path)."""

    role: str
    function: str
    when: str
    match: str = ""


POINTS = {
    "before the claim": Point("pickup", "spool.intake:Incoming.claim", "before"),
    "after the claim": Point("pickup", "spool.intake:Incoming.claim", "after"),
    "before the accepted line": Point("pickup", "journal:Journal.append", "before", "pickup.0.log"),
    "after the accepted line": Point("pickup", "journal:Journal.append", "after", "pickup.0.log"),
    "after the sync": Point("pickup", "disk:Committer.sync", "after"),
    "before the receipt rows": Point("pickup", "accounting:Log.flush", "before"),
    "after the receipt rows": Point("pickup", "accounting:Log.flush", "after"),
    "before the queue": Point("pickup", "disk:rename", "before", "/queue/"),
    "in the queue": Point("pickup", "disk:rename", "after", "/queue/"),
    "before a link": Point("pickup", "disk:link", "before", "/queue/"),
    "after a link": Point("pickup", "disk:link", "after", "/queue/"),
    "after the move out of incoming": Point("pickup", "spool.intake:enqueue", "after"),
    "before the hints": Point("pickup", "control:HintWriter.send", "before"),
    "after the hints": Point("pickup", "control:HintWriter.send", "after"),
    "in intake's compaction, before it": Point("pickup", "disk:replace", "before", "pickup.0.log"),
    "in intake's compaction, the new file written": Point("pickup", "disk:sync_path", "before", "pickup.0.log"),
    "in intake's compaction, after it": Point("pickup", "disk:replace", "after", "pickup.0.log"),
    "the entry loaded": Point("deliver", "spool.partition:Partition.load", "after"),
    "the reply read, before the rows": Point("deliver", "carrier:Carrier._note", "before"),
    "the rows collected": Point("deliver", "carrier:Carrier._note", "after"),
    "between the rows and the journal": Point("deliver", "accounting:Log.flush", "after"),
    "after the journal": Point("deliver", "spool.partition:Partition.flush", "after"),
    "before the sync of a removal": Point("deliver", "disk:Committer.sync", "before"),
    "after the sync of a removal": Point("deliver", "disk:Committer.sync", "after"),
    "before a removal": Point("deliver", "disk:remove", "before", "/queue/"),
    "after a removal": Point("deliver", "disk:remove", "after", "/queue/"),
    "before the rename of a deferral": Point("deliver", "disk:rename", "before", "/cur/"),
    "after the rename of a deferral": Point("deliver", "disk:rename", "after", "/cur/"),
    "before an entry is handed over": Point("deliver", "spool.partition:Partition.hand_over", "before"),
    "after an entry is handed over": Point("deliver", "spool.partition:Partition.hand_over", "after"),
    "the marker written": Point("deliver", "disk:replace", "after", "/state/pool/"),
    "before the hints of what was handed over": Point("deliver", "control:HintWriter.send", "before"),
    "before a report is written": Point("deliver", "disk:write_new", "before", "/.dsn/"),
    "a report written": Point("deliver", "disk:write_new", "after", "/.dsn/"),
    "a report accepted, before its lines": Point("deliver", "spool.outbox:Outbox.accept", "after"),
    "before the lines of a report and its recipients": Point("deliver", "journal:Journal.append", "before", "\nB "),
    "after the lines of a report and its recipients": Point("deliver", "journal:Journal.append", "after", "\nB "),
    "before the line of a report": Point("deliver", "journal:Journal.append", "before", "A "),
    "before a report is in the queue": Point("deliver", "disk:rename", "before", "/.dsn/"),
    "a report in the queue": Point("deliver", "disk:rename", "after", "/.dsn/"),
    "in the compaction, before it": Point("deliver", "disk:replace", "before", "/journal/"),
    "in the compaction, the new file written": Point("deliver", "disk:sync_path", "before", "/journal/"),
    "in the compaction, the new file in place": Point("deliver", "disk:sync_path", "after", "/journal"),
    "in the compaction, after it": Point("deliver", "disk:replace", "after", "/journal/"),
}


# The child


class Trigger:
    """The file that says where to die."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._passed: Counter[str] = Counter()

    def wrap(self, points: dict[str, Point], function: Callable[..., Any]) -> Callable[..., Any]:
        def check(when: str, arguments: tuple[Any, ...]) -> None:
            armed = self._read()
            point = points.get(armed.rpartition(" ")[0])
            if point is not None and point.when == when and _fits(point, arguments):
                self._passed[armed] += 1
                if self._passed[armed] == int(armed.rpartition(" ")[2]):
                    self._die()

        @functools.wraps(function)
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            check("before", arguments)
            result = function(*arguments, **keywords)
            check("after", arguments)
            return result

        return wrapped

    def _read(self) -> str:
        try:
            with open(self._path, encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _die(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return  # another process was faster
        os.kill(os.getpid(), signal.SIGKILL)


def _fits(point: Point, arguments: tuple[Any, ...]) -> bool:
    role = setproctitle.getproctitle().removeprefix("spoolmta: ").partition(" ")[0]
    texts = [getattr(argument, "path", argument) for argument in arguments]
    return role == point.role and any(point.match in text for text in ["", *texts] if isinstance(text, str))


def _no_sync() -> None:
    """Nothing is made durable before it is acknowledged."""
    disk.Committer.sync = lambda _: time.monotonic_ns()  # type: ignore[method-assign]
    disk.AppendFile.sync = lambda _: None  # type: ignore[method-assign]


def _remove_before_sync() -> None:
    """Entries go as soon as their journal line is written, synced or not."""
    flush, reap = Partition.flush, Partition.reap

    def remove_at_once(self: Partition) -> None:
        flush(self)
        reap(self, 1 << 62)

    Partition.flush = remove_at_once  # type: ignore[method-assign]


def _settle_before_report() -> None:
    """Failed recipients are settled in the turn that read the reply, however safe their report is."""
    settle = Ledger.settle

    def settle_at_once(self: Ledger, *arguments: Any) -> Any:
        done = settle(self, *arguments)
        self._reporter.settle(1 << 62, self.log)
        return done

    Ledger.settle = settle_at_once  # type: ignore[method-assign]


def _compact_always() -> None:
    """Journals are compacted at every occasion, and occasions are frequent."""
    journal.COMPACT_AT = 1
    delivery.RESCAN = 0.5


def _fall_asleep_slowly() -> None:
    """A process that leaves takes a second to do so, when its state is saved."""
    save = state.save

    @functools.wraps(save)
    def dawdle(*arguments: Any) -> None:
        save(*arguments)
        time.sleep(1.0)

    state.save = dawdle


def _fail_a_sync() -> None:
    """The sync of the delivery process that finds the file `TRIGGER.sync` fails, once. If that process syncs again,
    which the kernel would answer with success, it leaves `TRIGGER.again`."""
    sync, failed, trigger = disk.Committer.sync, [], sys.argv[2]

    def fail(self: disk.Committer) -> int:
        if os.getpid() in failed:
            open(f"{trigger}.again", "w").close()
        if setproctitle.getproctitle().startswith("spoolmta: deliver") and os.path.exists(f"{trigger}.sync"):
            os.unlink(f"{trigger}.sync")
            failed.append(os.getpid())
            raise SpoolError("the disk failed to make the spool durable: Input/output error")
        return sync(self)

    disk.Committer.sync = fail  # type: ignore[method-assign]


MUTATIONS = {
    "fail-a-sync": _fail_a_sync,
    "no-sync": _no_sync,
    "remove-before-sync": _remove_before_sync,
    "settle-before-report": _settle_before_report,
    "compact-always": _compact_always,
    "fall-asleep-slowly": _fall_asleep_slowly,
}


def _main(config: str, trigger_file: str, *mutations: str) -> None:
    for mutation in mutations:
        MUTATIONS[mutation]()
    trigger = Trigger(trigger_file)
    by_function: dict[str, dict[str, Point]] = {}
    for name, point in POINTS.items():
        by_function.setdefault(point.function, {})[name] = point
    for function, points in by_function.items():
        module, _, path = function.partition(":")
        owner: Any = importlib.import_module(f"spoolmta.{module}")
        *classes, attribute = path.split(".")
        for name in classes:
            owner = getattr(owner, name)
        try:
            setattr(owner, attribute, trigger.wrap(points, getattr(owner, attribute)))
        except TypeError:
            pass  # a compiled class: nobody is killed there
    supervisor.run(config)


# The tests' side


class CrashMta(Mta):
    """A system to be crashed. Questions go to its control socket, which costs no new process each."""

    mutations: tuple[str, ...] = ()

    @property
    def trigger(self) -> Path:
        return self.path / "trigger"

    @property
    def layout(self) -> Layout:
        return Layout(str(self.spool))

    def start(self) -> None:
        with open(self.path / "log", "ab") as log:
            command = [sys.executable, "-m", "tests.support.crash", str(self.config_file), str(self.trigger)]
            self.process = subprocess.Popen([*command, *self.mutations], stdout=log, stderr=log, cwd=ROOT)
        self.wait_for(lambda: self.is_up() or self.process_ended())
        assert not self.process_ended(), self.log()

    def is_up(self) -> bool:
        try:
            return self.status()["pickup"]["pid"] != 0
        except UnavailableError:
            return False

    def status(self) -> dict[str, Any]:
        return control.ask(self.layout.control, {"ask": "status"})

    def processes(self) -> dict[str, int]:
        """The pids that live now by role: "supervisor", "pickup", and the names of VMTAs."""
        status = self.status()
        pids = {"supervisor": int(status["pid"]), "pickup": int(status["pickup"]["pid"])}
        pids |= {vmta["name"]: int(vmta["pid"]) for vmta in status["vmtas"]}
        return {role: pid for role, pid in pids.items() if pid}

    def arm(self, point: str, count: int = 1) -> None:
        new = self.trigger.with_suffix(".new")
        new.write_text(f"{point} {count}", encoding="ascii")
        new.rename(self.trigger)

    def has_fired(self) -> bool:
        return not self.trigger.exists()

    def balance(self) -> audit.Audit:
        """The exact balance of a system that is quiet: nothing is left out for being young."""
        return audit._look(self.layout, running=False)

    def settled(self) -> dict[str, set[str]]:
        """What the VMTAs' journals call settled: address to the letters of its lines."""
        letters: dict[str, set[str]] = {}
        for file in (self.spool / "journal").glob("*.log"):
            for addresses in journal.read(str(file)).settled.values():
                for address, (letter, _, _) in addresses.items():
                    letters.setdefault(address, set()).add(letter)
        return letters

    def left_over(self) -> list[str]:
        """Mail that lies anywhere in the spool, whose folders come and go while we look."""
        tops = ("pickup", "incoming", "queue", "corrupt", "bad")
        walks = (os.walk(self.spool / top) for top in tops)
        found = [os.path.join(folder, name) for walk in walks for folder, _, names in walk for name in names]
        return [os.path.relpath(path, self.spool) for path in found]


def crash_seed() -> int:
    """SPOOLMTA_CRASH_SEED, or a new one."""
    return int(os.environ.get("SPOOLMTA_CRASH_SEED", "0")) or random.randrange(1, 1 << 31)


class Delivered(NamedTuple):
    """One message the sink accepted, for one of its recipients."""

    time: float
    source: str


def by_recipient(record: Iterable[dict[str, Any]]) -> dict[str, list[Delivered]]:
    """The sink's record turned round: what each address got, in the order of its arrival."""
    found: dict[str, list[Delivered]] = {}
    for line in record:
        for recipient in line["recipients"]:
            found.setdefault(recipient, []).append(Delivered(line["time"], line["source"]))
    return found


def contradictions(mta: CrashMta, delivered: dict[str, list[Delivered]], expected: dict[str, str]) -> list[str]:
    """What is wrong in a system that has no mail left: `expected` has the letter of each recipient's end ("d" or "b").
    A row too many is allowed only where the sink has a message too many: the reply was read, the line not written."""
    wrong = []
    ends: dict[str, list[str]] = {}
    for row in mta.rows("d", "b"):
        ends.setdefault(row["rcpt"], []).append(row["type"])
    settled = mta.settled()
    for address, letter in expected.items():
        copies, rows = len(delivered.get(address, ())), ends.get(address, [])
        if letter == "d" and not copies:
            wrong.append(f"lost: {address}")
        if letter == "b" and copies:
            wrong.append(f"delivered although refused: {address}")
        if set(rows) != {letter}:
            wrong.append(f"rows {rows} instead of {letter}: {address}")
        if letter == "d" and len(rows) > max(1, copies):
            wrong.append(f"{len(rows)} rows for {copies} copies: {address}")
        if settled.get(address, {letter.upper()}) != {letter.upper()}:
            wrong.append(f"the journal says {settled[address]}: {address}")
    wrong += [f"nobody sent it: {address}" for address in (delivered.keys() | ends.keys()) - expected.keys()]
    wrong += [f"left over: {path}" for path in mta.left_over()]
    if "Traceback" in mta.log():
        wrong.append(f"a process failed:\n{mta.log()[-4000:]}")
    balance = mta.balance()
    if not balance.balanced or balance.queued:
        wrong.append(f"out of balance: {balance}")
    return wrong


if __name__ == "__main__":
    _main(*sys.argv[1:])
