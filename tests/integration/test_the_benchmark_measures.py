"""The benchmark's own rules, and one short round of it: what it measures is for `make bench`."""

from __future__ import annotations

import json
import smtplib
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_mail import BOUNCED, DEFERRED, Mail, Work
from bench_measure import Round
from bench_report import render_table
from bench_rows import Pair, Row, against_ourselves, against_postfix, make_rows

from tests.support.mta import ROOT, wait_for

SCRIPTS = ROOT / "scripts"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def sink() -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([sys.executable, str(SCRIPTS / "bench_sink.py"), str(port)]) as process:
        try:
            wait_for(lambda: answers(port), lambda: "the sink does not answer")
            yield port
        finally:
            process.terminate()


def test_the_sink_answers_by_recipient(sink: int) -> None:
    with smtplib.SMTP("127.0.0.1", sink) as client:
        client.ehlo()
        assert not client.has_extn("starttls")
        codes = []
        for address in ("user1@a.test", "gone1@a.test", "later1@a.test", "later1@a.test", "later1@a.test"):
            client.mail("s@b.test")
            codes.append(client.rcpt(address)[0])
            assert client.data("text\n.\nmore\n")[0] == 250 if codes[-1] == 250 else client.rset()[0] == 250
        assert codes == [250, 550, 451, 250, 451]


def test_the_sink_finds_the_end_of_a_message_wherever_a_packet_ends(sink: int) -> None:
    with socket.create_connection(("127.0.0.1", sink)) as client, client.makefile("rb") as replies:
        replies.readline()
        for packet in (b"MAIL FROM:<>\r\nRC", b"PT TO:<u@a.test>\r\nDATA\r\n"):
            client.sendall(packet)
        assert [replies.readline()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
        for packet in (b"text\r", b"\n", b".", b"\r\nMAIL FROM:<>\r\nRCPT TO:<u@a.test>\r\nDATA\r\n"):
            client.sendall(packet)
        assert [replies.readline()[:3] for _ in range(4)] == [b"250", b"250", b"250", b"354"]
        client.sendall(b".\r\n")  # an empty message
        assert replies.readline()[:3] == b"250"


def test_a_work_goes_over_all_its_domains_and_vmtas() -> None:
    for row in make_rows(quick=True):
        mail = Mail(row.sides[0].work)
        if mail.work.recipients == 1 and not mail.work.mixed:
            pairs = Counter(mail.place(kind) for kind in range(mail.work.kinds))
            assert set(pairs.values()) == {1}
        assert {mail.place(kind)[0] for kind in range(mail.work.warm_up)} == set(range(mail.work.vmtas))


def test_in_a_mix_a_few_domains_have_half_the_mail_and_each_vmta_as_much_as_another() -> None:
    mail = Mail(Work("mix", vmtas=50, domains=200, mixed=True))
    places = [mail.place(kind) for kind in range(mail.work.kinds)]
    assert set(Counter(vmta for vmta, _ in places).values()) == {200}
    domains = Counter(domain for _, domain in places)
    assert len(domains) == 200
    assert sum(domains[domain] for domain in range(10)) == pytest.approx(5000, rel=0.05)


def test_of_a_mix_a_tenth_is_deferred_and_some_bounces() -> None:
    mail = Mail(Work("mix", vmtas=50, domains=200, mixed=True))
    assert mail.count(DEFERRED, 0, 10_000) == pytest.approx(1000, rel=0.1)
    assert mail.count(BOUNCED, 0, 10_000) == pytest.approx(300, rel=0.1)


def measured(row: Row, first: float, second: float) -> Pair:
    """A pair of rounds with these rates, or CPU times."""
    pair = {}
    for side, value in zip(row.sides, (first, second), strict=True):
        pair[side] = Round.of_cpu(side.system, int(value), 1.0, value)
    return pair


def test_a_target_is_met_by_the_median_of_the_pairs() -> None:
    work, other = Work("one"), Work("other")
    rate = Row("r", "rate", against_postfix(work), "rate", 4, 7)
    saving = Row("s", "saving", against_postfix(work), "saving", 4, 7)
    growth = Row("g", "growth", against_ourselves(work, other), "growth", 1.8, 1.4)
    for row, values, verdict in (
        (rate, (700, 100), "ok"),
        (rate, (699, 100), "aim MISSED"),
        (rate, (399, 100), "MISSED"),
        (saving, (100, 700), "ok"),
        (saving, (100, 399), "MISSED"),
        (growth, (140, 100), "ok"),
        (growth, (150, 100), "aim MISSED"),
        (growth, (181, 100), "MISSED"),
    ):
        pairs = [measured(row, *values), measured(row, *values), measured(row, 1, 1)]
        assert row.verdict(pairs) == verdict, (row, values)
        assert render_table([row], {row.sides: pairs}).endswith(verdict)


def test_a_short_round_through_tls_counts(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--no-postfix", "--dir", str(tmp_path), "--rows", "tls"]
    command += ["--pairs", "1", "--seconds", "0.1", "--sink-port", str(free_port()), "--json", str(table)]
    command += ["--spoolmta", str(Path(sys.executable).parent / "spoolmta")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(table.read_text()) if table.exists() else {}
    assert done.returncode == 0, done.stderr
    ((only,),) = found["rows"][0]["pairs"]
    assert only["messages"] > 0
    assert only["problems"] == []
    assert found["rows"][0]["verdict"] == "-"
