"""A hint may be lost with the process that was about to send it: the entries are found all the same, whether their VMTA
sleeps, works, or has nothing but deferred mail. And what a part of a long message's recipients got, they do not get
again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spoolmta import standin
from tests.support.crash import CrashMta, by_recipient
from tests.support.mta import BASE, World

CONFIG = """\
[domain."*"]
smtp-hosts = ["[{host}]:{port}"]
max-rcpt-per-transaction = 2
connection-idle-timeout = "10s"
[domain."later.test"]
retry-recipients-after = ["1h"]
connection-idle-timeout = "0s"
[vmta.one]
[vmta.two]
"""


@contextmanager
def system(path: Path, *mutations: str, sleep_after: str = "1m") -> Iterator[tuple[World, CrashMta]]:
    with World(path) as world:
        route = CONFIG.format(host=world.host, port=world.port)
        mta = CrashMta(path / "mta", BASE.format(dns="", default_route=route, sleep_after=sleep_after))
        mta.mutations = mutations
        with mta:
            yield world, mta


def test_mail_whose_hint_was_lost_wakes_its_sleeping_vmta(tmp_path: Path) -> None:
    with system(tmp_path) as (_, mta):
        mta.arm("before the hints")
        mta.drop("x@a.test", vmta="one")
        mta.wait_for(mta.has_fired)
        mta.wait_for(lambda: mta.count("d") == 1)


def test_mail_whose_hint_was_lost_is_found_by_a_vmta_with_deferred_mail(tmp_path: Path) -> None:
    with system(tmp_path) as (_, mta):
        mta.drop("451@a.test", vmta="one")
        mta.wait_for(lambda: mta.count("t") == 1)
        mta.arm("before the hints")
        mta.drop("x@a.test", vmta="one")
        mta.wait_for(mta.has_fired)
        mta.wait_for(lambda: mta.count("d") == 1)


def test_mail_that_comes_while_its_vmta_falls_asleep_wakes_it_again(tmp_path: Path) -> None:
    with system(tmp_path, "fall-asleep-slowly", sleep_after="1s") as (_, mta):
        mta.drop("x@a.test", vmta="one")
        mta.wait_for((mta.spool / "state" / "one").exists)
        mta.drop("y@a.test", vmta="one")
        mta.wait_for(lambda: mta.count("d") == 2)


def test_mail_that_is_to_be_tried_now_while_its_vmta_falls_asleep_is_tried(tmp_path: Path) -> None:
    """The due time that the next process goes by is in the name of the entry."""
    with system(tmp_path, sleep_after="0s") as (_, mta):
        for number in range(12):
            mta.drop(f"once-451-{number}@later.test", vmta="one")
            mta.wait_for(lambda: mta.count("t") == number + 1)  # noqa: B023
            time.sleep(0.004 * number)
            standin.retry(mta.layout, "one", "*")
            mta.wait_for(lambda: mta.count("d") == number + 1, 10)  # noqa: B023


def test_a_long_list_of_recipients_is_journalled_transaction_by_transaction(tmp_path: Path) -> None:
    with system(tmp_path) as (world, mta):
        mta.drop("1@a.test", "2@a.test", "3--slow-dot-1s@a.test", "4@a.test", "5@a.test", vmta="one")
        mta.wait_for(lambda: mta.count("d") == 2)
        os.kill(mta.processes()["one"], signal.SIGKILL)
        mta.wait_for(lambda: mta.count("d") == 5 and not mta.left_over())
        assert {address: len(copies) for address, copies in by_recipient(world.received()).items()} == {
            "1@a.test": 1, "2@a.test": 1, "3--slow-dot-1s@a.test": 1, "4@a.test": 1, "5@a.test": 1,
        }  # fmt: skip
        assert mta.balance().balanced


def test_an_orphan_with_idle_connections_still_finishes_what_is_past_its_dot(tmp_path: Path) -> None:
    with system(tmp_path) as (world, mta):
        mta.drop("x@b.test", vmta="one")
        mta.wait_for(lambda: mta.count("d") == 1)  # this connection is kept, for more mail to b.test
        mta.drop("y--slow-dot-2s@a.test", vmta="one")
        mta.wait_for(lambda: world.stats()["totals"]["recipients_accepted"] == 2)
        mta.kill("supervisor")
        mta.start()
        mta.wait_for(lambda: mta.count("d") == 2 and not mta.left_over())
        assert [line["recipients"] for line in world.received()] == [["x@b.test"], ["y--slow-dot-2s@a.test"]]
        assert "Traceback" not in mta.log()
