"""Where members of pools do not want mail: `state/pool/<pool>/<member>/<site>`, or `*` for everywhere.

A member's delivery process leaves a marker when it is paused or backed off at a site, and takes it away when that is
over; whoever deals out a pool's mail reads them, at most once a second. A marker is a small JSON file, replaced whole
and synced, so it survives `kill -9` and a power cut. It goes stale by itself where its end is known (`until`), and a
process that starts removes those of its own that do not hold any more. A marker lists the domains that were seen at its
site, since who deals knows a message's domains, not their sites.
"""

from __future__ import annotations

import hashlib
import os
import time

import msgspec

from spoolmta import disk
from spoolmta.spool.layout import Layout

EVERYWHERE = "*"
FRESH = 1.0
"""Seconds for which what was read is believed."""
_MAX_NAME = 200


class Marker(msgspec.Struct, frozen=True, omit_defaults=True):
    """Times are Unix seconds, `until` 0 for an end that is not known. `is_probed`: a message now and then should go
    there nevertheless, because only an answer can end it. `domains` are those of the site, with when each was first
    listed."""

    site: str
    reason: str
    since: float = 0.0
    until: float = 0.0
    is_probed: bool = False
    domains: dict[str, float] = {}

    def holds(self, now: float) -> bool:
        return not self.until or self.until > now


def leave(layout: Layout, pool: str, member: str, marker: Marker) -> None:
    """Leave a marker, durably, in place of an older one for the same site. Raises OSError on a full disk."""
    folder = f"{layout.pool(pool)}/{member}"
    os.makedirs(folder, exist_ok=True)
    disk.replace(f"{folder}/{_file(marker.site)}", msgspec.json.encode(marker))


def take_away(layout: Layout, pool: str, member: str, site: str) -> None:
    """Remove a marker that may be gone already."""
    disk.remove(f"{layout.pool(pool)}/{member}/{_file(site)}")


def read(layout: Layout, pool: str, member: str) -> dict[str, Marker]:
    """A member's markers by site. What is no marker is passed over."""
    found: dict[str, Marker] = {}
    folder = f"{layout.pool(pool)}/{member}"
    for name in _names(folder):
        try:
            with open(f"{folder}/{name}", "rb") as file:
                marker = msgspec.json.decode(file.read(), type=Marker)
        except (OSError, msgspec.MsgspecError):
            continue
        found[marker.site] = marker
    return found


def pools_of(layout: Layout, member: str) -> list[str]:
    """The pools in which a member has left markers."""
    return [pool for pool in _names(layout.path("state", "pool")) if _names(f"{layout.pool(pool)}/{member}")]


def members(layout: Layout) -> set[str]:
    """Everybody who has left markers. One that sleeps must look whether they still hold: mail is kept from it."""
    pools = _names(layout.path("state", "pool"))
    return {member for pool in pools for member in _names(layout.pool(pool)) if _names(f"{layout.pool(pool)}/{member}")}


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.endswith(".new")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _file(site: str) -> str:
    """The file of a site: its name, unless that is too long for one."""
    if len(site) <= _MAX_NAME:
        return site
    return hashlib.blake2b(site.encode(), digest_size=16).hexdigest()


class _Page(msgspec.Struct):
    """What was read of a member's markers, when (by the caller's clock), and how old the folder was then."""

    at: float
    changed: int
    by_domain: dict[str, Marker]


class Board:
    """The markers of pools, as read not longer than FRESH ago."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._pages: dict[tuple[str, str], _Page] = {}

    def __repr__(self) -> str:
        return f"Board({self._pages})"

    def standing_against(self, pool: str, member: str, domains: list[str], now: float) -> Marker | None:
        """A marker that a member has left for one of these domains and that holds. One that is not probed rather than
        one that is."""
        by_domain = self._of(pool, member, now)
        if not by_domain:
            return None
        found = [by_domain[domain] for domain in (EVERYWHERE, *domains) if domain in by_domain]
        return min((marker for marker in found if marker.holds(now)), key=lambda m: m.is_probed, default=None)

    def _of(self, pool: str, member: str, now: float) -> dict[str, Marker]:
        page = self._pages.get((pool, member))
        if page is not None and 0 <= now - page.at < FRESH:
            return page.by_domain
        try:
            changed = os.stat(f"{self._layout.pool(pool)}/{member}").st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if page is not None and page.changed == changed:
            page.at = now
            return page.by_domain
        by_domain: dict[str, Marker] = {}
        for site, marker in read(self._layout, pool, member).items() if changed else ():
            by_domain |= dict.fromkeys((site, *marker.domains), marker)
        # The kernel's clock for files moves in steps: what was changed just now may change again at the same time.
        is_settled = time.time_ns() - changed > 100_000_000
        self._pages[pool, member] = _Page(now, changed if is_settled else -1, by_domain)
        return by_domain
