"""The laws of what is on its way to a program."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.flight import Flight
from spoolmta.program import LONGEST, MOST, Voice


@given(
    header=st.integers(0, 50),
    sizes=st.lists(st.integers(1, 40), max_size=20),
    looks=st.lists(st.integers(0, 1000), max_size=20),
)
def test_a_position_is_settled_when_the_whole_row_before_it_is_read_and_not_before(
    header: int, sizes: list[int], looks: list[int]
) -> None:
    flight = Flight({"after": "begin"})
    flight.give(header)
    for number, size in enumerate(sizes):
        flight.give(size, {"row": number})
    total, best = header + sum(sizes), 0
    for unread in looks:
        unread = min(unread, total)
        is_forward = flight.read(unread)
        assert is_forward == (total - unread > best or not unread)
        best = max(best, total - unread)
        ends = list(accumulate(sizes, initial=header))[1:]
        read = sum(end <= best for end in ends)
        assert flight.rows == read
        assert flight.settled == ({"row": read - 1} if read else {"after": "begin"})
        assert flight.is_over == (read == len(sizes))


@given(st.lists(st.binary(min_size=1, max_size=2000), max_size=30))
def test_what_a_program_says_becomes_short_printable_lines(said: list[bytes]) -> None:
    heard: list[str] = []
    voice = Voice(heard.append)
    for data in said:
        voice.hear(data, 7.0)
    voice.hear(b"", 7.0)
    left_out = [line for line in heard if line.endswith("more lines are left out)")]
    assert len(heard) - len(left_out) <= MOST
    assert all(line.isprintable() and line.strip() and len(line) <= LONGEST + 4 for line in heard)
