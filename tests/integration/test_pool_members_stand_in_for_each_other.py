"""A member of a pool that is paused, backed off or without addresses somewhere: the others get its mail meanwhile."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spoolmta import condition, entry, state
from spoolmta.condition import BACKOFF, FOREVER, Condition, Hold
from spoolmta.dealing import Absence, absence
from spoolmta.spool.layout import prepare
from spoolmta.switch import PAUSE, Order, Switch
from tests.integration.scenario import drop
from tests.support.mta import Mta, World

CONFIG = """
[vmta.a]
smtp-source-host = ["127.0.0.45"]
[vmta.b]
smtp-source-host = ["127.0.0.46"]
[pool.p]
virtual-mta = ["a", "b"]
[source.pickup]
default-virtual-mta = "p"
"""
ADDRESSES = {"127.0.0.45": "a", "127.0.0.46": "b"}


@contextmanager
def system(path: Path, conditions: dict[str, Condition], sleep_after: str = "1m") -> Iterator[tuple[World, Mta]]:
    """A running system whose member "a" knows of these conditions."""
    with World(path) as world, world.mta(CONFIG, start=False, sleep_after=sleep_after) as mta:
        state.save(prepare(str(mta.spool)), "a", state.State(math.inf, conditions))
        yield world, mta


def senders(world: World, mta: Mta, domain: str, count: int) -> Counter[str]:
    def received() -> list[str]:
        found = [one for one in world.received() if one["recipients"][0].endswith("@" + domain)]
        return [ADDRESSES[one["source"].rpartition(":")[0] or one["source"]] for one in found]

    mta.wait_for(lambda: len(received()) == count)
    return Counter(received())


def marker(mta: Mta, site: str) -> Path:
    return mta.spool / "state/pool/p/a" / site


def test_what_waits_at_a_paused_site_goes_to_the_other_member(tmp_path: Path) -> None:
    paused = Condition(paused=Hold(FOREVER, "maintenance there"))
    with system(tmp_path, {"paused.test": paused}) as (world, mta):
        for number in range(40):
            drop(mta, f"{number}@paused.test")
        for number in range(10):
            drop(mta, f"direct-{number}@paused.test", vmta="a")
        drop(mta, "both@paused.test", "both@other.test")
        mta.start()
        mta.wait_for(lambda: sum(len(one["recipients"]) for one in world.received()) == 42)
        assert {ADDRESSES[one["source"].rpartition(":")[0] or one["source"]] for one in world.received()} <= {"a", "b"}
        at_paused = [one for one in world.received() if one["recipients"][0].endswith("@paused.test")]
        assert {one["source"].rpartition(":")[0] or one["source"] for one in at_paused} == {"127.0.0.46"}
        mta.wait_for(lambda: len(mta.entries()) == 10)  # what was sent to the member itself waits there
        left = json.loads(marker(mta, "paused.test").read_text())
        assert left["reason"] == "paused: maintenance there"
        assert [*left["domains"]] == ["paused.test"]
        mta.wait_for(lambda: mta.count("d") == 42)
        passed_on = [row for row in mta.rows("d") if row["rcpt"].endswith("@paused.test")]
        assert {(row["vmta"], row["vmtaPool"], row["queue"]) for row in passed_on} == {("b", "p", "paused.test/b")}
        for number in range(10):
            drop(mta, f"later-{number}@paused.test")
            drop(mta, f"later-{number}@other.test")
        assert senders(world, mta, "paused.test", 51) == {"b": 51}
        assert senders(world, mta, "other.test", 11)["a"] >= 9
        mta.wait_for(lambda: mta.audit()["queued"] == 10)  # it leaves out what is younger than two seconds


def test_what_a_paused_job_holds_stays_where_it_is_paused(tmp_path: Path) -> None:
    paused = Condition(paused=Hold(FOREVER, "maintenance there"))
    autumn = Switch(PAUSE, "operator", job=entry.job_hash("autumn"), job_name="autumn")
    with system(tmp_path, {"paused.test": paused}) as (world, mta):
        left = state.State(math.inf, {"paused.test": paused}, orders=[Order("*", autumn)])
        state.save(prepare(str(mta.spool)), "a", left)
        for job in ("autumn", "autumn", "winter", "winter") * 10:
            drop(mta, "user@paused.test", job=job)
        mta.start()
        mta.wait_for(lambda: "messages for paused.test went to b" in mta.log())
        mta.wait_for(lambda: Counter(row["jobId"] for row in mta.rows("d"))["winter"] == 20)
        mta.wait_for(lambda: mta.count("d") + len(mta.entries()) == 40)
        assert {path.parts[-4] for path in mta.entries()} == {"a"}
        assert {entry.flow(path.name)[1] for path in mta.entries()} == {autumn.job}
        assert {one["source"].rpartition(":")[0] or one["source"] for one in world.received()} == {"127.0.0.46"}


def test_when_its_back_off_is_over_a_member_gets_mail_again(tmp_path: Path) -> None:
    until = time.time() + 10.0
    backed_off = Condition(mode=BACKOFF, mode_reason="421 slow down", mode_until=until)
    with system(tmp_path, {"slow.test": backed_off}) as (world, mta):
        drop(mta, "wakes@other.test", vmta="a")
        mta.start()
        mta.wait_for(lambda: marker(mta, "slow.test").exists())
        assert json.loads(marker(mta, "slow.test").read_text())["until"] == until
        drop(mta, "first@slow.test")
        drop(mta, "second@slow.test")
        assert senders(world, mta, "slow.test", 2) == {"b": 2} or time.time() > until
        mta.wait_for(lambda: time.time() > until and not marker(mta, "slow.test").exists())
        time.sleep(1.0)  # markers are read once a second
        for number in range(6):
            drop(mta, f"{number}@slow.test")
        assert senders(world, mta, "slow.test", 8)["a"] in (3, 4, 5)


def test_a_stale_marker_is_removed_by_the_process_that_left_it(tmp_path: Path) -> None:
    with system(tmp_path, {}) as (world, mta):
        for pool in ("p", "gone"):
            folder = mta.spool / "state/pool" / pool / "a"
            folder.mkdir(parents=True)
            (folder / "old.test").write_text('{"site": "old.test", "reason": "killed meanwhile"}')
        (mta.spool / "queue/a").mkdir(parents=True)
        mta.start()  # which wakes those who have left markers
        mta.wait_for(lambda: not [*(mta.spool / "state/pool").rglob("old.test")])
        for number in range(4):
            drop(mta, f"{number}@old.test")
        assert senders(world, mta, "old.test", 4) == {"a": 2, "b": 2}


def test_a_member_whose_back_off_has_no_end_of_its_own_is_tried_now_and_then() -> None:
    forever = Condition(mode=BACKOFF, mode_reason="421")
    assert absence(forever, ["192.0.2.1"], 5.0) == Absence("backoff: 421", is_probed=True)
    timed = Condition(mode=BACKOFF, mode_reason="421", mode_until=9.0)
    assert absence(timed, [], 5.0) == Absence("backoff: 421", 9.0)
    assert absence(timed, [], 9.0) is None
    disabled = Condition()
    condition.disable_source(disabled, 0.0, "192.0.2.1", "blocked", 7.0)
    assert absence(disabled, ["192.0.2.1"], 5.0) == Absence("all source addresses are disabled", 7.0)
    assert absence(disabled, ["192.0.2.1", "192.0.2.2"], 5.0) is None
    assert absence(disabled, ["192.0.2.1"], 7.0) is None
    assert absence(Condition(mode=condition.RECOVERING, failures=3), [], 5.0) is None


RULE = """
[[vmta.a.response]]
reply = '^451 .*scripted'
action = "backoff"
for = "8s"
"""


def test_a_receivers_complaint_to_one_member_gives_the_others_its_mail_for_a_while(tmp_path: Path) -> None:
    with World(tmp_path) as world, world.mta(CONFIG + RULE) as mta:
        drop(mta, "451-4.7.1@rule.test", vmta="a")
        mta.wait_for(lambda: marker(mta, "rule.test").exists())
        left = json.loads(marker(mta, "rule.test").read_text())
        time.sleep(1.0)  # markers are read once a second
        for number in range(6):
            drop(mta, f"{number}@rule.test")
        assert senders(world, mta, "rule.test", 6) == {"b": 6} or time.time() > left["until"]
        assert left["reason"].startswith("backoff: ")
