"""A module imports only what stands above it, so that what is decided never depends on what is done."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "spoolmta"

PURE = """errors model address pattern wording columns privacy dkim domainkeys config derived here policy entry message
    selection reasons bounce verdict response trigger lint record notify dsn rate condition alert switch limits backlog
    waiting dealing warming site sources action agenda concurrency sharing metering assignment sessions sites
    schedule view reaction lifecycle flight sevenbit dane sts smtp.wire smtp.client smtp.transaction smtp.allowance
    smtp.auth smtp.starttls routing published.lookup published.tags published.zone published.spf_terms published.spf
    published.dmarc published.dkim_key diagnosis row sought export reports.report reports.spread reports.chosen
    reports.asking reports.amounts reports.refusals reports.pace reports.known reports.drawing reports.forms
    reports.page""".split()
INPUT_OUTPUT = """clock processor descriptors disk shared tally journal spool.layout common commons markers spool.intake
    spool.partition spool.outbox spool.audit accounting logfiles log warehouse rotation program resolver tls_channel tls
    sts_fetch sts_cache keyring protection transport opener control mailhosts dealer""".split()
PROCESSES = """process children overview state arrivals survey lane reporter reminder mailer ledger clearance
    switchboard standin passage standing rerouting inflow carrier pickup delivery feeder supervisor""".split()
TOOLS = "sink_script sink_auth sink_counts sink_tls sink_session sink testdns doctor demo".split()
FACE = """cli.frame cli.choice cli.system cli.queue cli.switches cli.removal cli.figures cli.log cli.report
    cli.explain cli.classify cli.doctor cli.dkim cli __main__""".split()
FOLDERS = ("model", "config")
ORDER = [*PURE, *INPUT_OUTPUT, *PROCESSES, *TOOLS, *FACE]


def modules() -> list[str]:
    """Every module with code in it, by its name without the package's; a folder of FOLDERS is one in many files."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        names.add(next((folder for folder in FOLDERS if f"{name}.".startswith(f"{folder}.")), name))
    return sorted(names - {"", "smtp", "spool", "reports", "published"})


def files(module: str) -> list[Path]:
    if module in FOLDERS:
        return sorted((PACKAGE / module).glob("*.py"))
    return [PACKAGE / f"{module.replace('.', '/')}.py"]


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        if not is_for_types(node):
            yield from nodes(node)


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, also inside functions, but not for annotations only."""
    names: set[str] = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute here"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_imports(path: Path) -> set[str]:
    """The modules of this package among them."""
    found = set()
    for name in imported(path):
        if not name.startswith("spoolmta."):
            continue
        rest = name.removeprefix("spoolmta.")
        if rest == "__version__":
            continue
        found.add(next((module for module in ORDER if f"{rest}.".startswith(f"{module}.")), rest))
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    assert module in ORDER, f"{module} has no place in the import order yet: add it to ORDER in {Path(__file__).name}"
    if module == "cli":
        return
    above = set(ORDER[: ORDER.index(module)])
    for path in files(module):
        for name in own_imports(path) - {module}:
            assert name in above, f"{path.name} imports {name}, which does not stand above {module}"


def test_every_module_of_the_order_exists() -> None:
    assert sorted(ORDER) == modules()
