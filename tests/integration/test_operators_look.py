"""What an operator is told: figures by VMTA, domain and job, and what would become of a message and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.scenario import drop
from tests.support.mta import Mta, World

CONFIG = """
[vmta.news]
smtp-source-host = ["127.0.0.21"]
[vmta.news.domain."one.test"]
max-smtp-out = 2
[vmta.other]
[provider.big]
mx = ["*.big.test"]
max-smtp-out = 7
backoff-max-smtp-out = 3
[domain."*"]
max-msg-rate = "500/h"
retry-recipients-after = "1h"
[source.narrow]
pickup = "narrow"
allowed-virtual-mta = ["other"]
default-virtual-mta = "other"
[source.deaf]
pickup = "deaf"
process-x-virtual-mta = false
default-virtual-mta = "other"
"""

ZONES: dict[str, Any] = {
    "one.test": {"MX": ["10 mx.big.test"]},
    "two.test": {"MX": ["10 mx.big.test"]},
    "mx.big.test": {"A": ["127.0.0.2"]},
}


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    """A system in which everything waits: queues are paused from the start."""
    with World(tmp_path_factory.mktemp("look"), zones=ZONES) as world:
        mta = world.mta(CONFIG, route=False)
        for folder in ("narrow", "deaf"):
            (mta.path / folder).mkdir(parents=True, exist_ok=True)
        with mta:
            assert mta.command("queue", "pause", "*/*", "--reason", "not yet").returncode == 0
            drop(mta, "a@one.test", "b@two.test", vmta="news", job="autumn")
            drop(mta, "c@one.test", vmta="news", job="winter")
            drop(mta, "d@one.test", vmta="other")
            mta.wait_for(lambda: {one["ready"] for one in answer(mta, "vmta", "news")} == {3})
            yield mta


def answer(mta: Mta, *arguments: str) -> Any:
    result = mta.command(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def eml(mta: Mta, *recipients: str, **message: Any) -> str:
    path = mta.path / "explained.eml"
    path.write_bytes(mta.message(*recipients, **message))
    return str(path)


def test_vmta_shows_mail_and_queues_of_each(mta: Mta) -> None:
    rows = {row["vmta"]: row for row in answer(mta, "vmta")}
    assert (rows["news"]["messages"], rows["news"]["recipients"], rows["news"]["queues"]) == (3, 3, 1)
    assert (rows["news"]["state"], rows["news"]["paused"], rows["news"]["sessions"]) == ("running", 1, 0)
    assert rows["default"]["messages"] == 0
    (queue,) = answer(mta, "vmta", "news")
    assert (queue["queue"], queue["held_by"], queue["paused"]) == ("big.rollup/news", "pause", True)
    assert queue["domains"] == ["one.test", "two.test"]
    assert mta.command("vmta", "nobody").returncode == 65


def test_domain_shows_mail_by_domain_and_the_queues_it_is_in(mta: Mta) -> None:
    rows = {row["domain"]: row for row in answer(mta, "domain")}
    assert (rows["one.test"]["messages"], rows["one.test"]["vmtas"]) == (3, ["news", "other"])
    assert rows["two.test"]["messages"] == 1
    assert [row["queue"] for row in answer(mta, "domain", "TWO.test")] == ["big.rollup/news"]


def test_job_shows_mail_by_job(mta: Mta) -> None:
    rows = {row["job"]: row["messages"] for row in answer(mta, "job")}
    assert rows == {"autumn": 2, "winter": 1, "": 1}
    assert [row["queue"] for row in answer(mta, "job", "autumn")] == ["one.test/news", "two.test/news"]


def test_explain_says_which_vmta_and_every_rule_that_was_tried(mta: Mta) -> None:
    asks = eml(mta, "x@one.test", vmta="NEWS")
    told = answer(mta, "explain", asks, "--mx", "mx.big.test")
    assert told["vmta"] == "news"
    assert [reason["rule"] for reason in told["why"]] == [
        "x-virtual-mta",
        "source.pickup.allowed-virtual-mta",
        "x-virtual-mta",
    ]
    assert told["why"][-1]["says"] == 'gives "news", priority 50'
    told = answer(mta, "explain", asks, "--source", "narrow")
    assert (told["vmta"], "domains" in told) == ("", False)
    assert 'the source "narrow" does not allow' in told["refused"]
    told = answer(mta, "explain", asks, "--source", "deaf", "--mx", "mx.big.test")
    assert told["vmta"] == "other"
    assert [reason["rule"] for reason in told["why"]] == [
        "source.deaf.process-x-virtual-mta",
        "default-virtual-mta of the source deaf",
    ]


def test_explain_looks_the_queue_up_and_tells_where_each_limit_stands(mta: Mta) -> None:
    told = answer(mta, "explain", eml(mta, "x@one.test", "y@one.test", "z@two.test", vmta="news"))
    one, two = told["domains"]
    assert (one["domain"], one["recipients"]) == ("one.test", ["x@one.test", "y@one.test"])
    assert one["queue"] == two["queue"] == "big.rollup/news"
    assert one["hosts"] == ["mx.big.test"]
    lines = mta.config_file.read_text().splitlines()
    limits = {limit["directive"]: limit for limit in one["limits"]}
    assert limits["max-smtp-out"]["value"] == "2"
    assert limits["max-smtp-out"]["where"] == f"{mta.config_file}:{lines.index('max-smtp-out = 2') + 1}"
    assert limits["connect-timeout"]["where"] == "default"
    assert {limit["value"] for limit in one["limits_of_the_queue"] if limit["directive"] == "max-smtp-out"} == {"7"}
    limits = {limit["directive"]: limit for limit in two["limits"]}
    assert limits["max-smtp-out"]["where"].endswith(f":{lines.index('max-smtp-out = 7') + 1}")
    assert one["paused"] is True
    assert one["when"].startswith("when somebody resumes the queue (paused by operator ")
    assert "not yet" in one["when"]
    assert len(mta.entries()) == 4


def test_explain_takes_a_domain_and_a_vmta_and_hosts_instead_of_a_name_server(mta: Mta) -> None:
    (told,) = answer(mta, "explain", "--domain", "new.test", "--vmta", "other", "--mx", "mx7.big.test")["domains"]
    assert (told["queue"], told["hosts"], told["paused"]) == ("big.rollup/other", ["mx7.big.test"], True)
    (told,) = answer(mta, "explain", "--domain", "nowhere.test", "--vmta", "other")["domains"]
    assert told["hosts"] == []
    assert told["when"].startswith("when its mail hosts are known: ")
    text = mta.command("explain", "--domain", "one.test", "--vmta", "news").stdout
    assert "limit: max-smtp-out = 2 (" in text
    assert "connect-timeout" not in text
    assert "connect-timeout" in mta.command("explain", "--domain", "one.test", "--vmta", "news", "--all").stdout


def test_explain_wants_a_message_or_a_domain_with_its_vmta(mta: Mta) -> None:
    for arguments in ((), ("--domain", "one.test"), ("x.eml", "--domain", "one.test", "--vmta", "news")):
        result = mta.command("explain", *arguments)
        assert (result.returncode, len(result.stderr.splitlines())) == (64, 1)
    assert mta.command("explain", "--domain", "one.test", "--vmta", "nobody").returncode == 65
    assert mta.command("explain", str(Path("/none.eml"))).returncode == 69
