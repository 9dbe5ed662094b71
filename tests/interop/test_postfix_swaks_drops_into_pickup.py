"""swaks as the batch system that drops mail: what it writes is delivered as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mta import Mta, World
from tests.support.postfix import assert_balanced, needs, run

pytestmark = [pytest.mark.interop, needs("swaks")]

ENVELOPE = b"x-sender: bounces@mta.test\nx-receiver: %s@sink.test\nx-job: swaks\n"
DUMPS = {
    "plain": ["--body", "Hello\n.dot\n..two\nlast"],
    "8-bit": ["--body", "Gr\u00fc\u00dfe", "--header", "Subject: Gr\u00fc\u00dfe"],
    "attachment": ["--attach-type", "application/octet-stream", "--attach-name", "noise", "--attach", "@{noise}"],
    "blank": ["--body", "\\n"],  # an empty one would make swaks ask for it
}
NOISE = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    path = tmp_path_factory.mktemp("swaks")
    with World(path, maildir=str(path / "mail")) as world, world.mta() as mta:
        assert not mta.process_ended(), mta.log()
        yield world, mta


def dump(tmp_path: Path, test_id: str, *options: str, to: str = "header@sink.test") -> bytes:
    """The message swaks would send, as `swaks --dump-mail` prints it: CR LF, dots doubled, a bare CR at the end."""
    noise = tmp_path / "noise"
    noise.write_bytes(NOISE)
    filled = [option.format(noise=noise) for option in options]
    done = run(
        "swaks", "--dump-mail", "--from", "a@mta.test", "--to", to, "--add-header", f"X-Test-Id: {test_id}", *filled
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def delivered(system: tuple[World, Mta], test_id: str) -> tuple[dict[str, object], bytes]:
    """(the record, the message) that the sink has with this id."""
    world, mta = system

    def found() -> list[dict[str, object]]:
        return [one for one in world.received() if one["test_id"] == test_id]

    mta.wait_for(lambda: bool(found()))
    (record,) = found()
    return record, (world.path / "mail" / "new" / str(record["file"])).read_bytes()


@pytest.mark.parametrize("kind", DUMPS)
def test_a_dump_behind_envelope_lines_is_delivered_intact(system: tuple[World, Mta], tmp_path: Path, kind: str) -> None:
    _, mta = system
    message = dump(tmp_path, kind, *DUMPS[kind])
    mta.drop(data=ENVELOPE % kind.encode() + message)
    record, mail = delivered(system, kind)
    assert (record["mail_from"], record["recipients"]) == ("bounces@mta.test", [f"{kind}@sink.test"])
    assert mail == re.sub(rb"\r(?!\n)", b"\r\n", message)
    mta.wait_for(lambda: any(row["rcpt"] == f"{kind}@sink.test" and row["jobId"] == "swaks" for row in mta.rows("d")))


def test_a_dump_alone_goes_to_whom_its_header_names(system: tuple[World, Mta], tmp_path: Path) -> None:
    _, mta = system
    message = dump(tmp_path, "alone", "--header", "Cc: second@sink.test", "--header", "Bcc: third@sink.test")
    assert b"Bcc: " in message
    mta.drop(data=message)
    record, mail = delivered(system, "alone")
    assert record["mail_from"] == "a@mta.test"
    assert record["recipients"] == [f"{name}@sink.test" for name in ("header", "second", "third")]
    assert mail == re.sub(rb"\r(?!\n)", b"\r\n", message).replace(b"Bcc: third@sink.test\r\n", b"")


def test_the_balance_holds(system: tuple[World, Mta], tmp_path: Path) -> None:
    _, mta = system
    mta.drop(data=ENVELOPE % b"550" + dump(tmp_path, "refused"))
    mta.wait_for(lambda: mta.count("b") == 1 and mta.count("d") == mta.count("r") - 1)
    assert_balanced(mta)
