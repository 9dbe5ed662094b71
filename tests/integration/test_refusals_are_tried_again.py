"""What happens to mail that is not taken at once: one running system, a domain for each trouble, all at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.scenario import drop, free_port, listening, queue_rows, to
from tests.support.mta import Mta, World

CONFIG = """
[vmta.crashes]
[domain."refused.test"]
smtp-hosts = ["[127.0.0.2]:{refused}"]
[domain."closed.test"]
smtp-hosts = ["[127.0.0.2]:{closed}"]
[domain."silent.test"]
smtp-hosts = ["[127.0.0.2]:{silent}"]
smtp-greeting-timeout = "1s"
retry-after = "1m"
[domain."full.test"]
smtp-hosts = ["[127.0.0.2]:{full}"]
connect-timeout = "1s"
retry-after = "1m"
[domain."expires.test"]
bounce-after = "2s"
[domain."mixed.test"]
max-rcpt-per-transaction = 4
retry-recipients-after = "1h"
[domain."partly.test"]
retry-recipients-after = "4s"
[domain."slow.test"]
data-send-timeout = "1s"
smtp-data-termination-timeout = "1s"
retry-recipients-after = "1h"
[domain."patient.test"]
retry-recipients-after = ["1s", "1h"]
[domain."eager.test"]
retry-after = "1h"
retry-upon-new-mail = true
smtp-hosts = ["[127.0.0.2]:{never}"]
[domain."lazy.test"]
retry-after = "1h"
smtp-hosts = ["[127.0.0.2]:{never}"]
[domain."out.test"]
retry-after = ["1s", "1h"]
smtp-hosts = ["[127.0.0.2]:{never}"]
"""

MIXED = ("550-5.1.1@mixed.test", "451-4.2.0@mixed.test", "fine@mixed.test", "552-5.2.2@mixed.test")


class Running(NamedTuple):
    world: World
    mta: Mta
    path: Path
    refused: int
    started: float


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("refusals")
    refused, never = free_port("127.0.0.2"), free_port("127.0.0.2")
    with ExitStack() as stack:
        world = stack.enter_context(World(path))
        closed = stack.enter_context(World(path / "closed", greeting=421))
        silent, full = stack.enter_context(listening()), stack.enter_context(listening(0))
        for _ in range(3):  # so many fill the backlog, and the next one is not answered
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", full))
        config = CONFIG.format(refused=refused, closed=closed.port, silent=silent, full=full, never=never)
        mta = stack.enter_context(world.mta(config, start=False))
        for domain in (
            "refused.test",
            "closed.test",
            "silent.test",
            "full.test",
            "out.test",
            "eager.test",
            "lazy.test",
        ):
            drop(mta, f"user@{domain}")
        drop(mta, "once-451@retry.test")
        drop(mta, "451@expires.test")
        drop(mta, "451@patient.test")
        drop(mta, *MIXED, "drop-at-dot@mixed.test")
        drop(mta, "taken@partly.test", "once-451@partly.test", vmta="crashes")
        drop(mta, "once-drop-at-dot@duplicate.test")
        drop(mta, "silent-at-dot@slow.test")
        mta.start()
        yield Running(world, mta, path, refused, time.time())


def kinds(rows: list[dict[str, str]]) -> list[str]:
    return [row["type"] for row in rows]


def test_recipients_that_are_settled_are_not_sent_again_after_a_kill(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(mta.rows("d", "t")) >= 2 and len(to(mta, "once-451@partly.test")) == 1)
    killed = mta.kill("crashes")
    mta.wait_for(lambda: len(to(mta, "once-451@partly.test")) == 2)
    assert kinds(to(mta, "once-451@partly.test")) == ["t", "d"]
    assert kinds(to(mta, "taken@partly.test")) == ["d"]
    assert sum("taken@partly.test" in record["recipients"] for record in system.world.received()) == 1
    assert f"process {killed}) ended by signal 9" in mta.log()


def test_a_recipient_refused_for_now_is_tried_again_after_its_pause(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(to(mta, "once-451@retry.test")) == 2)
    first, second = to(mta, "once-451@retry.test")
    assert (first["type"], first["attempts"], first["dsnAction"]) == ("t", "1", "delayed")
    assert (second["type"], second["attempts"], second["dsnAction"]) == ("d", "2", "relayed")


def test_each_recipient_of_a_message_gets_its_own_answer(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(to(mta, "drop-at-dot@mixed.test")) == 1)
    rows = [to(mta, recipient) for recipient in (*MIXED, "drop-at-dot@mixed.test")]
    assert [kinds(row) for row in rows] == [["b"], ["t"], ["d"], ["b"], ["t"]]
    assert [row[0]["dsnStatus"].split()[0] for row in rows[:4]] == ["5.1.1", "4.2.0", "2.0.0", "5.2.2"]


def test_a_connection_lost_at_the_dot_may_have_delivered_and_is_tried_again(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(to(mta, "once-drop-at-dot@duplicate.test")) == 2)
    first, second = to(mta, "once-drop-at-dot@duplicate.test")
    assert first["type"] == "t"
    assert "possible duplicate" in first["dsnDiag"]
    assert second["type"] == "d"
    assert "possible duplicate" not in second["dsnDiag"]


def test_a_recipient_deferred_for_longer_than_bounce_after_bounces_as_expired(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: to(mta, "451@expires.test", "b") != [])
    *deferred, last = to(mta, "451@expires.test")
    assert set(kinds(deferred)) == {"t"}
    assert (last["dsnStatus"].split()[0], last["bounceCat"]) == ("4.4.7", "message-expired")


def test_a_refused_connection_defers_the_queue_until_the_host_is_there(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(queue_rows(mta, "refused.test")) >= 2)
    assert to(mta, "user@refused.test") == []
    assert "refused" in queue_rows(mta, "refused.test")[0]["dsnDiag"].lower()
    with World(system.path / "late", [f"127.0.0.2:{system.refused}"]) as late:
        mta.wait_for(lambda: len(to(mta, "user@refused.test")) == 1)
        assert to(mta, "user@refused.test")[0]["type"] == "d"
        assert len(late.received()) == 1
    seconds = time.time() - system.started
    assert len(queue_rows(mta, "refused.test")) <= seconds + 1


def test_the_last_pause_of_a_list_repeats(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(queue_rows(mta, "out.test")) == 2 and len(to(mta, "451@patient.test")) == 2)
    mta.wait_for(lambda: to(mta, "451@expires.test", "b") != [])
    assert len(queue_rows(mta, "out.test")) == 2
    assert len(to(mta, "451@patient.test")) == 2
    shown = mta.command("queue", "list", "--domain", "patient.test", "--json").stdout
    assert '"attempts": 2' in shown


def test_new_mail_wakes_a_queue_that_waits_where_it_may(system: Running) -> None:
    mta = system.mta
    for domain in ("eager.test", "lazy.test"):
        mta.wait_for(lambda domain=domain: len(queue_rows(mta, domain)) == 1)
        drop(mta, f"more@{domain}")
    mta.wait_for(lambda: len(queue_rows(mta, "eager.test")) == 2)
    assert len(queue_rows(mta, "lazy.test")) == 1


def test_a_greeting_of_421_defers_the_queue(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: queue_rows(mta, "closed.test") != [])
    assert "421" in queue_rows(mta, "closed.test")[0]["dsnDiag"]
    assert to(mta, "user@closed.test") == []


def test_a_server_without_a_greeting_is_left_after_smtp_greeting_timeout(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(queue_rows(mta, "silent.test")) == 1)
    assert "no answer in time (greeting)" in queue_rows(mta, "silent.test")[0]["dsnDiag"]


def test_a_connection_that_is_not_made_is_given_up_after_connect_timeout(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(queue_rows(mta, "full.test")) == 1)
    assert "no connection" in queue_rows(mta, "full.test")[0]["dsnDiag"]
    assert "in time" in queue_rows(mta, "full.test")[0]["dsnDiag"]


def test_a_dot_without_an_answer_is_left_after_both_data_timeouts(system: Running) -> None:
    mta = system.mta
    mta.wait_for(lambda: len(to(mta, "silent-at-dot@slow.test")) == 1)
    (row,) = to(mta, "silent-at-dot@slow.test")
    assert row["type"] == "t"
    assert "no answer in time" in row["dsnDiag"]
    assert "possible duplicate" in row["dsnDiag"]
    began = time.mktime(time.strptime(row["timeQueued"][:19], "%Y-%m-%d %H:%M:%S"))
    assert time.mktime(time.strptime(row["timeLogged"][:19], "%Y-%m-%d %H:%M:%S")) - began >= 2


def test_nothing_is_lost_by_all_this(system: Running) -> None:
    audit = system.mta.audit()
    assert audit["balanced"], audit
    assert audit["accepted"] == 21
