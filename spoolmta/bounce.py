"""What a reply means: the enhanced status code, its text, and PowerMTA's bounce category.

A category says what the sender of the mail can do about it: drop the address, wait, clean up the content, look after
the reputation. It is given by rules in order, the operator's before those of `bounce.toml`; the first that holds wins.

A reply is not held against every rule. Its words are looked up in an index that says which phrases they can be
part of; its status says which rules are for it. What is left, one or two, is tried in order. So there
may be any number of rules, and one reply costs some 15 microseconds, also if nobody has said it before.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from spoolmta import config, pattern, wording
from spoolmta.model import BounceRule, Config, Failure, FailureKind, Reply
from spoolmta.pattern import Pattern
from spoolmta.wording import Phrase

CATEGORIES = (
    "bad-configuration",
    "bad-connection",
    "bad-domain",
    "bad-mailbox",
    "content-related",
    "inactive-mailbox",
    "invalid-sender",
    "message-expired",
    "no-answer-from-host",
    "other",
    "policy-related",
    "protocol-errors",
    "quota-issues",
    "relaying-issues",
    "routing-errors",
    "spam-related",
    "virus-related",
)

OTHER = "other"

# At the start of a line (RFC 2034), perhaps behind a repeated basic code; or where others put it: `(#5.1.1)`.
_STATUS_FIRST = re.compile(r"\s*(?:[245][0-9]{2}[ -])?([245])\.([0-9]{1,3})\.([0-9]{1,3})(?![0-9.])")
_STATUS_INSIDE = re.compile(r"(?:[\s(\[-]|\(?#)([245])\.([0-7])\.([0-9]{1,3})(?![\w.]*[0-9])")


def status_of(reply: Reply) -> str:
    """The enhanced status code of a reply, its class made that of the 3-digit code, which decides (as Postfix does).

    A 4yz reply that says 5.1.1 is a deferral. Without a code in the text: x.0.0.
    """
    kind = {2: "2", 5: "5"}.get(reply.code // 100, "4")
    for line in reply.lines:
        if found := _STATUS_FIRST.match(line):
            return f"{kind}.{int(found[2])}.{int(found[3])}"
    found = _STATUS_INSIDE.search(reply.text)
    if found and found[1] == kind:
        return f"{kind}.{int(found[2])}.{int(found[3])}"
    return f"{kind}.0.0"


_ANY_REPLY = re.compile(r"(?:.{0,300}?[^0-9a-z.-])?([245][0-9]{2})[ -](?=.*[a-z])(.*)", re.IGNORECASE | re.DOTALL)


def reply_in(line: str) -> Reply:
    """The reply in a line of text: `550 5.1.1 no such user`, also behind other words, as accounting files and DSNs have
    it. Without a code it is a refusal, for good unless an enhanced code says otherwise."""
    text = line.strip()
    if text[:1] in "245" and text[1:3].isdecimal() and text[3:4] in " -" and text[:3].isascii():
        return Reply(int(text[:3] or "550"), (text[4:],))
    if found := _ANY_REPLY.match(text[: pattern.MAX_TEXT]):
        return Reply(int(found[1]), (found[2],))
    return Reply(450 if text.startswith("4.") else 550, (text,))


REMEMBERED = 1024
"""Replies whose category a `Classifier` remembers, and statuses: receivers repeat themselves."""
VOCABULARY = 2048
"""Words that are remembered with what they may be part of."""


class Unit:
    """What a rule looks for in one place: a phrase in the words or in the names, a pattern in the text, or nothing."""

    __slots__ = ("_is_for_names", "_pattern", "_phrase", "rule")

    def __init__(self, rule: BounceRule, phrase: Phrase | None, pattern: Pattern | None, is_for_names: bool) -> None:
        self.rule = rule
        self._phrase, self._pattern, self._is_for_names = phrase, pattern, is_for_names

    def holds(self, text: str, words: str, names: str) -> bool:
        if self._phrase is not None:
            return self._phrase.is_in(names if self._is_for_names else words)
        return self._pattern is None or self._pattern.is_in(text)


class Rules:
    """Ordered rules, with an index of what they look for. A phrase or pattern of a rule is a unit: a bit in a set of
    units. A phrase can only be there where a word of each of its groups is, and the two rarest are looked up: words
    of the one have the unit's bit in the lower half of their set, words of the other in the upper half."""

    def __init__(self, rules: Iterable[BounceRule], lists: Mapping[str, tuple[str, ...]]) -> None:
        self._units: list[Unit] = []
        self._always, self._foreign = 0, 0
        self._by_word: dict[str, int] = {}
        self._by_beginning: dict[str, int] = {}
        self._beginnings: set[str] = set()
        self._by_token: dict[str, tuple[str, int]] = {}
        self._by_status: dict[str, int] = {}
        phrases: list[tuple[int, str, Phrase]] = []
        for rule in rules:
            for prefix, sources in (("", rule.words), (NAME, rule.names)):
                for source in sources:
                    found = wording.phrase(source, lists)
                    phrases.append((len(self._units), prefix, found))
                    self._units.append(Unit(rule, found, None, bool(prefix)))
            for source in rule.pattern:
                self._always |= 1 << len(self._units)
                self._units.append(Unit(rule, None, pattern.compiled(source, may_be_empty=True), False))
            if not (rule.words or rule.names or rule.pattern):
                self._always |= 1 << len(self._units)
                self._units.append(Unit(rule, None, None, False))
        self._half = len(self._units)
        self._always |= self._always << self._half
        self._index(phrases)

    def __repr__(self) -> str:
        return f"Rules({len(self._units)} units)"

    def _index(self, phrases: list[tuple[int, str, Phrase]]) -> None:
        uses = Counter([prefix + word for _, prefix, found in phrases for group in found.groups for word in group])
        for number, prefix, found in phrases:
            if not found.groups:
                self._foreign |= (1 | 1 << self._half) << number
                continue
            groups = [[prefix + word for word in group] for group in found.groups]
            if prefix and any(word.endswith("*") for group in groups for word in group):
                self._always |= (1 | 1 << self._half) << number  # rare, and names are looked up as they are
                continue
            groups.sort(key=lambda group: sum([uses[word] for word in group]))
            for group, bit in zip(groups, (1 << number, 1 << number + self._half), strict=False):
                for word in group:
                    if word.endswith("*"):
                        word = word[:-1]
                        self._beginnings.add(word[: wording.STEM])
                        self._by_beginning[word] = self._by_beginning.get(word, 0) | bit
                    else:
                        self._by_word[word] = self._by_word.get(word, 0) | bit
            if len(groups) == 1:
                self._always |= 1 << number + self._half

    def find(self, status: str, text: str) -> BounceRule | None:
        """The first rule that holds for a reply with this status and text, as `pattern.text_of` gives it."""
        units, spoken, names = self._always, [], []
        by_token = self._by_token
        for token in wording.tokens_of(text):
            known = by_token.get(token)
            if known is None:
                if "@" in token:
                    continue
                if "." in token and wording.is_name(token):
                    names.append(token)
                    continue
                known = self._learn(token)
            said, possible = known
            spoken.append(said)
            if possible:
                units |= possible
        labels = wording.labels_of(names) if names else []
        for label in labels:
            units |= self._by_word.get(NAME + label, 0)
        words, joined = f"{''.join(spoken)} ", f" {' '.join(labels)} "
        if not words.isascii():
            units |= self._foreign
        units &= (units >> self._half) & self._for_status(status)
        while units:
            number = (units & -units).bit_length() - 1
            unit = self._units[number]
            if unit.holds(text, words, joined):
                return unit.rule
            units &= units - 1
        return None

    def _learn(self, token: str) -> tuple[str, int]:
        """The words of a token and their units; remembered, unless it may be somebody's id."""
        words = wording.words_in(token)
        known = words, self._units_of(words.split())
        if len(token) < LONG and (len(token) < SHORT or not HAS_DIGIT.search(token)):
            if len(self._by_token) >= VOCABULARY:
                self._by_token.clear()
            self._by_token[token] = known
        return known

    def _units_of(self, words: list[str]) -> int:
        units = 0
        for word in words:
            units |= self._by_word.get(word, 0)
            if word[: wording.STEM] in self._beginnings:
                for end in range(wording.STEM, len(word) + 1):
                    units |= self._by_beginning.get(word[:end], 0)
        return units

    def _for_status(self, status: str) -> int:
        known = self._by_status.get(status)
        if known is None:
            if len(self._by_status) >= REMEMBERED:
                self._by_status.clear()
            known = 0
            for number, unit in enumerate(self._units):
                statuses = unit.rule.status
                if not statuses or any(_is_like(status, wanted) for wanted in statuses):
                    known |= 1 << number
            self._by_status[status] = known
        return known


LONG, SHORT, HAS_DIGIT = 30, 8, re.compile("[0-9]")
NAME = "@"
"""Before the words of names, in one index with the others."""


def _is_like(status: str, wanted: str) -> bool:
    """Whether a status is the one in a rule, where an x is any number: x.1.1, 5.7.x."""
    return all(part in ("x", number) for number, part in zip(status.split("."), wanted.split("."), strict=True))


class Classifier:
    """Tells categories, by the operator's rules and then by the shipped ones."""

    def __init__(self, own: tuple[BounceRule, ...] = ()) -> None:
        shipped = config.shipped_bounces()
        self.rules = (*own, *shipped.rules)
        self._own = Rules(own, shipped.lists) if own else None
        self._all = Rules(self.rules, shipped.lists)
        self._lists = shipped.lists
        self._known: dict[tuple[str, str], str] = {}

    def __repr__(self) -> str:
        return f"Classifier({len(self.rules)} rules)"

    def matches(self, rule: BounceRule, reply: Reply) -> bool:
        """Whether a rule holds for a reply, whatever others say."""
        return Rules([rule], self._lists).find(status_of(reply), pattern.text_of(reply)) is not None

    def rule(self, status: str, text: str) -> BounceRule | None:
        """The rule that decides; none does for a success."""
        return None if status.startswith("2") else self._all.find(status, text)

    def category(self, status: str, text: str) -> str:
        """The category for a reply: `status` as `status_of` gives it, `text` as `pattern.text_of` does."""
        found = self._known.get((status, text))
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            rule = self.rule(status, text)
            found = self._known[status, text] = rule.category if rule else OTHER
        return found

    def category_of_failure(self, failure: Failure) -> str:
        """The category for trouble that is no reply. Its kind is known, so only the operator's rules read its text."""
        status, category = _FAILURES[failure.kind]
        rule = self._own.find(status, failure.text) if self._own else None
        return rule.category if rule else category


def warnings(rules: Iterable[BounceRule]) -> list[str]:
    """Categories of the operator's rules that are probably mistyped, as `file:line: ...`."""
    found = []
    for rule in rules:
        if rule.category not in CATEGORIES:
            for meant in difflib.get_close_matches(rule.category, CATEGORIES, 1, 0.85):
                text = f'"{rule.category}" is a category of your own; was "{meant}" meant?'
                found.append(f"{rule.file}:{rule.line}: bounce.category: {text}")
    return found


def classifier(configuration: Config) -> Classifier:
    """The one of a configuration."""
    return _with(configuration.bounces)


@functools.lru_cache(maxsize=2)
def _with(own: tuple[BounceRule, ...]) -> Classifier:
    """Remembered by the rules themselves: a reload that does not change them costs a thousand processes nothing."""
    return Classifier(own)


_FAILURES: dict[FailureKind, tuple[str, str]] = {
    FailureKind.TIMEOUT: ("4.4.1", "no-answer-from-host"),
    FailureKind.REFUSED: ("4.4.1", "no-answer-from-host"),
    FailureKind.UNREACHABLE: ("4.4.1", "no-answer-from-host"),
    FailureKind.LOST: ("4.4.2", "bad-connection"),
    FailureKind.PROTOCOL: ("4.5.0", "protocol-errors"),
    FailureKind.LOCAL: ("4.3.5", "bad-configuration"),
    FailureKind.CONDEMNED: ("5.7.1", "policy-related"),
    FailureKind.DELETED: ("5.7.0", "other"),
    FailureKind.UNBOUND: ("4.3.5", "bad-configuration"),
    FailureKind.DNS_TEMPORARY: ("4.4.3", "routing-errors"),
    FailureKind.NO_DOMAIN: ("5.1.2", "bad-domain"),
    FailureKind.NULL_MX: ("5.1.10", "bad-domain"),
    FailureKind.NO_HOST: ("5.4.4", "routing-errors"),
    FailureKind.EXPIRED: ("4.4.7", "message-expired"),
    FailureKind.UNSENDABLE: ("5.6.7", "content-related"),
    FailureKind.NO_TLS: ("4.7.4", "policy-related"),
    FailureKind.TLS: ("4.7.5", "policy-related"),
    FailureKind.HELD: ("4.7.0", "policy-related"),
    FailureKind.TOO_BIG: ("5.3.4", "content-related"),
    FailureKind.UNCONVERTIBLE: ("5.6.3", "content-related"),
    FailureKind.LOOP: ("5.4.6", "routing-errors"),
    FailureKind.NO_LOGIN: ("4.7.0", "bad-configuration"),
    FailureKind.RETURNED: ("5.0.0", "other"),
}


def status_of_failure(kind: FailureKind) -> str:
    """The enhanced status code for trouble that is no reply."""
    return _FAILURES[kind][0]


_SUBJECTS = {
    "0": "undefined status",
    "1": "other address trouble",
    "2": "other mailbox trouble",
    "3": "other mail system trouble",
    "4": "other network or routing trouble",
    "5": "other protocol trouble",
    "6": "other message content trouble",
    "7": "other security or policy trouble",
}

_DETAILS = {
    "1.1": "bad destination mailbox address",
    "1.2": "bad destination system address",
    "1.3": "bad destination mailbox address syntax",
    "1.4": "destination mailbox address ambiguous",
    "1.5": "destination address valid",
    "1.6": "destination mailbox has moved",
    "1.7": "bad sender's mailbox address syntax",
    "1.8": "bad sender's system address",
    "1.9": "message relayed to a mailer that speaks another protocol",
    "1.10": "domain accepts no mail",
    "2.1": "mailbox disabled",
    "2.2": "mailbox full",
    "2.3": "message too long for this mailbox",
    "2.4": "mailing list expansion failed",
    "3.1": "mail system full",
    "3.2": "system not accepting messages",
    "3.3": "system lacks a needed feature",
    "3.4": "message too big for the system",
    "3.5": "system incorrectly configured",
    "3.6": "requested priority was changed",
    "4.1": "no answer from host",
    "4.2": "bad connection",
    "4.3": "directory server failure",
    "4.4": "unable to route",
    "4.5": "mail system congestion",
    "4.6": "routing loop detected",
    "4.7": "delivery time expired",
    "5.1": "invalid command",
    "5.2": "syntax error",
    "5.3": "too many recipients",
    "5.4": "invalid command arguments",
    "5.5": "wrong protocol version",
    "5.6": "authentication exchange line too long",
    "6.1": "media not supported",
    "6.2": "conversion required and prohibited",
    "6.3": "conversion required but not supported",
    "6.4": "conversion with loss performed",
    "6.5": "conversion failed",
    "6.6": "message content not available",
    "6.7": "addresses outside ASCII not supported",
    "6.8": "UTF-8 reply required but not permitted",
    "6.9": "UTF-8 header cannot be transferred",
    "7.1": "delivery not authorized",
    "7.2": "mailing list expansion prohibited",
    "7.3": "security conversion required but not possible",
    "7.4": "security features not supported",
    "7.5": "cryptographic failure",
    "7.6": "cryptographic algorithm not supported",
    "7.7": "message integrity failure",
    "7.8": "authentication credentials invalid",
    "7.9": "authentication mechanism too weak",
    "7.10": "encryption needed",
    "7.11": "encryption required for this authentication mechanism",
    "7.12": "password transition needed",
    "7.13": "user account disabled",
    "7.14": "trust relationship required",
    "7.15": "priority too low",
    "7.16": "message too big for this priority",
    "7.17": "mailbox owner has changed",
    "7.18": "domain owner has changed",
    "7.19": "recipient validity cannot be tested",
    "7.20": "no passing DKIM signature",
    "7.21": "no acceptable DKIM signature",
    "7.22": "no valid DKIM signature of the author",
    "7.23": "SPF validation failed",
    "7.24": "SPF validation error",
    "7.25": "reverse DNS validation failed",
    "7.26": "several authentication checks failed",
    "7.27": "sender address has null MX",
    "7.28": "mail flood detected",
    "7.29": "ARC validation failed",
    "7.30": "REQUIRETLS support required",
}


def describe(status: str) -> str:
    """The status as PowerMTA writes it into `dsnStatus`: `5.1.1 (bad destination mailbox address)`."""
    detail = status.partition(".")[2]
    if status == "2.0.0":
        return "2.0.0 (success)"
    text = _DETAILS.get(detail) or _SUBJECTS.get(detail.partition(".")[0], _SUBJECTS["0"])
    return f"{status} ({text})"
