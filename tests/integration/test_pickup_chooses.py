"""Which VMTA a message goes to, who its recipients are, what is taken off it; as each source is configured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mta import Mta, World

MORE = """
[vmta.bulk]
[vmta.news]
[vmta.secret]
[source.pickup]
default-virtual-mta = "bulk"
[source.strict]
pickup = "strict"
default-virtual-mta = "news"
allowed-virtual-mta = ["news", "bulk"]
[source.deaf]
pickup = "deaf"
default-virtual-mta = "news"
process-x-virtual-mta = false
process-x-job = false
[domain."down.test"]
smtp-hosts = ["[127.0.0.1]:1"]
retry-after = ["1h"]
[domain."down.example"]
smtp-hosts = ["[127.0.0.1]:1"]
retry-after = ["1h"]
"""


class System:
    def __init__(self, world: World, mta: Mta, maildir: Path) -> None:
        self.world, self.mta, self._maildir = world, mta, maildir

    def drop(self, data: bytes, folder: str = "") -> Path:
        target = self.mta.drop(name="dropped.new", data=data)
        place = self.mta.path / folder if folder else target.parent
        name = place / f"{os.urandom(6).hex()}.eml"
        target.rename(name)
        return name

    def row(self, recipient: str, kind: str = "d") -> dict[str, str]:
        self.mta.wait_for(lambda: any(row["rcpt"] == recipient for row in self.mta.rows(kind)))
        (row,) = [row for row in self.mta.rows(kind) if row["rcpt"] == recipient]
        return row

    def arrived(self, test_id: str) -> tuple[dict[str, Any], bytes]:
        self.mta.wait_for(lambda: any(line["test_id"] == test_id for line in self.world.received()))
        (line,) = [line for line in self.world.received() if line["test_id"] == test_id]
        return line, (self._maildir / "new" / line["file"]).read_bytes()

    def refused(self, path: Path) -> str:
        reason = self.mta.spool / "bad" / f"{path.stem}.reason"
        self.mta.wait_for(lambda: not path.exists() and reason.exists())
        return reason.read_text()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    path = tmp_path_factory.mktemp("chooses")
    with World(path, maildir=str(path / "maildir")) as world, world.mta(MORE, start=False) as mta:
        for folder in ("strict", "deaf"):
            (mta.path / folder).mkdir()
        mta.start()
        yield System(world, mta, path / "maildir")
        assert mta.audit()["balanced"]


def test_without_a_wish_the_source_decides(system: System) -> None:
    system.drop(system.mta.message("default@one.test"))
    row = system.row("default@one.test")
    assert (row["vmta"], row["srcType"]) == ("bulk", "pickup")


def test_a_message_may_choose_its_vmta_in_any_case(system: System) -> None:
    system.drop(system.mta.message("chosen@one.test", vmta="news"))
    system.drop(system.mta.message("upper@one.test", vmta="NEWS"))
    assert system.row("chosen@one.test")["vmta"] == "news"
    assert system.row("upper@one.test")["vmta"] == "news"


def test_a_choice_in_the_header_is_honoured_and_taken_off(system: System) -> None:
    data = (
        b"x-sender: s@mta.test\nx-receiver: header@one.test\nX-Test-Id: header\nFrom: s@mta.test\n"
        b"X-Virtual-MTA: news\nX-Job: j1\nSubject: hi\n\nX-Virtual-MTA: body\n"
    )
    system.drop(data)
    row = system.row("header@one.test")
    assert (row["vmta"], row["jobId"]) == ("news", "j1")
    _, content = system.arrived("header")
    expected = b"X-Test-Id: header\r\nFrom: s@mta.test\r\nSubject: hi\r\n\r\nX-Virtual-MTA: body\r\n"
    assert content == expected


def test_a_second_source_has_its_own_folder_default_and_allowed_vmtas(system: System) -> None:
    system.drop(system.mta.message("strict@one.test"), "strict")
    system.drop(system.mta.message("allowed@one.test", vmta="bulk"), "strict")
    refused = system.drop(system.mta.message("forbidden@one.test", vmta="secret"), "strict")
    assert system.row("strict@one.test")["vmta"] == "news"
    assert system.row("strict@one.test", "r")["srcType"] == "strict"
    assert system.row("strict@one.test")["srcType"] == "strict"
    assert system.row("allowed@one.test")["vmta"] == "bulk"
    reason = 'x-virtual-mta names the VMTA "secret", which the source "strict" does not allow\n'
    assert system.refused(refused) == reason


def test_the_same_choice_is_allowed_where_the_source_says_nothing(system: System) -> None:
    system.drop(system.mta.message("secret@one.test", vmta="secret"))
    assert system.row("secret@one.test")["vmta"] == "secret"


def test_a_source_may_be_deaf_to_wishes_and_still_takes_them_off(system: System) -> None:
    system.drop(system.mta.message("deaf@one.test", vmta="nosuch", job="job-7", test_id="deaf"), "deaf")
    row = system.row("deaf@one.test")
    assert (row["vmta"], row["jobId"]) == ("news", "")
    assert system.row("deaf@one.test", "r")["jobId"] == ""
    _, content = system.arrived("deaf")
    assert content.startswith(b"X-Test-Id: deaf\r\n")
    assert b"job-7" not in content


def test_a_job_is_logged_where_it_is_asked_for(system: System) -> None:
    system.drop(system.mta.message("job@one.test", job="job-8"))
    assert system.row("job@one.test", "r")["jobId"] == "job-8"
    assert system.row("job@one.test")["jobId"] == "job-8"


def test_without_envelope_lines_the_header_tells_and_bcc_is_removed(system: System) -> None:
    data = (
        b"From: The Sender <from@mta.test>\nTo: One <to@one.test>, two@one.test\nCc: cc@two.test\n"
        b"Bcc: hidden@one.test,\n folded@two.test\nX-Test-Id: bcc\nSubject: hi\n\nbody\n"
    )
    system.drop(data)
    names = {"to@one.test", "two@one.test", "cc@two.test", "hidden@one.test", "folded@two.test"}
    for name in names:
        assert system.row(name)["orig"] == "from@mta.test"
        assert system.row(name, "r")["orig"] == "from@mta.test"
    lines = [line for line in system.world.received() if line["test_id"] == "bcc"]
    assert sorted(name for line in lines for name in line["recipients"]) == sorted(names)
    expected = (
        b"From: The Sender <from@mta.test>\r\nTo: One <to@one.test>, two@one.test\r\nCc: cc@two.test\r\n"
        b"X-Test-Id: bcc\r\nSubject: hi\r\n\r\nbody\r\n"
    )
    for line in lines:
        assert (system._maildir / "new" / line["file"]).read_bytes() == expected


def test_with_envelope_lines_bcc_is_content_and_stays(system: System) -> None:
    top = b"x-sender: s@mta.test\nx-receiver: kept@one.test\n"
    system.drop(top + b"X-Test-Id: kept\nFrom: s@mta.test\nBcc: other@one.test\n\nbody\n")
    line, content = system.arrived("kept")
    assert line["recipients"] == ["kept@one.test"]
    assert b"\r\nBcc: other@one.test\r\n" in content


def test_a_message_for_three_domains_is_one_inode_and_reaches_each_recipient_once(system: System) -> None:
    names = ["a@up.test", "b@up.test", "c@down.test", "d@down.example"]
    system.drop(system.mta.message(*names, test_id="three"))
    queue = system.mta.spool / "queue" / "bulk"
    for name in names:
        assert system.row(name, "r")["msgId"] == system.row("a@up.test", "r")["msgId"]
    assert system.row("a@up.test")["msgId"] == system.row("b@up.test")["msgId"]
    (line,) = [line for line in system.world.received() if line["test_id"] == "three"]
    assert sorted(line["recipients"]) == names[:2]
    waiting = [path for name in ("down.test", "down.example") for path in (queue / name).glob("*/*")]
    assert len(waiting) == 2
    assert len({path.stat().st_ino for path in waiting}) == 1
    system.mta.wait_for(lambda: {path.stat().st_nlink for path in waiting} == {2})
    system.mta.wait_for(lambda: system.mta.audit()["queued"] == 2)
    audit = system.mta.audit()
    assert audit["balanced"], audit
    assert not list((system.mta.spool / "incoming").glob("*/*"))


def test_a_message_for_three_domains_is_delivered_to_all_and_its_inode_goes(system: System) -> None:
    names = ["e@one.test", "f@two.test", "g@two.test", "h@three.test"]
    system.drop(system.mta.message(*names, test_id="all"))
    for name in names:
        system.row(name)
    lines = [line for line in system.world.received() if line["test_id"] == "all"]
    assert sorted(name for line in lines for name in line["recipients"]) == names
    system.mta.wait_for(lambda: len(system.mta.entries()) == 2)  # those of the test before
    assert [row["rcpt"] for row in system.mta.rows("r") if row["rcpt"] in names] == names
