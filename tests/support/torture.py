"""What the long runs share: a table to read, a queue that is full at the start, and how times are judged."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable
from typing import Any

from spoolmta import message
from spoolmta.spool.intake import Acceptor, journal_lines
from spoolmta.spool.layout import prepare
from tests.support.mta import Mta, World


def tell(promise: str, target: str, measured: str) -> None:
    """One line of the table that `make torture` prints: what is promised, the target, what was measured."""
    print(f"\n{promise:<58} target {target:<26} measured {measured}", end="", flush=True)


def preload(mta: Mta, vmta: str, recipients: Iterable[str], *, job: str = "", priority: int = 50) -> int:
    """Put a message for each recipient into the queue of a VMTA, by the steps of intake, while nothing runs; how many.
    (Files that pickup takes in are synced and logged as well, which takes six times as long.)"""
    acceptor = Acceptor(prepare(str(mta.spool)), "pickup")
    batch = []
    for recipient in recipients:
        data = mta.message(recipient, job=job)
        claimed = acceptor.incoming.describe(data, message.parse(data), vmta, "pickup", priority=priority)
        acceptor.incoming.write(data, claimed)
        batch.append(claimed)
    acceptor.journal.append(journal_lines(batch))
    for claimed in batch:
        acceptor.incoming.enqueue(claimed)
    acceptor.close()
    return len(batch)


def most_in_a_window(times: list[float], period: float) -> int:
    """The most that lie in any window as long as the period: of these (sorted) times, each begins one."""
    return max((bisect.bisect_left(times, begin + period) - at for at, begin in enumerate(times)), default=0)


class Follower:
    """The sink's record from here on, read piece by piece: to read all of it again and again costs what is measured."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._offset = world.record_file.stat().st_size if world.record_file.exists() else 0
        self.lines: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All lines since the beginning of this follower."""
        with open(self._world.record_file, "rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        self.lines += [json.loads(line) for line in whole.splitlines()]
        return self.lines
