from __future__ import annotations

import pytest

from spoolmta import entry
from spoolmta.model import EntryName

ID = "1700000000.M000042P4711Q17.mx1-example-com"
PLAIN = f"{ID},S=4096,C=0badcafe,J=0"


def test_an_id_is_made_of_time_process_sequence_and_node() -> None:
    assert entry.make_id(1700000000, 42, 4711, 17, "mx1.example.com") == ID


@pytest.mark.parametrize(
    ("host", "node"), [("a.b", "a-b"), ("..", "-"), ("", "-"), ("x" * 99, "x" * 32), ("a/ü,b", "a-b")]
)
def test_a_node_has_only_letters_digits_and_hyphens(host: str, node: str) -> None:
    assert entry.node_name(host) == node


def test_defaults_are_left_out_of_the_name() -> None:
    assert entry.format_name(EntryName(ID, 4096, 0xBADCAFE, source="pickup")) == PLAIN
    assert entry.parse_name(PLAIN) == EntryName(ID, 4096, 0xBADCAFE)


def test_every_field_has_its_place_in_the_name() -> None:
    name = EntryName(ID, 1, 2, "12345678", 3, "api", "pool.1", 60, "pickup.77", "Mta_1", 4, 1700003600)
    text = f"{ID},S=1,C=00000002,J=12345678,N=3,P=60,L=pool.1,F=api,M=pickup.77,V=Mta_1:1,4,1700003600"
    assert entry.format_name(name) == text
    assert entry.parse_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x.eml",
        ID,
        PLAIN + "\n",
        PLAIN + ",",
        PLAIN + ":",
        PLAIN + ":1,",
        PLAIN + ":1,0,0",
        PLAIN + ":1,01,5",
        PLAIN + ":2,1,5",
        PLAIN + ",N=1",
        PLAIN + ",N=0",
        PLAIN + ",P=50",
        PLAIN + ",F=pickup",
        PLAIN + ",F=",
        PLAIN + ",V=..",
        PLAIN + ",V=a..b",
        PLAIN + ",L=A",
        PLAIN + ",M=a/b",
        PLAIN + ",M=.a",
        PLAIN + ",F=a,P=60",
        PLAIN + ",P=60,P=60",
        PLAIN + ",V=" + "v" * 33,
        PLAIN.replace("S=4096", "S=04096"),
        PLAIN.replace("0badcafe", "0BADCAFE"),
        PLAIN.replace("M000042", "M42"),
        PLAIN.replace("1700000000", "١٧٠٠٠٠٠٠٠٠"),
        "../" + PLAIN,
        PLAIN.replace("mx1-example-com", "../x"),
        PLAIN.replace("J=0", "J=1"),
        "\x00" + PLAIN,
    ],
)
def test_anything_else_is_not_a_name(text: str) -> None:
    with pytest.raises(ValueError, match="not the name of a queue file"):
        entry.parse_name(text)


@pytest.mark.parametrize(
    "name",
    [
        EntryName("x", 1, 2),
        EntryName(ID, -1, 2),
        EntryName(ID, 1, 1 << 32),
        EntryName(ID, 1, 2, vmta="../../etc"),
        EntryName(ID, 1, 2, pool="a/b"),
        EntryName(ID, 1, 2, recipients=0),
        EntryName(ID, 1, 2, attempts=-1),
        EntryName(ID + "x" * 15, 10**11, 2, "0" * 8, 99, "s" * 32, "l" * 32, 60, "m" * 32, "v" * 32, 99, 17000000000),
    ],
)
def test_what_could_not_be_read_again_is_not_written(name: EntryName) -> None:
    with pytest.raises(ValueError, match="not the name of a queue file"):
        entry.format_name(name)


def test_the_state_is_set_replaced_read_and_taken_off() -> None:
    tried = entry.with_state(PLAIN, 3, 1700003600)
    assert tried == PLAIN + ":1,3,1700003600"
    assert entry.with_state(tried, 4, 5) == PLAIN + ":1,4,5"
    assert entry.with_state(tried, 0, 0) == PLAIN
    assert (entry.state(tried), entry.state(PLAIN)) == ((3, 1700003600), (0, 0))
    assert (entry.bare(tried), entry.bare(PLAIN)) == (PLAIN, PLAIN)


def test_the_id_and_the_time_are_read_from_the_text() -> None:
    assert entry.entry_id(PLAIN + ":1,1,1") == ID
    assert entry.received(PLAIN) == 1700000000.000042


def test_a_job_has_eight_hex_digits_and_no_job_has_zero() -> None:
    assert entry.job_hash("") == "0"
    assert len(entry.job_hash("newsletter")) == 8
    assert entry.job_hash("a") != entry.job_hash("b")
