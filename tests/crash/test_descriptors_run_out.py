"""No descriptor left: nothing is lost, bounced or sent twice, no process dies or spins, and the work goes on by itself.

A process that reaches its limit by its own sessions keeps enough to read mail and to write down what became of it. One
that is left without any (as when the table of the whole machine is full) waits.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.mta import ROOT, Mta, World
from tests.support.torture import tell

FEW = 64
VMTAS = "".join(f'[vmta.v{number}]\nsmtp-source-host = ["127.0.0.{20 + number} v.test"]\n' for number in range(12))


class SmallMta(Mta):
    """`spoolmta run` with few descriptors for each process."""

    def start(self) -> None:
        with open(self.path / "log", "ab") as log:
            command = [sys.executable, "-m", "spoolmta", "--config", str(self.config_file), "run"]
            limited = ["prlimit", f"--nofile={FEW}:{FEW}", *command]
            self.process = subprocess.Popen(limited, stdout=log, stderr=log, cwd=ROOT)
        self.wait_for(lambda: self.command("status", "--json").returncode == 0 or self.process_ended())


@contextmanager
def without_descriptors(pid: int, spare: int) -> Iterator[None]:
    """A process that can open `spare` more for as long as the block lasts."""
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most + spare, old[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, old)


def seconds_of_cpu(pid: int) -> float:
    return float(sum(psutil.Process(pid).cpu_times()[:2]))


def assert_each_once(mta: Mta, world: World, count: int) -> None:
    mta.wait_for(lambda: not mta.entries() and mta.audit()["delivered"] == count)
    assert mta.audit()["balanced"]
    got = Counter(recipient for line in world.received() for recipient in line["recipients"])
    assert len(got) == count
    assert set(got.values()) == {1}
    assert {row["type"] for row in mta.rows()} <= {"r", "d"}, "no mail is deferred or bounced for our own trouble"
    status = mta.status()
    assert status["pickup"]["restarts"] + sum(vmta["restarts"] for vmta in status["vmtas"]) == 0
    assert "Traceback" not in mta.log()


def test_a_system_with_few_descriptors_keeps_some_to_read_and_write_mail(tmp_path: Path) -> None:
    """Receivers that hold 100 sessions would take them all; so would the FIFOs of more VMTAs than there are left."""
    with World(tmp_path) as world:
        usual = world.mta(VMTAS, start=False)
        with SmallMta(usual.path, usual.config_file.read_text()) as mta:
            for number in range(150):
                mta.drop(f"n{number}--slow-dot-200ms@d{number % 75}.test", vmta="v0")
            for number in range(12):
                mta.drop(f"m{number}@d{number}.test", vmta=f"v{number}")
            mta.wait_for(lambda: mta.count("d") == 162)
            assert_each_once(mta, world, 162)
            assert "Too many open files" not in mta.log()


def test_a_pickup_process_without_descriptors_waits_for_some(tmp_path: Path) -> None:
    with World(tmp_path) as world, world.mta('[vmta.two]\nsmtp-source-host = ["127.0.0.12 two.test"]\n') as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        pid = mta.status()["pickup"]["pid"]
        for spare in range(2):
            # The FIFO of the second VMTA is one more to open, behind the claim.
            with without_descriptors(pid, spare):
                began, used = time.monotonic(), seconds_of_cpu(pid)
                for number in range(20):
                    mta.drop(f"s{spare}n{number}@one.test", vmta="two" if spare else "")
                time.sleep(1.1)
                assert seconds_of_cpu(pid) - used < 0.3 * (time.monotonic() - began), "it does not wait, it spins"
            mta.wait_for(lambda: mta.count("d") == 1 + 20 * (spare + 1))  # noqa: B023
        assert "Too many open files" in mta.log()
        assert mta.log().count("\n") < 50
        assert_each_once(mta, world, 41)


@pytest.mark.torture
@pytest.mark.parametrize("spare", range(6))
def test_a_delivery_process_without_descriptors_goes_on_when_it_has_some(tmp_path: Path, spare: int) -> None:
    """It blames nobody for it: its sites wait a minute, as with everything that we lack ourselves."""
    with World(tmp_path) as world, world.mta() as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        pid = mta.vmta("default")["pid"]
        mta.wait_for(lambda: mta.vmta("default")["connections"] == 0)
        with without_descriptors(pid, spare):
            began, used = time.monotonic(), seconds_of_cpu(pid)
            for number in range(100):
                mta.drop(f"n{number}@d{number}.test")
            time.sleep(5.0)
            busy = (seconds_of_cpu(pid) - used) / (time.monotonic() - began)
            assert busy < 0.3, "it does not wait, it spins"
        began = time.monotonic()
        mta.wait_for(lambda: mta.count("d") == 101, 180)
        tell(
            f"{spare} descriptors left for a delivery process",
            "all delivered, < 30 % busy",
            f"all within {time.monotonic() - began:.0f} s, {busy:.0%} busy",
        )
        mta.wait_for(lambda: not mta.entries() and mta.audit()["delivered"] == 101)
        assert not mta.rows("b", "t")
        assert len(world.received()) == 101
        assert mta.vmta("default")["restarts"] == 0
