from __future__ import annotations

import os
from pathlib import Path

import pytest

from spoolmta import journal
from spoolmta.journal import Journal
from spoolmta.model import Outcome


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "one.log")


def write(path: str, text: str) -> None:
    book = Journal(path)
    book.append(text)
    book.close()


def test_a_missing_journal_is_an_empty_one(path: str) -> None:
    record = journal.read(path)
    assert not record.accepted
    assert not record.settled
    assert not record.totals


def test_lines_have_the_forms_of_the_module_text() -> None:
    assert journal.accepted_line("id", "one", 3) == "A id one 3\n"
    assert journal.settled_line(Outcome.BOUNCED, "id", "a b%@c.test") == "B id a%20b%25@c.test\n"
    assert journal.quarantined_line("id", "c.test", 2) == "Q id @c.test 2\n"


def test_a_recipient_is_settled_once_and_the_first_line_counts(path: str) -> None:
    write(path, "D id a@b\nB id a@b\nA id one 1\nA id one 1\n")
    record = journal.read(path)
    assert record.settled == {"id": {"a@b": ("D", 1, False)}}
    assert record.accepted == {"id": 1}


@pytest.mark.parametrize(
    "line",
    ["D id", "A id one x", "Z id a@b", "", "\0\0\0\0", "D id a\0\0", "A id one ٣", "c id a", "Q id @d ٣", "T A=x"],
)
def test_a_line_of_another_form_is_passed_over(path: str, line: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{line}\nD id ok@b\n")
    record = journal.read(path)
    assert record.settled == {"id": {"ok@b": ("D", 1, False)}}
    assert not record.accepted
    assert not record.totals


def test_the_owner_cuts_off_a_half_line_and_goes_on_behind_the_last_whole_one(path: str) -> None:
    with open(path, "w") as file:
        file.write("D id a@b\nD id long-addr")
    assert journal.read(path).addresses("id") == {"a@b"}
    write(path, "D id c@b\n")
    assert journal.read(path).addresses("id") == {"a@b", "c@b"}


def test_compaction_keeps_the_living_and_adds_up_the_others(path: str) -> None:
    book = Journal(path)
    book.append("A x one 2\nA y one 1\nD x a@b\nB y c@d\nQ z @d 4\ncD x e@f\ncB y g@h\n")
    book.compact({"x"})
    book.append("E x b@b\n")
    book.compact({"x"})
    book.close()
    record = journal.read(path)
    assert record.totals == {"A": 1, "B": 1, "Q": 4}
    assert record.accepted == {"x": 2}
    assert record.settled == {"x": {"a@b": ("D", 1, False), "e@f": ("D", 1, True), "b@b": ("E", 1, False)}}
    with open(path) as file:
        assert file.readline() == "T A=1 B=1 Q=4\n"


def test_compaction_leaves_one_file_and_no_open_descriptor(path: str) -> None:
    book = Journal(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        book.append("D x a@b\n")
        book.compact(set())
    assert len(os.listdir("/proc/self/fd")) == before
    book.close()
    assert os.listdir(os.path.dirname(path)) == ["one.log"]
    assert journal.read(path).totals == {"D": 5}


def test_a_journal_is_long_again_only_when_it_has_doubled(path: str) -> None:
    line = "D 1700000000.M000000P1Q1.node " + "a" * 200 + "@b\n"
    book = Journal(path)
    assert not book.is_long
    for start in range(0, 80_000, 1000):
        book.append("".join(line.replace("Q1", f"Q{start + number}") for number in range(1000)))
    assert book.is_long
    book.compact(journal.read(path).settled.keys())
    assert not book.is_long
    book.close()


def test_a_move_copies_what_is_settled_and_marks_it_as_counted_elsewhere(tmp_path: Path) -> None:
    source, target = str(tmp_path / "one.log"), str(tmp_path / "two.log")
    write(source, "D x a@b\nQ x @c 3\nD y z@z\n")
    book = Journal(target)
    for address, (letter, count, _) in journal.read(source).settled["x"].items():
        book.append(journal.copied_line(letter, "x", address, count))
    book.close()
    assert journal.read(target).settled == {"x": {"a@b": ("D", 1, True), "@c": ("Q", 3, True)}}


@pytest.mark.parametrize(
    ("address", "folder"),
    [("a@b.test", "b.test"), ("@b.test", "b.test"), ("a@[192.0.2.1]", "ip-192.0.2.1"),
     ("a@[ipv6:2001:DB8:0:0::1]", "ip-2001:db8::1"), ("a@[nonsense]", "[nonsense]"), ("@*", "*")],
)  # fmt: skip
def test_a_settled_address_tells_its_domain_folder(address: str, folder: str) -> None:
    assert journal.folder(address) == folder


def test_how_often_a_sender_was_told_is_the_last_line_and_outlives_compaction(tmp_path: Path) -> None:
    source = str(tmp_path / "a.log")
    lines = [
        journal.told_line("x", "d.test", 1),
        journal.told_line("x", "d.test", 2),
        journal.told_line("y", "d.test", 5),
    ]
    write(source, "".join(lines))
    book = Journal(source)
    book.compact({"x"})
    book.close()
    assert journal.read(source).told == {"x": {"@d.test": 2}}
