"""The supervisor's children: forked from its warm image, known by their roles, waited for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from spoolmta import clock, process
from spoolmta.shared import Cell, Page, Row


class Child:
    """A running process: its role (`pickup`, a VMTA's `deliver/<vmta>`, a pipe's `pipe/<name>`), and what it had done
    when it began."""

    __slots__ = ("messages", "pid", "role", "row", "started")

    def __init__(self, role: str, pid: int, row: Row) -> None:
        self.role, self.pid, self.row = role, pid, row
        self.started = clock.now()
        self.messages = row[Cell.MESSAGES]


class Children:
    """All of them, one for each role at most (`roles`)."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._living: dict[int, Child] = {}
        self.roles: dict[str, Child] = {}

    def __repr__(self) -> str:
        return f"Children({sorted(self.roles)})"

    def __len__(self) -> int:
        return len(self._living)

    def living(self) -> list[Child]:
        return list(self._living.values())

    def fork(self, role: str, title: str, work: Callable[[Row, Callable[[], bool]], None], keep: int = -1) -> None:
        """Start the process of a role: `work` gets its row of the page, and is told whether its parent is gone. Of our
        descriptors it has `keep`."""
        parent, row = os.getpid(), self._page.row(role)
        row.clear_gauges()
        row[Cell.CONFIG_GENERATION] = self._page.config_generation
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            process.become_child(parent, title, keep, lambda: work(row, lambda: os.getppid() != parent))
        row[Cell.PID] = pid
        self._living[pid] = self.roles[role] = Child(role, pid, row)

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Those that have ended, each with its exit status (negative: the signal)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._living.pop(pid, None)
            if child is not None:
                del self.roles[child.role]
                child.row.clear_gauges()
                yield child, os.waitstatus_to_exitcode(status)

    def signal(self, number: int, but: str = "") -> None:
        """To all, but for those whose roles begin so."""
        for child in self.living():
            if not (but and child.role.startswith(but)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)
