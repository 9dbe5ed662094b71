"""What one session may carry: what the server offered, as far as we use it, and what is left of both sides' limits."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Recipient, Reply, Stage
from spoolmta.smtp.client import Capabilities, Result

NO_TURN = Answer(Stage.RCPT, Failure(FailureKind.LOST, "the session ended before this recipient's turn"))
NO_PAUSE = (0.0,)

_LIMIT = re.compile(r"(RCPTMAX|MAILMAX)=([0-9]{1,6})", re.IGNORECASE)
_SIZE = re.compile(r"[0-9]{1,20}")


def agree(offered: Capabilities, policy: DomainPolicy) -> Capabilities:
    """The capabilities with our limits of their use, and the server's own (SIZE, RFC 1870; LIMITS, RFC 9422)."""
    ignored = {
        "PIPELINING": policy.ignore_pipelining,
        "CHUNKING": policy.ignore_chunking,
        "8BITMIME": policy.ignore_8bitmime,
        "DSN": policy.ignore_dsn,
    }
    limits = {name.upper(): int(number) for name, number in _LIMIT.findall(offered.keywords.get("LIMITS", ""))}
    size = _SIZE.fullmatch(offered.keywords.get("SIZE", "").strip())
    return msgspec.structs.replace(
        offered,
        keywords={key: value for key, value in offered.keywords.items() if not ignored.get(key)},
        told=offered.listing,
        max_size=int(size[0]) if size else 0,
        max_recipients=limits.get("RCPTMAX", 0),
        max_messages=limits.get("MAILMAX", 0),
        stays_after_421=not policy.smtp_421_means_mx_unavailable,
    )


def settle(
    result: Result, sent: list[Recipient], unsent: list[Recipient]
) -> tuple[list[Answer], list[Recipient], list[Recipient]]:
    """(answers, whose they are, who still waits): who was put off goes before those whose turn has not come."""
    if not result.retry:
        return result.answers, sent, unsent
    put_off = set(result.retry)
    answered = [index for index in range(len(sent)) if index not in put_off]
    return (
        [result.answers[index] for index in answered],
        [sent[index] for index in answered],
        [*(sent[index] for index in result.retry), *unsent],
    )


class Allowance:
    """Counts what a session has carried. `recipients` is how many the next transaction may have (0: no limit)."""

    __slots__ = ("_errors", "_max_errors", "_messages", "recipients")

    def __init__(self, offered: Capabilities = Capabilities(), max_errors: int = 0) -> None:  # noqa: B008  (frozen)
        self.recipients = offered.max_recipients
        self._messages = offered.max_messages
        self._max_errors = max_errors
        self._errors = 0

    def __repr__(self) -> str:
        return f"Allowance(recipients={self.recipients}, messages={self._messages}, errors={self._errors})"

    def count(self, result: Result) -> bool:
        """Note a transaction; whether the session may have another one.

        Where some were too many, the next transactions are only as large as what was taken: asking a server that takes
        a hundred for a thousand again and again would be the square of the commands.
        """
        if result.retry:
            self.recipients = len(result.answers) - len(result.retry)
        if self._max_errors:
            put_off = set(result.retry)
            self._errors += sum(
                _is_error(answer) for index, answer in enumerate(result.answers) if index not in put_off
            )
            if self._errors >= self._max_errors:
                return False
        if self._messages:
            self._messages -= 1
            if not self._messages:
                return False
        return result.reusable


def _is_error(answer: Answer) -> bool:
    """A recipient that the server refused, for now or for good."""
    return answer.stage is Stage.RCPT and isinstance(answer.result, Reply) and answer.result.code >= 400


def refuse(recipients: Sequence[Recipient], answer: Answer) -> Result:
    """What a transaction would bring on a session that was refused as a whole, without asking again."""
    return Result([answer] * len(recipients), True)
