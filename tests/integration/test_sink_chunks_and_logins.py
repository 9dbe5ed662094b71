"""The test receiver's CHUNKING (RFC 3030) and AUTH (RFC 4954), talked to with plain sockets and smtplib."""

from __future__ import annotations

import json
import smtplib
from pathlib import Path

import pytest

from tests.integration.test_sink import Client, running


def begin(client: Client) -> None:
    for line in ("MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>"):
        assert client.say(line).startswith("250")


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_chunks_are_octets_and_the_last_one_ends_the_message(tmp_path: Path, cut: int) -> None:
    record, maildir = tmp_path / "record", tmp_path / "mail"
    with running(chunking=True, record=str(record), maildir=str(maildir)) as sink, Client(sink.address) as client:
        assert "CHUNKING" in client.ehlo
        begin(client)
        data = b"BDAT 10\r\nX: y\r\n\r\n..BDAT 9 LAST\r\n\r\n.\r\nQUIT"
        for start in range(0, len(data), cut):
            client.send(data[start : start + cut])
        assert client.reply().startswith("250")
        assert client.reply().startswith("250")
        line = json.loads(record.read_text())
        assert (line["verb"], line["size"]) == ("BDAT", 19)
        assert (maildir / "new" / line["file"]).read_bytes() == b"X: y\r\n\r\n..\r\n.\r\nQUIT"


def test_octets_nobody_asked_for_are_read_and_thrown_away() -> None:
    with running(chunking=True) as sink, Client(sink.address) as client:
        client.send("BDAT 28 LAST\r\nMAIL FROM:<evil@evil.test>\r\nNOOP\r\n")
        assert client.reply().startswith("503")
        assert client.reply().startswith("250")
        begin(client)
        assert client.say("BDAT 0 LAST").startswith("250")
        assert sink.totals()["messages"] == 1


def test_without_chunking_bdat_is_unknown() -> None:
    with running() as sink, Client(sink.address) as client:
        begin(client)
        assert client.say("BDAT 0 LAST").startswith("500")


@pytest.mark.parametrize("way", ["CRAM-MD5", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("password", ["password", "wrong"])
def test_mail_needs_a_good_login_where_logins_are_offered(way: str, password: str) -> None:
    with running(auth=way) as sink, smtplib.SMTP(*sink.address) as client:
        client.ehlo("client.test")
        assert client.mail("a@b.test")[0] == 530
        if password == "wrong":
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("user", password)
            assert client.mail("a@b.test")[0] == 530
        else:
            assert client.login("user", password)[0] == 235
            assert client.mail("a@b.test")[0] == 250
