from __future__ import annotations

import pytest

from spoolmta import wording

LISTS = {"box": ("mailbox", "postfach")}


def words_of(text: str) -> str:
    return "".join(wording.words_in(token) for token in wording.tokens_of(text) if not wording.is_name(token)) + " "


def found(source: str, text: str) -> bool:
    return wording.phrase(source, LISTS).is_in(words_of(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("550 5.1.1 <joe@example.com>: User Unknown!", " 550 5 1 1 user unknown "),
        ("it isn't in the Bo\u00eete \u2014 aux lettres", " it isnt in the boite aux lettres "),
        ("\u00c4nderung stra\u00dfe \u0141\u00f3d\u017a", " anderung strasse lodz "),
        ("e-mail non-existent user's", " email nonexistent user s "),
        ("rejected. To best protect our users from spam, it was. Bye", " rejected bye "),
        ("blocked, see https://spam.example/x?y=1 or mx.spam.example.com[192.0.2.1]", " blocked see or "),
        ("a\x1b[31m\x00b", " a 31m b "),
        ("", " "),
    ],
)
def test_words_are_what_is_left_without_noise(text: str, words: str) -> None:
    assert words_of(text) == words


def test_hosts_and_links_are_names() -> None:
    names = [token for token in wording.tokens_of("see zen.spamhaus.org or http://a.b/C") if wording.is_name(token)]
    assert wording.labels_of(names) == ["zen", "spamhaus", "org", "http", "a", "b", "c"]


@pytest.mark.parametrize(
    ("source", "text", "is_there"),
    [
        ("mailbox full", "Mailbox FULL.", True),
        ("mailbox full", "mailboxes fully", False),
        ("mailbox full", "mailbox is full", False),
        ("mailbox is? full", "mailbox full", True),
        ("mailbox .. full", "mailbox of this good old man is full", True),
        ("mailbox .. full", "mailbox one two three four five six seven full", False),
        ("{box}|inbox voll", "Das Postfach voll", True),
        ("disab* account", "DISABLED account", True),
        ("\u00fcberf\u00fcllt", "ist \u00dcBERF\u00dcLLT", True),
        ("\u5df2\u6ee1", "\u90ae\u7bb1\u5df2\u6ee1\u4e86", True),
    ],
)
def test_a_phrase_is_words_in_a_row(source: str, text: str, is_there: bool) -> None:
    assert found(source, text) is is_there


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (" ", "there is no word in it"),
        ("full ..", "stands between words, at most 3 times"),
        ("a .. b .. c .. d .. e", "stands between words, at most 3 times"),
        ("{nothing} full", "there is no list of words {nothing}; there are box"),
        ("foo-bar", '"foo-bar" is no word'),
        ("ab* x", "at least 4 letters"),
        ("a|b? c", 'stands alone, and not as in "a|b?"'),
        ("a? b?", "every word in it may be missing"),
        ("| full", "is no word"),
    ],
)
def test_a_bad_phrase_says_why(source: str, why: str) -> None:
    with pytest.raises(wording.BadPhrase) as error:
        wording.phrase(source, LISTS)
    assert why in str(error.value)
