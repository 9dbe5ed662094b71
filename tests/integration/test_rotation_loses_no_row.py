"""Six processes write rows while a seventh rotates the file under them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

from spoolmta import columns
from tests.support import spool_kit

WRITERS, ROWS, ROTATIONS = 6, 2000, 20

PROGRAM = """
import os, sys, time
from spoolmta.accounting import Log
from spoolmta.columns import USUAL
from spoolmta.rotation import Rotation
from spoolmta.model import AcctFile
from spoolmta.shared import Cell, Page
path, writers, rows, rotations = sys.argv[1], *map(int, sys.argv[2:])
file = AcctFile(path=path, max_size=1 << 40)
page = Page(writers)
cells = [page.row(str(number)) for number in range(writers)]
rotation = Rotation((file,), time.time())
children = []
for number in range(writers):
    child = os.fork()
    if child == 0:
        log = Log((file,), page, cells[number])
        for count in range(rows):
            log.write(["d", *(f"{number}-{count}" for _ in USUAL["d"][1:])])
            cells[number][Cell.DELIVERED] = count
            if count % 3 == 0:
                log.flush()
            if count % 50 == 0:
                time.sleep(0.002)
        log.flush()
        cells[number][Cell.READY] = 1
        while cells[0][Cell.TROUBLE] == 0:  # an idle writer is signalled; here it just looks
            log.reopen_if_rotated()
            time.sleep(0.001)
        log.close()
        os._exit(0)
    children.append(child)

def finish():
    while not rotation.finish([cell[Cell.LOG_GENERATION] for cell in cells], page):
        time.sleep(0.0005)

for number in range(rotations):
    while sum(cell[Cell.DELIVERED] for cell in cells) < number * writers * rows // (rotations + 2):
        time.sleep(0.0005)
    rotation.begin([file], page, time.time())
    finish()
while not all(cell[Cell.READY] for cell in cells):
    time.sleep(0.001)
cells[0][Cell.TROUBLE] = 1
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_rotation_loses_no_row(tmp_path: Path) -> None:
    numbers = (str(WRITERS), str(ROWS), str(ROTATIONS))
    with spool_kit.run(PROGRAM, str(tmp_path / "acct.csv"), *numbers) as process:
        assert process.wait(timeout=60) == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == ROTATIONS + 1
    names = [file.name for file in files if file.name != "acct.csv"]
    assert all(re.fullmatch(r"acct-\d{4}-\d\d-\d\d-\d{4}\.csv", name) for name in names)
    found: Counter[str] = Counter()
    for file in files:
        with file.open(newline="") as stream:
            rows = list(csv.reader(stream))
        assert rows[0] == columns.header(("d", "b"), {})
        for row in rows[1:]:
            assert set(row) == {"d", row[1]}
            assert len(row) == len(rows[0])
            found[row[1]] += 1
    assert found == Counter(f"{number}-{count}" for number in range(WRITERS) for count in range(ROWS))
