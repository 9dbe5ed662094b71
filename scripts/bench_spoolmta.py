"""spoolmta's half of the benchmark: a fresh spool for each round, fed by a process that drops files.

The dropper is one process of its own, whose CPU is told apart: it writes each message to `tmp-drop/` and renames
it into `pickup/`, as fast as it can, over all VMTAs and domains in turn. It waits while too many of its
messages are not delivered, because a round that only piles up mail would not end.
"""

import json
import mmap
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from bench_machine import raise_descriptor_limit, stop_process
from bench_measure import DOMAINS, BenchError, ProcessStat, ProcessTree, RowCounter, Work

MARKERS = {"delivered": b"\nd,", "bounced": b"\nb,", "deferred": b"\nt,"}
DROPPED_AT_MOST = 20_000
DROP_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
START_SECONDS = 30.0
DRAIN_SECONDS = 60.0

# The cells of the page that the dropper and the bench share.
DELIVERED, DROPPED, FIRST_NS, STOP, CPU_NS = range(5)


def build_messages(size: int, vmtas: int) -> list[bytes]:
    """One message for each pair of VMTA and domain, with `size` bytes of body, as smtp-source's payload has."""
    line = b"spoolmta bench " + b"x" * 56 + b"\n"
    body = (line * (size // len(line) + 1))[: size - 1] + b"\n"
    messages = []
    for number in range(vmtas * DOMAINS):
        vmta, domain = number % vmtas, number // vmtas
        head = (
            f"x-sender: sender@bench.test\n"
            f"x-receiver: user{number}@d{domain:02}.bench.test\n"
            f"x-virtual-mta: v{vmta}\n"
            f"From: sender@bench.test\n"
            f"To: user{number}@d{domain:02}.bench.test\n"
            f"Date: Mon, 01 Jan 2024 00:00:00 +0000\n"
            f"Message-Id: <{number}@bench.test>\n"
            f"\n"
        )
        messages.append(head.encode() + body)
    return messages


def drop_one(spool: str, number: int, content: bytes) -> None:
    temporary = f"{spool}/tmp-drop/{number:07}"
    descriptor = os.open(temporary, DROP_FLAGS, 0o660)
    os.write(descriptor, content)
    os.close(descriptor)
    os.rename(temporary, f"{spool}/pickup/{number:07}.eml")


def drop_all(spool: Path, messages: list[bytes], begin: int, end: int) -> None:
    for number in range(begin, end):
        drop_one(str(spool), number, messages[number % len(messages)])


def run_dropper(spool: str, messages: list[bytes], begin: int, seconds: float, page: memoryview) -> None:
    """The dropper process: writes for `seconds`, tells how far it is in `page`, and leaves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    number, kinds = begin, len(messages)
    page[FIRST_NS] = time.monotonic_ns()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not page[STOP]:
        if number - begin - page[DELIVERED] > DROPPED_AT_MOST:
            time.sleep(0.005)
            continue
        for _ in range(50):
            drop_one(spool, number, messages[number % kinds])
            number += 1
        page[DROPPED] = number - begin
    page[CPU_NS] = time.process_time_ns()
    os._exit(0)


class Dropper:
    """The dropper process as the bench sees it."""

    def __init__(self, spool: Path, messages: list[bytes], begin: int, seconds: float) -> None:
        self.problems: list[str] = []
        self._page = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        context = multiprocessing.get_context("fork")
        self._process: multiprocessing.process.BaseProcess = context.Process(
            target=run_dropper, args=(str(spool), messages, begin, seconds, self._page), daemon=True
        )
        self._process.start()

    def __repr__(self) -> str:
        return f"Dropper(pid={self._process.pid}, dropped={self._page[DROPPED]}, delivered={self._page[DELIVERED]})"

    @property
    def begun_at(self) -> float:
        return float(self._page[FIRST_NS] / 1e9)

    @property
    def cpu_us(self) -> float:
        return float(self._page[CPU_NS] / 1e3)

    def turn(self, delivered: int) -> int | None:
        """Tell the dropper how much is delivered; the number of messages once it has left."""
        self._page[DELIVERED] = delivered
        if self._process.is_alive():
            return None
        if self._process.exitcode != 0 and not self.problems:
            self.problems.append(f"the dropper left with status {self._process.exitcode}")
        return int(self._page[DROPPED])

    def stop(self) -> None:
        self._page[STOP] = 1
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Spoolmta:
    """spoolmta with a spool below `base`, made anew for every round."""

    starts_at_release = True
    name = "spoolmta"

    def __init__(self, base: Path, program: Path, sink_port: int, records: list[str], max_smtp_out: int) -> None:
        if not program.exists():
            raise BenchError(f"there is no {program}: install the project first, or give --spoolmta or --no-spoolmta")
        self.base, self.program, self.sink_port = base, program.absolute(), sink_port
        self.records, self.max_smtp_out = records, max_smtp_out
        self.spool, self.config = base / "spool", base / "spoolmta.toml"
        self.log = base / "spoolmta.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._fed: Dropper | None = None
        base.mkdir(mode=0o755)

    def __repr__(self) -> str:
        return f"Spoolmta({self.base}, process={self._process})"

    def _make_spool(self, work: Work) -> None:
        shutil.rmtree(self.spool, ignore_errors=True)
        for name in ("", "tmp-drop", "pickup"):
            (self.spool / name).mkdir(mode=0o2770)
        self.config.write_text(self._render(work.vmtas))

    def _render(self, vmtas: int) -> str:
        records = ", ".join(f'"{record}"' for record in self.records)
        blocks = [
            'host-name = "bench.test"',
            f'[spool]\ndirectory = "{self.spool}"\nmin-free-space = "50M"',
            '[source.pickup]\ndefault-virtual-mta = "v0"',
        ]
        for number in range(vmtas):
            address = f"127.0.0.{11 + number} v{number}.bench.test"
            blocks.append(f'[vmta.v{number}]\nsmtp-source-host = ["{address}"]')
        blocks.append(
            f'[domain."*"]\nsmtp-hosts = ["[127.0.0.1]:{self.sink_port}"]\n'
            f'max-smtp-out = {self.max_smtp_out}\nconnection-idle-timeout = "5s"'
        )
        blocks.append(f'[[acct-file]]\npath = "{self.spool}/accounting/acct.csv"\nrecords = [{records}]')
        return "\n\n".join(blocks) + "\n"

    def _start(self) -> None:
        raise_descriptor_limit()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [self.program, "--config", self.config, "run"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def open_fed(self, work: Work) -> None:
        """Start it and drop one message for each VMTA and domain, so that the round finds its processes warm."""
        self._make_spool(work)
        self._start()
        messages = build_messages(work.size, work.vmtas)
        drop_all(self.spool, messages, 0, len(messages))
        rows = RowCounter(self.spool / "accounting" / "acct.csv", MARKERS)
        deadline = time.monotonic() + START_SECONDS
        while rows.poll()["delivered"] < len(messages):
            if self._process is None or self._process.poll() is not None:
                raise BenchError(f"spoolmta left while it started; it said: {self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchError(f"spoolmta delivered {rows.counts} in {START_SECONDS:.0f} s: {self._last_words()}")
            time.sleep(0.1)
        rows.close()
        time.sleep(1.0)  # the last removals and syncs of the warm-up

    def feed(self, work: Work, _messages: int, seconds: float) -> Dropper:
        messages = build_messages(work.size, work.vmtas)
        self._fed = Dropper(self.spool, messages, len(messages), seconds)
        return self._fed

    def open_full(self, work: Work, messages: int) -> None:
        """Fill `pickup/` while nothing runs."""
        self._make_spool(work)
        drop_all(self.spool, build_messages(work.size, work.vmtas), 0, messages)
        os.sync()

    def release(self) -> None:
        self._start()

    def rows(self) -> RowCounter:
        return RowCounter(self.spool / "accounting" / "acct.csv", MARKERS)

    def tree(self, from_start: bool = False) -> ProcessTree:
        if self._process is None:
            raise BenchError("spoolmta is not running")
        return ProcessTree(self._process.pid, role_of, from_start)

    def close_round(self, expected: int) -> list[str]:
        """Stop it and audit its spool: balanced, nothing queued, `expected` delivered, nothing left in `pickup/`."""
        problems: list[str] = []
        if self._fed is not None:
            self._fed.stop()
            problems += self._fed.problems
            self._fed = None
        if self._process is None or self._process.poll() is not None:
            problems.append(f"spoolmta left during the round; it said: {self._last_words()}")
        elif not stop_process(self._process, DRAIN_SECONDS):
            problems.append(f"spoolmta did not leave within {DRAIN_SECONDS:.0f} s of SIGTERM")
        self._process = None
        problems += self._audit(expected)
        if left := [name for name in os.listdir(self.spool / "pickup") if name.endswith(".eml")]:
            problems.append(f"{len(left)} files are left in pickup/")
        if not problems:
            shutil.rmtree(self.spool, ignore_errors=True)
        return problems

    def _audit(self, expected: int) -> list[str]:
        command = [str(self.program), "--config", str(self.config), "queue", "audit", "--json"]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        try:
            audit = json.loads(done.stdout)
        except ValueError:
            return [
                f"queue audit left with status {done.returncode} and no JSON: {done.stderr.decode().strip()[-300:]}"
            ]
        counts = {key: value for key, value in audit.items() if isinstance(value, int)}
        if done.returncode != 0 or audit.get("balanced") is not True:
            return [f"the audit is not balanced (status {done.returncode}): {counts}"]
        if audit.get("queued") != 0:
            return [f"the queue is not empty: {counts}"]
        if audit.get("delivered") != expected:
            return [f"{expected} messages were dropped, but the audit says {counts}"]
        return []

    def warm_up_messages(self, work: Work) -> int:
        return work.vmtas * DOMAINS if work.way == "fed" else 0

    def stop(self) -> None:
        if self._fed is not None:
            self._fed.stop()
        if self._process is not None:
            stop_process(self._process, 10.0)
            self._process = None

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-500:].strip() if self.log.exists() else "nothing"


def role_of(stat: ProcessStat) -> str:
    """`spoolmta: deliver v0` is `deliver`; anything that has no such title goes by its command."""
    try:
        with open(f"/proc/{stat.pid}/cmdline", "rb") as file:
            title = file.read().replace(b"\0", b" ").decode(errors="replace").split()
    except (FileNotFoundError, ProcessLookupError):
        return "(unseen)"
    return title[1].rstrip(":") if len(title) > 1 and title[0] == "spoolmta:" else stat.command
