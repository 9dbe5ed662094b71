"""Mail hosts, a DNS server and an opener in one event loop, for the ways in which TLS is decided."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from spoolmta.model import Config, DomainPolicy, Vmta
from spoolmta.opener import NotOpened, Opened, Opener
from spoolmta.sink import Options, Sink
from spoolmta.spool.layout import Layout
from spoolmta.testdns import DnsServer

MX = "mx.mail.test"


class Scene:
    """`a.test` has the mail host mx.mail.test, the first sink; `zones` are added or replace what is there. Names are
    validated by DNSSEC as far as `is_signed` says."""

    def __init__(self, path: Path, zones: dict[str, Any] | None = None, **options: Any) -> None:
        self.path = path
        self.zones = zones or {}
        self.sink = Sink(Options(**options))
        self.sts_port = 443
        self.ca_file = ""

    async def __aenter__(self) -> Scene:
        self.dns = DnsServer()
        nameserver = await self.dns.start()
        await self.sink.start(["127.0.0.2:0"])
        self.port = int(self.sink.addresses[0].rpartition(":")[2])
        self.serve({})
        config = Config(
            host_name="me.test", spool=str(self.path), nameservers=(nameserver,), mta_sts_port=self.sts_port
        )
        self.config = config
        self.opener = self.another_opener()
        return self

    def another_opener(self) -> Opener:
        """As another process has it."""
        return Opener(Vmta(name="v"), self.config, random.Random(1), Layout(str(self.path)))

    def serve(self, zones: dict[str, Any]) -> None:
        """Let the DNS say this besides."""
        port = self.port
        usual = {"a.test": {"MX": [f"10 {MX}"], "AD": True}, MX: {"A": ["127.0.0.2"], "AD": True}}
        named = {name.replace("PORT", str(port)): value for name, value in {**self.zones, **zones}.items()}
        self.dns.replace({**usual, **named})

    async def __aexit__(self, *_: object) -> None:
        await self.sink.close()
        await self.dns.close()

    async def open(self, opener: Opener | None = None, **policy: Any) -> Opened | NotOpened:
        """Open a session for a.test; it is dropped again at once."""
        complete = DomainPolicy(default_smtp_port=self.port, smtp_tls_ca_file=self.ca_file, **policy)
        result = await asyncio.wait_for((opener or self.opener).open("a.test", complete, (), lambda: None), 30)
        if isinstance(result, Opened):
            result.connection.abort()
        return result

    async def version(self, **policy: Any) -> str:
        """The TLS version a session for a.test gets, "plain", or why there is none."""
        result = await self.open(**policy)
        return str(result.failure) if isinstance(result, NotOpened) else result.ends.tls_protocol or "plain"
