"""Why a message gets the VMTA it gets: every rule of `selection.choose`, in the order in which they are tried.

Law. What the rules say last is what `selection.choose` chooses (or refuses).
"""

from __future__ import annotations

import msgspec

from spoolmta import address, selection
from spoolmta.errors import MessageRefused
from spoolmta.model import Config, Parsed, Select, Source


class Reason(msgspec.Struct, frozen=True):
    """One rule: the directive, and what it says to this message."""

    rule: str
    says: str


class Choice(msgspec.Struct, frozen=True):
    """The VMTA chosen, "" for a message that is refused; the pool it stands for, if it is a member of one; the
    priority; and why."""

    vmta: str
    pool: str
    priority: int
    refused: str
    reasons: list[Reason]


def why_vmta(config: Config, source: Source, parsed: Parsed, data: bytes) -> Choice:
    """The choice for a message, whose file is `data`, with each rule that was tried."""
    reasons = [*_of_header(source, address.show(parsed.envelope.virtual_mta)), *_of_rules(source, parsed, data)]
    try:
        choice = selection.choose(config, source, parsed, data)
    except MessageRefused as error:
        return Choice("", "", 0, str(error), [*reasons, Reason("refused", str(error))])
    reasons.append(Reason(choice.reason, f'gives "{choice.name}", priority {choice.priority}'))
    pool = config.pools.get(choice.name)
    if pool is None:
        return Choice(choice.name, "", choice.priority, "", reasons)
    members = ", ".join(f"{name} ({weight})" for name, weight in pool.virtual_mta.items())
    reasons.append(Reason(f"pool.{choice.name}", f"deals it to one of its members, by weight: {members}"))
    return Choice(next(iter(pool.virtual_mta)), choice.name, choice.priority, "", reasons)


def _of_header(source: Source, wanted: str) -> list[Reason]:
    table = f"source.{source.name}"
    if not wanted:
        return [Reason("x-virtual-mta", "the message names none")]
    if not source.process_x_virtual_mta:
        says = f'is false: that the message names "{wanted}" is ignored'
        return [Reason(f"{table}.process-x-virtual-mta", says)]
    allowed = source.allowed_virtual_mta
    says = "is empty: any VMTA may be named"
    if allowed:
        says = f"{'has it' if wanted.lower() in allowed else 'does not have it'}: {', '.join(allowed)}"
    return [
        Reason("x-virtual-mta", f'the message names "{wanted}"'),
        Reason(f"{table}.allowed-virtual-mta", says),
    ]


def _of_rules(source: Source, parsed: Parsed, data: bytes) -> list[Reason]:
    reasons = []
    for number, rule in enumerate(source.select, 1):
        fits = selection.matches(rule, parsed, data)
        reasons.append(
            Reason(f"source.{source.name}.select {number}", f"{'matches' if fits else 'does not match'}: {_asks(rule)}")
        )
        if fits:
            break
    return reasons


def _asks(rule: Select) -> str:
    asked = [f"mail-from {rule.mail_from}"] if rule.mail_from else []
    asked += [f"rcpt-to {rule.rcpt_to}"] if rule.rcpt_to else []
    asked += [f"{rule.header}: {rule.match}"] if rule.header else []
    return ", ".join(asked) or "it asks for nothing"
