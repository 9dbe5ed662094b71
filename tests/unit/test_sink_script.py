"""The receiver's script language: one local part, one behaviour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolmta.sink_script import Behaviour, Kind, Stage, behaviour_of, find_test_id, plain_body, scripted_reply


@pytest.mark.parametrize(
    ("local_part", "expected"),
    [
        ("550-5.1.1", Behaviour(Stage.RCPT, Kind.REPLY, 550, "5.1.1")),
        ("451", Behaviour(Stage.RCPT, Kind.REPLY, 451)),
        ("421", Behaviour(Stage.RCPT, Kind.REPLY, 421)),
        ("EOD-452-4.2.2", Behaviour(Stage.DOT, Kind.REPLY, 452, "4.2.2")),
        ("data-554", Behaviour(Stage.DATA, Kind.REPLY, 554)),
        ("mail-550", Behaviour(Stage.MAIL, Kind.REPLY, 550)),
        ("drop-at-dot", Behaviour(Stage.DOT, Kind.DROP)),
        ("drop-at-rcpt", Behaviour(Stage.RCPT, Kind.DROP)),
        ("drop-after-mail", Behaviour(Stage.MAIL, Kind.DROP)),
        ("reset-at-data", Behaviour(Stage.DATA, Kind.RESET)),
        ("slow-2s", Behaviour(Stage.RCPT, Kind.DELAY, seconds=2.0)),
        ("slow-500ms", Behaviour(Stage.RCPT, Kind.DELAY, seconds=0.5)),
        ("slow-dot-2s", Behaviour(Stage.DOT, Kind.DELAY, seconds=2.0)),
        ("silent", Behaviour(Stage.RCPT, Kind.SILENT)),
        ("silent-at-dot", Behaviour(Stage.DOT, Kind.SILENT)),
        ("LongReply", Behaviour(Stage.RCPT, Kind.LONG)),
        ("garbage", Behaviour(Stage.RCPT, Kind.GARBAGE)),
        ("once-451", Behaviour(Stage.RCPT, Kind.REPLY, 451, first=1)),
        ("once-451-customer-7", Behaviour(Stage.RCPT, Kind.REPLY, 451, first=1)),
        ("twice-451-4.2.1-x", Behaviour(Stage.RCPT, Kind.REPLY, 451, "4.2.1", first=2)),
        ("first12-drop-at-dot-x", Behaviour(Stage.DOT, Kind.DROP, first=12)),
        ("550-5.1.1+tag", Behaviour(Stage.RCPT, Kind.REPLY, 550, "5.1.1")),
        ("alice--550-5.1.1+tag", Behaviour(Stage.RCPT, Kind.REPLY, 550, "5.1.1")),
        ("alice+tag--451", Behaviour(Stage.RCPT, Kind.REPLY, 451)),
    ],
)
def test_a_script_means_its_row_of_the_table(local_part: str, expected: Behaviour) -> None:
    assert behaviour_of(local_part) == expected


@pytest.mark.parametrize(
    "local_part",
    [
        "alice",
        "",
        "550x",
        "5501",
        "eod-",
        "data-set",
        "drop-in",
        "slow-s",
        "once-upon-a-time",
        "first0-451",
        "once-mail-550",
        "alice+550",
        "451--alice",
        "dataset",
        "silently",
        "garbages",
    ],
)
def test_what_is_no_script_is_accepted(local_part: str) -> None:
    assert behaviour_of(local_part) is None


@given(st.text())
def test_no_local_part_breaks_the_parser(local_part: str) -> None:
    assert behaviour_of(local_part) == behaviour_of(local_part.lower())


@given(st.integers(0, 999), st.sampled_from(["", "mail-", "data-", "eod-"]))
def test_a_scripted_reply_begins_with_its_code(code: int, prefix: str) -> None:
    behaviour = behaviour_of(f"{prefix}{code:03d}-5.7.1")
    assert behaviour is not None
    assert scripted_reply(behaviour, "a@b.test") == b"%03d 5.7.1 <a@b.test>: scripted\r\n" % code


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"")), max_size=8))
def test_undoing_the_dots_gives_the_lines_back(lines: list[bytes]) -> None:
    wire = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    assert plain_body(wire) == b"".join(line + b"\r\n" for line in lines)


def test_the_test_id_is_only_taken_from_the_header_section() -> None:
    assert find_test_id(b"Subject: a\r\nx-test-id:  42 \r\n\r\nbody") == "42"
    assert find_test_id(b"X-Test-Id: first\r\n\r\n") == "first"
    assert find_test_id(b"Subject: a\r\n\r\nX-Test-Id: 42\r\n") is None
    assert find_test_id(b"") is None
