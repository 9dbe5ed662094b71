from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spoolmta import shared
from spoolmta.shared import Cell, Page


def test_a_name_has_one_row() -> None:
    page = Page(2)
    page.row("a").add(Cell.DELIVERED, 3)
    page.row("b")[Cell.DELIVERED] = 7
    assert page.row("a")[Cell.DELIVERED] == 3
    assert page.names() == ["a", "b"]


def test_a_page_that_is_full_says_so_and_stays_as_it_is() -> None:
    page = Page(1)
    page.row("a")
    assert page.has_room(["a"])
    assert not page.has_room(["a", "b"])
    for _ in range(2):
        with pytest.raises(OverflowError, match="b"):
            page.row("b")
    assert page.names() == ["a"]


def test_a_dead_process_loses_its_gauges_and_keeps_its_counters() -> None:
    row = Page(1).row("a")
    for cell in Cell:
        row[cell] = 5
    row.clear_gauges()
    kept = [cell for cell in Cell if row[cell] == 5]
    assert kept == [cell for cell in Cell if cell >= Cell.QUEUED]
    assert "DELIVERED=5" in repr(row)


def test_generations_and_the_sync_stamp_begin_at_zero() -> None:
    page = Page(1)
    assert (page.synced, page.log_generation, page.config_generation) == (0, 0, 0)
    assert page.next_log_generation() == 1
    assert page.next_config_generation() == 1
    page.publish_sync(1 << 60)
    assert (page.synced, page.log_generation) == (1 << 60, 1)


CHILD = """
import os, sys; sys.path.insert(0, sys.argv[1])
from spoolmta.shared import Cell, Page
page = Page(1)
row = page.row("a")
child = os.fork()
if child == 0:
    row[Cell.DELIVERED] = 42
    page.publish_sync(7)
    os._exit(0)
os.waitpid(child, 0)
print(row[Cell.DELIVERED], page.synced)
"""


def test_what_a_child_writes_its_parent_sees() -> None:
    root = str(Path(shared.__file__).parents[1])
    assert subprocess.check_output([sys.executable, "-c", CHILD, root], text=True) == "42 7\n"
