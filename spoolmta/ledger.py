"""Account, journal, then remove: the one place where a delivery process writes what it has learned.

In every turn of the loop: the accounting rows, with one write a file; then the journal lines, with one write; from then
on the removals count as waiting for a sync. A removal is done once a sync has finished that began after its journal
line was written: somebody else's, which the shared page tells of, or after a quarter of a second our own, which
everybody else gains from in turn.
"""

from __future__ import annotations

import logging
import os
import time

from spoolmta import accounting, disk, entry, record, verdict
from spoolmta.errors import SpoolError
from spoolmta.model import AcctFile, Answer, Failure, Outcome, Recipient, Reply, Struct
from spoolmta.opener import Ends
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


class Way(Struct, frozen=True):
    """How a transaction went out: both ends, what the host offered, the size sent, the site."""

    ends: Ends
    esmtp: str
    size: int
    site: str


class Ledger:
    """The accounting log, the journal and the removals of one VMTA, in their order."""

    def __init__(self, files: tuple[AcctFile, ...], root: str, page: Page, row: Row, partition: Partition) -> None:
        self._page, self._row, self._partition = page, row, partition
        self.log = accounting.Log(files, page, row)
        self._committer = disk.Committer(root)
        self._root = root
        self._logged, self._queued = accounting.Clock(), accounting.Clock()
        self._shares_sync = self._lies_with_the_log()

    def _lies_with_the_log(self) -> bool:
        """Only if the log lies on the spool's filesystem does somebody else's sync make our rows durable."""
        return self.log.lies_on(os.stat(self._root).st_dev)

    def settle(self, loaded: Loaded, recipients: list[Recipient], answers: list[Answer], way: Way) -> list[Recipient]:
        """Note one answer for each of some recipients of an entry: a row each, a journal line for each that is done.
        Returns those that are done."""
        attempt = self._attempt(loaded, way)
        done: list[Recipient] = []
        delivered = False
        for recipient, answer in zip(recipients, answers, strict=True):
            judged = verdict.judge(answer)
            self.log.write(record.recipient_row(attempt, recipient, answer, judged))
            self._row.add(_COUNTED[judged.outcome], 1)
            if judged.outcome is not None:
                self._partition.settle(loaded, recipient, judged.outcome)
                done.append(recipient)
                delivered = delivered or judged.outcome is Outcome.DELIVERED
        if delivered:
            self._row.add(Cell.BYTES, way.size)
        self._row.add(Cell.MESSAGES, 1)
        return done

    def _attempt(self, loaded: Loaded, way: Way) -> record.Attempt:
        envelope, name = loaded.parsed.envelope, loaded.name
        vmta = self._partition.vmta
        return record.Attempt(
            self._logged.text(time.time()),
            self._queued.text(entry.received(name.id)),
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
        )

    def note_queue_failure(self, result: Reply | Failure, ends: Ends, site: str) -> None:
        """A `tq` row: an attempt of a whole queue failed."""
        vmta = self._partition.vmta
        logged = self._logged.text(time.time())
        self.log.write(record.queue_row(logged, result, ends.host, ends.source, ends.address, vmta, f"{site}/{vmta}"))

    @property
    def is_settled(self) -> bool:
        """Whether everything is written and removed."""
        return not (self.log.is_dirty or self._partition.is_dirty or self._partition.waiting_since is not None)

    def write(self) -> bool:
        """Write what this turn learned, and do the removals that are safe. False on a full disk: nothing is forgotten
        or removed, it is written when there is room. Raises SpoolError when a sync fails."""
        try:
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
        since = self._partition.waiting_since
        if since is not None:
            synced = self._page.synced if self._shares_sync else 0
            if synced <= since and time.monotonic_ns() - since > SYNC_AFTER_NS:
                synced = self.sync()
            if synced > since:
                self._partition.reap(synced)
        return True

    def sync(self) -> int:
        """Make rows and lines durable ourselves; when it began (monotonic nanoseconds)."""
        began = self._committer.sync()
        if self._shares_sync:
            self._page.publish_sync(began)
        else:
            self.log.sync()
        return began

    def reconfigure(self, files: tuple[AcctFile, ...]) -> None:
        self.log.reconfigure(files)
        self._shares_sync = self._lies_with_the_log()

    def close(self) -> None:
        """Write and remove all that can be; what remains is settled in the journal and removed by the next process."""
        try:
            if self.write() and self._partition.waiting_since is not None:
                self._partition.reap(self.sync())
        except SpoolError as error:
            log.error("%s", error)
        self.log.close()
        self._committer.close()
