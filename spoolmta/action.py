"""What the scheduler tells the delivery process to do, and what holds for the VMTA as a whole."""

from __future__ import annotations

import msgspec

from spoolmta.model import UNLIMITED, DomainPolicy, Failure, Rate


class Locate(msgspec.Struct, frozen=True):
    """Find the site of a domain; answer with `located`, `unlocated` or `condemned`."""

    domain: str


class Open(msgspec.Struct, frozen=True):
    """Open a session to a site, found by way of `domain`, from one of `sources` (at most one of each IP version; none
    leaves it to the system); answer with `opened` or `open_failed`."""

    session: int
    site: str
    domain: str
    sources: tuple[str, ...] = ()


class Assign(msgspec.Struct, frozen=True):
    """Send this entry on this session, to `most` of its recipients (0: all); answer with `finished`."""

    session: int
    domain: str
    name: str
    most: int = 0


class Close(msgspec.Struct, frozen=True):
    """End a session politely; it is already forgotten here."""

    session: int


class Reject(msgspec.Struct, frozen=True):
    """Settle this entry without trying: its domain takes no mail, or its queue was told to bounce."""

    domain: str
    name: str
    failure: Failure


class Expire(msgspec.Struct, frozen=True):
    """This entry has waited for bounce-after; `reason` is why it could not be delivered."""

    domain: str
    name: str
    reason: str


Action = Locate | Open | Assign | Close | Reject | Expire


class VmtaLimits(msgspec.Struct, frozen=True):
    """What holds over all sites of the VMTA; `max_smtp_out` 0 means no limit. `sources` are its addresses."""

    max_smtp_out: int = 0
    max_smtp_msg_rate: Rate = UNLIMITED
    max_smtp_data_volume_rate: Rate = UNLIMITED
    sources: tuple[str, ...] = ()

    @property
    def policy(self) -> DomainPolicy:
        """Its rates in the words of a site's."""
        return DomainPolicy(max_msg_rate=self.max_smtp_msg_rate, max_data_volume_rate=self.max_smtp_data_volume_rate)
