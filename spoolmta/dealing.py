"""Whose turn it is in a pool: smooth weighted round robin, with members that are passed over for a while.

Each member has a credit. In every turn each gets its weight on it, the largest credit is chosen and pays what all got
together. So a credit is what a member is owed, in messages times the sum of the weights, and the credits add up to 0.
A member that is passed over goes on being owed, and is paid back when it returns: with the mail of other domains, if
it was only one domain's mail that could not go there.

Laws. With all members free from the start, every window as long as the weights add up to holds exactly the weights.
After any turns, as long as nobody was owed more than BACK, a member's messages differ from its share by at most one
once it has been paid back. Nobody is owed more than BACK messages and one turn, so a member returning
gets at most so many beyond its share. Who is not free is not chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from spoolmta.condition import BACKOFF, FOREVER, Condition, is_over

BACK = 100
"""Messages a member that was passed over gets back when it returns. A pause of a moment costs it nothing; after
an hour of back-off it does not get the pool's mail of an hour at once, of which it was relieved for good reason."""


def choose(weights: Sequence[int], owed: list[int], free: Sequence[bool]) -> int:
    """The index of the member whose turn it is, one that is free (there must be one). `owed` are the
    credits and are changed: whole numbers, at first all 0; they may come from other weights, or fewer members."""
    most = BACK * sum(weights)
    _balance(owed, most)
    paid = 0
    for index, weight in enumerate(weights):
        if free[index] or owed[index] + weight <= most:
            owed[index] += weight
            paid += weight
    chosen = max((index for index in range(len(weights)) if free[index]), key=owed.__getitem__)
    owed[chosen] -= paid
    return chosen


class Absence(msgspec.Struct, frozen=True):
    """Why a member wants no mail for a site, and until when (Unix seconds, FOREVER where the end is not known).
    `is_probed`: only an answer to a message, or a person, can end it."""

    reason: str
    until: float = FOREVER
    is_probed: bool = False


def absence(condition: Condition, addresses: Collection[str], now: float) -> Absence | None:
    """Whether a VMTA with these source addresses is to be passed over where its site is in this condition. What is
    over by now counts for nothing, also where nobody has looked at the condition since."""
    if condition.paused is not None and not is_over(condition.paused.until, now):
        return Absence(f"paused: {condition.paused.reason}", condition.paused.until)
    ends = [hold.until for address, hold in condition.disabled.items() if address in addresses]
    if addresses and len(ends) == len(addresses) and not any(is_over(end, now) for end in ends):
        return Absence(
            "all source addresses are disabled", min((end for end in ends if end != FOREVER), default=FOREVER)
        )
    if condition.mode == BACKOFF and not is_over(condition.mode_until, now):
        return Absence(f"backoff: {condition.mode_reason}", condition.mode_until, condition.mode_until == FOREVER)
    return None


def _balance(owed: list[int], most: int) -> None:
    """Members or weights may have changed since: nobody is owed too much, and what all are owed together is 0."""
    for index, credit in enumerate(owed):
        owed[index] = max(-most * len(owed), min(credit, most))
    surplus, rest = divmod(sum(owed), len(owed))
    for index in range(len(owed)) if surplus or rest else ():
        owed[index] -= surplus + (index < rest)
