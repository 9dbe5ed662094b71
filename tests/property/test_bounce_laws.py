"""What holds of bounce categories, whatever a receiver says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolmta import bounce, lint, pattern, wording
from spoolmta.model import BounceRule, Reply

SHIPPED = bounce.Classifier()
SAMPLES = [text for rule in SHIPPED.rules for text in rule.sample]
CATCHES = (BounceRule(category="mine", pattern=("",)),)
MINE = (
    BounceRule(category="mine", pattern=("teapot",)),
    BounceRule(category="mine", words=("coffee .. pot",)),
    BounceRule(category="mine", names=("teapo* example",)),
    BounceRule(category="mine", status=("x.9.9",)),
)
OWN, ALL_MINE = bounce.Classifier(MINE), bounce.Classifier(CATCHES)

samples = st.sampled_from(SAMPLES)
codes = st.sampled_from((421, 450, 451, 452, 500, 550, 552, 554))
anything = st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("utf-8", "replace"))
statuses = st.tuples(st.sampled_from("45"), st.integers(0, 9), st.integers(0, 999)).map(lambda s: ".".join(map(str, s)))


def category(classifier: bounce.Classifier, line: str) -> str:
    reply = bounce.reply_in(line)
    return classifier.category(bounce.status_of(reply), pattern.text_of(reply))


@given(statuses, anything | st.lists(samples | anything, max_size=4).map(" ".join))
def test_any_text_has_one_of_the_categories_and_always_the_same(status: str, text: str) -> None:
    found = SHIPPED.category(status, text)
    assert found in bounce.CATEGORIES
    assert bounce.Classifier.category(SHIPPED, status, text) == found
    rule = SHIPPED.rule(status, text)
    assert (rule.category if rule else "other") == found


@given(statuses, anything)
def test_the_operators_rules_always_win(status: str, text: str) -> None:
    assert ALL_MINE.category(status, text) == "mine"


@given(samples, st.sampled_from(("teapot", "the coffee and tea pot", "https://www.teapots.example/a", "(#5.9.9)")))
def test_a_rule_of_the_operators_wins_where_it_holds_and_the_others_stay(sample: str, said: str) -> None:
    code, _, text = sample.partition(" ")
    if said.startswith("(#"):
        assert OWN.category("5.9.9", sample) == "mine"
    else:
        assert category(OWN, f"{code} {said} {text}") == "mine"
    assert category(OWN, sample) == category(SHIPPED, sample)


@given(
    samples,
    st.sampled_from(("<joe@example.com>", "[192.0.2.1]", "<mx.spam.example[192.0.2.7]>:", "(joe@virus.example)")),
    st.sampled_from(("[DB5EUR03FT012.eop-EUR03.prod.protection.outlook.com]", "q12-20020a05x", "- gsmtp", "", "\t\r ")),
    st.booleans(),
)
def test_addresses_hosts_ids_and_case_do_not_change_the_category(sample: str, head: str, tail: str, loud: bool) -> None:
    reply = bounce.reply_in(sample)
    status, text = bounce.status_of(reply), reply.text
    noisy = f"{reply.code} {head} {text.upper() if loud else text} {tail}"
    assert SHIPPED.category(status, noisy) == SHIPPED.category(status, sample), noisy


@given(samples, st.integers(1, 6))
def test_how_a_reply_is_broken_into_lines_does_not_matter(sample: str, size: int) -> None:
    whole = bounce.reply_in(sample)
    words = whole.text.split(" ")
    lines = tuple(" ".join(words[start : start + size]) for start in range(0, len(words), size))
    broken = Reply(whole.code, lines)
    assert SHIPPED.category(bounce.status_of(whole), pattern.text_of(broken)) == category(SHIPPED, sample)


@given(codes, statuses, anything)
def test_the_class_follows_the_code(code: int, status: str, text: str) -> None:
    assert bounce.status_of(Reply(code, (f"{status} {text}",)))[0] == str(code)[0]


@given(st.lists(samples | anything, min_size=1, max_size=5), statuses)
def test_what_was_said_before_changes_nothing(texts: list[str], status: str) -> None:
    fresh = bounce.Rules(SHIPPED.rules[:40], {**SHIPPED._lists})
    before = [fresh.find(status, text) for text in texts]
    assert [fresh.find(status, text) for text in reversed(texts)] == before[::-1]


@given(samples)
def test_the_index_finds_what_a_rule_by_itself_matches(sample: str) -> None:
    reply = bounce.reply_in(sample)
    rule = lint.rule_of(SHIPPED, reply)
    first = next((each for each in SHIPPED.rules if SHIPPED.matches(each, reply)), None)
    assert rule is first


HUGE = ["a" * 3_000_000, "mailbox " * 400_000, "<" * 1_000_000, "550 " * 500_000, "a@" * 900_000, "." * 1_000_000]


@pytest.mark.parametrize("text", HUGE, ids=["words", "phrases", "brackets", "codes", "addresses", "dots"])
def test_of_a_reply_of_megabytes_only_the_beginning_is_looked_at(text: str) -> None:
    reply = bounce.reply_in(f"550 {text}")
    assert SHIPPED.category(bounce.status_of(reply), pattern.text_of(reply)) in bounce.CATEGORIES
    assert sum(map(len, wording.tokens_of(text))) <= wording.MAX_TEXT * 2
