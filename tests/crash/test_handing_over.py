"""SIGKILL while a pool's mail goes from one member to the others: nothing is lost, nothing is sent twice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from spoolmta import state
from spoolmta.condition import FOREVER, Condition, Hold
from spoolmta.spool.layout import prepare
from tests.support.crash import CrashMta, by_recipient, contradictions
from tests.support.mta import BASE, ROUTE, World

VMTAS = """
[vmta.one]
smtp-source-host = ["127.0.0.11 one.test"]
[vmta.two]
smtp-source-host = ["127.0.0.12 two.test"]
[pool.both]
virtual-mta = ["one", "two"]
[source.pickup]
default-virtual-mta = "both"
"""


@pytest.mark.parametrize(
    ("point", "count"),
    [
        ("the marker written", 1),
        ("before an entry is handed over", 1),
        ("after an entry is handed over", 1),
        ("after an entry is handed over", 7),
        ("before the hints of what was handed over", 1),
    ],
)
def test_a_kill_while_mail_is_handed_over_loses_nothing_and_doubles_nothing(
    tmp_path: Path, point: str, count: int
) -> None:
    with World(tmp_path) as world:
        route = ROUTE.format(host=world.host, port=world.port)
        mta = CrashMta(tmp_path / "mta", BASE.format(dns="", default_route=route, sleep_after="1m") + VMTAS)
        state.save(
            prepare(str(mta.spool)),
            "one",
            state.State(math.inf, {"a.test": Condition(paused=Hold(FOREVER, "test"))}),
        )
        expected = {}
        for number in range(30):
            recipients = [f"{number}@a.test", f"{number}@b.test"][: 1 + number % 2]
            mta.drop(*recipients)
            expected |= dict.fromkeys(recipients, "d")
        mta.arm(point, count)
        with mta:
            mta.wait_for(mta.has_fired)
            mta.wait_for(lambda: {row["rcpt"] for row in mta.rows("d")} == expected.keys() and not mta.left_over())
            delivered = by_recipient(world.received())
            assert contradictions(mta, delivered, expected) == []
            assert all(len(copies) == 1 for copies in delivered.values())
            at_a = {one.source.rpartition(":")[0] or one.source for to, [one] in delivered.items() if "@a." in to}
            assert at_a == {"127.0.0.12"}
