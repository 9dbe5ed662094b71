"""Who hands the mail over: a dropper of files for spoolmta, SMTP clients for Postfix.

smtp-source, twenty processes of one session each, costs least and feeds Postfix wherever it can: it sends to one
domain only, and to one recipient if the addresses are to be ours. For several recipients and for the mix there is a
process of our own with twenty sessions.
"""

import mmap
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from bench_machine import find_program, stop_process
from bench_mail import SENDER, Mail, domain_name
from bench_measure import BenchError

SESSIONS = 20
AHEAD_AT_MOST = 20_000
DROP_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# The cells of the page that a feeder's process and the bench share.
DELIVERED, HANDED_OVER, FIRST_NS, STOP, CPU_NS = range(5)


class Feeder:
    """A process of ours that hands mail over, as the bench sees it. `feed(page)` runs in it."""

    def __init__(self, feed: Callable[[memoryview], None], recipients: int) -> None:
        self.problems: list[str] = []
        self._recipients = recipients
        self._page = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self._page[FIRST_NS] = time.monotonic_ns()
        context = multiprocessing.get_context("fork")
        self._process: multiprocessing.process.BaseProcess = context.Process(
            target=run_feeder, args=(feed, self._page), daemon=True
        )
        self._process.start()

    def __repr__(self) -> str:
        return f"Feeder(pid={self._process.pid}, handed over {self._page[HANDED_OVER]}, {self._page[DELIVERED]} done)"

    @property
    def begun_at(self) -> float:
        return float(self._page[FIRST_NS] / 1e9)

    @property
    def cpu_us(self) -> float:
        return float(self._page[CPU_NS] / 1e3)

    def turn(self, delivered: int) -> int | None:
        """Tell the feeder how much is delivered; the number of deliveries there will be, once it has left."""
        self._page[DELIVERED] = delivered
        if self._process.is_alive():
            return None
        if self._process.exitcode != 0 and not self.problems:
            self.problems.append(f"the feeder left with status {self._process.exitcode}")
        return int(self._page[HANDED_OVER]) * self._recipients

    def stop(self) -> None:
        self._page[STOP] = 1
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def run_feeder(feed: Callable[[memoryview], None], page: memoryview) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    page[FIRST_NS] = time.monotonic_ns()
    status = 0
    try:
        feed(page)
    except (OSError, BenchError) as error:
        print(f"bench: feeder: {error}", file=sys.stderr, flush=True)
        status = 1
    page[CPU_NS] = time.process_time_ns()
    os._exit(status)


# Files


def drop_one(spool: str, number: int, content: bytes) -> None:
    temporary = f"{spool}/tmp-drop/{number:07}"
    descriptor = os.open(temporary, DROP_FLAGS, 0o660)
    os.write(descriptor, content)
    os.close(descriptor)
    os.rename(temporary, f"{spool}/pickup/{number:07}.eml")


def drop_kinds(spool: Path, mail: Mail, kinds: Iterable[int]) -> None:
    for number, kind in enumerate(kinds):
        drop_one(str(spool), number, mail.pickup_file(kind))


class Dropper(Feeder):
    """Drops files as fast as it can, for `seconds` or until there are `messages`; their names begin at `begin`.

    It waits while too much of its mail is not delivered, because a round that only piles up mail would not end.
    """

    def __init__(self, spool: Path, mail: Mail, begin: int, messages: int, seconds: float) -> None:
        self._spool, self._mail, self._begin = str(spool), mail, begin
        self._limit = messages or sys.maxsize
        self._seconds = seconds
        super().__init__(self._drop, mail.work.recipients)

    def _drop(self, page: memoryview) -> None:
        mail, recipients = self._mail, self._mail.work.recipients
        at_once = max(1, 50 // recipients)
        number, end = 0, time.monotonic() + self._seconds
        while number < self._limit and time.monotonic() < end and not page[STOP]:
            if number * recipients - page[DELIVERED] > AHEAD_AT_MOST:
                time.sleep(0.005)
                continue
            for _ in range(min(at_once, self._limit - number)):
                drop_one(self._spool, self._begin + number, mail.pickup_file(mail.kind(number)))
                number += 1
            page[HANDED_OVER] = number


# SMTP


class Source(Feeder):
    """Sends so many messages to a port, in twenty sessions at a time."""

    def __init__(self, port: int, mail: Mail, messages: int) -> None:
        self._port, self._mail, self._messages = port, mail, messages
        super().__init__(self._send, mail.work.recipients)

    def _send(self, page: memoryview) -> None:
        troubles: list[Exception] = []
        threads = [
            threading.Thread(target=self._run_session, args=(range(first, self._messages, SESSIONS), troubles))
            for first in range(SESSIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        page[HANDED_OVER] = self._messages
        if troubles:
            raise troubles[0]

    def _run_session(self, numbers: range, troubles: list[Exception]) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._port)) as channel, channel.makefile("rb") as replies:
                expect(replies, b"2")
                channel.sendall(b"EHLO source.bench.test\r\n")
                expect(replies, b"2")
                for number in numbers:
                    self._send_one(channel, replies, self._mail.kind(number))
                channel.sendall(b"QUIT\r\n")
        except (OSError, BenchError) as error:
            troubles.append(error)

    def _send_one(self, channel: socket.socket, replies: BinaryIO, kind: int) -> None:
        commands, content = self._mail.transaction(kind)
        channel.sendall(commands)
        for _ in range(1 + self._mail.work.recipients):
            expect(replies, b"2")
        expect(replies, b"3")
        channel.sendall(content)
        expect(replies, b"2")


def expect(replies: BinaryIO, first_digit: bytes) -> None:
    line = replies.readline()
    while line[3:4] == b"-":
        line = replies.readline()
    if not line.startswith(first_digit):
        raise BenchError(f"{first_digit.decode()}xx was expected, not {line.decode(errors='replace').strip()!r}")


class SmtpSources:
    """Twenty smtp-source processes that together send `messages`; done when all have left."""

    def __init__(self, port: int, size: int, messages: int) -> None:
        program = find_program("smtp-source")
        self.total = messages
        self.cpu_us = 0.0
        self.problems: list[str] = []
        self.begun_at = time.monotonic()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        for number in range(SESSIONS):
            count = messages // SESSIONS + (number < messages % SESSIONS)
            if count:
                command = [program, "-4", "-d", "-s", "1", "-m", str(count), "-l", str(size)]
                command += ["-f", SENDER, "-t", f"user@{domain_name(number)}", f"127.0.0.1:{port}"]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
                self._running[process.pid] = process

    def __repr__(self) -> str:
        return f"SmtpSources({self.total} messages, {len(self._running)} running)"

    def turn(self, _delivered: int) -> int | None:
        """Collect those that have left, with their CPU; the number of messages once none is left."""
        for pid, process in list(self._running.items()):
            left, status, usage = os.wait4(pid, os.WNOHANG)
            if left == pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_us += (usage.ru_utime + usage.ru_stime) * 1e6
                if process.returncode != 0:
                    self.problems.append(f"an smtp-source left with status {process.returncode}")
                del self._running[pid]
        return None if self._running else self.total

    def stop(self) -> None:
        for process in self._running.values():
            stop_process(process, 2.0)
        self._running.clear()
