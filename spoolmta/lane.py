"""A session as the delivery process sees it: its connection, where it goes, what it carries and may still carry."""

from __future__ import annotations

import asyncio

from spoolmta.commons import Place
from spoolmta.model import Answer, DomainPolicy, Recipient, Stage
from spoolmta.opener import Ends, Opened
from spoolmta.sharing import FAIR_SHARE
from spoolmta.smtp.allowance import Allowance, settle
from spoolmta.smtp.client import Capabilities, Result
from spoolmta.spool.partition import Loaded
from spoolmta.transport import Connection


class Lane:
    """One session. `site` is where its message belonged when it went out; a reload may move the domain meanwhile. Of
    the recipients of its message `sent` are those of the transaction under way (or of the last one), `unsent` those
    whose turn comes, and `done` those that need not be tried again; `tried` is how many of them were to be tried at
    all, where a rate lets only a part go (`is_part`). `answered`, `delivered`: anybody. `pause`: seconds for which the
    server asked us to wait. `is_skipped`: a rule says that another host is to take it. `carried` counts its
    messages."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connection: Connection | None = None
        self.task: asyncio.Task[None] | None = None
        self.ends = Ends()
        self.capabilities = Capabilities()
        self.site = ""
        self.domain = ""
        self.name = ""
        self.site = ""
        self.policy = DomainPolicy()
        self.loaded: Loaded | None = None
        self.sent: list[Recipient] = []
        self.unsent: list[Recipient] = []
        self.done: list[Recipient] = []
        self.answered = self.delivered = self.is_part = self.is_skipped = False
        self.tried = 0
        self.pause = 0.0
        self.size = 0
        self.allowance = Allowance()
        self.refusal: Answer | None = None
        self.place: Place | None = None
        self.carried = 0

    def __repr__(self) -> str:
        return f"Lane({self.number}, {self.domain}/{self.name}, {self.ends}, {self.connection!r})"

    @property
    def is_past_the_dot(self) -> bool:
        return self.connection is not None and self.connection.is_busy and self.connection.stage is Stage.EOD

    def open(self, opened: Opened, policy: DomainPolicy) -> None:
        self.connection, self.ends, self.capabilities = opened.connection, opened.ends, opened.capabilities
        self.allowance = Allowance(opened.capabilities, policy.max_errors_per_connection)
        self.refusal, self.place = opened.refusal, opened.place

    def take_on(self, domain: str, name: str, loaded: Loaded, most: int, site: str, policy: DomainPolicy) -> None:
        """Begin with a message to `site`, and `most` of its recipients (0: all); `policy` holds for all of it."""
        self.carried += 1
        self.domain, self.name, self.loaded = domain, name, loaded
        self.site, self.policy = site, policy
        self.unsent, self.done = loaded.recipients[: most or None], []
        self.answered = self.delivered = self.is_skipped = False
        self.is_part, self.tried, self.pause = 0 < most < len(loaded.recipients), len(self.unsent), 0.0

    @property
    def is_over(self) -> bool:
        """Whether it has carried a fair number of messages, and others want its place at the host."""
        return self.carried >= FAIR_SHARE and self.place is not None and self.place.is_wanted()

    def choose(self, limit: int) -> None:
        """Who goes into the next transaction: as many as the policy, the host and what it took before allow."""
        limit = min(limit, self.allowance.recipients or limit)
        self.sent, self.unsent = self.unsent[:limit], self.unsent[limit:]

    def take(self, result: Result) -> tuple[bool, list[Answer]]:
        """Whether the session may carry another transaction, and an answer for each of `sent`."""
        goes_on = self.allowance.count(result)
        answers, self.sent, self.unsent = settle(result, self.sent, self.unsent)
        return goes_on, answers

    @property
    def may_go_at_once(self) -> bool:
        """Whether those without an answer go at once on another session: all the others are done, and there are such,
        so that it comes to an end. Otherwise they wait with those that were deferred, for they share an entry."""
        if not self.unsent or self.loaded is None:
            return False
        return 0 < len(self.done) == self.tried - len(self.unsent)
