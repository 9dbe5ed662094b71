"""Mail taken out of a queue by the operator: deleted, bounced, or moved to another VMTA.

Whoever holds the queue does it (`standin`): its process, which takes only what is not being sent, or a command alone.
What is deleted or bounced is settled like every recipient: a row, a journal line, and the removal after the sync; some
recipients of an entry may be, the others stay as they were. When it is answered it is on disk.

An entry that moves is never in two hands. First the other VMTA learns, durably, which of its recipients are settled
(`learn`); then whoever holds this queue gives it the other folder with one rename, if nothing more is settled by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from spoolmta import entry
from spoolmta.control import SCAN, HintWriter
from spoolmta.errors import TemporaryError
from spoolmta.journal import SETTLED
from spoolmta.ledger import Ledger, Way
from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Stage
from spoolmta.opener import Ends
from spoolmta.schedule import Scheduler
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Gone, Loaded, NotReady, Partition

KINDS = {"delete": FailureKind.DELETED, "bounce": FailureKind.RETURNED}
BATCH = 2000
"""Entries taken at once: a process does nothing else meanwhile (about a third of a second)."""


class Chosen(msgspec.Struct, frozen=True, array_like=True):
    """An entry the operator means, by domain and name. `addresses`: for a removal the recipients that are meant, in
    lower case, none for all; for a move those the other VMTA knows to be settled."""

    domain: str
    name: str
    addresses: list[str] = []


class Learned(msgspec.Struct, frozen=True, array_like=True):
    """A recipient that is settled: a line of another VMTA's journal."""

    id: str
    address: str
    letter: str
    count: int


class Outcome(msgspec.Struct):
    """What came of it; `skipped` are the ids of what was not there any more or was being sent."""

    messages: int = 0
    recipients: int = 0
    skipped: list[str] = []

    def add(self, other: Outcome) -> None:
        self.messages += other.messages
        self.recipients += other.recipients
        self.skipped += other.skipped


class Clearance:
    """One VMTA's queue, in the hands of whoever calls this: a process with its scheduler, or a command without."""

    def __init__(
        self,
        layout: Layout,
        partition: Partition,
        ledger: Ledger,
        site_of: Callable[[str], str],
        policy: Callable[[str], DomainPolicy],
        now: Callable[[], float],
        scheduler: Scheduler | None = None,
    ) -> None:
        self._layout, self._partition, self._ledger = layout, partition, ledger
        self._site_of, self._policy, self._now = site_of, policy, now
        self._scheduler = scheduler

    def __repr__(self) -> str:
        return f"Clearance({self._partition})"

    def remove(self, entries: Iterable[Chosen], kind: str, text: str) -> Outcome:
        """Delete or bounce; `text` is the diagnostic. Raises TemporaryError when it cannot be written down yet."""
        done = Outcome()
        answer = Answer(Stage.RESOLVE, Failure(KINDS[kind], text))
        for domain, name, addresses in self._take(entries, done):
            loaded = self._load(domain, name, done)
            if loaded is None:
                continue
            chosen = [r for r in loaded.recipients if not addresses or r.address.lower() in addresses]
            policy = self._policy(domain)
            way = Way(Ends(), "", 0, policy.queue_to or self._site_of(domain), policy)
            self._ledger.settle(loaded, chosen, [answer] * len(chosen), way)
            if len(chosen) == len(loaded.recipients):
                self._partition.remove(domain, name)
            else:
                self._partition.keep(loaded, chosen)
                self._give_back(domain, name)
            done.recipients += len(chosen)
            done.messages += bool(chosen)
        self._make_durable()
        return done

    def move(self, entries: Iterable[Chosen], target: str) -> Outcome:
        """Give entries to another VMTA, which has learned what is settled of them."""
        done = Outcome()
        hints = HintWriter(self._layout.run)
        hints.send(target, [SCAN])
        for domain, name, known in self._take(entries, done):
            try:
                done.recipients += self._partition.move(domain, name, target, known)
                done.messages += 1
            except (NotReady, Gone) as error:
                done.skipped.append(entry.entry_id(name))
                if isinstance(error, NotReady):
                    self._give_back(domain, name)
        self._make_durable()
        hints.send(target, [SCAN])
        hints.close()
        return done

    def learn(self, lines: Iterable[Learned]) -> None:
        """Know what is settled of entries that are about to come; durable when it returns."""
        self._partition.learn((line.id, line.address, line.letter, line.count) for line in lines if _is_sound(line))
        self._make_durable()

    def _take(self, entries: Iterable[Chosen], done: Outcome) -> list[tuple[str, str, set[str]]]:
        """Those that are nobody's now, by the names they have now; a scheduler's are taken from it."""
        by_domain: dict[str, dict[str, Chosen]] = {}
        for one in entries:
            try:
                entry.parse_name(one.name)
            except ValueError:
                continue
            if one.domain and "/" not in one.domain and not one.domain.startswith("."):
                by_domain.setdefault(one.domain, {})[entry.bare(one.name)] = one
        taken = []
        for domain, wanted in by_domain.items():
            names = self._withdraw(domain, wanted)
            for name in names:
                taken.append((domain, name, set(wanted.pop(entry.bare(name)).addresses)))
            for one in wanted.values():  # not known to anybody yet, or being sent, or gone
                if self._partition.add(domain, one.name) is not None:
                    taken.append((domain, one.name, set(one.addresses)))
                else:
                    done.skipped.append(entry.entry_id(one.name))
        return taken

    def _withdraw(self, domain: str, wanted: dict[str, Chosen]) -> list[str]:
        if self._scheduler is None:
            return []
        return self._scheduler.withdraw(domain, lambda name: entry.bare(name) in wanted)

    def _load(self, domain: str, name: str, done: Outcome) -> Loaded | None:
        try:
            return self._partition.load(domain, name)
        except NotReady:
            self._give_back(domain, name)
        except Gone:
            pass
        done.skipped.append(entry.entry_id(name))
        return None

    def _give_back(self, domain: str, name: str) -> None:
        if self._scheduler is not None:
            self._scheduler.add(domain, name, entry.state(name)[1], self._now())

    def _make_durable(self) -> None:
        """What was settled is on disk, the reports of it first, and what is done with is gone."""
        if not self._ledger.finish():
            raise TemporaryError(
                "there is no room to write down what was done; it is kept, and written when there is room"
            )


def _is_sound(line: Learned) -> bool:
    """Whether it can stand in a journal."""
    try:
        entry.parse_name(f"{line.id},S=0,C=00000000,J=0")
    except ValueError:
        return False
    return line.letter in SETTLED and line.address.isprintable() and " " not in line.address and line.count > 0
