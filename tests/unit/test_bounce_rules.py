"""The shipped rules for bounce categories: what they make of replies that servers all over give."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path

import pytest

from spoolmta import bounce, config, lint
from spoolmta.model import BounceRule

SHARED = Path(os.environ.get("SPOOLMTA_SHARED", Path(__file__).parents[2].parent / "shared"))
LABELLED = SHARED / "data" / "bounce" / "labelled.csv"
WRITTEN_DOWN = Path(__file__).parents[1] / "support" / "replies.txt"
CLASSIFIER = bounce.Classifier()


def category(line: str) -> str:
    rule = lint.rule_of(CLASSIFIER, bounce.reply_in(line))
    return rule.category if rule else "other"


def written_down() -> list[tuple[str, list[str]]]:
    """Replies, and what is right for each: the categories before the tab, and any behind the reply."""
    found = []
    for line in WRITTEN_DOWN.read_text().splitlines():
        if line and not line.startswith("#"):
            accepted, _, reply = line.partition("\t")
            words = reply.split(" ")
            right = accepted.split()
            while words[-1] in bounce.CATEGORIES:
                right.append(words.pop())
            found.append((" ".join(words), right))
    return found


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("550 5.1.1 The mailbox you wrote to does not exist here", "bad-mailbox"),
        ("550 5.2.1 The account of this customer has been disabled", "inactive-mailbox"),
        ("554 5.7.1 Service unavailable; client blocked using some.list.example", "spam-related"),
        ("550 5.7.26 neither SPF nor DKIM passed. To protect our users from spam, it was blocked", "policy-related"),
        ("550 5.1.8 Sender address rejected: Domain not found", "invalid-sender"),
        ("450 4.4.2 timed out waiting for you", "no-answer-from-host"),
        ("550 5.1.1 sorry", "bad-mailbox"),
        ("450 4.3.0 sorry", "bad-configuration"),
        ("550 5.7.1 <spam-blacklist@example.org>: no such user, see http://spam.example/virus", "bad-mailbox"),
        ("550 sorry", "other"),
        ("250 2.0.0 spam queued", "other"),
    ],
)
def test_a_reply_is_filed_by_its_words_and_then_by_its_code(line: str, wanted: str) -> None:
    assert category(line) == wanted


def test_replies_in_many_languages_are_filed_right() -> None:
    known = written_down()
    wrong = [f"{category(reply)}: {reply}" for reply, right in known if category(reply) not in right]
    assert len(known) > 600
    assert len(wrong) <= len(known) / 100, wrong


def test_no_shipped_rule_is_dead_shadowed_or_without_a_sample() -> None:
    assert [str(finding) for finding in lint.check_bounces(CLASSIFIER)] == []
    assert all(rule.sample for rule in CLASSIFIER.rules)


def test_the_shipped_rules_have_the_seventeen_names_and_no_others() -> None:
    assert {rule.category for rule in CLASSIFIER.rules} | {"other"} == set(bounce.CATEGORIES)
    assert config.shipped_bounces().lists["mailbox"]


def test_a_rule_behind_one_that_takes_everything_is_found() -> None:
    all_of_them = BounceRule(category="mine", pattern=("",), file="own.toml", line=7)
    findings = lint.check_bounces(bounce.Classifier((all_of_them,)))
    assert len(findings) == len(CLASSIFIER.rules)
    assert all("shadowed by own.toml:7" in str(finding) and finding.is_proven for finding in findings)


def test_a_rule_that_matches_nothing_is_found() -> None:
    own = (
        BounceRule(category="a", pattern=("never said",), file="own.toml", line=1),
        BounceRule(category="b", pattern=("xyzzy",), sample=("550 plugh",), file="own.toml", line=5),
        BounceRule(category="c", pattern=("frobbed",), sample=("550 frobbed",), file="own.toml", line=9),
    )
    found = lint.check_bounces(bounce.Classifier(own), [bounce.reply_in("550 5.1.1 User unknown")])
    assert [str(finding) for finding in found if finding.rule in own] == [
        'own.toml:1: unproven: none of the samples matches it; give it one as sample = "550 ..."',
        'own.toml:5: dead: it does not match its own sample "550 plugh"',
        "own.toml:9: decides none of the 1 replies",
    ]


@pytest.mark.skipif(not LABELLED.exists(), reason="the labelled replies are not here")
def test_real_replies_are_filed_right_also_the_rare_kinds() -> None:
    with LABELLED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds: defaultdict[str, list[bool]] = defaultdict(list)
    for row in rows:
        kinds[row["kind"]].append(category(row["reply"]) in row["accepted"].split())
    assert sum(map(sum, kinds.values())) / len(rows) >= 0.92
    assert sum(sum(hits) / len(hits) for hits in kinds.values()) / len(kinds) >= 0.88
    assert sum(category(row["reply"]) == "other" for row in rows) / len(rows) <= 0.04
