"""The pickup process: finds dropped files, judges each where it lies, takes whole batches into the queue.

| a file is | what happens |
|---|---|
| whole and ours alone | claimed by one rename |
| whole, but of another owner, and may not be taken over | copied |
| a second hard link, empty, open for writing | given 60 seconds; then copied, refused, refused |
| no message, for nobody, too large | to `bad/` with its reason |
| no regular file, not readable | left alone, logged once |
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable

from spoolmta import accounting, disk, message, policy, record
from spoolmta.arrivals import QUIET, Doorbell, Folder
from spoolmta.control import HintWriter
from spoolmta.errors import MessageRefused, SpoolError
from spoolmta.model import Config, Parsed, Source
from spoolmta.shared import Cell, Page, Row
from spoolmta.spool import intake
from spoolmta.spool.intake import Acceptor, Claimed
from spoolmta.spool.layout import Layout

log = logging.getLogger("spoolmta")

BATCH = 512
"""Files to one sync, where so many wait: the larger, the cheaper each (512 against 128: a quarter more a second)."""
BATCH_BYTES = 32 << 20
GRACE = 60.0
CALM_SCANS = 3
SLOW_SCAN = 15.0
FULL_PAUSE = 1.0


class Pickup:
    """Scans, judges, takes. One batch at a time; between batches it looks at the clock, the disk, the configuration."""

    def __init__(self, config: Config, layout: Layout, page: Page, row: Row) -> None:
        self._config, self._layout, self._page, self._row = config, layout, page, row
        self._acceptor = Acceptor(layout, "pickup")
        self._hints = HintWriter(layout.run)
        self._log = accounting.Log(config.acct_files, page, row)
        self._clock = accounting.Clock()
        self._folders = [Folder(source) for source in config.sources.values() if source.pickup]
        self._bell = Doorbell([folder.path for folder in self._folders])
        self._leaving = False
        self._new_config: Config | None = None
        self._is_full = False
        self._user = os.geteuid()

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
                self._bell.wait(FULL_PAUSE)
                continue
            if self._work(is_orphan):
                calm = 0
            elif calm < CALM_SCANS:
                calm += 1
                time.sleep(0.005)
            else:
                self._rest()
                calm = CALM_SCANS - 1
        self._bell.ignore()
        self._log.close()
        self._acceptor.close()

    def _rest(self) -> None:
        """Nothing to do: listen, look once more (a file may have come in between), then wait to be woken."""
        owed = self._hints.pay()
        self._acceptor.tend_journal()
        is_watching = self._bell.watch()
        pause = min(SLOW_SCAN if is_watching else 0.5, 0.05 if owed else SLOW_SCAN, self._next_look())
        if not self._work(lambda: False):
            self._bell.wait(pause)
        self._bell.ignore()

    def _next_look(self) -> float:
        now = time.time()
        times = [until for folder in self._folders for until in folder.later.values()]
        return max(0.01, min(times, default=now + SLOW_SCAN) - now)

    def _apply_config(self) -> None:
        if self._new_config is None:
            return
        config, self._new_config = self._new_config, None
        self._row[Cell.CONFIG_GENERATION] = self._page.config_generation
        self._config = config
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
        self._bell.ignore()
        self._bell = Doorbell([folder.path for folder in self._folders])

    def _reopen_log(self) -> None:
        try:
            self._log.reopen_if_rotated()
        except (OSError, SpoolError) as error:
            log.error("%s", error)

    def _has_room(self) -> bool:
        """Intake stops while the disk has less than min-free-space; what is queued is still delivered."""
        space, inodes = disk.free(self._layout.root)
        is_full = space < self._config.min_free_space or inodes < self._config.min_free_inodes
        if is_full != self._is_full:
            self._is_full = is_full
            self._row[Cell.TROUBLE] = int(is_full)
            if is_full:
                log.error(
                    "the spool has %d MB and %d inodes free: intake stops, files stay in pickup/", space >> 20, inodes
                )
            else:
                log.warning("the spool has room again: intake goes on")
        return not is_full

    def recover(self) -> None:
        """Carry on with what dead intake processes claimed."""
        found, quarantined, locks = self._acceptor.recover()
        for name in quarantined:
            log.error("recovery: a damaged file is in corrupt/%s", name)
        for path, claimed in found:
            self._account([claimed], claimed.name.source or "pickup")
            self._hints.send(claimed.name.vmta, intake.enqueue(self._layout, path, claimed))
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
        for folder in self._folders:
            names = folder.scan(time.time())
            self._row[Cell.QUEUED] = len(names)
            for start in range(0, len(names), BATCH):
                if self._leaving or is_orphan() or not self._has_room():
                    return worked
                worked = self._take(folder, names[start : start + BATCH]) or worked
                self._hints.pay()
                self._reopen_log()
        return worked

    def _take(self, folder: Folder, names: list[str]) -> bool:
        """One batch: claims, journal, sync, rows, queue, hints. True if any file was dealt with."""
        now = time.time()
        batch: list[Claimed] = []
        copied: list[str] = []
        size = dealt = 0
        for name in names:
            try:
                claimed = self._look_at(folder, name, now, copied)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
                    log.error("pickup: %s; trying again", error.strerror)
                    self._bell.wait(FULL_PAUSE)
                    break
                self._leave_alone(folder, name, error.strerror or "cannot be read")
                continue
            dealt += claimed is not False
            if isinstance(claimed, Claimed):
                batch.append(claimed)
                size += claimed.name.size
                if size > BATCH_BYTES:
                    self._commit(folder.source, batch, copied)
                    batch, copied, size = [], [], 0
        if batch:
            self._commit(folder.source, batch, copied)
        return dealt > 0

    def _commit(self, source: Source, batch: list[Claimed], copied: list[str]) -> None:
        began = self._acceptor.commit(batch)
        self._page.publish_sync(began)
        for path in copied:
            disk.remove(path)
        self._account(batch, source.name)
        hints: dict[str, list[str]] = {}
        for claimed in batch:
            hints.setdefault(claimed.name.vmta, []).extend(self._acceptor.incoming.enqueue(claimed))
        for vmta, lines in hints.items():
            self._hints.send(vmta, lines)
        self._row.add(Cell.MESSAGES, len(batch))

    def _account(self, batch: list[Claimed], source_type: str) -> None:
        recipients = 0
        wanted = self._log.wants("r")
        now = self._clock.text(time.time())
        for claimed in batch:
            envelope, name = claimed.parsed.envelope, claimed.name
            recipients += len(envelope.recipients)
            if wanted:
                for recipient in envelope.recipients:
                    row = record.receipt_row(
                        now, envelope.sender, recipient, source_type, name.vmta, envelope.job, envelope.envid, name.id
                    )
                    self._log.write(row)
        self._row.add(Cell.ACCEPTED, recipients)
        if wanted:
            try:
                self._log.flush()
            except SpoolError as error:
                log.error("%s; the rows are kept", error)

    def _look_at(self, folder: Folder, name: str, now: float, copied: list[str]) -> Claimed | bool:
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
            must_copy = self._config.copy == "always"
            verdict = self._fitness(folder, name, descriptor, status, now)
            if isinstance(verdict, bool):
                return verdict
            must_copy = must_copy or verdict == "copy"
            if status.st_size > folder.source.max_message_size:
                return self._refuse(path, f"larger than max-message-size ({folder.source.max_message_size} bytes)")
            if not must_copy and status.st_uid != self._user and not self._own(descriptor):
                if self._config.copy == "never":
                    self._leave_alone(folder, name, 'belongs to another user, and copy is "never"')
                    return False
                must_copy = True
            data = _read_all(descriptor, status.st_size)
            try:
                parsed = message.parse(data)
                vmta = policy.choose_vmta(self._config, folder.source, parsed.envelope)
            except MessageRefused as error:
                return self._refuse(path, str(error))
            parsed = _without_job(parsed) if not folder.source.process_x_job else parsed
            claimed = self._acceptor.incoming.describe(data, parsed, vmta, folder.source.name)
            if must_copy:
                self._acceptor.incoming.write(data, claimed)
                copied.append(path)
                return claimed
            return claimed if self._claim(path, claimed, data, copied) else False
        finally:
            os.close(descriptor)

    def _claim(self, path: str, claimed: Claimed, data: bytes, copied: list[str]) -> bool:
        try:
            return self._acceptor.incoming.claim(path, claimed)
        except OSError as error:
            if error.errno != errno.EXDEV or self._config.copy == "never":
                raise
        self._acceptor.incoming.write(data, claimed)
        copied.append(path)
        return True

    def _fitness(self, folder: Folder, name: str, descriptor: int, status: os.stat_result, now: float) -> bool | str:
        """Whether a regular file may be taken: "whole", "copy", or False (put off), or True (refused)."""
        if disk.is_open_for_writing(descriptor):
            return self._put_off(folder, name, status, now, "is still open for writing after 60 seconds")
        if folder.is_in_place(name, now) and now - status.st_mtime < QUIET:
            folder.put_off(name, max(status.st_mtime, now - QUIET) + QUIET)
            return False
        if status.st_size == 0:
            return self._put_off(folder, name, status, now, "is empty")
        if status.st_nlink > 1:
            if folder.waited(name, status.st_mtime, now) < GRACE:
                folder.put_off(name, now + 1.0)
                return False
            return "copy"
        return "whole"

    def _put_off(self, folder: Folder, name: str, status: os.stat_result, now: float, trouble: str) -> bool:
        if folder.waited(name, status.st_mtime, now) < GRACE:
            folder.put_off(name, now + 1.0)
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
        folder.left.add(name)
        self._row.add(Cell.LEFT_ALONE, 1)
        log.warning("left alone %a: %s", name, why)


def _without_job(parsed: Parsed) -> Parsed:
    import msgspec

    return msgspec.structs.replace(parsed, envelope=msgspec.structs.replace(parsed.envelope, job=""))


def _read_all(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, size + 1)
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data


def run(
    config: Config, layout: Layout, page: Page, row: Row, reload: Callable[[], Config], is_orphan: Callable[[], bool]
) -> None:
    """The process. SIGTERM: finish the batch and leave; SIGHUP: the new configuration; SIGUSR1: the log was rotated."""
    pickup = Pickup(config, layout, page, row)
    signal.signal(signal.SIGTERM, lambda *_: pickup.leave())
    signal.signal(signal.SIGHUP, lambda *_: pickup.reconfigure(reload()))
    signal.signal(signal.SIGUSR1, lambda *_: pickup.ring())
    pickup.run(is_orphan)
