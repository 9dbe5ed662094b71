"""Waiting entries of a VMTA go to others: one rename and a hint each. Two have reason to pass mail on: `standing` (a
member of a pool wants none for now) and `rerouting` (the operator has said where it goes instead).

An entry keeps its due time and its attempts. Where some of its recipients are settled, or its message is being linked
or reported, it stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from spoolmta import entry
from spoolmta.control import HintWriter
from spoolmta.dealer import Dealer, Dealt
from spoolmta.model import Config
from spoolmta.schedule import Scheduler
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Partition
from spoolmta.warming import Hosts

log = logging.getLogger("spoolmta")

BATCH = 1000
"""Entries passed on at a time: about 50 ms of work, in which nothing else goes on."""

Choose = Callable[[], Dealt | None]
"""Who takes the next entry; None if nobody does."""


class Passage:
    """The way out of one VMTA's queue into those of others, for entries that no session has."""

    def __init__(self, config: Config, layout: Layout, scheduler: Scheduler, partition: Partition) -> None:
        self._scheduler, self._partition = scheduler, partition
        self._hints = HintWriter(layout.run)
        self.dealer = Dealer(config, layout, self._hosts_of)

    def __repr__(self) -> str:
        return f"Passage({self._partition.vmta})"

    def reconfigure(self, config: Config) -> None:
        self.dealer.reconfigure(config)

    def close(self) -> None:
        self.dealer.close()
        self._hints.close()

    def pay(self) -> None:
        """Send the hints that could not be sent before."""
        self._hints.pay()

    def _hosts_of(self, domain: str) -> Hosts:
        """The mail hosts of a domain, as the scheduler was told them."""
        queue = self._scheduler.queues.get(domain)
        return queue.group.mx if queue is not None and queue.group is not None else None

    def waiting(self, domain: str) -> list[str]:
        """The names of a domain's entries that no session has."""
        queue = self._scheduler.queues.get(domain)
        if queue is None:
            return []
        return [*(name for line in queue.lines.values() for name in line.names), *queue.waiting]

    def pass_on(
        self, domain: str, names: Collection[str], choose: Choose, now: float, *, is_marked: bool = False
    ) -> int:
        """Give away what the scheduler has of these names; how many went. What nobody takes stays. `is_marked`: the
        entry remembers that it came from here."""
        gone: dict[str, int] = {}
        for name in self._scheduler.withdraw(domain, names.__contains__):
            target = self.give(domain, name, choose, now, is_marked=is_marked)
            if target:
                gone[target] = gone.get(target, 0) + 1
            else:
                self._scheduler.add(domain, name, entry.state(name)[1], now)
        for target, count in gone.items():
            log.info("%s: %d messages for %s went to %s", self._partition.vmta, count, domain, target)
        return sum(gone.values())

    def give(self, domain: str, name: str, choose: Choose, now: float, *, is_marked: bool = False) -> str:
        """Give an entry away that the scheduler does not have; the VMTA that got it, "" for none."""
        vmta = self._partition.vmta
        try:
            new_name = entry.rerouted(name, vmta) if is_marked else name
        except ValueError:
            return ""
        dealt = choose()
        if dealt is None:
            return ""
        is_back = is_marked and entry.was_rerouted_by(name, dealt.vmta)
        if is_back or dealt.vmta == vmta or not self._partition.hand_over(domain, name, dealt.vmta, new_name):
            self.dealer.take_back(dealt, now)
            return ""
        self._hints.send(dealt.vmta, [f"{domain}/{'cur' if ':' in new_name else 'new'}/{new_name}"])
        return dealt.vmta
