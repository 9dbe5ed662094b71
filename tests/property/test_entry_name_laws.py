from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolmta import entry
from spoolmta.model import EntryName

words = st.from_regex(r"[a-z0-9_-](?:[a-z0-9_-]|\.(?!\.)){0,31}", fullmatch=True)
ids = st.builds(
    entry.make_id,
    st.integers(1, 10**11 - 1),
    st.integers(0, 999_999),
    st.integers(1, 4_194_304),
    st.integers(0, 10**12 - 1),
    st.text(max_size=40),
)
names = st.builds(
    EntryName,
    id=ids,
    size=st.integers(0, 10**12 - 1),
    crc=st.integers(0, 2**32 - 1),
    job=st.text(max_size=5).map(entry.job_hash),
    recipients=st.integers(1, 9_999_999),
    source=st.just("") | words.filter(lambda word: word != "pickup"),
    pool=st.just("") | words,
    priority=st.integers(0, 999),
    folder=st.just("") | words,
    rerouted=st.just(""),
)
queued = st.tuples(names, st.integers(0, 999_999), st.integers(0, 10**11 - 1))


@given(queued)
def test_a_name_is_read_as_it_was_written_and_fits_a_file_system(case: tuple[EntryName, int, int]) -> None:
    name, attempts, due = case
    new = entry.format_name(name)
    assert entry.parse_name(new) == name
    text = entry.with_state(new, attempts, due)
    assert len(text.encode()) < 255
    parsed = entry.parse_name(text)
    assert (parsed.attempts, parsed.due) == entry.state(text) == (attempts, due)
    assert entry.format_name(parsed) == text
    assert entry.bare(text) == new
    assert entry.entry_id(text) == name.id


@given(names.filter(lambda name: len(name.folder) < 10), st.lists(words, min_size=1, max_size=5), words)
def test_a_name_remembers_who_has_passed_the_entry_on(name: EntryName, vmtas: list[str], other: str) -> None:
    text = entry.with_state(entry.format_name(name), 3, 1_700_000_000)
    assert not entry.was_rerouted_by(text, other)
    for vmta in vmtas:
        text = entry.rerouted(text, vmta)
    assert all(entry.was_rerouted_by(text, vmta) for vmta in vmtas)
    assert entry.state(text) == (3, 1_700_000_000)
    assert entry.parse_name(text).id == name.id
    assert entry.flow(text) == entry.flow(entry.format_name(name))
    assert entry.pool(text) == name.pool
    assert entry.recipients(text) == name.recipients


@given(ids, words)
def test_an_entry_is_passed_on_so_often_and_not_for_ever(id_: str, vmta: str) -> None:
    text = entry.format_name(EntryName(id_, 1, 2))
    for _ in range(8):
        text = entry.rerouted(text, vmta)
    with pytest.raises(ValueError, match="not the name"):
        entry.rerouted(text, vmta)


@given(ids, words)
def test_a_claimed_name_carries_its_virtual_mta(id_: str, vmta: str) -> None:
    name = EntryName(id_, 1, 2, vmta=vmta)
    assert entry.parse_name(entry.format_name(name)) == name


@given(st.integers(1, 10**10), st.integers(0, 999_999))
def test_the_time_comes_back_to_the_microsecond(seconds: int, microseconds: int) -> None:
    stamp = entry.received(entry.make_id(seconds, microseconds, 1, 0, "n"))
    assert abs(stamp - seconds - microseconds / 1e6) < 1e-5


@given(st.text(max_size=120) | st.text(alphabet="0123456789.MPQabc,S=CJNLFV:1-/", max_size=120))
def test_garbage_is_a_value_error_and_nothing_else(text: str) -> None:
    try:
        parsed = entry.parse_name(text)
    except ValueError:
        return
    assert entry.format_name(parsed) == text
    assert "/" not in text


@given(names, st.integers(0, 200), st.characters(codec="utf-8"))
def test_a_name_with_one_character_changed_is_refused_or_read_faithfully(name: EntryName, at: int, c: str) -> None:
    text = entry.format_name(name)
    text = text[:at] + c + text[at + 1 :]
    try:
        parsed = entry.parse_name(text)
    except ValueError:
        return
    assert entry.format_name(parsed) == text
