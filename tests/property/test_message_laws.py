from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.errors import MessageRefused
from spoolmta.message import content, group_by_domain, parse
from spoolmta.model import Envelope, Parsed

PIECES = [
    b"x-sender: a@b.c", b"x-receiver: d@e.f", b"X-Receiver: <G@H.i> NOTIFY=NEVER", b"x-job: j", b"X-Virtual-MTA: v",
    b"x-envid: e", b"X-Sender-Override: o@p.q", b"To: x@y.z, g: <h@i.j>;", b"Bcc: s@t.u", b"From: f@g.h", b"Subject: s",
    b" folded", b"\tx", b"", b"body", b".", b"\x00\xff", b'To: "(<[\\', b"Cc: a (b", b":", b"x-receiver: j@[192.0.2.1]",
]  # fmt: skip
ENDS = [b"\n", b"\r\n", b"\r", b"\r\r\n"]
LINE_END = re.compile(rb"(?>\r{0,2}\n|\r)")

lines = st.lists(st.sampled_from(PIECES) | st.binary(max_size=8).filter(lambda b: not {10, 13} & set(b)), max_size=14)
files = st.builds(
    lambda parts, last: b"".join(line + end for line, end in parts) + last,
    st.lists(st.tuples(st.sampled_from(PIECES) | st.binary(max_size=8), st.sampled_from(ENDS)), max_size=14),
    st.binary(max_size=8),
)
anything = files | st.binary(max_size=300)


def understood(data: bytes) -> Parsed | None:
    try:
        return parse(data)
    except MessageRefused as refused:
        reason = str(refused)
    assert reason.isprintable()
    return None


@given(anything)
def test_any_bytes_are_refused_or_parsed_with_sane_ranges(data: bytes) -> None:
    parsed = understood(data)
    if parsed is None:
        return
    assert 0 <= parsed.start <= parsed.body <= len(data)
    position = parsed.start
    for begin, end in parsed.cut:
        assert position <= begin < end <= parsed.body
        position = end
    assert parsed.envelope.recipients


@given(anything)
def test_content_ends_in_crlf_and_has_no_bare_cr_or_lf(data: bytes) -> None:
    parsed = understood(data)
    if parsed is not None:
        out = content(data, parsed)
        assert out.endswith(b"\r\n")
        assert out.count(b"\r") == out.count(b"\n") == out.count(b"\r\n")


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"\r", b"\n", b"a", b"."]), max_size=30).map(b"".join))
def test_content_leaves_what_is_between_line_ends_alone(body: bytes) -> None:
    data = b"x-sender: a@b.c\nx-receiver: d@e.f\nS: t\n\n" + body
    out = content(data, parse(data)).split(b"\r\n")
    wanted = [b"S: t", b"", *LINE_END.split(body)]
    assert out == (wanted if wanted[-1] == b"" else [*wanted, b""])


@given(anything)
def test_control_fields_never_go_out(data: bytes) -> None:
    parsed = understood(data)
    if parsed is not None:
        header = content(data, parsed).split(b"\r\n\r\n")[0].lower()
        for name in (b"x-job", b"x-virtual-mta", b"x-envid", b"x-sender-override"):
            assert not re.search(rb"(?:\A|\r\n)" + name + rb"[ \t]*:", header) or header.startswith(b"\r\n")


@given(lines, st.sampled_from(ENDS), st.sampled_from(ENDS))
def test_the_style_of_line_ends_never_changes_the_envelope_or_the_wire(
    parts: list[bytes], one: bytes, other: bytes
) -> None:
    first, second = one.join(parts), other.join(parts)
    left, right = understood(first), understood(second)
    assert (left is None) == (right is None)
    if left is not None and right is not None:
        assert left.envelope == right.envelope
        assert content(first, left) == content(second, right)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["x.org", "Y.org", "[192.0.2.1]"])), min_size=1))
def test_every_recipient_is_in_exactly_one_group(pairs: list[tuple[str, str]]) -> None:
    top = "".join(f"x-receiver: {local}@{domain}\n" for local, domain in pairs)
    envelope: Envelope = parse(f"x-sender:\n{top}S: t\n\n".encode()).envelope
    grouped = [recipient for group in group_by_domain(envelope).values() for recipient in group]
    assert sorted(r.address for r in grouped) == sorted({f"{local}@{domain.lower()}" for local, domain in pairs})
    assert all(r.domain == domain for domain, group in group_by_domain(envelope).items() for r in group)


RECEIVERS = [
    b"x-receiver: a@x.org", b"x-receiver: b@x.org", b"X-RECEIVER:<c@X.org>", b"x-receiver: a@X.ORG", b"x-job: j",
    b"x-receiver : e@y.org", b"x-receiver: f@y.org NOTIFY=NEVER", b'x-receiver: "g@x.org"@y.org', b" ", b"\t ",
    b"x-receiver: h@[192.0.2.1]", b"x-receiver:\t\xc3\xbc@b\xc3\xbc.org ", b"x-receiver: i@xn--b-xka.org",
    b"x-receiver: \xe2\x80\xa8@x.org",
]  # fmt: skip
receivers = st.lists(st.sampled_from(RECEIVERS), max_size=12)


@given(receivers, st.sampled_from([b"\n", b"\r\n"]))
def test_receivers_are_the_same_taken_together_or_one_by_one(parts: list[bytes], end: bytes) -> None:
    data = end.join([b"x-sender: a@b.c", *parts, b"S: t", b"", b""])
    together, one_by_one = understood(data), understood(data.replace(end, b"\r"))
    assert (together is None) == (one_by_one is None)
    if together is not None and one_by_one is not None:
        assert together.envelope == one_by_one.envelope


@given(anything | receivers.map(lambda parts: b"\n".join([b"x-sender:", *parts, b"S: t", b""])))
def test_what_is_parsed_for_one_domain_has_all_its_recipients(data: bytes) -> None:
    parsed = understood(data)
    for domain, group in group_by_domain(parsed.envelope).items() if parsed is not None else ():
        one = parse(data, domain)
        assert [recipient for recipient in one.envelope.recipients if recipient.domain == domain] == group
        assert (one.start, one.body, one.cut) == (parsed.start, parsed.body, parsed.cut)
