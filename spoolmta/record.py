"""Events to the values of accounting rows, in PowerMTA's columns, order and forms (the columns are in `accounting`).

Statuses are `5.1.1 (bad destination mailbox address)`, diagnostics `smtp;550 5.1.1 no such user`, hosts
`name (address)`. An expired recipient is a `b` with 4.4.7 and message-expired; our own trouble has its words as the
diagnostic.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from spoolmta import bounce
from spoolmta.bounce import Classifier
from spoolmta.model import Answer, Failure, FailureKind, Outcome, Recipient, Reply
from spoolmta.pattern import text_of
from spoolmta.verdict import Verdict


class Attempt(msgspec.Struct, frozen=True):
    """What is the same for all recipients of one transaction. Times are as the log writes them, addresses of both ends
    empty where there was no connection; `esmtp` is the comma list of what the host offered, `shown` the values of
    header fields that a file wants."""

    logged: str
    queued: str
    orig: str
    source_type: str
    source_mta: str
    source_ip: str
    host: str
    destination_ip: str
    esmtp: str
    size: int
    vmta: str
    job: str
    envid: str
    queue: str
    pool: str
    entry_id: str
    attempts: int
    seconds_queued: int = 0
    tls_protocol: str = ""
    tls_cipher: str = ""
    shown: tuple[str, ...] = ()


MAX_TEXT = 2000
"""Characters of a reply in a row; a stranger's reply may have 65,536, and there is a row for each recipient."""


@functools.lru_cache(maxsize=4096)
def _reply_status(reply: Reply) -> tuple[str, str]:
    return bounce.status_of(reply), f"smtp;{reply.code} {reply.text}".rstrip()


def status(result: Reply | Failure) -> tuple[str, str]:
    """The status, and dsnDiag, of whatever answered a recipient."""
    if isinstance(result, Failure):
        return bounce.status_of_failure(result.kind), f"smtp;{result.text}"
    if len(result.lines) > 1 or len(result.text) > MAX_TEXT:
        return _reply_status(_cut(result))
    return _reply_status(result)


def _cut(reply: Reply) -> Reply:
    left, lines = MAX_TEXT, []
    for line in reply.lines:
        if left <= 0:
            break
        lines.append(line[:left])
        left -= len(line) + 1
    return Reply(reply.code, tuple(lines))


def without_words_of_421(answer: Answer) -> Answer:
    """The answer as it may be shown where a 421 repeats addresses or other things not for everybody."""
    if not isinstance(answer.result, Reply) or answer.result.code != 421:
        return answer
    words = f"{bounce.status_of(answer.result)} service unavailable"
    return Answer(answer.stage, Reply(421, (words,)))


def recipient_row(
    attempt: Attempt, recipient: Recipient, answer: Answer, verdict: Verdict, classifier: Classifier
) -> list[str]:
    """A `d`, `b` or `t` row: the usual columns, and behind them all that can be had by name (columns.MORE)."""
    result = answer.result
    code, diagnostic = status(result)
    code = verdict.status or code
    if verdict.outcome is Outcome.DELIVERED:
        kind, action, size = "d", "relayed", str(attempt.size)
    elif verdict.outcome is None:
        kind, action, size = "t", "delayed", ""
    else:
        kind, action, size = "b", "failed", ""
    if kind == "d":
        category = ""
    elif isinstance(result, Failure):
        category = classifier.category_of_failure(result)
    else:
        category = classifier.category(code, text_of(result))
    if verdict.possible_duplicate:
        diagnostic += " (possible duplicate)"
    return [
        kind,
        attempt.logged,
        attempt.queued,
        attempt.orig,
        recipient.address,
        recipient.orcpt,
        action,
        bounce.describe(code),
        diagnostic,
        f"{attempt.host} ({attempt.destination_ip})" if attempt.destination_ip else attempt.host,
        category,
        attempt.source_type,
        attempt.source_mta,
        "smtp",
        attempt.source_ip,
        attempt.destination_ip,
        attempt.esmtp,
        size,
        attempt.vmta,
        attempt.job,
        attempt.envid,
        attempt.queue,
        attempt.pool,
        attempt.entry_id,
        str(attempt.attempts),
        str(attempt.seconds_queued),
        attempt.tls_protocol,
        attempt.tls_cipher,
        "",
        "",
        *attempt.shown,
    ]


def queue_row(
    logged: str, result: Reply | Failure, host: str, source_ip: str, destination_ip: str, vmta: str, queue: str
) -> list[str]:
    """A `tq` row: an attempt of the whole queue failed."""
    code, diagnostic = status(result)
    mta = f"{host} ({destination_ip})" if destination_ip else host
    return ["tq", logged, bounce.describe(code), diagnostic, mta, "smtp", source_ip, destination_ip, vmta, queue]


def receipt_row(
    logged: str,
    sender: str,
    recipient: Recipient,
    source_type: str,
    vmta: str,
    job: str,
    envid: str,
    entry_id: str,
    pool: str = "",
    shown: Sequence[str] = (),
) -> list[str]:
    """An `r` row: a recipient was accepted for delivery. The VMTA is what was asked for, as PowerMTA has it: perhaps a
    pool."""
    return [
        "r",
        logged,
        sender,
        recipient.address,
        recipient.orcpt,
        source_type,
        "",
        "",
        "",
        pool or vmta,
        job,
        envid,
        entry_id,
        pool,
        "",
        "",
        *shown,
    ]


def expired(reason: str) -> Failure:
    """Why an expired recipient was given up: with the last thing that stood in its way, if that is known."""
    return Failure(FailureKind.EXPIRED, f"delivery time expired{f', last: {reason}' if reason else ''}")
