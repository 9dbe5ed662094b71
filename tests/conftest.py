"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.support import torture

# How long a case takes says something of the machine and what else it does, and is for benchmarks. What CI tries is the
# same every time; what developers try is new every time.
settings.register_profile(
    "here", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("here")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of `make torture`, of whatever was run."""
    if torture.TABLE:
        terminalreporter.section("promised and measured")
        for line in torture.table():
            terminalreporter.write_line(line)
