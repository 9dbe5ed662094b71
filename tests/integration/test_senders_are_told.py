"""Delivery status notifications, from the refusal to the sender's mailbox: what they say, who gets one, and that none
is about another."""

from __future__ import annotations

import email
import email.policy
import email.utils
import socket
import threading
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from flufl.bounce import all_failures

from tests.integration.scenario import drop, to
from tests.support.mta import Mta, World

ON = "[source.pickup]\nsuppress-local-dsn = false\n"


def world(path: Path, **options: Any) -> World:
    """Receivers that keep what they get."""
    for folder in ("tmp", "new", "cur"):
        (path / "mail" / folder).mkdir(parents=True, exist_ok=True)
    return World(path, maildir=str(path / "mail"), **options)


def kept(outside: World, is_wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[EmailMessage]:
    """The messages with the null sender that arrived, as the standard library reads them."""
    found = []
    for line in outside.received():
        if line["mail_from"] == "" and is_wanted(line):
            data = (outside.path / "mail" / "new" / line["file"]).read_bytes()
            message = email.message_from_bytes(data, policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            found.append(message)
    return found


def raw(outside: World) -> list[bytes]:
    mail = outside.path / "mail" / "new"
    return [(mail / line["file"]).read_bytes() for line in outside.received() if line["mail_from"] == ""]


def fields(message: EmailMessage) -> list[dict[str, str]]:
    """The blocks of the status part."""
    parts = list(message.iter_parts())
    status = parts[1].get_payload()
    assert isinstance(status, list)
    return [{key.lower(): value for key, value in block.items()} for block in status]


def settle(mta: Mta, *recipients: str) -> None:
    """Wait until these have ended and nothing is left."""
    mta.wait_for(lambda: all(to(mta, one, "d", "b") for one in recipients) and not mta.entries())


def named(report: EmailMessage, header: str) -> str:
    return str(report[header])


def test_a_refused_recipient_brings_a_report_to_the_sender(tmp_path: Path) -> None:
    refused = "nobody--550-5.1.1@a.test"
    with world(tmp_path) as outside, outside.mta(ON) as mta:
        drop(mta, refused, sender="author@home.test", job="j1")
        settle(mta, refused, "author@home.test")
        (report,) = kept(outside)
        assert all_failures(report) == (set(), {refused.encode()})
        assert (report.get_content_type(), report["auto-submitted"]) == ("multipart/report", "auto-replied")
        assert named(report, "from") == "Mail Delivery System <MAILER-DAEMON@mta.test>"
        assert named(report, "to") == "author@home.test"
        words, _, header = report.iter_parts()
        assert "550 5.1.1" in words.get_content()
        assert header.get_content_type() == "text/rfc822-headers"
        assert "Subject: test" in header.get_content()
        whole, one = fields(report)
        (row,) = to(mta, refused, "b")
        assert whole["reporting-mta"] == "dns; mta.test"
        assert whole["x-spoolmta-message-id"] == row["msgId"]
        assert list(one) == [
            "final-recipient", "action", "status", "remote-mta", "diagnostic-code", "last-attempt-date",
        ]  # fmt: skip
        assert (one["action"], one["status"]) == ("failed", "5.1.1")
        assert one["diagnostic-code"].startswith("smtp; 550 5.1.1")


def test_a_report_is_mail_like_any_other_in_the_log_and_the_balance(tmp_path: Path) -> None:
    refused = "nobody--550@a.test"
    more = ON + '[vmta.news]\nsmtp-source-host = ["127.0.0.9 news.test"]\n'
    with world(tmp_path) as outside, outside.mta(more) as mta:
        drop(mta, refused, sender="author@home.test", job="j1", vmta="news")
        settle(mta, refused, "author@home.test")
        rows = [row for row in mta.rows() if row["rcpt"] == "author@home.test"]
        assert [row["type"] for row in rows] == ["r", "d"]
        for row in rows:
            assert (row["srcType"], row["orig"], row["vmta"]) == ("dsn", "", "news")
            assert (row["jobId"], row["envId"]) == ("", "")
        assert len({row["msgId"] for row in rows}) == 1
        assert [line["source"] for line in outside.received() if line["mail_from"] == ""] == ["127.0.0.9"]
        mta.stop()
        balance = mta.audit()
        assert (balance["accepted"], balance["delivered"], balance["bounced"]) == (2, 1, 1)
        assert balance["balanced"]


def test_recipients_of_an_entry_that_fail_together_share_a_report(tmp_path: Path) -> None:
    refused = {"x--550-5.1.1@a.test", "y--552-5.2.2@a.test"}
    with world(tmp_path) as outside, outside.mta(ON) as mta:
        drop(mta, *sorted(refused), "fine@a.test", "z--550-5.7.1@b.test", sender="author@home.test")
        settle(mta, *refused, "fine@a.test", "z--550-5.7.1@b.test")
        mta.wait_for(lambda: len(kept(outside)) == 2)
        found = sorted((all_failures(report)[1] for report in kept(outside)), key=len)
        assert found == [{b"z--550-5.7.1@b.test"}, {address.encode() for address in refused}]
        assert all(data.count(b"\r\n\r\n\r\n") == 0 for data in raw(outside))


def test_a_report_that_fails_has_no_report_and_is_tried_once(tmp_path: Path) -> None:
    sender = "author--550-5.1.1@home.test"
    with world(tmp_path) as outside, outside.mta(ON) as mta:
        drop(mta, "nobody--550@a.test", sender=sender)
        settle(mta, "nobody--550@a.test", sender)
        rows = [(row["rcpt"], row["type"], row["srcType"]) for row in mta.rows("r", "b", "d", "t")]
        assert rows == [
            ("nobody--550@a.test", "r", "pickup"),
            (sender, "r", "dsn"),
            ("nobody--550@a.test", "b", "pickup"),
            (sender, "b", "dsn"),
        ]
        assert mta.audit()["balanced"]
        assert outside.received() == []


def test_mail_from_the_null_sender_brings_none(tmp_path: Path) -> None:
    with world(tmp_path) as outside, outside.mta(ON) as mta:
        drop(mta, "nobody--550@a.test NOTIFY=SUCCESS,FAILURE,DELAY", sender="<>")
        settle(mta, "nobody--550@a.test")
        assert mta.count("r") == 1
        assert outside.received() == []


def test_notify_decides_who_is_told_of_what(tmp_path: Path) -> None:
    asked = {
        "a--550@a.test NOTIFY=NEVER": "",
        "b--550@a.test NOTIFY=SUCCESS": "",
        "c--550@a.test NOTIFY=FAILURE": "failed",
        "d--550@a.test NOTIFY=DELAY": "",
        "e@a.test NOTIFY=SUCCESS": "relayed",
        "f@a.test NOTIFY=FAILURE": "",
        "g@a.test": "",
        "h--550@a.test": "failed",
    }
    with world(tmp_path, dsn=False) as outside, outside.mta(ON) as mta:
        for recipient in asked:
            drop(mta, recipient, sender="author@home.test")
        settle(mta, *(recipient.partition(" ")[0] for recipient in asked))
        mta.wait_for(lambda: len(kept(outside)) == 3)
        told = {}
        for report in kept(outside):
            _, one = fields(report)
            told[one["final-recipient"].partition(" ")[2]] = one["action"]
        assert told == {recipient.partition(" ")[0]: action for recipient, action in asked.items() if action}
        assert mta.audit()["balanced"]


def test_a_host_that_offers_dsn_has_the_duty_to_confirm(tmp_path: Path) -> None:
    with world(tmp_path) as outside, outside.mta(ON) as mta:
        drop(mta, "e@a.test NOTIFY=SUCCESS", sender="author@home.test")
        settle(mta, "e@a.test")
        assert [line["recipients"] for line in outside.received()] == [["e@a.test"]]


def test_an_expired_recipient_keeps_its_temporary_status(tmp_path: Path) -> None:
    with world(tmp_path) as outside, outside.mta(ON + '[domain."a.test"]\nbounce-after = "2s"\n') as mta:
        drop(mta, "busy--451-4.2.1@a.test ORCPT=rfc822;Busy+2Bone@old.test", sender="author@home.test")
        settle(mta, "busy--451-4.2.1@a.test", "author@home.test")
        _, one = fields(kept(outside)[0])
        assert (one["action"], one["status"]) == ("failed", "4.4.7")
        assert one["original-recipient"] == "rfc822; Busy+one@old.test"
        assert one["diagnostic-code"].startswith("X-Spoolmta; delivery time expired")
        assert "remote-mta" not in one


def test_a_sender_who_asks_is_told_of_a_delay_every_notify_of_delay_every(tmp_path: Path) -> None:
    more = (
        ON + '[domain."[*.]a.test"]\nnotify-of-delay-every = "2s"\n[domain."b.test"]\nnotify-of-delay-every = "never"\n'
    )
    with world(tmp_path) as outside, outside.mta(more) as mta:
        drop(mta, "busy--451-4.2.1@a.test NOTIFY=DELAY,FAILURE", sender="author@home.test")
        drop(mta, "other--451@a.test", sender="author@home.test")
        drop(mta, "third--451@b.test NOTIFY=DELAY", sender="author@home.test")
        mta.wait_for(lambda: len(kept(outside)) >= 2)
        for report in kept(outside):
            _, one = fields(report)
            assert (one["final-recipient"], one["action"]) == ("rfc822; busy--451-4.2.1@a.test", "delayed")
            assert one["status"] == "4.2.1"
            assert "will-retry-until" in one
        assert mta.count("b") == 0
        assert len(mta.entries()) >= 3
        # Not told again for what it was told of, not by a process that knows of it from the journal only.
        before = len(kept(outside))
        assert before <= 1 + (kept_time(outside) / 2)
        mta.kill("default")
        mta.wait_for(lambda: len(kept(outside)) > before)
        assert len(kept(outside)) <= 1 + (kept_time(outside) / 2)


def test_a_delay_is_told_of_also_where_the_host_is_down(tmp_path: Path) -> None:
    down = '[domain."down.test"]\nsmtp-hosts = ["[127.0.0.2]:1"]\nretry-after = "1h"\nnotify-of-delay-every = "2s"\n'
    with world(tmp_path) as outside, outside.mta(ON + down) as mta:
        drop(mta, "x@down.test NOTIFY=DELAY", sender="author@home.test")
        mta.wait_for(lambda: len(kept(outside)) >= 1)
        report = kept(outside)[0]
        _, one = fields(report)
        assert (one["action"], one["status"]) == ("delayed", "4.4.1")
        assert one["diagnostic-code"].startswith("X-Spoolmta; ")
        assert "remote-mta" not in one


def test_a_deferred_recipient_beside_a_failed_one_is_tried_again_and_the_failed_one_is_not(tmp_path: Path) -> None:
    refused, busy = "x--550@a.test", "once-451-y@a.test"
    with world(tmp_path) as outside, outside.mta(ON) as mta:
        drop(mta, refused, busy, sender="author@home.test")
        settle(mta, refused, busy, "author@home.test")
        assert [row["type"] for row in to(mta, refused)] == ["b"]
        assert [row["type"] for row in to(mta, busy)] == ["t", "d"]
        assert [all_failures(report)[1] for report in kept(outside)] == [{refused.encode()}]


def test_a_message_that_fails_in_many_transactions_is_settled_when_all_its_reports_are_safe(tmp_path: Path) -> None:
    refused = [f"x{number}--550@a.test" for number in range(3)]
    more = ON + '[domain."a.test"]\nmax-rcpt-per-transaction = 1\n'
    with world(tmp_path) as outside, outside.mta(more) as mta:
        drop(mta, *refused, "fine@a.test", sender="author@home.test")
        settle(mta, *refused, "fine@a.test")
        mta.wait_for(lambda: len(kept(outside)) == 3)
        found = [all_failures(report)[1] for report in kept(outside)]
        assert sorted(found, key=sorted) == [{address.encode()} for address in refused]
        mta.stop()
        assert mta.audit()["balanced"]


def kept_time(outside: World) -> float:
    """Seconds from the sending of the delayed mail to the newest report."""
    newest = kept(outside)[-1]
    whole, _ = fields(newest)
    arrived = email.utils.parsedate_to_datetime(whole["arrival-date"])
    return (email.utils.parsedate_to_datetime(str(newest["date"])) - arrived).total_seconds()


def test_a_source_may_want_no_reports(tmp_path: Path) -> None:
    (tmp_path / "quiet").mkdir()
    more = ON + f'[source.quiet]\npickup = "{tmp_path}/quiet"\nsuppress-local-dsn = true\n'
    with world(tmp_path) as outside, outside.mta(more) as mta:
        drop(mta, "x--550@a.test", sender="author@home.test", folder=tmp_path / "quiet")
        settle(mta, "x--550@a.test")
        drop(mta, "y--550@a.test", sender="author@home.test")
        settle(mta, "y--550@a.test", "author@home.test")
        assert [all_failures(report)[1] for report in kept(outside)] == [{b"y--550@a.test"}]


def test_the_whole_message_goes_back_where_it_is_asked_for_and_not_too_large(tmp_path: Path) -> None:
    more = ON + 'dsn-return-default = "full"\n'
    large = "0123456789abcdef\n" * 4000
    with world(tmp_path) as outside, outside.mta(more) as mta:
        drop(mta, "full--550@a.test", sender="author@home.test", body="The body.\n")
        drop(mta, "large--550@a.test", sender="author@home.test", body=large)
        text = mta.message("headers--550@a.test", sender="author@home.test", body="The body.\n")
        mta.drop(data=b"x-ret: HDRS\n" + text)
        mta.wait_for(lambda: len(kept(outside)) == 3)
        types = {}
        for report in kept(outside):
            _, _, returned = report.iter_parts()
            types[fields(report)[1]["final-recipient"].partition("--")[0]] = returned.get_content_type()
        assert types == {
            "rfc822; full": "message/rfc822",
            "rfc822; large": "text/rfc822-headers",
            "rfc822; headers": "text/rfc822-headers",
        }
        assert all(len(data) < 60_000 for data in raw(outside))
        assert sum(b"The body." in data for data in raw(outside)) == 1


def test_a_report_may_be_plain_text_from_an_author_of_ones_own(tmp_path: Path) -> None:
    more = ON + '[domain."a.test"]\ndsn-format = "plain-text"\n'
    with world(tmp_path) as outside:
        mta = outside.mta(more, start=False)
        text = 'custom-dsn-from-header = "Post <post@own.test>"\n' + mta.config_file.read_text()
        mta.config_file.write_text(text)
        with mta:
            mta.start()
            drop(mta, "x--550-5.1.1@a.test", sender="author@home.test")
            settle(mta, "x--550-5.1.1@a.test", "author@home.test")
        (report,) = kept(outside)
        assert named(report, "from") == "Post <post@own.test>"
        assert report.get_content_type() == "text/plain"
        assert "x--550-5.1.1@a.test" in report.get_content()
        assert "Subject: test" in report.get_content()


def test_utf_8_addresses_are_reported_as_such(tmp_path: Path) -> None:
    refused, sender = "jörg--550-5.1.1@a.test", "müller@home.test"
    with world(tmp_path) as outside, outside.mta(ON) as mta:
        drop(mta, refused, sender=sender)
        settle(mta, refused, sender)
        (data,) = raw(outside)
        assert b"Content-Type: message/global-delivery-status" in data
        assert f"Final-Recipient: utf-8; {refused}\r\n".encode() in data.replace(b"\n", b"\r\n").replace(b"\r\r", b"\r")
        assert b"Content-Type: message/global-headers" in data


class Hostile(threading.Thread):
    """A server whose refusals are meant to break what they are written into."""

    REPLY = (
        b"550-5.1.1 \xff\xfe \x1b[31m no\x00such\r\n"
        b"550-5.1.1 (unclosed \\ Final-Recipient: rfc822; evil@evil.test\r\n"
        b"550-5.1.1\r\n"
        b"550-5.1.1 " + b"x" * 3000 + b"\r\n"
        b"550 5.1.1 j\xc3\xb6rg --boundary--\r\n"
    )

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._server = socket.create_server(("127.0.0.3", 0))
        self.port = int(self._server.getsockname()[1])

    def run(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, client.makefile("rwb") as stream:
                stream.write(b"220 hostile\r\n")
                stream.flush()
                while line := stream.readline():
                    word = line[:4].upper()
                    stream.write(
                        self.REPLY if word == b"RCPT" else b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n"
                    )
                    stream.flush()
                    if word == b"QUIT":
                        break

    def close(self) -> None:
        self._server.close()


def test_a_hostile_reply_cannot_forge_a_report(tmp_path: Path) -> None:
    hostile = Hostile()
    hostile.start()
    route = f'[domain."evil.test"]\nsmtp-hosts = ["[127.0.0.3]:{hostile.port}"]\n'
    with world(tmp_path) as outside, outside.mta(ON + route) as mta:
        drop(mta, "victim@evil.test", sender="author@home.test")
        settle(mta, "victim@evil.test", "author@home.test")
        (report,) = kept(outside)
        (data,) = raw(outside)
        assert all_failures(report) == (set(), {b"victim@evil.test"})
        assert len(list(report.iter_parts())) == 3
        whole, one = fields(report)
        assert one["final-recipient"] == "rfc822; victim@evil.test"
        assert data.isascii()
        assert not {0, 27} & set(data)
        assert max(map(len, data.splitlines())) < 998
        assert whole["reporting-mta"] == "dns; mta.test"
    hostile.close()
