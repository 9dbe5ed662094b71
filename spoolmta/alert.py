"""What operators are told of queues by mail: who hears of which event, when a mail is due, and what it says.

| event of a queue | who hears of it |
|---|---|
| backoff, recovering, normal | backoff-notify |
| a source address disabled, enabled | disabled-source-ip-notify |

No storms: the first event goes out at once, then what has gathered for the same addresses, once a minute at most.

Laws. Every event that is heard is in exactly one mail, in its order, or counted there behind MOST others. Two mails to
the same addresses are INTERVAL apart, but for the last one of a process. After INTERVAL nothing is left.

Nothing goes round. An alert is a message like any other, with the null sender: no DSN ever speaks of it, and it causes
an event only as any mail may, by what its receiver says to it. Where that puts the alert's own queue into back-off and
somebody wants to hear of that, there is one more alert, within the bound of one a minute.

A stranger's words stand in it (a reply; the name of a mail host, in that of a queue): they are made safe, and quoted in
commands, which are there to be copied into a shell.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator

import msgspec

from spoolmta import dsn
from spoolmta.condition import Event, EventKind
from spoolmta.model import DomainPolicy

INTERVAL = 60.0
"""Seconds between two mails to the same addresses."""
MOST = 100
"""Events that one mail tells; of more it says how many."""
_WIDTH = 76
_HARD_WIDTH = 900
"""No line may be longer than 998 (RFC 5322 section 2.1.1)."""

_MODES = frozenset({EventKind.BACKOFF, EventKind.RECOVERING, EventKind.NORMAL})
_SOURCES = frozenset({EventKind.SOURCE_DISABLED, EventKind.SOURCE_ENABLED})


class News(msgspec.Struct, frozen=True):
    """An event of a queue (`SITE/VMTA`)."""

    queue: str
    event: Event


class Alert(msgspec.Struct):
    """One mail: to whom, of what; `more` events were left out."""

    to: tuple[str, ...]
    news: list[News]
    more: int = 0


class Sender(msgspec.Struct, frozen=True):
    """Who writes: a VMTA of the mail system `host`; `author` is the From header ("" for the usual one)."""

    vmta: str
    host: str
    author: str = ""


def hearers(policy: DomainPolicy, kind: EventKind) -> tuple[str, ...]:
    """The addresses that hear of such an event of a queue."""
    if kind in _MODES:
        return policy.backoff_notify
    return policy.disabled_source_ip_notify if kind in _SOURCES else ()


def is_wanted(policy: DomainPolicy) -> bool:
    """Whether anybody hears anything of a queue."""
    return bool(policy.backoff_notify or policy.disabled_source_ip_notify)


class Gathering:
    """The events of one VMTA that nobody has had a mail of yet, and when the last mails went (Unix seconds)."""

    def __init__(self) -> None:
        self._gathered: dict[tuple[str, ...], Alert] = {}
        self._sent: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Gathering({self._gathered}, {self._sent})"

    def __bool__(self) -> bool:
        return bool(self._gathered)

    def hear(self, to: tuple[str, ...], news: News) -> None:
        """An event that these addresses are to hear of."""
        alert = self._gathered.get(to)
        if alert is None:
            alert = self._gathered[to] = Alert(to, [])
        if len(alert.news) < MOST:
            alert.news.append(news)
        else:
            alert.more += 1

    def due(self, now: float, *, is_last: bool = False) -> list[Alert]:
        """The mails to send now; of a process that leaves, all there are."""
        found = [to for to in self._gathered if is_last or now - self._sent.get(_key(to), -INTERVAL) >= INTERVAL]
        for to in found:
            self._sent[_key(to)] = now
        return [self._gathered.pop(to) for to in found]

    def sent(self, now: float) -> dict[str, float]:
        """When the last mails went, for the next process: it must not write at once where this one just has."""
        return {key: at for key, at in self._sent.items() if now - at < INTERVAL}

    def restore(self, sent: dict[str, float], now: float) -> None:
        """Go on with what a process left; a clock that was wrong then does not hold mail up for longer."""
        self._sent = {key: min(at, now) for key, at in sent.items()}


def _key(to: tuple[str, ...]) -> str:
    return ", ".join(to)


def file_of(alert: Alert, sender: Sender, id_: str, now: float) -> bytes:
    """The mail as a file for a pickup folder: with the null sender, and its recipients."""
    lines = [
        "x-sender: <>",
        *(f"x-receiver: {address}" for address in alert.to),
        f"From: {dsn.author_of(sender.author, sender.host)}",
        dsn.fold(f"To: {', '.join(f'<{address}>' for address in alert.to)}"),
        dsn.fold(f"Subject: {_subject(alert)}"),
        f"Date: {dsn.date(now)}",
        f"Message-ID: <{id_}@{sender.host}>",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=us-ascii",
        "Content-Transfer-Encoding: 7bit",
        "",
        *_words(alert, sender),
    ]
    return ("\r\n".join(lines) + "\r\n").encode("ascii")


_HAPPENED = {
    EventKind.BACKOFF: "is in back-off",
    EventKind.RECOVERING: "recovers from back-off",
    EventKind.NORMAL: "is back to normal",
    EventKind.SOURCE_DISABLED: "does not use {address} any more",
    EventKind.SOURCE_ENABLED: "uses {address} again",
    EventKind.OTHER: "has changed",
}


def _subject(alert: Alert) -> str:
    first, count = alert.news[0], len(alert.news) + alert.more
    what = _HAPPENED[first.event.kind].replace("{address}", dsn.safe(first.event.address))
    others = f" ({count} events in all)" if count > 1 else ""
    return f"{dsn.safe(first.queue)} {what}{others}"


def _words(alert: Alert, sender: Sender) -> Iterator[str]:
    yield f"This is the VMTA {sender.vmta} of the mail system at {sender.host}."
    yield ""
    by_queue: dict[str, list[Event]] = {}
    for news in alert.news:
        by_queue.setdefault(news.queue, []).append(news.event)
    for queue, events in by_queue.items():
        for line in _about(queue, events):
            yield from (line[at : at + _HARD_WIDTH] for at in range(0, len(line) or 1, _HARD_WIDTH))
        yield ""
    if alert.more:
        yield f"And {alert.more} more events, which the log of the daemon tells."


def _about(queue: str, events: list[Event]) -> Iterator[str]:
    """What happened to a queue, and the commands that show and change it."""
    yield dsn.safe(queue)
    indent = " " * 8
    for event in events:
        yield f"    {dsn.date(event.time)}"
        text = dsn.safe(event.text)
        yield from textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    yield "    To look at it, and to change it:"
    name = shlex.quote(dsn.safe(queue))
    yield f"{indent}spoolmta queue show {name}"
    modes = [event.kind for event in events if event.kind in _MODES]
    if modes and modes[-1] is not EventKind.NORMAL:
        yield f"{indent}spoolmta queue mode normal {name}"
    sources = {event.address: event.kind for event in events if event.kind in _SOURCES}
    for address, kind in sources.items():
        if kind is EventKind.SOURCE_DISABLED:
            yield f"{indent}spoolmta source enable {shlex.quote(dsn.safe(address))} {name}"
