"""Response rules and back-off at work: a VMTA with an address of its own for each action, all at once.

Each VMTA is first sent one message whose refusal fires its rule, then the mail that shows what has changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.scenario import drop, to
from tests.support.mta import Mta, World

RULE = """
[[vmta.{vmta}.response]]
reply = '{reply}'
action = {action}
{more}
"""
BACKS_OFF: dict[str, str] = {
    "rate": 'backoff-max-msg-rate = "5/5s"',
    "connects": 'backoff-max-connect-rate = "3/5s"\nmax-msg-per-connection = 1',
    "volume": 'backoff-max-data-volume-rate = "10k/5s"',
    "connections": "backoff-max-smtp-out = 1",
    "for-a-time": 'backoff-max-msg-rate = "1/1h"\nbackoff-to-normal-after = "3s"',
    "until-delivery": 'backoff-max-msg-rate = "1/1h"\nbackoff-to-normal-after-delivery = true',
    "recovers": 'backoff-max-smtp-out = 1\nmax-smtp-out = 4\nbackoff-to-normal-after = "1s"\n'
    'backoff-recovery-interval = "1s"',
    "retries": 'backoff-retry-after = "3s"\nretry-after = "10m"',
}
OTHERS: dict[str, tuple[str, str, str]] = {
    "disables": ('"disable-source-ip"', 'for = "4s"', ""),
    "re-enables": (
        '"disable-source-ip"',
        "",
        'reenable-source-ip-after = "3s"\nbackoff-upon-all-sources-disabled = true',
    ),
    "pauses": ('"pause"', 'for = "3s"', ""),
    "defers": ('"defer-queue"', 'for = "3s"', ""),
    "sets": ('"set"', 'for = "1h"\nset = { max-msg-rate = "5/5s" }', ""),
    "bounces": ('"bounce-queue"', "", "max-smtp-out = 1"),
    "bounces-recipient": ('"bounce-rcpt"', "", 'retry-recipients-after = "1h"'),
    "counts": ('"pause"', 'for = "3s"\ntrigger = "3/1m"', 'retry-recipients-after = "1h"'),
    "shares": ('"pause"', 'for = "3s"\ntrigger = "50% of 4/1m"', 'retry-recipients-after = "1h"'),
    "elsewhere": (
        '"pause"',
        'for = "1h"\nstage = ["mail", "eod"]\nname = "elsewhere"',
        'retry-recipients-after = "1h"',
    ),
}
FIRST = "once-451-4.7.77"
LARGE = "x" * 70 + ("\r\n" + "y" * 70) * 27


def configuration(world: World) -> str:
    text = ""
    first, second = world.sinks
    for number, vmta in enumerate([*BACKS_OFF, *OTHERS, "skips"]):
        sources = [f'"127.0.0.{40 + number}"'] + (['"127.0.0.80"'] if vmta == "disables" else [])
        text += f"[vmta.{vmta}]\nsmtp-source-host = [{', '.join(sources)}]\n"
        directives = BACKS_OFF.get(vmta) or OTHERS.get(vmta, ("", "", ""))[2]
        if vmta == "skips":
            host, other = (address.rpartition(":") for address in (first, second))
            directives = f'smtp-hosts = ["[{host[0]}]:{host[2]}", ["[{other[0]}]:{other[2]}"]]'
        text += f'[vmta.{vmta}.domain."*"]\n{directives}\n'
        action, more, _ = OTHERS.get(vmta, ('"backoff"', "", ""))
        action = '"skip-mx"' if vmta == "skips" else action
        text += RULE.format(vmta=vmta, reply=r"^[45]5[014] 4\.7\.77", action=action, more=more)
    return text


def source_of(vmta: str) -> str:
    return f"127.0.0.{40 + [*BACKS_OFF, *OTHERS].index(vmta)}"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    path = tmp_path_factory.mktemp("responses")
    with World(path, ["127.0.0.2:0", "127.0.0.3:0"]) as world, world.mta(configuration(world)) as mta:
        for vmta in [*BACKS_OFF, *OTHERS]:
            drop(mta, f"{FIRST}@{vmta}.test", vmta=vmta)
        for vmta in [*BACKS_OFF, *OTHERS]:
            mta.wait_for(lambda vmta=vmta: bool(to(mta, f"{FIRST}@{vmta}.test")))
        yield world, mta


def sent(world: World, domain: str) -> list[float]:
    found: list[dict[str, Any]] = world.received()
    return sorted(
        record["time"]
        for record in found
        if record["recipients"][0].endswith(f"@{domain}") and not record["recipients"][0].startswith("once-")
    )


def send(system: tuple[World, Mta], vmta: str, count: int, script: str = "", **message: Any) -> list[float]:
    """Drop so many messages; when the sink took them, once it has."""
    world, mta = system
    before = len(sent(world, f"{vmta}.test"))
    for number in range(count):
        drop(mta, f"{script}+{number}@{vmta}.test", vmta=vmta, **message)
    mta.wait_for(lambda: len(sent(world, f"{vmta}.test")) >= before + count)
    return sent(world, f"{vmta}.test")[before:]


def assert_rate(found: list[float], most: int, period: float) -> None:
    """The sink's clock is read a little after ours decided: a window a little shorter is what both agree on."""
    assert all(later - earlier >= period - 0.3 for earlier, later in zip(found, found[most:], strict=False))
    assert len(found) > most


@pytest.mark.parametrize(("vmta", "most"), [("rate", 5), ("connects", 3), ("sets", 5)])
def test_a_rate_of_back_off_or_of_a_rule_holds(system: tuple[World, Mta], vmta: str, most: int) -> None:
    assert_rate(send(system, vmta, most + 3), most, 5.0)


def test_a_volume_of_back_off_holds(system: tuple[World, Mta]) -> None:
    assert_rate(send(system, "volume", 8, body=LARGE), 5, 5.0)


def test_in_back_off_there_are_no_more_connections_than_it_allows(system: tuple[World, Mta]) -> None:
    """Each message takes the sink 0.1 s, so with one connection there is that much between any two. (How many it sees
    at a time says less: one that we have closed it may see for a moment beside the next.)"""
    found = send(system, "connections", 6, "slow-dot-100ms")
    assert all(later - earlier > 0.09 for earlier, later in itertools.pairwise(found))


@pytest.mark.parametrize("vmta", ["for-a-time", "until-delivery"])
def test_back_off_ends_with_its_time_or_with_a_delivery(system: tuple[World, Mta], vmta: str) -> None:
    send(system, vmta, 5)
    why = "its time is over" if vmta == "for-a-time" else "a message was delivered"
    system[1].wait_for_log(rf"{vmta}.test/{vmta}: normal: {why}")


def test_a_recovery_climbs_to_the_normal_limits(system: tuple[World, Mta]) -> None:
    send(system, "recovers", 12, "slow-dot-400ms")
    system[1].wait_for_log(r"recovers.test/recovers: recovering: its time is over")
    system[1].wait_for_log(r"recovers.test/recovers: normal: recovered")


def test_a_queue_in_back_off_retries_by_its_own_schedule(system: tuple[World, Mta]) -> None:
    _, mta = system
    before = len(mta.rows("t"))
    drop(mta, "reset-at-rcpt@retries.test", vmta="retries")
    mta.wait_for(lambda: len(to(mta, "reset-at-rcpt@retries.test", "t")) >= 2)
    assert len(mta.rows("t")) > before


def test_a_disabled_address_is_not_used_for_its_time(system: tuple[World, Mta]) -> None:
    world, mta = system
    drop(mta, f"{FIRST}+now@disables.test", vmta="disables")
    mta.wait_for(lambda: bool(to(mta, f"{FIRST}+now@disables.test", "t")))
    (row,) = to(mta, f"{FIRST}+now@disables.test", "t")
    mta.wait_for_log(rf"disables.test/disables: source {row['dlvSourceIp']} disabled: \S+:\d+: 451 4.7.77")
    send(system, "disables", 4)
    used = {one["source"] for one in world.received() if one["recipients"][0].startswith("+")
            and one["recipients"][0].endswith("@disables.test")}  # fmt: skip
    assert used == {source_of("disables"), "127.0.0.80"} - {row["dlvSourceIp"]}
    mta.wait_for_log(rf"source {row['dlvSourceIp']} enabled: its time is over")


def test_without_any_address_the_queue_waits_in_back_off_until_one_is_enabled(system: tuple[World, Mta]) -> None:
    send(system, "re-enables", 2)
    system[1].wait_for_log(r"re-enables.test/re-enables: backoff: all source addresses are disabled")
    system[1].wait_for_log(r"re-enables.test/re-enables: source \S+ enabled: its time is over")


@pytest.mark.parametrize("vmta", ["pauses", "defers"])
def test_a_paused_or_deferred_queue_waits_and_goes_on(system: tuple[World, Mta], vmta: str) -> None:
    world, mta = system
    before = len(sent(world, f"{vmta}.test"))
    drop(mta, f"{FIRST}+again@{vmta}.test", vmta=vmta)
    mta.wait_for(lambda: bool(to(mta, f"{FIRST}+again@{vmta}.test", "t")))
    found = send(system, vmta, 2)
    assert before == 0
    assert len(found) == 2
    if vmta == "pauses":
        mta.wait_for_log(r"pauses.test/pauses: resumed: its time is over")


def test_a_rule_that_counts_fires_at_its_count(system: tuple[World, Mta]) -> None:
    _, mta = system
    send(system, "counts", 1)
    for word in ("b", "c"):
        assert "counts.test/counts: paused" not in mta.log()
        drop(mta, f"451-4.7.77+{word}@counts.test", vmta="counts")
        mta.wait_for(lambda word=word: bool(to(mta, f"451-4.7.77+{word}@counts.test", "t")))
    mta.wait_for_log(r"counts.test/counts: paused: \S+: 451 4.7.77 .* \(3 in 60 s\)")
    send(system, "counts", 1)


def test_a_rule_with_a_share_fires_at_its_share(system: tuple[World, Mta]) -> None:
    _, mta = system
    send(system, "shares", 2)
    assert "shares.test/shares: paused" not in mta.log()
    drop(mta, "451-4.7.77+b@shares.test", vmta="shares")
    mta.wait_for_log(r"shares.test/shares: paused: \S+: 451 4.7.77 .* \(2 of 4 in 60 s\)")


def test_a_rule_for_another_stage_does_not_fire(system: tuple[World, Mta]) -> None:
    send(system, "elsewhere", 2)
    assert "elsewhere.test/elsewhere: paused" not in system[1].log()


def test_a_rule_may_bounce_a_recipient_that_was_refused_for_the_time_being(system: tuple[World, Mta]) -> None:
    _, mta = system
    (row,) = to(mta, f"{FIRST}@bounces-recipient.test")
    assert (row["type"], row["dsnDiag"][:13]) == ("b", "smtp;451 4.7.")


def test_a_rule_may_bounce_all_that_waits_and_keeps_the_reply(system: tuple[World, Mta]) -> None:
    _, mta = system
    drop(mta, "slow-5s@bounces.test", "451-4.7.77+late@bounces.test", vmta="bounces")
    mta.wait_for(lambda: bool(to(mta, "451-4.7.77+late@bounces.test", "r")))  # it is first; the others wait behind it
    for number in range(5):
        drop(mta, f"{number}@bounces.test", vmta="bounces")
    mta.wait_for(lambda: all(to(mta, f"{number}@bounces.test", "b") for number in range(5)))
    rows = [row for number in range(5) for row in to(mta, f"{number}@bounces.test")]
    assert all("451 4.7.77 <451-4.7.77+late@bounces.test>" in row["dsnDiag"] for row in rows)
    assert [row["type"] for row in to(mta, "slow-5s@bounces.test")] == ["d"]
    mta.wait_for_log(r"bounces.test/bounces: 5 messages bounced")


def test_a_host_may_be_skipped_and_the_next_one_takes_the_message(system: tuple[World, Mta]) -> None:
    world, mta = system
    drop(mta, "once-554-4.7.77@skips.test", vmta="skips")
    mta.wait_for(lambda: bool(to(mta, "once-554-4.7.77@skips.test", "d")))
    (record,) = [one for one in world.received() if one["recipients"] == ["once-554-4.7.77@skips.test"]]
    assert record["listening"] == world.sinks[1]
    assert to(mta, "once-554-4.7.77@skips.test", "b") == []


def test_nothing_was_lost(system: tuple[World, Mta]) -> None:
    assert system[1].audit()["balanced"]
