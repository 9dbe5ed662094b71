from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from spoolmta import journal
from spoolmta.journal import Journal, Record
from spoolmta.model import Outcome

ids = st.sampled_from([f"1700000000.M000000P1Q{number}.node" for number in range(6)])
addresses = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(
    lambda local: local + "@d.test"
)
events = st.one_of(
    st.tuples(st.just("A"), ids, st.integers(1, 9)),
    st.tuples(st.sampled_from("DBEX"), ids, addresses),
    st.tuples(st.just("Q"), ids, st.integers(0, 9)),
    st.tuples(st.just("compact"), st.frozensets(ids), st.none()),
)


def counts(record: Record) -> Counter[str]:
    found = Counter(record.totals)
    found["A"] += sum(record.accepted.values())
    for settled in record.settled.values():
        for letter, count, copied in settled.values():
            found[letter] += 0 if copied else count
    return +found


@given(st.lists(events, max_size=40))
def test_totals_and_lines_together_count_every_event_once_whenever_it_is_compacted(history: list[tuple]) -> None:
    expected: Counter[str] = Counter()
    accepted: set[str] = set()
    settled: set[tuple[str, str]] = set()
    dead: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        book = Journal(f"{folder}/one.log")
        for kind, what, detail in history:
            if kind == "compact":
                book.compact(what)
                dead |= (accepted | {id_ for id_, _ in settled}) - what
                continue
            if what in dead:
                continue  # an id that has left the spool never comes back
            if kind == "A":
                if what in accepted:
                    continue
                accepted.add(what)
                book.append(journal.accepted_line(what, "one", detail))
                expected["A"] += detail
            elif kind == "Q":
                book.append(journal.quarantined_line(what, "d.test", detail))
                expected["Q"] += 0 if (what, "") in settled else detail
                settled.add((what, ""))
            else:
                book.append(journal.settled_line(Outcome(kind), what, detail))
                expected[kind] += 0 if (what, detail) in settled else 1
                settled.add((what, detail))
        book.close()
        assert counts(journal.read(f"{folder}/one.log")) == +expected


@given(st.lists(st.tuples(ids, addresses), min_size=1, max_size=10, unique=True), st.data())
def test_a_torn_tail_never_harms_an_earlier_line(lines: list[tuple[str, str]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "one.log")
        texts = [journal.settled_line(Outcome.DELIVERED, *line).encode() for line in lines]
        whole = b"".join(texts)
        cut = data.draw(st.integers(0, len(whole)))
        tail = data.draw(st.sampled_from([b"", b"\0" * 600, b"\xff\xfe", b"D "]))
        path.write_bytes(whole[:cut] + tail)
        kept = whole[:cut].count(b"\n")
        expected = {(id_, journal.escape(address)) for id_, address in lines[:kept]}
        for _ in range(2):
            record = journal.read(str(path))
            assert {(id_, address) for id_, found in record.settled.items() for address in found} == expected
            book = Journal(str(path))
            book.append("D last a@b\n")
            book.close()
            expected.add(("last", "a@b"))


@given(addresses, addresses)
def test_an_escaped_address_is_one_word_and_different_ones_stay_different(one: str, two: str) -> None:
    word = journal.escape(one)
    assert word.isprintable()
    assert " " not in word
    assert (word == journal.escape(two)) == (one == two)
