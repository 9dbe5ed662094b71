"""New addresses get little mail first, counted for each site and day, whatever happens to the processes that count."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spoolmta import config
from spoolmta.dealer import Dealer, Dealt
from spoolmta.errors import ConfigError
from spoolmta.spool.layout import prepare
from spoolmta.warming import Hosts
from tests.integration.scenario import drop, free_port
from tests.support.mta import ROOT, Mta, World

ADDRESSES = {"127.0.0.51": "warm", "127.0.0.52": "cold-1", "127.0.0.53": "cold-2", "127.0.0.54": "new"}
ZONES: dict[str, Any] = {
    "one.test": {"MX": ["10 mx1.big.test"]},
    "two.test": {"MX": ["10 mx2.big.test"]},
    "mx1.big.test": {"A": ["127.0.0.2"]},
    "mx2.big.test": {"A": ["127.0.0.2"]},
}
CONFIG = """
[domain."*"]
default-smtp-port = {port}
{route}
[provider.big]
mx = ["*.big.test"]
[vmta.warm]
smtp-source-host = ["127.0.0.51"]
cold-virtual-mta = ["cold-1", "cold-2"]
[vmta.warm.domain."*"]
max-cold-virtual-mta-msg = ["5/day", "7/day"]
[vmta.cold-1]
smtp-source-host = ["127.0.0.52"]
[vmta.cold-2]
smtp-source-host = ["127.0.0.53"]
[vmta.old]
smtp-source-host = ["127.0.0.51"]
[vmta.new]
smtp-source-host = ["127.0.0.54"]
warm-up = {{ start = {today}, plan = [8, 100], overflow = "old" }}
[vmta.new.provider.big]
warm-up = {{ start = {today}, plan = [3, 100], overflow = "old" }}
[pool.both]
virtual-mta = ["new", "old"]
"""


def text(port: int, route: str = "", today: datetime.date | None = None) -> str:
    return CONFIG.format(port=port, route=route, today=today or time.strftime("%Y-%m-%d"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    if time.strftime("%H:%M") >= "23:58":
        pytest.skip("the day ends while the test runs")
    port = free_port("127.0.0.2")
    with World(tmp_path_factory.mktemp("warming"), [f"127.0.0.2:{port}"], ZONES) as world:
        fixed = "".join(
            f'[domain."{name}"]\nsmtp-hosts = ["[127.0.0.2]:{port}"]\n' for name in ("fixed.test", "b.test")
        )
        with world.mta(text(port, fixed), route=False) as mta:
            yield world, mta


def senders(system: tuple[World, Mta], prefix: str, count: int) -> Counter[str]:
    world, mta = system

    def received() -> list[str]:
        found = [one for one in world.received() if one["recipients"][0].startswith(prefix)]
        return [ADDRESSES[one["source"].rpartition(":")[0] or one["source"]] for one in found]

    mta.wait_for(lambda: len(received()) >= count)
    return Counter(received())


def test_the_first_messages_of_a_day_go_to_the_cold_vmtas_in_turn(system: tuple[World, Mta]) -> None:
    _, mta = system
    for number in range(6):
        drop(mta, f"cold{number}@fixed.test", vmta="warm")
    assert senders(system, "cold", 6) == {"cold-1": 3, "cold-2": 3}
    for number in range(6, 20):
        drop(mta, f"cold{number}@fixed.test", vmta="warm")
    assert senders(system, "cold", 20) == {"cold-1": 5, "cold-2": 5, "warm": 10}
    drop(mta, "other@b.test", vmta="warm")
    assert set(senders(system, "other", 1)) <= {"cold-1", "cold-2"}


def test_what_is_over_the_plan_of_a_vmta_goes_to_its_overflow_also_after_a_kill(system: tuple[World, Mta]) -> None:
    _, mta = system
    for number in range(4):
        drop(mta, f"plan{number}@fixed.test", vmta="new")
    assert senders(system, "plan", 4) == {"new": 4}
    mta.kill("pickup")
    mta.wait_for(lambda: mta.status()["pickup"]["pid"] != 0)
    for number in range(4, 20):
        drop(mta, f"plan{number}@fixed.test", vmta="new")
    assert senders(system, "plan", 20) == {"new": 8, "warm": 12}
    mta.stop()
    mta.start()
    drop(mta, "plan-again@fixed.test", vmta="new")
    assert senders(system, "plan", 21)["new"] == 8


def test_the_domains_of_a_provider_share_its_plan(system: tuple[World, Mta]) -> None:
    _, mta = system
    for number in range(5):
        drop(mta, f"big{number}@one.test", vmta="new")
        drop(mta, f"big{number}@two.test", vmta="new")
    assert senders(system, "big", 10) == {"new": 3, "warm": 7}


def test_a_member_of_a_pool_that_has_had_its_plan_is_passed_over(system: tuple[World, Mta]) -> None:
    _, mta = system
    for number in range(24):
        drop(mta, f"pool{number}@b.test", vmta="both")
    assert senders(system, "pool", 24) == {"new": 8, "warm": 16}


# The counting itself, on days that are arguments

TODAY = datetime.date(2026, 12, 1)


def at(day: int, hour: int = 12) -> float:
    return time.mktime((2026, 12, 1 + day, hour, 0, 0, 0, 0, -1))


def dealer(path: Path, hosts: dict[str, Hosts] | None = None) -> Dealer:
    (path / "spool").mkdir(exist_ok=True)
    file = path / "spoolmta.toml"
    fixed = '[domain."fixed.test"]\nsmtp-hosts = ["x.test"]'
    file.write_text('host-name = "a.b"\nspool = { directory = "spool" }\n' + text(25, fixed, TODAY))
    known = (
        {"one.test": frozenset({"mx1.big.test"}), "two.test": frozenset({"mx2.big.test"})} if hosts is None else hosts
    )
    return Dealer(config.load(str(file)), prepare(str(path / "spool")), lambda domain: known.get(domain))


def count(one: Dealer, name: str, domain: str, now: float, messages: int = 30) -> Counter[str]:
    return Counter(one.deal(name, [domain], now).vmta for _ in range(messages))


def test_counts_begin_anew_at_local_midnight_and_plans_go_on(tmp_path: Path) -> None:
    one = dealer(tmp_path)
    assert count(one, "new", "fixed.test", at(-1)) == {"old": 30}
    assert count(one, "new", "fixed.test", at(0, 0)) == {"new": 8, "old": 22}
    assert count(one, "new", "fixed.test", at(0, 23)) == {"old": 30}
    assert count(one, "new", "fixed.test", at(1, 0), 150) == {"new": 100, "old": 50}
    assert count(one, "new", "fixed.test", at(2), 150) == {"new": 150}
    assert count(one, "warm", "fixed.test", at(0)) == {"cold-1": 5, "cold-2": 5, "warm": 20}
    assert count(one, "warm", "fixed.test", at(1)) == {"cold-1": 7, "cold-2": 7, "warm": 16}
    assert count(one, "warm", "fixed.test", at(9)) == {"cold-1": 7, "cold-2": 7, "warm": 16}


def test_a_message_counts_for_all_its_domains_and_goes_where_all_have_room(tmp_path: Path) -> None:
    one = dealer(tmp_path)
    assert count(one, "new", "one.test", at(0), 3) == {"new": 3}
    assert one.deal("new", ["fixed.test", "two.test"], at(0)).vmta == "old"
    assert count(one, "new", "fixed.test", at(0)) == {"new": 8, "old": 22}


def test_what_was_not_taken_in_does_not_count(tmp_path: Path) -> None:
    one = dealer(tmp_path)
    dealt = [one.deal("new", ["fixed.test"], at(0)) for _ in range(8)]
    one.take_back(dealt[0], at(0))
    assert count(one, "new", "fixed.test", at(0), 2) == {"new": 1, "old": 1}
    assert one.deal("old", ["fixed.test"], at(0)) == Dealt("old")


def test_while_dns_does_not_answer_the_new_address_gets_nothing(tmp_path: Path) -> None:
    one = dealer(tmp_path, {"one.test": None})
    assert count(one, "new", "one.test", at(0)) == {"old": 30}
    assert count(one, "warm", "one.test", at(0)) == {"warm": 30}
    assert count(one, "new", "one.test", at(5)) == {"new": 30}


DEAL = """
import sys
from pathlib import Path
from tests.integration.test_addresses_warm_up import at, count, dealer
print("ready", flush=True)
sys.stdin.readline()
print(count(dealer(Path(sys.argv[1])), "new", "fixed.test", at(1), 90)["new"])
print(count(dealer(Path(sys.argv[1])), "both", "b.test", at(5), 30)["new"])
"""


def test_processes_that_deal_together_keep_to_plans_and_shares_exactly(tmp_path: Path) -> None:
    dealer(tmp_path)
    command = [sys.executable, "-c", DEAL, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    found = [process.communicate("\n", timeout=60)[0].split() for process in processes]
    assert sum(int(new) for new, _ in found) == 100
    assert sum(int(member) for _, member in found) == 30


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ('warm-up = { start = "2026-12-01", plan = [1], overflow = "b" }', "start is a date without quotes"),
        ('warm-up = { start = 2026-12-01T10:00:00, plan = [1], overflow = "b" }', "start is a date without quotes"),
        ('warm-up = { start = 2026-12-01, plan = [], overflow = "b" }', "plan is a list of up to 400 numbers"),
        ('warm-up = { start = 2026-12-01, plan = [-1], overflow = "b" }', "expected a whole number"),
        ("warm-up = { start = 2026-12-01, plan = [1] }", "expected start, plan and overflow"),
        ('warm-up = { start = 2026-12-01, plan = [1], overflow = "c" }', 'overflow: there is no VMTA "c"'),
        ('warm-up = { start = 2026-12-01, plan = [1], overflow = "a" }', 'what is over "a" would come back to it'),
        ('cold-virtual-mta = ["c"]', 'there is no VMTA "c"'),
        ('cold-virtual-mta = ["a"]', "a VMTA cannot be its own cold one"),
        ('[vmta.a.domain."*"]\nmax-cold-virtual-mta-msg = "5/h"', 'messages a day, like "50/day"'),
        ('[domain."*"]\nwarm-up = { start = 2026-12-01, plan = [1], overflow = "b" }', "a plan is for one VMTA"),
        (
            'warm-up = { start = 2026-12-01, plan = [1], overflow = "b" }\n'
            '[vmta.b.domain."x.test"]\nwarm-up = { start = 2026-12-01, plan = [1], overflow = "a" }',
            'what is over "b" would come back to it from "a"',
        ),
    ],
)
def test_a_plan_that_cannot_be_obeyed_is_an_error_with_its_line(tmp_path: Path, more: str, problem: str) -> None:
    file = tmp_path / "spoolmta.toml"
    file.write_text(f'host-name = "a.b"\nspool = {{ directory = "spool" }}\n[vmta.b]\n[vmta.a]\n{more}\n')
    with pytest.raises(ConfigError) as caught:
        config.load(str(file))
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{file}:")
