"""DANE and MTA-STS with a running system: real processes, a DNS server, a web server."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from spoolmta import dane
from tests.integration.scenario import drop, free_port, queue_rows, received_by, to
from tests.support.mta import Mta, World
from tests.support.tls import Authority, der_in
from tests.support.web import PolicyServer, policy

TABLE = """
[domain."*"]
default-smtp-port = {port}
retry-after = "1h"
{more}
"""


def mta_of(world: World, more: str, dns: str = "", nameserver: str = "") -> Mta:
    mta = world.mta(TABLE.format(port=world.port, more=more), route=False, start=False)
    text = mta.config_file.read_text().replace("[dns]\n", f"[dns]\n{dns}\n")
    mta.config_file.write_text(text.replace(world.nameserver, nameserver or world.nameserver))
    return mta


def dane_zones(port: int, certificate: str) -> dict[str, Any]:
    """good.test has the record of the certificate, bad.test another one."""
    key = hashlib.sha256(dane.public_key(der_in(certificate))).hexdigest()
    zones: dict[str, Any] = {}
    for name, digest in (("good", key), ("bad", "ab" * 32)):
        zones[f"{name}.test"] = {"MX": [f"10 mx.{name}.test"], "AD": True}
        zones[f"mx.{name}.test"] = {"A": ["127.0.0.2"], "AD": True}
        zones[f"_{port}._tcp.mx.{name}.test"] = {"TLSA": [f"3 1 1 {digest}"], "AD": True}
    return zones


def test_use_dane_sends_only_to_the_host_whose_certificate_its_tlsa_records_name(tmp_path: Path) -> None:
    certificate = Authority(tmp_path / "certificates").certificate("any.test")
    port = free_port("127.0.0.2")
    world = World(tmp_path, [f"127.0.0.2:{port}"], dane_zones(port, certificate), tls_certificate=certificate)
    with world, mta_of(world, "use-dane = true\n") as mta:
        mta.start()
        drop(mta, "user@good.test")
        drop(mta, "user@bad.test")
        mta.wait_for(lambda: mta.count("d") == 1 and bool(queue_rows(mta, "mx.bad.test.rollup")))
        assert received_by(world, "good.test")[0]["tls"] == "TLSv1.3"
        row = queue_rows(mta, "mx.bad.test.rollup")[0]
        assert row["dsnStatus"].startswith("4.7.5 ")
        assert row["dsnDiag"].startswith("smtp;the host's certificate is not the one of its TLSA records")
        assert received_by(world, "bad.test") == []


def address_elsewhere() -> str:
    """An address of this machine that is not on its loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback ones")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_name_server_elsewhere_is_believed_only_with_dnssec_trusted(tmp_path: Path, is_trusted: bool) -> None:
    certificate = Authority(tmp_path / "certificates").certificate("any.test")
    port, elsewhere = free_port("127.0.0.2"), address_elsewhere()
    world = World(
        tmp_path,
        [f"127.0.0.2:{port}"],
        dane_zones(port, certificate),
        dns_address=f"{elsewhere}:0",
        tls_certificate=certificate,
    )
    with world:
        mta = mta_of(world, "use-dane = true\n", f"dnssec-trusted = {str(is_trusted).lower()}")
        if not is_trusted:
            result = mta.command("check")
            number = mta.config_file.read_text().splitlines().index("use-dane = true") + 1
            assert result.returncode == 78
            assert f"{mta.config_file}:{number}: " in result.stderr
            assert "believed only with dnssec-trusted = true" in result.stderr
            return
        with mta:
            mta.start()
            drop(mta, "user@bad.test")
            drop(mta, "user@good.test")
            mta.wait_for(lambda: mta.count("d") == 1 and bool(queue_rows(mta, "mx.bad.test.rollup")))
            assert received_by(world, "bad.test") == []


def test_use_mta_sts_sends_only_to_the_hosts_that_an_enforced_policy_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    zones: dict[str, Any] = {"mx.mail.test": {"A": ["127.0.0.2"]}}
    for name in ("kept.test", "broken.test"):
        mx = "mx.mail.test" if name == "kept.test" else "else.mail.test"
        zones[name] = {"MX": [f"10 {mx}"]}
        zones[f"_mta-sts.{name}"] = {"TXT": ["v=STSv1; id=1;"]}
        zones[f"mta-sts.{name}"] = {"A": ["127.0.0.3"]}
    zones["else.mail.test"] = {"A": ["127.0.0.2"]}
    names = ("mta-sts.kept.test", "mta-sts.broken.test")
    options = {"tls_certificate": authority.certificate("mx.mail.test")}
    with (
        PolicyServer(authority.certificate(*names), policy("mx.mail.test")) as web,
        World(tmp_path, zones=zones, **options) as world,
    ):
        web.delay = 0.5
        more = f'use-mta-sts = true\nsmtp-tls-ca-file = "{authority.ca}"\n[vmta.a]\n[vmta.b]\n[vmta.c]\n'
        mta = mta_of(world, more, f"mta-sts-port = {web.port}")
        for vmta in "abc":
            drop(mta, f"user-{vmta}@kept.test", vmta=vmta)
        drop(mta, "user@broken.test")
        with mta:
            mta.start()
            mta.wait_for(lambda: mta.count("d") == 3 and bool(queue_rows(mta, "else.mail.test.rollup")))
            assert [one["tls"] for one in received_by(world, "kept.test")] == ["TLSv1.3"] * 3
            row = queue_rows(mta, "else.mail.test.rollup")[0]
            assert row["dsnDiag"] == "smtp;the MTA-STS policy of broken.test does not name the host else.mail.test"
            assert to(mta, "user@broken.test") == []
            assert sorted(web.hosts) == sorted(names), "four processes, one fetch a domain"
