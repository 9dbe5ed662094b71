"""A queue-to that could do nothing: a name that something is queued to keeps its own mail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spoolmta.config.files import Problems
from spoolmta.model import Config, DomainTable, Setting


def check(config: Config, problems: Problems) -> None:
    """Note, once, every queue-to of a single domain that is a queue of others, in some VMTA."""
    shared = [*_written(config.domains)]
    seen: set[tuple[str, int]] = set()
    owns = [[*_written(table for layer in vmta.layers for table in layer)] for vmta in config.vmtas.values()]
    for every in (shared, *([*shared, *own] for own in owns if own)):
        others = {setting.value: setting for _, setting in every}
        for domain, setting in every:
            place = setting.file, setting.line
            if domain in others and setting.value != domain and place not in seen:
                seen.add(place)
                other = others[domain]
                text = f"{domain} is a queue itself, by {other.file}:{other.line}: what is queued goes no further"
                problems.add(place, ("domain", domain, "queue-to"), text)


def _written(tables: Iterable[DomainTable]) -> Iterator[tuple[str, Setting]]:
    """Every queue-to that names a queue, with the pattern of its table."""
    for table in tables:
        if (setting := table.settings.get("queue_to")) is not None and setting.value:
            yield table.pattern, setting
