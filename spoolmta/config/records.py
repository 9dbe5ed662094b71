"""What an accounting file takes and shows: columns, header fields, queues, addresses; and the program behind a pipe."""

from __future__ import annotations

import hashlib
import re
import shlex
from typing import Any

from spoolmta import address, columns, privacy
from spoolmta.config.values import BadValue, Kind, read_path, shown, toml, wrong
from spoolmta.model import Secret

LONG_NAMES = {
    "delivery": "d",
    "bounce": "b",
    "transient": "t",
    "transient-queue": "tq",
    "receipt": "r",
    "remote-bounce": "rb",
    "remote-status": "rs",
    "feedback-loop": "f",
}
ONLY_FILES = ("move-to", "move-interval", "max-size", "world-readable", "sync", "count-moved-records")
ONLY_PIPES = ("write-timeout", "retry-interval")
PIPE_SIZE = 50_000_000
"""Bytes of the file between us and a program, until the next one is begun: so much more than is needed may be kept."""
_QUEUE = re.compile(r"!?[^\s/!,]+/[^\s/!,]+")


def _read_place(value: object) -> str:
    """A path, or the command of a pipe behind its "|"."""
    text = read_path(value)
    if text.startswith("|"):
        words(text)
    return text


def words(place: str) -> tuple[str, ...]:
    """The words of a pipe's command, as a shell would see them. Raises BadValue."""
    try:
        found = shlex.split(place.removeprefix("|"))
    except ValueError as error:
        raise BadValue(f"the words of this command cannot be told: {str(error).lower()}") from None
    if not found or not found[0]:
        raise BadValue('a program and its arguments stand behind the "|", like "|/usr/bin/php bounces.php"')
    return tuple(found)


def pipe(place: str, spool: str) -> dict[str, Any]:
    """Of a pipe the command, and the file by way of which its rows go. Its folder is called by the program, so that
    people know it, and by a hash of the whole command."""
    command = words(place)
    program = re.sub(r"[^A-Za-z0-9._-]+", "_", command[0].rpartition("/")[2])[:32]
    digest = hashlib.blake2b("\0".join(command).encode(), digest_size=4).hexdigest()
    path = f"{spool.rstrip('/')}/pipes/{program}-{digest}/acct.csv"
    return {"command": command, "path": path, "max_size": PIPE_SIZE}


def wrong_keys(is_pipe: bool) -> tuple[tuple[str, ...], str]:
    """The keys that a pipe, or a file, cannot have, and why not."""
    if is_pipe:
        return ONLY_FILES, "this is for a file, and here the rows go to a program"
    return ONLY_PIPES, 'this is for a program that reads the rows (path = "|COMMAND"), and here they go to a file'


def _record(value: object) -> str:
    record = LONG_NAMES.get(value, value) if isinstance(value, str) else value
    if not isinstance(record, str) or record not in columns.USUAL:
        names = ", ".join(f"{short} ({long})" for long, short in LONG_NAMES.items())
        raise wrong(f"a record type, one of {names}", value)
    return record


def _read_records(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise wrong('a list of record types, like ["d", "b"]', value)
    found = [_record(item) for item in value]
    if twice := next((record for record in found if found.count(record) > 1), ""):
        raise BadValue(f'"{twice}" is there twice')
    return tuple(found)


def _read_fields(value: object) -> dict[str, tuple[str, ...]]:
    """By record type the columns: names, "*" for the usual ones, "!name" for one of these that is left out."""
    if not isinstance(value, dict) or not value:
        raise wrong('a table like { d = ["*", "!orcpt", "header_Subject"] }', value)
    found: dict[str, tuple[str, ...]] = {}
    for written, fields in value.items():
        record = _record(written)
        if not isinstance(fields, list) or not fields or not all(isinstance(field, str) for field in fields):
            raise BadValue(f'expected a list of columns for {record}, like ["*", "!orcpt"], got {shown(fields)}')
        if twice := next((field for field in fields if fields.count(field) > 1), ""):
            raise BadValue(f"{shown(twice)} is there twice")
        try:
            columns.resolve(record, fields)
        except columns.BadField as error:
            raise BadValue(address.show(str(error))) from None
        found[record] = tuple(fields)
    return found


def _write_fields(value: object) -> str:
    assert isinstance(value, dict)
    return f"{{ {', '.join(f'{record} = {toml(fields)}' for record, fields in value.items())} }}"


def _read_header_fields(value: object) -> dict[str, dict[str, str]]:
    """By record type, the column that takes the value of a header field, if the message has one."""
    expected = 'a table like { d = { header_X-Campaign = "jobId" } }'
    if not isinstance(value, dict) or not value:
        raise wrong(expected, value)
    found: dict[str, dict[str, str]] = {}
    for written, taken in value.items():
        record = _record(written)
        if not isinstance(taken, dict) or not taken or record not in columns.WITH_HEADERS:
            raise wrong(expected, taken)
        for field, column in taken.items():
            if not columns.header_field(field):
                raise BadValue(f"expected a header field like header_X-Campaign, got {shown(field)}")
            if column == "type" or column not in (*columns.USUAL[record], *columns.MORE[record]):
                raise BadValue(f"{record} has no column {shown(column)} that could take {shown(field)}")
        found[record] = dict(taken)
    return found


def _write_header_fields(value: object) -> str:
    assert isinstance(value, dict)
    tables = (
        f"{record} = {{ {', '.join(f'{toml(field)} = {toml(column)}' for field, column in taken.items())} }}"
        for record, taken in value.items()
    )
    return f"{{ {', '.join(tables)} }}"


def _read_queue_filter(value: object) -> tuple[str, ...]:
    expected = 'a list of queues, like ["*/alerts", "!*/news-*"]'
    if not isinstance(value, list) or not value:
        raise wrong(expected, value)
    for item in value:
        if not isinstance(item, str) or not _QUEUE.fullmatch(item):
            raise wrong(expected, item)
    return tuple(value)


def _read_privacy(value: object) -> Secret:
    if not isinstance(value, str) or not value.isprintable():
        raise BadValue('expected a text like "redact" or "hmac-sha256 KEY"')  # and it is not shown
    try:
        privacy.parse(value)
    except privacy.BadPolicy as error:
        raise BadValue(str(error)) from None
    return Secret(value)


PLACE = Kind(_read_place)
RECORDS = Kind(_read_records)
FIELDS = Kind(_read_fields, _write_fields)
HEADER_FIELDS = Kind(_read_header_fields, _write_header_fields)
QUEUE_FILTER = Kind(_read_queue_filter)
PRIVACY = Kind(_read_privacy, lambda value: toml(str(value)))
