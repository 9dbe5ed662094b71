"""What a kill costs: nothing but time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scenario import drop, to
from tests.support.mta import ROOT, Mta, World

CONFIG = """
[vmta.a]
[vmta.b]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("deaths")) as world, world.mta(CONFIG, start=False) as mta:
        drop(mta, "first@example.test", vmta="a")
        mta.start()
        mta.wait_for(lambda: len(to(mta, "first@example.test")) == 1)
        yield world, mta


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def threads(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("Threads:")[2].split()[0])


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def pids(mta: Mta) -> dict[str, int]:
    status = mta.status()
    return {
        "supervisor": status["pid"],
        "pickup": status["pickup"]["pid"],
        **{v["name"]: v["pid"] for v in status["vmtas"] if v["pid"]},
    }


def test_every_process_says_what_it_is(system: tuple[World, Mta]) -> None:
    _, mta = system
    running = pids(mta)
    assert {role: title(pid) for role, pid in running.items()} == {
        "supervisor": "spoolmta: supervisor",
        "pickup": "spoolmta: pickup",
        "a": "spoolmta: deliver a",
    }


def test_neither_the_supervisor_nor_a_delivery_process_has_threads(system: tuple[World, Mta]) -> None:
    _, mta = system
    running = pids(mta)
    assert threads(running["supervisor"]) == 1
    assert threads(running["a"]) == 1


def test_a_second_supervisor_refuses_and_names_the_first(system: tuple[World, Mta]) -> None:
    _, mta = system
    second = mta.command("run")
    assert second.returncode == 69
    assert f"process {mta.status()['pid']}" in second.stderr
    assert "Traceback" not in second.stderr
    assert mta.command("status").returncode == 0


@pytest.mark.parametrize("role", ["pickup", "a"])
def test_a_process_that_was_killed_comes_back_and_goes_on(system: tuple[World, Mta], role: str) -> None:
    _, mta = system
    killed = mta.kill(role)
    recipient = f"after-{role}@example.test"
    drop(mta, recipient, vmta="a")
    mta.wait_for(lambda: len(to(mta, recipient)) == 1)
    assert to(mta, recipient)[0]["type"] == "d"
    assert pids(mta)[role] not in (killed, 0)
    assert f"(process {killed}) ended by signal 9" in mta.log()
    assert mta.audit()["balanced"]


def test_children_leave_when_the_supervisor_is_killed_and_a_new_one_takes_over(system: tuple[World, Mta]) -> None:
    world, mta = system
    drop(mta, "slow-dot-1s@example.test", vmta="a")
    drop(mta, "slow-3s@example.test", vmta="b")
    mta.wait_for(lambda: "b" in pids(mta) and mta.vmta("b")["connections"] == 1 and mta.vmta("a")["connections"] >= 1)
    before = pids(mta)
    began = time.monotonic()
    mta.kill("supervisor")
    mta.wait_for(lambda: not any(is_alive(pid) for pid in before.values()), 15)
    assert time.monotonic() - began < 10
    mta.start()
    recipients = ("slow-dot-1s@example.test", "slow-3s@example.test")
    mta.wait_for(lambda: all(to(mta, recipient, "d") for recipient in recipients))
    assert [len(to(mta, recipient)) for recipient in recipients] == [1, 1]
    mta.wait_for(lambda: mta.audit()["queued"] == 0)
    assert mta.audit()["balanced"]
    assert sum("slow-3s@example.test" in record["recipients"] for record in world.received()) == 1


def test_sigterm_finishes_what_is_under_way_and_loses_nothing(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: mta.vmta("a")["connections"] == 0)
    drop(mta, "slow-dot-1s+a@drain.test", vmta="a")
    mta.wait_for(lambda: mta.vmta("a")["connections"] == 1)
    for number in range(50):
        drop(mta, f"{number}@late.test", vmta="b")
    assert mta.stop() == 0
    assert "spoolmta stopped" in mta.log()
    assert len(to(mta, "slow-dot-1s+a@drain.test", "d")) == 1
    audit = mta.audit()
    assert audit["balanced"], audit
    mta.start()
    mta.wait_for(lambda: sum(row["rcpt"].endswith("@late.test") for row in mta.rows("d")) == 50)
    assert mta.audit()["balanced"]


def test_sigint_stops_too(tmp_path: Path) -> None:
    with World(tmp_path) as world, world.mta() as mta:
        assert mta.process is not None
        mta.process.send_signal(signal.SIGINT)
        assert mta.process.wait(20) == 0
        mta.process = None


def test_a_spool_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "spoolmta.toml"
    file.write_text('host-name = "a.test"\n[spool]\ndirectory = "none"\n')
    command = [sys.executable, "-m", "spoolmta", "--config", str(file), "run"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
    assert result.returncode == 78
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["spoolmta.toml"]
