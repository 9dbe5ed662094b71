"""Time, chance and the outside world are arguments below the floor of input and output."""

from __future__ import annotations

import ast

import pytest

from tests.meta.test_import_order import PURE, files, imported

OUTSIDE = set(
    """os io socket asyncio time random secrets threading multiprocessing subprocess signal select mmap fcntl tempfile
    shutil pathlib glob logging uvloop psutil dns watchdog""".split()
)
FILES = {"os", "pathlib", "glob"}
"""Configuration is files, so `config` may read them; not by `os`, except `os.path`."""


@pytest.mark.parametrize("module", PURE)
def test_what_decides_never_looks_outside(module: str) -> None:
    for path in files(module):
        for name in imported(path):
            top = name.partition(".")[0]
            allowed = module == "config" and (top in FILES - {"os"} or name.startswith("os.path"))
            assert top not in OUTSIDE or allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("module", sorted(set(PURE) - {"config"}))
def test_what_decides_opens_no_file(module: str) -> None:
    for path in files(module):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id == "open"), f"{path.name}:{node.lineno} opens a file"
