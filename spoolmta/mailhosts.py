"""Which hosts take a domain's mail, asked by a process that has no event loop: intake, where mail is counted for sites.

Only systems in which addresses warm up ask. A name server that is down must not hold up intake: after a question
without an answer there are no more for a while, and the domains that are not known yet count as unknown.
"""

from __future__ import annotations

import asyncio
import random
import time

from spoolmta.model import DomainPolicy, FailureKind
from spoolmta.resolver import Resolver, Unroutable
from spoolmta.warming import Hosts

PATIENCE = 3.0
QUIET = 30.0
FRESH = 300.0
"""Seconds for which an answer is believed here; the resolver below knows its real time."""
MAX_CACHED = 100_000


class MailHosts:
    """Answers are kept; `of` may take PATIENCE seconds, once in QUIET seconds."""

    def __init__(self, nameservers: tuple[str, ...]) -> None:
        self._nameservers = nameservers
        self._known: dict[str, tuple[float, Hosts]] = {}
        self._quiet_until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resolver: Resolver | None = None

    def __repr__(self) -> str:
        return f"MailHosts({self._nameservers}, {len(self._known)} known)"

    def of(self, domain: str) -> Hosts:
        """The hosts that a domain's MX records name; none if it has none, None if nobody can tell for now."""
        now = time.monotonic()
        at, hosts = self._known.get(domain, (-FRESH, None))
        if now - at < FRESH:
            return hosts
        if now < self._quiet_until:
            return None
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        try:
            hosts = self._ask(domain)
        except TimeoutError:
            self._quiet_until = time.monotonic() + QUIET
            return None
        self._known[domain] = now, hosts
        return hosts

    def _ask(self, domain: str) -> Hosts:
        """Raises TimeoutError where there is no answer."""
        if self._loop is None or self._resolver is None:
            self._loop = asyncio.new_event_loop()
            self._resolver = Resolver(self._nameservers, random.Random())
        question = asyncio.wait_for(self._resolver.route(domain, DomainPolicy()), PATIENCE)
        try:
            return self._loop.run_until_complete(question).mx
        except Unroutable as error:
            if error.failure.kind is FailureKind.DNS_TEMPORARY:
                raise TimeoutError from None
            return frozenset()

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
