"""Who is told what became of a message: which recipients get which delivery status notification, and when.

| recipient | NOTIFY | the sender gets |
|---|---|---|
| failed (bounced, expired, deleted) | absent, or with FAILURE | `failed` |
| delivered to a host that does not offer DSN | with SUCCESS | `relayed`: nobody behind it will say more |
| delivered to a host that offers DSN | any | nothing: the request went with the message, and so did the duty |
| still waiting | with DELAY | `delayed`, every notify-of-delay-every |
| any | NEVER, or without the word that is asked for | nothing |
| quarantined | any | nothing: it is left to a person |

Never anything for the null sender (RFC 5321 section 6.1): so a DSN that fails has no DSN, and nothing goes round.
A DELAY is told only to who asks for it; RFC 3461 section 4.1 leaves it to us where NOTIFY is absent.
"""

from __future__ import annotations

import enum
import math
from typing import Literal

from spoolmta.model import Outcome

ReturnDefault = Literal["full", "headers"]

_FAILED = frozenset({Outcome.BOUNCED, Outcome.EXPIRED})
"""What the operator deletes is nobody's failure: no sender is told, as with PowerMTA's `delete` without `--dsn`."""


class Action(enum.Enum):
    """What a DSN reports (RFC 3464 section 2.3.3); `delivered` and `expanded` are for who has mailboxes."""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"


def action(sender: str, notify: str, outcome: Outcome | None, *, next_hop_has_dsn: bool = False) -> Action | None:
    """The DSN that the end of a recipient asks for, or None. `notify` is the NOTIFY parameter in upper case, "" where
    it was absent; `outcome` None (deferred) has none here, see `delays`."""
    if not sender:
        return None
    if outcome is Outcome.DELIVERED:
        return Action.RELAYED if _asks(notify, "SUCCESS") and not next_hop_has_dsn else None
    if outcome in _FAILED and (not notify or _asks(notify, "FAILURE")):
        return Action.FAILED
    return None


def wants_delays(sender: str, notify: str) -> bool:
    """Whether a recipient that waits is to be told of."""
    return bool(sender) and _asks(notify, "DELAY")


def delays(received: float, now: float, every: float) -> int:
    """How many notices of a delay are due by `now`, since `received` (Unix seconds) and one `every` so many seconds;
    infinity for never."""
    return 0 if every == math.inf or now < received else int((now - received) // every)


def returns_content(of: Action, ret: str, default: ReturnDefault) -> bool:
    """Whether the whole message goes back. RET speaks of failures only; all other DSNs carry the header (RFC 3461
    section 4.3)."""
    return of is Action.FAILED and (ret == "FULL" or (not ret and default == "full"))


def _asks(notify: str, word: str) -> bool:
    return bool(notify) and word in notify.split(",")
