"""A hint may be lost with the process that was about to send it: the entries are found all the same, whether their VMTA
sleeps, works, or has nothing but deferred mail. And what a part of a long message's recipients got, they do not get
again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.crash import CrashMta, by_recipient
from tests.support.mta import BASE, World

CONFIG = """\
[domain."*"]
smtp-hosts = ["[{host}]:{port}"]
max-rcpt-per-transaction = 2
[vmta.one]
[vmta.two]
"""


@contextmanager
def system(path: Path) -> Iterator[tuple[World, CrashMta]]:
    with World(path) as world:
        route = CONFIG.format(host=world.host, port=world.port)
        with CrashMta(path / "mta", BASE.format(dns="", default_route=route, sleep_after="1m")) as mta:
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
