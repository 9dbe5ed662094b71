"""10,000 domains at once whose name servers are not there, fail, answer something else or answer late: healthy domains
of the same VMTA are as fast as those of a system without them, and memory and descriptors stay within bounds.

As in `test_bad_domains_slow_nobody`, two systems deliver at the same time. The healthy domains' records live for 30
seconds, so that they are asked for again in the middle of it. Where there is no name server at all, a route of the
operator's own leads to the healthy domains.
"""

from __future__ import annotations

import shutil
import socket
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mta import BASE, Mta, World
from tests.support.torture import Compared, compare, preload, tell

HEALTHY = ("ill", "well")
DOMAINS = 100
ZONES = {
    "servfail.test": "SERVFAIL",
    "silent.test": "DROP",
    "other-id.test": "OTHER-ID",
    "other-name.test": "OTHER-NAME",
    "garbage.test": "GARBAGE",
    "*.late.test": {"delay": 3.0, "MX": ["10 mx.late.test"]},
    "mx.late.test": {"delay": 3.0, "A": "SERVFAIL", "AAAA": "SERVFAIL"},
    **{f"*.{name}.test": {"TTL": 30, "A": ["127.0.0.2"]} for name in HEALTHY},  # each is its own host, and site
}
KINDS = {
    "SERVFAIL": ("servfail",),
    "silence": ("silent",),
    "wrong answers": ("other-id", "other-name", "garbage"),
    "late answers": ("late",),
    "no name server": ("anything",),
}
CONFIG = """
[domain."*"]
max-smtp-out = 1
default-smtp-port = {port}
connection-idle-timeout = "1m"
[vmta.all]
smtp-source-host = ["127.0.0.31"]
"""
DESCRIPTORS = 1000 + 32 + 2 * DOMAINS
"""Questions, the process's own, and a session for each healthy domain, with one that says goodbye."""
MEMORY, MEMORY_EACH = 32 << 20, 10 << 10
"""For the questions under way, and for each domain that is asked for."""
BAD, RUNS = 10_000, (30, 30, 30)
COLD = 40.0
"""10,000 questions, of which 500 at a time have a second, and the start."""


@contextmanager
def no_name_server() -> Iterator[str]:
    """Two of them: a port that is closed, and one where questions go unread."""
    with socket.socket(type=socket.SOCK_DGRAM) as closed, socket.socket(type=socket.SOCK_DGRAM) as deaf:
        closed.bind(("127.0.0.1", 0))
        deaf.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in (closed, deaf)]
        closed.close()
        yield ", ".join(f'"127.0.0.1:{port}"' for port in ports)


def config_of(world: World, nameservers: str, *, is_routed: bool) -> str:
    dns = f"[dns]\nnameservers = [{nameservers}]\nallow-loopback-mx = true\n"
    text = BASE.format(dns=dns, sleep_after="10m", default_route="") + CONFIG.format(port=world.port)
    if is_routed:
        for domain in (f"d{number}.{name}.test" for name in HEALTHY for number in range(DOMAINS)):
            text += f'[domain."{domain}"]\nsmtp-hosts = ["[{world.host}]:{world.port}"]\n'
    return text


def measure(path: Path, kinds: tuple[str, ...], bad: int, runs: tuple[int, ...]) -> Compared:
    """With mail for so many domains of these kinds, one for each."""
    with World(path, zones=ZONES) as world, no_name_server() as nobody:
        is_routed = kinds == KINDS["no name server"]
        text = config_of(world, nobody if is_routed else f'"{world.nameserver}"', is_routed=is_routed)
        ill, well = (Mta(path / name, text, start=False) for name in HEALTHY)
        with ill, well:
            preload(ill, "all", (f"m@d{number}.{kinds[number % len(kinds)]}.test" for number in range(bad)))
            compared = compare(world, ill, well, runs)
    assert len(ill.entries()) >= bad
    assert not ill.rows("b", "t"), "it is the name servers' trouble, not the mail's"
    shutil.rmtree(ill.spool)
    return compared


def test_domains_that_cannot_be_looked_up_hold_up_nobody(tmp_path: Path) -> None:
    kinds = tuple(one for kind in KINDS.values() for one in kind if one != "anything")
    compared = measure(tmp_path, kinds, 300, (3,))
    assert compared.ratios[0] > 0.2, "held up; how little exactly is measured in the long form"
    assert compared.descriptors <= DESCRIPTORS
    assert compared.memory <= 300 * MEMORY_EACH + MEMORY


@pytest.mark.torture
@pytest.mark.parametrize("kind", KINDS)
def test_healthy_domains_are_as_fast_beside_10_000_that_cannot_be_looked_up(tmp_path: Path, kind: str) -> None:
    compared = measure(tmp_path, KINDS[kind], BAD, RUNS)
    ratio, memory = statistics.median(compared.ratios), BAD * MEMORY_EACH + MEMORY
    tell(
        f"100 domains beside 10,000: {kind}", ">= 95 %", f"{ratio:.1%}, worst of {len(RUNS)} {min(compared.ratios):.1%}"
    )
    tell("  the first message for each of the 100", f"<= {COLD:.0f} s", f"{compared.cold:.1f} s")
    tell("  open descriptors", f"<= {DESCRIPTORS}", f"{compared.descriptors}")
    tell("  memory more than without them", f"<= {memory >> 20} MiB", f"{compared.memory >> 20} MiB")
    assert ratio >= 0.95
    assert compared.cold <= COLD
    assert compared.descriptors <= DESCRIPTORS
    assert compared.memory <= memory
