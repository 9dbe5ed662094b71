"""Where an operator reaches a delivery process: its own control socket, `run/<vmta>.control`.

One JSON object on a line each way, as `control` has it, but in the loop of the process: a question is answered between
two of its turns. A switch is written down (`state/<vmta>`, durably) before it is answered, so a process that is killed
right after the answer has not forgotten it. Garbage gets an error answer; a client that says nothing, too much, or
does not read, is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, cast

import msgspec

from spoolmta import control, entry, switch, view
from spoolmta.clearance import Chosen, Clearance, Learned
from spoolmta.condition import Condition
from spoolmta.errors import TemporaryError
from spoolmta.ledger import Ledger
from spoolmta.model import DomainPolicy
from spoolmta.schedule import Scheduler
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Partition
from spoolmta.switch import Order, Switch

PATIENCE = 30.0
"""Seconds a client may take to ask, and to read the answer."""
LONGEST = 4 << 20

FolderName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
"""A VMTA of which a path is made."""


class _Client(asyncio.Protocol):
    """One question, one answer."""

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._answer = answer
        self._data = b""
        self._transport: asyncio.Transport
        self._patience: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._patience = asyncio.get_running_loop().call_later(PATIENCE, self._transport.abort)

    def connection_lost(self, _: Exception | None) -> None:
        self._patience.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > LONGEST:
            self._transport.abort()
        elif self._data.endswith(b"\n"):
            self._transport.pause_reading()
            self._transport.write(msgspec.json.encode(self._reply()) + b"\n")
            self._transport.close()

    def _reply(self) -> dict[str, Any]:
        try:
            question = msgspec.json.decode(self._data, type=dict[str, Any])
            return self._answer(question)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return {"error": f"that is no question: {error}"}


class Switchboard:
    """Answers for one VMTA. `policies` gives the policy of (site, domain), `save` writes the state down, `on_change`
    asks for a turn, `now` is the process's clock, `knows_all` whether the whole queue has been looked through."""

    def __init__(
        self,
        layout: Layout,
        partition: Partition,
        ledger: Ledger,
        scheduler: Scheduler,
        policies: Callable[[str, str], DomainPolicy],
        save: Callable[[], None],
        on_change: Callable[[], None],
        now: Callable[[], float],
        knows_all: Callable[[], bool],
    ) -> None:
        self.orders: list[Order] = []
        self._knows_all = knows_all
        self._path = layout.control_of(partition.vmta)
        self._scheduler = scheduler

        def policy(domain: str) -> DomainPolicy:
            return policies(scheduler.site_of(domain), domain)

        self._clearance = Clearance(layout, partition, ledger, scheduler.site_of, policy, now, scheduler)
        self._policies = policies
        self._save = save
        self._on_change = on_change
        self._now = now
        self._server: asyncio.AbstractServer | None = None

    def __repr__(self) -> str:
        return f"Switchboard({self._path}, {self.orders})"

    async def open(self) -> None:
        """Listen. The caller holds the lock of the queue: a socket that is there already is a dead process's."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self.answer), sock=control.listen(self._path))

    def close(self) -> None:
        """Nobody is answered from now on; who asks takes the lock of the queue instead."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):  # gone, or on a disk that has become read-only
            os.unlink(self._path)

    def meet(self, site: str) -> None:
        """A site is about to get mail: what stands for it is applied, if it is new."""
        if site in self._scheduler.sites:
            return
        now = self._now()
        for order in switch.standing(self.orders, site, now):
            state = self._scheduler.known.condition_of(site)
            switch.apply(state, self._policies(site, site), now, order)

    def obey(self, orders: list[Order]) -> None:
        """These are the standing orders from now on; the jobs they name are held."""
        self.orders = orders
        self._hold_jobs()

    def tend(self) -> bool:
        """Let jobs go whose time is over; whether there were any."""
        return bool(self.orders) and self._hold_jobs()

    def next_release(self) -> float:
        """When held mail, if there is any, may go again by itself."""
        return switch.next_release(self.orders, self._now()) if self._scheduler.has_held else math.inf

    def _hold_jobs(self) -> bool:
        return self._scheduler.hold_jobs(switch.held_jobs(self.orders, self._now()).keys())

    def domains(self) -> dict[str, str]:
        """Which site the mail of a domain goes to, where that is not the domain by itself."""
        found = {queue.domain: queue.group.site.key for queue in self._scheduler.queues.values() if queue.group}
        return {domain: site for domain, site in found.items() if site != domain}

    # Questions

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked and say what came of it."""
        asked = question.get("ask")
        if asked == "sites":
            return self._sites()
        if asked == "switch":
            return self._switch(
                msgspec.convert(question.get("site"), str), msgspec.convert(question.get("switch"), Switch)
            )
        if asked in ("retry", "retry some") and not self._knows_all():
            return {"later": True}  # what is found after the answer would wait for its time
        if asked == "retry":
            return self._retry(msgspec.convert(question.get("site"), str))
        if asked == "retry some":
            return self._retry_some(msgspec.convert(question.get("entries"), list[Chosen]))
        if asked in ("remove", "move", "learn"):
            try:
                return self._clear(question)
            except TemporaryError as error:
                return {"error": str(error)}
            finally:
                self._on_change()
        return {"error": f"unknown question {asked!r}"}

    def _sites(self) -> dict[str, Any]:
        """Every site there is mail for, or anything known of."""
        now = self._now()
        known = self._scheduler.known
        known.tick_remembered(self._policies, now)
        if known.news:
            self._on_change()
        jobs = switch.held_jobs(self.orders, now)
        unlocated = {queue.domain: queue for queue in self._scheduler.queues.values() if queue.group is None}
        shown = [
            view.of_condition(key, state, now) for key, state in known.memory.all().items() if key not in unlocated
        ]
        shown += [view.of_site(site, jobs, now) for site in known.by_key.values()]
        shown += [view.of_queue(queue, self._awaited(key, now), jobs, now) for key, queue in unlocated.items()]
        return {"sites": shown, "orders": msgspec.to_builtins(switch.in_force(self.orders, now))}

    def _awaited(self, key: str, now: float) -> Condition:
        """The condition a site will be in when it gets mail."""
        state = self._scheduler.known.memory.all().get(key)
        if state is None:
            state = Condition()
            for order in switch.standing(self.orders, key, now):
                switch.apply(state, self._policies(key, key), now, order)
        return state

    def _named(self, pattern: str) -> list[str]:
        """The sites a pattern names: of those that are known, or the one it is. A domain whose site is not known yet
        is not among them: `meet` will see to it."""
        if not switch.is_pattern(pattern):
            return [pattern]
        known = self._scheduler.known
        return sorted(key for key in {**known.by_key, **known.memory.all()} if switch.matches(pattern, key))

    def _switch(self, pattern: str, wanted: Switch) -> dict[str, Any]:
        if wanted.do not in (switch.OF_JOBS if wanted.job else switch.SWITCHES):
            return {"error": f"there is no switch {wanted.do!r}"}
        if wanted.job:
            return self._switch_job(wanted)
        other = self._elsewhere(pattern)
        if other:
            return {"elsewhere": other}
        now = self._now()
        changed = []
        for key in self._named(pattern):
            state = self._scheduler.known.condition_of(key)
            if switch.apply(state, self._policies(key, key), now, wanted):
                changed.append(key)
            self._scheduler.changed(key, now)
        self.obey(switch.in_force(switch.order(self.orders, pattern, wanted), now))
        self._save()
        self._on_change()
        return {"changed": changed}

    def _switch_job(self, wanted: Switch) -> dict[str, Any]:
        orders, is_news = switch.order_job(self.orders, wanted, self._now())
        self.obey(orders)
        self._save()
        self._on_change()
        return {"changed": [switch.EVERYWHERE] if is_news else []}

    def _retry_some(self, entries: list[Chosen]) -> dict[str, Any]:
        """Have chosen entries tried now; those that are being sent are left out of the count."""
        now = self._now()
        meant = {(one.domain, entry.bare(one.name)) for one in entries}

        def is_meant(domain: str, name: str) -> bool:
            return (domain, entry.bare(name)) in meant

        found: dict[str, int] = {}
        for domain in {one.domain for one in entries}:
            queue = self._scheduler.queues.get(domain)
            count = queue.count(partial(is_meant, domain)) if queue is not None else 0
            if count:
                site = self._scheduler.site_of(domain)
                found[site] = found.get(site, 0) + count
        for site in found:
            self._scheduler.hasten(site, now, is_meant)
        self._save()
        self._on_change()
        return {"changed": sorted(found), "messages": sum(found.values())}

    def _retry(self, pattern: str) -> dict[str, Any]:
        other = self._elsewhere(pattern)
        if other:
            return {"elsewhere": other}
        now = self._now()
        changed = []
        count = 0
        unlocated = [queue.domain for queue in self._scheduler.queues.values() if queue.group is None]
        for key in {*self._named(pattern), *(key for key in unlocated if switch.matches(pattern, key))}:
            waiting = sum(len(queue.waiting) for queue in self._scheduler.queues_of(key))
            if waiting or self._scheduler.known.condition_of(key).blocked_until > now:
                changed.append(key)
                count += waiting
            self._scheduler.hasten(key, now)
        self._save()
        self._on_change()
        return {"changed": sorted(changed), "messages": count}

    def _clear(self, question: dict[str, Any]) -> dict[str, Any]:
        """Mail is taken out of the queue, or will come into it from another VMTA's."""
        if question["ask"] == "learn":
            self._clearance.learn(msgspec.convert(question.get("lines"), list[Learned]))
            return {}
        entries = msgspec.convert(question.get("entries"), list[Chosen])
        if question["ask"] == "move":
            target = msgspec.convert(question.get("to"), FolderName)
            return {"done": msgspec.to_builtins(self._clearance.move(entries, target))}
        kind = msgspec.convert(question.get("kind"), Literal["delete", "bounce"])
        text = msgspec.convert(question.get("text"), str)
        return {"done": msgspec.to_builtins(self._clearance.remove(entries, kind, text))}

    def _elsewhere(self, name: str) -> str:
        """The site of a domain that has none by itself."""
        queue = self._scheduler.queues.get(name)
        site = queue.group.site.key if queue is not None and queue.group is not None else name
        return site if site != name and name not in self._scheduler.sites else ""
