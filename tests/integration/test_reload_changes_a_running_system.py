"""Reload: by command and by signal, right and wrong."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator

import pytest

from spoolmta.config import load
from tests.integration.scenario import drop, from_source, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.steady]
smtp-source-host = ["127.0.0.31"]
[vmta.steady.domain."*"]
max-smtp-out = 2
[vmta.leaving]
[vmta.leaving.domain."*"]
smtp-hosts = ["[127.0.0.9]:1"]
retry-after = "1h"
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("reload")) as world, world.mta(CONFIG, start=False) as mta:
        drop(mta, "user@kept.test", vmta="leaving")
        drop(mta, "user@steady.test", vmta="steady")
        mta.start()
        mta.wait_for(lambda: mta.count("tq") == 1 and mta.count("d") == 1)
        yield world, mta


def change(mta: Mta, edit: Callable[[str], str]) -> None:
    mta.config_file.write_text(edit(mta.config_file.read_text()))


def reload(mta: Mta) -> None:
    result = mta.command("reload")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("is in force\n")


def test_a_new_vmta_can_be_used(system: tuple[World, Mta]) -> None:
    world, mta = system
    change(mta, lambda text: text + '\n[vmta.added]\nsmtp-source-host = ["127.0.0.32 added.test"]\n')
    reload(mta)
    drop(mta, "user@added.test", vmta="added")
    mta.wait_for(lambda: len(to(mta, "user@added.test")) == 1)
    assert to(mta, "user@added.test")[0]["dlvSourceIp"] == "127.0.0.32"
    assert from_source(world, "127.0.0.32")["messages"] == 1
    reload(mta)  # also with a process that was started after the last time


def test_a_changed_limit_is_in_force_without_a_restart(system: tuple[World, Mta]) -> None:
    world, mta = system
    mta.wait_for(lambda: from_source(world, "127.0.0.31")["current"] == 0)
    before = mta.vmta("steady")["pid"]
    assert before
    change(mta, lambda text: text.replace("max-smtp-out = 2", "max-smtp-out = 4"))
    reload(mta)
    for number in range(16):
        drop(mta, f"slow-dot-100ms+{number}@limit.test", vmta="steady")
    mta.wait_for(lambda: sum(row["rcpt"].endswith("@limit.test") for row in mta.rows("d")) == 16)
    assert from_source(world, "127.0.0.31")["peak"] == 4
    assert mta.vmta("steady")["pid"] == before


def test_sighup_reloads_too(system: tuple[World, Mta]) -> None:
    _, mta = system
    generation = mta.status()["config_generation"]
    change(mta, lambda text: text + "\n[vmta.by-signal]\n")
    assert mta.process is not None
    mta.process.send_signal(signal.SIGHUP)
    mta.wait_for(lambda: mta.status()["config_generation"] == generation + 1)
    drop(mta, "user@signal.test", vmta="by-signal")
    mta.wait_for(lambda: len(to(mta, "user@signal.test")) == 1)


def test_a_wrong_file_changes_nothing_and_is_told_with_its_lines(system: tuple[World, Mta]) -> None:
    _, mta = system
    generation = mta.status()["config_generation"]
    right = mta.config_file.read_text()
    mta.config_file.write_text(right + "\n[vmta.half]\nmax-smtp-oud = 3\n")
    line = len(right.splitlines()) + 3
    result = mta.command("reload")
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.startswith(f"{mta.config_file}:{line}: ")
    assert "max-smtp-out" in result.stderr
    assert mta.process is not None
    mta.process.send_signal(signal.SIGHUP)
    mta.wait_for_log(rf"reload: .*:{line}: ")
    mta.config_file.write_text(right)
    assert mta.status()["config_generation"] == generation
    assert "half" not in {v["name"] for v in mta.status()["vmtas"]}
    mta.config_file.write_text(right.replace('directory = "spool"', 'directory = "elsewhere"'))
    moved = mta.command("reload")
    mta.config_file.write_text(right)
    assert moved.returncode != 0
    assert mta.command("status").returncode == 0


def test_a_vmta_taken_out_sends_nothing_by_the_policy_of_all_until_its_process_is_ended(
    system: tuple[World, Mta],
) -> None:
    _, mta = system
    without = mta.config_file.with_name("without.toml")
    whole = mta.config_file.read_text()
    without.write_text(whole.replace(CONFIG[CONFIG.index("[vmta.leaving]") :], ""))
    ours = mta.spool / "run" / "config"
    before = ours.read_bytes()
    ours.write_bytes(pickle.dumps(load(str(without))))
    os.kill(mta.vmta("leaving")["pid"], signal.SIGHUP)
    tried = mta.count("tq")
    drop(mta, "user@second.test", vmta="leaving")
    mta.wait_for(lambda: mta.count("tq") == tried + 1)
    ours.write_bytes(before)
    assert to(mta, "user@kept.test") == to(mta, "user@second.test") == []


def test_a_vmta_taken_out_keeps_its_mail_and_is_warned_of(system: tuple[World, Mta]) -> None:
    _, mta = system
    whole = mta.config_file.read_text()
    change(mta, lambda text: text.replace(CONFIG[CONFIG.index("[vmta.leaving]") :], ""))
    reload(mta)
    mta.wait_for_log("queue leaving holds mail, but no VMTA of this name is configured")
    mta.wait_for(lambda: "leaving" not in {v["name"] for v in mta.status()["vmtas"]})
    assert mta.status()["unconfigured_queues"] == ["leaving"]
    assert "kept.test/leaving" in mta.command("queue", "count").stdout
    mta.config_file.write_text(whole.replace('smtp-hosts = ["[127.0.0.9]:1"]\n', ""))
    (mta.spool / "state" / "leaving").unlink(missing_ok=True)  # else the old route's pause would still hold
    reload(mta)
    mta.wait_for(lambda: len(to(mta, "user@kept.test")) == 1)
    assert to(mta, "user@kept.test")[0]["vmta"] == "leaving"
    assert mta.status()["unconfigured_queues"] == []
    mta.wait_for(lambda: mta.audit()["queued"] == 0)
    assert mta.audit()["balanced"]
