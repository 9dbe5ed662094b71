"""The pickup process: finds dropped files, judges each where it lies, takes whole batches into the queue.

| a file is | what happens |
|---|---|
| whole and ours alone | claimed by one rename |
| whole, but of another owner, and may not be taken over | copied |
| whole, but written before a sync that failed | copied |
| a second hard link, empty, open for writing | given 60 seconds; then copied, refused, refused |
| created in place by another owner, and not seen closed | given 60 seconds; then copied |
| no message, for nobody, too large | to `bad/` with its reason |
| no regular file, not readable, not removable | left alone, logged once |
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable

import msgspec

from spoolmta import accounting, clock, disk, message, record, selection
from spoolmta.arrivals import QUIET, Doorbell, Folder
from spoolmta.control import HintWriter
from spoolmta.dealer import Dealer
from spoolmta.errors import MessageRefused, SpoolError
from spoolmta.mailhosts import MailHosts
from spoolmta.model import Config, Parsed
from spoolmta.processor import Precedence
from spoolmta.shared import Cell, Page, Row
from spoolmta.spool import intake
from spoolmta.spool.intake import Acceptor, Claimed
from spoolmta.spool.layout import Layout

log = logging.getLogger("spoolmta")

STEP = 128
"""Files between two looks at the clock and the disk, and at least to one sync, where so many wait."""
BATCH = 1024
"""Files at most to one sync; what is claimed while the one before it goes on. The larger, the cheaper each."""
BATCH_BYTES = 32 << 20
GRACE = 60.0
CALM_SCANS = 3
SLOW_SCAN = 15.0
FULL_PAUSE = 1.0
WAIT_FOR = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""No fault of the file: it is taken as soon as it can be."""


class Batch:
    """What one sync makes durable: the claims, and of those that are copies the originals and the notes of them."""

    def __init__(self) -> None:
        self.claimed: list[Claimed] = []
        self.copied: list[tuple[Folder, str]] = []
        self.notes: list[str] = []
        self.size = 0

    def __repr__(self) -> str:
        return f"Batch({len(self.claimed)} messages, {self.size} bytes)"


class Pickup:
    """Scans, judges, takes. While one batch becomes durable the next is claimed and the one before it is put into the
    queue; in between it looks at the clock, the disk, the configuration."""

    def __init__(self, config: Config, layout: Layout, page: Page, row: Row) -> None:
        self._config, self._layout, self._page, self._row = config, layout, page, row
        self._acceptor = Acceptor(layout, "pickup")
        self._hints = HintWriter(layout.run)
        self._mail_hosts = MailHosts(config.nameservers)
        self._dealer = Dealer(config, layout, lambda domain: self._mail_hosts.of(domain))
        self._log = accounting.Log(config.acct_files, page, row)
        self._clock = accounting.Clock()
        self._folders = [Folder(source) for source in config.sources.values() if source.pickup]
        self._bell = Doorbell([folder.path for folder in self._folders])
        self._leaving = False
        self._new_config: Config | None = None
        self._is_full = False
        self._user = os.geteuid()
        self._claims = Batch()
        self._under_way: Batch | None = None
        self._precedence = Precedence()

    # The life of the process

    def leave(self) -> None:
        self._leaving = True
        self._bell.ring()

    def reconfigure(self, config: Config) -> None:
        self._new_config = config
        self._bell.ring()

    def ring(self) -> None:
        self._bell.ring()

    def run(self, is_orphan: Callable[[], bool]) -> None:
        """Work until told to stop or the parent is gone."""
        self.recover()
        self._row[Cell.READY] = 1
        calm = CALM_SCANS
        while not self._leaving and not is_orphan():
            self._apply_config()
            self._reopen_log()
            if not self._has_room():
                if not self._settle():
                    self._bell.wait(FULL_PAUSE)
                continue
            if self._work(is_orphan) or self._settle():
                calm = 0
            elif calm < CALM_SCANS:
                calm += 1
                time.sleep(0.005)
            else:
                self._rest()
                calm = CALM_SCANS - 1
        self._settle_all()
        self._bell.ignore()
        self._log.close()
        self._dealer.close()
        self._mail_hosts.close()
        self._precedence.close()
        self._acceptor.close()

    def _rest(self) -> None:
        """Nothing to do: listen, look once more (a file may have come in between), then wait to be woken."""
        owed = self._hints.pay()
        if len(os.listdir(self._layout.incoming)) > 1:
            self.recover()  # a predecessor that was still finishing when we began has died since
        self._acceptor.tend_journal()
        is_watching = self._bell.watch()
        pause = min(SLOW_SCAN if is_watching else 0.5, 0.05 if owed else SLOW_SCAN, self._next_look())
        # What rang before we listened was cleared away, but not what it was about.
        if not self._work(lambda: False) and not self._leaving and self._new_config is None:
            self._bell.wait(pause)
        self._bell.ignore()

    def _next_look(self) -> float:
        now = clock.now()
        times = [until for folder in self._folders for until in folder.later.values()]
        return max(0.01, min(times, default=now + SLOW_SCAN) - now)

    def _apply_config(self) -> None:
        if self._new_config is None:
            return
        config, self._new_config = self._new_config, None
        self._row[Cell.CONFIG_GENERATION] = self._page.config_generation
        self._config = config
        self._dealer.reconfigure(config)
        self._mail_hosts.close()
        self._mail_hosts = MailHosts(config.nameservers)
        self._log.reconfigure(config.acct_files)
        kept = {folder.path: folder for folder in self._folders}
        self._folders = []
        for source in config.sources.values():
            if source.pickup:
                folder = kept.pop(source.pickup, None) or Folder(source)
                folder.source = source
                self._folders.append(folder)
        for folder in kept.values():
            folder.watch.close()
        self._bell.close()
        self._bell = Doorbell([folder.path for folder in self._folders])

    def _reopen_log(self) -> None:
        try:
            self._log.reopen_if_rotated()
        except (OSError, SpoolError) as error:
            log.error("%s", error)

    def _has_room(self) -> bool:
        """Intake stops while the disk has less than min-free-space, or rows cannot be written: they wait, and no more
        are added to them. What is queued is still delivered."""
        space, inodes = disk.free(self._layout.root)
        trouble = ""
        if space < self._config.min_free_space or inodes < self._config.min_free_inodes:
            trouble = f"the spool has {space >> 20} MB and {inodes} inodes free"
        elif not self._log.catch_up():
            trouble = "the accounting log cannot be written"
        if bool(trouble) != self._is_full:
            self._is_full = bool(trouble)
            self._row[Cell.TROUBLE] = int(self._is_full)
            if trouble:
                log.error("%s: intake stops, files stay in pickup/", trouble)
            else:
                log.warning("there is room again: intake goes on")
        return not trouble

    def recover(self) -> None:
        """Carry on with what dead intake processes claimed."""
        found, quarantined, locks = self._acceptor.recover()
        for name in quarantined:
            log.error("recovery: a damaged file is in corrupt/%s", name)
        for path, claimed in found:
            self._account([self._completed(path, claimed)])
            self._hints.send(claimed.name.vmta, self._enqueue(path, claimed))
        if self._leaving:
            return  # perhaps on a full disk: the next start carries on
        if found:
            log.warning("recovery: %d messages that a dead process had claimed are on their way", len(found))
        for folder in {os.path.dirname(path) for path, _ in found}:
            os.rmdir(folder)
        for lock in locks:
            os.close(lock)

    # Taking files

    def _work(self, is_orphan: Callable[[], bool]) -> bool:
        """Look through all folders once; True if anything was found to do."""
        worked = False
        waiting = 0
        for folder in self._folders:
            names = folder.scan(clock.now())
            waiting += len(names)
            self._row[Cell.QUEUED] = waiting
            for start in range(0, len(names), STEP):
                if self._leaving or is_orphan() or not self._has_room():
                    return worked
                worked = self._take(folder, names[start : start + STEP]) or worked
                if self._claims.copied:
                    self._settle_all()  # or the next scan would find the originals again
                elif not self._acceptor.is_syncing or len(self._claims.claimed) >= BATCH:
                    self._commit()
                self._hints.pay()
                self._reopen_log()
                self._precedence.tend()
        return worked

    def _take(self, folder: Folder, names: list[str]) -> bool:
        """Claim some files. True if any of them was dealt with."""
        now = time.time()
        dealt = 0
        for name in names:
            try:
                claimed = self._look_at(folder, name, now)
            except OSError as error:
                if error.errno in WAIT_FOR:
                    log.error("pickup: %s; trying again", error.strerror)
                    self._bell.wait(FULL_PAUSE)
                    break
                why = "a symbolic link" if error.errno == errno.ELOOP else error.strerror or "cannot be read"
                self._leave_alone(folder, name, why)
                continue
            dealt += claimed is not False
            if isinstance(claimed, Claimed):
                self._claims.claimed.append(claimed)
                self._claims.size += claimed.name.size
                if self._claims.size > BATCH_BYTES:
                    self._commit()
        return dealt > 0

    def _settle(self) -> bool:
        """Bring what is claimed one step on, waiting where need be; False if there is nothing."""
        if self._claims.claimed:
            self._commit()
        elif self._under_way is not None:
            self._pass_on(self._finish())
        else:
            return False
        return True

    def _settle_all(self) -> None:
        while self._settle():
            pass

    def _commit(self) -> None:
        """Begin to make the claims durable, when those before them are, and meanwhile put those into the queue."""
        if not self._claims.claimed:
            return
        before = self._finish()
        batch, self._claims = self._claims, Batch()
        batch.notes = self._acceptor.incoming.take_notes()
        self._acceptor.begin(batch.claimed)
        self._under_way = batch
        self._pass_on(before)

    def _finish(self) -> Batch | None:
        """The batch that was under way, durable now."""
        if self._under_way is None:
            return None
        self._page.publish_sync(self._acceptor.finish())
        done, self._under_way = self._under_way, None
        return done

    def _pass_on(self, batch: Batch | None) -> None:
        """Of what is durable: originals away, rows, queue, hints."""
        if batch is None:
            return
        for folder, path in batch.copied:
            try:
                disk.remove(path)
            except OSError as error:
                why = f"it is taken, but cannot be removed: {error.strerror}"
                self._leave_alone(folder, os.path.basename(path), why)
        for note in batch.notes:
            disk.remove(note)
        self._account(batch.claimed)
        hints: dict[str, list[str]] = {}
        for claimed in batch.claimed:
            path = f"{self._acceptor.incoming.path}/{claimed.file}"
            hints.setdefault(claimed.name.vmta, []).extend(self._enqueue(path, claimed))
        for vmta, lines in hints.items():
            self._hints.send(vmta, lines)
        self._row.add(Cell.MESSAGES, len(batch.claimed))

    def _enqueue(self, path: str, claimed: Claimed) -> list[str]:
        """Put a claimed message into the queue; on a full disk, as soon as there is room for the folders it needs."""
        is_told = False
        while True:
            try:
                return intake.enqueue(self._layout, path, claimed)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not is_told:
                    log.error("pickup: %s; what is claimed waits for room", error.strerror)
                is_told = True
            if self._leaving:
                return []  # the next start carries on
            self._bell.wait(FULL_PAUSE)

    def _shown(self, data: bytes, parsed: Parsed) -> tuple[str, ...]:
        """The header fields that an accounting file shows of what is taken in."""
        if not (self._log.headers and self._log.wants("r")):
            return ()
        return message.first_values(data, parsed, self._log.headers)

    def _completed(self, path: str, claimed: Claimed) -> Claimed:
        """What was claimed by a dead process, with the header fields that its row shows."""
        if not self._log.headers:
            return claimed
        with open(path, "rb") as file:
            return msgspec.structs.replace(claimed, shown=self._shown(file.read(), claimed.parsed))

    def _account(self, batch: list[Claimed]) -> None:
        recipients = 0
        wanted = self._log.wants("r")
        now = self._clock.text(time.time())
        for claimed in batch:
            envelope, name, shown = claimed.parsed.envelope, claimed.name, claimed.shown
            job = envelope.job if name.job != "0" else ""
            source = name.source or "pickup"
            recipients += len(envelope.recipients)
            for recipient in envelope.recipients if wanted else ():
                first = now, envelope.sender, recipient, source, name.vmta, job, envelope.envid
                self._log.write(record.receipt_row(*first, name.id, name.pool, shown))
        self._row.add(Cell.ACCEPTED, recipients)
        if wanted:
            try:
                self._log.flush()
            except SpoolError as error:
                log.error("%s; the rows are kept", error)

    def _look_at(self, folder: Folder, name: str, now: float) -> Claimed | bool:
        """Judge one file. Claimed if it was taken; True if it was dealt with otherwise, False if it stays for now."""
        path = f"{folder.path}/{name}"
        try:
            descriptor = os.open(path, disk.GUARDED)
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(descriptor)
            if not disk.is_regular(status):
                self._leave_alone(folder, name, "not a regular file")
                return False
            verdict = self._fitness(folder, name, descriptor, status, now)
            if isinstance(verdict, bool):
                return verdict
            if status.st_size > folder.source.max_message_size:
                return self._refuse(path, f"larger than max-message-size ({folder.source.max_message_size} bytes)")
            must_copy = self._config.copy == "always" or bool(verdict)
            if must_copy and self._config.copy == "never":
                self._leave_alone(folder, name, f'{verdict}, and copy is "never"')
                return False
            must_copy = must_copy or self._is_suspect(status)
            data = disk.read_all(descriptor, status.st_size)
            try:
                parsed = message.parse(data)
                choice = selection.choose(self._config, folder.source, parsed, data)
            except MessageRefused as error:
                return self._refuse(path, str(error))
            parsed = message.without_job(parsed) if not folder.source.process_x_job else parsed
            dealt = self._dealer.deal(choice.name, {recipient.domain for recipient in parsed.envelope.recipients}, now)
            is_taken = False
            try:
                claimed = self._acceptor.incoming.describe(
                    data,
                    parsed,
                    dealt.vmta,
                    folder.source.name,
                    pool=dealt.pool,
                    priority=choice.priority,
                    shown=self._shown(data, parsed),
                )
                is_taken = self._bring_in(folder, path, data, claimed, status, must_copy)
            finally:
                if not is_taken:
                    self._dealer.take_back(dealt, now)
            return claimed if is_taken else False
        finally:
            os.close(descriptor)

    def _bring_in(
        self, folder: Folder, path: str, data: bytes, claimed: Claimed, status: os.stat_result, must_copy: bool
    ) -> bool:
        """Claim a file, or copy it where it cannot be claimed. False if it is gone or must stay."""
        try:
            if not must_copy:
                return self._acceptor.incoming.claim(path, claimed)
        except OSError as error:
            if error.errno != errno.EXDEV or self._config.copy == "never":
                raise
        if not disk.may_remove(folder.path, status):
            self._leave_alone(folder, os.path.basename(path), "it could be copied, but not removed from its folder")
            return False
        self._acceptor.incoming.write(data, claimed, path, status)
        self._claims.copied.append((folder, path))
        return True

    def _fitness(self, folder: Folder, name: str, descriptor: int, status: os.stat_result, now: float) -> bool | str:
        """Whether a regular file may be taken: "" if by renaming it, why only by copying it, or False (put off), or
        True (refused). Its last change is its ctime: nobody can set that."""
        is_ours = status.st_uid == self._user
        if disk.is_open_for_writing(descriptor):
            return self._put_off(folder, name, status, "is still open for writing after 60 seconds")
        if folder.is_in_place(name):
            if abs(now - status.st_ctime) < QUIET:
                folder.put_off(name, clock.now() + QUIET - (now - status.st_ctime))
                return False
            # Who is not root is told of writers of his own files only.
            is_told = is_ours or self._user == 0 or folder.was_closed(name)
            if not is_told and self._is_young(folder, name, status):
                return False
        if status.st_size == 0:
            return self._put_off(folder, name, status, "is empty")
        if status.st_nlink > 1:
            return False if self._is_young(folder, name, status) else "it has a second name"
        if is_ours:
            return ""
        if not self._own(descriptor):
            return "it belongs to another user"
        if disk.is_open_for_writing(descriptor):
            return self._put_off(folder, name, status, "is still open for writing after 60 seconds")
        return ""

    def _is_suspect(self, status: os.stat_result) -> bool:
        """Whether a failed sync may have lost the file's bytes, which are in memory only then: a copy writes them."""
        written = min(status.st_mtime_ns, status.st_ctime_ns)
        return written <= self._page.failed_sync and self._config.copy != "never"

    def _is_young(self, folder: Folder, name: str, status: os.stat_result) -> bool:
        """Whether a file that is not as it should be has time left; it is then put off for a second."""
        if folder.waited(name, status.st_ctime, clock.now()) >= GRACE:
            return False
        folder.put_off(name, clock.now() + 1.0)
        return True

    def _put_off(self, folder: Folder, name: str, status: os.stat_result, trouble: str) -> bool:
        if self._is_young(folder, name, status):
            return False
        return self._refuse(f"{folder.path}/{name}", trouble)

    def _own(self, descriptor: int) -> bool:
        """Take over a file of another owner, so that nobody else can open it for writing any more."""
        try:
            os.fchown(descriptor, os.geteuid(), -1)
        except PermissionError:
            return False
        return True

    def _refuse(self, path: str, reason: str) -> bool:
        name = intake.refuse(self._layout, path, reason, self._acceptor.ids)
        self._row.add(Cell.REFUSED, 1)
        log.warning("refused %a: %s (kept as bad/%a)", os.path.basename(path), reason, name)
        return True

    def _leave_alone(self, folder: Folder, name: str, why: str) -> None:
        folder.leave_alone(name)
        self._row.add(Cell.LEFT_ALONE, 1)
        log.warning("left alone %a: %s", name, why)


def run(
    config: Config, layout: Layout, page: Page, row: Row, reload: Callable[[], Config], is_orphan: Callable[[], bool]
) -> None:
    """The process. SIGTERM: finish the batch and leave; SIGHUP: the new configuration; SIGUSR1: the log was rotated."""
    pickup = Pickup(config, layout, page, row)
    signal.signal(signal.SIGTERM, lambda _number, _frame: pickup.leave())
    signal.signal(signal.SIGHUP, lambda _number, _frame: pickup.reconfigure(reload()))
    signal.signal(signal.SIGUSR1, lambda _number, _frame: pickup.ring())
    try:
        pickup.run(is_orphan)
    except SpoolError:
        page.note_failed_sync()
        raise
