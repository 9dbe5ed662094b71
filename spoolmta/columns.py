"""Which columns an accounting file has, and how the values of an event come to stand in them.

An event is a list of values: first those of its record type's usual columns, in PowerMTA's order and ours behind, then
those of MORE, which a file has only by name, then header fields that some file wants. A `Shape` turns it into the cells
of one file. The order of columns: those of `d`, `b` and `t` keep their place, other types' follow, and what was asked
for by name comes last; so one who reads by position finds what he looked for whatever else is in the file.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

_DELIVERY = (
    "type,timeLogged,timeQueued,orig,rcpt,orcpt,dsnAction,dsnStatus,dsnDiag,dsnMta,bounceCat,srcType,srcMta,dlvType,"
    "dlvSourceIp,dlvDestinationIp,dlvEsmtpAvailable,dlvSize,vmta,jobId,envId,queue,vmtaPool,msgId,attempts"
)
_REMOTE = "type,timeLogged,orig,rcpt,orcpt,{}dsnStatus,dsnDiag,dsnMta,{}bounceCat,srcType,srcMta,envId"

USUAL: dict[str, tuple[str, ...]] = {
    record: tuple(columns.split(","))
    for record, columns in {
        "d": _DELIVERY,
        "b": _DELIVERY,
        "t": _DELIVERY,
        "tq": "type,timeLogged,dsnStatus,dsnDiag,dsnMta,dlvType,dlvSourceIp,dlvDestinationIp,vmta,queue",
        "r": "type,timeLogged,orig,rcpt,orcpt,srcType,srcMta,rcvSourceIp,rcvDestinationIp,vmta,jobId,envId,msgId",
        "rb": _REMOTE.format("", "dsnReportingMta,"),
        "rs": _REMOTE.format("dsnAction,", ""),
        "f": "type,timeLogged,repSourceIp,feedbackType,format,userAgent,envId,orig,rcpt,reportingMta,dlvSourceIp,"
        "reportedDomain,header_From,header_Return-Path,header_X-job,header_Subject",
    }.items()
}
"""The usual columns of each record type (`*`). A row's first value is its type."""

_MORE = ("totalSecondsQueued", "dlvTlsProtocol", "dlvTlsCipher", "rcvSmtpUser", "userString")
MORE: dict[str, tuple[str, ...]] = {
    "d": _MORE,
    "b": _MORE,
    "t": _MORE,
    "tq": ("userString",),
    "r": ("vmtaPool", "rcvSmtpUser", "userString"),
    "rb": ("format",),
    "rs": ("format",),
    "f": (),
}
"""What a file has only by name, in the order in which the values stand behind the usual ones."""

_FIELD = re.compile(r"header_([!-9;-~]{1,70})")
_MORE_FIELDS = {"f": re.compile(r"(?:header|arf)_[!-9;-~]{1,70}")}
WITH_HEADERS = ("d", "b", "t", "r", "rb", "rs", "f")
TIMES = ("timeLogged", "timeQueued")
PRIVATE = ("orig", "rcpt", "orcpt")
QUEUED = ("d", "b", "t", "tq")
"""The records that have a queue, which a filter of queues is about."""


class BadField(ValueError):
    """What is wrong with a column that was asked for, as one clause."""


def resolve(record: str, wanted: Sequence[str]) -> list[str]:
    """The columns of a record type by its `record-fields`: names in their order, `*` for the usual ones, `!name` for
    one of these that is left out. The type always comes first. Raises BadField."""
    found: dict[str, None] = {"type": None}
    without = {name[1:] for name in wanted if name.startswith("!")}
    if unknown := sorted(without - {*USUAL[record]} | without & {"type"}):
        raise BadField(f'"!{unknown[0]}" leaves out what {record} does not have, or has to have')
    for name in wanted:
        if name == "*":
            found.update(dict.fromkeys(USUAL[record]))
        elif not name.startswith("!"):
            if not is_known(record, name):
                more = [*MORE[record], *(["header_NAME"] if record in WITH_HEADERS else [])]
                raise BadField(f'{record} has no column "{name}": it has {", ".join([*USUAL[record], *more])}')
            found[name] = None
    return [name for name in found if name not in without]


def is_known(record: str, name: str) -> bool:
    if name in USUAL[record] or name in MORE[record]:
        return True
    pattern = _MORE_FIELDS.get(record, _FIELD) if record in WITH_HEADERS else None
    return pattern is not None and pattern.fullmatch(name) is not None


def header_field(column: str) -> str:
    """The name of the header field a column shows, in small letters; empty for other columns."""
    found = _FIELD.fullmatch(column)
    return found[1].lower() if found else ""


def header(records: Iterable[str], fields: Mapping[str, Sequence[str]]) -> list[str]:
    """The columns of a file with these record types."""
    records = sorted(records, key=list(USUAL).index)
    wanted = {record: resolve(record, fields.get(record, ("*",))) for record in records}
    columns: dict[str, None] = {}
    anywhere = {name for names in wanted.values() for name in names}
    for record in records:
        columns.update(dict.fromkeys(name for name in USUAL[record] if name in anywhere))
    for record in records:
        columns.update(dict.fromkeys(wanted[record]))
    return list(columns)


class Shape:
    """How the events of one record type become rows of one file. `headers` are the header fields whose values stand
    behind all others in an event, `columns` those of the file, `own` the type's columns of them; what another type has
    is empty. `values` are constants by column, `changes` what is done to the text of a column."""

    def __init__(
        self,
        record: str,
        columns: Sequence[str],
        own: Sequence[str],
        headers: Sequence[str],
        values: Mapping[str, str],
        taken_from: Mapping[str, str],
        changes: Mapping[str, Callable[[str], str]],
    ) -> None:
        whole = [*USUAL[record], *MORE[record], *headers]
        self._length = len(columns)
        self._plain = len(own) if list(columns[: len(own)]) == list(own) == whole[: len(own)] else 0
        self._places = [_place(name, whole) if name in own else -1 for name in columns]
        self._constants = [(columns.index(name), text) for name, text in values.items() if name in own]
        self._taken = [
            (columns.index(column), whole.index(field)) for column, field in taken_from.items() if column in own
        ]
        self._changes = [
            (number, changes[name]) for number, name in enumerate(columns) if name in own and name in changes
        ]

    def __repr__(self) -> str:
        return f"Shape(plain={self._plain}, {self._places})"

    def cells(self, values: list[str]) -> list[str]:
        """The cells of an event. One that was made before a header field was wanted has no value of it."""
        if self._plain:
            cells = values[: self._plain]
            if len(cells) < self._length:
                cells += [""] * (self._length - len(cells))
        else:
            count = len(values)
            cells = [values[place] if 0 <= place < count else "" for place in self._places]
        for number, text in self._constants:
            cells[number] = text
        for number, place in self._taken:
            if place < len(values) and values[place]:
                cells[number] = values[place]
        for number, change in self._changes:
            cells[number] = change(cells[number])
        return cells


def _place(name: str, whole: list[str]) -> int:
    if name in whole:
        return whole.index(name)
    field = header_field(name)
    return whole.index(field) if field in whole else -1


@functools.lru_cache(maxsize=64)
def epoch(text: str) -> str:
    """A time as the log writes it, as seconds since 1970; the log's own text is the same for all rows of a second."""
    if not text:
        return ""
    return str(int(datetime.datetime.strptime(text, "%Y-%m-%d %H:%M:%S%z").timestamp()))


def takes(filters: Sequence[str], queue: str) -> bool:
    """Whether the first of the patterns (`*` is anything) that a queue matches has no `!` before it. Of a list that
    only excludes, what it does not name is taken."""
    for pattern in filters:
        if _glob(pattern.removeprefix("!")).fullmatch(queue.lower()):
            return not pattern.startswith("!")
    return all(pattern.startswith("!") for pattern in filters)


@functools.lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.lower().split("*"))), re.DOTALL)
