"""Whatever a receiver says and whoever is asked for: a report has three parts, a block for each recipient, and nothing
in it that a stranger put there as more than words."""

from __future__ import annotations

import email
import email.policy
import re
from email.message import Message

import msgspec
from flufl.bounce import all_failures
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spoolmta import dsn, message, notify
from spoolmta.dsn import Fact, Report
from spoolmta.model import Outcome
from spoolmta.notify import Action

CONTENT = b"From: a@b\r\nSubject: s\r\n\r\nHello\r\n"
words = st.just("x" * 3000) | st.text(max_size=60) | st.text(alphabet=" \r\n\t\0\x1b()\\-;:é\u2028x", max_size=60)
hostile = words | words.map(lambda text: f"no\r\n\r\nFinal-Recipient: rfc822; evil@evil.test\r\n{text}")
addresses = st.sampled_from(
    ["a@b.test", '"a b"@c.test', "x+y=z@d.test", "o'x@e.test", f"{'l' * 200}@f.test", "n%@[192.0.2.1]"]
)
statuses = st.sampled_from(["5.1.1", "4.4.7", "5.7.0", "5.0.0"])
facts = st.builds(
    Fact,
    address=addresses,
    status=statuses,
    said=hostile,
    is_reply=st.booleans(),
    attempted=st.floats(0, 4e9),
    mta=st.sampled_from(["", "mx.b.test", "127.0.0.1"]) | hostile,
    orcpt=st.sampled_from(["", "rfc822;a+2Bb@c.test", "rfc822;x+0D+0AAction:+20relayed", "utf-8;+C3+A9@x"]),
    retry_until=st.sampled_from([0.0, 2e9]),
)
reports = st.builds(
    Report,
    action=st.sampled_from(Action),
    host=st.just("mta.test"),
    sender=addresses,
    id=st.just("1.M000002P3Q4.node"),
    original_id=st.just("1.M000001P3Q4.node"),
    boundary=st.just("0123456789abcdef"),
    now=st.floats(0, 4e9),
    arrived=st.floats(0, 4e9),
    facts=st.lists(facts, min_size=1, max_size=3).map(tuple),
    content=st.sampled_from([CONTENT, b"\r\n", b"A: b\r\n", CONTENT + b"--0123456789abcdef--\r\n" * 3]),
    returns_content=st.booleans(),
    envid=hostile,
)


def parse(data: bytes) -> Message:
    return email.message_from_bytes(data, policy=email.policy.default)


def status_lines(data: bytes) -> list[bytes]:
    """The lines of the status part, unfolded, as they stand."""
    (body,) = re.findall(rb"Content-Type: message/delivery-status\r\n.*?\r\n\r\n(.*?)\r\n--", data, re.DOTALL)
    return body.replace(b"\r\n ", b" ").split(b"\r\n")


@settings(max_examples=100)
@given(reports)
def test_a_report_has_its_three_parts_and_one_block_for_each_recipient(report: Report) -> None:
    data = dsn.compose(report)
    parsed = parse(data)
    parts = parsed.get_payload()
    assert isinstance(parts, list)
    assert [part.get_content_type() for part in parts[:2]] == ["text/plain", "message/delivery-status"]
    assert len(parts) == 3
    lines = status_lines(data)
    assert lines.count(b"") == len(report.facts) + (1 if lines[-1] == b"" else 0)
    named = [line.partition(b"; ")[2].decode() for line in lines if line.startswith(b"Final-Recipient:")]
    assert named == [fact.address for fact in report.facts]
    for field in (b"Action: ", b"Status: ", b"Last-Attempt-Date: "):
        assert sum(line.startswith(field) for line in lines) == len(report.facts)
    assert all(line == b"" or re.match(rb"[A-Z][A-Za-z-]+: [^ ]", line) for line in lines)


@settings(max_examples=100)
@given(reports)
def test_a_report_is_ascii_lines_of_bearable_length_without_controls(report: Report) -> None:
    data = dsn.compose(report)
    assert data.isascii()
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", data)
    assert data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n")
    assert max(map(len, data.split(b"\r\n"))) < 998
    assert b"\r\n\r\n\r\n" not in data.partition(b"rfc822")[0]


@given(reports)
def test_other_programs_find_in_it_whom_it_is_about(report: Report) -> None:
    facts_ = tuple(msgspec.structs.replace(fact, orcpt="") for fact in report.facts)  # it would be named instead
    report = msgspec.structs.replace(report, facts=facts_)
    temporary, permanent = all_failures(parse(dsn.compose(report)))
    found = {address.decode() for address in temporary | permanent}
    plain = {fact.address for fact in report.facts if not set(' =%"') & set(fact.address)}
    if report.action is Action.FAILED:
        assert plain <= found
    elif report.action is Action.RELAYED:
        assert not permanent


@given(reports)
def test_its_queue_file_is_a_message_from_the_null_sender_to_the_return_path(report: Report) -> None:
    data = dsn.file_of(report)
    parsed = message.parse(data)
    assert parsed.envelope.sender == ""
    assert [one.address for one in parsed.envelope.recipients] == [report.sender]
    assert message.content(data, parsed) == dsn.compose(report)


@given(hostile)
@example("\ud800 x")
def test_what_is_made_safe_stays_so(text: str) -> None:
    once = dsn.safe(text)
    assert once.isascii()
    assert once.isprintable()
    assert dsn.safe(once) == once or len(once) > dsn.MAX_TEXT


@given(hostile.map(lambda text: "X: " + dsn.safe(text)))
def test_folding_loses_no_word_and_makes_no_blank_line(line: str) -> None:
    folded = dsn.fold(line).split("\r\n")
    assert all(part.strip() for part in folded)
    assert all(part.startswith(" ") for part in folded[1:])
    assert "".join("".join(folded).split()) == "".join(line.split())


# Who is told


notifies = st.just("") | st.just("NEVER") | st.lists(
    st.sampled_from(["SUCCESS", "FAILURE", "DELAY"]), min_size=1, max_size=3
).map(",".join)  # fmt: skip
outcomes = st.sampled_from([None, *Outcome])


@given(st.sampled_from(["", "a@b.test"]), notifies, outcomes, st.booleans())
def test_the_rules_are_total_and_never_answer_the_null_sender(
    sender: str, asked: str, outcome: Outcome | None, has_dsn: bool
) -> None:
    action = notify.action(sender, asked, outcome, next_hop_has_dsn=has_dsn)
    delays = notify.wants_delays(sender, asked)
    if not sender or asked == "NEVER":
        assert action is None
        assert not delays
        return
    words_ = asked.split(",")
    failed = outcome in (Outcome.BOUNCED, Outcome.EXPIRED)
    assert (action is Action.FAILED) == (failed and (not asked or "FAILURE" in words_))
    assert (action is Action.RELAYED) == (outcome is Outcome.DELIVERED and "SUCCESS" in words_ and not has_dsn)
    assert action is not Action.DELAYED
    assert delays == ("DELAY" in words_)


@given(st.floats(0, 1e9), st.floats(0, 1e7), st.floats(0, 1e7), st.floats(1, 1e6) | st.just(float("inf")))
def test_the_number_of_notices_only_grows_and_never_runs_ahead(
    received: float, first: float, more: float, every: float
) -> None:
    early, late = (notify.delays(received, received + after, every) for after in (first, first + more))
    assert 0 <= early <= late
    assert late == 0 or late * every <= first + more + 1.0
    assert notify.delays(received, received - 1.0, every) == 0


@given(st.sampled_from(Action), st.sampled_from(["", "FULL", "HDRS"]), st.sampled_from(["full", "headers"]))
def test_only_failures_return_the_whole_message(action: Action, ret: str, default: notify.ReturnDefault) -> None:
    whole = notify.returns_content(action, ret, default)
    assert not (whole and action is not Action.FAILED)
    assert not (whole and ret == "HDRS")
    if action is Action.FAILED:
        assert whole == (ret == "FULL" or (ret == "" and default == "full"))
