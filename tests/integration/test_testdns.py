"""The test DNS server, asked with dnspython's resolver."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import pytest

from spoolmta.errors import ConfigError, UnavailableError
from spoolmta.testdns import DnsServer, load

ZONES: dict[str, object] = {
    "example.com": {
        "MX": ["10 mx1.example.com", "20 mx2.example.com"],
        "A": ["127.0.0.2"],
        "TXT": ["v=spf1 -all"],
        "TTL": 7,
    },
    "deep.sub.example.com": {"A": ["127.0.0.5"]},
    "alias.test": {"CNAME": ["example.com"]},
    "loop.test": {"CNAME": ["loop.test"]},
    "null.test": {"MX": ["0 ."]},
    "nx.test": "NXDOMAIN",
    "sf.test": "SERVFAIL",
    "no.test": "REFUSED",
    "silent.test": "DROP",
    "forged.test": "OTHER-ID",
    "mixed.test": "OTHER-NAME",
    "noise.test": "GARBAGE",
    "half.test": {"MX": "SERVFAIL", "A": ["127.0.0.4"]},
    "slow.test": {"delay": 0.3, "A": ["127.0.0.3"]},
    "big.test": {"A": [f"127.0.1.{number}" for number in range(200)], "TXT": ["x" * 600]},
    "*.bulk.test": {"MX": ["10 mx.bulk.test"]},
    "mx.bulk.test": {"A": ["127.0.0.6"]},
}


class Running:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = DnsServer(ZONES)
        self.address = self.ask(self.server.start())
        self.host, self.port = self.address.split(":")
        self.resolver = dns.resolver.Resolver(configure=False)
        self.resolver.nameservers = [self.host]
        self.resolver.port = int(self.port)
        self.resolver.lifetime = 5.0

    def ask(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def texts(self, name: str, kind: str) -> list[str]:
        return sorted(data.to_text().lower() for data in self.resolver.resolve(name, kind))

    def query(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        return dns.query.udp(dns.message.make_query(name, kind, **options), self.host, 5, int(self.port))

    def stop(self) -> None:
        self.ask(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


def test_records_are_answered_with_their_ttl(server: Running) -> None:
    assert server.texts("Example.COM", "MX") == ["10 mx1.example.com.", "20 mx2.example.com."]
    assert server.texts("example.com", "TXT") == ['"v=spf1 -all"']
    assert server.texts("null.test", "MX") == ["0 ."]
    answer = server.query("example.com")
    assert answer.answer[0].ttl == 7
    assert answer.flags & dns.flags.AA


def test_a_missing_name_is_nxdomain_and_a_missing_type_nodata_both_with_the_soa(server: Running) -> None:
    for name, rcode in (("nobody.example.com", "NXDOMAIN"), ("sub.example.com", "NOERROR"), ("nx.test", "NXDOMAIN")):
        answer = server.query(name, "MX")
        assert dns.rcode.to_text(answer.rcode()) == rcode
        assert answer.authority[0].rdtype == dns.rdatatype.SOA
        assert not answer.answer
    with pytest.raises(dns.resolver.NoAnswer):
        server.resolver.resolve("null.test", "A")
    assert server.query("nobody.example.com").authority[0][0].minimum == 7


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("sf.test", "A", "SERVFAIL"),
        ("below.sf.test", "A", "SERVFAIL"),
        ("half.test", "MX", "SERVFAIL"),
        ("half.test", "A", "NOERROR"),
        ("no.test", "A", "REFUSED"),
        ("elsewhere.invalid", "A", "REFUSED"),
    ],
)
def test_a_failure_has_its_code(server: Running, name: str, kind: str, rcode: str) -> None:
    assert dns.rcode.to_text(server.query(name, kind).rcode()) == rcode


def test_a_cname_is_followed_and_a_loop_ends(server: Running) -> None:
    answer = server.resolver.resolve("alias.test", "A")
    assert answer.canonical_name.to_text() == "example.com."
    assert [data.to_text() for data in answer] == ["127.0.0.2"]
    assert server.query("loop.test").rcode() == dns.rcode.NOERROR


def test_a_wildcard_covers_what_is_not_there_itself(server: Running) -> None:
    assert server.texts("a.b.bulk.test", "MX") == ["10 mx.bulk.test."]
    assert server.texts("d123.bulk.test", "MX") == ["10 mx.bulk.test."]
    assert server.texts("mx.bulk.test", "A") == ["127.0.0.6"]
    assert server.query("d123.bulk.test", "A").rcode() == dns.rcode.NOERROR


def test_a_large_answer_is_truncated_over_udp_and_whole_over_tcp(server: Running) -> None:
    assert server.query("big.test").flags & dns.flags.TC
    assert server.query("big.test", use_edns=0, payload=1232).flags & dns.flags.TC
    assert not server.query("big.test", use_edns=0, payload=4096).flags & dns.flags.TC
    assert len(server.texts("big.test", "A")) == 200
    assert server.server.tcp_questions == 1
    assert b"".join(server.resolver.resolve("big.test", "TXT")[0].strings) == b"x" * 600


def test_a_delayed_answer_comes_later_and_a_dropped_one_never(server: Running) -> None:
    query = dns.message.make_query("slow.test", "A")
    with pytest.raises(dns.exception.Timeout):
        dns.query.udp(query, server.host, 0.05, int(server.port))
    assert server.texts("slow.test", "A") == ["127.0.0.3"]
    with pytest.raises(dns.exception.Timeout):
        dns.query.udp(dns.message.make_query("silent.test", "A"), server.host, 0.1, int(server.port))


@pytest.mark.parametrize("name", ["forged.test", "mixed.test", "noise.test", "below.forged.test"])
def test_an_answer_that_is_none_is_not_taken_for_one(server: Running, name: str) -> None:
    with pytest.raises(dns.query.BadResponse if "noise" not in name else dns.exception.DNSException):
        server.query(name)


def test_questions_are_counted_by_name_and_type(server: Running) -> None:
    for _ in range(3):
        server.query("EXAMPLE.com", "MX")
    server.query("example.com", "A")
    assert server.server.count("example.com", "MX") == 3
    assert server.server.count("example.com.") == 4
    assert server.server.count("other.test") == 0


def test_zones_can_be_replaced_while_it_runs(server: Running) -> None:
    server.server.replace({"new.test": {"A": ["127.0.0.9"]}})
    assert server.texts("new.test", "A") == ["127.0.0.9"]
    assert server.query("example.com").rcode() == dns.rcode.REFUSED


def test_noise_is_survived(server: Running) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        noise.sendto(b"\x00", (server.host, int(server.port)))
        noise.sendto(b"x" * 500, (server.host, int(server.port)))
    assert server.texts("example.com", "A") == ["127.0.0.2"]


def test_a_port_in_use_is_named(server: Running) -> None:
    with pytest.raises(UnavailableError, match=f"cannot listen on {server.address}: Address already in use"):
        server.ask(DnsServer({}).start(server.address))


def test_zones_are_loaded_from_toml_and_every_problem_is_told(tmp_path: Path) -> None:
    path = tmp_path / "zones.toml"
    path.write_text('"nx.test" = "NXDOMAIN"\n["example.com"]\nMX = ["10 mx.example.com"]\n')
    assert load(str(path)) == {"nx.test": "NXDOMAIN", "example.com": {"MX": ["10 mx.example.com"]}}
    path.write_text('"a.test" = "MAYBE"\n["b.test"]\nMX = ["ten"]\n["c.test"]\nNOTYPE = ["x"]\n')
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["a.test", "b.test", "c.test"]
