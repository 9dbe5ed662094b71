"""Receivers that mean harm, in a process of their own: `python -m tests.support.hostile FILE COUNT` listens on so many
ports of 127.0.0.2, each with the next one's manners, and writes the ports to FILE."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from pathlib import Path

from tests.support.mta import ROOT, wait_for

PAUSE = 0.2
FLOOD = b"250-and another thing\r\n" * 100


async def say_nothing(reader: StreamReader, _: StreamWriter) -> None:
    await reader.read()


async def drip(_: StreamReader, writer: StreamWriter) -> None:
    """A greeting, a byte at a time, without an end."""
    for byte in b"220-":
        writer.write(bytes((byte,)))
        await asyncio.sleep(PAUSE)
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(PAUSE)


async def drip_answers(reader: StreamReader, writer: StreamWriter) -> None:
    """A greeting, and to each command an answer in whole lines, of which one is never the last."""
    writer.write(b"220 drip.test\r\n")
    await reader.readline()
    while not writer.is_closing():
        writer.write(b"250-still thinking\r\n")
        await asyncio.sleep(PAUSE)


async def flood(reader: StreamReader, writer: StreamWriter) -> None:
    """Answers EHLO with lines without end, as fast as they are taken."""
    writer.write(b"220 flood.test\r\n")
    await reader.readline()
    while not writer.is_closing():
        writer.write(FLOOD)
        await writer.drain()


async def stop_reading(reader: StreamReader, writer: StreamWriter) -> None:
    """Takes everything, up to the content, of which it reads nothing."""
    writer.write(b"220 deaf.test\r\n")
    while not (line := await reader.readline()).upper().startswith(b"DATA"):
        if not line:
            return
        writer.write(b"250 ok\r\n")
    writer.write(b"354 go\r\n")
    await asyncio.sleep(3600)


MANNERS = {
    "saying nothing": say_nothing,
    "dripping": drip,
    "never done": drip_answers,
    "flooding": flood,
    "not reading": stop_reading,
}
DEAF = list(MANNERS).index("not reading")


async def _serve(file: str, count: int) -> None:
    ports = []
    for number in range(count):
        behave = [*MANNERS.values()][number % len(MANNERS)]

        async def serve(reader: StreamReader, writer: StreamWriter, behave=behave) -> None:  # type: ignore[no-untyped-def]
            try:
                await behave(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.transport.abort()

        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.2", 0))
        await asyncio.start_server(serve, sock=listening, limit=4096)
        ports.append(listening.getsockname()[1])
    Path(f"{file}.new").write_text(json.dumps(ports))
    os.rename(f"{file}.new", file)
    await asyncio.Event().wait()


class HostileReceivers:
    """So many of them for as long as the block lasts: `ports`, the manners in turn."""

    def __init__(self, path: Path, count: int) -> None:
        self._file, self._count = path / "hostile.json", count
        self.ports: list[int] = []

    def __enter__(self) -> HostileReceivers:
        command = [sys.executable, "-m", "tests.support.hostile", str(self._file), str(self._count)]
        self._process = subprocess.Popen(command, cwd=ROOT)
        wait_for(self._file.exists, lambda: "the hostile receivers do not listen")
        self.ports = json.loads(self._file.read_text())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
