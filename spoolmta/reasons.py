"""Why a message gets the VMTA it gets: every rule of `policy.choose_vmta`, in the order in which they are tried.

Law. What the rules say last is what `choose_vmta` chooses (or refuses).
"""

from __future__ import annotations

from spoolmta import address
from spoolmta.errors import MessageRefused
from spoolmta.model import Config, Envelope, Source, Struct
from spoolmta.policy import choose_vmta


class Reason(Struct, frozen=True):
    """One rule: the directive, and what it says to this message."""

    rule: str
    says: str


class Choice(Struct, frozen=True):
    """The VMTA chosen, "" for a message that is refused; and why."""

    vmta: str
    refused: str
    reasons: list[Reason]


def why_vmta(config: Config, source: Source, envelope: Envelope) -> Choice:
    """The choice for a message, with each rule that was tried."""
    table = f"source.{source.name}"
    wanted = address.show(envelope.virtual_mta)
    reasons = []
    if not wanted:
        reasons.append(Reason("x-virtual-mta", "the message names none"))
    elif not source.process_x_virtual_mta:
        reasons.append(
            Reason(f"{table}.process-x-virtual-mta", f'is false: that the message names "{wanted}" is ignored')
        )
    else:
        reasons.append(Reason("x-virtual-mta", f'the message names "{wanted}"'))
        allowed = source.allowed_virtual_mta
        if allowed:
            names = ", ".join(allowed)
            says = "has it" if wanted.lower() in allowed else "does not have it"
            reasons.append(Reason(f"{table}.allowed-virtual-mta", f"{says}: {names}"))
        else:
            reasons.append(Reason(f"{table}.allowed-virtual-mta", "is empty: any VMTA may be named"))
    try:
        vmta = choose_vmta(config, source, envelope)
    except MessageRefused as error:
        return Choice("", str(error), [*reasons, Reason("refused", str(error))])
    if not wanted or not source.process_x_virtual_mta:
        reasons.append(Reason(f"{table}.default-virtual-mta", f'is "{source.default_virtual_mta}"'))
    return Choice(vmta, "", reasons)
