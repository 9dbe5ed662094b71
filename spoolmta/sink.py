"""A fast SMTP receiver for tests, demonstrations and benchmarks. It accepts everything, unless the recipient's
local part is a script: `550-5.1.1@`, `drop-at-dot@`, `slow-2s@`, ... (the table is in `sink_script`; how a
connection behaves and what a message counts as is in `sink_session`).

Theory of the record. With `record` the order is: line written to the file, then the 250 leaves. So every message
a client saw accepted has a line; a line may exist whose 250 was lost with its connection. All messages of one turn
of the loop share one write, and their replies wait for it. A line that cannot be written closes the connections
that wait for it, without their reply. Nothing is synced: it is the sender that gets crashed, not the receiver.

`stats` is replaced with a sync every second: put it on a tmpfs where a sync on the sender's disk would be measured.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from spoolmta import disk, sink_tls
from spoolmta.errors import SpoolError, UnavailableError, UsageError
from spoolmta.sink_counts import Pair, endpoint
from spoolmta.sink_script import Options, Replies, find_test_id, plain_body
from spoolmta.sink_session import Session

__all__ = ["Options", "Sink", "run"]

_new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    import uvloop
except ImportError:  # the plain loop does the same, slower
    _new_event_loop = asyncio.new_event_loop
else:
    _new_event_loop = uvloop.new_event_loop

ATTEMPTS_LIMIT = 1_000_000  # addresses whose `once-` count is remembered; the oldest is forgotten


class Sink:
    """The receiver in a running loop: `start`, `stats`, `close`."""

    def __init__(self, options: Options | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.options = options or Options()
        if not 200 <= self.options.greeting <= 599:
            raise UsageError(f"{self.options.greeting} is no SMTP reply code for a greeting")
        if self.options.starttls not in sink_tls.MODES:
            raise UsageError(f"{self.options.starttls!r} is no way to do STARTTLS: {', '.join(sink_tls.MODES)}")
        if self.options.tls_certificate:
            sink_tls.server_context(self.options.tls_certificate, self.options.tls_version, self.options.tls_client_ca)
        self.replies = Replies(self.options)
        self.clock = clock
        self.addresses: list[str] = []
        self.by_source: Counter[str] = Counter()
        self.tls_troubles: Counter[str] = Counter()  # handshakes that failed, by reason
        self.trouble = ""  # why the last line or file could not be written
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._connections: set[Session] = set()
        self._peak = 0
        self._attempts: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._record: disk.AppendFile | None = None
        self._lines: list[bytes] = []
        self._held: list[Session] = []
        self._files = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"Sink(addresses={self.addresses}, current={len(self._connections)}, trouble={self.trouble!r})"

    async def start(self, addresses: Sequence[str] = ("127.0.0.1:0",)) -> list[str]:
        """Listen; returns the addresses with the ports that port 0 became. Raises UnavailableError."""
        self.loop = asyncio.get_running_loop()
        try:
            if self.options.record:
                self._record = disk.AppendFile(self.options.record)
            if self.options.maildir:
                for folder in ("tmp", "new", "cur"):
                    os.makedirs(os.path.join(self.options.maildir, folder), exist_ok=True)
            for address in addresses:
                await self._listen(address)
        except OSError as error:
            await self.close()
            raise UnavailableError(f"cannot write {error.filename}: {error.strerror}") from error
        except (UnavailableError, UsageError):
            await self.close()
            raise
        if self.options.stats:
            self._tick()
        return self.addresses

    async def _listen(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise UsageError(f"{address!r} is no address to listen on: ADDRESS:PORT is needed")
        try:
            server = await self.loop.create_server(
                lambda: Session(self), host.strip("[]"), int(port), backlog=4096, reuse_port=self.options.reuse_port
            )
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise UnavailableError(f"cannot listen on {address}: {reason}") from error
        self._servers.append(server)
        self.addresses.append(endpoint(server.sockets[0].getsockname()))

    async def close(self) -> None:
        """Stop listening, cut all connections, and leave the record and the statistics complete."""
        for server in self._servers:
            server.close()
        self._write_record()
        for connection in list(self._connections):
            connection.transport.abort()
        if self._connections:
            self._empty = asyncio.Event()
            await self._empty.wait()
        for server in self._servers:
            await server.wait_closed()
        if self._record is not None:
            self._record.close()
            self._record = None
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
            self._write_stats()

    def stats(self) -> dict[str, Any]:
        """`totals`, and one row for each listening and source address in `pairs`."""
        totals: Counter[str] = Counter()
        rows = []
        for (listening, source), pair in sorted(self._pairs.items()):
            counts = pair.counts()
            totals.update(counts)
            rows.append({"listening": listening, "source": source, **counts, "ehlo": dict(pair.names)})
        empty = Pair().counts()
        peaks = {"current": len(self._connections), "peak": self._peak}
        return {
            "totals": {**empty, **totals, **peaks},
            "trouble": self.trouble,
            "tls_troubles": dict(self.tls_troubles),
            "pairs": rows,
        }

    def enter(self, connection: Session) -> Pair:
        self._connections.add(connection)
        self._peak = max(self._peak, len(self._connections))
        self.by_source[connection.source] += 1
        pair = self._pairs.setdefault((connection.listening, connection.source), Pair())
        pair.connections += 1
        pair.current += 1
        pair.peak = max(pair.peak, pair.current)
        return pair

    def leave(self, connection: Session) -> None:
        self._connections.discard(connection)
        connection.pair.current -= 1
        self.by_source[connection.source] -= 1
        if not self.by_source[connection.source]:
            del self.by_source[connection.source]
        if self._empty is not None and not self._connections:
            self._empty.set()

    def attempt(self, address: str) -> int:
        """How often this address was tried, this time included."""
        count = self._attempts.get(address, 0) + 1
        self._attempts[address] = count
        if len(self._attempts) > ATTEMPTS_LIMIT:
            del self._attempts[next(iter(self._attempts))]
        return count

    def keep(self, connection: Session, body: bytes, size: int) -> None:
        """The message into the maildir, its line into this turn's write. Raises OSError."""
        now = self.clock()
        line: dict[str, Any] = {
            "time": now,
            "source": connection.source,
            "listening": connection.listening,
            "ehlo": connection.name,
            "mail_from": connection.sender,
            "recipients": connection.recipients,
            "size": size,
            "verb": connection.verb,
            "test_id": find_test_id(body),
            **sink_tls.describe(connection.channel),
        }
        if self.options.maildir:
            self._files += 1
            line["file"] = name = f"{now:.6f}.{os.getpid()}_{self._files}.{self.options.host_name}"
            temporary = os.path.join(self.options.maildir, "tmp", name)
            disk.write_new(temporary, body[:size] if connection.verb == "BDAT" else plain_body(body[:size]))
            disk.rename(temporary, os.path.join(self.options.maildir, "new", name))
        if self._record is None:
            return
        if not self._lines:
            self.loop.call_soon(self._write_record)
        self._lines.append(msgspec.json.encode(line) + b"\n")
        if not connection.held:
            connection.held = True
            self._held.append(connection)

    def _write_record(self) -> None:
        lines, self._lines = self._lines, []
        held, self._held = self._held, []
        try:
            if lines and self._record is not None:
                self._record.append(b"".join(lines))
        except SpoolError as error:
            self.trouble = str(error)
            for connection in held:
                connection.out.clear()
                connection.finish()
        for connection in held:
            connection.held = False
            connection.flush()

    def _tick(self) -> None:
        self._write_stats()
        self._ticker = self.loop.call_later(1.0, self._tick)

    def _write_stats(self) -> None:
        try:
            disk.replace(os.path.abspath(self.options.stats), msgspec.json.encode(self.stats()) + b"\n")
        except (OSError, SpoolError) as error:
            self.trouble = str(error)


def run(
    addresses: Sequence[str], options: Options | None = None, ready: Callable[[list[str]], None] | None = None
) -> dict[str, Any]:
    """Be a receiver until SIGTERM or SIGINT; returns the statistics. `ready` is called with the addresses."""

    async def serve() -> dict[str, Any]:
        sink = Sink(options)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        listening = await sink.start(addresses)
        if ready is not None:
            ready(listening)
        await stop.wait()
        await sink.close()
        return sink.stats()

    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(serve())
