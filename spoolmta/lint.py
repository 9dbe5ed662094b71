"""Which response rules can never do anything, found by running them over sample replies.

A rule stands with samples in the comment directly above it:

    # sample: 421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred
    # sample at greeting: 554 too many connections
    [[response]]

A rule is dead where it matches none of its own samples (or, without own ones, none of all samples), and shadowed where
every sample that it matches is taken by a rule before it. A list in the order in which rules are tried is one
`Rules`; a rule that stands in several lists (a global one, behind each provider's) needs only be alive in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from spoolmta import pattern
from spoolmta.model import Config, ResponseRule, Stage
from spoolmta.response import matches, rules_for

_SAMPLE = re.compile(r"#\s*sample(?: at (\w+))?:\s*(.*\S)\s*")
_HEADER = re.compile(r"\[\[(?:.*\.)?\s*response\s*\]\]\s*(?:#.*)?")
_STAGES = {stage.name.lower(): stage for stage in Stage}


class Sample(msgspec.Struct, frozen=True):
    """One reply as a text. `line` is that of the `[[response]]` it belongs to (0: none); `stage` None: any."""

    text: str
    stage: Stage | None = None
    file: str = ""
    line: int = 0


class Finding(msgspec.Struct, frozen=True):
    """What is wrong with one rule."""

    rule: ResponseRule
    text: str

    def __str__(self) -> str:
        return f"{self.rule.file}:{self.rule.line}: {self.text}"


def samples(text: str, file: str) -> Iterator[Sample]:
    """The samples in a configuration file's text; those in a comment that is not directly above a rule are left out."""
    waiting: list[tuple[str, Stage | None]] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if found := _SAMPLE.fullmatch(stripped):
            waiting.append((found[2], _STAGES.get(found[1] or "")))
        elif _HEADER.fullmatch(stripped):
            yield from (Sample(reply, stage, file, number) for reply, stage in waiting)
            waiting = []
        elif not stripped.startswith("#"):
            waiting = []


def first_match(rules: Iterable[ResponseRule], sample: Sample) -> ResponseRule | None:
    """The rule that a sample calls up. A sample without a stage calls up rules for all stages only."""
    is_success = sample.text[:1] in ("2", "3")
    text = sample.text[: pattern.MAX_TEXT]
    return next((rule for rule in rules if matches(rule, sample.stage, text, is_success=is_success)), None)


def lint(lists: Iterable[Sequence[ResponseRule]], known: Sequence[Sample]) -> list[Finding]:
    """What is dead or shadowed in lists of rules as they are tried, in the order of the rules; without any sample
    that concerns it a rule cannot be judged, and is said to be unproven."""
    verdicts: dict[int, str] = {}
    order: dict[int, ResponseRule] = {}
    for rules in lists:
        for rule in rules:
            order.setdefault(id(rule), rule)
            if verdicts.get(id(rule)) != "":
                verdicts[id(rule)] = _judge(rule, rules, known)
    return [Finding(rule, verdicts[key]) for key, rule in order.items() if verdicts[key]]


def check(config: Config, texts: Mapping[str, str]) -> list[Finding]:
    """What is dead or shadowed in a configuration; `texts` are the files that rules stand in, by the name that the
    rules have for them."""
    known = [sample for file, text in texts.items() for sample in samples(text, file)]
    owners = {id(vmta.responses): name for name, vmta in config.vmtas.items() if vmta.responses}
    lists = [
        tuple(rules_for(config, vmta_name, provider))
        for vmta_name in ("", *owners.values())
        for provider in ("", *config.providers)
    ]
    return lint(lists, known)


def _judge(rule: ResponseRule, rules: Sequence[ResponseRule], known: Sequence[Sample]) -> str:
    stage = rule.stages[0] if rule.stages else None
    known = [sample if sample.stage else msgspec.structs.replace(sample, stage=stage) for sample in known]
    own = [sample for sample in known if sample.line and (sample.file, sample.line) == (rule.file, rule.line)]
    missed = [sample for sample in own if first_match([rule], sample) is None]
    if missed:
        return f'dead: it does not match its own sample "{missed[0].text}"'
    matched = own or [sample for sample in known if first_match([rule], sample) is rule]
    if not matched:
        return "unproven: none of the samples matches it; write one above it as # sample: 421 ..."
    taken = [(sample, first_match(rules, sample)) for sample in matched]
    others = [(sample, first) for sample, first in taken if first is not None and first is not rule]
    if others and (own or len(others) == len(taken)):
        sample, first = others[0]
        return f'shadowed by {first.file}:{first.line}, which comes first and takes "{sample.text}"'
    return ""
