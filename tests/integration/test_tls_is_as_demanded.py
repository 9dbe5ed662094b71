"""What the TLS directives change for the receiver, with a running system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.scenario import drop, queue_rows, received_by, to
from tests.support.mta import Mta, World
from tests.support.tls import Authority

CONFIG = """
records = ["r", "d", "b", "t", "tq"]
record-fields = {{ d = ["*", "dlvTlsProtocol", "dlvTlsCipher"] }}
[domain."plain.test"]
use-starttls = false
[domain."verified.test"]
smtp-tls-verify = true
smtp-tls-ca-file = "{ca}"
[domain."stranger.test"]
smtp-tls-verify = true
smtp-tls-ca-file = "{other}"
retry-after = "1h"
[domain."newer.test"]
require-starttls = true
smtp-tls-min-version = "1.3"
retry-after = "1h"
[domain."ciphers.test"]
smtp-tls-ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
[domain."resumed.test"]
connection-idle-timeout = "0s"
[domain."anew.test"]
connection-idle-timeout = "0s"
reuse-ssl-session = false
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    """A receiver with TLS 1.2 and a certificate for its address, and a sender with a table for each test."""
    path = tmp_path_factory.mktemp("tls")
    authority, other = Authority(path / "certificates"), Authority(path / "certificates", "other")
    config = CONFIG.format(ca=authority.ca, other=other.ca)
    options = {"tls_certificate": authority.certificate("127.0.0.2"), "tls_version": "1.2"}
    with World(path, **options) as world, world.mta(config, start=False) as mta:
        # the last table of the harness is the accounting file, which `config` goes on with
        mta.config_file.write_text(mta.config_file.read_text().replace('records = ["r", "d", "b", "t", "tq"]\n', "", 1))
        mta.start()
        yield world, mta


def delivered(scene: tuple[World, Mta], domain: str, number: int = 0) -> dict[str, Any]:
    """Send one message; what the receiver saw of it."""
    world, mta = scene
    drop(mta, f"user{number}@{domain}", test_id=f"{domain}{number}")
    mta.wait_for(lambda: len(to(mta, f"user{number}@{domain}", "d")) == 1)
    return next(one for one in received_by(world, domain) if one["test_id"] == f"{domain}{number}")


def test_use_starttls_decides_whether_tls_is_used_where_it_is_offered(scene: tuple[World, Mta]) -> None:
    assert delivered(scene, "usual.test")["tls"] == "TLSv1.2"
    assert "tls" not in delivered(scene, "plain.test")


def test_smtp_tls_verify_sends_only_to_hosts_with_a_certificate_of_smtp_tls_ca_file(scene: tuple[World, Mta]) -> None:
    world, mta = scene
    assert delivered(scene, "verified.test")["tls"] == "TLSv1.2"
    drop(mta, "user@stranger.test")
    mta.wait_for(lambda: bool(queue_rows(mta, "stranger.test")))
    row = queue_rows(mta, "stranger.test")[0]
    assert row["dsnStatus"].startswith("4.7.5 ")
    assert "certificate not trusted" in row["dsnDiag"]
    assert "(smtp-tls-verify demands TLS)" in row["dsnDiag"]
    assert received_by(world, "stranger.test") == []


def test_a_version_below_smtp_tls_min_version_counts_as_no_tls(scene: tuple[World, Mta]) -> None:
    world, mta = scene
    drop(mta, "user@newer.test")
    mta.wait_for(lambda: bool(queue_rows(mta, "newer.test")))
    assert queue_rows(mta, "newer.test")[0]["dsnStatus"].startswith("4.7.5 ")
    assert received_by(world, "newer.test") == []


def test_only_smtp_tls_ciphers_are_offered(scene: tuple[World, Mta]) -> None:
    assert delivered(scene, "usual.test", 2)["tls_cipher"].endswith("AES256-GCM-SHA384")
    assert delivered(scene, "ciphers.test")["tls_cipher"].endswith("AES128-GCM-SHA256")


def test_reuse_ssl_session_decides_whether_sessions_are_resumed(scene: tuple[World, Mta]) -> None:
    assert [delivered(scene, "resumed.test", number)["tls_resumed"] for number in range(2)][1] is True
    assert [delivered(scene, "anew.test", number)["tls_resumed"] for number in range(2)] == [False, False]


def test_record_fields_add_the_columns_of_tls_and_the_others_stay_where_they_are(scene: tuple[World, Mta]) -> None:
    _, mta = scene
    cipher = delivered(scene, "columns.test")["tls_cipher"]
    delivered(scene, "plain.test", 9)
    row, plain = to(mta, "user0@columns.test", "d")[0], to(mta, "user9@plain.test", "d")[0]
    assert (row["dlvTlsProtocol"], row["dlvTlsCipher"]) == ("TLSv1.2", cipher)
    assert (plain["dlvTlsProtocol"], plain["dlvTlsCipher"]) == ("", "")
    assert list(row)[-2:] == ["dlvTlsProtocol", "dlvTlsCipher"]
    assert row["vmta"] == "default"
    receipt = to(mta, "user0@columns.test", "r")[0]
    assert (receipt["srcType"], receipt["dlvTlsCipher"]) == ("pickup", "")


def test_a_receiver_that_asks_for_a_certificate_sees_smtp_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    ours = authority.certificate("me.test")
    options = {"tls_certificate": authority.certificate("mx.test"), "tls_client_ca": authority.ca}
    config = f'[domain."known.test"]\nsmtp-client-certificate = "{ours}"\n'
    with World(tmp_path, **options) as world, world.mta(config) as mta:
        drop(mta, "user@known.test")
        drop(mta, "user@unknown.test")
        mta.wait_for(lambda: mta.count("d") == 2)
        assert received_by(world, "known.test")[0]["tls_client"] is True
        assert "tls" not in received_by(world, "unknown.test")[0]


def test_mail_that_require_starttls_protects_waits_rather_than_going_in_the_clear(tmp_path: Path) -> None:
    config = '[domain."secret.test"]\nrequire-starttls = true\nretry-after = "1h"\n'
    with World(tmp_path) as world, world.mta(config) as mta:
        drop(mta, "user@secret.test")
        drop(mta, "user@usual.test")
        mta.wait_for(lambda: mta.count("d", "tq") == 2)
        row = queue_rows(mta, "secret.test")[0]
        assert row["dsnStatus"].startswith("4.7.4 ")
        assert row["dsnDiag"] == "smtp;the host does not offer STARTTLS, which require-starttls demands"
        assert [one["recipients"] for one in world.received()] == [["user@usual.test"]]
        assert [*mta.spool.glob("queue/default/secret.test/*/*")]


def test_a_certificate_file_that_cannot_be_used_is_an_error_at_its_line(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    (tmp_path / "empty.pem").write_text("")
    tables = [
        (
            '[domain."a.test"]\nsmtp-client-certificate = "gone.pem"\n',
            "gone.pem: No such file or directory: name a",
        ),
        (f'[vmta.v.domain."*"]\nsmtp-client-certificate = "{authority.ca}"\n', "is not a PEM file with a certificate"),
        ('[domain."c.test"]\nsmtp-tls-ciphers = "NONSENSE"\n', "NONSENSE is not a list of ciphers that OpenSSL knows"),
        (f'[domain."b.test"]\nsmtp-tls-ca-file = "{tmp_path}/empty.pem"\n', "is not a PEM file with the certificates"),
    ]
    mta = World(tmp_path, ["127.0.0.2:0"])
    mta.sinks = ["127.0.0.2:1"]
    broken = mta.mta("".join(text for text, _ in tables), start=False)
    result = broken.command("check")
    assert result.returncode == 78
    lines = broken.config_file.read_text().splitlines()
    for (text, words), said in zip(tables, result.stderr.strip().splitlines(), strict=True):
        number = lines.index(text.splitlines()[1]) + 1
        assert f"{broken.config_file}:{number}: " in said
        assert words in said


def test_mail_that_must_have_tls_does_not_go_over_the_open_session_of_a_domain_that_need_not(tmp_path: Path) -> None:
    zones = {name: {"MX": ["10 mx.both.test"]} for name in ("usual.test", "secret.test")}
    with World(tmp_path, zones={**zones, "mx.both.test": {"A": ["127.0.0.2"]}}) as world:
        tables = f"""
[domain."*"]
default-smtp-port = {world.port}
connection-idle-timeout = "1m"
retry-after = "1h"
[domain."secret.test"]
require-starttls = true
[provider.both]
mx = ["mx.both.test"]
"""
        with world.mta(tables, route=False) as mta:
            drop(mta, "user@usual.test")
            mta.wait_for(lambda: mta.count("d") == 1)
            drop(mta, "user@secret.test")
            mta.wait_for(lambda: mta.count("tq") == 1)
            assert mta.rows("tq")[0]["dsnStatus"].startswith("4.7.4 ")
            assert [one["recipients"] for one in world.received()] == [["user@usual.test"]]
