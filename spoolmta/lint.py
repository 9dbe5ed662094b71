"""Which rules, for responses or bounce categories, can never do anything, found by running them over sample replies.

A rule stands with samples in the comment directly above it:

    # sample: 421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred
    # sample at greeting: 554 too many connections
    [[response]]

A rule is dead where it matches none of its own samples (or, without own ones, none of all samples), and shadowed where
every sample that it matches is taken by a rule before it. A list in the order in which rules are tried is one
`Rules`; a rule that stands in several lists (a global one, behind each provider's) needs only be alive in one.
A `[[bounce]]` has its samples in a key, `sample`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from spoolmta import bounce, pattern
from spoolmta.bounce import Classifier
from spoolmta.model import BounceRule, Config, Reply, ResponseRule, Stage
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

    rule: ResponseRule | BounceRule
    text: str
    is_proven: bool = True
    """Not where it only did nothing with the replies that were there."""

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


def check_bounces(classifier: Classifier, real: Sequence[Reply] = ()) -> list[Finding]:
    """What is dead or shadowed among rules for bounce categories, and what decides none of some real replies."""
    known = [(rule, bounce.reply_in(text)) for rule in classifier.rules for text in rule.sample]
    deciding = {id(rule_of(classifier, reply)) for reply in real}
    found = []
    for rule in classifier.rules:
        own = [reply for owner, reply in known if owner is rule]
        if text := _judge_bounce(classifier, rule, own, [*[reply for _, reply in known], *real]):
            found.append(Finding(rule, text))
        elif real and id(rule) not in deciding:
            found.append(Finding(rule, f"decides none of the {len(real)} replies", is_proven=False))
    return found


def rule_of(classifier: Classifier, reply: Reply) -> BounceRule | None:
    """The rule that decides over a reply."""
    return classifier.rule(bounce.status_of(reply), pattern.text_of(reply))


def _judge_bounce(classifier: Classifier, rule: BounceRule, own: list[Reply], known: list[Reply]) -> str:
    missed = [reply for reply in own if not classifier.matches(rule, reply)]
    if missed:
        return f'dead: it does not match its own sample "{missed[0]}"'
    matched = own or [reply for reply in known if classifier.matches(rule, reply)]
    if not matched:
        return 'unproven: none of the samples matches it; give it one as sample = "550 ..."'
    taken = [(reply, rule_of(classifier, reply)) for reply in matched]
    others = [(reply, first) for reply, first in taken if first is not None and first is not rule]
    if others and (own or len(others) == len(taken)):
        reply, first = others[0]
        return f'shadowed by {first.file}:{first.line}, which comes first and takes "{reply}"'
    return ""


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
