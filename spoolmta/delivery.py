"""The delivery process of one VMTA: performs what the scheduler decides, in turns of one event loop.

A turn: write what the last one learned (accounting rows, then journal lines, one write each), do the removals a sync
has made safe, ask the scheduler, perform its actions. Replies, lost connections, hints and timers ask for a turn.
All decisions about mail are elsewhere: `schedule` (when, where), `verdict` (what an answer means), `policy` (limits).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import random
import signal
import time
from collections.abc import Callable
from typing import Any

from spoolmta import alert, clock, condition, descriptors, here, process, reaction, record, state, verdict, warming
from spoolmta.action import Action, Assign, Close, Locate, Open, Reject, VmtaLimits
from spoolmta.bounce import classifier
from spoolmta.carrier import Carrier, Process
from spoolmta.commons import Commons
from spoolmta.condition import Condition
from spoolmta.errors import SpoolError
from spoolmta.inflow import Inflow
from spoolmta.lane import Lane
from spoolmta.ledger import Ledger
from spoolmta.mailer import Mailer
from spoolmta.model import Answer, Config, DomainPolicy, Stage, Vmta
from spoolmta.opener import Ends, Opened, Opener
from spoolmta.passage import Passage
from spoolmta.policy import PolicyTable
from spoolmta.processor import Processor
from spoolmta.reporter import Owner
from spoolmta.rerouting import Rerouting
from spoolmta.resolver import Route, Unroutable
from spoolmta.routing import Routing, is_moved
from spoolmta.schedule import Scheduler
from spoolmta.shared import Cell, Page, Row
from spoolmta.site import Queue
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Partition, take
from spoolmta.standing import Standing
from spoolmta.switchboard import Switchboard

log = logging.getLogger("spoolmta")

RESCAN = 60.0
SYNC_AFTER = 0.26
"""Seconds after which to look whether a removal still waits for somebody's sync (the ledger makes its own at 0.25)."""
DRAIN = 30.0
QUIT_GRACE = 0.05
"""Seconds for the last QUITs to be answered (RFC 5321 section 4.1.1.10 asks a client to wait for the 221)."""


class Delivery:
    """One VMTA's process. `page` and `row` are where it is seen; `hints` is its FIFO, `lock` that of its queue."""

    def __init__(self, config: Config, vmta: str, layout: Layout, page: Page, row: Row, hints: int, lock: int) -> None:
        self._page, self._row, self._layout = page, row, layout
        self._vmta: Vmta = config.vmtas[vmta]
        self._chance = random.Random()
        self._partition = Partition(layout, vmta, lock)
        self._rates = state.Rates(layout.rates(vmta), clock.now())
        self._commons = Commons(config, vmta, layout, self._chance.random)
        self._scheduler = Scheduler(limits_of(self._vmta), self._chance.random, self._rates.cells, self._commons)
        self._passage = Passage(config, layout, self._scheduler, self._partition)
        self._standing = Standing(config, layout, self._scheduler, self._passage, vmta)
        self._rerouting = Rerouting(config, self._scheduler, self._passage, self._policy, vmta)
        self._mailer = Mailer(config, vmta)
        self._lanes: dict[int, Lane] = {}
        self._loop = asyncio.get_running_loop()
        self._inflow = Inflow(hints, self._partition, self._scheduler, self._rerouting, self._policy, self._now)
        owner = Owner(self._policy, self._site_of, self._inflow.add)
        self._ledger = Ledger(config, owner, layout.root, page, row, self._partition)
        process_ = Process(
            self._policy, self._site_of, self._now, self._request_turn, lambda: self._is_leaving, self._end_session
        )
        self._carrier = Carrier(process_, self._scheduler, self._partition, self._ledger, row, vmta)
        self._configure(config)
        self._switchboard = Switchboard(
            layout,
            self._partition,
            self._ledger,
            self._scheduler,
            lambda site, domain: self._resolve(site, domain),
            self._save_state,
            self._request_turn,
            self._now,
            lambda: self._inflow.survey.is_complete,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = self._loop.create_future()
        self._turn_requested = False
        self._processor = Processor()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._active_at = self._now()
        self._is_leaving = False

    def _configure(self, config: Config) -> None:
        self._config = config
        self._table = PolicyTable(config, self._vmta.name)
        self._resolve = functools.lru_cache(maxsize=100_000)(self._table.resolve)
        trouble, places = self._carrier.on_trouble, self._commons.place
        self._opener = Opener(self._vmta, config, self._chance, self._layout, trouble, places)
        self._carrier.configure(config, self._opener)

    def _policy(self, domain: str) -> DomainPolicy:
        """What holds for a domain's mail; for a site itself, if that is its name."""
        return self._resolve(self._scheduler.site_of(domain), domain)

    def _site_of(self, domain: str) -> str:
        """The site a domain's mail goes to, as far as that is known."""
        return self._policy(domain).queue_to or self._scheduler.site_of(domain)

    def _now(self) -> float:
        return clock.now()

    # The life of the process

    async def run(self, is_orphan: Callable[[], bool]) -> None:
        """Work until told to stop, until the parent is gone, or until there has been no mail for sleep-after."""
        loop = self._loop
        loop.set_exception_handler(
            lambda _, context: self._end(context.get("exception") or RuntimeError(context["message"]))
        )
        loop.add_reader(self._inflow.descriptor, self._read_hints)
        loop.add_signal_handler(signal.SIGTERM, lambda: self.leave(is_orphan()))
        loop.add_signal_handler(signal.SIGUSR1, self._reopen)
        left = state.load(self._layout, self._vmta.name)
        self._switchboard.obey(left.orders)
        for key, found in left.sites.items():
            self._scheduler.known.memory.put(key, found)
        self._scheduler.known.tick_remembered(self._resolve, self._now())
        self._mailer.restore(left.alerted, self._now())
        self._carrier.responses.restore(left.counts, self._now())
        await self._switchboard.open()
        self._request_turn()
        self._start(self._keep_house(is_orphan))
        try:
            await self._stopped
        finally:
            self._close()

    async def _keep_house(self, is_orphan: Callable[[], bool]) -> None:
        """What is not driven by mail: the parent's life, the slow scan, falling asleep."""
        interval = max(0.05, min(1.0, self._config.sleep_after / 2))
        last_scan = self._now()
        while True:
            await asyncio.sleep(interval)
            if is_orphan():
                self.leave(True)
                return
            now = self._now()
            if self._standing.tend(now) or self._rerouting.tend(now):
                self._request_turn()
            if self._switchboard.tend():
                self._request_turn()
            self._passage.pay()
            if now - last_scan > RESCAN:
                last_scan = now
                self._inflow.survey.is_wanted = True
                self._partition.tend_journal()
                self._request_turn()
            self._ledger.remind(now)
            self._mailer.send(now)
            if self._scheduler.known.memory.next_time <= now:
                self._scheduler.known.tick_remembered(self._resolve, now)
                self._request_turn()
            self._commons.rest()
            if self._scheduler.yield_to_others():
                self._request_turn()
            if self._is_idle(now) and now - self._active_at > self._config.sleep_after:
                self._switchboard.close()  # mail that is to be tried now would only be so in our memory
                self.leave(False)
                return
            if not self._ledger.is_settled:
                self._request_turn()

    def _is_idle(self, now: float) -> bool:
        return (
            not self._lanes
            and self._ledger.is_settled
            and not self._mailer.is_gathering
            and self._next_due() > now + self._config.sleep_after
        )

    def _next_due(self) -> float:
        """When there is something to do for the mail that waits; at once, where not all of it has been looked at."""
        if not self._inflow.survey.is_complete:
            return 0.0
        return min(self._scheduler.next_due(), self._switchboard.next_release())

    def leave(self, is_orphan: bool) -> None:
        """Begin nothing new, finish what is under way; an orphan leaves what has no final dot yet to its successor."""
        if self._is_leaving:
            return
        self._is_leaving = True
        self._scheduler.drain()
        for task in list(self._tasks):
            task.cancel()
        for lane in list(self._lanes.values()):
            is_opening = lane.task is not None and not lane.task.done()
            if is_opening or (is_orphan and not lane.is_past_the_dot):
                self._abandon(lane)
        self._loop.call_later(DRAIN, self._give_up)
        self._request_turn()

    def _give_up(self) -> None:
        for lane in list(self._lanes.values()):
            self._abandon(lane)
        self._request_turn()

    def _abandon(self, lane: Lane) -> None:
        if lane.connection is not None:
            lane.connection.abort()
        if lane.task is not None:
            lane.task.cancel()
        self._lanes.pop(lane.number, None)
        self._scheduler.lost(lane.number)

    def _close(self) -> None:
        # A hint that comes from now on stays in the FIFO for whoever comes next: the loop still turns to end itself.
        self._loop.remove_reader(self._inflow.descriptor)
        self._switchboard.close()
        self._ledger.close()
        self._tell_news()
        self._mailer.send(self._now(), is_last=True)
        self._keep_state()
        self._rates.close()
        self._passage.close()
        self._commons.close()
        self._partition.close()
        self._processor.close()

    def _keep_state(self) -> None:
        try:
            self._save_state()
        except OSError as error:  # the mail is what counts
            log.error("what outlives the process cannot be saved: %s", error.strerror)

    def _save_state(self) -> None:
        """What outlives the process: when it wants to be woken, the sites' conditions, the counts of the rules, the
        orders that stand."""
        now = self._now()
        conditions = self._scheduler.known.conditions(now)
        board, counts = self._switchboard, self._carrier.responses.export()
        due = min(self._next_due(), self._next_alert(conditions))
        wake = max(now, due)  # mail that came while we were leaving is due at once, not never
        left = state.State(wake, conditions, counts, board.orders, board.domains(), self._mailer.sent(now))
        state.save(self._layout, self._vmta.name, left)

    def _next_alert(self, conditions: dict[str, Condition]) -> float:
        """When something ends at a site that its operators want to hear of by mail."""
        heard = (of for site, of in conditions.items() if alert.is_wanted(self._resolve(site, site)))
        return min((condition.next_time(of) for of in heard), default=math.inf)

    def _tell_news(self) -> None:
        """What happened to sites is told, and kept at once: a crash must not forget why a queue is slow."""
        news, self._scheduler.known.news = self._scheduler.known.news, []
        for site, event in news:
            log.info("%s/%s: %s", site, self._vmta.name, event.text)
            self._mailer.hear(site, event, self._resolve(site, site))
        if news:
            self._mailer.send(self._now())
            self._keep_state()

    def reconfigure(self, config: Config) -> None:
        """A new configuration, between two turns. Connections stay; limits hold from now on. One without this VMTA
        changes nothing: its mail would go by the policy of all, from any address, until the process is ended."""
        if self._vmta.name not in config.vmtas:
            return
        self._vmta = config.vmtas[self._vmta.name]
        before = self._table
        self._configure(config)
        self._passage.reconfigure(config)
        self._standing.reconfigure(config)
        self._rerouting.reconfigure(config)
        self._ledger.reconfigure(config)
        self._mailer.reconfigure(config)
        self._commons.reconfigure(config)
        self._scheduler.move([queue for queue in self._scheduler.queues.values() if self._is_moved(queue, before)])
        self._scheduler.reconfigure(limits_of(self._vmta), self._resolve, self._now())
        self._row[Cell.CONFIG_GENERATION] = self._page.config_generation
        self._request_turn()

    def _is_moved(self, queue: Queue, before: PolicyTable) -> bool:
        """Whether a reload has changed where the mail of a queue goes."""
        mx = queue.group.mx if queue.group is not None else frozenset[str]()
        return is_moved(before, self._table, queue.domain, mx)

    def _reopen(self) -> None:
        try:
            self._ledger.log.flush()
        except SpoolError as error:
            log.error("%s", error)

    # Turns

    def _request_turn(self) -> None:
        if not self._turn_requested:
            self._turn_requested = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_requested = False
        self._processor.look()
        self._scheduler.set_saturated(self._processor.is_saturated)
        if not self._write() and not self._is_leaving:
            return  # nothing more is sent while what was sent cannot be written down
        if not self._is_leaving and self._inflow.survey.work():
            self._request_turn()
        if self._scheduler.known.news:
            self._rerouting.tend(self._now())
        actions, wake = self._scheduler.step(self._now())
        for action in actions:
            self._perform(action)
        if self._scheduler.known.news:
            self._tell_news()
        self._row[Cell.QUEUED] = self._partition.known
        self._row[Cell.CONNECTIONS] = len(self._lanes)
        if actions:
            self._active_at = self._now()
        if self._is_leaving and not self._lanes and not self._turn_requested:
            self._loop.call_later(QUIT_GRACE, self._end)
        self._wake_at(min(wake, self._inflow.survey.next_at))

    def _wake_at(self, wake: float) -> None:
        """See that there is a turn at `wake`. A timer that fires earlier is left as it is: it asks again."""
        if wake == math.inf or (self._timer is not None and self._timer_at <= wake):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = wake
        self._timer = self._loop.call_later(max(0.001, wake - self._now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._request_turn()

    def _write(self) -> bool:
        if not self._ledger.write():
            self._wake_at(self._now() + 1.0)
            return False
        if self._ledger.is_waiting:
            self._wake_at(self._now() + SYNC_AFTER)
        return True

    def _read_hints(self) -> None:
        if self._inflow.read_hints():
            self._active_at = self._now()
            self._request_turn()

    # Performing actions

    def _perform(self, action: Action) -> None:
        if isinstance(action, Assign):
            self._carrier.assign(self._lanes[action.session], action.domain, action.name, action.most)
        elif isinstance(action, Open):
            lane = self._lanes[action.session] = Lane(action.session)
            lane.task = self._start(self._open(lane, action))
        elif isinstance(action, Close):
            self._end_session(self._lanes[action.session])
        elif isinstance(action, Locate):
            self._start(self._locate(action.domain))
        elif isinstance(action, Reject):
            self._carrier.settle(action.domain, action.name, action.failure)
        else:
            self._carrier.settle(action.domain, action.name, record.expired(action.reason))

    def _start(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._end(error)

    def _end(self, error: BaseException | None = None) -> None:
        """The process ends. With an error of ours, or of a disk that failed a sync: better to die and be restarted
        than to hold mail for ever, or to remove what may not be safe; nothing is lost."""
        if not self._stopped.done():
            self._stopped.set_exception(error) if error else self._stopped.set_result(None)

    async def _locate(self, domain: str) -> None:
        table = self._table
        found: tuple[Routing, Route] | Unroutable
        try:
            found = await self._opener.resolver.locate(table, domain)
        except Unroutable as error:
            found = error.with_traceback(None)  # which would hold this frame, as this frame holds it
        if table is not self._table:  # a reload came in between
            await self._locate(domain)
        elif isinstance(found, Unroutable):
            self._unroutable(domain, found)
        else:
            routing, route = found
            self._switchboard.meet(routing.site)
            self._scheduler.located(domain, routing.site, self._resolve, self._now(), route.mx, routing.terms)
            self._rerouting.take_all(domain, self._now())
        self._request_turn()

    def _unroutable(self, domain: str, error: Unroutable) -> None:
        answer = Answer(Stage.RESOLVE, error.failure)
        policy = self._policy(domain)
        self._carrier.on_trouble(domain, answer, Ends())
        judged, now = verdict.judge(answer, policy), self._now()
        if judged.outcome is not None:
            self._scheduler.condemned(domain, error.failure, now + error.retry_in, policy.bounce_after)
            return
        pause = max(error.retry_in, policy.retry_after_dns_error)
        self._scheduler.unlocated(domain, now, now + pause, error.failure.text, policy.bounce_after)
        self._ledger.note_queue_failure(error.failure, Ends(), self._site_of(domain))

    async def _open(self, lane: Lane, wanted: Open) -> None:
        """Open a session; the scheduler hears how it went."""
        site = wanted.site
        policy = self._policy(wanted.domain)
        result = await self._opener.open(wanted.domain, policy, wanted.sources, lambda: self._on_lost(lane))
        now = self._now()
        if isinstance(result, Opened):
            lane.open(result, policy)
            self._scheduler.opened(lane.number, now, result.ends.source)
        elif result.is_held:
            self._lanes.pop(lane.number, None)
            self._scheduler.put_off(lane.number, now, result.failure.text)
        else:
            self._lanes.pop(lane.number, None)
            reason = str(result.failure)
            asked = reaction.asked_pause(result.failure)
            if self._scheduler.open_failed(
                lane.number, now, reason, ours=result.is_ours, unbound=result.unbound, asked=asked
            ):
                self._ledger.note_queue_failure(result.failure, result.ends, site)
                if result.is_ours:
                    log.warning("%s: %s (other addresses are used, or mail waits)", self._vmta.name, reason)
        self._request_turn()

    def _end_session(self, lane: Lane) -> None:
        """A session that cannot carry another message."""
        self._lanes.pop(lane.number, None)
        if lane.connection is not None:
            lane.connection.quit()

    def _on_lost(self, lane: Lane) -> None:
        if self._lanes.pop(lane.number, None) is not None:
            self._scheduler.lost(lane.number)
            self._request_turn()


def prepare(config: Config) -> None:
    """Work out before the forks what every process would work out of the configuration in memory of its own."""
    here.here(config)
    warming.names(config)
    classifier(config)


def limits_of(vmta: Vmta) -> VmtaLimits:
    """What the scheduler has to know of a VMTA."""
    sources = tuple(host.address for host in vmta.source_hosts)
    most = descriptors.share(descriptors.SESSIONS, vmta.max_smtp_out or 1 << 20)
    return VmtaLimits(most, vmta.max_smtp_msg_rate, vmta.max_smtp_data_volume_rate, sources)


def run(
    config: Config,
    vmta: str,
    layout: Layout,
    page: Page,
    row: Row,
    hints: int,
    reload: Callable[[], Config],
    is_orphan: Callable[[], bool],
) -> None:
    """The process: takes over the VMTA's queue (waiting for a dying predecessor to let go) and works on it.
    SIGHUP: `reload` gives the new configuration."""

    async def main(lock: int) -> None:
        delivery = Delivery(config, vmta, layout, page, row, hints, lock)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: delivery.reconfigure(reload()))
        await delivery.run(is_orphan)

    gc.set_threshold(10_000, 50, 50)
    while (lock := take(layout, vmta)) is None:
        if is_orphan():
            return
        time.sleep(0.02)
    process.run_loop(config.event_loop, main(lock))
