"""What `setup.py` compiles can be compiled: what the compiler takes without a word, and what then fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def compiled() -> list[str]:
    tree = ast.parse((ROOT / "setup.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED":
            assert isinstance(node.value, ast.Call)
            return str(ast.literal_eval(node.value.func.value)).split()  # type: ignore[attr-defined]
    raise AssertionError("setup.py has no list COMPILED")


@pytest.mark.parametrize("module", compiled())
def test_a_compiled_module_imports_the_base_of_its_structs_itself(module: str) -> None:
    """Under another name, or by way of another module, the compiler looks for it in a msgspec that may not be there
    yet: it then depends on which module is imported first."""
    for node in ast.walk(ast.parse((ROOT / "spoolmta" / f"{module}.py").read_text())):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                assert ast.unparse(base) != "Struct", f"{module}.py:{node.lineno}: {node.name}"
