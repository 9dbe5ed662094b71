from __future__ import annotations

import time

import pytest

from spoolmta import pattern
from spoolmta.model import Failure, FailureKind, Reply


def test_case_does_not_matter_unless_the_pattern_says_so() -> None:
    assert pattern.compiled("too many").is_in("421 Too Many connections")
    assert not pattern.compiled("(?-i)too many").is_in("421 Too Many connections")
    assert pattern.compiled("(?-i)Too Many").is_in("421 Too Many connections")


@pytest.mark.parametrize(
    "source",
    [
        "(a+)+",
        r"(?:\w+ )*x",
        "((a|b+)c){2,5}",
        "(?P<x>a*)+b",
        "(?i:a+){3}",
        "((a+)b)+",
        r"(?:x{2,})+y",
        r"([^)]*,)+",
        "(a|ab|b)*c",
        "(a?b?)*c",
        "(?:a?){30}c",
    ],
)
def test_a_pattern_that_may_search_for_ever_is_refused(source: str) -> None:
    with pytest.raises(pattern.BadPattern, match="for ever"):
        pattern.compiled(source)


@pytest.mark.parametrize(
    "source",
    [
        r"(?:\w++ )*a",
        "(?>a+)+b",
        "(a+)?b",
        "(?:a+)++b",
        r"\(a+\)+b",
        "[]a+]+(b)+",
        "([)+]b)+",
        "a{2}(a)+",
        r"(?:\.?\d{1,3}){0,3}a",
        "(?:a|b)++",
        "(?:a|b)?a",
        "(?>(?:a|b))+a",
    ],
)
def test_a_pattern_whose_repeats_cannot_give_back_is_fine(source: str) -> None:
    assert pattern.compiled(source).is_in("421 aaa)b (a)b a,b ]ab")


def test_many_endless_repeats_make_the_text_shorter_and_too_many_are_refused() -> None:
    assert pattern.compiled("a.*b").limit == pattern.MAX_TEXT
    assert pattern.compiled("^a.*b.*c").limit == pattern.MAX_TEXT
    assert pattern.compiled("a.*b.*c").limit == pattern.SHORT_TEXT
    assert pattern.compiled("^a.*b|c.*d").limit == pattern.SHORT_TEXT
    assert pattern.compiled("a.{0,80}b.{0,80}c").limit == pattern.MAX_TEXT
    for source in ("a.*b.*c.*d", "a.*b.*c.{0,80}d", "a?" * 30):
        with pytest.raises(pattern.BadPattern, match="too many endless"):
            pattern.compiled(f"x{source}")


@pytest.mark.parametrize("source", ["a.*b.*c", "^a.*b.*a.*c", "a.{0,80}b.{0,80}c", "a.*c", "^(?=.*a.*c).*x"])
def test_what_is_let_through_is_never_slow(source: str) -> None:
    started = time.process_time()
    assert not pattern.compiled(source).is_in("ab" * 1000)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("(", "no regular expression"),
        ("", "matches everything"),
        ("a|", "matches everything"),
        ("[[]TS03", "bracket"),
        ("x{9999999999}", "no"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(source: str, what: str) -> None:
    with pytest.raises(pattern.BadPattern, match=what):
        pattern.compiled(source)


def test_the_text_of_a_reply_is_its_code_and_its_lines_joined() -> None:
    assert pattern.text_of(Reply(421, ("too many", "connections"))) == "421 too many connections"
    assert pattern.text_of(Failure(FailureKind.REFUSED, "cannot connect to 192.0.2.1: Connection refused")) == (
        "cannot connect to 192.0.2.1: Connection refused"
    )
    assert len(pattern.text_of(Reply(500, ("x" * 9000,)))) == pattern.MAX_TEXT


def test_an_enhanced_code_that_every_line_repeats_does_not_cut_sentences() -> None:
    lines = ("4.7.28 [192.0.2.1] Our system has detected an unusual rate of", "4.7.28 unsolicited mail originating")
    assert pattern.text_of(Reply(421, lines)).endswith("an unusual rate of unsolicited mail originating")
    lines = ("4.7.28 192.0.2.1", "4.16.55.1 is a version", "and 4.7.28")
    assert pattern.text_of(Reply(421, lines)) == "421 4.7.28 192.0.2.1 4.16.55.1 is a version and 4.7.28"
