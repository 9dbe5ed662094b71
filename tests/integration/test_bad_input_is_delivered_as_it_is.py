"""Strange but sendable: line ends are normalised, the bytes between them are what the receiver gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mta import Mta, World

HEAD = b"x-sender: sender@mta.test\nx-receiver: user@one.test\n"
FROM = b"From: sender@mta.test\n"
LINE = b"x" * 1_000_000

BODIES = {
    "nul-bytes": (b"a\0b\n\0\0\n", b"a\0b\r\n\0\0\r\n"),
    "eight-bit": ("Grüße\n".encode("latin-1"), "Grüße\r\n".encode("latin-1")),
    "every-byte": (
        b"".join(bytes([value]) for value in range(256) if value not in b"\r\n") + b"\n",
        b"".join(bytes([value]) for value in range(256) if value not in b"\r\n") + b"\r\n",
    ),
    "a-line-of-a-megabyte": (LINE + b"\nend\n", LINE + b"\r\nend\r\n"),
    "megabyte-of-dots": (b"." * 1_000_000 + b"\n", b"." * 1_000_000 + b"\r\n"),
    "lf": (b"one\ntwo\n", b"one\r\ntwo\r\n"),
    "cr": (b"one\rtwo\r", b"one\r\ntwo\r\n"),
    "crlf": (b"one\r\ntwo\r\n", b"one\r\ntwo\r\n"),
    "mixed": (b"one\ntwo\rthree\r\nfour\n\rfive\r\r\nsix", b"one\r\ntwo\r\nthree\r\nfour\r\n\r\nfive\r\nsix\r\n"),
    "no-end": (b"one", b"one\r\n"),
    "dots": (b".\n..\n.one\n.\n", b".\r\n..\r\n.one\r\n.\r\n"),
    "smuggled-end": (b"one\r.\rMAIL FROM:<x@y.test>\n.\rtwo\n", b"one\r\n.\r\nMAIL FROM:<x@y.test>\r\n.\r\ntwo\r\n"),
    "empty": (b"", b""),
}
HEADERS = {
    "eight-bit-header": ("Subject: Grüße\n".encode("latin-1"), "Subject: Grüße\r\n".encode("latin-1")),
    "utf8-header": ("Subject: Grüße\n".encode(), "Subject: Grüße\r\n".encode()),
    "nul-in-header": (b"Subject: a\0b\n", b"Subject: a\0b\r\n"),
    "folded-header": (b"Subject: one\r\n two\n\tthree\n", b"Subject: one\r\n two\r\n\tthree\r\n"),
    "cr-header": (b"Subject: one\rX-Two: two\r", b"Subject: one\r\nX-Two: two\r\n"),
}
ADDRESSES = {
    "idn": ("user@bücher.example", "user@xn--bcher-kva.example", "xn--bcher-kva.example"),
    "a-label": ("user@XN--BCHER-KVA.example", "user@xn--bcher-kva.example", "xn--bcher-kva.example"),
    "upper-case": ("User@EXAMPLE.Test", "User@example.test", "example.test"),
    "literal": ("user@[192.0.2.1]", "user@[192.0.2.1]", "ip-192.0.2.1"),
    "ipv6-literal": ("user@[IPv6:2001:db8::1]", "user@[IPv6:2001:db8::1]", "ip-2001:db8::1"),
    "quoted": ('"a b@c"@one.test', '"a b@c"@one.test', "one.test"),
}


class Receiver:
    """The system, and what arrived from it by test id."""

    def __init__(self, world: World, mta: Mta, maildir: Path) -> None:
        self.world, self.mta, self._maildir = world, mta, maildir

    def arrived(self, test_id: str) -> tuple[dict[str, object], bytes]:
        """The record of the message and its bytes, once it is there."""
        found: list[dict[str, object]] = []

        def is_there() -> bool:
            found[:] = [line for line in self.world.received() if line["test_id"] == test_id]
            return bool(found)

        self.mta.wait_for(is_there)
        assert len(found) == 1
        return found[0], (self._maildir / "new" / str(found[0]["file"])).read_bytes()


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    path = tmp_path_factory.mktemp("strange")
    with World(path, maildir=str(path / "maildir")) as world, world.mta() as mta:
        yield Receiver(world, mta, path / "maildir")
        assert mta.audit()["balanced"]
        assert not list((mta.spool / "bad").iterdir())


@pytest.mark.parametrize("case", BODIES)
def test_the_body_arrives_with_crlf_and_otherwise_untouched(receiver: Receiver, case: str) -> None:
    given, expected = BODIES[case]
    receiver.mta.drop(data=HEAD + b"X-Test-Id: " + case.encode() + b"\n" + FROM + b"\n" + given)
    _, data = receiver.arrived(case)
    header = b"X-Test-Id: " + case.encode() + b"\r\nFrom: sender@mta.test\r\n\r\n"
    assert data == header + expected


@pytest.mark.parametrize("case", HEADERS)
def test_the_header_arrives_with_crlf_and_otherwise_untouched(receiver: Receiver, case: str) -> None:
    given, expected = HEADERS[case]
    receiver.mta.drop(data=HEAD + b"X-Test-Id: " + case.encode() + b"\n" + given + FROM + b"\nbody\n")
    _, data = receiver.arrived(case)
    header = b"X-Test-Id: " + case.encode() + b"\r\n" + expected + b"From: sender@mta.test\r\n\r\n"
    assert data == header + b"body\r\n"


@pytest.mark.parametrize("case", ADDRESSES)
def test_the_domain_goes_out_in_its_one_form_and_names_the_queue(receiver: Receiver, case: str) -> None:
    given, on_wire, folder = ADDRESSES[case]
    receiver.mta.drop(given, test_id=case)
    line, _ = receiver.arrived(case)
    assert line["recipients"] == [on_wire]
    receiver.mta.wait_for(lambda: any(row["rcpt"] == on_wire for row in receiver.mta.rows("d")))
    row = next(row for row in receiver.mta.rows("d") if row["rcpt"] == on_wire)
    assert row["queue"] == f"{folder}/default"
