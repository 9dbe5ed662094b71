"""Alerts: mail to the operator when a queue enters and leaves back-off, and when a source address is disabled and
enabled, whoever did it. Their processes sleep after a second, but not while an event waits for its mail."""

from __future__ import annotations

import email
import email.policy
import os
import signal
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from spoolmta import state
from spoolmta.spool.layout import Layout
from spoolmta.state import State
from tests.integration.scenario import drop, to
from tests.support.mta import Mta, World

CONFIG = r"""
[vmta.complains.domain."*"]
backoff-notify = ["ops-complains@ops.test", "more-complains@ops.test"]
backoff-to-normal-after = "2s"
[[vmta.complains.response]]
reply = '^451 4\.7\.77'
action = "backoff"

[vmta.disables]
smtp-source-host = ["127.0.0.41", "127.0.0.42"]
[vmta.disables.domain."*"]
disabled-source-ip-notify = ["ops-disables@ops.test"]
backoff-notify = ["nobody@ops.test"]
[[vmta.disables.response]]
reply = '^451 4\.7\.77'
action = "disable-source-ip"
for = "2s"

[vmta.paced.domain."*"]
backoff-notify = ["ops-paced@ops.test"]
[vmta.blocked.domain."*"]
backoff-notify = ["ops-blocked@ops.test"]
[vmta.asleep.domain."*"]
backoff-notify = ["ops-asleep@ops.test"]
[vmta.refused.domain."*"]
backoff-notify = ["550-5.7.1@refuses.test"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    path = tmp_path_factory.mktemp("alerts")
    for folder in ("tmp", "new", "cur"):
        (path / "mail" / folder).mkdir(parents=True)
    with World(path, maildir=str(path / "mail")) as world:
        mta = world.mta(CONFIG, sleep_after="1s", start=False)
        text = mta.config_file.read_text().replace("suppress-local-dsn = true", "suppress-local-dsn = false")
        mta.config_file.write_text(text)
        with mta:
            mta.start()
            yield world, mta


def alerts(world: World, address: str) -> list[EmailMessage]:
    """The mails an operator got."""
    found = []
    for line in world.received():
        if address in line["recipients"]:
            assert line["mail_from"] == ""
            data = (world.path / "mail" / "new" / line["file"]).read_bytes()
            message = email.message_from_bytes(data, policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            found.append(message)
    return found


def words_of(message: EmailMessage) -> str:
    return str(message.get_content()).replace("\r\n", "\n")


def have_leave(mta: Mta, vmta: str) -> None:
    """End the process of a VMTA: what it has gathered is sent then, and not after a minute."""
    os.kill(mta.vmta(vmta)["pid"], signal.SIGTERM)


def test_a_queue_that_enters_and_leaves_back_off_is_told_of(system: tuple[World, Mta]) -> None:
    world, mta = system
    drop(mta, "once-451-4.7.77@slow.test", vmta="complains")
    mta.wait_for(lambda: len(alerts(world, "ops-complains@ops.test")) == 1)
    (entry,) = alerts(world, "ops-complains@ops.test")
    assert entry["subject"] == "slow.test/complains is in back-off"
    assert entry["from"] == "Mail Delivery System <MAILER-DAEMON@mta.test>"
    assert entry["to"] == "ops-complains@ops.test, more-complains@ops.test"
    assert entry["auto-submitted"] == "auto-generated"
    words = words_of(entry)
    assert "the VMTA complains" in words
    assert "451 4.7.77 <once-451-4.7.77@slow.test>: scripted" in " ".join(words.split())
    assert "spoolmta queue mode normal slow.test/complains\n" in words
    assert len(alerts(world, "more-complains@ops.test")) == 1
    mta.wait_for_log("slow.test/complains: normal: its time is over")
    assert len(alerts(world, "ops-complains@ops.test")) == 1
    have_leave(mta, "complains")
    mta.wait_for(lambda: len(alerts(world, "ops-complains@ops.test")) == 2)
    leaving = alerts(world, "ops-complains@ops.test")[1]
    assert leaving["subject"] == "slow.test/complains is back to normal"
    assert "queue mode normal" not in words_of(leaving)
    assert to(mta, "ops-complains@ops.test", "d")[0]["vmta"] == "default"


def test_a_source_address_that_is_disabled_and_enabled_is_told_of(system: tuple[World, Mta]) -> None:
    world, mta = system
    drop(mta, "once-451-4.7.77@picky.test", vmta="disables")
    mta.wait_for(lambda: len(alerts(world, "ops-disables@ops.test")) == 1)
    (row,) = to(mta, "once-451-4.7.77@picky.test", "t")
    (disabled,) = alerts(world, "ops-disables@ops.test")
    assert disabled["subject"] == f"picky.test/disables does not use {row['dlvSourceIp']} any more"
    assert f"spoolmta source enable {row['dlvSourceIp']} picky.test/disables\n" in words_of(disabled)
    mta.wait_for_log(f"source {row['dlvSourceIp']} enabled: its time is over")
    have_leave(mta, "disables")
    mta.wait_for(lambda: len(alerts(world, "ops-disables@ops.test")) == 2)
    enabled = alerts(world, "ops-disables@ops.test")[1]
    assert enabled["subject"] == f"picky.test/disables uses {row['dlvSourceIp']} again"
    assert alerts(world, "nobody@ops.test") == []


def test_what_the_operator_does_while_a_vmta_sleeps_is_told_of_and_its_end_in_time(system: tuple[World, Mta]) -> None:
    world, mta = system
    command = ("queue", "mode", "backoff", "far.test/asleep", "--for", "4s", "--reason", "a test")
    assert mta.command(*command).returncode == 0
    mta.wait_for(lambda: len(alerts(world, "ops-asleep@ops.test")) == 1)
    (entry,) = alerts(world, "ops-asleep@ops.test")
    assert entry["subject"] == "far.test/asleep is in back-off"
    assert "operator " in words_of(entry)
    assert ": a test\n" in words_of(entry)
    mta.wait_for_log("far.test/asleep: normal: its time is over")
    assert mta.vmta("asleep")["state"] == "running"  # until the mail has gone
    have_leave(mta, "asleep")
    mta.wait_for(lambda: len(alerts(world, "ops-asleep@ops.test")) == 2)


def test_nobody_gets_more_than_a_mail_a_minute_also_from_the_next_process(system: tuple[World, Mta]) -> None:
    world, mta = system
    last = time.time() - 50
    state.save(Layout(str(mta.spool)), "paced", State(0.0, {}, alerted={"ops-paced@ops.test": last}))
    for mode in ("backoff", "normal", "backoff"):
        assert mta.command("queue", "mode", mode, "far.test/paced").returncode == 0
    mta.wait_for(lambda: len(alerts(world, "ops-paced@ops.test")) == 1)
    assert time.time() - last >= 60
    (only,) = alerts(world, "ops-paced@ops.test")
    assert only["subject"] == "far.test/paced is in back-off (3 events in all)"
    mta.wait_for(lambda: mta.vmta("paced")["state"] == "asleep")


def test_an_alert_that_cannot_be_written_stops_nothing_and_one_that_is_refused_has_no_report(
    system: tuple[World, Mta],
) -> None:
    world, mta = system
    (mta.spool / "pickup" / ".alert.blocked").mkdir()
    drop(mta, "before@far.test", vmta="blocked")
    for vmta in ("blocked", "refused"):
        assert mta.command("queue", "mode", "backoff", f"far.test/{vmta}").returncode == 0
    mta.wait_for_log("an alert to ops-blocked@ops.test cannot be written: Is a directory")
    drop(mta, "after@far.test", vmta="blocked")
    mta.wait_for(lambda: bool(to(mta, "before@far.test", "d") and to(mta, "after@far.test", "d")))
    mta.wait_for(lambda: bool(to(mta, "550-5.7.1@refuses.test", "b")))
    mta.wait_for(lambda: not mta.entries() and not [*(mta.spool / "pickup").glob("*.eml")])
    assert [row["rcpt"] for row in mta.rows("r") if "MAILER-DAEMON" in row["rcpt"] or row["srcType"] == "dsn"] == []
    assert alerts(world, "ops-blocked@ops.test") == []
    assert mta.audit()["balanced"]


def test_what_is_switched_while_nothing_runs_is_told_of_when_the_process_next_runs(tmp_path: Path) -> None:
    for folder in ("tmp", "new", "cur"):
        (tmp_path / "mail" / folder).mkdir(parents=True)
    with World(tmp_path, maildir=str(tmp_path / "mail")) as world, world.mta(CONFIG) as mta:
        mta.stop()
        assert mta.command("queue", "mode", "backoff", "far.test/asleep").returncode == 0
        assert mta.command("queue", "mode", "normal", "far.test/asleep").returncode == 0
        drop(mta, "user@other.test", vmta="asleep")
        mta.start()
        mta.wait_for(lambda: len(alerts(world, "ops-asleep@ops.test")) == 1)
        (both,) = alerts(world, "ops-asleep@ops.test")
        assert both["subject"] == "far.test/asleep is in back-off (2 events in all)"
        assert "normal: operator " in words_of(both)
