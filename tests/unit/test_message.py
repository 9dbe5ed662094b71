from __future__ import annotations

import pytest

from spoolmta import address
from spoolmta.errors import MessageRefused
from spoolmta.message import content, group_by_domain, parse
from spoolmta.model import Recipient

TOP = b"x-sender: news@example.com\r\nx-receiver: bob@example.org\r\n"
MAIL = b"From: News <news@example.com>\r\nTo: Bob <bob@example.org>\r\nSubject: hi\r\n\r\nhello\r\n"


def addresses(data: bytes) -> list[str]:
    return [recipient.address for recipient in parse(data).envelope.recipients]


def refusal(data: bytes) -> str:
    with pytest.raises(MessageRefused) as caught:
        parse(data)
    reason = str(caught.value)
    assert reason.isprintable()
    assert len(reason) < 250
    return reason


def test_the_envelope_lines_are_read_and_do_not_go_out() -> None:
    parsed = parse(TOP + b"x-virtual-mta: mta1\r\nx-job: j-1\r\nx-envid: e1\r\nx-ret: hdrs\r\n" + MAIL)
    envelope = parsed.envelope
    assert (envelope.sender, envelope.virtual_mta, envelope.job, envelope.envid, envelope.ret) == (
        "news@example.com",
        "mta1",
        "j-1",
        "e1",
        "HDRS",
    )
    assert envelope.recipients == (Recipient("bob@example.org", "example.org"),)
    assert content(TOP + MAIL, parse(TOP + MAIL)) == MAIL


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\r\r\n"])
def test_any_line_end_gives_the_same_envelope_and_the_same_wire_bytes(end: bytes) -> None:
    data = (TOP + b"X-JOB: j\r\n" + MAIL).replace(b"\r\n", end)
    parsed = parse(data)
    assert (parsed.envelope.sender, parsed.envelope.job) == ("news@example.com", "j")
    assert data[parsed.body :].startswith(b"hello")
    assert content(data, parsed) == MAIL


def test_mixed_line_ends_are_one_message() -> None:
    data = b"x-sender: a@b.c\nX-Receiver: d@e.f\r\nSubject: x\rX: y\n\r\nbody\rmore\nend"
    parsed = parse(data)
    assert data[parsed.body :] == b"body\rmore\nend"
    assert content(data, parsed) == b"Subject: x\r\nX: y\r\n\r\nbody\r\nmore\r\nend\r\n"


@pytest.mark.parametrize("sender", [b"", b"<>", b" "])
def test_an_empty_sender_is_the_null_sender(sender: bytes) -> None:
    assert parse(b"x-sender: " + sender + b"\nx-receiver: a@b.c\n" + MAIL).envelope.sender == ""


def test_addresses_may_stand_in_angle_brackets() -> None:
    data = b"x-sender: <a@example.com>\nx-receiver:<d@example.com>\n" + MAIL
    assert (parse(data).envelope.sender, addresses(data)) == ("a@example.com", ["d@example.com"])


def test_dsn_parameters_of_a_receiver_are_kept() -> None:
    data = b"x-sender: a@b.c\nx-receiver: d@e.f notify=success,failure ORCPT=rfc822;x@y.z\n" + MAIL
    assert parse(data).envelope.recipients == (Recipient("d@e.f", "e.f", "SUCCESS,FAILURE", "rfc822;x@y.z"),)


@pytest.mark.parametrize("parameter", [b"NOTIFY=SOMETIMES", b"ORCPT=x", b"SIZE=1", b"NOTIFY="])
def test_a_parameter_that_is_not_understood_is_refused(parameter: bytes) -> None:
    assert "not understood" in refusal(b"x-sender: a@b.c\nx-receiver: d@e.f " + parameter + b"\n" + MAIL)


def test_a_receiver_given_twice_is_one_recipient_and_order_is_kept() -> None:
    lines = b"x-receiver: z@B.c\nx-receiver: a@b.c\nx-receiver: z@b.C\n"
    assert addresses(b"x-sender:\n" + lines + MAIL) == ["z@b.c", "a@b.c"]


def test_a_sender_override_anywhere_in_the_header_wins_and_does_not_go_out() -> None:
    data = TOP + b"Subject: x\r\nx-SENDER-override: <boss@example.com>\r\nTo: y@z\r\n\r\nbody\r\n"
    parsed = parse(data)
    assert parsed.envelope.sender == "boss@example.com"
    assert content(data, parsed) == b"Subject: x\r\nTo: y@z\r\n\r\nbody\r\n"


def test_control_fields_in_the_header_are_read_when_the_top_is_silent_and_always_cut() -> None:
    data = (
        TOP
        + b"x-job: top\r\nSubject: x\r\nX-Job: header\r\nX-Virtual-MTA: m\r\n\t\r\nX-EnvId: e\r\n\r\nX-Job: body\r\n"
    )
    parsed = parse(data)
    assert (parsed.envelope.job, parsed.envelope.virtual_mta, parsed.envelope.envid) == ("top", "m", "e")
    assert content(data, parsed) == b"Subject: x\r\n\r\nX-Job: body\r\n"


def test_a_cut_field_between_cr_and_lf_leaves_two_line_ends() -> None:
    data = b"x-sender: a@b.c\nx-receiver: d@e.f\nA: b\rX-Job: c\r\n\nbody"
    assert content(data, parse(data)) == b"A: b\r\n\r\nbody\r\n"


def test_a_folded_envelope_line_is_one_line() -> None:
    data = b"x-sender: a@b.c\r\nx-receiver: d@e.f\r\n NOTIFY=NEVER\r\nSubject: x\r\n\r\n"
    parsed = parse(data)
    assert parsed.envelope.recipients[0].notify == "NEVER"
    assert content(data, parsed) == b"Subject: x\r\n\r\n"


def test_bcc_stays_when_receivers_are_given() -> None:
    data = TOP + b"Bcc: x@y.z\r\n" + MAIL
    assert content(data, parse(data)) == b"Bcc: x@y.z\r\n" + MAIL


def test_an_ordinary_message_goes_to_to_cc_and_bcc_and_bcc_is_cut() -> None:
    data = (
        b'From: "Doe, Jane" <jane@example.com>\r\nTo: Bob (at (the) club, ok) <bob@example.org>,\r\n'
        b' team: al@example.org, "x, y"@Example.NET;\r\nBCC: secret@example.org\r\nCc: <@relay:cc@example.org>\r\n'
        b"To: =?utf-8?q?J=C3=BCrgen?= <j@example.org>, bob@example.org (again)\r\nbcc: two@example.org\r\n\r\nbody\r\n"
    )
    parsed = parse(data)
    assert parsed.envelope.sender == "jane@example.com"
    assert addresses(data) == [
        "bob@example.org",
        "al@example.org",
        '"x, y"@example.net',
        "j@example.org",
        "cc@example.org",
        "secret@example.org",
        "two@example.org",
    ]
    assert b"bcc" not in content(data, parsed).lower()
    assert content(data, parsed).startswith(b"From: ")


@pytest.mark.parametrize(
    ("fields", "sender"),
    [
        (b"Return-Path: <r@b.c>\nSender: s@b.c\nFrom: f@b.c\n", "r@b.c"),
        (b"Return-Path: <>\nFrom: f@b.c\n", ""),
        (b"Sender: s@b.c\nFrom: f@b.c\n", "s@b.c"),
        (b"From: One <f@b.c>, g@b.c\n", "f@b.c"),
        (b"Sender: <>\nFrom: f@b.c\n", "f@b.c"),
    ],
)
def test_the_sender_of_an_ordinary_message_is_return_path_sender_or_from(fields: bytes, sender: str) -> None:
    assert parse(fields + b"To: x@y.z\n\n").envelope.sender == sender


def test_an_x_sender_without_receivers_takes_the_recipients_of_the_header() -> None:
    data = b"x-sender: a@b.c\n" + MAIL
    assert (parse(data).envelope.sender, addresses(data)) == ("a@b.c", ["bob@example.org"])


@pytest.mark.parametrize(
    "data",
    [
        b"From: a@b.c\n\nbody",
        b"From: a@b.c\nTo: undisclosed-recipients:;\n\nbody",
        b"x-sender: a@b.c\nSubject: x\n\nTo: in@the.body\n",
        b"\nTo: a@b.c\n",
    ],
)
def test_a_message_for_nobody_is_refused(data: bytes) -> None:
    assert refusal(data) == "no recipient"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (b"nobody", "no @"),
        (b"", "empty"),
        (b"@b.c", "nothing before"),
        (b"a@", "nothing behind"),
        (b"a@b:25", "not a domain name"),
        (b"a@b..c", "not a domain name"),
        (b"a@..", "not a domain name"),
        (b"a@../../etc", "not a domain name"),
        (b"a@b.c.", "not a domain name"),
        (b"a@b/c", "not a domain name"),
        (b"a@b c", "a space"),
        (b"a b@c.d", "a space"),
        (b"a@" + b"d" * 300, "longer than 253"),
        (b"a@" + b"d" * 64 + b".c", "not a domain name"),
        (b"a@" + b"d." * 127 + b"c", "longer than 253"),
        (b"a@192.0.2.1", "needs brackets"),
        (b"a@[192.0.2.256]", "address literal"),
        (b"a@[IPv6:fe80::1%/../x]", "address literal"),
        (b"a@[", "address literal"),
        (b"a..b@c.d", "dot"),
        (b".a@c.d", "dot"),
        (b"a@b@c.d", "outside quotes"),
        (b"a\x00@c.d", "outside quotes"),
        (b"\xff@c.d", "cannot be printed"),
        (b"a@\xe2\x80\x8b", "domain"),
        (b"a" * 256 + b"@c.d", "longer than 255"),
        (b"a" * 250 + b"@" + b"d." * 50 + b"c", "longer than 320"),
        (b"<a@b.c", "outside quotes"),
        (b"Bob <a@b.c>", "a space"),
    ],
)
def test_a_recipient_that_is_no_address_is_refused_and_named(given: bytes, why: str) -> None:
    reason = refusal(b"x-sender: a@b.c\nx-receiver: " + given + b"\n" + MAIL)
    assert reason.startswith('recipient "')
    assert "is not an address: " in reason
    assert why in reason


def test_a_recipient_in_the_header_that_is_no_address_is_refused() -> None:
    assert refusal(b"From: a@b.c\nTo: Bob\n\n") == 'recipient "Bob" is not an address: it has no @'
    assert "not a domain name" in refusal(b"From: a@b.c\nTo: a@b:25\n\n")


def test_a_sender_that_is_no_address_is_refused() -> None:
    assert refusal(b"x-sender: root\nx-receiver: a@b.c\n" + MAIL) == 'sender "root" is not an address: it has no @'
    assert refusal(b"To: a@b.c\n\n") == "no sender"


def test_a_reason_shows_a_strange_value_short_and_printable() -> None:
    reason = refusal(b"x-sender: a@b.c\nx-receiver: \x1b[31m" + b"x" * 1000 + b"\n" + MAIL)
    assert reason.startswith('recipient "?[31mxxx')
    assert 'xx..." is not' in reason
    assert len(address.show("\n" * 500)) == 80


@pytest.mark.parametrize("name", ["../../etc", "..", ".hidden", "a/b", "a b", "x" * 33, "a..b", "ä"])
def test_a_virtual_mta_that_could_not_be_a_folder_is_refused_and_named(name: str) -> None:
    line = f"X-Virtual-MTA: {name}\r\n".encode()
    for data in (TOP + line + MAIL, TOP + b"A: b\r\n" + line + b"\r\n"):
        assert refusal(data).startswith(f'x-virtual-mta "{name[:77]}')


def test_a_schedule_is_refused_because_sending_early_would_be_worse() -> None:
    assert refusal(TOP + b"x-schedule: 2030-01-01\r\n" + MAIL) == "x-schedule is not supported by this version"


@pytest.mark.parametrize("line", [b"x-sender: b@c.d", b"x-job: other"])
def test_an_envelope_line_that_may_stand_once_is_refused_twice(line: bytes) -> None:
    assert "is given twice" in refusal(TOP + b"x-job: one\r\n" + line + b"\r\n" + MAIL)


def test_other_values_that_cannot_be_meant_are_refused() -> None:
    assert "neither FULL nor HDRS" in refusal(TOP + b"x-ret: some\r\n" + MAIL)
    assert "longer than 255" in refusal(TOP + b"x-job: " + b"j" * 256 + b"\r\n" + MAIL)


def test_control_characters_in_a_label_become_question_marks() -> None:
    assert parse(TOP + b"x-job: a\x00b\xffc\r\n" + MAIL).envelope.job == "a?b?c"


def test_nothing_behind_the_envelope_lines_is_refused() -> None:
    assert refusal(TOP) == "no message behind the envelope lines"
    assert refusal(b"") == "the file is empty"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_header_that_does_not_end_within_a_megabyte_is_refused(end: bytes) -> None:
    data = TOP + (b"X: " + b"y" * 60 + end) * 20_000
    assert refusal(data) == "header does not end within 1 MB"
    assert refusal(data + end + b"body") == "header does not end within 1 MB"


def test_something_that_is_no_message_is_refused() -> None:
    assert refusal(b"\x89PNG") == "this is not a message: no header field at the top"


def test_a_header_without_a_body_is_a_message() -> None:
    data = TOP + b"Subject: x"
    parsed = parse(data)
    assert (parsed.body, content(data, parsed)) == (len(data), b"Subject: x\r\n")


def test_a_body_without_a_header_is_a_message_when_receivers_are_given() -> None:
    assert content(TOP + b"\r\nhello", parse(TOP + b"\r\nhello")) == b"\r\nhello\r\n"
    assert content(TOP + b"hello you\n\nbye", parse(TOP + b"hello you\n\nbye")) == b"hello you\r\n\r\nbye\r\n"


def test_a_byte_order_mark_does_not_hide_the_envelope() -> None:
    data = b"\xef\xbb\xbf" + TOP + MAIL
    assert content(data, parse(data)) == MAIL


def test_nul_8_bit_header_bytes_and_a_line_of_a_megabyte_are_accepted_untouched() -> None:
    mail = b"Subject: caf\xe9 \xff\x00\r\nX-\xe4: y\r\n\r\n\x00" + b"z" * 1_000_000 + b"\r\n"
    assert content(TOP + mail, parse(TOP + mail)) == mail
    ordinary = b"From: caf\xe9 <a@b.c>\r\nTo: \xff\x00 <d@e.f>\r\n\r\n\x00\r\n"
    assert addresses(ordinary) == ["d@e.f"]


@pytest.mark.parametrize(
    ("given", "on_wire", "folder"),
    [
        ("Bob@EXAMPLE.Org", "Bob@example.org", "example.org"),
        ("bob@Bücher.example", "bob@xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("bob@例え。テスト", "bob@xn--r8jz45g.xn--zckzah", "xn--r8jz45g.xn--zckzah"),
        ("bob@XN--BCHER-KVA.example", "bob@xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("bob@[192.0.2.1]", "bob@[192.0.2.1]", "ip-192.0.2.1"),
        ("bob@[IPv6:2001:DB8::1]", "bob@[IPv6:2001:DB8::1]", "ip-2001:db8::1"),
        ("bob@localhost", "bob@localhost", "localhost"),
        ("bob@a_b.example", "bob@a_b.example", "a_b.example"),
        ("jürgen@example.org", "jürgen@example.org", "example.org"),
        ("bounce+a=b.c@example.org", "bounce+a=b.c@example.org", "example.org"),
        ('"a b@c"@example.org', '"a b@c"@example.org', "example.org"),
        ('"a\\"b"@example.org', '"a\\"b"@example.org', "example.org"),
    ],
)
def test_the_domain_becomes_an_a_label_in_lower_case_and_the_local_part_stays(
    given: str, on_wire: str, folder: str
) -> None:
    data = f"x-sender: {given}\nx-receiver: {given}\n".encode() + MAIL
    envelope = parse(data).envelope
    assert envelope.recipients == (Recipient(on_wire, folder),)
    assert envelope.sender == on_wire


def test_recipients_are_grouped_by_queue_folder_in_order() -> None:
    lines = b"".join(b"x-receiver: %s\n" % a for a in (b"a@x.org", b"b@y.org", b"c@X.org"))
    groups = group_by_domain(parse(b"x-sender:\n" + lines + MAIL).envelope)
    assert {domain: [r.address for r in group] for domain, group in groups.items()} == {
        "x.org": ["a@x.org", "c@x.org"],
        "y.org": ["b@y.org"],
    }


@pytest.mark.parametrize("text", ['"', "<", "(", "[", '<"', "\\", ":", 'a"\\'])
def test_a_hostile_address_list_takes_linear_time(text: str) -> None:
    assert len(list(address.listed(text * 200_000))) <= 1
