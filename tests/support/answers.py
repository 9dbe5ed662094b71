"""Answers to look-ups out of a dict, for what is decided without a name server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from spoolmta.published import lookup
from spoolmta.published.lookup import Answer, Lookup, Question

T = TypeVar("T")
FAILS = ("FAILS",)


class Answers:
    """`{"example.com A": ("192.0.2.1",), "sf.test TXT": FAILS}`; names without case. What is not there is not there."""

    def __init__(self, records: Mapping[str, tuple[str, ...]]) -> None:
        self._records = records
        self.asked: Counter[str] = Counter()

    def ask(self, question: Question) -> Answer:
        key = f"{question.name.lower()} {question.kind}"
        self.asked[key] += 1
        records = self._records.get(key, ())
        return Answer(failure=f"{key}: silence") if records == FAILS else Answer(records)

    def resolve(self, looked_up: Lookup[T]) -> T:
        return lookup.resolve(looked_up, self.ask)
