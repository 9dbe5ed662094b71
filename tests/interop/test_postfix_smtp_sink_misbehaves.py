"""Postfix's smtp-sink as a receiver that refuses, hangs up and lacks extensions: one system meets them all at once.

Every case is a domain with one message to two recipients, which is tried exactly once: what waits, waits an hour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mta import Mta
from tests.support.postfix import SmtpSinks, assert_balanced, mta_towards, needs

pytestmark = [pytest.mark.interop, needs("smtp-sink")]

DELIVERED = ("d", "smtp;250 2.0.0 Ok")
HARD = "smtp;500 5.3.0 Error: command failed"
SOFT = "smtp;450 4.3.0 Error: command failed"
CLOSING = "smtp;421 4.0.0 Server closing connection"
LOST = "smtp;connection lost"
MAYBE = "smtp;connection lost (possible duplicate)"
REFUSED = [("-B", "554 5.7.1 Go away", "-f"), ("-b", "451 4.7.1 Come back", "-r")]


class Case(NamedTuple):
    """smtp-sink's options, and the row both recipients get; type `tq` is one row for the queue and none for them."""

    options: tuple[str, ...]
    type: str
    diagnostic: str

    def __str__(self) -> str:
        return " ".join(self.options)


CASES = [
    # Nobody is to blame: the recipients wait, the host failed.
    Case(("-f", "CONNECT"), "tq", HARD),
    Case(("-r", "CONNECT"), "tq", SOFT),
    Case(("-q", "CONNECT"), "tq", LOST),
    Case(("-Q", "CONNECT"), "tq", CLOSING),
    Case(("-r", "EHLO"), "tq", SOFT),
    Case(("-q", "EHLO"), "tq", LOST),
    Case(("-Q", "EHLO"), "tq", CLOSING),
    Case(("-f", "EHLO,HELO"), "tq", HARD),
    # Hard and soft refusals, in the order of the dialogue (smtp-sink offers no PIPELINING then).
    *(Case(("-f", stage), "b", HARD) for stage in ("MAIL", "RCPT", "DATA", ".")),
    *(Case(("-r", stage), "t", SOFT) for stage in ("MAIL", "RCPT", "DATA", ".")),
    *(Case((*REFUSED[0], stage), "b", "smtp;554 5.7.1 Go away") for stage in ("MAIL", "RCPT", "DATA", ".")),
    *(Case((*REFUSED[1], stage), "t", "smtp;451 4.7.1 Come back") for stage in ("MAIL", "RCPT", "DATA", ".")),
    Case(("-e", "-f", "RCPT"), "b", HARD),
    Case(("-f", "MAIL,RSET"), "b", HARD),
    # Gone in the middle, pipelined and not; after the dot it may have been a delivery.
    *(Case(("-q", stage), "t", LOST) for stage in ("MAIL", "RCPT", "DATA")),
    *(Case(("-p", "-q", stage), "t", LOST) for stage in ("MAIL", "RCPT", "DATA")),
    *(Case(options, "t", MAYBE) for options in (("-q", "."), ("-p", "-q", "."), ("-e", "-q", "."))),
    *(Case(("-Q", stage), "t", CLOSING) for stage in ("MAIL", "RCPT", "DATA", ".")),
    *(Case(("-p", "-Q", stage), "t", CLOSING) for stage in ("MAIL", "RCPT", "DATA", ".")),
    # What happens behind the delivery does not undo it.
    *(Case((option, "QUIT"), *DELIVERED) for option in ("-f", "-r", "-q", "-Q")),
    # Extensions that are missing, and a slow server.
    Case((), *DELIVERED),
    Case(("-f", "EHLO"), *DELIVERED),
    *(Case((option,), *DELIVERED) for option in ("-p", "-e", "-P", "-8", "-E", "-N")),
    *(Case((option, "1"), *DELIVERED) for option in ("-H", "-w")),
    Case(("-W", ".:1"), *DELIVERED),
    # A refusal while the body is under way.
    Case(("-A", "1"), "b", "smtp;550 This violates SMTP"),
]
DOMAINS = {f"case-{number}.test": case for number, case in enumerate(CASES)}

# A reply that comes with the 354 is ahead of the dot it answers: we wait, and try again.
EARLY = "early.test"
# Refused, and then without a way to go on in the session.
HANGS_UP, NO_RESET = "hangs-up.test", "no-reset.test"
OTHERS = {EARLY: ("-A", "0"), HANGS_UP: ("-f", "RCPT", "-q", "RSET"), NO_RESET: ("-f", "RCPT,RSET")}

ROUTE = """
[domain."{domain}"]
smtp-hosts = ["[127.0.0.1]:{port}"]
max-smtp-out = 1
retry-after = "1h"
retry-recipients-after = "1h"
"""


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    options = {domain: case.options for domain, case in DOMAINS.items()} | OTHERS
    with SmtpSinks(options) as sinks:
        routes = "".join(ROUTE.format(domain=domain, port=port) for domain, port in sinks.ports.items())
        with mta_towards(tmp_path_factory.mktemp("misbehaves"), sinks.ports[EARLY], routes) as mta:
            for domain in DOMAINS:
                mta.drop(f"a@{domain}", f"b@{domain}", body="Gr\u00fc\u00dfe\n.\n..\n" * 1000)
            mta.drop(f"a@{EARLY}", f"b@{EARLY}")
            for domain in (HANGS_UP, NO_RESET):
                for number in range(4):
                    mta.drop(f"{number}@{domain}")
            yield mta


def rows_of(mta: Mta, domain: str) -> list[dict[str, str]]:
    """The rows of a domain's recipients and of its queue."""
    return [
        row
        for row in mta.rows("d", "b", "t", "tq")
        if row["rcpt"].endswith("@" + domain) or row["queue"].startswith(domain + "/")
    ]


@pytest.mark.parametrize("domain", DOMAINS, ids=map(str, CASES))
def test_the_rows_say_what_the_receiver_did(mta: Mta, domain: str) -> None:
    _, kind, diagnostic = DOMAINS[domain]
    recipients = [""] if kind == "tq" else [f"a@{domain}", f"b@{domain}"]
    mta.wait_for(lambda: len(rows_of(mta, domain)) >= len(recipients))
    rows = rows_of(mta, domain)
    assert [(row["type"], row["dsnDiag"]) for row in rows] == [(kind, diagnostic)] * len(recipients)
    assert sorted(row["rcpt"] for row in rows) == recipients
    status = {"d": "2", "b": "5"}.get(kind)
    if status is not None:
        assert {row["dsnStatus"][0] for row in rows} == {status}
    actions = {"d": "relayed", "b": "failed", "t": "delayed", "tq": ""}
    assert {row["dsnAction"] for row in rows} == {actions[kind]}


def test_a_reply_ahead_of_the_dot_is_never_a_delivery(mta: Mta) -> None:
    # Whether it comes in one read with the 354 is chance: it is no SMTP then, and it is a refusal otherwise.
    mta.wait_for(lambda: len(rows_of(mta, EARLY)) == 2)
    seen = {(row["type"], row["dsnDiag"]) for row in rows_of(mta, EARLY)}
    too_many = ("t", "smtp;the server sent more replies than there were commands")
    assert len(seen) == 1
    assert seen <= {too_many, ("b", "smtp;550 This violates SMTP")}


@pytest.mark.parametrize("domain", [HANGS_UP, NO_RESET])
def test_a_receiver_that_ends_the_session_after_a_refusal_is_still_asked_about_the_next(mta: Mta, domain: str) -> None:
    mta.wait_for(lambda: len(rows_of(mta, domain)) == 4, 3.0)
    assert {row["type"] for row in rows_of(mta, domain)} == {"b"}


def test_the_balance_holds(mta: Mta) -> None:
    mta.wait_for(lambda: all(rows_of(mta, domain) for domain in (*DOMAINS, *OTHERS)))
    assert_balanced(mta)


def test_mail_that_waited_is_delivered_once_the_receiver_behaves(tmp_path: Path) -> None:
    dumped = tmp_path / "dump"
    bad = SmtpSinks({"sink": ["-q", "DATA"]})
    with mta_towards(tmp_path, bad.ports["sink"]) as mta:
        with bad:
            mta.drop("a@later.test", "b@later.test", body=".\n..two\nGr\u00fc\u00dfe\n")
            mta.wait_for(lambda: mta.count("t") >= 2)
        with SmtpSinks({"sink": ["-d", f"{dumped}/%M."]}, bad.ports):
            mta.wait_for(lambda: mta.count("d") == 2)
            assert_balanced(mta)
    (file,) = dumped.iterdir()
    text = file.read_bytes()
    assert re.findall(rb"^X-Rcpt-Args: <(.*)>", text, re.MULTILINE) == [b"a@later.test", b"b@later.test"]
    assert text.endswith(b"\n\n.\n..two\nGr\xc3\xbc\xc3\x9fe\n\n")
