"""A VMTA has a process while it has work, and nothing is forgotten in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scenario import drop, queue_rows, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.napper]
[vmta.deferring]
[vmta.blocked]
[vmta.napper.domain."blocked.test"]
smtp-hosts = ["[{host}]:{port}"]
[domain."deferred.test"]
retry-recipients-after = "4s"
[domain."blocked.test"]
smtp-hosts = ["[127.0.0.9]:1"]
retry-after = ["3s", "1h"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("sleep")) as world:
        config = CONFIG.format(host=world.host, port=world.port)
        mta = world.mta(config, sleep_after="1s", start=False)
        drop(mta, "once-451@deferred.test", vmta="deferring")
        drop(mta, "user@blocked.test", vmta="blocked")
        with mta:
            mta.start()
            yield world, mta


def is_asleep(mta: Mta, vmta: str) -> bool:
    seen = mta.vmta(vmta)
    return seen["state"] == "asleep" and seen["pid"] == 0


def test_a_process_leaves_when_idle_and_comes_back_with_new_mail(system: tuple[World, Mta]) -> None:
    _, mta = system
    for count in (1, 2):
        drop(mta, f"user{count}@example.test", vmta="napper")
        mta.wait_for(lambda count=count: mta.vmta("napper")["delivered"] == count)
        mta.wait_for(lambda: is_asleep(mta, "napper"))
    assert mta.vmta("napper")["restarts"] == 0


def test_a_process_comes_back_for_mail_that_is_due(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: is_asleep(mta, "deferring") or len(to(mta, "once-451@deferred.test")) == 2)
    mta.wait_for(lambda: len(to(mta, "once-451@deferred.test")) == 2)
    first, second = to(mta, "once-451@deferred.test")
    assert (first["type"], second["type"], second["attempts"]) == ("t", "d", "2")


def test_what_a_site_failed_with_survives_the_sleep(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: len(queue_rows(mta, "blocked.test")) == 2)
    mta.wait_for(lambda: is_asleep(mta, "blocked"))  # for an hour: the second pause, not the first again
    assert len(queue_rows(mta, "blocked.test")) == 2


def test_mail_whose_hint_was_lost_is_found_at_the_next_start(system: tuple[World, Mta]) -> None:
    _, mta = system
    mta.wait_for(lambda: len(queue_rows(mta, "blocked.test")) == 2)
    mta.wait_for(lambda: is_asleep(mta, "blocked") and is_asleep(mta, "napper"))
    (entry,) = (mta.spool / "queue" / "blocked" / "blocked.test" / "new").iterdir()
    folder = mta.spool / "queue" / "napper" / "blocked.test" / "new"
    folder.mkdir(parents=True)
    entry.rename(folder / entry.name)
    assert is_asleep(mta, "napper")
    mta.stop()
    mta.start()
    mta.wait_for(lambda: len(to(mta, "user@blocked.test")) == 1)
    assert to(mta, "user@blocked.test")[0]["vmta"] == "napper"


@pytest.mark.parametrize("event_loop", ["uvloop", "asyncio"])
def test_both_event_loops_do_the_work(tmp_path: Path, event_loop: str) -> None:
    with World(tmp_path) as world, world.mta(start=False) as mta:
        mta.config_file.write_text(f'event-loop = "{event_loop}"\n{mta.config_file.read_text()}')
        drop(mta, "550@example.test", "once-451@example.test", "once-drop-at-dot@other.test")
        mta.start()
        mta.wait_for(lambda: len(mta.rows("d")) == 2)
        assert sorted(row["type"] for row in mta.rows("d", "b", "t")) == ["b", "d", "d", "t", "t"]
        maps = Path(f"/proc/{mta.vmta('default')['pid']}/maps").read_text()
        assert ("uvloop/loop" in maps) is (event_loop == "uvloop")


def test_200_vmtas_deliver_beside_2000_that_have_no_process(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(2200)]
    config = "".join(f"[vmta.{name}]\n" for name in names) + '[vmta.default.domain."*"]\nmax-smtp-out = 1\n'
    with World(tmp_path) as world, world.mta(config, start=False) as mta:
        for name in names[:200]:
            drop(mta, f"{name}@example.test", vmta=name)
        began = time.monotonic()
        mta.start()
        mta.wait_for(lambda: mta.count("d") == 200, 60)
        assert time.monotonic() - began < 45
        assert {row["vmta"] for row in mta.rows("d")} == set(names[:200])
        status = mta.status()
        assert {v["name"] for v in status["vmtas"] if v["pid"]} <= set(names[:200])
        assert len(status["vmtas"]) == 2201
