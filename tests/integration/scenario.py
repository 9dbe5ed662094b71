"""What several scenarios need besides the harness of `tests.support.mta`."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.mta import Mta, World

_numbers = itertools.count()


def drop(mta: Mta, *recipients: str, folder: Path | None = None, **message: Any) -> None:
    """Drop a message as `Mta.drop` does, also before the system was ever started, or into the folder of another
    source."""
    name = f"s{next(_numbers)}.eml"
    source = mta.path / "drop" / name
    source.write_bytes(mta.message(*recipients, **message))
    target = folder or mta.spool / "pickup"
    target.mkdir(exist_ok=True)
    source.rename(target / name)


def free_port(*hosts: str) -> int:
    """A port that is free on all these addresses."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((hosts[0], 0))
            port = int(probe.getsockname()[1])
        try:
            for host in hosts[1:]:
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return port
    raise AssertionError(f"no free port on {hosts}")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextmanager
def listening(backlog: int = 10) -> Iterator[int]:
    """The port of a server on 127.0.0.2 that never says anything: the system accepts for it."""
    with socket.socket() as server:
        server.bind(("127.0.0.2", 0))
        server.listen(backlog)
        yield int(server.getsockname()[1])


def to(mta: Mta, recipient: str, *kinds: str) -> list[dict[str, str]]:
    """The rows of one recipient, without `r`."""
    return [row for row in mta.rows(*(kinds or ("d", "b", "t"))) if row["rcpt"] == recipient]


def queue_rows(mta: Mta, domain: str) -> list[dict[str, str]]:
    return [row for row in mta.rows("tq") if row["queue"].startswith(domain + "/")]


def from_source(world: World, source: str) -> dict[str, Any]:
    """The sink's counts of all connections from one address, added up over what it listens on."""
    total: dict[str, Any] = {"connections": 0, "current": 0, "peak": 0, "messages": 0}
    for pair in world.stats()["pairs"]:
        if pair["source"] == source:
            for key in total:
                total[key] += pair[key]
    return total


def received_by(world: World, domain: str) -> list[dict[str, Any]]:
    return [one for one in world.received() if one["recipients"][0].endswith("@" + domain)]


def answer(mta: Mta, *arguments: str) -> Any:
    """What a command says to a program."""
    result = mta.command(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def bring(mta: Mta, where: str, *vmtas: str) -> None:
    """Have these VMTAs "running" (as they are), "asleep" or "stopped"."""
    if where == "asleep":
        mta.wait_for(lambda: {mta.vmta(vmta)["state"] for vmta in vmtas} == {"asleep"})
    if where == "stopped":
        mta.stop()


def addresses(world: World) -> list[str]:
    """All recipients that the sink accepted."""
    return sorted(address for one in world.received() for address in one["recipients"])
