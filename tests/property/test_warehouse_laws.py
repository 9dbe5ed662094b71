"""What duckdb is shown of a log is what our own reader reads of it, however odd the files are."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta import log
from spoolmta.reports.chosen import condition
from spoolmta.row import Columns, moment
from spoolmta.sought import Sieve, Sought
from spoolmta.warehouse import Warehouse, identifier

COLUMNS = ("type", "timeLogged", "rcpt", "dsnDiag", "jobId", "queue")
cells = st.one_of(
    st.sampled_from(["", "a,b", 'say "x"', "1", "é", "a\rb", "line\nbreak", "d", "type", "0", "None", " x "]),
    st.text(max_size=6),
)
odd_lines = st.sampled_from(
    [
        b"d,too,few\r\n",
        b"\r\n",
        b"\0\0d,2026-11-26 10:00:00+0000,after zeros,,,\r\n",
        b"d,2026-11-26 10:00:00+0000,\xff\xfe,,,\r\n",
        b'd,2026-11-26 10:00:00+0000,"never closed,,,\r\n',
        b'd,2026-11-26 10:00:00+0000,"ends"early,,,\r\n',
        b"d,2026-11-26 10:00:00+0000,x,,,,one more\r\n",
        b"d,2026-11-26 10:00:00+0000,no carriage return,,,\n",
        b"type,timeLogged,rcpt,dsnDiag,jobId,queue\r\n",
        b"type,rcpt,Other,other\r\nd,second header,1,2\r\n",
        b"garbage",
    ]
)


def line(values: list[str]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerow(values)
    return out.getvalue().encode("utf-8", "replace")


rows = st.lists(cells, min_size=4, max_size=4).map(lambda values: line(["d", "2026-11-26 10:00:00+0000", *values]))
files = st.lists(
    st.lists(st.one_of(rows, rows, odd_lines), max_size=6).map(b"".join), min_size=1, max_size=3
)  # rotated ones first, the current one last


def kept(folder: str, contents: list[bytes], is_packed: bool) -> Path:
    path = Path(folder, "acct.csv")
    for number, data in enumerate(contents):
        whole = line([*COLUMNS]) + data
        if number == len(contents) - 1:
            path.write_bytes(whole)
        elif is_packed:
            Path(folder, f"acct-2026-11-26-{number:04d}.csv.gz").write_bytes(gzip.compress(whole))
        else:
            Path(folder, f"acct-2026-11-26-{number:04d}.csv").write_bytes(whole)
    return path


def as_read(path: Path) -> tuple[list[dict[str, str]], int]:
    with log.follow(path, wait=False) as follower:
        found = []
        for columns, values in follower.rows():
            row: dict[str, str] = {}
            for name, value in zip(columns.names, values, strict=True):
                if value and name.lower() not in {known.lower() for known in row}:
                    row[name] = value.replace("\0", "\ufffd")
            found.append(row)
        return found, follower.skipped


@settings(max_examples=60)
@given(files, st.booleans())
def test_duckdb_sees_the_rows_that_our_reader_sees(contents: list[bytes], is_packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = kept(folder, contents, is_packed)
        expected, skipped = as_read(path)
        with Warehouse(str(path)) as house:
            names = house.columns
            shown = ", ".join("epoch(timeLogged)" if name == "timeLogged" else identifier(name) for name in names)
            found = [dict(zip(names, row, strict=True)) for row in house.ask(f"SELECT {shown} FROM log")]
    for row in expected:
        if (logged := moment(row.pop("timeLogged", ""))) is not None:
            row["timeLogged"] = str(logged)

    def plain(listed: list[dict[str, str]]) -> Counter[frozenset[tuple[str, str]]]:
        return Counter(
            frozenset((name.lower(), str(value)) for name, value in row.items() if value is not None) for row in listed
        )

    assert plain(found) == plain(expected)
    assert house.skipped == skipped


texts = st.sampled_from(
    ["", "a", "A", "ab", "a_b", "a%b", "100%", "back\\slash", "it's", "x@b.test", "x@B.TEST", "y@c.test"]
)
patterns = st.sampled_from(["", "a", "A*", "*b", "a_b", "a%b", "*%", "*\\*", "*'*", "x@b.test", "*"])
domains = st.sampled_from(["", "b.test", "*.test", "B*"])


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("dbt"), st.integers(0, 3), texts, texts), max_size=8),
    st.builds(
        Sought,
        rcpt=patterns,
        job=patterns,
        domain=domains,
        types=st.sampled_from([(), ("d",), ("b", "t")]),
        since=st.sampled_from([0.0, 1795687201.0]),
        until=st.sampled_from([float("inf"), 1795687202.0]),
    ),
)
def test_a_report_chooses_the_rows_that_log_find_finds(listed: list[tuple[str, int, str, str]], wanted: Sought) -> None:
    written = [
        [kind, f"2026-11-26 10:00:0{second}+0000", rcpt, str(number), job, "b.test/news"]
        for number, (kind, second, rcpt, job) in enumerate(listed)
    ]
    sieve, columns = Sieve(wanted), Columns(COLUMNS)
    expected = [row[3] for row in written if sieve.takes(columns, row)]
    with tempfile.TemporaryDirectory() as folder:
        path = kept(folder, [b"".join(map(line, written))], False)
        with Warehouse(str(path)) as house:
            found = house.ask(f"SELECT dsnDiag FROM log WHERE {condition(wanted)} ORDER BY dsnDiag::INT")
    assert [row[0] for row in found] == expected
