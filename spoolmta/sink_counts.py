"""What the test receiver counts."""

from __future__ import annotations

from collections import Counter
from typing import Any


class Pair:
    """The counts of one listening address and one source address."""

    def __init__(self) -> None:
        self.connections = self.current = self.peak = 0
        self.turned_away = 0  # connections over max_connections
        self.accepted = self.rejected = self.dropped = 0  # messages by the fate of their dot
        self.recipients = self.refused = self.bytes = 0
        self.too_early = 0  # input that came with DATA before its reply, or at all without PIPELINING
        self.names: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Pair({self.counts()})"

    def counts(self) -> dict[str, int]:
        return {
            "connections": self.connections,
            "current": self.current,
            "peak": self.peak,
            "connections_refused": self.turned_away,
            "messages": self.accepted,
            "messages_refused": self.rejected,
            "messages_dropped": self.dropped,
            "recipients_accepted": self.recipients,
            "recipients_refused": self.refused,
            "bytes": self.bytes,
            "too_early": self.too_early,
        }


def endpoint(name: tuple[Any, ...]) -> str:
    """A socket name as ADDRESS:PORT."""
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
