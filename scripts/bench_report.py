"""What is printed at the end of the benchmark: details of each comparison, then the table."""

import statistics

from bench_measure import Round, spread
from bench_rows import Pair, Row, Side, Sides

# What others use of a quiet machine: the kernel's own threads, and the bench itself.
QUIET = 0.2


def render_details(results: dict[Sides, list[Pair]]) -> str:
    """Rates, CPU by process and memory of each comparison; only rounds that count."""
    head = "rates in messages/s and all others: median [lowest - highest] over the rounds that count"
    return "\n".join([head, *(render_comparison(sides, good_pairs(pairs)) for sides, pairs in results.items())])


def good_pairs(pairs: list[Pair]) -> list[Pair]:
    return [{side: result for side, result in pair.items() if not result.problems} for pair in pairs]


def render_comparison(sides: Sides, pairs: list[Pair]) -> str:
    lines: list[str] = []
    for side in sides:
        rounds = [pair[side] for pair in pairs if side in pair]
        if rounds:
            lines += ["", f"{side}   ({len(rounds)} rounds)", *render_side(side, rounds)]
    return "\n".join(lines or ["", f"{sides[0].work}: no round counts"])


def render_side(side: Side, rounds: list[Round]) -> list[str]:
    """Rate; CPU per message, in total and by role, the largest first; feeder and sink beside it; peak memory."""
    roles = {role for result in rounds for role in result.cpu_us}
    medians = {role: statistics.median(result.cpu_us.get(role, 0.0) for result in rounds) for role in roles}
    ordered = sorted(medians.items(), key=lambda item: -item[1])
    split = ", ".join(f"{role} {used:,.1f}" for role, used in ordered if used >= 0.05)
    cpu = f"  CPU us/msg   {spread(result.cpu_total_us for result in rounds)}"
    if side.work.way == "beside":
        return [cpu]
    feeder = statistics.median(result.feeder_us for result in rounds)
    sink = statistics.median(result.sink_us for result in rounds)
    idle, others, share = (
        statistics.median(getattr(result, name) for result in rounds)
        for name in ("idle_share", "other_share", "sink_share")
    )
    memory = spread(result.peak_memory / 2**20 for result in rounds)
    return [
        f"  messages/s   {spread(result.rate for result in rounds)}",
        f"{cpu}: {split}",
        f"  not counted  feeder {feeder:,.0f}, sink {sink:,.0f}: {share:.0%} of the machine; {idle:.0%} of it idle, "
        f"{others:.0%} for others",
        f"  peak memory  {memory} MiB ({rounds[0].memory_kind}, sum of all processes)",
    ]


def render_table(rows: list[Row], results: dict[Sides, list[Pair]]) -> str:
    """One line for each row: medians, and over the pairs the ratio."""
    head = ("work", "spoolmta", "Postfix", "ratio [lowest - highest]", "must", "aim", "")
    lines = [head, *(render_row(row, good_pairs(results.get(row.sides, []))) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in (0, 6) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def render_doubt(results: dict[Sides, list[Pair]]) -> str:
    """A warning when somebody else was at work on the machine."""
    shares = [
        result.other_share
        for sides, pairs in results.items()
        if sides[0].work.way != "beside"
        for pair in pairs
        for result in pair.values()
    ]
    if not shares or (share := statistics.median(shares)) < QUIET:
        return ""
    return f"Others used {share:.0%} of the machine in the median round: these rates say little."


def render_row(row: Row, pairs: list[Pair]) -> tuple[str, ...]:
    first, second = (median_of(row, side, pairs) for side in row.sides)
    # Where we are compared with ourselves, both figures are spoolmta's.
    measured = (first, second) if row.what != "growth" else (f"{first} / {second}", "")
    ratios = row.ratios(pairs)
    return (
        row.title,
        *measured,
        spread(ratios, ".2f") if ratios else "-",
        row.target(row.must),
        row.target(row.aim),
        row.verdict(pairs),
    )


def median_of(row: Row, side: Side, pairs: list[Pair]) -> str:
    values = [row.value(pair[side]) for pair in pairs if side in pair]
    return f"{statistics.median(values):,.0f}{row.unit}" if values else "-"
