"""What a delivery process leaves in `state/<vmta>` when it sleeps or ends: when it wants to be woken, and what its
sites failed with. The mail itself is in the queue; an unreadable state counts as none."""

from __future__ import annotations

import math

import msgspec

from spoolmta import disk
from spoolmta.model import Struct
from spoolmta.spool.layout import Layout

SiteState = tuple[int, float, str]
"""Failures in a row, blocked until (Unix seconds), the reason."""


class State(Struct, frozen=True):
    """`wake` is in Unix seconds, 0 for never."""

    wake: float
    sites: dict[str, SiteState]


def load(layout: Layout, vmta: str) -> State:
    """The state a process left."""
    try:
        with open(layout.state(vmta), "rb") as file:
            return msgspec.json.decode(file.read(), type=State)
    except (FileNotFoundError, msgspec.MsgspecError):
        return State(0.0, {})


def save(layout: Layout, vmta: str, wake: float, sites: dict[str, SiteState]) -> None:
    """Leave the state, durably; `wake` infinity for never."""
    value = State(0.0 if wake == math.inf else wake, sites)
    disk.replace(layout.state(vmta), msgspec.json.encode(value))
