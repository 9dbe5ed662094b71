"""A running system for scenarios: real processes, real sockets on 127.0.0.x, a spool in the test's folder.

    with World(tmp_path) as world:                # a sink and, if zones are given, a DNS server, in a process
        with world.mta(CONFIG_MORE) as mta:       # `spoolmta run`
            mta.drop("user@example.test")
            mta.wait_for(lambda: mta.count("d") == 1)

Nothing sleeps and hopes: `wait_for` polls a condition with a deadline, and shows the daemon's log when it fails.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from spoolmta import control
from spoolmta.errors import UnavailableError
from spoolmta.spool import audit
from spoolmta.spool.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0

BASE = """\
host-name = "mta.test"
sleep-after = "{sleep_after}"
[spool]
directory = "spool"
min-free-space = "1M"
{dns}
{default_route}
[[acct-file]]
path = "spool/accounting/acct.csv"
records = ["r", "d", "b", "t", "tq"]
"""

ROUTE = """\
[domain."*"]
smtp-hosts = ["[{host}]:{port}"]
retry-after = ["1s"]
retry-recipients-after = ["1s"]
connection-idle-timeout = "1s"
"""

WORLD_PROGRAM = """
import asyncio, json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from spoolmta.sink import Options, Sink
from spoolmta.testdns import DnsServer

async def main(root, addresses, options, zones, dns_address):
    loop = asyncio.get_running_loop()
    stop = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, lambda: stop.done() or stop.set_result(None))
    sink, dns = Sink(Options(**options)), DnsServer(zones)
    def dump():
        with open(root + "/stats.new", "w") as file:
            json.dump(sink.stats(), file)
        os.rename(root + "/stats.new", root + "/stats.json")
    loop.add_signal_handler(signal.SIGUSR1, dump)
    def change():
        with open(root + "/options.json") as file:
            sink.options = Options(**json.load(file))
        os.remove(root + "/options.json")
    loop.add_signal_handler(signal.SIGUSR2, change)
    ready = {"sink": await sink.start(addresses), "dns": await dns.start(dns_address)}
    with open(root + "/ready.new", "w") as file:
        json.dump(ready, file)
    os.rename(root + "/ready.new", root + "/ready.json")
    await stop
    await dns.close()
    await sink.close()

asyncio.run(main(*json.loads(sys.argv[2])))
"""


class World:
    """What is outside: receivers (every address gets a port of its own unless one is given) and a DNS server."""

    def __init__(
        self,
        path: Path,
        addresses: list[str] | None = None,
        zones: Mapping[str, Any] | None = None,
        dns_address: str = "127.0.0.1:0",
        **options: Any,
    ) -> None:
        self.path = path
        self._addresses = addresses or ["127.0.0.2:0"]
        self._zones = zones or {}
        self._dns_address = dns_address
        self.record_file = path / "world" / "record.jsonl"
        self._options = {"record": str(self.record_file), **options}
        self.sinks: list[str] = []
        self.nameserver = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> World:
        folder = self.path / "world"
        folder.mkdir(parents=True, exist_ok=True)
        arguments = json.dumps([str(folder), self._addresses, self._options, self._zones, self._dns_address])
        with open(folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", WORLD_PROGRAM, str(ROOT), arguments], stdout=log, stderr=log
            )
        wait_for(lambda: (folder / "ready.json").exists(), lambda: (folder / "log").read_text())
        ready = json.loads((folder / "ready.json").read_text())
        self.sinks, self.nameserver = ready["sink"], ready["dns"]
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    @property
    def host(self) -> str:
        return self.sinks[0].rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.sinks[0].rpartition(":")[2])

    def received(self) -> list[dict[str, Any]]:
        """What the sink accepted, one record a message (`mail_from`, `recipients`, `source`, `test_id`, ...)."""
        if not self.record_file.exists():
            return []
        whole, _, _ = self.record_file.read_text().rpartition("\n")  # the last line may be half there
        return [json.loads(line) for line in whole.splitlines()]

    def stats(self) -> dict[str, Any]:
        """The sink's statistics now."""
        assert self._process is not None
        file = self.path / "world" / "stats.json"
        file.unlink(missing_ok=True)
        self._process.send_signal(signal.SIGUSR1)
        wait_for(file.exists, lambda: "the sink gave no statistics")
        stats: dict[str, Any] = json.loads(file.read_text())
        return stats

    def change(self, **options: Any) -> None:
        """Other options of the sink for connections that begin from now on (not what it says of itself)."""
        assert self._process is not None
        file = self.path / "world" / "options.json"
        file.write_text(json.dumps({**self._options, **options}))
        self._process.send_signal(signal.SIGUSR2)
        wait_for(lambda: not file.exists(), lambda: "the sink did not take its new options")

    def mta(self, more: str = "", *, route: bool = True, sleep_after: str = "1m", start: bool = True) -> Mta:
        """A system that delivers to this world: by a fixed route to the first sink, or (`route=False`) by MX."""
        default_route = ROUTE.format(host=self.host, port=self.port) if route else ""
        dns = "" if route else f'[dns]\nnameservers = ["{self.nameserver}"]\nallow-loopback-mx = true\n'
        text = BASE.format(dns=dns, default_route=default_route, sleep_after=sleep_after) + more
        return Mta(self.path / "mta", text, start=start)


class Mta:
    """`spoolmta run` on a spool of its own, and what a user does with it."""

    def __init__(self, path: Path, config: str, *, start: bool = True) -> None:
        self.path = path
        self.spool = path / "spool"
        self.config_file = path / "spoolmta.toml"
        self.spool.mkdir(parents=True, exist_ok=True)
        (path / "drop").mkdir(exist_ok=True)
        self.config_file.write_text(without_dsn(config))
        self._start = start
        self._number = 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mta:
        if self._start:
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers."""
        with open(self.path / "log", "ab") as log:
            command = [sys.executable, "-m", "spoolmta", "--config", str(self.config_file), "run"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        self.wait_for(lambda: self.answers() or self.process_ended())

    def answers(self) -> bool:
        """Whether the system is there to be asked, and takes files in: one that was dropped before may be written
        in place, and has to be quiet for a while."""
        try:
            return bool(self.status()["pickup"]["ready"])
        except UnavailableError:
            return False

    def process_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> int:
        """SIGTERM, and wait for the end; the exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"spoolmta did not stop\n{self.log()}") from None
        self.process = None
        return code

    def kill(self, role: str) -> int:
        """SIGKILL a process by its role: "supervisor", "pickup" or a VMTA's name; the pid that was killed."""
        status = self.status()
        pids = {"supervisor": status["pid"], "pickup": status["pickup"]["pid"]}
        pids |= {v["name"]: v["pid"] for v in status["vmtas"]}
        pid = int(pids[role])
        assert pid, f"{role} has no process"
        os.kill(pid, signal.SIGKILL)
        if role == "supervisor" and self.process is not None:
            self.process.wait()
            self.process = None
        return pid

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `spoolmta` command on this configuration."""
        command = [sys.executable, "-m", "spoolmta", "--config", str(self.config_file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=90, check=False)

    def status(self) -> dict[str, Any]:
        return control.ask(Layout(str(self.spool)).control, {"ask": "status"})

    def vmta(self, name: str) -> dict[str, Any]:
        return next(v for v in self.status()["vmtas"] if v["name"] == name)

    def audit(self) -> dict[str, Any]:
        found = audit.audit(Layout(str(self.spool)))
        return msgspec.structs.asdict(found) | {"difference": found.difference, "balanced": found.balanced}

    def message(
        self,
        *recipients: str,
        sender: str = "sender@mta.test",
        vmta: str = "",
        test_id: str = "",
        body: str = "Hello\n",
        job: str = "",
    ) -> bytes:
        lines = [f"x-sender: {sender}", *(f"x-receiver: {recipient}" for recipient in recipients)]
        lines += [f"x-virtual-mta: {vmta}"] if vmta else []
        lines += [f"x-job: {job}"] if job else []
        lines += [f"X-Test-Id: {test_id}"] if test_id else []
        lines += [f"From: {sender}", "Subject: test", "", body]
        return "\n".join(lines).encode()

    def drop(self, *recipients: str, name: str = "", data: bytes | None = None, **message: Any) -> Path:
        """Drop a message as batch systems do: write elsewhere, rename in."""
        self._number += 1
        name = name or f"{self._number}.eml"
        source = self.path / "drop" / f"{self._number}"
        source.write_bytes(self.message(*recipients, **message) if data is None else data)
        (self.spool / "pickup").mkdir(exist_ok=True)
        target = self.spool / "pickup" / name
        source.rename(target)
        return target

    def rows(self, *kinds: str) -> list[dict[str, str]]:
        """Rows of the accounting log (all its files, oldest first), of these types or all."""
        rows: list[dict[str, str]] = []
        folder = self.spool / "accounting"
        for file in [*sorted(folder.glob("acct-*.csv")), folder / "acct.csv"]:
            if file.exists():
                with open(file, newline="", encoding="utf-8") as stream:
                    rows += (row for row in csv.DictReader(stream) if not kinds or row["type"] in kinds)
        return rows

    def count(self, *kinds: str) -> int:
        return len(self.rows(*kinds))

    def entries(self) -> list[Path]:
        """All files in the queue."""
        return [path for path in (self.spool / "queue").rglob("*") if path.is_file()]

    def log(self) -> str:
        file = self.path / "log"
        return file.read_text() if file.exists() else ""

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        wait_for(condition, self._explain, seconds)

    def wait_for_log(self, pattern: str, seconds: float = PATIENCE) -> None:
        self.wait_for(lambda: re.search(pattern, self.log()) is not None, seconds)

    def _explain(self) -> str:
        rows = "\n".join(str({k: v for k, v in row.items() if v}) for row in self.rows()[-10:])
        files = "\n".join(str(path.relative_to(self.spool)) for path in self.spool.rglob("*") if path.is_file())
        return f"log:\n{self.log()[-4000:]}\nlast rows:\n{rows}\nfiles:\n{files[-3000:]}"


def without_dsn(config: str) -> str:
    """A configuration in which mail that bounces brings no mail of our own, unless it speaks of that itself: most tests
    count rows and messages."""
    if "suppress-local-dsn" in config:
        return config
    quiet = re.sub(r"^\[source\.[^\]]+\]$", r"\g<0>\nsuppress-local-dsn = true", config, flags=re.MULTILINE)
    has_pickup = re.search(r"^\[source\.pickup\]$", config, re.MULTILINE)
    return quiet if has_pickup else f"{quiet}\n[source.pickup]\nsuppress-local-dsn = true\n"


def wait_for(condition: Callable[[], bool], explain: Callable[[], str], seconds: float = PATIENCE) -> None:
    """Poll until the condition holds; AssertionError with an explanation after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; {explain()}")
        time.sleep(0.02)
