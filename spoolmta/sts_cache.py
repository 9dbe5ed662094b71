"""MTA-STS policies as all processes keep them: one file a domain in `state/.mta-sts/`, and one process that fetches.

What decides is in `sts`. A process that wants a fetch takes the domain's lock; who does not get it waits until it is
free, and reads what the other has written. A file that cannot be read or written is as if it were not there: then a
policy is fetched by every process that needs it, and none is lost that the domain still publishes.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
import zlib

import msgspec

from spoolmta import disk, sts
from spoolmta.model import FailureKind
from spoolmta.resolver import Resolver, is_host_name
from spoolmta.spool.layout import Layout
from spoolmta.sts_fetch import PATIENCE, NotFetched, fetch

log = logging.getLogger("spoolmta")

FOLDER = ".mta-sts"
"""No VMTA has a name like this, whose states lie beside it."""
MAX_KEPT = 20_000
_POLL = 0.05


@functools.cache
def _locks(folder: str) -> disk.KeyLocks:
    """One for the life of the process, however often it is configured anew. Raises OSError."""
    os.makedirs(folder, 0o750, exist_ok=True)
    return disk.KeyLocks(f"{folder}/lock")


class Policies:
    """The MTA-STS policies of the domains one process sends to."""

    def __init__(self, layout: Layout, resolver: Resolver, port: int) -> None:
        self._folder = layout.state(FOLDER)
        self._resolver = resolver
        self._port = port
        self._kept: dict[str, sts.Kept] = {}
        self._fetching: dict[str, asyncio.Future[sts.Kept]] = {}

    def __repr__(self) -> str:
        return f"Policies({self._folder!r}, {len(self._kept)} known)"

    async def find(self, domain: str, ca_file: str) -> sts.Policy | None:
        """The policy that holds for a domain now; fetches it where that is due."""
        if not is_host_name(domain):
            return None
        published = await self._published(domain)
        kept = self._kept.get(domain)
        if kept is None:
            kept = self._remember(domain, self._load(domain))
        if sts.wants_fetch(kept, published, time.time()):
            kept = await self._fetch_once(domain, published, ca_file)
        return kept.at(time.time())

    async def recheck(self, domain: str, ca_file: str) -> sts.Policy | None:
        """As `find`, with the DNS asked anew: mail must not fail by a policy that the domain has replaced (RFC 8461
        section 5.1)."""
        self._resolver.forget(f"_mta-sts.{domain}", "TXT")
        return await self.find(domain, ca_file)

    async def _published(self, domain: str) -> str:
        found = await self._resolver.look_up(f"_mta-sts.{domain}", "TXT")
        if found.failure not in (None, FailureKind.NO_DOMAIN):
            return ""  # what is kept holds
        return sts.read_record(found.records)

    def _remember(self, domain: str, kept: sts.Kept) -> sts.Kept:
        if len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[domain] = kept
        return kept

    async def _fetch_once(self, domain: str, published: str, ca_file: str) -> sts.Kept:
        """Sessions that are opened at the same time wait for the same fetch."""
        fetching = self._fetching.get(domain)
        if fetching is None:
            fetching = self._fetching[domain] = asyncio.ensure_future(self._fetch(domain, published, ca_file))
            fetching.add_done_callback(lambda _: self._fetching.pop(domain, None))
        return await asyncio.shield(fetching)

    async def _fetch(self, domain: str, published: str, ca_file: str) -> sts.Kept:
        key = zlib.crc32(domain.encode())
        locks = await self._lock(key)
        try:
            kept = self._load(domain)
            if sts.wants_fetch(kept, published, time.time()):
                policy = None
                try:
                    policy = await fetch(domain, self._resolver, self._port, ca_file)
                except NotFetched as error:
                    log.warning("the MTA-STS policy of %s cannot be had: %s", domain, error)
                kept = sts.after_fetch(kept, published, time.time(), policy)
                self._save(domain, kept)
            return self._remember(domain, kept)
        finally:
            if locks is not None:
                locks.unlock(key)

    async def _lock(self, key: int) -> disk.KeyLocks | None:
        """Wait until nobody else fetches; None where there can be no lock."""
        try:
            locks = _locks(self._folder)
            deadline = time.monotonic() + PATIENCE + 10
            while not locks.try_lock(key):
                if time.monotonic() > deadline:
                    return None
                await asyncio.sleep(_POLL)
        except OSError:
            return None
        return locks

    def _path(self, domain: str) -> str:
        return f"{self._folder}/{domain}.json"

    def _load(self, domain: str) -> sts.Kept:
        try:
            with open(self._path(domain), "rb") as file:
                return msgspec.json.decode(file.read(), type=sts.Kept)
        except (OSError, msgspec.MsgspecError):
            return sts.Kept()

    def _save(self, domain: str, kept: sts.Kept) -> None:
        """Not synced: what a power cut takes is fetched again."""
        temporary = f"{self._path(domain)}.{os.getpid()}"
        try:
            disk.remove(temporary)
            disk.write_new(temporary, msgspec.json.encode(kept))
            disk.rename(temporary, self._path(domain))
        except OSError as error:
            log.warning("cannot keep the MTA-STS policy of %s: %s", domain, error.strerror)
