"""The main job shown with nothing else installed: a test DNS and a test receiver on 127.0.0.x, a configuration with
three VMTAs of different addresses and manners, sample mail with some bounces and deferrals, live progress, a report.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from spoolmta import control
from spoolmta.errors import TemporaryError, UnavailableError
from spoolmta.spool import audit
from spoolmta.spool.layout import Layout

VMTAS = {"alerts": "127.0.0.11", "news": "127.0.0.12", "bulk": "127.0.0.13"}
RECEIVERS = {"alpha.example": "127.0.0.21", "beta.example": "127.0.0.22", "gamma.example": "127.0.0.23"}
PATIENCE = 60.0

CONFIGURATION = """\
# Written by `spoolmta demo`.
host-name = "mta.demo.example"

[spool]
directory = "../spool"
min-free-space = "20M"

[dns]
nameservers = ["{nameserver}"]
allow-loopback-mx = true                        # the receivers of the demonstration are on this machine

[source.pickup]
default-virtual-mta = "bulk"
suppress-local-dsn = true                       # the senders do not exist

[vmta.alerts]                                   # few messages, at once
smtp-source-host = ["127.0.0.11 alerts.demo.example"]

[vmta.news]                                     # a connection carries at most 20 messages
smtp-source-host = ["127.0.0.12 news.demo.example"]
[vmta.news.domain."*"]
max-msg-per-connection = 20

[vmta.bulk]                                     # slow on purpose at one receiver
smtp-source-host = ["127.0.0.13 bulk.demo.example"]
policy = "bulk.toml"

[domain."*"]
default-smtp-port = {port}
max-smtp-out = 5
connection-idle-timeout = "2s"
retry-after = ["2s"]
retry-recipients-after = ["2s"]

[[acct-file]]
path = "../spool/accounting/acct.csv"
records = ["r", "d", "b", "t", "tq"]
"""

POLICY = """\
[domain."gamma.example"]
max-smtp-out = 1
max-msg-rate = "20/s"
"""


def run(directory: str, messages: int) -> None:
    """`spoolmta demo`. Makes `directory` anew (only if it is one of its own). Raises TemporaryError if the mail is not
    settled in a minute."""
    root = os.path.abspath(directory)
    _make_anew(root)
    console = Console(highlight=False)
    console.print(
        f"[bold]spoolmta demo[/bold]: {messages} messages, three VMTAs, three receivers; files in {directory}/"
    )
    port = _free_port()
    world = _fork(lambda: _serve(root, port))
    daemon = None
    try:
        nameserver = _wait_for_file(f"{root}/nameserver")
        _write_configuration(root, nameserver, port)
        daemon = _start_daemon(root)
        layout = Layout(f"{root}/spool")
        _wait_for(lambda: os.path.exists(layout.control), "spoolmta did not start; see demo/log")
        _drop(root, messages)
        _watch(console, layout, messages)
        result = audit.audit(layout)
    finally:
        _end(daemon)
        os.kill(world, signal.SIGTERM)
        os.waitpid(world, 0)
    _report(console, root, directory, result)
    if not result.balanced or result.queued:
        raise TemporaryError("the demo ended with mail unsettled; see demo/log and the queue")


def _make_anew(root: str) -> None:
    if os.path.exists(root):
        if os.listdir(root) and not os.path.exists(f"{root}/etc/bulk.toml"):
            raise UnavailableError(f"{root} is not a folder of the demo: give another --directory")
        shutil.rmtree(root)
    os.makedirs(f"{root}/spool/drop")
    os.makedirs(f"{root}/etc")
    with open(f"{root}/etc/bulk.toml", "w", encoding="utf-8") as file:
        file.write(POLICY)


def _write_configuration(root: str, nameserver: str, port: int) -> None:
    with open(f"{root}/etc/spoolmta.toml", "w", encoding="utf-8") as file:
        file.write(CONFIGURATION.format(nameserver=nameserver, port=port))


def _free_port() -> int:
    """A port that is free on all the receivers' addresses."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((next(iter(RECEIVERS.values())), 0))
            port = int(probe.getsockname()[1])
        try:
            for address in RECEIVERS.values():
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return port
    raise UnavailableError("no free port on 127.0.0.21 to 127.0.0.23")


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def _serve(root: str, port: int) -> None:
    """The world outside: DNS and receivers, in a process of their own."""
    import asyncio

    from spoolmta.sink import Options, Sink
    from spoolmta.testdns import DnsServer

    zones: dict[str, Any] = {"null.example": {"MX": ["0 ."]}, "no-such-domain.example": "NXDOMAIN"}
    for domain, address in RECEIVERS.items():
        zones[domain] = {"MX": [f"10 mx.{domain}"]}
        zones[f"mx.{domain}"] = {"A": [address]}

    async def serve() -> None:
        stop = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set_result, None)
        sink = Sink(Options(maildir=f"{root}/received", host_name="mx.example"))
        dns = DnsServer(zones)
        await sink.start([f"{address}:{port}" for address in RECEIVERS.values()])
        nameserver = await dns.start("127.0.0.1:0")
        with open(f"{root}/nameserver.new", "w", encoding="ascii") as file:
            file.write(nameserver)
        os.rename(f"{root}/nameserver.new", f"{root}/nameserver")
        await stop
        with open(f"{root}/sink.json", "wb") as stats:
            stats.write(msgspec.json.encode(sink.stats()))
        await dns.close()
        await sink.close()

    asyncio.run(serve())


def _start_daemon(root: str) -> subprocess.Popen[bytes]:
    with open(f"{root}/log", "wb") as log:
        command = [sys.executable, "-m", "spoolmta", "--config", f"{root}/etc/spoolmta.toml", "run"]
        return subprocess.Popen(command, stdout=log, stderr=log)


def _end(daemon: subprocess.Popen[bytes] | None) -> None:
    if daemon is not None:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(45)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait_for(condition: Callable[[], bool], trouble: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError(trouble)
        time.sleep(0.02)


def _wait_for_file(path: str) -> str:
    _wait_for(lambda: os.path.exists(path), "the test DNS server did not start")
    with open(path, encoding="ascii") as file:
        return file.read()


def _drop(root: str, messages: int) -> None:
    """What a batch system does: write elsewhere on the same filesystem, rename into pickup/."""
    chance = random.Random(1)
    for number in range(messages):
        vmta = chance.choices(list(VMTAS), weights=(1, 3, 6))[0]
        recipient = _recipient(number, chance)
        text = (
            f"x-sender: sender@{vmta}.demo.example\nx-receiver: {recipient}\nx-virtual-mta: {vmta}\nx-job: {vmta}-job\n"
            f"From: Demo <sender@{vmta}.demo.example>\nTo: {recipient}\nSubject: Sample message {number}\n"
            f"Message-ID: <{number}@{vmta}.demo.example>\n\nHello,\n\nthis is sample message {number}.\n"
        )
        path = f"{root}/spool/drop/{number}.eml"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(path, f"{root}/spool/pickup/{number}.eml")


def _recipient(number: int, chance: random.Random) -> str:
    """Mostly good addresses; some that bounce, some that are deferred once, two domains that take no mail."""
    if number % 60 == 59:
        return f"user{number}@null.example"
    if number % 60 == 29:
        return f"user{number}@no-such-domain.example"
    domain = chance.choice(list(RECEIVERS))
    if number % 12 == 5:
        return f"user{number}--550-5.1.1@{domain}"
    if number % 12 == 9:
        return f"once-451-{number}@{domain}"
    return f"user{number}@{domain}"


def _watch(console: Console, layout: Layout, messages: int) -> None:
    """Live progress until everything is settled."""
    began = time.monotonic()
    answer = control.ask(layout.control, {"ask": "status"})
    with Live(_progress(answer, messages, 0.0), console=console, refresh_per_second=10, transient=True) as live:
        while True:
            answer = control.ask(layout.control, {"ask": "status"})
            seconds = time.monotonic() - began
            live.update(_progress(answer, messages, seconds))
            settled = sum(v["delivered"] + v["bounced"] + v["expired"] for v in answer["vmtas"])
            if settled >= messages:
                console.print(f"all {settled} recipients settled after {seconds:.1f} s")
                return
            if seconds > PATIENCE:
                console.print(f"only {settled} of {messages} recipients settled after {seconds:.0f} s")
                return
            time.sleep(0.1)


def _progress(answer: dict[str, Any], messages: int, seconds: float) -> Table:
    table = Table(title=f"{answer['pickup']['messages']} of {messages} taken, {seconds:.1f} s", box=None)
    for column in ("VMTA", "state", "queued", "connections", "delivered", "bounced", "deferred"):
        table.add_column(column, justify="left" if column in ("VMTA", "state") else "right")
    for v in answer["vmtas"]:
        if v["name"] in VMTAS:
            table.add_row(v["name"], v["state"], *(str(v[key]) for key in table_keys()))
    return table


def table_keys() -> tuple[str, ...]:
    return ("queued", "connections", "delivered", "bounced", "deferred")


def _report(console: Console, root: str, directory: str, result: audit.Audit) -> None:
    """Per VMTA what the log says and which addresses the receiver saw; the first rows; the balance; where files lie."""
    with open(f"{root}/spool/accounting/acct.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(f"{root}/sink.json", "rb") as stats:
        seen = msgspec.json.decode(stats.read())
    table = Table(title="What each VMTA did, and what the receivers saw of it", title_justify="left", box=SIMPLE_HEAD)
    for column in ("VMTA", "delivered", "bounced", "deferred", "source seen", "EHLO name seen"):
        right = column in ("delivered", "bounced", "deferred")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for vmta, address in VMTAS.items():
        counts = Counter(row["type"] for row in rows if row["vmta"] == vmta)
        names = {name for pair in seen["pairs"] if pair["source"] == address for name in pair["ehlo"]}
        shown = address if names else "none"
        table.add_row(vmta, str(counts["d"]), str(counts["b"]), str(counts["t"]), shown, ", ".join(sorted(names)))
    console.print(table)
    console.print("The first rows of the accounting log (a few of its columns):", style="bold")
    shown_columns = ("type", "timeLogged", "rcpt", "dsnStatus", "dsnDiag", "bounceCat", "dlvSourceIp", "vmta")
    sample = [next((row for row in rows if row["type"] == kind), None) for kind in ("r", "d", "b", "t")]
    for row in (*rows[:2], *sample[1:]):
        if row:
            console.print("  " + " | ".join(row[column][:44] for column in shown_columns), markup=False, soft_wrap=True)
    console.print(
        f"Audit: accepted {result.accepted} = delivered {result.delivered} + bounced {result.bounced} + "
        f"expired {result.expired} + queued {result.queued}: {'balanced' if result.balanced else 'NOT BALANCED'}",
        style="bold",
        soft_wrap=True,
    )
    console.print("Files:", style="bold")
    for path, what in (
        ("etc/spoolmta.toml", "the configuration"),
        ("spool/accounting/acct.csv", "the accounting log"),
        ("spool/pickup/", "drop .eml files here"),
        ("received/new/", "what the receivers got"),
        ("log", "what the daemon said"),
    ):
        console.print(f"  {directory}/{path:<28} {what}")
