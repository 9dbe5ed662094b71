"""What one connection does, directive by directive: one running system, a receiver for each manner, all at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.scenario import drop, free_port, from_source, queue_rows, received_by, to
from tests.support.mta import Mta, World
from tests.support.scripted import Scripted, Talk

PASSWORD = "open-sesame-47"

CONFIG = """
[domain."*"]
smtp-hosts = ["[127.0.0.2]:{main}"]
default-smtp-port = {main}
retry-after = "1h"
retry-recipients-after = "1h"
connection-idle-timeout = "2s"
max-smtp-out = 1

[vmta.errors]
smtp-source-host = ["127.0.0.41"]
[domain."errors.test"]
max-errors-per-connection = 2
max-rcpt-per-transaction = 1
[domain."few-attempts.test"]
smtp-hosts = ["[127.0.0.2]:{dead}", ["[127.0.0.4]:{dead}", "[127.0.0.2]:{main}"]]
mx-connection-attempts = 1
[domain."more-attempts.test"]
smtp-hosts = ["[127.0.0.2]:{dead}", ["[127.0.0.4]:{dead}"], ["[127.0.0.2]:{main}"]]
mx-connection-attempts = 3
[domain."endless.test"]
smtp-hosts = ["[127.0.0.2]:{endless}"]
smtp-multiple-line-response-timeout = "1s"
[domain."silent-dot.test"]
data-send-timeout = "1s"
smtp-data-termination-timeout = "1s"
[domain."assumed.test"]
data-send-timeout = "1s"
smtp-data-termination-timeout = "1s"
assume-delivery-upon-data-termination-timeout = true
[domain."two-hosts.test"]
smtp-hosts = ["[127.0.0.2]:{mute}", ["[127.0.0.2]:{main}"]]
data-send-timeout = "1s"
smtp-data-termination-timeout = "1s"
[domain."stalled.test"]
smtp-hosts = ["[127.0.0.2]:{stalled}"]
data-send-timeout = "1s"
[domain."dns-soon.test"]
smtp-hosts = []
retry-after-dns-error = "1s"
[domain."dns-late.test"]
smtp-hosts = []
[domain."no-mx.test"]
smtp-hosts = []
bounce-upon-no-mx = true
[domain."own-address.test"]
smtp-hosts = []
[domain."greeting-bounces.test"]
smtp-hosts = ["[127.0.0.2]:{refusing}"]
bounce-upon-5xx-greeting = true
[domain."greeting-waits.test"]
smtp-hosts = ["[127.0.0.2]:{refusing}"]
[domain."crowd.test"]
smtp-hosts = ["[127.0.0.2]:{refusing}"]
bounce-upon-5xx-greeting = true
max-rcpt-per-transaction = 1
[domain."transfer.test"]
bounce-upon-transfer-failure = true
[domain."no-553.test"]
smtp-553-means-invalid-mailbox = false
[domain."next-mx.test"]
smtp-hosts = ["[127.0.0.2]:{says421}", ["{second}"]]
retry-recipients-after = "1s"
retry-after = "1s"
[domain."same-session.test"]
smtp-hosts = ["[127.0.0.2]:{once421}"]
smtp-421-means-mx-unavailable = false
[domain."hidden-421.test"]
replace-smtp-421-service-response = true
[domain."seven.test"]
ignore-8bitmime = true
[domain."no-chunks.test"]
ignore-chunking = true
[domain."commands.test"]
smtp-hosts = ["[127.0.0.2]:{commands}"]
[domain."plain-commands.test"]
smtp-hosts = ["[127.0.0.2]:{plain_commands}"]
ignore-pipelining = true
ignore-dsn = true
[domain."few.test"]
smtp-hosts = ["[127.0.0.2]:{few}"]
[domain."limits.test"]
smtp-hosts = ["[127.0.0.2]:{limits}"]
[domain."small.test"]
smtp-hosts = ["[127.0.0.2]:{small}"]
[domain."login.test"]
smtp-hosts = ["[127.0.0.2]:{cram}"]
auth-username = "user"
auth-password = "{password}"
[domain."bad-login.test"]
smtp-hosts = ["[127.0.0.2]:{cram}"]
auth-username = "user"
auth-password = "{password}-wrong"
[domain."shown.test"]
smtp-hosts = ["[127.0.0.2]:{plain}"]
auth-username = "user"
auth-password = "{password}"
use-unencrypted-plain-auth = true
[domain."not-shown.test"]
smtp-hosts = ["[127.0.0.2]:{plain}"]
auth-username = "user"
auth-password = "{password}"
"""

ZONES: dict[str, Any] = {
    "dns-soon.test": "SERVFAIL",
    "dns-late.test": "SERVFAIL",
    "no-mx.test": {"A": ["127.0.0.2"]},
    "own-address.test": {"A": ["127.0.0.2"]},
    "loop.test": {"MX": ["10 back.loop.test"]},
    "back.loop.test": {"A": ["127.0.0.2"]},
    "named.test": {"MX": ["10 MTA.test"]},
}


def endless(talk: Talk) -> None:
    while True:
        talk.say("220-more")
        time.sleep(0.2)


def stalled(talk: Talk) -> None:
    talk.hello("PIPELINING")
    while talk.line() != "DATA":
        pass
    talk.say("250 ok", "250 ok", "354 go")
    time.sleep(20)


def mute_at_the_dot(talk: Talk) -> None:
    talk.hello()
    for reply in ("250 ok", "250 ok", "354 go"):
        talk.line()
        talk.say(reply)
    talk.body()
    talk.line()


def says_421(talk: Talk) -> None:
    talk.hello()
    talk.line()
    talk.say("421 4.3.2 shutting down")


def once_421(talk: Talk) -> None:
    talk.hello()
    talk.line()
    talk.say("421 4.3.2 not this one")
    talk.accept()


def commands(talk: Talk) -> None:
    talk.hello("PIPELINING", "DSN")
    talk.accept()


class Running(NamedTuple):
    world: World
    mta: Mta
    worlds: dict[str, World]
    scripted: dict[str, Scripted]
    maildir: Path


def submit(mta: Mta) -> None:
    drop(mta, *(f"550+{number}@errors.test" for number in range(5)), vmta="errors")
    for name in (
        "few-attempts",
        "more-attempts",
        "endless",
        "two-hosts",
        "next-mx",
        "no-mx",
        "own-address",
        "dns-soon",
    ):
        drop(mta, f"user@{name}.test")
    for name in ("dns-late", "greeting-waits", "no-chunks", "chunks", "login", "bad-login", "shown", "not-shown"):
        drop(mta, f"user@{name}.test")
    for name in ("silent-dot", "assumed"):
        drop(mta, f"silent-at-dot@{name}.test")
    for number in range(3):
        drop(mta, f"user{number}@greeting-bounces.test")
        drop(mta, f"user{number}@same-session.test")
    for name in ("transfer", "no-transfer"):
        drop(mta, f"drop-at-dot@{name}.test")
    for name in ("with-553", "no-553"):
        drop(mta, f"553@{name}.test")
    for name in ("hidden-421", "shown-421"):
        drop(mta, f"421@{name}.test")
    for name in ("seven", "eight"):
        drop(mta, f"user@{name}.test", body="Grüße an alle zusammen\n", test_id=name)
    for name in ("commands", "plain-commands"):
        drop(mta, f"user@{name}.test NOTIFY=NEVER")
    drop(mta, *(f"{number}@few.test" for number in range(8)), "550@few.test")
    drop(mta, *(f"{number}@limits.test" for number in range(7)))
    drop(mta, *(f"{number}@crowd.test" for number in range(1500)))
    drop(mta, "user@small.test", body="x" * 3000)
    drop(mta, "ü@small.test")
    drop(mta, "user@stalled.test", body="x" * 70 + "\n" * 20_000_000)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("wire")
    maildir = path / "maildir"
    with ExitStack() as stack:
        main = stack.enter_context(
            World(path, ["127.0.0.2:0", "127.0.0.3:0"], ZONES, chunking=True, maildir=str(maildir))
        )
        worlds = {
            name: stack.enter_context(World(path / name, **options))
            for name, options in {
                "refusing": {"greeting": 554},
                "few": {"max_recipients": 3},
                "limits": {"limits": "RCPTMAX=2 MAILMAX=3"},
                "small": {"max_size": 2000, "smtputf8": False},
                "cram": {"auth": "CRAM-MD5 PLAIN", "login": f"user:{PASSWORD}"},
                "plain": {"auth": "PLAIN LOGIN", "login": f"user:{PASSWORD}"},
            }.items()
        }
        scripted = {
            "endless": stack.enter_context(Scripted(endless)),
            "stalled": stack.enter_context(Scripted(stalled, receive_buffer=4096)),
            "mute": stack.enter_context(Scripted(mute_at_the_dot)),
            "says421": stack.enter_context(Scripted(says_421)),
            "once421": stack.enter_context(Scripted(once_421)),
            "commands": stack.enter_context(Scripted(commands)),
            "plain_commands": stack.enter_context(Scripted(commands)),
        }
        ports = {name: server.port for name, server in scripted.items()}
        ports |= {name: world.port for name, world in worlds.items()}
        ports |= {"main": main.port, "dead": free_port("127.0.0.2", "127.0.0.4")}
        second = main.sinks[1].replace("127.0.0.3", "[127.0.0.3]")
        config = CONFIG.format(second=second, password=PASSWORD, **ports)
        mta = stack.enter_context(main.mta(config, route=False, start=False))
        submit(mta)
        mta.start()
        yield Running(main, mta, worlds, scripted, maildir)


def the_row(system: Running, recipient: str) -> dict[str, str]:
    system.mta.wait_for(lambda: to(system.mta, recipient) != [])
    return to(system.mta, recipient)[0]


def the_queue_row(system: Running, domain: str) -> dict[str, str]:
    system.mta.wait_for(lambda: queue_rows(system.mta, domain) != [])
    return queue_rows(system.mta, domain)[0]


def test_a_connection_ends_after_max_errors_per_connection_and_the_rest_goes_at_once(system: Running) -> None:
    system.mta.wait_for(lambda: len(system.mta.rows("b")) >= 5 and len(to(system.mta, "550+4@errors.test")) == 1)
    rows = [to(system.mta, f"550+{number}@errors.test") for number in range(5)]
    assert [[row["type"] for row in rows_] for rows_ in rows] == [["b"]] * 5
    assert from_source(system.world, "127.0.0.41")["connections"] == 3


def test_no_more_than_mx_connection_attempts_are_made_for_a_session(system: Running) -> None:
    assert the_row(system, "user@more-attempts.test")["type"] == "d"
    assert "refused" in the_queue_row(system, "few-attempts.test")["dsnDiag"].lower()
    assert to(system.mta, "user@few-attempts.test") == []


def test_a_reply_without_an_end_is_left_after_smtp_multiple_line_response_timeout(system: Running) -> None:
    assert "no answer in time (greeting)" in the_queue_row(system, "endless.test")["dsnDiag"]


def test_silence_after_the_dot_is_a_delivery_only_where_it_is_assumed_to_be_one(system: Running) -> None:
    row = the_row(system, "silent-at-dot@assumed.test")
    assert (row["type"], row["dsnAction"], row["dsnStatus"].split()[0]) == ("d", "relayed", "2.0.0")
    assert "no answer in time" in row["dsnDiag"]
    row = the_row(system, "silent-at-dot@silent-dot.test")
    assert row["type"] == "t"
    assert "possible duplicate" in row["dsnDiag"]


def test_silence_after_the_dot_does_not_send_the_message_to_the_next_host(system: Running) -> None:
    row = the_row(system, "user@two-hosts.test")
    assert row["type"] == "t"
    assert "possible duplicate" in row["dsnDiag"]
    assert received_by(system.world, "two-hosts.test") == []
    assert len(system.scripted["mute"].talks) == 1


def test_a_receiver_that_stops_reading_is_left_after_data_send_timeout(system: Running) -> None:
    row = the_row(system, "user@stalled.test")
    assert row["type"] == "t"
    assert "no answer in time (end of data)" in row["dsnDiag"]
    assert "possible duplicate" not in row["dsnDiag"]


def test_a_failed_look_up_is_made_again_after_retry_after_dns_error(system: Running) -> None:
    system.mta.wait_for(lambda: len(queue_rows(system.mta, "dns-soon.test")) >= 2)
    assert len(queue_rows(system.mta, "dns-late.test")) == 1
    assert to(system.mta, "user@dns-late.test") == []


def test_a_domain_without_mx_bounces_only_where_bounce_upon_no_mx_says_so(system: Running) -> None:
    row = the_row(system, "user@no-mx.test")
    assert (row["type"], row["dsnStatus"].split()[0]) == ("b", "5.4.4")
    assert the_row(system, "user@own-address.test")["type"] == "d"


def test_a_5xx_greeting_bounces_the_queue_only_where_bounce_upon_5xx_greeting_says_so(system: Running) -> None:
    for number in range(3):
        row = the_row(system, f"user{number}@greeting-bounces.test")
        assert row["type"] == "b"
        assert "554" in row["dsnDiag"]
    assert "554" in the_queue_row(system, "greeting-waits.test")["dsnDiag"]
    assert to(system.mta, "user@greeting-waits.test") == []


def test_thousands_of_answers_that_come_at_once_are_written_one_after_the_other(system: Running) -> None:
    system.mta.wait_for(lambda: sum(row["queue"] == "crowd.test/default" for row in system.mta.rows("b")) == 1500)
    assert "ended with status" not in system.mta.log()


def test_a_connection_lost_in_the_content_bounces_only_where_bounce_upon_transfer_failure_says_so(
    system: Running,
) -> None:
    assert the_row(system, "drop-at-dot@transfer.test")["type"] == "b"
    assert the_row(system, "drop-at-dot@no-transfer.test")["type"] == "t"


def test_a_553_without_a_status_means_what_smtp_553_means_invalid_mailbox_says(system: Running) -> None:
    assert the_row(system, "553@with-553.test")["dsnStatus"].split()[0] == "5.1.1"
    assert the_row(system, "553@no-553.test")["dsnStatus"].split()[0] == "5.0.0"


def test_after_a_421_the_next_host_is_used_where_smtp_421_means_mx_unavailable(system: Running) -> None:
    system.mta.wait_for(lambda: len(to(system.mta, "user@next-mx.test")) == 2)
    assert [row["type"] for row in to(system.mta, "user@next-mx.test")] == ["t", "d"]
    assert len(system.scripted["says421"].talks) == 1
    rows = [the_row(system, f"user{number}@same-session.test") for number in range(3)]
    assert sorted(row["type"] for row in rows) == ["d", "d", "t"]
    assert len(system.scripted["once421"].talks) == 1
    assert "RSET" in system.scripted["once421"].lines


def test_the_words_of_a_421_are_replaced_by_replace_smtp_421_service_response(system: Running) -> None:
    assert the_row(system, "421@hidden-421.test")["dsnDiag"] == "smtp;421 4.0.0 service unavailable"
    assert "<421@shown-421.test>" in the_row(system, "421@shown-421.test")["dsnDiag"]


def content_of(system: Running, domain: str) -> bytes:
    system.mta.wait_for(lambda: received_by(system.world, domain) != [])
    return (system.maildir / "new" / received_by(system.world, domain)[0]["file"]).read_bytes()


def test_8_bit_content_is_made_7_bit_where_8bitmime_is_ignored_by_ignore_8bitmime(system: Running) -> None:
    assert b"Gr=C3=BC=C3=9Fe" in content_of(system, "seven.test")
    assert "Grüße".encode() in content_of(system, "eight.test")


def test_content_goes_as_a_chunk_unless_ignore_chunking_says_otherwise(system: Running) -> None:
    content_of(system, "no-chunks.test")
    content_of(system, "chunks.test")
    assert received_by(system.world, "no-chunks.test")[0]["verb"] == "DATA"
    assert received_by(system.world, "chunks.test")[0]["verb"] == "BDAT"


def test_commands_are_one_write_unless_ignore_pipelining_says_otherwise(system: Running) -> None:
    the_row(system, "user@commands.test")
    the_row(system, "user@plain-commands.test")
    together = system.scripted["commands"].talks[0].reads
    alone = system.scripted["plain_commands"].talks[0].reads
    assert any(read.startswith(b"MAIL") and read.endswith(b"DATA\r\n") for read in together)
    assert [read[:4] for read in alone[1:4]] == [b"MAIL", b"RCPT", b"DATA"]


def test_what_a_recipient_asks_of_dsns_is_passed_on_unless_ignore_dsn_says_otherwise(system: Running) -> None:
    the_row(system, "user@commands.test")
    the_row(system, "user@plain-commands.test")
    assert any(line.endswith("NOTIFY=NEVER") for line in system.scripted["commands"].lines)
    assert not any("NOTIFY" in line for line in system.scripted["plain_commands"].lines)


def test_recipients_that_are_too_many_go_at_once_in_another_transaction(system: Running) -> None:
    world = system.worlds["few"]
    rows = [the_row(system, f"{number}@few.test") for number in range(8)]
    assert [row["type"] for row in rows] == ["d"] * 8
    assert [row["attempts"] for row in rows] == ["1"] * 8
    assert the_row(system, "550@few.test")["type"] == "b"
    assert [len(record["recipients"]) for record in world.received()] == [3, 3, 2]
    assert world.stats()["totals"]["connections"] == 1


def test_the_limits_a_host_tells_are_kept_and_the_rest_goes_at_once_on_another_session(system: Running) -> None:
    world = system.worlds["limits"]
    assert [the_row(system, f"{number}@limits.test")["type"] for number in range(7)] == ["d"] * 7
    assert [len(record["recipients"]) for record in world.received()] == [2, 2, 2, 1]
    assert world.stats()["totals"]["connections"] == 2


def test_a_message_above_the_size_that_is_offered_bounces_here(system: Running) -> None:
    row = the_row(system, "user@small.test")
    assert (row["type"], row["dsnStatus"].split()[0]) == ("b", "5.3.4")
    assert "2000" in row["dsnDiag"]
    assert system.worlds["small"].stats()["totals"]["messages_refused"] == 0


def test_an_address_that_needs_smtputf8_bounces_where_it_is_not_offered(system: Running) -> None:
    row = the_row(system, "ü@small.test")
    assert (row["type"], row["dsnStatus"].split()[0]) == ("b", "5.6.7")


def test_a_smarthost_takes_mail_after_a_login_with_auth_username_and_auth_password(system: Running) -> None:
    assert the_row(system, "user@login.test")["type"] == "d"
    assert the_row(system, "user@shown.test")["type"] == "d"


def test_a_login_that_is_refused_makes_the_mail_wait(system: Running) -> None:
    assert "535" in the_queue_row(system, "bad-login.test")["dsnDiag"]
    assert to(system.mta, "user@bad-login.test") == []


def test_the_password_is_shown_without_tls_only_with_use_unencrypted_plain_auth(system: Running) -> None:
    assert "not encrypted" in the_queue_row(system, "not-shown.test")["dsnDiag"]
    assert to(system.mta, "user@not-shown.test") == []


def test_the_password_is_in_no_log_row_or_answer(system: Running) -> None:
    the_queue_row(system, "bad-login.test")
    assert PASSWORD not in system.mta.log()
    assert PASSWORD not in str(system.mta.rows())
    for command in (("status", "--json"), ("queue", "list", "--json"), ("check",)):
        assert PASSWORD not in system.mta.command(*command).stdout


def test_mail_whose_mx_leads_back_to_this_machine_bounces_without_allow_loopback_mx(
    system: Running, tmp_path: Path
) -> None:
    dns = f'[dns]\nnameservers = ["{system.world.nameserver}"]\n[domain."*"]\ndefault-smtp-port = {system.world.port}\n'
    with _mta(tmp_path, dns) as mta:
        for name in ("loop", "named", "own-address"):
            mta.drop(f"user@{name}.test")
        mta.wait_for(lambda: mta.count("b") == 3)
        assert {row["dsnStatus"].split()[0] for row in mta.rows("b")} == {"5.4.6"}
        assert all("back to us" in row["dsnDiag"] for row in mta.rows("b"))


def _mta(path: Path, more: str) -> Mta:
    """A system without the harness's leave to send to this machine."""
    base = 'host-name = "mta.test"\n[spool]\ndirectory = "spool"\nmin-free-space = "1M"\n'
    records = '[[acct-file]]\npath = "spool/accounting/acct.csv"\nrecords = ["r", "d", "b", "t", "tq"]\n'
    return Mta(path / "mta", base + more + records)


def test_nothing_is_lost_by_all_this(system: Running) -> None:
    assert system.mta.audit()["balanced"]
