"""STARTTLS of the test receiver, seen by clients that are not ours: smtplib, and a socket."""

from __future__ import annotations

import json
import smtplib
import socket
import ssl
from pathlib import Path

import pytest

from spoolmta.errors import UsageError
from spoolmta.sink import Options, Sink
from tests.integration.test_sink import running
from tests.support.tls import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


def test_mail_comes_through_tls_and_the_record_says_how(tmp_path: Path, authority: Authority) -> None:
    record = tmp_path / "record.jsonl"
    options = {"tls_certificate": authority.certificate("127.0.0.1"), "record": str(record)}
    with running(**options) as sink, smtplib.SMTP(*sink.address) as client:
        client.ehlo("client.test")
        assert client.has_extn("starttls")
        client.starttls(context=trusting(authority))
        assert client.docmd("MAIL", "FROM:<a@b.test>")[0] == 503, "EHLO must be said again"
        client.ehlo("client.test")
        assert not client.has_extn("starttls")
        assert client.docmd("STARTTLS")[0] == 503
        client.sendmail("a@b.test", ["c@d.test"], "Subject: x\r\n\r\nx\r\n" * 5000)
    line = json.loads(record.read_text())
    assert (line["tls"], line["tls_client"], line["tls_resumed"]) == ("TLSv1.3", False, False)


def test_what_came_behind_starttls_in_the_clear_is_never_answered(authority: Authority) -> None:
    with (
        running(tls_certificate=authority.certificate("127.0.0.1")) as sink,
        socket.create_connection(sink.address, 10) as plain,
    ):
        plain.recv(4096)
        plain.sendall(b"EHLO client.test\r\n")
        plain.recv(4096)
        plain.sendall(b"STARTTLS\r\nRSET\r\nNOOP\r\n")
        assert plain.recv(4096) == b"220 2.0.0 Go ahead\r\n"
        with trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            secured.sendall(b"EHLO client.test\r\n")
            assert secured.recv(4096).startswith(b"250-sink.test\r\n")


def test_starttls_takes_no_parameter_and_comes_after_ehlo(authority: Authority) -> None:
    with running(tls_certificate=authority.certificate("127.0.0.1")) as sink, smtplib.SMTP(*sink.address) as client:
        assert client.docmd("STARTTLS")[0] == 503
        client.ehlo()
        assert client.docmd("STARTTLS", "now")[0] == 501
        client.docmd("MAIL", "FROM:<a@b.test>")
        assert client.docmd("STARTTLS")[0] == 503
    with running() as sink, smtplib.SMTP(*sink.address) as client:
        client.ehlo()
        assert not client.has_extn("starttls")
        assert client.docmd("STARTTLS")[0] == 500


def test_a_handshake_that_fails_is_counted_by_its_reason(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority(tmp_path / "stranger")
    with running(tls_certificate=authority.certificate("127.0.0.1")) as sink:
        with pytest.raises(ssl.SSLError), smtplib.SMTP(*sink.address) as client:
            client.starttls(context=trusting(stranger))
        assert sum(sink.stats()["tls_troubles"].values()) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"starttls": "maybe"}, "no way to do STARTTLS"),
        ({"tls_certificate": "/nonexistent.pem"}, "cannot use the certificate /nonexistent.pem: No such file"),
        ({"tls_certificate": "/nonexistent.pem", "tls_version": "1.9"}, "'1.9' is no version of TLS"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Sink(Options(**options))
