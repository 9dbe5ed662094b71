"""spoolmta's half of the benchmark: a fresh spool for each round."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from bench_feeders import Dropper, drop_kinds
from bench_machine import make_key, raise_descriptor_limit, stop_process
from bench_mail import Mail, Work
from bench_measure import BenchError, ProcessStat, ProcessTree, RowCounter

MARKERS = {"delivered": b"\nd,", "bounced": b"\nb,", "deferred": b"\nt,"}
START_SECONDS = 30.0
START_SECONDS_A_VMTA = 0.3
DRAIN_SECONDS = 60.0

MANY_PAIRS = 15_000


class Spoolmta:
    """spoolmta with a spool below `base`, made anew for every round."""

    starts_at_release = True
    name = "spoolmta"

    def __init__(self, base: Path, program: Path, sink_port: int, records: list[str], max_smtp_out: int) -> None:
        if not program.exists():
            raise BenchError(f"there is no {program}: install the project first, or give --spoolmta")
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
        self.config.write_text(self._render(work))

    def _render(self, work: Work) -> str:
        records = ", ".join(f'"{record}"' for record in self.records)
        blocks = [
            'host-name = "bench.test"\nsleep-after = "10m"' + self._key(work),
            f'[spool]\ndirectory = "{self.spool}"\nmin-free-space = "50M"',
            '[source.pickup]\ndefault-virtual-mta = "v0"',
        ]
        # The sink is one process, with as many descriptors as one may have.
        idle = "5s" if work.vmtas * work.domains < MANY_PAIRS or work.vmtas == 1 else "1s"
        for number in range(work.vmtas):
            address = f"127.0.{1 + number // 250}.{1 + number % 250} v{number}.bench.test"
            blocks.append(f'[vmta.v{number}]\nsmtp-source-host = ["{address}"]')
            if work.mixed:
                blocks.append('max-smtp-msg-rate = "100000/m"')
        blocks.append(
            f'[domain."*"]\nsmtp-hosts = ["[127.0.0.1]:{self.sink_port}"]\n'
            f'max-smtp-out = {self.max_smtp_out}\nconnection-idle-timeout = "{idle}"'
        )
        if work.tls:
            blocks.append("require-starttls = true")
        if work.mixed:  # rates that are counted, but stop nobody; what is put off is tried again at once
            blocks.append('max-msg-rate = "10000/m"\nmax-connect-rate = "10000/m"\nretry-recipients-after = "1s"')
        for domain, host in work.hosts.items():
            blocks.append(f'[domain."{domain}"]\nsmtp-hosts = ["[{host}]:{self.sink_port}"]')
        blocks.append(f'[[acct-file]]\npath = "{self.spool}/accounting/acct.csv"\nrecords = [{records}]')
        return "\n\n".join(blocks) + "\n"

    def _key(self, work: Work) -> str:
        if not work.signed:
            return ""
        return f'\ndomain-key = ["bench,bench.test,{make_key(self.base.parent / "bench.pem")}"]'

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
        """Start it and drop some messages for each VMTA, so that the round finds its processes warm."""
        self._make_spool(work)
        self._start()
        drop_kinds(self.spool, Mail(work), range(work.warm_up))
        rows = RowCounter(self.spool / "accounting" / "acct.csv", MARKERS)
        deadline = time.monotonic() + START_SECONDS + START_SECONDS_A_VMTA * work.vmtas
        while rows.poll()["delivered"] < work.warm_up * work.recipients:
            if self._process is None or self._process.poll() is not None:
                raise BenchError(f"spoolmta left while it started; it said: {self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchError(f"spoolmta's warm-up does not end with {rows.counts}: {self._last_words()}")
            time.sleep(0.1)
        rows.close()
        time.sleep(1.0)  # the last removals and syncs of the warm-up

    def feed(self, work: Work, _messages: int, seconds: float) -> Dropper:
        self._fed = Dropper(self.spool, Mail(work), work.warm_up, work.messages, seconds)
        return self._fed

    def open_full(self, work: Work, messages: int) -> None:
        """Fill `pickup/` while nothing runs."""
        self._make_spool(work)
        mail = Mail(work)
        drop_kinds(self.spool, mail, map(mail.kind, range(messages)))
        os.sync()

    def release(self) -> None:
        self._start()

    def rows(self) -> RowCounter:
        return RowCounter(self.spool / "accounting" / "acct.csv", MARKERS)

    def tree(self, from_start: bool = False) -> ProcessTree:
        if self._process is None:
            raise BenchError("spoolmta is not running")
        return ProcessTree(self._process.pid, role_of, from_start)

    def close_round(self, work: Work, sent: int) -> list[str]:
        """Stop it and audit its spool: balanced, nothing queued, all that was sent delivered, nothing in `pickup/`."""
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
        problems += self._audit(sent + (work.warm_up * work.recipients if work.way == "fed" else 0))
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
