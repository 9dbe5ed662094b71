"""When a response rule that matches fires: at once, after a count within a time, or at a share of the answers.

Laws. A count fires exactly with the n-th match of which all lie within the last `period` seconds (a match that is a
whole period old is outside). A share fires with a match, never under its minimum of answers within the period. After
firing it counts from zero. What is exported and restored goes on as if nothing had happened. Nothing here knows
a clock. Only answers of receivers and what was seen of the network are noted: not what rules made us do.

Memory: a count keeps at most its n times for each queue; a share 64 buckets. Both go when their period is over.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import msgspec

from spoolmta import pattern
from spoolmta.model import Answer, Config, Failure, Reply, ResponseAction, ResponseRule
from spoolmta.response import Rules, all_rules, provider_of, rules_for

BUCKETS = 64
"""A share looks back between 63/64 of its period and the whole: what it counts lies within the period for certain."""


class Fired(msgspec.Struct, frozen=True):
    """A rule fired: `at`, and until when it holds (None: until something else ends it); `text` is the answer that
    did it, `matches` how many there were within the trigger's period, `answers` of how many (0: nobody counted)."""

    rule: ResponseRule
    at: float
    until: float | None
    text: str
    matches: int = 1
    answers: int = 0

    def __str__(self) -> str:
        trigger = self.rule.trigger
        count = f"{self.matches} of {self.answers}" if trigger.share else f"{self.matches}"
        within = f" ({count} in {trigger.period:g} s)" if trigger.period else ""
        return f"{self.rule.file}:{self.rule.line}: {self.text}{within}"


class State(msgspec.Struct):
    """What is exported, by rule id and then by place: the times of matches; [bucket, answers, matches] of shares."""

    counts: dict[str, dict[str, list[float]]] = {}
    shares: dict[str, dict[str, list[tuple[int, int, int]]]] = {}


class _Share:
    """Answers and matches of one rule at one place, in buckets of a 64th of its period."""

    __slots__ = ("answers", "buckets", "matches")

    def __init__(self) -> None:
        self.buckets: deque[tuple[int, int, int]] = deque()
        self.answers = self.matches = 0

    def __repr__(self) -> str:
        return f"_Share({self.matches} of {self.answers}, {list(self.buckets)})"

    def expire(self, current: int) -> None:
        while self.buckets and self.buckets[0][0] <= current - BUCKETS:
            _, answers, matches = self.buckets.popleft()
            self.answers -= answers
            self.matches -= matches

    def add(self, bucket: int, answers: int, matches: int) -> None:
        if self.buckets and self.buckets[-1][0] >= bucket:
            last, before, matched = self.buckets[-1]
            self.buckets[-1] = (last, before + answers, matched + matches)
        else:
            self.buckets.append((bucket, answers, matches))
        self.answers += answers
        self.matches += matches


class Triggers:
    """The counts of all rules of one VMTA. A place is a site, or a site and a source address where the rule takes
    the address out of use: there the others are not to blame."""

    __slots__ = ("_counts", "_periods", "_shares", "_sweep_at")

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], deque[float]] = {}
        self._shares: dict[tuple[str, str], _Share] = {}
        self._periods: dict[str, float] = {}
        self._sweep_at = 256

    def __repr__(self) -> str:
        return f"Triggers({len(self._counts)} counts, {len(self._shares)} shares)"

    def note(
        self, now: float, site: str, source: str, rules: Rules, rule: ResponseRule | None, text: str
    ) -> Fired | None:
        """One answer at a site, from one of our addresses: what `rules.match` gave for it, and its text. An answer
        that no rule matched (a success, too) needs to be noted only where `rules.shares` is not empty."""
        fired = None
        for counted in rules.shares:
            share = self._share(now, counted, _place(counted, site, source))
            share.add(_bucket(now, counted), 1, int(counted is rule))
            if counted is rule and _is_reached(share, rule):
                fired = _fired(now, rule, text, share.matches, share.answers)
                del self._shares[rule.id, _place(rule, site, source)]
        if rule is None or rule.trigger.share:
            return fired
        if not rule.trigger.period:
            return _fired(now, rule, text)
        return self._count(now, rule, _place(rule, site, source), text)

    def _count(self, now: float, rule: ResponseRule, place: str, text: str) -> Fired | None:
        trigger = rule.trigger
        times = self._counts.get((rule.id, place))
        if times is None:
            self._sweep(now)
            self._periods[rule.id] = trigger.period
            times = self._counts[rule.id, place] = deque()
        while times and now - times[0] >= trigger.period:
            times.popleft()
        times.append(now)
        if len(times) < trigger.count:
            return None
        del self._counts[rule.id, place]
        return _fired(now, rule, text, len(times))

    def _share(self, now: float, rule: ResponseRule, place: str) -> _Share:
        share = self._shares.get((rule.id, place))
        if share is None:
            self._sweep(now)
            self._periods[rule.id] = rule.trigger.period
            share = self._shares[rule.id, place] = _Share()
        share.expire(_bucket(now, rule))
        return share

    def _sweep(self, now: float) -> None:
        """Forget what is over, whenever there are twice as many as the last sweep left."""
        if len(self._counts) + len(self._shares) < self._sweep_at:
            return
        for key in [key for key, times in self._counts.items() if now - times[-1] >= self._periods[key[0]]]:
            del self._counts[key]
        for key, share in [*self._shares.items()]:
            if share.buckets[-1][0] <= math.floor(now * BUCKETS / self._periods[key[0]]) - BUCKETS:
                del self._shares[key]
        self._sweep_at = max(256, 2 * (len(self._counts) + len(self._shares)))

    def export(self) -> State:
        """What has to be kept while the process sleeps; JSON can carry it."""
        state = State()
        for (rule, place), times in self._counts.items():
            state.counts.setdefault(rule, {})[place] = [*times]
        for (rule, place), share in self._shares.items():
            state.shares.setdefault(rule, {})[place] = [*share.buckets]
        return state

    def restore(self, state: object, rules: Iterable[ResponseRule], now: float) -> None:
        """Go on with what was exported, as it was or through JSON. What no rule of these counts any more is forgotten,
        and so is what lies in the future (the clock was wrong then); what cannot be read counts as nothing."""
        try:
            known = state if isinstance(state, State) else msgspec.convert(state, State)
        except msgspec.ValidationError:
            return
        for rule in rules:
            trigger = rule.trigger
            self._periods[rule.id] = trigger.period
            for place, times in known.counts.get(rule.id, {}).items() if not trigger.share else ():
                past = [time for time in times if time <= now][-trigger.count :]
                if trigger.period and past:
                    self._counts[rule.id, place] = deque(past)
            for place, buckets in known.shares.get(rule.id, {}).items() if trigger.share else ():
                share = _Share()
                for bucket, answers, matches in buckets:
                    if bucket <= _bucket(now, rule):
                        share.add(bucket, answers, matches)
                if share.buckets:
                    self._shares[rule.id, place] = share


class Responses:
    """The response rules of one VMTA at work: answers in, what fired out."""

    __slots__ = ("_all", "_config", "_hears_success", "_name", "_rules", "_triggers")

    def __init__(self, config: Config, vmta_name: str) -> None:
        self._config, self._name = config, vmta_name
        self._all = all_rules(config, vmta_name)
        self._rules: dict[str, Rules] = {}
        self._triggers = Triggers()
        every = Rules(self._all)
        self._hears_success = every.may_match_success or bool(every.shares)

    def __repr__(self) -> str:
        return f"Responses({self._name!r}, {len(self._all)} rules, {self._triggers})"

    def note(self, now: float, site: str, source: str, answer: Answer) -> Fired | None:
        """What one answer, given at a site to one of our addresses ("" where none was bound), sets off.

        Only what a receiver or the network did is given here: not the answers that a rule's action gives to the
        recipients it reaches, though they carry the receiver's reply.
        """
        result = answer.result
        if not self._all or (isinstance(result, Reply) and result.code < 400 and not self._hears_success):
            return None
        rules = self._at(site)
        rule = rules.match(answer.stage, result)
        if rule is None and (not rules.shares or (isinstance(result, Failure) and not result.kind.is_observed)):
            return None
        text = "" if rule is None else pattern.text_of(result)
        return self._triggers.note(now, site, source, rules, rule, text)

    def _at(self, site: str) -> Rules:
        provider = provider_of(self._config, site)
        rules = self._rules.get(provider)
        if rules is None:
            rules = self._rules[provider] = rules_for(self._config, self._name, provider)
        return rules

    def export(self) -> State:
        return self._triggers.export()

    def restore(self, state: object, now: float) -> None:
        """Go on with what these rules' counts were before a sleep, a restart or a reload."""
        self._triggers.restore(state, self._all, now)


def _place(rule: ResponseRule, site: str, source: str) -> str:
    return f"{site} {source}" if ResponseAction.DISABLE_SOURCE_IP in rule.actions else site


def _bucket(now: float, rule: ResponseRule) -> int:
    return math.floor(now * BUCKETS / rule.trigger.period)


def _is_reached(share: _Share, rule: ResponseRule) -> bool:
    return share.answers >= rule.trigger.count and share.matches >= rule.trigger.share * share.answers


def _fired(now: float, rule: ResponseRule, text: str, matches: int = 1, answers: int = 0) -> Fired:
    until = None if rule.duration is None else now + rule.duration
    return Fired(rule, now, until, text, matches, answers)
