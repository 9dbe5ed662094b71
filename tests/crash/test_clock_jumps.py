"""The machine's clock is set by a day, forward or back, under a running system: no mail expires for it, no queue is
stuck, nobody spins; also what is forked after that, and after a restart. A small library, made with the C compiler of
the machine, changes what processes are told of the time of day."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.support.mta import ROOT, Mta, World
from tests.support.torture import tell

DAY = 86_400
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to set the clock of processes")

VMTAS = "".join(
    f'[vmta.{name}]\nsmtp-source-host = ["127.0.0.{number} {name}.test"]\n'
    for number, name in enumerate(("awake", "asleep", "new"), 21)
)


class ShiftedMta(Mta):
    """A system whose clock can be set."""

    def set_clock(self, shift: int) -> None:
        with open(self.path / "clock", "r+b" if (self.path / "clock").exists() else "wb") as file:
            file.write(shift.to_bytes(8, sys.byteorder, signed=True))

    environment: Mapping[str, str] = os.environ

    def start(self) -> None:
        library = self.path / "shifted_clock.so"
        source = ROOT / "tests" / "support" / "shifted_clock.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self.environment = {**os.environ, "LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self.path / "clock")}
        with open(self.path / "log", "ab") as log:
            command = [sys.executable, "-m", "spoolmta", "--config", str(self.config_file), "run"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=self.environment)
        self.wait_for(lambda: self.command("status", "--json").returncode == 0 or self.process_ended())

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """By the clock of this machine, as everything is."""
        command = [sys.executable, "-m", "spoolmta", "--config", str(self.config_file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=self.environment)

    def seconds_of_cpu(self) -> float:
        assert self.process is not None
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return float(sum(sum(one.cpu_times()[:2]) for one in family))


def has_ended(mta: Mta, *recipients: str) -> bool:
    return {row["rcpt"] for row in mta.rows("d", "b")} >= set(recipients)


@pytest.mark.parametrize("shift", [pytest.param(DAY, marks=pytest.mark.torture), -DAY])
def test_a_clock_that_is_set_by_a_day_expires_nothing_and_stops_nothing(tmp_path: Path, shift: int) -> None:
    with World(tmp_path) as world:
        usual = world.mta(VMTAS, start=False, sleep_after="1s")
        text = usual.config_file.read_text().replace(
            'retry-recipients-after = ["1s"]', 'retry-recipients-after = ["2s"]'
        )
        with ShiftedMta(usual.path, text, start=False) as mta:
            mta.set_clock(0)
            mta.start()
            mta.drop("once-451-early@one.test", vmta="awake")
            mta.drop("once-451-early@two.test", vmta="asleep")
            mta.drop("slow--slow-dot-2s@three.test", vmta="awake")
            mta.wait_for(lambda: mta.count("t") == 2 and mta.vmta("asleep")["state"] == "asleep")
            mta.set_clock(shift)
            mta.drop("once-451-late@one.test", vmta="awake")
            mta.drop("once-451-late@two.test", vmta="new")
            (mta.spool / "pickup" / "in-place.eml").write_bytes(mta.message("placed@one.test", vmta="awake"))
            paused_at = time.time()
            assert mta.command("queue", "pause", "late.test/awake", "--for", "3s").returncode == 0
            mta.drop("paused@late.test", vmta="awake")
            late = [
                "once-451-late@one.test",
                "once-451-late@two.test",
                "placed@one.test",
                "paused@late.test",
                "slow--slow-dot-2s@three.test",
            ]
            mta.wait_for(lambda: has_ended(mta, "once-451-early@one.test", "once-451-early@two.test", *late))
            [paused] = [line for line in world.received() if line["recipients"] == ["paused@late.test"]]
            assert paused["time"] >= paused_at + 3.0
            began, used = time.monotonic(), mta.seconds_of_cpu()
            time.sleep(1.0)
            busy = (mta.seconds_of_cpu() - used) / (time.monotonic() - began)
            assert busy < 0.3, "it spins"
            mta.drop("once-451-waits@one.test", vmta="awake")
            mta.wait_for(lambda: mta.count("t") >= 5)
            mta.stop()
            mta.set_clock(-DAY)
            mta.start()
            mta.drop("last@four.test", vmta="new")
            mta.wait_for(lambda: has_ended(mta, "once-451-waits@one.test", "last@four.test"))
            expired = len(mta.rows("b"))
            tell(
                f"the clock set by {shift // DAY:+d} day", "nothing expires, < 30 % busy", f"{expired}, {busy:.0%} busy"
            )
            assert expired == 0
            assert "Traceback" not in mta.log()
