"""What is worked out of a configuration once and kept with it.

The supervisor has it worked out before it forks. A process that looked through 10,000 VMTAs itself would only read,
but each look counts a reference, and so makes 8 MB of shared memory its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from spoolmta.model import Config

Value = TypeVar("Value")


def derived(work_out: Callable[[Config], Value]) -> Callable[[Config], Value]:
    """The function, which remembers its answer for the last configuration (that very one, not one that is equal)."""
    kept: list[tuple[Config, Value]] = []

    @functools.wraps(work_out)
    def look_up(config: Config) -> Value:
        if not kept or kept[0][0] is not config:
            kept[:] = [(config, work_out(config))]
        return kept[0][1]

    return look_up
