"""A long run at full speed: descriptors, memory, folders and zombies stay as they are. 200,000 messages, or as many as
SPOOLMTA_SOAK_MESSAGES says; the table is printed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from tests.support.mta import Mta, World
from tests.support.torture import tell

MESSAGES = int(os.environ.get("SPOOLMTA_SOAK_MESSAGES", 200_000))
STEPS = 10
AHEAD = 2000
VMTAS = 4
CONFIG = "".join(f'[vmta.v{n}]\nsmtp-source-host = ["127.0.0.{20 + n} v{n}.test"]\n' for n in range(VMTAS))
HEAD = "messages seconds processes descriptors PSS/MiB threads zombies folders"


class Figures:
    """What the system has now."""

    def __init__(self, mta: Mta) -> None:
        assert mta.process is not None
        family = [psutil.Process(mta.process.pid), *psutil.Process(mta.process.pid).children(recursive=True)]
        self.zombies = sum(one.status() == psutil.STATUS_ZOMBIE for one in family)
        living = [one for one in family if one.status() != psutil.STATUS_ZOMBIE]
        self.processes = len(living)
        self.descriptors = sum(one.num_fds() for one in living)
        self.memory = sum(one.memory_full_info().pss for one in living) / (1 << 20)
        self.threads = sum(one.num_threads() for one in living)
        self.folders = sum(path.is_dir() for path in mta.spool.rglob("*"))

    def __str__(self) -> str:
        return (
            f"{self.processes:9} {self.descriptors:11} {self.memory:7.1f} {self.threads:7} {self.zombies:7}"
            f" {self.folders:7}"
        )


def settled(mta: Mta) -> int:
    return sum(vmta["delivered"] + vmta["bounced"] for vmta in mta.status()["vmtas"])


def drop(mta: Mta, numbers: range) -> None:
    """Refusals and deferrals among deliveries."""
    for number in numbers:
        local = (
            f"n{number}--550-5.1.1" if number % 50 == 0 else f"once-451-n{number}" if number % 97 == 0 else f"n{number}"
        )
        mta.drop(f"{local}@d{number % 40}.test", vmta=f"v{number % VMTAS}")


@pytest.mark.torture
def test_nothing_grows_in_a_long_run(tmp_path: Path) -> None:
    with World(tmp_path, record="") as world, world.mta(CONFIG) as mta:
        began = time.monotonic()
        print(f"\n{HEAD}")
        dropped, table = 0, []
        for step in range(1, STEPS + 1):
            goal = MESSAGES * step // STEPS
            while dropped < goal:
                drop(mta, range(dropped, dropped := min(goal, dropped + AHEAD)))
                ahead = dropped - AHEAD
                mta.wait_for(lambda: settled(mta) >= ahead, 120)  # noqa: B023
            mta.wait_for(lambda: settled(mta) == goal and not mta.entries(), 120)  # noqa: B023
            mta.wait_for(lambda: all(vmta["connections"] == 0 for vmta in mta.status()["vmtas"]))
            table.append(Figures(mta))
            print(f"{goal:8} {time.monotonic() - began:7.0f} {table[-1]}", flush=True)
        first, last = table[1], table[-1]
        tell(
            f"{MESSAGES} messages: memory; descriptors; zombies",
            "as in the beginning",
            f"{last.memory:.0f} MiB ({first.memory:.0f}); {last.descriptors} ({first.descriptors}); {last.zombies}",
        )
        assert last.zombies == 0
        assert (last.processes, last.threads, last.folders) == (first.processes, first.threads, first.folders)
        assert last.descriptors <= first.descriptors + 4
        assert last.memory < 1.1 * first.memory + 5
        assert mta.audit()["balanced"]
        status = mta.status()
        assert status["pickup"]["restarts"] + sum(vmta["restarts"] for vmta in status["vmtas"]) == 0
