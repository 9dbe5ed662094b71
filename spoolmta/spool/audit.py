"""The queue seen from outside: counted, listed, audited, by name and journal alone, with or without a running system.

The audit: accepted = delivered + bounced + expired + deleted + quarantined + queued, per recipient. On a running
system it looks at messages older than a moment ago only, reads what was accepted first, then the folders, then what was
settled (so a message that moves on while we look is counted once), and looks again when a rename slipped past it.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator

import msgspec

from spoolmta import clock, disk, entry, journal, message
from spoolmta.errors import MessageRefused, SpoolError
from spoolmta.journal import Record
from spoolmta.model import Envelope, Outcome
from spoolmta.spool.intake import claimed_ids
from spoolmta.spool.layout import Layout
from spoolmta.spool.outbox import staged_ids

INTAKE_JOURNAL = re.compile(r"(pickup|listener|api|http|smtp)\.[0-9]+\.log")
SETTLING = 2.0
"""Seconds a message may be under way between its id and its journal line; younger ones are left out of a live audit."""
LOOKS = 10


class Item(msgspec.Struct, frozen=True):
    """One entry as its name and place tell it. `settled` recipients are not counted in `recipients`."""

    vmta: str
    domain: str
    name: str
    id: str
    size: int
    recipients: int
    received: float
    attempts: int
    due: int

    @property
    def queue(self) -> str:
        return f"{self.domain}/{self.vmta}"


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The balance, in recipients."""

    accepted: int
    delivered: int
    bounced: int
    expired: int
    deleted: int
    quarantined: int
    queued: int
    running: bool

    @property
    def difference(self) -> int:
        """Accepted minus everything accounted for: above 0 something is missing, below 0 something is there twice."""
        settled = self.delivered + self.bounced + self.expired + self.deleted + self.quarantined
        return self.accepted - settled - self.queued

    @property
    def balanced(self) -> bool:
        return self.difference == 0


def audit(layout: Layout) -> Audit:
    """Balance the spool. Takes a few looks on a running system before it calls an imbalance one."""
    running = disk.is_locked(layout.lock)
    result = _look(layout, running)
    for _ in range(LOOKS if running else 0):
        if result.balanced:
            break
        time.sleep(0.3)
        result = _look(layout, running)
    return result


def _look(layout: Layout, running: bool) -> Audit:
    before = clock.now() - SETTLING if running else math.inf
    # Not `<vmta>.log.<pid>.new`, which a crash in the middle of a compaction leaves.
    files = sorted(file for file in os.listdir(layout.path("journal")) if file.endswith(".log"))
    intake = [journal.read(layout.path("journal", file)) for file in files if INTAKE_JOURNAL.fullmatch(file)]
    accepted: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for record in intake:
        accepted.update({id_: n for id_, n in record.accepted.items() if entry.received(id_) < before})
        counts.update(record.totals)
    claimed = claimed_ids(layout) | staged_ids(layout)
    # Moved entries may be seen under both names, or twice: an entry counts once for a domain.
    queued = {(item.id, item.domain): item.recipients for item in items(layout) if item.received < before}
    settled = [journal.read(layout.path("journal", file)) for file in files if not INTAKE_JOURNAL.fullmatch(file)]
    done: dict[str, dict[str, tuple[str, int, bool]]] = {}
    for record in [*intake, *settled]:
        _merge(done, record, before)
    for record in settled:
        counts.update(record.totals)
        # The reports a VMTA wrote itself. Its journal is read late, so one may be too young to be seen in the queue.
        accepted.update({id_: n for id_, n in record.accepted.items() if entry.received(id_) < before})
    for addresses in done.values():
        for letter, count, is_copy in addresses.values():
            counts[letter] += 0 if is_copy else count
    waiting = 0
    for (id_, domain), recipients in queued.items():
        if id_ not in claimed:
            waiting += max(0, recipients - _count_in(done.get(id_, {}), domain))
    waiting += sum(accepted[id_] for id_ in claimed if id_ in accepted and id_ not in done)
    return Audit(
        accepted=counts[journal.ACCEPTED] + sum(accepted.values()),
        delivered=counts[Outcome.DELIVERED.value],
        bounced=counts[Outcome.BOUNCED.value],
        expired=counts[Outcome.EXPIRED.value],
        deleted=counts[Outcome.DELETED.value],
        quarantined=counts[Outcome.QUARANTINED.value],
        queued=waiting,
        running=running,
    )


def _merge(done: dict[str, dict[str, tuple[str, int, bool]]], record: Record, before: float) -> None:
    """Add what one journal says. A copied line counts where it was copied from, perhaps in the totals there."""
    for id_, addresses in record.settled.items():
        try:
            if entry.received(id_) >= before:
                continue
        except ValueError:
            continue
        known = done.setdefault(id_, {})
        for address, settled in addresses.items():
            if address not in known or known[address][2]:
                known[address] = settled


def _count_in(addresses: dict[str, tuple[str, int, bool]], domain: str) -> int:
    return sum(count for address, (_, count, _) in addresses.items() if journal.folder(address) == domain)


def items(layout: Layout, vmta: str = "", domain: str = "") -> Iterator[Item]:
    """All queue entries, by name; what is not an entry name is passed over (the VMTA's process quarantines it)."""
    for one in [vmta] if vmta else _names(layout.queue):
        for other in [domain] if domain else _names(f"{layout.queue}/{one}"):
            found = {}
            for folder in ("new", "cur"):
                for name in _names(f"{layout.queue}/{one}/{other}/{folder}"):
                    found[entry.bare(name)] = name
            for name in found.values():
                try:
                    parts = entry.parse_name(name)
                except ValueError:
                    continue
                yield Item(
                    one,
                    other,
                    name,
                    parts.id,
                    parts.size,
                    parts.recipients,
                    entry.received(name),
                    parts.attempts,
                    parts.due,
                )


def _names(path: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SpoolError(f"cannot read {path}: {error.strerror}") from error


def path_of(layout: Layout, item: Item) -> str:
    return f"{layout.queue}/{item.vmta}/{item.domain}/{'cur' if ':' in item.name else 'new'}/{item.name}"


def envelope(layout: Layout, item: Item) -> tuple[Envelope, bytes] | None:
    """The envelope and the header of an entry; None if it is gone or damaged."""
    try:
        with open(path_of(layout, item), "rb") as file:
            data = file.read()
        parsed = message.parse(data)
    except (OSError, MessageRefused):
        return None
    return parsed.envelope, data[parsed.start : parsed.body]


def unsettled(layout: Layout, item: Item, known: Envelope) -> list[str]:
    """The addresses of an entry that still wait."""
    done = journal.read(layout.journal(item.vmta)).addresses(item.id)
    return [r.address for r in known.recipients if r.domain == item.domain and journal.escape(r.address) not in done]
