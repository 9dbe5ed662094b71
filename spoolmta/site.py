"""What the scheduler knows: the mail of a domain, the receiving end it goes to, the sessions there. No decisions."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection

from spoolmta import entry
from spoolmta.backlog import Backlog, Line
from spoolmta.condition import Condition
from spoolmta.limits import Limits
from spoolmta.model import DomainPolicy, Failure
from spoolmta.rate import Cells, RateLimiter
from spoolmta.waiting import Waiting


class Queue:
    """The mail of one domain. `own` are the limits of its own that hold within its site's, if it has any. `held_jobs`
    are those of the whole VMTA."""

    __slots__ = (
        "active",
        "bounce_after",
        "domain",
        "failure",
        "group",
        "held_jobs",
        "held_until",
        "is_limited",
        "lines",
        "locating",
        "own_limiter",
        "own_sessions",
        "reason",
        "retry_at",
        "waiting",
    )

    def __init__(self, domain: str, held_jobs: Collection[str] = ()) -> None:
        self.domain = domain
        self.held_jobs = held_jobs
        self.lines: dict[tuple[int, str], Line] = {}
        self.waiting = Waiting()
        self.group: Group | None = None
        self.locating = False
        self.retry_at = 0.0
        self.failure: Failure | None = None
        self.reason = ""
        self.own_limiter: RateLimiter | None = None
        self.own_sessions = 0
        self.active = 0
        self.held_until = 0.0
        self.bounce_after = math.inf
        self.is_limited = False

    def __repr__(self) -> str:
        return f"Queue({self.domain}, lines={self.lines}, waiting={len(self.waiting)}, {self.group}, {self.reason!r})"

    def line_of(self, name: str) -> Line:
        flow = entry.flow(name)
        line = self.lines.get(flow)
        if line is None:
            line = self.lines[flow] = Line(self, *flow, is_held=flow[1] in self.held_jobs)
        return line

    @property
    def has_ready(self) -> bool:
        return any(line.names and not line.is_held for line in self.lines.values())

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not any(line.names for line in self.lines.values())

    def __len__(self) -> int:
        return len(self.waiting) + sum(len(line.names) for line in self.lines.values())

    def __bool__(self) -> bool:
        return True

    @property
    def is_wanting(self) -> bool:
        """Whether it has mail that may go, or held mail of which it is not known yet how long it may wait."""
        return self.has_ready or (self.group is None and self.bounce_after == math.inf and self.has_held)

    @property
    def has_held(self) -> bool:
        return any(line.names and line.is_held for line in self.lines.values())

    @property
    def held_expiry(self) -> float:
        """When the first of its held mail has waited for bounce-after."""
        held = (line.first_received() for line in self.lines.values() if line.is_held and line.names)
        return min(held, default=math.inf) + self.bounce_after

    @property
    def ready_at(self) -> float:
        """When its ready mail may be tried again (0 or past: it may be now), as far as failures and pauses go."""
        if self.group is None:
            return self.retry_at
        state = self.group.site.condition
        if state.paused is None:
            return state.blocked_until
        return state.paused.until or math.inf

    def hold(self, until: float) -> None:
        """Its mail does not take part in its group until then (infinity: until one of its messages is done)."""
        self.held_until = until
        self.unlist()

    def list_ready(self) -> None:
        """Its ready mail takes part in its group, unless the domain's own limits hold it."""
        if self.group is None or self.held_until:
            return
        for line in self.lines.values():
            if line.names and not line.is_held:
                self.group.backlog.push(line)

    def unlist(self) -> None:
        if self.group is not None:
            for line in self.lines.values():
                self.group.backlog.remove(line)

    def count(self, is_meant: Callable[[str], bool]) -> int:
        """How many names are meant of those that are ready, held or waiting."""
        names = itertools.chain(*(line.names for line in self.lines.values()), self.waiting)
        return sum(map(is_meant, names))

    def hold_jobs(self) -> bool:
        """Its lines are held or let go as `held_jobs` has it now; whether that changed any."""
        changed = [line for line in self.lines.values() if line.is_held != (line.job in self.held_jobs)]
        for line in changed:
            line.is_held = not line.is_held
            if line.is_held and self.group is not None:
                self.group.backlog.remove(line)
        self.list_ready()
        return bool(changed)

    def take_expired_held(self, now: float) -> list[str]:
        """What of held jobs has waited for bounce-after, taken off the head of each line."""
        taken: list[str] = []
        for line in self.lines.values():
            if line.is_held:
                taken += line.take_older(now - self.bounce_after)
        return taken

    def leave(self) -> None:
        """It belongs to no group any more, and no limits of its own hold. What is being sent still counts for it."""
        if self.group is not None:
            self.unlist()
            self.group.queues.discard(self)
            self.group.site.forget(self.group)
        self.group, self.held_until = None, 0.0
        self.own_limiter, self.own_sessions, self.is_limited = None, 0, False

    def take_ready(self, most: int) -> list[str]:
        """Up to so many ready names, taken out."""
        taken: list[str] = []
        for line in self.lines.values():
            while line.names and not line.is_held and len(taken) < most:
                taken.append(line.names.popleft())
        return taken

    def take_waiting(self, is_meant: Callable[[str], bool]) -> list[str]:
        """The names that are meant of those that wait for their time, the first due first, taken out."""
        return self.waiting.take(is_meant)

    def withdraw_ready(self, is_meant: Callable[[str], bool]) -> list[str]:
        """Of the names that are due, held or not, those that are meant, taken out."""
        taken: list[str] = []
        for line in self.lines.values():
            found = [name for name in line.names if is_meant(name)]
            if found:
                taken += found
                line.names = deque(name for name in line.names if not is_meant(name))
        return taken

    def withdraw(self, is_meant: Callable[[str], bool]) -> list[str]:
        """The names that are meant, ready or waiting, taken out. No line may be listed."""
        return self.withdraw_ready(is_meant) + self.take_waiting(is_meant)

    def is_too_old(self, name: str, now: float) -> bool:
        """Whether an entry that has been tried has waited for bounce-after; one that was not gets its try."""
        return entry.is_older(name, now - self.bounce_after) and entry.state(name)[0] > 0

    def set_policy(self, own: DomainPolicy, shared: DomainPolicy, cells: Cells | None, now: float) -> None:
        """What holds for the domain, beside what holds for all of its site: limits that are not the site's own."""
        self.bounce_after = own.bounce_after
        self.own_sessions = own.max_smtp_out if own.max_smtp_out < shared.max_smtp_out else 0
        if own.max_msg_rate == shared.max_msg_rate or own.max_msg_rate.count == math.inf:
            self.own_limiter = None
        elif self.own_limiter is None:
            self.own_limiter = RateLimiter(own.max_msg_rate, cells)
        else:
            self.own_limiter.set_rate(own.max_msg_rate, now)
        self.is_limited = self.own_limiter is not None or self.own_sessions > 0

    def may_go_at(self, now: float, count: int) -> float:
        """When its own limits let the next message go: now or before, later, or (infinity) when one is done."""
        if self.own_sessions and self.active >= self.own_sessions:
            return math.inf
        return now + self.own_limiter.wait(now, count) if self.own_limiter is not None else now


class Group:
    """The domains of a site that go to the same hosts on the same terms (`routing`): a session opened for one can carry
    the mail of another. `mx` are the hosts that their MX records name. After a reload a group may have sessions left
    but no domains."""

    __slots__ = ("backlog", "idle", "mx", "opening", "queues", "sessions", "site", "terms")

    def __init__(self, site: Site, mx: frozenset[str], terms: frozenset[str]) -> None:
        self.site = site
        self.mx = mx
        self.terms = terms
        self.backlog = Backlog()
        self.queues: set[Queue] = set()
        self.sessions: set[int] = set()
        self.idle: deque[Session] = deque()
        self.opening = 0

    def demand(self, most: int) -> int:
        """How many sessions its ready mail could use, counted up to `most`."""
        if not any(queue.is_limited for queue in self.queues):
            return self.backlog.at_least(most)
        found: dict[Queue, int] = {}
        for line in self.backlog.lines():
            found[line.queue] = found.get(line.queue, 0) + len(line.names)
        return min(most, sum(min(count, queue.own_sessions or count) for queue, count in found.items()))

    def __repr__(self) -> str:
        return f"Group({self.site.key}, sessions={len(self.sessions)}, idle={len(self.idle)}, opening={self.opening})"


class Site:
    """What shares limits at the receiving end, with its open sessions and its condition.

    `cohort` is the first session that began after the last cut of the window: older ones that fail belong to the same
    trouble. `bears` is what that cut left, `floor` the least it could leave, `answers` how many messages were answered
    since. `hold` is what keeps mail from going out now: the directive, or what else it is. `is_crowded`: mail waits
    that no session here can carry. Until `calm_until` there are no more than `calm_sessions`, because of `calm`.
    `tick_at`: when something in its condition ends. `pace`: seconds a message takes (0: not known yet).
    """

    __slots__ = (
        "answers",
        "bears",
        "by_source",
        "calm",
        "calm_sessions",
        "calm_until",
        "cohort",
        "condition",
        "floor",
        "groups",
        "hold",
        "is_crowded",
        "key",
        "limits",
        "opened_at",
        "pace",
        "policy",
        "sessions",
        "tick_at",
    )

    def __init__(self, key: str, policy: DomainPolicy, condition: Condition, limits: Limits) -> None:
        self.key = key
        self.policy = policy
        self.condition = condition
        self.limits = limits
        self.groups: dict[tuple[frozenset[str], frozenset[str]], Group] = {}
        self.sessions: set[int] = set()
        self.by_source: dict[str, int] = {}
        self.cohort = 0
        self.bears = int(condition.window)
        self.floor = 1.0
        self.answers = 0
        self.calm = ""
        self.calm_until = 0.0
        self.calm_sessions = 0
        self.opened_at = 0.0
        self.pace = 0.0
        self.hold = ""
        self.is_crowded = False
        self.tick_at = math.inf

    def __repr__(self) -> str:
        return f"Site({self.key}, sessions={len(self.sessions)}, {self.condition}, held by {self.hold!r})"

    @property
    def opening(self) -> int:
        return sum(group.opening for group in self.groups.values())

    @property
    def has_mail(self) -> bool:
        """Whether there is ready mail, also such as its domain's own limits hold."""
        return any(group.backlog or any(queue.held_until for queue in group.queues) for group in self.groups.values())

    def group_of(self, mx: frozenset[str], terms: frozenset[str]) -> Group:
        """The group of domains that go to these hosts on these terms."""
        group = self.groups.get((mx, terms))
        if group is None:
            group = self.groups[mx, terms] = Group(self, mx, terms)
        return group

    def forget(self, group: Group) -> None:
        """Forget a group that has neither domains nor sessions."""
        if not group.queues and not group.sessions:
            self.groups.pop((group.mx, group.terms), None)

    def take_empty(self) -> list[Queue]:
        """The queues that have neither mail nor anything under way, taken out; and groups with nothing in them."""
        empty: list[Queue] = []
        for group in [*self.groups.values()]:
            found = [queue for queue in group.queues if queue.is_empty and not queue.active]
            group.queues.difference_update(found)
            empty += found
            self.forget(group)
        return empty

    def take_expired(self, now: float) -> tuple[list[tuple[str, str]], float]:
        """What has waited for bounce-after (domain, name), taken off the head of each line; when to look again."""
        expired: list[tuple[str, str]] = []
        again = math.inf
        for group in self.groups.values():
            for line in group.backlog.lines():
                queue = line.queue
                # The line is listed: what is taken out of it must not leave it empty there.
                names = line.take_older(now - queue.bounce_after)
                expired += [(queue.domain, name) for name in names]
                if line.names:
                    again = min(again, line.first_received() + queue.bounce_after)
                else:
                    group.backlog.remove(line)
        return expired, again


class Session:
    """One connection, as far as limits are concerned. `sources` are the addresses it may come from (one of each IP
    version until it is open), `taken` when its message was counted and how large it is."""

    __slots__ = (
        "answered",
        "group",
        "idle_since",
        "number",
        "opening",
        "queue",
        "sent",
        "size",
        "sources",
        "taken",
    )

    def __init__(self, number: int, group: Group, sources: tuple[str, ...]) -> None:
        self.number = number
        self.group = group
        self.sources = sources
        self.opening = True
        self.sent = 0
        self.answered = 0
        self.idle_since = 0.0
        self.queue: Queue | None = None
        self.size = 0
        self.taken = 0.0
