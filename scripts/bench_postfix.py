"""Postfix's half of the benchmark: a private instance that relays everything to the sink.

The instance has its own configuration, queue, data directory and log, and leaves those of the machine alone.
It runs with default durability, its log on, connection caching as shipped and a concurrency of 50 towards the sink.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench_feeders import SESSIONS, SmtpSources, Source
from bench_machine import find_program, make_key, refuse_listened_port, run_quietly, stop_process, wait_for_port
from bench_mail import Mail, Work
from bench_measure import BenchError, ProcessStat, ProcessTree, RowCounter, read_stat

QUEUES = ("maildrop", "incoming", "active", "deferred", "hold")
MARKERS = {"delivered": b" status=sent ", "bounced": b" status=bounced ", "deferred": b" status=deferred "}

MAIN_CF = """\
compatibility_level = 3.6
config_directory = {base}/etc
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/log/mail.log
maillog_file_prefixes = {base}/log
myhostname = postfix.bench.test
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{sink_port}
default_destination_concurrency_limit = 50
message_size_limit = 10240000
"""
FOR_SIGNATURES = "smtpd_milters = inet:127.0.0.1:{port}\nmilter_default_action = tempfail\n"
OPENDKIM = """\
Mode s
Domain bench.test
Selector bench
KeyFile {key}
RequireSafeKeys no
Canonicalization relaxed/relaxed
OversignHeaders From,To,Subject,Date,Message-ID
InternalHosts 127.0.0.0/8
Socket inet:{port}@127.0.0.1
PidFile {base}/opendkim.pid
Syslog no
"""
FOR_TLS = "smtp_tls_security_level = encrypt\n"
# What is put off is tried again at once, or rounds would end with a wait for it.
FOR_A_MIX = "minimal_backoff_time = 1s\nmaximal_backoff_time = 1s\nqueue_run_delay = 1s\n"
DEFERRING = "defer_transports = smtp\n"

MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""


class Postfix:
    """A private Postfix below `base`, on 127.0.0.1:`port`, that relays everything to the sink."""

    starts_at_release = False
    name = "Postfix"

    def __init__(self, base: Path, port: int, sink_port: int) -> None:
        if os.geteuid() != 0:
            raise BenchError("Postfix can only be started by root: run as root, or with --no-postfix")
        self.base, self.port, self.sink_port = base, port, sink_port
        self.config, self.queue, self.log = base / "etc", base / "queue", base / "log" / "mail.log"
        self.problems: list[str] = []
        self._program = find_program("postfix")
        self._work = Work("none yet")
        self._started = False
        self._fed: Source | SmtpSources | None = None
        self._signing: subprocess.Popen[bytes] | None = None
        for directory in (base, self.config, self.queue, base / "data", base / "log"):
            directory.mkdir(mode=0o755)
        shutil.chown(base / "data", run_quietly(find_program("postconf"), "-d", "-h", "mail_owner").strip())
        (self.config / "master.cf").write_text(MASTER_CF.format(port=port))

    def __repr__(self) -> str:
        return f"Postfix({self.base}, port={self.port}, started={self._started})"

    def _configure(self, work: Work, more: str = "") -> None:
        text = MAIN_CF.format(base=self.base, sink_port=self.sink_port) + more
        text += (FOR_TLS if work.tls else "") + (FOR_A_MIX if work.mixed else "")
        if work.signed:
            text += FOR_SIGNATURES.format(port=self.port + 1)
        if work.hosts:
            routes = [f"{domain} smtp:[{host}]:{self.sink_port}\n" for domain, host in work.hosts.items()]
            (self.config / "transport").write_text("".join(routes))
            text += f"transport_maps = texthash:{self.config}/transport\n"
        (self.config / "main.cf").write_text(text)

    def _start(self) -> None:
        refuse_listened_port(self.port)
        self._started = True
        run_quietly(self._program, "-c", self.config, "start")
        wait_for_port(self.port)

    def _start_signing(self) -> None:
        """OpenDKIM as Debian has it, on the port beside Postfix's."""
        port = self.port + 1
        refuse_listened_port(port)
        key = make_key(self.base.parent / "bench.pem")
        (self.config / "opendkim.conf").write_text(OPENDKIM.format(key=key, port=port, base=self.base))
        command = [find_program("opendkim"), "-f", "-x", str(self.config / "opendkim.conf")]
        self._signing = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_for_port(port)

    def open_fed(self, work: Work) -> None:
        """Start it and send one message in each session, so that the round finds its processes warm."""
        self._configure(work)
        if work.signed:
            self._start_signing()
        self._start()
        self._submit(RowCounter(self.log, MARKERS), "delivered", work.size, SESSIONS)

    def feed(self, work: Work, messages: int, _seconds: float) -> Source | SmtpSources:
        if work.recipients == 1 and not work.mixed:
            self._fed = SmtpSources(self.port, work.size, messages)
        else:
            self._fed = Source(self.port, Mail(work), -(-messages // work.recipients))
        return self._fed

    def open_full(self, work: Work, messages: int) -> None:
        """Fill the deferred queue: the transport is deferred, each message is tried once and put there."""
        self._work = work
        self._configure(work, DEFERRING)
        self._start()
        self._submit(RowCounter(self.log, MARKERS), "deferred", work.size, messages)
        self._wait_for_queue(lambda counts: counts["deferred"] == messages and sum(counts.values()) == messages)
        os.sync()

    def release(self) -> None:
        """Let the transport go, and have the queue manager take all deferred mail regardless of its due time."""
        self._configure(self._work)
        run_quietly(self._program, "-c", self.config, "reload")
        # Before it reads its new configuration a flush would only defer everything once more.
        time.sleep(1.0)
        run_quietly(find_program("postqueue"), "-c", self.config, "-f")

    def rows(self) -> RowCounter:
        return RowCounter(self.log, MARKERS)

    def tree(self, from_start: bool = False) -> ProcessTree:
        return ProcessTree(self._master(), role_of, from_start)

    def close_round(self, _work: Work, _sent: int) -> list[str]:
        """Stop it; what is wrong with the round. The caller compares deliveries with what was sent."""
        problems: list[str] = []
        try:
            self._wait_for_queue(lambda counts: not any(counts.values()))
        except BenchError as error:
            problems.append(str(error))
        if self._fed is not None:
            self._fed.stop()
            problems += self._fed.problems
            self._fed = None
        if problems:  # while its log's process runs, without which postsuper may not write there
            run_quietly(find_program("postsuper"), "-c", self.config, "-d", "ALL")
        self.stop()
        return problems

    def stop(self) -> None:
        if not self._started:
            return
        if self._fed is not None:
            self._fed.stop()
        pid = self._master_or_none()
        if pid is not None:
            # `stop` waits for deliveries in progress, `abort` does not; nothing is in progress after a good round.
            subprocess.run([self._program, "-c", str(self.config), "stop"], capture_output=True)
            deadline = time.monotonic() + 15
            while read_stat(pid) is not None and time.monotonic() < deadline:
                time.sleep(0.05)
        if pid is not None and read_stat(pid) is not None:
            subprocess.run([self._program, "-c", str(self.config), "abort"], capture_output=True)
        self._started = False
        if self._signing is not None:
            stop_process(self._signing, 10)
            self._signing = None

    def _submit(self, rows: RowCounter, outcome: str, size: int, messages: int) -> None:
        sources = SmtpSources(self.port, size, messages)
        try:
            moved_at, seen = time.monotonic(), 0
            while sources.turn(0) is None or rows.poll()[outcome] < messages:
                if (now := rows.poll()[outcome]) != seen:
                    moved_at, seen = time.monotonic(), now
                if time.monotonic() - moved_at > 60:
                    raise BenchError(f"Postfix stands still with {seen} of {messages} {outcome}; see {self.log}")
                time.sleep(0.1)
        finally:
            sources.stop()
            rows.close()
        if sources.problems:
            raise BenchError(sources.problems[0])

    def _wait_for_queue(self, wanted: Callable[[dict[str, int]], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not wanted(counts := self._queued()):
            if time.monotonic() > deadline:
                raise BenchError(f"Postfix's queue is not as it should be after {seconds:.0f} s: {counts}")
            time.sleep(0.2)

    def _queued(self) -> dict[str, int]:
        return {queue: sum(len(files) for _, _, files in os.walk(self.queue / queue)) for queue in QUEUES}

    def _master_or_none(self) -> int | None:
        try:
            pid = int((self.queue / "pid" / "master.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        stat = read_stat(pid)
        return pid if stat is not None and stat.command == "master" else None

    def _master(self) -> int:
        pid = self._master_or_none()
        if pid is None:
            raise BenchError(f"Postfix's master is not running; see {self.log}")
        return pid


def role_of(stat: ProcessStat) -> str:
    return stat.command
