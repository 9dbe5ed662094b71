"""Response rules: which rule an answer calls up, and what its changes make of a policy.

The first rule that matches wins, in the order in which they are given: the VMTA's own, its policy file's, the
provider's, the global ones. Laws: first match; a success (any reply below 400) calls up a rule only where a pattern
begins with ^2 or ^3; what we made up ourselves (`FailureKind.is_observed`) never does.

A reply that says nothing new is not searched again: receivers repeat themselves. Measured with the shipped rules (7 or
8 hold at a site): 1 microsecond for a repeated reply, 9 for a new 550, 16 for a new 421, 0.3 for a success.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from spoolmta import pattern
from spoolmta.model import Change, Config, DomainPolicy, Failure, Rate, Reply, ResponseRule, Stage
from spoolmta.policy import ROLLUP

REMEMBERED = 1024
"""Texts a `Rules` remembers; at 500 bytes each, half a megabyte for a site that never says the same twice."""

_UNLIMITED_AT_ZERO = frozenset({"max_msg_per_connection"})


class Rules:
    """The rules that hold for one site in one VMTA, strongest first."""

    __slots__ = ("_memory", "_rules", "may_match_success", "shares")

    def __init__(self, rules: Iterable[ResponseRule]) -> None:
        self._rules = tuple(rules)
        self._memory: dict[tuple[Stage, str], ResponseRule | None] = {}
        self.may_match_success = any(pattern.may_match_success(text) for rule in self._rules for text in rule.reply)
        self.shares = tuple(rule for rule in self._rules if rule.trigger.share)
        """Those whose trigger is a share: where there are any, every answer is noted."""

    def __repr__(self) -> str:
        return f"Rules({[rule.name or rule.reply for rule in self._rules]})"

    def __iter__(self) -> Iterator[ResponseRule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def match(self, stage: Stage, result: Reply | Failure) -> ResponseRule | None:
        """The rule that this answer calls up, if any."""
        if isinstance(result, Reply):
            if result.code < 400 and not self.may_match_success:
                return None
        elif not result.kind.is_observed:
            return None
        if not self._rules:
            return None
        text = pattern.text_of(result)
        key = (stage, text)
        try:
            return self._memory[key]
        except KeyError:
            pass
        is_success = isinstance(result, Reply) and result.code < 400
        found = next((rule for rule in self._rules if matches(rule, stage, text, is_success=is_success)), None)
        if len(self._memory) >= REMEMBERED:
            del self._memory[next(iter(self._memory))]  # the oldest: good enough, and hits cost nothing
        self._memory[key] = found
        return found


def rules_for(config: Config, vmta_name: str, provider: str) -> Rules:
    """The rules for the sites of one provider ("" for a site that is none's) in one VMTA, strongest first."""
    return Rules(rule for rule in all_rules(config, vmta_name) if rule.provider in ("", provider))


def provider_of(config: Config, site: str) -> str:
    """The provider whose site it is, "" if it is none's."""
    name = site.removesuffix(ROLLUP)
    return name if name != site and name in config.providers else ""


def all_rules(config: Config, vmta_name: str) -> tuple[ResponseRule, ...]:
    """Every rule that holds at some site of a VMTA, strongest first."""
    vmta = config.vmtas.get(vmta_name)
    return (*(vmta.responses if vmta else ()), *config.responses)


def matches(rule: ResponseRule, stage: Stage | None, text: str, *, is_success: bool = False) -> bool:
    """Whether a rule by itself matches a text at a stage (None: nobody knows; then only a rule for all stages can)."""
    if rule.stages and stage not in rule.stages:
        return False
    sources = [text for text in rule.reply if pattern.may_match_success(text)] if is_success else rule.reply
    return any(pattern.compiled(source).is_in(text) for source in sources)


def apply(policy: DomainPolicy, changes: Iterable[Change]) -> DomainPolicy:
    """The policy with the changes of a rule in force. A factor makes a limit stricter, never looser: its result is
    at least the floor, and at most what it was; of what has no limit the floor is the limit."""
    fields: dict[str, Any] = {}
    for change in changes:
        if change.factor:
            fields[change.field] = _scaled(change, fields.get(change.field, getattr(policy, change.field)))
        else:
            fields[change.field] = change.value
    return msgspec.structs.replace(policy, **fields) if fields else policy


def _scaled(change: Change, value: Any) -> Any:
    floor = change.floor
    if isinstance(value, Rate):
        count = max(value.count * change.factor, floor.count * value.period / floor.period)
        if math.isinf(count):
            return floor
        count = min(count, value.count)
        return Rate(count, value.period) if count >= 1 else Rate(1.0, value.period / count)
    if value == 0 and change.field in _UNLIMITED_AT_ZERO:
        return floor
    return min(value, max(floor, math.floor(value * change.factor)))
