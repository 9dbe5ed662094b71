"""Whatever is written and however it is rotated, packed, stopped and resumed: every row once, in its file's order."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta import accounting, log
from spoolmta.accounting import Log
from spoolmta.columns import USUAL
from spoolmta.export import Csv, Json, Xml
from spoolmta.log import Follower
from spoolmta.model import AcctFile
from spoolmta.rotation import Rotation
from spoolmta.row import Columns, Reader, rows_in
from spoolmta.shared import Cell, Page
from spoolmta.sought import Sieve, Sought

PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    (".gz", gzip.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
]
DAY = 1_700_000_000.0
values = st.lists(st.text(max_size=20), min_size=2, max_size=12)


@given(st.lists(values, max_size=8), st.integers(0, 300))
def test_rows_come_back_however_much_of_the_file_is_there(written: list[list[str]], cut: int) -> None:
    lines = [accounting.csv_line(["d", *row]).encode("utf-8", "replace") for row in written]
    data = b"".join(lines)[:cut]
    found = [row for row, _ in rows_in(data)]
    whole = [line for number, line in enumerate(lines) if len(b"".join(lines[: number + 1])) <= cut]
    assert [row + b"\n" for row in found] == whole
    reader = Reader()
    assert [reader.values(row) for row in found] == [next(csv.reader([line.decode()])) for line in whole]


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_rows_or_none_and_none_is_counted_twice(data: bytes, is_all: bool) -> None:
    reader, size = Reader(), 0
    for row, length in rows_in(data, is_all):
        assert data[size : size + len(row) + 1] == row + b"\n"
        size += length
        reader.values(row)
    assert size <= len(data)
    assert not is_all or size == data.rfind(b"\n") + 1
    assert reader.values(b"d,1") == ["d", "1"]


plain_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
pattern = st.text(st.sampled_from('aB@.*" ,'), max_size=5)


@given(pattern, pattern, plain_text, st.text(st.sampled_from('aAbB@.*" ,x'), max_size=6))
def test_looking_at_the_bytes_first_misses_no_row(rcpt: str, job: str, first: str, second: str) -> None:
    columns = Columns(["type", "rcpt", "jobId"])
    sieve = Sieve(Sought(rcpt=rcpt, job=job))
    for row in (["d", first, second], ["d", second, first], ["d", rcpt, job], ["d", rcpt.upper(), job.lower()]):
        assert sieve.may_be_in(accounting.csv_line(row).encode()) or not sieve.takes(columns, row)


@given(st.lists(st.text(max_size=15), min_size=2, max_size=5, unique=True), st.data())
def test_every_form_of_export_is_read_back_as_what_it_was(names: list[str], data: st.DataObject) -> None:
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
    row = [data.draw(texts) for _ in names]
    columns = Columns(names)
    found = [*csv.reader(io.StringIO(Csv().row(columns, row), newline=""), strict=True)]
    assert [value.removeprefix("'") for value in found[1]] == [value.removeprefix("'") for value in row]
    assert json.loads(Json().row(columns, row)) == {
        name: value for name, value in zip(names, row, strict=True) if value
    }
    form = Xml()
    (element,) = ElementTree.fromstring((form.begin() + form.row(columns, row) + form.end()).encode())
    assert len(element) == sum(1 for value in row if value)


class Books:
    """A log with two writers and its rotation, and what a reader of it must get: the rows of each file in its order."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.file = AcctFile(path=f"{folder}/acct.csv", records=("d",))
        self.page = Page(2)
        self.cells = [self.page.row("one"), self.page.row("two")]
        self.rotation = Rotation((self.file,), DAY)
        self.writers = [Log((self.file,), self.page, cell) for cell in self.cells]
        self.files: list[list[str]] = [[]]
        self.is_behind = [False, False]
        self.count = self.deleted = 0
        self.half = b""

    def write(self, which: int) -> None:
        """A writer that has not moved on yet still writes to the file before."""
        writer = self.writers[which]
        self.finish_half()
        self.count += 1
        writer.write(["d", *[f"{self.count}, é"] * (len(USUAL["d"]) - 1)])
        place = -1
        if self.is_behind[which]:  # as a writer that is in the middle of its write when the file is rotated
            target = writer._targets[0]
            lines, target.lines = target.lines, []
            target.file.append("".join(lines).encode())
            place = -2
        else:
            writer.flush()
        self.files[place].append(f"{self.count}, é")

    def write_half(self) -> None:
        self.finish_half()
        self.count += 1
        line = accounting.csv_line(["d", *[f"{self.count}, é"] * (len(USUAL["d"]) - 1)]).encode()
        self.half = line[self.count % len(line) :]
        with open(self.file.path, "ab") as file:
            file.write(line[: self.count % len(line)])

    def finish_half(self) -> None:
        if self.half:
            with open(self.file.path, "ab") as file:
                file.write(self.half)
            self.files[-1].append(f"{self.count}, é")
            self.half = b""

    def rotate(self) -> None:
        self.finish_half()
        if not self.rotation._pending and self.files[-1]:
            self.rotation.begin([self.file], self.page, DAY)
            self.is_behind = [True, True]
            self.files.append([])

    def move_on(self, which: int) -> None:
        self.writers[which].flush()
        self.is_behind[which] = False
        self.rotation.finish([cell[Cell.LOG_GENERATION] for cell in self.cells], self.page)

    def rotated(self) -> list[Path]:
        return sorted(path for path in Path(self.folder).rglob("acct-*") if path.suffix == ".csv")

    def pack(self, which: int) -> None:
        for path in self.rotated()[:1]:
            ending, compress = PACKERS[which % 3]
            packed = path.with_name(path.name + ending)
            packed.write_bytes(b"half packed")
            packed.write_bytes(compress(path.read_bytes()))
            path.unlink()

    def move(self) -> None:
        for path in self.rotated()[-1:]:
            path.rename(f"{self.folder}/moved/{path.name}")

    def delete(self, read: int) -> None:
        """What an operator deletes who looks where the reader is."""
        paths = sorted((path for path in Path(self.folder).rglob("acct-*")), key=lambda path: path.name)
        if paths and read > sum(map(len, self.files[: self.deleted + 1])):
            paths[0].unlink()
            self.deleted += 1

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def follow(books: Books, position: object) -> Follower:
    return log.follow(books.file.path, position, wait=False, moved_to=f"{books.folder}/moved")  # type: ignore[arg-type]


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "move_on"]), st.integers(0, 1)),
        st.tuples(st.just("pack"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["write_half", "rotate", "move", "resume", "delete"])),
        st.tuples(st.just("read"), st.integers(1, 4)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_every_row_is_read_once_and_in_the_order_of_its_file(script: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/moved")
        books = Books(folder)
        follower = follow(books, "start")
        found: list[str] = []

        def read(most: int) -> None:
            for record in follower:
                found.append(record.rcpt)
                most -= 1
                if not most:
                    break

        for name, *arguments in script:
            if name == "read":
                read(*arguments)
            elif name == "delete":
                books.delete(len(found))
            elif name == "resume":
                follower.close()
                follower = follow(books, json.loads(json.dumps(follower.position)))
            else:
                getattr(books, name)(*arguments)
        books.finish_half()
        for which in (0, 1):
            books.move_on(which)
        read(1_000_000)
        follower.close()
        books.close()
        assert found == [row for rows in books.files for row in rows]
        assert follower.skipped == 0
