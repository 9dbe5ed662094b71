"""Account, journal, then remove: the one place where a delivery process writes what it has learned.

In every turn of the loop: the accounting rows, with one write a file; then the journal lines, with one write; from then
on the removals count as waiting for a sync. A removal is done once a sync has finished that began after its journal
line was written: somebody else's, which the shared page tells of, or after a quarter of a second our own, which
everybody else gains from in turn.

A recipient whose failure is reported to the sender is written down later: after the sync that made the report durable
(`reporter` says why), and removed after the next.
"""

from __future__ import annotations

import logging
import os
import time

import msgspec

from spoolmta import accounting, bounce, disk, entry, message, record, verdict
from spoolmta.errors import SpoolError
from spoolmta.model import Answer, Config, DomainPolicy, Failure, Outcome, Recipient, Reply
from spoolmta.notify import Action
from spoolmta.opener import Ends
from spoolmta.reminder import Reminder
from spoolmta.reporter import Ended, Owner, Reporter
from spoolmta.shared import Cell, Page, Row
from spoolmta.spool.partition import Loaded, Partition

log = logging.getLogger("spoolmta")

SYNC_AFTER_NS = 250_000_000


_COUNTED = {
    Outcome.DELIVERED: Cell.DELIVERED,
    Outcome.BOUNCED: Cell.BOUNCED,
    Outcome.EXPIRED: Cell.EXPIRED,
    Outcome.DELETED: Cell.DELETED,
    None: Cell.DEFERRED,
}


class Way(msgspec.Struct, frozen=True):
    """How a transaction went out: both ends, what the host offered, the size sent, the site."""

    ends: Ends
    esmtp: str
    size: int
    site: str
    policy: DomainPolicy = verdict.DEFAULTS


class Ledger:
    """The accounting log, the journal, the reports and the removals of one VMTA, in their order."""

    def __init__(
        self,
        config: Config,
        owner: Owner,
        root: str,
        page: Page,
        row: Row,
        partition: Partition,
    ) -> None:
        self._page, self._row, self._partition = page, row, partition
        self._reporter = Reporter(config, owner, partition)
        self._reminder = Reminder(config, owner, partition, self._reporter)
        self.log = accounting.Log(config.acct_files, page, row)
        self._classifier = bounce.classifier(config)
        self._committer = disk.Committer(root)
        self._root = root
        self._logged, self._queued = accounting.Clock(), accounting.Clock()
        self._is_broken, self._failed_sync = False, page.failed_sync
        self._shares_sync = self._lies_with_the_log()
        self._reporter.recover(self.log)

    def _lies_with_the_log(self) -> bool:
        """Only if the log lies on the spool's filesystem does somebody else's sync make our rows durable."""
        return self.log.lies_on(os.stat(self._root).st_dev)

    def settle(self, loaded: Loaded, recipients: list[Recipient], answers: list[Answer], way: Way) -> list[Recipient]:
        """Note one answer for each of some recipients of an entry: a row each, a journal line for each that is done.
        Returns those that are done."""
        attempt, policy = self._attempt(loaded, way), way.policy
        done: list[Recipient] = []
        reported: dict[Action, list[Ended]] = {}
        delivered = False
        for recipient, answer in zip(recipients, answers, strict=True):
            judged = verdict.judge(answer, policy)
            if policy.replace_smtp_421_service_response:
                answer = record.without_words_of_421(answer)
            outcome = judged.outcome
            row = record.recipient_row(attempt, recipient, answer, judged, self._classifier)
            self._row.add(_COUNTED[outcome], 1)
            action = None
            if outcome is not None:
                done.append(recipient)
                delivered = delivered or outcome is Outcome.DELIVERED
                if recipient.notify or outcome is not Outcome.DELIVERED:
                    action = self._reporter.action(loaded, recipient, outcome, way.esmtp)
                    self._reminder.forget(loaded.name.id, recipient)
                if action is not None:
                    reported.setdefault(action, []).append(Ended(recipient, answer, outcome, row))
                if action is not Action.FAILED:
                    self._partition.settle(loaded, recipient, outcome)
            elif recipient.notify:
                self._reminder.deferred(loaded, recipient, answer.result, way.ends.host, time.time())
            if action is not Action.FAILED:
                self.log.write(row)
        for action, ended in reported.items():
            self._reporter.report(action, loaded, ended[0].recipient.domain, way.ends, ended)
        if delivered:
            self._row.add(Cell.BYTES, way.size)
        self._row.add(Cell.MESSAGES, 1)
        return done

    def _attempt(self, loaded: Loaded, way: Way) -> record.Attempt:
        envelope, name = loaded.parsed.envelope, loaded.name
        vmta = self._partition.vmta
        now, received = time.time(), entry.received(name.id)
        return record.Attempt(
            self._logged.text(now),
            self._queued.text(received),
            envelope.sender,
            name.source or "pickup",
            "",
            way.ends.source,
            way.ends.host,
            way.ends.address,
            way.esmtp,
            way.size,
            vmta,
            envelope.job if name.job != "0" else "",  # intake has decided whether x-job counts
            envelope.envid,
            f"{way.site}/{vmta}",
            name.pool,
            name.id,
            name.attempts + 1,
            max(0, int(now) - int(received)),
            way.ends.tls_protocol,
            way.ends.tls_cipher,
            message.first_values(loaded.data, loaded.parsed, self.log.headers) if self.log.headers else (),
        )

    def note_queue_failure(self, result: Reply | Failure, ends: Ends, site: str) -> None:
        """A `tq` row: an attempt of a whole queue failed."""
        vmta, now = self._partition.vmta, time.time()
        logged = self._logged.text(now)
        self._reminder.queue_failed(site, result, ends.host, now)
        self.log.write(record.queue_row(logged, result, ends.host, ends.source, ends.address, vmta, f"{site}/{vmta}"))

    def remind(self, now: float) -> None:
        """Tell senders of delayed mail, where it is time and they asked for it."""
        self._reminder.remind(now)

    @property
    def is_settled(self) -> bool:
        """Whether everything is written and removed."""
        return not (self.log.is_dirty or self._partition.is_dirty or self.is_waiting)

    @property
    def is_waiting(self) -> bool:
        """Whether something waits for a sync, or a report for room on the disk."""
        return self._partition.waiting_since is not None or not self._reporter.is_idle

    @property
    def _waiting_since(self) -> int | None:
        removal, report = self._partition.waiting_since, self._reporter.waiting_since
        return report if removal is None or (report is not None and report < removal) else removal

    def write(self) -> bool:
        """Write what this turn learned, and do the removals that are safe. False on a full disk: nothing is forgotten
        or removed, it is written when there is room. Raises SpoolError when a sync fails."""
        if not self._flush():
            return False
        since = self._waiting_since
        if since is not None:
            # Of a failed sync the kernel tells each of us once: after anybody's, only our own proves anything.
            is_trusted = self._shares_sync and self._page.failed_sync == self._failed_sync
            synced = self._page.synced if is_trusted else 0
            if synced <= since and time.monotonic_ns() - since > SYNC_AFTER_NS:
                synced = self.sync()
            if synced > since:
                return self._do_what_is_safe(synced)
        return not self._reporter.is_stuck

    def _flush(self) -> bool:
        try:
            self._reporter.write()
            if self.log.is_dirty:
                self.log.flush()
            if self._partition.is_dirty:
                self._partition.flush()
        except SpoolError as error:
            if not self._row[Cell.TROUBLE]:
                log.error("%s; waiting for room", error)
            self._row[Cell.TROUBLE] = 1
            return False
        self._row[Cell.TROUBLE] = 0
        return True

    def _do_what_is_safe(self, synced: int) -> bool:
        self._partition.reap(synced)
        is_written = not self._reporter.settle(synced, self.log) or self._flush()
        return is_written and not self._reporter.is_stuck

    def sync(self) -> int:
        """Make rows and lines durable ourselves; when it began (monotonic nanoseconds)."""
        try:
            began = self._committer.sync()
            if not self._shares_sync:
                self.log.sync()
        except SpoolError:
            self._is_broken = True
            self._page.note_failed_sync()
            raise
        if self._shares_sync:
            self._page.publish_sync(began)
        return began

    def finish(self) -> bool:
        """Write, sync and remove all there is, now. False on a full disk: nothing is forgotten. A report needs two
        syncs until what it speaks of is removed, and its own way into the queue a third."""
        for _ in range(4):
            if not self._flush():
                return False
            if not self.is_waiting:
                return True
            if not self._do_what_is_safe(self.sync()):
                return False
        return True

    def reconfigure(self, config: Config) -> None:
        self._reporter.reconfigure(config)
        self._reminder.reconfigure(config)
        self.log.reconfigure(config.acct_files)
        self._classifier = bounce.classifier(config)
        self._shares_sync = self._lies_with_the_log()

    def close(self) -> None:
        """Write and remove all that can be; what remains is settled in the journal and removed by the next process.
        After a sync that failed another would only seem to succeed (the kernel calls the same pages clean)."""
        try:
            if self._is_broken:
                self._flush()
                return
            # Reports need two syncs until what they settle is removed.
            for _ in range(2):
                if not self.write() or not self.is_waiting:
                    break
                self._do_what_is_safe(self.sync())
        except SpoolError as error:
            log.error("%s", error)
        finally:
            self.log.close()
            self._committer.close()
