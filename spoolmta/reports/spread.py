"""How long deliveries took, from how many took each number of seconds."""

from __future__ import annotations

from collections.abc import Sequence

SHARES = (50.0, 75.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.9, 100.0)
EDGES = (0, 5, 10, 30, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200)
BUCKETS = (
    "0-5 s", "5-10 s", "10-30 s", "30-60 s", "1-5 min", "5-15 min", "15-30 min", "30-60 min", "1-3 h", "3-6 h",
    "6-12 h", "over 12 h",
)  # fmt: skip

Counts = Sequence[tuple[int, int]]
"""(seconds, how many deliveries took so long), by rising seconds."""


def fastest(counts: Counts, shares: Sequence[float] = SHARES) -> list[tuple[int, float, float]]:
    """For each share (percent, rising) of the deliveries, the fastest first: (how many they are, their average, their
    maximum in seconds). The maximum is the percentile by the nearest-rank method. `counts` must not be empty."""
    total = sum(count for _, count in counts)
    found: list[tuple[int, float, float]] = []
    taken, spent, place = 0, 0, 0
    for share in shares:
        rank = max(1, -int(-(total * share) // 100))
        while taken + counts[place][1] < rank:
            seconds, count = counts[place]
            taken, spent, place = taken + count, spent + seconds * count, place + 1
        seconds = counts[place][0]
        found.append((rank, (spent + (rank - taken) * seconds) / rank, float(seconds)))
    return found


def histogram(counts: Counts) -> list[int]:
    """How many deliveries fall into each of BUCKETS; a lower edge belongs to its bucket."""
    found = [0] * len(EDGES)
    place = 0
    for seconds, count in counts:
        while place + 1 < len(EDGES) and seconds >= EDGES[place + 1]:
            place += 1
        found[place] += count
    return found


def average(counts: Counts) -> float:
    return sum(seconds * count for seconds, count in counts) / sum(count for _, count in counts)
