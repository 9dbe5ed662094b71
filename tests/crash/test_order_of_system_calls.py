"""The order of system calls, as strace saw it, for every message of a run: what makes a message durable comes before
what acknowledges it. Needs Debian's `strace`.

| process | order |
|---|---|
| pickup | claim and accepted line; a sync that began after both; receipt rows; the names in the queue |
| delivery | rows of an entry's recipients, their journal lines; a sync, anybody's, that began after both; its removal |

The same laws must find the mutations that leave out the sync, or remove before it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.crash import CrashMta
from tests.support.mta import BASE, ROOT, ROUTE, World
from tests.support.torture import tell

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs Debian's strace")

CALLS = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,write,pwrite64,writev,syncfs"
ID = r"[0-9]+\.M[0-9]+P[0-9]+Q[0-9]+\.[^,/\s]+"


class TracedMta(CrashMta):
    """A system whose system calls are written down."""

    @property
    def trace(self) -> Path:
        return self.path / "trace"

    def start(self) -> None:
        tracer = ["strace", "-f", "-qq", "-y", "-s", "200000", "-e", f"trace={CALLS}", "-e", "signal=none"]
        command = [sys.executable, "-m", "tests.support.crash", str(self.config_file), str(self.trigger)]
        with open(self.path / "log", "ab") as log:
            traced = [*tracer, "-o", str(self.trace), *command, *self.mutations]
            self.process = subprocess.Popen(traced, stdout=log, stderr=log, cwd=ROOT)
        self.wait_for(lambda: self.is_up() or self.process_ended())
        if self.process_ended():
            pytest.skip(f"strace may not trace here: {self.log()[-200:]}")

    def stop(self) -> int:
        if self.process is None:
            return 0
        self.command("stop")
        code = self.process.wait(60)
        self.process = None
        return code


class Call(NamedTuple):
    """One system call that succeeded, with the lines of the trace at which it began and ended."""

    process: str
    name: str
    arguments: str
    began: int
    ended: int


def calls(trace: Path) -> Iterator[Call]:
    begun: dict[str, tuple[int, str]] = {}
    with trace.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file):
            process, _, text = line.rstrip("\n").partition(" ")
            text = text.lstrip()
            began = number
            if text.endswith("<unfinished ...>"):
                begun[process] = number, text.removesuffix("<unfinished ...>")
                continue
            resumed = re.match(r"<\.\.\. \w+ resumed>", text)
            if resumed is not None:
                began, head = begun.pop(process)
                text = head + text[resumed.end() :]
            match = re.match(r"(\w+)\((.*)\)\s+= ([0-9]+)\b", text)
            if match is not None:
                yield Call(process, match[1], match[2], began, number)


class Trace:
    """What was done to each message, from the calls of a run."""

    def __init__(self, every: Iterable[Call]) -> None:
        self.claims: dict[str, Call] = {}
        self.accepted: dict[str, Call] = {}
        self.receipts: dict[tuple[str, str], Call] = {}
        self.queued: dict[str, list[Call]] = {}
        self.rows: dict[tuple[str, str], Call] = {}
        self.lines: dict[tuple[str, str], Call] = {}
        self.gone: dict[tuple[str, str], Call] = {}
        self.syncs: list[Call] = []
        for call in every:
            if call.name == "syncfs":
                self.syncs.append(call)
            elif "write" in call.name:
                self._read_write(call)
            else:
                self._read_names(call)

    def _read_write(self, call: Call) -> None:
        if "/journal/" in call.arguments:
            for id_ in re.findall(rf'(?:"|\\n)A ({ID}) ', call.arguments):
                self.accepted.setdefault(id_, call)
            for id_, address in re.findall(rf'(?:"|\\n)[DBX] ({ID}) ([^ \\]+)(?=\\n)', call.arguments):
                self.lines.setdefault((id_, address), call)
        elif "/accounting/" in call.arguments:
            for row in call.arguments.split("\\r\\n"):
                found = re.search(rf",({ID}),", row)
                address = re.search(r",([^,]+@[ab]\.test),", row.partition("sender@mta.test")[2])
                if found is not None and address is not None:
                    kind = self.receipts if re.search(r'(^|")r,', row) else self.rows
                    if re.search(r'(^|")[rdb],', row):
                        kind.setdefault((found[1], address[1]), call)

    def _read_names(self, call: Call) -> None:
        names = re.findall(r'"([^"]+)"', call.arguments)
        found = re.search(rf"/({ID}),S=", names[-1])
        if found is None:
            return
        if call.name.startswith("unlink") and "/queue/" in names[0]:
            self.gone[found[1], names[0].split("/")[-3]] = call
        elif len(names) == 2 and "/pickup/" in names[0] and "/incoming/" in names[1]:
            self.claims[found[1]] = call
        elif len(names) == 2 and "/incoming/" in names[0] and "/queue/" in names[1]:
            self.queued.setdefault(found[1], []).append(call)

    def has_sync(self, after: int, before: int) -> bool:
        return any(after < sync.began and sync.ended < before for sync in self.syncs)

    def contradictions(self) -> list[str]:
        return [*self._intake(), *self._removals()]

    def _intake(self) -> Iterator[str]:
        deliverers = {line.process for line in self.lines.values()}
        own = [sync for sync in self.syncs if sync.process not in deliverers]  # the pickup process's thread for syncs
        for id_, claim in self.claims.items():
            accepted, first = self.accepted[id_], min(self.queued[id_], key=lambda call: call.began)
            if not claim.ended < accepted.began:
                yield f"accepted before it was claimed: {id_}"
            if not any(accepted.ended < sync.began and sync.ended < first.began for sync in own):
                yield f"in the queue before it was durable: {id_}"
        for (id_, address), receipt in self.receipts.items():
            if not self.has_sync(self.accepted[id_].ended, receipt.began):
                yield f"a receipt before it was durable: {id_} {address}"
            if not receipt.ended < min(call.began for call in self.queued[id_]):
                yield f"in the queue before its receipt: {id_} {address}"

    def _removals(self) -> Iterator[str]:
        for (id_, address), line in self.lines.items():
            if not self.rows[id_, address].ended < line.began:
                yield f"settled before its row: {id_} {address}"
            gone = self.gone[id_, address.rpartition("@")[2]]
            if not self.has_sync(line.ended, gone.began):
                yield f"removed before a sync: {id_} {address}"


def run_traced(path: Path, *mutations: str) -> tuple[Trace, int]:
    """About 200 messages of all sorts; their calls, and how many recipients there were."""
    with World(path) as world:
        route = ROUTE.format(host=world.host, port=world.port)
        mta = TracedMta(path / "mta", BASE.format(dns="", default_route=route, sleep_after="1m"))
        mta.mutations = mutations
        recipients: list[str] = []
        with mta:
            for number in range(200):
                kind = ("x", "y", "x", "once-451-", "550-5.1.1@")[number % 5]
                local = f"n{number}--550-5.1.1" if kind.startswith("550") else f"{kind}n{number}"
                to = [f"{local}@a.test", *([f"w{number}@b.test", f"v{number}@a.test"] if number % 3 == 0 else [])]
                mta.drop(*to)
                recipients += to
            mta.wait_for(lambda: {row["rcpt"] for row in mta.rows("d", "b")} == set(recipients), 60)
            mta.wait_for(lambda: not mta.left_over())
        return Trace(calls(mta.trace)), len(recipients)


def test_what_makes_durable_comes_before_what_acknowledges(tmp_path: Path) -> None:
    trace, recipients = run_traced(tmp_path)
    assert len(trace.claims) == len(trace.accepted) == len(trace.queued) == 200
    assert len(trace.rows) == len(trace.lines) == len(trace.receipts) == recipients
    assert trace.syncs
    assert trace.contradictions() == []


@pytest.mark.torture
@pytest.mark.parametrize("mutation", ["no-sync", "remove-before-sync"])
def test_the_laws_find_a_broken_promise(tmp_path: Path, mutation: str) -> None:
    trace, _ = run_traced(tmp_path, mutation)
    found = trace.contradictions()
    tell(f"system calls with {mutation}: contradictions found", ">= 1", str(len(found)))
    assert found
