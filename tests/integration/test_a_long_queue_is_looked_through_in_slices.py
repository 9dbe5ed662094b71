"""A long queue is looked through beside the delivery: in slices, nothing twice, nothing lost; and it is small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from spoolmta.spool import partition
from spoolmta.survey import Survey
from tests.support.mta import ROOT
from tests.support.spool_kit import Spool, deliver, reap


class Clock:
    """Each look at it takes longer than a slice."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 0.02
        return self.time


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setattr(partition, "PART", 3)
    return Spool(tmp_path / "spool")


def test_a_slice_ends_and_the_next_turn_goes_on_where_it_ended(spool: Spool) -> None:
    for number in range(20):
        spool.take(f"u{number}@{'ab'[number % 2]}.test")
    found: Counter[str] = Counter()
    with spool.partition() as one:
        survey = Survey(one, lambda _domain, name, _due, _now: found.update([name]), Clock())
        slices = 0
        while survey.work():
            slices += 1
            assert len(found) <= 3 * slices
        assert survey.is_complete
    assert len(found) == 20
    assert slices == 8
    assert set(found.values()) == {1}


def test_what_comes_between_two_slices_is_taken_up_once(spool: Spool) -> None:
    hints = [hint for number in range(8) for hint in spool.take(f"u{number}@a.test")]
    found: Counter[str] = Counter()

    with spool.partition() as one:

        def hear(hint: str) -> None:
            domain, _, name = hint.split("/")
            if one.add(domain, name) is not None:
                found.update([name])

        survey = Survey(one, lambda _domain, name, _due, _now: found.update([name]), Clock())
        assert survey.work()
        hear(hints[-1])  # not reached yet
        hear(hints[0])  # long since found
        hints += spool.take("late@a.test")  # behind the back of the listing
        hear(hints[-1])
        while survey.work():
            pass
        lost = spool.take("lost@a.test")  # its hint is lost
        survey.is_wanted = True
        while not all(hint.rpartition("/")[2] in found for hint in lost):
            survey.work()
    assert found == Counter(hint.rpartition("/")[2] for hint in [*hints, *lost])


def test_what_goes_between_two_slices_is_found_gone_and_nothing_else_happens(spool: Spool) -> None:
    hints = [hint for number in range(8) for hint in spool.take(f"u{number}@a.test")]
    names = sorted(hint.rpartition("/")[2] for hint in hints)
    found: list[str] = []
    with spool.partition() as one:
        survey = Survey(one, lambda _domain, name, _due, _now: found.append(name), Clock())
        assert survey.work()
        one.add("a.test", names[-1])
        deliver(one, "a.test", names[-1], one.load("a.test", names[-1]))
        assert reap(one) == 1
        while survey.work():
            pass
        assert found[-1] == names[-1]  # its listing is older than its end
        with pytest.raises(partition.Gone) as gone:
            one.load("a.test", names[-1])
        assert not gone.value.reason
        assert one.known == 7


def test_what_is_settled_is_kept_until_all_is_looked_through(spool: Spool) -> None:
    spool.take("u1@b.test", "u2@b.test")
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        loaded = one.load(domain, name)
        one.settle(loaded, loaded.recipients[0], partition.Outcome.DELIVERED)
        one.flush()
    for number in range(8):
        spool.take(f"u{number}@a.test")
    with spool.partition() as one:
        survey = Survey(one, lambda *_: None, Clock())
        while survey.work():
            pass
        assert [r.address for r in one.load(domain, name).recipients] == ["u2@b.test"]


def test_a_small_system_meets_the_targets_of_a_large_one(tmp_path: Path) -> None:
    """10,000 messages, 200 VMTAs: what `make scale` measures with a hundred times as many."""
    table = tmp_path / "table.json"
    command = [sys.executable, "scripts/scale.py", "--dir", str(tmp_path), "--messages", "10000", "--vmtas", "20"]
    command += ["--port", "0", "--json", str(table), "idle", "backlog"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert table.exists(), done.stderr
    rows = {row["what"]: row for row in json.loads(table.read_text())}
    missed = [what for what, row in rows.items() if not row["is_met"] and "idle, private" not in what]
    assert not missed, done.stdout
