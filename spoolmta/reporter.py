"""What a delivery process tells senders: writes the DSNs that `notify` asks for, and settles no failed recipient before
its DSN is safe.

| a recipient | its row and journal line | its DSN is in the queue |
|---|---|---|
| failed, and a DSN is due | after the sync that made the DSN durable | one sync later |
| delivered, and SUCCESS was asked for | in the turn that read the reply: it must not be sent again | the same |
| delayed | none | the same |

No sync is made for it: a DSN waits for the next one, as removals do (the ledger makes one after a quarter of a second
if nobody does). Killed before the lines, the recipients are tried again and their DSN is written again, the first one
having never been accepted; killed behind them, the next process puts it into the queue. A full disk keeps the DSN here
and the entry where it is; with MAX_UNWRITTEN of them nothing more is sent until there is room.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from spoolmta import accounting, bounce, dsn, entry, message, notify, record
from spoolmta.dsn import Fact, Report
from spoolmta.model import Answer, Config, DomainPolicy, Failure, Outcome, Recipient, Reply, Source
from spoolmta.notify import Action
from spoolmta.opener import Ends
from spoolmta.spool.outbox import SOURCE, Outbox, Staged
from spoolmta.spool.partition import Loaded, Partition

log = logging.getLogger("spoolmta")

MAX_UNWRITTEN = 1000
TRY_AGAIN_NS = 1_000_000_000


class Ended(msgspec.Struct, frozen=True):
    """A recipient that is done, and what ended it; `row` is written with its journal line."""

    recipient: Recipient
    answer: Answer
    outcome: Outcome
    row: list[str]


class _Subject(msgspec.Struct, frozen=True):
    """Whom a DSN goes to and what is noted when it is durable: `ended` recipients of the entry, or (`times`) that
    its sender was told of a delay."""

    recipient: str
    domain: str
    loaded: Loaded
    ended: Sequence[Ended] = ()
    times: int = 0


class _Unwritten(msgspec.Struct, frozen=True):
    """A DSN for which the disk has had no room yet."""

    id: str
    data: bytes
    subject: _Subject


class _Waiting(msgspec.Struct, frozen=True):
    """A DSN that is not durable yet. `since` is when it was whole (monotonic nanoseconds)."""

    staged: Staged
    since: int
    subject: _Subject


class Owner(msgspec.Struct, frozen=True):
    """The process a DSN is written in: the policy and the site of a domain, and who hears of DSNs that have become
    entries (domain, name)."""

    policy: Callable[[str], DomainPolicy]
    site_of: Callable[[str], str]
    on_queued: Callable[[str, str], None]


class Reporter:
    """The DSNs of one VMTA."""

    def __init__(self, config: Config, owner: Owner, partition: Partition) -> None:
        self._config, self._owner = config, owner
        self._partition = partition
        self._outbox = Outbox(partition.layout, partition, owner.on_queued)
        self._waiting: deque[_Waiting] = deque()
        self._unwritten: deque[_Unwritten] = deque()
        self._try_again_at = 0
        self._clock = accounting.Clock()

    def __repr__(self) -> str:
        return f"Reporter({len(self._waiting)} waiting, {len(self._unwritten)} unwritten)"

    def reconfigure(self, config: Config) -> None:
        self._config = config

    def recover(self, rows: accounting.Log) -> None:
        """Carry on with the DSNs that a dead process left."""
        for staged, recipient in self._outbox.recover():
            rows.write(self._receipt(staged.id, recipient))

    # What is due

    def action(self, loaded: Loaded, recipient: Recipient, outcome: Outcome, esmtp: str) -> Action | None:
        """The DSN that the end of a recipient asks for. `esmtp` is what the host offered, a comma list."""
        has_dsn = outcome is Outcome.DELIVERED and "DSN" in esmtp.split(",")
        found = notify.action(loaded.parsed.envelope.sender, recipient.notify, outcome, next_hop_has_dsn=has_dsn)
        return found if found is not None and self.tells(loaded) else None

    def tells(self, loaded: Loaded) -> bool:
        """Whether the source of an entry wants its senders told at all."""
        return not self._source(loaded).suppress_local_dsn

    def _source(self, loaded: Loaded) -> Source:
        name = loaded.name.source or "pickup"
        return self._config.sources.get(name) or Source(name=name)

    def report(self, action: Action, loaded: Loaded, domain: str, ends: Ends, ended: Sequence[Ended]) -> None:
        """Write one DSN for recipients of an entry that ended in the same way in one transaction. Where it settles them
        (they failed), the entry is held and their rows and lines wait for it."""
        now = time.time()
        facts = tuple(fact(one.recipient, one.answer.result, ends.host, now) for one in ended)
        if action is Action.FAILED:
            self._partition.hold(domain, loaded.name.id)
        self._write(action, loaded, domain, facts, ended if action is Action.FAILED else ())

    def report_delay(self, loaded: Loaded, domain: str, facts: tuple[Fact, ...], times: int) -> None:
        """Write the DSN that says that recipients of an entry still wait; `times` is the number of this notice."""
        self._write(Action.DELAYED, loaded, domain, facts, times=times)

    def _write(
        self,
        action: Action,
        loaded: Loaded,
        domain: str,
        facts: tuple[Fact, ...],
        ended: Sequence[Ended] = (),
        times: int = 0,
    ) -> None:
        id_ = self._outbox.make_id()
        data = dsn.file_of(self._compose(action, loaded, domain, facts, id_))
        without_bytes = msgspec.structs.replace(loaded, data=b"", recipients=[])
        subject = _Subject(loaded.parsed.envelope.sender, domain, without_bytes, ended, times)
        self._unwritten.append(_Unwritten(id_, data, subject))
        if len(self._unwritten) == 1:
            self._stage_all()

    def _compose(self, action: Action, loaded: Loaded, domain: str, facts: tuple[Fact, ...], id_: str) -> Report:
        parsed = loaded.parsed
        envelope = parsed.envelope
        wanted = notify.returns_content(action, envelope.ret, self._source(loaded).dsn_return_default)
        # A message far above the limit is not made ready for the wire once more only to be left out.
        whole = wanted and len(loaded.data) - parsed.start <= dsn.MAX_RETURNED
        return Report(
            action=action,
            host=self._config.host_name,
            sender=envelope.sender,
            id=id_,
            original_id=loaded.name.id,
            boundary=f"{os.urandom(12).hex()}.report",
            now=time.time(),
            arrived=entry.received(loaded.name.id),
            facts=facts,
            content=message.content(loaded.data if whole else loaded.data[: parsed.body], parsed),
            returns_content=whole,
            envid=envelope.envid,
            author=self._config.custom_dsn_from_header,
            format=self._owner.policy(domain).dsn_format,
        )

    # On its way

    def _stage_all(self) -> None:
        """Write to disk what is there to be written, the oldest first."""
        while self._unwritten:
            one = self._unwritten[0]
            try:
                settles = bool(one.subject.ended or one.subject.times)
                staged = self._outbox.stage(one.id, one.data, one.subject.recipient, settles=settles)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not self._try_again_at:
                    log.error("a delivery status notification cannot be written: %s; waiting for room", error.strerror)
                self._try_again_at = time.monotonic_ns() + TRY_AGAIN_NS
                return
            self._unwritten.popleft()
            self._try_again_at = 0
            self._waiting.append(_Waiting(staged, time.monotonic_ns(), one.subject))

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._unwritten)

    @property
    def is_stuck(self) -> bool:
        """Whether so many DSNs wait for room on the disk that no more recipients may fail."""
        return len(self._unwritten) >= MAX_UNWRITTEN

    @property
    def waiting_since(self) -> int | None:
        """Since when (monotonic nanoseconds) the oldest DSN waits for a sync."""
        return self._waiting[0].since if self._waiting else None

    def write(self) -> None:
        """Once a second, try to write what the disk had no room for."""
        if self._unwritten and time.monotonic_ns() >= self._try_again_at:
            self._stage_all()

    def settle(self, synced: int, rows: accounting.Log) -> bool:
        """A sync that began at `synced` is done: accept the DSNs it made durable and settle their recipients, all to be
        written in this turn. Whether there were any."""
        found = False
        while self._waiting and self._waiting[0].since < synced:
            found = True
            one = self._waiting.popleft()
            self._settle(one.staged, one.subject, rows)
        return found

    def _settle(self, staged: Staged, subject: _Subject, rows: accounting.Log) -> None:
        entry_id = subject.loaded.name.id
        rows.write(self._receipt(staged.id, subject.recipient))
        self._outbox.accept(staged)
        for ended in subject.ended:
            rows.write(ended.row)
            self._partition.settle(subject.loaded, ended.recipient, ended.outcome)
        if subject.ended:
            self._partition.release(subject.domain, entry_id)
        if subject.times:
            self._partition.tell(subject.domain, entry_id, subject.times)

    def _receipt(self, id_: str, recipient: str) -> list[str]:
        now = self._clock.text(time.time())
        return record.receipt_row(now, "", Recipient(recipient, ""), SOURCE, self._partition.vmta, "", "", id_)


def fact(recipient: Recipient, result: Reply | Failure, mta: str, when: float, until: float = 0.0) -> Fact:
    """What a reply or a failure, of the host `mta`, says of a recipient that is tried again `until` then, if at all."""
    is_reply = isinstance(result, Reply)
    status = bounce.status_of(result) if isinstance(result, Reply) else bounce.status_of_failure(result.kind)
    return Fact(
        address=recipient.address,
        status=status,
        said=str(result),
        is_reply=is_reply,
        attempted=when,
        mta=mta,
        orcpt=recipient.orcpt,
        retry_until=until,
    )
