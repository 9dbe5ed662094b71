"""Which VMTA or pool takes a message, and with which priority.

    the VMTA or pool    X-Virtual-MTA, where the source lets a message ask  >  select  >  default-virtual-mta
    the priority        select  >  the source's recipient-priority

The rules of `select` are asked in their order and the first that matches decides; what it does not say comes from the
source. All that a rule asks for must match: `rcpt-to` any of the recipients, `match` any field of the header's name.
Upper and lower case are the same, as in the domains of addresses, unless a pattern begins with `(?-i)`.
"""

from __future__ import annotations

import msgspec

from spoolmta import address, message
from spoolmta.errors import MessageRefused
from spoolmta.model import Config, Parsed, Select, Source
from spoolmta.pattern import compiled


class Choice(msgspec.Struct, frozen=True):
    """`name` is a VMTA or a pool; `reason` are the words of the configuration that decided it."""

    name: str
    priority: int
    reason: str


def choose(config: Config, source: Source, parsed: Parsed, data: bytes) -> Choice:
    """The choice for a message, whose file is `data`. Raises MessageRefused."""
    number, rule = _first_match(source, parsed, data)
    priority = rule.recipient_priority if rule.recipient_priority >= 0 else source.recipient_priority
    if parsed.envelope.virtual_mta and source.process_x_virtual_mta:
        return Choice(_wanted(config, source, parsed.envelope.virtual_mta), priority, "x-virtual-mta")
    if rule.virtual_mta:
        return Choice(rule.virtual_mta, priority, f"select {number} of the source {source.name}")
    return Choice(source.default_virtual_mta, priority, f"default-virtual-mta of the source {source.name}")


def _wanted(config: Config, source: Source, given: str) -> str:
    """What a message asks for. Names have no upper case, so `X-Virtual-MTA: Bulk` can only mean `bulk`."""
    wanted = given.lower()
    if wanted not in config.vmtas and wanted not in config.pools:
        raise MessageRefused(f'x-virtual-mta names the VMTA "{address.show(given)}", which does not exist')
    if source.allowed_virtual_mta and wanted not in source.allowed_virtual_mta:
        raise MessageRefused(
            f'x-virtual-mta names the VMTA "{wanted}", which the source "{source.name}" does not allow'
        )
    return wanted


def _first_match(source: Source, parsed: Parsed, data: bytes) -> tuple[int, Select]:
    """The first rule that matches, and which it is (1, 2, ...); an empty one where none does."""
    for number, rule in enumerate(source.select, 1):
        if matches(rule, parsed, data):
            return number, rule
    return 0, Select()


def matches(rule: Select, parsed: Parsed, data: bytes) -> bool:
    envelope = parsed.envelope
    if rule.mail_from and not compiled(rule.mail_from, may_be_empty=True).is_in(envelope.sender):
        return False
    if rule.rcpt_to:
        is_meant = compiled(rule.rcpt_to, may_be_empty=True).is_in
        if not any(is_meant(recipient.address) for recipient in envelope.recipients):
            return False
    if not rule.header:
        return True
    is_meant = compiled(rule.match, may_be_empty=True).is_in
    return any(is_meant(value) for value in message.field_values(data, parsed, rule.header))
