"""The supervisor: forks one process per role, waits, wakes. It has no threads and no event loop, and touches no mail.

It forks from a warm image (everything imported, `gc.freeze()` called: 2 MiB of private memory for a new child and 8 for
one that has worked, instead of 25), watches the FIFOs of the VMTAs that sleep, starts again what died (with growing
pauses), rotates the accounting files, and answers questions on the control socket. Signal handlers only leave a byte
in a pipe.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from spoolmta import (
    __version__,
    clock,
    config,
    control,
    delivery,
    descriptors,
    disk,
    feeder,
    lifecycle,
    markers,
    overview,
    pickup,
    policy,
    process,
    rotation,
    state,
)
from spoolmta.children import Child, Children
from spoolmta.errors import ConfigError, UnavailableError
from spoolmta.lifecycle import Health
from spoolmta.model import AcctFile, Config
from spoolmta.shared import Cell, Page, Row
from spoolmta.spool import layout as spool_layout

log = logging.getLogger("spoolmta")

PICKUP = "pickup"
PIPE = "pipe/"
TICK = 10.0
STOP_WITHIN = 40.0
FEED_WITHIN = 25.0
"""Seconds, when all who write rows have ended, for the programs that read them."""


class Supervisor:
    """The whole running system, seen from its parent."""

    def __init__(self, path: str, configuration: Config) -> None:
        self._path = path
        self._config = configuration
        self._layout = spool_layout.prepare(configuration.spool)
        self._lock = self._take_lock()
        self._check_pickup_folders()
        self._page = Page(max(1024, 2 * len(configuration.vmtas) + 64))
        self._children = Children(self._page)
        self._health: dict[str, Health] = {}
        self._wake_times: dict[str, float] = {}
        self._fifos: dict[str, int] = {}
        self._fifo_vmtas: dict[int, str] = {}
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._stopping = 0.0
        self._started = clock.now()
        self._is_open = self._rotation_pending = self._is_feeding_out = False
        self._orphaned: list[str] = []
        self._rotation = rotation.Rotation(configuration.acct_files, time.time())

    def _take_lock(self) -> int:
        lock = disk.lock_process(self._layout.lock)
        if isinstance(lock, str):
            raise UnavailableError(f"another spoolmta (process {lock}) works on the spool {self._layout.root}")
        disk.replace(self._layout.clock, clock.told())
        return lock

    def _check_pickup_folders(self) -> None:
        for source in self._config.sources.values():
            if not source.pickup:
                continue
            if not os.path.isdir(source.pickup):
                raise ConfigError(f"source {source.name}: the pickup folder {source.pickup} does not exist")
            if self._config.copy == "never" and os.stat(source.pickup).st_dev != os.stat(self._layout.root).st_dev:
                raise ConfigError(
                    f"source {source.name}: {source.pickup} lies on another filesystem than the spool; "
                    'files cannot be taken by renaming: set pickup.copy = "auto"'
                )

    # The life of the system

    def run(self) -> None:
        """Work until SIGTERM; then drain and return."""
        descriptors.raise_limit()
        signals = self._catch_signals()
        self._epoll = select.epoll()
        self._server = control.Server(self._layout.control)
        self._epoll.register(signals, select.EPOLLIN)
        self._epoll.register(self._server.socket.fileno(), select.EPOLLIN)
        self._save_config()
        self._sleepers = select.epoll()
        for name in self._config.vmtas:
            self._watch_fifo(name)
        self._find_mail()
        delivery.prepare(self._config)
        gc.collect()
        gc.freeze()
        self._fork_pickup()
        self._warn_of_pipes()
        log.info("spoolmta %s started: %d VMTAs, spool %s", __version__, len(self._config.vmtas), self._layout.root)
        while not (self._stopping and not self._children):
            for descriptor, _ in self._epoll.poll(self._pause()):
                self._on_event(descriptor, signals)
            self._tick()
        self._server.close()
        with contextlib.suppress(OSError):  # on a disk that has become read-only
            disk.remove(self._layout.control)
        log.info("spoolmta stopped")

    def _catch_signals(self) -> int:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in process.SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # for children that do not listen yet, see `_remind`
        return reader

    def _pause(self) -> float:
        now = clock.now()
        if not self._is_open:
            return 0.02
        times = [*self._wake_times.values(), *(h.restart_at for h in self._health.values() if h.restart_at > 0)]
        if self._stopping:
            times.append(self._stopping)
        return lifecycle.next_event(times, now, TICK if not self._rotation_pending else 0.05)

    def _on_event(self, descriptor: int, signals: int) -> None:
        if descriptor == signals:
            self._read_signals(signals)
        elif descriptor == self._server.socket.fileno():
            client = self._server.accept()
            if client is not None:
                self._epoll.register(client, select.EPOLLIN)
        elif self._server.has(descriptor):
            self._read_question(descriptor)
        elif descriptor == self._sleepers.fileno():
            for fifo, _ in self._sleepers.poll(0, lifecycle.AT_ONCE):
                self._wake(self._fifo_vmtas[fifo])

    def _read_signals(self, signals: int) -> None:
        for number in os.read(signals, 512):
            if number in (signal.SIGTERM, signal.SIGINT):
                self.stop()
            elif number == signal.SIGHUP:
                for problem in self.reload():
                    log.error("reload: %s", problem)
        self._reap()

    def _tick(self) -> None:
        now = clock.now()
        if self._stopping:
            self._drain(now)
            return
        if not self._is_open:
            self._open_when_ready()
        for role, health in list(self._health.items()):
            if 0 < health.restart_at <= now and role not in self._children.roles:
                self._health[role] = Health(health.deaths)
                self._start(role)
        self._start_feeders()
        for vmta in lifecycle.to_wake(self._wake_times, now) if self._is_open else ():
            self._wake(vmta)
        self._remind()
        self._rotate()

    def _remind(self) -> None:
        """Tell those again who did not hear of a new configuration or log, because they were not listening yet."""
        for child in self._children.living():
            if child.row[Cell.CONFIG_GENERATION] < self._page.config_generation:
                os.kill(child.pid, signal.SIGHUP)
        for child in self._writers() if self._rotation_pending else ():
            if child.row[Cell.LOG_GENERATION] < self._page.log_generation:
                os.kill(child.pid, signal.SIGUSR1)

    def _writers(self) -> list[Child]:
        """Who writes accounting files."""
        return [child for child in self._children.living() if not child.role.startswith(PIPE)]

    def _rotate(self, asked: list[Any] | None = None) -> None:
        today = time.time()  # as the names of the files say it
        files = self._rotation.due(today) if asked is None else asked
        if files:
            self._rotation.begin(files, self._page, today)
            self._children.signal(signal.SIGUSR1)
        heard = [child.row[Cell.LOG_GENERATION] for child in self._writers()]
        self._rotation_pending = not self._rotation.finish(heard, self._page)
        self._rotation.delete_old(today)

    def _open_when_ready(self) -> None:
        """VMTAs are woken when the pickup process has carried on with what a dead one had claimed, so that what was
        settled before a power cut is not queued again behind their backs; or when it could not start."""
        child = self._children.roles.get(PICKUP)
        if child is None or child.row[Cell.READY] or clock.now() - self._started > 30.0:
            self._is_open = True
            self._epoll.register(self._sleepers.fileno(), select.EPOLLIN)

    def stop(self) -> None:
        """Drain: no new sessions, those under way finish within 30 seconds."""
        if not self._stopping:
            self._stopping = clock.now() + STOP_WITHIN
            if self._is_open:
                self._epoll.unregister(self._sleepers.fileno())  # who is woken by mail now would have to leave at once
            self._children.signal(signal.SIGTERM, but=PIPE)

    def _drain(self, now: float) -> None:
        """Who gives rows to programs is told to leave when all who write rows have left; who does not is killed."""
        has_writers = bool(self._writers())
        if not has_writers and not self._is_feeding_out:
            self._is_feeding_out = True
            self._stopping = now + FEED_WITHIN
            self._children.signal(signal.SIGTERM)
        elif now > self._stopping:
            self._children.signal(signal.SIGKILL, but=PIPE if has_writers else "")
            self._stopping = now + 5.0

    # Processes

    def _start(self, role: str) -> None:
        if role == PICKUP:
            self._fork_pickup()
        elif not role.startswith(PIPE):
            self._wake(role.partition("/")[2])

    def _fork_pickup(self) -> None:
        def work(row: Row, is_orphan: Callable[[], bool]) -> None:
            pickup.run(self._config, self._layout, self._page, row, self._load_config, is_orphan)

        self._children.fork(PICKUP, "pickup", work)

    def _start_feeders(self) -> None:
        """A process for each pipe, unless it is to wait because it died."""
        for name, file in self._config.pipes.items():
            role = PIPE + name
            if role not in self._children.roles and not self._health.get(role, Health()).restart_at:

                def work(row: Row, is_orphan: Callable[[], bool], file: AcctFile = file) -> None:
                    feeder.run(file, self._page, row, self._load_config, is_orphan)

                self._children.fork(role, f"pipe {name}", work)

    def _wake(self, vmta: str) -> None:
        """Fork the process of a VMTA; it takes over the FIFO until it ends."""
        role = f"deliver/{vmta}"
        self._wake_times.pop(vmta, None)
        if role in self._children.roles or vmta not in self._config.vmtas or self._stopping:
            return
        if self._health.get(role, Health()).restart_at > clock.now():
            self._unwatch_fifo(vmta)
            return
        fifo = self._fifos[vmta]

        def work(row: Row, is_orphan: Callable[[], bool]) -> None:
            delivery.run(self._config, vmta, self._layout, self._page, row, fifo, self._load_config, is_orphan)

        self._unwatch_fifo(vmta)
        self._children.fork(role, f"deliver {vmta}", work, fifo)

    def _reap(self) -> None:
        for child, code in self._children.reap():
            self._on_exit(child, code)

    def _on_exit(self, child: Child, code: int) -> None:
        if self._stopping:
            return
        now = clock.now()
        clean = code == 0 and child.role != PICKUP
        worked = child.row[Cell.MESSAGES] > child.messages
        health = lifecycle.after_exit(self._health.get(child.role, Health()), clean=clean, worked=worked, now=now)
        self._health[child.role] = health
        if clean:
            del self._health[child.role]
        else:
            child.row.add(Cell.RESTARTS, 1)
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            log.error(
                "%s (process %d) ended %s; starting again in %.0f s",
                child.role,
                child.pid,
                how,
                max(0.0, health.restart_at - now),
            )
        if child.role.startswith(PIPE):
            return
        vmta = child.role.partition("/")[2]
        if child.role != PICKUP:
            self._put_to_sleep(vmta, clean)
        if child.role == PICKUP or (
            not clean and any(vmta in pool.virtual_mta for pool in self._config.pools.values())
        ):
            self._make_up_for_lost_hints()

    def _make_up_for_lost_hints(self) -> None:
        """A process may have died between putting mail into another's queue and telling of it: let all look."""
        self._find_mail()
        for role in self._children.roles:
            if not role.startswith("deliver/"):
                continue
            with contextlib.suppress(BlockingIOError):  # so full of hints that the next slow scan has to do
                os.write(self._fifos[role.partition("/")[2]], f"{control.SCAN}\n".encode())

    def _put_to_sleep(self, vmta: str, clean: bool) -> None:
        if vmta not in self._config.vmtas:
            return
        if clean:
            self._watch_fifo(vmta)
            wake = state.load(self._layout, vmta).wake
            if wake:
                self._wake_times[vmta] = wake

    # Sleeping VMTAs

    def _watch_fifo(self, vmta: str) -> None:
        fifo = self._fifos.get(vmta)
        if fifo is None:
            fifo = self._fifos[vmta] = control.make_fifo(self._layout.fifo(vmta))
        self._fifo_vmtas[fifo] = vmta
        with contextlib.suppress(FileExistsError):
            self._sleepers.register(fifo, select.EPOLLIN)

    def _unwatch_fifo(self, vmta: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._sleepers.unregister(self._fifos[vmta])

    def _find_mail(self) -> None:
        """At start (and after a reload) wake the VMTAs that have mail, or markers that may not hold any more; tell of
        mail whose VMTA is not configured."""
        self._orphaned = []
        marked = markers.members(self._layout)
        for name in sorted(os.listdir(self._layout.queue)):
            is_marked = name in marked and name in self._config.vmtas
            if not is_marked and not spool_layout.holds_mail(f"{self._layout.queue}/{name}"):
                continue
            if name in self._config.vmtas:
                if f"deliver/{name}" not in self._children.roles:
                    self._wake_times[name] = 0.0
            else:
                self._orphaned.append(name)
                log.warning("queue %s holds mail, but no VMTA of this name is configured: it stays where it is", name)

    # Configuration

    def reload(self) -> list[str]:
        """Read the configuration anew and hand it on. On any error everything stays as it was; the errors are
        returned."""
        try:
            new = config.load(self._path)
        except ConfigError as error:
            return error.problems
        problems = lifecycle.needs_restart(self._config, new)
        if not self._page.has_room([*(f"deliver/{name}" for name in new.vmtas), *(PIPE + name for name in new.pipes)]):
            problems.append("too many new VMTAs for the running system: this needs a restart")
        if problems:
            return problems
        change = lifecycle.difference(self._config, new)
        for name in self._config.pipes.keys() - new.pipes.keys():
            self._health.pop(PIPE + name, None)
        self._config = new
        delivery.prepare(new)
        if new.acct_files != tuple(self._rotation.files):
            self._rotation = rotation.Rotation(new.acct_files, time.time())
        for name in change.added:
            self._watch_fifo(name)
        self._page.next_config_generation()
        self._save_config()
        self._children.signal(signal.SIGHUP)
        for name in change.removed:
            child = self._children.roles.get(f"deliver/{name}")
            if child is not None:
                os.kill(child.pid, signal.SIGTERM)
            self._unwatch_fifo(name)
        self._find_mail()
        for warning in policy.warnings(new):
            log.warning("%s", warning)
        self._warn_of_pipes()
        log.info("configuration loaded anew: %d VMTAs added, %d removed", len(change.added), len(change.removed))
        return []

    def _warn_of_pipes(self) -> None:
        for warning in overview.unwanted_pipes(self._layout, self._config):
            log.warning("%s", warning)

    def _save_config(self) -> None:
        """Our own value for our own children, in a folder of our own: they never read the operator's files, which may
        have changed since they were checked."""
        disk.replace(self._layout.path("run", "config"), pickle.dumps(self._config), 0o600)

    def _load_config(self) -> Config:
        with open(self._layout.path("run", "config"), "rb") as file:
            value = pickle.load(file)
        assert isinstance(value, Config)
        return value

    # Questions

    def _read_question(self, descriptor: int) -> None:
        question = self._server.read(descriptor)
        if question is None:
            return
        with contextlib.suppress(FileNotFoundError, OSError):
            self._epoll.unregister(descriptor)
        self._server.answer(descriptor, self._answer(question.get("ask")))

    def _answer(self, asked: object) -> dict[str, Any]:
        if asked == "status":
            return self.status()
        if asked == "reload":
            problems = self.reload()
            return {"problems": problems, "generation": self._page.config_generation}
        if asked == "stop":
            self.stop()
            return {"pid": os.getpid()}
        if asked == "rotate":
            self._rotate(self._rotation.files)
            return {"files": [file.path for file in self._rotation.files]}
        return {"error": f"unknown question {asked!r}"}

    def status(self) -> dict[str, Any]:
        """Live figures of the whole system, as `spoolmta status --json` shows them."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "config": self._path,
            "config_generation": self._page.config_generation,
            "stopping": bool(self._stopping),
            "log_rotation_pending": self._rotation_pending,
            "unconfigured_queues": self._orphaned,
            **overview.of_spool(self._layout),
            "pickup": overview.of_pickup(self._page.row(PICKUP)),
            "pipes": [self._pipe_status(name) for name in self._config.pipes],
            "vmtas": [self._vmta_status(name) for name in sorted(self._config.vmtas)],
        }

    def _pipe_status(self, name: str) -> dict[str, Any]:
        return overview.of_pipe(self._config.pipes[name], self._page.row(PIPE + name))

    def _vmta_status(self, name: str) -> dict[str, Any]:
        role = f"deliver/{name}"
        state = "running" if role in self._children.roles else "restarting" if role in self._health else "asleep"
        return overview.of_vmta(name, self._page.row(role), state, self._page.config_generation)


def run(path: str) -> None:
    """`spoolmta run`: the whole system in the foreground."""
    configuration = config.load(path)
    process.introduce("supervisor")
    for warning in policy.warnings(configuration):
        log.warning("%s", warning)
    process.warm_up(configuration.event_loop)
    process.may_go_ahead()
    process.drop_privileges(configuration)
    Supervisor(path, configuration).run()
