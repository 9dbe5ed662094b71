"""Laws of `sharing`: limits that several VMTAs have in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.sharing import may_have, may_want, part

LIMITS = st.integers(1, 50)
PARTIES = st.lists(st.integers(0, 60), min_size=1, max_size=8)


class Party:
    """One who takes and gives back as processes do."""

    def __init__(self, wants: int) -> None:
        self.wants = wants
        self.has = 0
        self.is_refused = False


def play(limit: int, wants: list[int], turns: list[int]) -> list[Party]:
    """Everybody in any order: takes one if it may, or leaves word; who has more than his part gives one back then."""
    parties = [Party(want) for want in wants]
    users = sum(party.wants > 0 for party in parties)
    for turn in turns:
        party = parties[turn % len(parties)]
        total = sum(one.has for one in parties)
        is_wanted = any(one.is_refused and may_want(limit, one.has, users) for one in parties)
        if is_wanted and party.has > part(limit, users):
            party.has -= 1
        elif party.has < party.wants:
            party.is_refused = not may_have(limit, total, party.has, users, is_wanted=is_wanted)
            party.has += not party.is_refused
        else:
            party.is_refused = False
        assert sum(one.has for one in parties) <= limit
    return parties


@given(LIMITS, PARTIES, st.lists(st.integers(0, 7), max_size=200))
def test_what_all_have_is_never_above_the_limit(limit: int, wants: list[int], turns: list[int]) -> None:
    play(limit, wants, turns)


@given(LIMITS, PARTIES)
def test_everybody_comes_to_have_an_even_part_or_all_he_wants(limit: int, wants: list[int]) -> None:
    parties = play(limit, wants, [*range(len(wants))] * 150)
    even = part(limit, sum(want > 0 for want in wants))
    if sum(want > 0 for want in wants) <= limit:
        assert all(party.has >= min(party.wants, even) for party in parties)


@given(LIMITS, PARTIES)
def test_what_some_do_not_want_is_there_for_the_others(limit: int, wants: list[int]) -> None:
    """Nothing lies idle but what is being moved from one to another: less than there are parties."""
    parties = play(limit, wants, [*range(len(wants))] * 150)
    assert sum(party.has for party in parties) >= min(limit, sum(wants)) - len(wants)
