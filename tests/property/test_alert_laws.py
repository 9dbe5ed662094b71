"""However queues flap: every event is told once, in its order, and nobody gets more than a mail a minute. Whatever a
stranger said: it is words in a mail that is whole, and in a command that is one."""

from __future__ import annotations

import email
import email.policy
import itertools
import shlex
from email.message import EmailMessage

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta import alert, message
from spoolmta.alert import INTERVAL, MOST, Alert, Gathering, News, Sender
from spoolmta.condition import Event, EventKind
from spoolmta.model import DomainPolicy

NOW = 1_700_000_000.0
OPS, MORE = ("ops@example.com",), ("ops@example.com", "more@example.com")
SENDER = Sender("news", "mta.test")

hostile = st.text(max_size=40) | st.text(alphabet=" \r\n\t\0\x1b'\"$();`\\é\u2028x", max_size=80)
queues = st.sampled_from(["gmail.com/news", "google.rollup/news", "ip-192.0.2.1/news"]) | hostile | st.just("q" * 2500)
news = st.builds(
    News,
    queues,
    st.builds(
        Event,
        st.floats(0, 4e9),
        hostile | hostile.map(lambda text: f"backoff: 421{text}\r\nBcc: evil@evil.test\r\n\r\n{text}"),
        st.sampled_from(EventKind),
        st.sampled_from(["192.0.2.1", "2001:db8::1"]),
    ),
)
alerts = st.builds(
    Alert, st.sampled_from([OPS, MORE]), st.lists(news, min_size=1, max_size=8), st.sampled_from([0, 1, 900])
)
stories = st.lists(
    st.tuples(st.floats(0, 40), st.lists(st.sampled_from([OPS, MORE]), max_size=3) | st.just([OPS] * 150)), max_size=40
)


def numbered(number: int) -> News:
    return News("gmail.com/news", Event(float(number), "backoff: a rule", EventKind.BACKOFF))


@given(stories, st.booleans())
def test_every_event_is_told_once_in_its_order_and_nobody_gets_more_than_a_mail_a_minute(
    story: list[tuple[float, list[tuple[str, ...]]]], sleeps: bool
) -> None:
    gathering, now = Gathering(), NOW
    heard: dict[tuple[str, ...], list[int]] = {OPS: [], MORE: []}
    mails: dict[tuple[str, ...], list[tuple[float, Alert]]] = {OPS: [], MORE: []}
    for pause, addresses in [*story, (INTERVAL, [])]:
        now += pause
        for to in addresses:
            heard[to].append(len(heard[to]))
            gathering.hear(to, numbered(heard[to][-1]))
        for one in gathering.due(now):
            mails[one.to].append((now, one))
        if sleeps and not gathering:
            left, gathering = gathering.sent(now), Gathering()
            gathering.restore(left, now)
    assert not gathering
    for to, sent in mails.items():
        assert all(later[0] - earlier[0] >= INTERVAL for earlier, later in itertools.pairwise(sent))
        told = 0
        for _, one in sent:
            assert [of.event.time for of in one.news] == [float(told + n) for n in range(len(one.news))]
            assert len(one.news) == MOST or not one.more
            told += len(one.news) + one.more
        assert told == len(heard[to])


@given(st.lists(st.sampled_from([OPS, MORE]), min_size=1, max_size=10))
def test_the_first_event_is_told_at_once_and_the_last_ones_when_the_process_leaves(
    addresses: list[tuple[str, ...]],
) -> None:
    gathering = Gathering()
    for expected in (set(addresses), set()):
        for to in addresses:
            gathering.hear(to, numbered(0))
        assert {one.to for one in gathering.due(NOW)} == expected
    assert {one.to for one in gathering.due(NOW, is_last=True)} == set(addresses)
    assert not gathering


def test_a_clock_that_was_wrong_holds_no_mail_up() -> None:
    gathering = Gathering()
    gathering.restore({"ops@example.com": NOW + 1e6}, NOW)
    gathering.hear(OPS, numbered(0))
    assert gathering.due(NOW + INTERVAL)


@settings(max_examples=200)
@given(alerts)
def test_whatever_was_said_an_alert_is_one_whole_message_to_its_addresses_and_nobody_else(one: Alert) -> None:
    data = alert.file_of(one, SENDER, "1.2.3", NOW)
    assert all(len(line) <= 998 and b"\r" not in line and b"\n" not in line for line in data.split(b"\r\n"))
    parsed = message.parse(data)
    assert parsed.envelope.sender == ""
    assert tuple(recipient.address for recipient in parsed.envelope.recipients) == one.to
    assert message.field_values(data, parsed, "bcc") == []
    read = email.message_from_bytes(message.content(data, parsed), policy=email.policy.default)
    assert isinstance(read, EmailMessage)
    assert not read.defects
    assert [*read.keys()] == [
        *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version"),
        *("Content-Type", "Content-Transfer-Encoding"),
    ]
    assert ("more events" in read.get_content()) == (one.more > 0)


@given(hostile)
def test_a_command_in_an_alert_is_one_command_of_ours_whatever_the_queue_is_called(name: str) -> None:
    queue = f"x{name}.rollup/news"
    one = Alert(OPS, [News(queue, Event(NOW, "backoff: 421", EventKind.BACKOFF))])
    words = alert.file_of(one, SENDER, "1.2.3", NOW).decode().partition("\r\n\r\n")[2]
    commands = [shlex.split(line) for line in words.split("\r\n") if line.startswith(" " * 8 + "spoolmta ")]
    assert [command[:-1] for command in commands] == [
        ["spoolmta", "queue", "show"],
        ["spoolmta", "queue", "mode", "normal"],
    ]
    assert all(command[-1].startswith("x") and command[-1].endswith(".rollup/news") for command in commands)


def test_who_hears_of_what_is_said_by_the_policy() -> None:
    policy = DomainPolicy(backoff_notify=OPS, disabled_source_ip_notify=MORE)
    heard = {kind: alert.hearers(policy, kind) for kind in EventKind}
    assert heard == {
        EventKind.BACKOFF: OPS,
        EventKind.RECOVERING: OPS,
        EventKind.NORMAL: OPS,
        EventKind.SOURCE_DISABLED: MORE,
        EventKind.SOURCE_ENABLED: MORE,
        EventKind.OTHER: (),
    }
    assert alert.is_wanted(policy)
    assert not alert.is_wanted(DomainPolicy())


def test_an_alert_says_what_happened_when_why_and_what_to_do() -> None:
    one = Alert(
        OPS,
        [
            News("gmail.com/news", Event(NOW, "backoff: gmail.toml:7: 421 4.7.28 too fast", EventKind.BACKOFF)),
            News("gmail.com/news", Event(NOW, "source 192.0.2.1 disabled: x", EventKind.SOURCE_DISABLED, "192.0.2.1")),
        ],
    )
    text = alert.file_of(one, Sender("news", "mta.test", "Post <post@own.test>"), "1.2.3", NOW).decode()
    assert "From: Post <post@own.test>\r\nTo: <ops@example.com>\r\n" in text
    assert "Subject: gmail.com/news is in back-off (2 events in all)\r\n" in text
    assert "    Tue, 14 Nov 2023 22:13:20 +0000\r\n        backoff: gmail.toml:7: 421 4.7.28 too fast\r\n" in text
    assert "spoolmta queue mode normal gmail.com/news\r\n" in text
    assert "spoolmta source enable 192.0.2.1 gmail.com/news\r\n" in text
