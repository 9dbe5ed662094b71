"""What a message costs beside a queue that waits: `scale.py`'s system, in rounds.

The two spools are made once and kept while the pairs run, for a million entries take half a minute to make; they are
not due for an hour. The CPU counted is the delivery process's alone.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

from bench_mail import Work
from bench_measure import Round
from scale import DOMAINS, System, cost_of, fill_waiting

MESSAGES = 20_000
MADE_FOR = 3000.0


class Backlog:
    """Spools by work, below `base`."""

    def __init__(self, base: Path, port: int, program: Path, messages: int = MESSAGES) -> None:
        self.base, self.port, self.program, self.messages = base, port, program, messages
        self._systems: dict[Work, tuple[System, float]] = {}

    def __repr__(self) -> str:
        return f"Backlog({self.base}, {list(self._systems)})"

    def run(self, work: Work) -> Round:
        if work not in self._systems or time.monotonic() > self._systems[work][1] + MADE_FOR:
            self._systems[work] = (self._make(work), time.monotonic())
        system = self._systems[work][0]
        begun = time.monotonic()
        cost = cost_of(system, work.messages, range(DOMAINS), self.messages)
        result = Round.of_cpu("spoolmta", self.messages, time.monotonic() - begun, cost)
        result.problems += self._audit(system, work.messages)
        return result

    def _audit(self, system: System, waiting: int) -> list[str]:
        """What waits was never accepted by a journal, so it is set against what is queued."""
        command = [str(self.program), "--config", str(system.config), "queue", "audit", "--json"]
        audit = json.loads(subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).stdout)
        if audit["queued"] == waiting and audit["accepted"] == audit["delivered"]:
            return []
        return [f"{waiting} wait, but the audit says {audit}"]

    def _make(self, work: Work) -> System:
        base = self.base / f"{work.messages}"
        base.mkdir(parents=True, exist_ok=True)
        system = System(base, self.port, 1, program=(str(self.program),))
        fill_waiting(system, work.messages, range(DOMAINS))
        return system

    def clear(self) -> None:
        self._systems.clear()
        shutil.rmtree(self.base, ignore_errors=True)
