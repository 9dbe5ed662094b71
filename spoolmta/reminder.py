"""Tells senders of mail that still waits, where they asked for it (NOTIFY=DELAY), every notify-of-delay-every.

By time and not by attempts: when a receiver is down its mail is not even tried. In rounds over the names of all
entries, a slice in each turn of house-keeping: only an entry that is old enough for its next notice is opened, to see
whether anybody wants one. How often a sender was told stands in the journal, so neither a restart nor a crash tells it
again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec

from spoolmta import entry, notify
from spoolmta.dsn import Fact
from spoolmta.model import Config, DomainPolicy, DomainTable, Failure, Recipient, Reply
from spoolmta.reporter import Owner, Reporter, fact
from spoolmta.spool.partition import Gone, Loaded, NotReady, Partition

log = logging.getLogger("spoolmta")

ROUND = 60.0
LOOKS = 2000
"""Names looked at in one slice: about a millisecond."""
LOADS = 50
"""Entries opened in one slice."""
SITES = 10_000
"""Sites whose last failure is remembered; a notice without one only says less."""


class _Said(msgspec.Struct, frozen=True):
    """The last thing that stood in the way."""

    result: Reply | Failure
    mta: str
    when: float


class Reminder:
    """The notices of one VMTA's delayed mail."""

    def __init__(self, config: Config, owner: Owner, partition: Partition, reporter: Reporter) -> None:
        self._owner, self._partition, self._reporter = owner, partition, reporter
        self._recipients: dict[tuple[str, str], _Said] = {}
        self._sites: dict[str, _Said] = {}
        self._round: Iterator[tuple[str, str]] | None = None
        self._round_began = self._last_round = self._next_round = 0.0
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        vmta = config.vmtas.get(self._partition.vmta)
        layers = [config.domains, *(vmta.layers if vmta else ())]
        shortest = min([DomainPolicy().notify_of_delay_every, *(_intervals(layers))])
        self._every = min(ROUND, shortest / 4)

    # What stood in the way

    def deferred(self, loaded: Loaded, recipient: Recipient, result: Reply | Failure, mta: str, now: float) -> None:
        """A recipient was not delivered: kept if it asks for notices."""
        if notify.wants_delays(loaded.parsed.envelope.sender, recipient.notify):
            self._recipients[loaded.name.id, recipient.address] = _Said(result, mta, now)

    def queue_failed(self, site: str, result: Reply | Failure, mta: str, now: float) -> None:
        """An attempt of a whole queue failed."""
        if len(self._sites) >= SITES:
            self._sites.clear()
        self._sites[site] = _Said(result, mta, now)

    def forget(self, entry_id: str, recipient: Recipient) -> None:
        """A recipient is done."""
        self._recipients.pop((entry_id, recipient.address), None)

    # Rounds

    def remind(self, now: float) -> bool:
        """One slice of a round, if one is due; whether a notice was written."""
        if self._round is None:
            if now < self._next_round:
                return False
            self._next_round = now + self._every
            self._last_round, self._round_began = self._round_began, now
            self._round = self._partition.entries()
        loads, notices = 0, False
        for _ in range(LOOKS):
            found = next(self._round, None)
            if found is None:
                self._round = None
                break
            if self._is_due(*found):
                loads += 1
                notices = self._look_at(*found, now) or notices
                if loads == LOADS:
                    break
        return notices

    def _is_due(self, domain: str, name: str) -> bool:
        """Whether the time for a notice has come since the last round (after a start: ever)."""
        every = self._owner.policy(domain).notify_of_delay_every
        try:
            received = entry.received(name)
        except ValueError:
            return False
        due = notify.delays(received, self._round_began, every)
        return due > 0 and due > notify.delays(received, self._last_round, every)

    def _look_at(self, domain: str, name: str, now: float) -> bool:
        if self._partition.is_done(domain, name):
            return False
        try:
            loaded = self._partition.load(domain, name)
        except (NotReady, OSError):
            return False
        except Gone as gone:
            if gone.reason:
                log.error("%s/%s/%s: %s; moved to corrupt/", self._partition.vmta, domain, name, gone.reason)
            return False
        sender = loaded.parsed.envelope.sender
        asking = [one for one in loaded.recipients if notify.wants_delays(sender, one.notify)]
        policy = self._owner.policy(domain)
        received = entry.received(name)
        times = notify.delays(received, self._round_began, policy.notify_of_delay_every)
        if not asking or not self._reporter.tells(loaded) or times <= self._partition.told(domain, loaded.name.id):
            return False
        until = received + policy.bounce_after
        facts = tuple(self._fact(loaded, domain, one, until, now) for one in asking)
        self._reporter.report_delay(loaded, domain, facts, times)
        return True

    def _fact(self, loaded: Loaded, domain: str, recipient: Recipient, until: float, now: float) -> Fact:
        said = self._recipients.get((loaded.name.id, recipient.address)) or self._sites.get(self._owner.site_of(domain))
        if said is None:
            return Fact(
                address=recipient.address,
                orcpt=recipient.orcpt,
                status="4.0.0",
                said="",
                is_reply=False,
                attempted=now,
                retry_until=until,
            )
        return fact(recipient, said.result, said.mta, said.when, until)


def _intervals(layers: list[tuple[DomainTable, ...]]) -> Iterator[float]:
    for tables in layers:
        for table in tables:
            setting = table.settings.get("notify_of_delay_every")
            if setting is not None and isinstance(setting.value, float):
                yield setting.value
