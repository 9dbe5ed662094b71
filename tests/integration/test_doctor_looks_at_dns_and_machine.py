"""`spoolmta doctor`: each source address, asked about at a real name server, with nothing running."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spoolmta import doctor
from spoolmta.cli.frame import cli
from spoolmta.published.dkim_key import DkimKey
from spoolmta.testdns import DnsServer

CONFIG = """
host-name = "mta.test"
[spool]
directory = "spool"
[dns]
nameservers = ["{nameserver}"]
[vmta.good]
smtp-source-host = ["127.0.0.21 good.example.test"]
[vmta.bad]
smtp-source-host = ["127.0.0.22 bad.example.test", "127.0.0.23 bad.example.test"]
[vmta.elsewhere]
smtp-source-host = ["192.0.2.200 good.example.test"]
[vmta.private]
smtp-source-host = ["10.255.255.254 good.example.test"]
[vmta.silent]
smtp-source-host = ["127.0.0.24 silent.test"]
[vmta.hostile]
smtp-source-host = ["127.0.0.25 hostile.test"]
[vmta.slow]
smtp-source-host = ["127.0.0.26 slow.test"]
"""
KEY = DkimKey("s1", "example.test", "QUJD" * 100)
ZONES: dict[str, Any] = {
    "test": {},
    "in-addr.arpa": {},
    "example.test": {"MX": ["10 mx.example.test"], "TXT": ["verification=1", "v=spf1 include:spf.example.test -all"]},
    "spf.example.test": {"TXT": ["v=spf1 ip4:127.0.0.21 ?all"]},
    "mx.example.test": {"AAAA": ["2001:db8::9"]},
    "_dmarc.example.test": {"TXT": ["v=DMARC1; p=quarantine"]},
    "s1._domainkey.example.test": {"TXT": [KEY.record]},
    "good.example.test": {"A": ["127.0.0.21", "192.0.2.200", "198.51.100.7"]},
    "21.0.0.127.in-addr.arpa": {"PTR": ["good.example.test"]},
    "7.100.51.198.in-addr.arpa": {"PTR": ["good.example.test"]},
    "silent.test": "SERVFAIL",
    "_dmarc.silent.test": "SERVFAIL",
    "24.0.0.127.in-addr.arpa": "REFUSED",
    "hostile.test": {"TXT": ["v=spf1 \x1b[31mred\r\n; IN A 6.6.6.6 -all"], "A": ["127.0.0.9"]},
    "25.0.0.127.in-addr.arpa": {"PTR": ["\\027[2J\\010.test"]},
    "slow.test": "DROP",
    "26.0.0.127.in-addr.arpa": "DROP",
}


@pytest.fixture(scope="module")
def server() -> Iterator[DnsServer]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    found = DnsServer(ZONES)
    asyncio.run_coroutine_threadsafe(found.start(), loop).result(20)
    yield found
    asyncio.run_coroutine_threadsafe(found.close(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def config(server: DnsServer, tmp_path: Path) -> str:
    path = tmp_path / "spoolmta.toml"
    path.write_text(CONFIG.format(nameserver=server.address))
    return str(path)


def run(config: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", config, "doctor", *arguments])


def answer(config: str, *arguments: str) -> Any:
    return json.loads(run(config, *arguments, "--json").stdout)


def verdicts(found: Any) -> dict[str, str]:
    (one,) = found["addresses"]
    return {f"{finding['check']} {finding['about']}": finding["verdict"] for finding in one["findings"]}


def test_an_address_in_order_ends_with_status_0(config: str) -> None:
    result = run(config, "good", "--from", "example.test")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "good: 127.0.0.21, EHLO good.example.test",
        "senders (--from): example.test",
        "check\tabout\tis\tfound",
        "address\t127.0.0.21\tok\tof this machine",
    ]
    assert "SPF\texample.test\tok\tpass by include:spf.example.test" in lines
    assert "what to publish" not in result.stdout
    assert set(verdicts(answer(config, "good", "--from", "example.test")).values()) == {"ok"}


def test_what_is_wrong_ends_with_status_69_and_says_what_to_publish(config: str) -> None:
    result = run(config, "bad", "--from", "example.test")
    assert result.exit_code == 69
    assert "SPF\texample.test\twrong\tfail: -all" in result.stdout
    record = "v=spf1 ip4:127.0.0.22 ip4:127.0.0.23 include:spf.example.test -all"
    lines = [line.partition(" ;")[0].strip() for line in result.stdout.partition("what to publish:\n")[2].splitlines()]
    assert lines == [
        "22.0.0.127.in-addr.arpa. IN PTR bad.example.test.",
        "bad.example.test. IN A 127.0.0.22",
        f'example.test. IN TXT "{record}"',
        "23.0.0.127.in-addr.arpa. IN PTR bad.example.test.",
        "bad.example.test. IN A 127.0.0.23",
    ]


def test_without_from_the_ehlo_name_stands_for_the_sender(config: str) -> None:
    assert "senders (the EHLO name): good.example.test" in run(config, "good").stdout


def test_an_address_that_is_not_here_is_wrong(config: str) -> None:
    found = answer(config, "elsewhere", "--from", "example.test")
    assert verdicts(found)["address 192.0.2.200"] == "wrong"
    assert found["publish"][0]["line"] == "; on this machine: ip address add 192.0.2.200 dev INTERFACE"


def test_of_a_private_address_is_told_what_receivers_see(config: str) -> None:
    assert verdicts(answer(config, "private"))["DNS 10.255.255.254"] == "cannot tell"
    found = answer(config, "private", "--from", "example.test", "--seen-as", "10.255.255.254=198.51.100.7")
    assert verdicts(found)["PTR 198.51.100.7"] == "ok"
    assert "ip4:198.51.100.7" in next(one["data"] for one in found["publish"] if one["name"] == "example.test")


def test_failures_are_no_faults_and_end_with_status_75(config: str) -> None:
    found = verdicts(answer(config, "silent"))
    assert found.pop("address 127.0.0.24") == "ok"
    assert set(found.values()) == {"cannot tell"}
    assert run(config, "silent").exit_code == 75


def test_the_time_is_bounded_as_a_whole(config: str) -> None:
    begun = time.monotonic()
    found = answer(config, "slow", "silent", "--timeout", "1")
    assert time.monotonic() - begun < 5
    assert {finding["verdict"] for one in found["addresses"] for finding in one["findings"][1:]} == {"cannot tell"}


def test_what_strangers_publish_writes_neither_to_the_terminal_nor_into_a_zone(config: str) -> None:
    result = run(config, "hostile")
    assert "permerror: ?[31mred??; is no mechanism" in result.stdout
    assert all(line.replace("\t", "").isprintable() for line in result.stdout.split("\n"))
    lines = result.stdout.partition("what to publish:\n")[2].splitlines()
    assert "    ; mend the SPF record of hostile.test: ?[31mred??; is no mechanism" in lines
    assert not [line for line in lines if "6.6.6.6" in line]


def test_each_question_is_asked_once(config: str, server: DnsServer) -> None:
    server.counts.clear()
    run(config, "bad", "good", "--from", "example.test")
    assert set(server.counts.values()) == {1}


def test_another_name_server_may_be_asked(config: str, server: DnsServer) -> None:
    Path(config).write_text(CONFIG.format(nameserver="127.0.0.1:1"))
    result = run(config, "good", "--from", "example.test", "--nameserver", server.address)
    assert result.exit_code == 0


def test_keys_are_checked_and_name_the_senders(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "keys_of", lambda *_: (KEY,))
    found = answer(config, "good")
    assert found["addresses"][0]["senders_from"] == "domain-key"
    assert found["addresses"][0]["senders"] == ["example.test"]
    assert verdicts(found)["DKIM s1._domainkey.example.test"] == "ok"


def test_a_key_for_any_domain_is_looked_for_at_each_sender(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "keys_of", lambda *_: (DkimKey("s1", "*", KEY.public),))
    found = verdicts(answer(config, "good", "--from", "example.test", "--from", "mx.example.test"))
    assert found["DKIM s1._domainkey.example.test"] == "ok"
    assert found["DKIM s1._domainkey.mx.example.test"] == "wrong"


def test_the_unwritten_default_vmta_counts_where_mail_falls_back_on_it(config: str) -> None:
    def looked_at() -> set[str]:
        return {one["vmta"] for one in answer(config, "--timeout", "0.1")["addresses"]}

    assert "default" in looked_at()
    with open(config, "a") as file:
        file.write('[source.pickup]\ndefault-virtual-mta = "good"\n')
    assert looked_at() == {"good", "bad", "elsewhere", "private", "silent", "hostile", "slow"}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["nobody"], 65, "spoolmta: there is no VMTA called nobody"),
        (["--nameserver", "ns.test"], 64, 'spoolmta: --nameserver: expected an address like "127.0.0.1", '),
        (["--nameserver", "127.0.0.1:99999"], 64, "spoolmta: --nameserver: expected an address"),
        (["--from", "a@example.test"], 64, 'spoolmta: --from: expected a host name like "mta.example.com", '),
        (["--return-path", "-x y-"], 64, "spoolmta: --return-path: expected a host name"),
        (["--seen-as", "10.0.0.5"], 64, "spoolmta: --seen-as: expected two addresses"),
        (["--seen-as", "10.0.0.5=2001:db8::1"], 64, "spoolmta: --seen-as: expected two addresses"),
        (["--timeout", "0"], 64, "spoolmta: --timeout: expected more than 0 seconds"),
    ],
)
def test_bad_input_is_one_sentence(config: str, arguments: list[str], status: int, says: str) -> None:
    result = run(config, *arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
