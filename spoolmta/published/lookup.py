"""Questions to the DNS in the midst of a decision: a generator yields a Question and is sent the Answer.

So what asks is pure, and who answers may be a name server, a cache or the dict of a test.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Generator
from typing import TypeVar

import msgspec


class Question(msgspec.Struct, frozen=True):
    """`name` is absolute, without the final dot; `kind` is the type of record."""

    name: str
    kind: str


class Answer(msgspec.Struct, frozen=True):
    """The records as text, the strings of a TXT record joined; none also where there is no such name. `failure`: nobody
    can tell, and why."""

    records: tuple[str, ...] = ()
    failure: str = ""


class Unanswered(Exception):
    """A question without an answer: nobody can tell."""


T = TypeVar("T")
Lookup = Generator[Question, Answer, T]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def records(name: str, kind: str) -> Lookup[tuple[str, ...]]:
    """The records of one name, none where there are none. Raises Unanswered."""
    if not is_domain_name(name):
        return ()
    answer = yield Question(name, kind)
    if answer.failure:
        raise Unanswered(answer.failure)
    return answer.records


def resolve(lookup: Lookup[T], ask: Callable[[Question], Answer]) -> T:
    """Have all questions answered by `ask`."""
    try:
        question = next(lookup)
        while True:
            question = lookup.send(ask(question))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def is_domain_name(name: str) -> bool:
    """Whether the DNS can be asked for it; text from records may be anything."""
    return len(name) <= 253 and name.isascii() and all(0 < len(label) <= 63 for label in name.split("."))


def bare(name: str) -> str:
    """A name of a record, to be compared with others."""
    return name.rstrip(".").lower()


def address_kind(address: IpAddress) -> str:
    return "A" if address.version == 4 else "AAAA"
