"""A small authoritative DNS server, UDP and TCP on one port, that answers from a dict: for tests and the demo.

    {"example.com": {"MX": ["10 mx1.example.com"], "TXT": ["v=spf1 -all"], "TTL": 60},
     "mx1.example.com": {"A": ["127.0.0.2"]},
     "alias.test": {"CNAME": ["example.com"]},
     "*.bulk.test": {"MX": ["10 mx.bulk.test"]},     any name below bulk.test that is not in the dict itself
     "nx.test": "NXDOMAIN", "sf.test": "SERVFAIL", "no.test": "REFUSED", "silent.test": "DROP",
     "forged.test": "OTHER-ID", "mixed.test": "OTHER-NAME", "noise.test": "GARBAGE",      no answer to what was asked
     "slow.test": {"delay": 2.0, "A": ["127.0.0.3"]},
     "half.test": {"MX": "SERVFAIL", "A": ["127.0.0.4"]},      one type of a name fails
     "safe.test": {"AD": true, "MX": ["10 mx.safe.test"]}}      validated by DNSSEC, it says to who asks for that

Names in record data are absolute. What a question gets: the records; else the CNAME, followed as far as the dict
goes; else, for a name that exists (in the dict, or only above one that is), NODATA with the SOA; else NXDOMAIN with
the SOA below a name of the dict, and REFUSED elsewhere. The SOA is the one of the nearest name in the dict, and its
TTL and negative TTL are that name's. All words but NXDOMAIN also hold for everything below their name. An answer
larger than the client's EDNS size (512 without EDNS, 4096 at most) has TC set over UDP and is complete over TCP.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rrset

from spoolmta.errors import ConfigError, UnavailableError, UsageError
from spoolmta.published.zone import quoted

type_text = dns.rdatatype.to_text

DEFAULT_TTL = 60
UDP_LIMIT = 4096
CNAME_LIMIT = 16
COUNTS_LIMIT = 1_000_000  # different questions counted
_DROP = "DROP"
_CODES = ("NXDOMAIN", "SERVFAIL", "REFUSED")
WORDS = (*_CODES, _DROP, "OTHER-ID", "OTHER-NAME", "GARBAGE")


@dataclass(slots=True)
class _Entry:
    """One name of the dict, parsed."""

    word: str = ""
    delay: float = 0.0
    ttl: int = DEFAULT_TTL
    is_validated: bool = False
    words: dict[str, str] = field(default_factory=dict)
    records: dict[str, dns.rdataset.Rdataset] = field(default_factory=dict)


def _parse(name: str, value: object) -> _Entry:
    if isinstance(value, str):
        if value not in WORDS:
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(WORDS)}")
        return _Entry(word=value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: a table or one of {', '.join(WORDS)} is needed")
    try:
        entry = _Entry(delay=float(value.get("delay", 0)), ttl=int(value.get("TTL", DEFAULT_TTL)))
        entry.is_validated = bool(value.get("AD", False))
        for kind, data in value.items():
            if kind in ("delay", "TTL", "AD"):
                continue
            if isinstance(data, str) and data in WORDS:
                entry.words[kind.upper()] = data
                continue
            texts = [data] if isinstance(data, str) else list(data)
            if kind.upper() in ("MX", "CNAME", "NS", "PTR", "SRV"):
                texts = [text if text.endswith(".") else text + "." for text in texts]
            if kind.upper() == "TXT":
                texts = [text if text.startswith('"') else quoted(text) for text in texts]
            entry.records[kind.upper()] = dns.rdataset.from_text_list("IN", kind, entry.ttl, texts, relativize=False)
    except (dns.exception.DNSException, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    return entry


class DnsServer:
    """The server in a running loop: `start`, `close`; `counts` and `count` prove what was asked."""

    def __init__(self, zones: Mapping[str, object] | None = None) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tcp_questions = 0
        self.address = ""
        self._entries: dict[dns.name.Name, _Entry] = {}
        self._inner: set[dns.name.Name] = set()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._streams: set[_Stream] = set()
        self._later: set[asyncio.TimerHandle] = set()
        self._closed = asyncio.Event()
        self.replace(zones or {})

    def __repr__(self) -> str:
        return f"DnsServer(address={self.address!r}, names={len(self._entries)}, questions={self.counts.total()})"

    def replace(self, zones: Mapping[str, object]) -> None:
        """Serve these zones from now on. Raises ConfigError with every problem."""
        entries: dict[dns.name.Name, _Entry] = {}
        problems: list[str] = []
        for name, value in zones.items():
            try:
                entries[dns.name.from_text(name.lower())] = _parse(name, value)
            except ConfigError as error:
                problems += error.problems
            except dns.exception.DNSException as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ConfigError(problems)
        self._entries = entries
        self._inner = {name.split(len(name) - up)[1] for name in entries for up in range(1, len(name))}

    def count(self, name: str, kind: str = "") -> int:
        """How often `name` was asked for, of one type or of all."""
        name = name.lower().rstrip(".")
        if kind:
            return self.counts[name, kind.upper()]
        return sum(number for (asked, _), number in self.counts.items() if asked == name)

    async def start(self, address: str = "127.0.0.1:0") -> str:
        """Listen on UDP and TCP; returns ADDRESS:PORT. Raises UnavailableError."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"{address!r} is no address to listen on: ADDRESS:PORT is needed")
        for attempt in range(20, -1, -1):
            try:
                return await self._listen(host.strip("[]"), int(port))
            except OSError as error:
                await self.close()
                # The port that UDP was given may be taken for TCP: ask for another one.
                if int(port) or not attempt:
                    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
                    raise UnavailableError(f"cannot listen on {address}: {reason}") from error
        raise AssertionError("unreachable")

    async def _listen(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), (host, port))
        self._udp = transport
        port = transport.get_extra_info("sockname")[1]
        self._tcp = await loop.create_server(lambda: _Stream(self), host, port)
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return self.address

    async def close(self) -> None:
        """Stop; delayed answers are not sent."""
        for handle in self._later:
            handle.cancel()
        self._later.clear()
        if self._udp is not None:
            self._closed.clear()
            self._udp.close()
            self._udp = None
            await self._closed.wait()
        if self._tcp is not None:
            self._tcp.close()
            while self._streams:
                stream = next(iter(self._streams))
                stream.transport.abort()
                await stream.lost.wait()
            await self._tcp.wait_closed()
            self._tcp = None

    def question(self, wire: bytes, send: Callable[[bytes], None], over_tcp: bool) -> None:
        """Answer one message through `send`, now, later or never."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return
        asked = query.question[0]
        kind = type_text(asked.rdtype)
        key = (asked.name.to_text(omit_final_dot=True).lower(), kind)
        if key in self.counts or len(self.counts) < COUNTS_LIMIT:
            self.counts[key] += 1
        self.tcp_questions += over_tcp
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        if query.flags & dns.flags.AD or query.ednsflags & dns.flags.DO:
            response.flags |= dns.flags.AD
        delay, word = self._fill(response, asked.name, kind)
        if word == _DROP:
            return
        size = 65535 if over_tcp else min(UDP_LIMIT, max(512, query.payload if query.edns >= 0 else 512))
        answer = _spoiled(response.to_wire(max_size=size, prefer_truncation=True), word)
        if delay:
            self._send_later(delay, partial(send, answer))
        else:
            send(answer)

    def _send_later(self, delay: float, send: Callable[[], None]) -> None:
        def due() -> None:
            self._later.discard(handle)
            send()

        handle = asyncio.get_running_loop().call_later(delay, due)
        self._later.add(handle)

    def _fill(self, response: dns.message.Message, name: dns.name.Name, kind: str) -> tuple[float, str]:
        """Complete the response; returns the delay, and the word if there is one. Delays along a CNAME chain add up."""
        delay = 0.0
        for _ in range(CNAME_LIMIT):
            entry, apex = self._find(_lowered(name))
            if not self._is_validated(entry, apex):
                response.flags &= ~dns.flags.AD
            if entry is None:
                if apex is None:
                    # The end of a chain that leaves our names is the resolver's business.
                    if not response.answer:
                        response.set_rcode(dns.rcode.REFUSED)
                else:
                    response.set_rcode(dns.rcode.NXDOMAIN)
                    self._add_soa(response, apex)
                return delay, ""
            delay += entry.delay
            word = entry.word or entry.words.get(kind, "")
            if word:
                if word in _CODES:
                    response.set_rcode(dns.rcode.from_text(word))
                if word == "NXDOMAIN" and apex is not None:
                    self._add_soa(response, apex)
                return delay, word
            if records := entry.records.get(kind):
                response.answer.append(_named(name, records))
                return delay, ""
            if not (alias := entry.records.get("CNAME")):
                if apex is not None:
                    self._add_soa(response, apex)
                return delay, ""
            response.answer.append(_named(name, alias))
            name = alias[0].target
        return delay, ""

    def _is_validated(self, entry: _Entry | None, apex: dns.name.Name | None) -> bool:
        """What does not exist is validated where the name above it is."""
        above = self._entries.get(apex) if apex is not None else None
        return any(one is not None and one.is_validated for one in (entry, above))

    def _find(self, name: dns.name.Name) -> tuple[_Entry | None, dns.name.Name | None]:
        """What the dict says about a name, and the nearest name at or above it."""
        found = self._entries.get(name)
        if found is not None:
            return found, name
        wildcard: _Entry | None = None
        for up in range(1, len(name)):
            above = name.split(len(name) - up)[1]
            if wildcard is None and name not in self._inner:
                wildcard = self._entries.get(dns.name.Name([b"*", *above.labels]))
            entry = self._entries.get(above)
            if entry is not None or wildcard is not None:
                if wildcard is None and entry is not None and entry.word not in ("", "NXDOMAIN"):
                    return entry, above
                return wildcard or (_Entry() if name in self._inner else None), above
        return None, None

    def _add_soa(self, response: dns.message.Message, apex: dns.name.Name) -> None:
        entry = self._entries.get(apex)
        ttl = entry.ttl if entry is not None else DEFAULT_TTL
        data = f"ns.{apex} hostmaster.{apex} 1 3600 600 86400 {ttl}"
        response.authority.append(dns.rrset.from_text(apex, ttl, "IN", "SOA", data))


def _spoiled(wire: bytes, word: str) -> bytes:
    """An answer that is none: of another id, to a question for another name, or noise with the right id."""
    if word == "OTHER-ID":
        return bytes((wire[0] ^ 1,)) + wire[1:]
    if word == "OTHER-NAME":
        return wire[:13] + bytes((wire[13] ^ 1,)) + wire[14:]
    return wire[:2] + b"\xff" * 40 if word == "GARBAGE" else wire


def _lowered(name: dns.name.Name) -> dns.name.Name:
    return dns.name.Name([label.lower() for label in name.labels])


def _named(name: dns.name.Name, records: dns.rdataset.Rdataset) -> dns.rrset.RRset:
    return dns.rrset.from_rdata_list(name, records.ttl, list(records))


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str | Any, int]) -> None:
        def send(answer: bytes) -> None:
            if not self.transport.is_closing():
                self.transport.sendto(answer, source)

        self.server.question(data, send, over_tcp=False)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self.server._closed.set()


class _Stream(asyncio.Protocol):
    """RFC 7766: messages with two bytes of length, several on a connection; at most 64 KiB are kept."""

    def __init__(self, server: DnsServer) -> None:
        self.server = server
        self.kept = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server._streams.add(self)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self.server._streams.discard(self)
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        self.kept += data
        while len(self.kept) >= 2 and len(self.kept) >= (size := 2 + int.from_bytes(self.kept[:2], "big")):
            wire, self.kept = self.kept[2:size], self.kept[size:]
            self.server.question(wire, self.send, over_tcp=True)

    def send(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(len(answer).to_bytes(2, "big") + answer)


def load(path: str) -> dict[str, object]:
    """Zones from a TOML file: `"nx.test" = "NXDOMAIN"`, and a table `["example.com"]` for each other name."""
    try:
        with open(path, "rb") as file:
            zones = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        DnsServer(zones)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error
    return zones


def run(
    zones: Mapping[str, object], address: str = "127.0.0.1:0", ready: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Be a DNS server until SIGTERM or SIGINT; returns the number of questions by `name type`."""

    async def serve() -> dict[str, int]:
        server = DnsServer(zones)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        listening = await server.start(address)
        if ready is not None:
            ready(listening)
        await stop.wait()
        await server.close()
        return {f"{name} {kind}": number for (name, kind), number in server.counts.items()}

    return asyncio.run(serve())
