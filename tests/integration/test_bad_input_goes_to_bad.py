"""What cannot be sent: whole to `bad/` with one line of reason, logged, and the rest goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mta import Mta, World

MORE = """
[source.pickup]
max-message-size = "2M"
[vmta.news]
"""
TOP = b"x-sender: sender@mta.test\nx-receiver: "
MAIL = b"From: sender@mta.test\nSubject: bad\n\nHello\n"
LONG_DOMAIN = b".".join([b"a" * 49] * 6)

CASES = {
    "no recipient": (MAIL, "no recipient"),
    "no header at all": (TOP + b"a@one.test\nthis is a text\nof two lines\n", "no header field"),
    "nothing behind the envelope": (TOP + b"a@one.test\n", "no message behind the envelope lines"),
    "recipient without @": (TOP + b"nobody\n" + MAIL, 'recipient "nobody" is not an address: it has no @'),
    "second recipient is no address": (TOP + b"a@one.test\nx-receiver: <b@>\n" + MAIL, "nothing behind the @"),
    "header without end": (TOP + b"a@one.test\nFrom: a@b.test\nX: " + b"y" * 1_100_000, "header does not end within"),
    "unknown VMTA": (TOP + b"a@one.test\nx-virtual-mta: nosuch\n" + MAIL, 'VMTA "nosuch", which does not exist'),
    "VMTA with a path": (TOP + b"a@one.test\nx-virtual-mta: ../../etc\n" + MAIL, "is not the name of a VirtualMTA"),
    "VMTA of two dots": (TOP + b"a@one.test\nx-virtual-mta: ..\n" + MAIL, "is not the name of a VirtualMTA"),
    "VMTA with a path in the header": (
        TOP + b"a@one.test\nX-Virtual-MTA: news/../../etc\n" + MAIL,
        "is not the name of a VirtualMTA",
    ),
    "domain of 300 characters": (TOP + b"a@" + LONG_DOMAIN + b"\n" + MAIL, "longer than 253 characters"),
    "domain with a slash": (TOP + b"a@one/two.test\n" + MAIL, "the domain is not a domain name"),
    "domain of two dots": (TOP + b"a@..\n" + MAIL, "the domain is not a domain name"),
    "domain that climbs": (TOP + b"a@../../etc\n" + MAIL, "the domain is not a domain name"),
    "domain with a space": (TOP + b"a@one two.test\n" + MAIL, "it has a space in it"),
    "quoted domain with a space": (TOP + b'"a b"@one two.test\n' + MAIL, "it has a space in it"),
    "NUL in a recipient": (TOP + b"a\0b@one.test\n" + MAIL, "not allowed outside quotes"),
    "larger than allowed": (TOP + b"a@one.test\n" + MAIL + b"z" * 2_100_000, "larger than max-message-size"),
    "sender that is no address": (b"x-sender: x y\nx-receiver: a@one.test\n" + MAIL, 'sender "x y" is not an address'),
}


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    with World(tmp_path_factory.mktemp("bad")) as world, world.mta(MORE) as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        yield mta


@pytest.mark.parametrize("case", CASES)
def test_it_goes_whole_to_bad_with_one_line_of_reason_and_is_logged(mta: Mta, case: str) -> None:
    data, reason = CASES[case]
    accepted = mta.count("r")
    stem = case.replace(" ", "-")
    bad, why = mta.spool / "bad" / f"{stem}.eml", mta.spool / "bad" / f"{stem}.reason"
    mta.drop(name=f"{stem}.eml", data=data)
    mta.wait_for(lambda: bad.exists())
    assert bad.read_bytes() == data
    text = why.read_text()
    assert reason in text
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert text.strip().isprintable()
    assert len(text) < 250
    assert not (mta.spool / "pickup" / f"{stem}.eml").exists()
    mta.wait_for_log(f"refused '{stem}.eml': ")
    assert text.strip() in mta.log()
    assert mta.count("r") == accepted


def test_the_rest_of_the_batch_goes_on(mta: Mta) -> None:
    refused, delivered = mta.status()["pickup"]["refused"], mta.count("d")
    for number in range(20):
        mta.drop(name=f"mixed-{number}.eml", data=MAIL)
        mta.drop(f"mixed-{number}@one.test")
    mta.wait_for(lambda: mta.count("d") == delivered + 20)
    mta.wait_for(lambda: len(list((mta.spool / "bad").glob("mixed-*.eml"))) == 20)
    assert mta.status()["pickup"]["refused"] == refused + 20


def test_a_name_that_is_taken_in_bad_becomes_an_id_and_nothing_is_overwritten(mta: Mta) -> None:
    bad = mta.spool / "bad"
    mta.drop(name="twice.eml", data=b"Subject: the first\n\n")
    mta.wait_for(lambda: (bad / "twice.eml").exists())
    before = set(bad.iterdir())
    mta.drop(name="twice.eml", data=b"Subject: the second\n\n")
    mta.wait_for(lambda: len(set(bad.iterdir()) - before) == 2)
    (second,) = [path for path in set(bad.iterdir()) - before if path.suffix == ".eml"]
    assert second.read_bytes() == b"Subject: the second\n\n"
    assert second.with_suffix(".reason").read_text() == "no recipient\n"
    assert (bad / "twice.eml").read_bytes() == b"Subject: the first\n\n"
    mta.wait_for_log(f"refused 'twice.eml': no recipient .kept as bad/'{second.name}'")


def test_a_reason_without_its_message_is_not_overwritten_either(mta: Mta) -> None:
    bad = mta.spool / "bad"
    (bad / "kept.reason").write_text("somebody moved the message away\n")
    before = set(bad.iterdir())
    mta.drop(name="kept.eml", data=MAIL)
    mta.wait_for(lambda: len(set(bad.iterdir()) - before) == 2)
    assert (bad / "kept.reason").read_text() == "somebody moved the message away\n"
    assert not (bad / "kept.eml").exists()


def test_a_name_that_leaves_no_room_for_the_ending_becomes_an_id(mta: Mta) -> None:
    bad = mta.spool / "bad"
    before = set(bad.iterdir())
    mta.drop(name="n" * 251 + ".eml", data=MAIL)
    mta.wait_for(lambda: len(set(bad.iterdir()) - before) == 2)
    (kept,) = [path for path in set(bad.iterdir()) - before if path.suffix == ".eml"]
    assert kept.read_bytes() == MAIL
    assert len(kept.name) < 100


def test_everything_is_accounted_for_at_the_end(mta: Mta) -> None:
    mta.wait_for(lambda: mta.audit()["accepted"] == mta.count("r") == mta.count("d"))
    audit = mta.audit()
    assert audit["balanced"], audit
    assert mta.status()["pickup"]["restarts"] == 0
    assert "Traceback" not in mta.log()
