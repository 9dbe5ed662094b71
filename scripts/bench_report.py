"""The table at the end of the benchmark."""

import statistics

from bench_measure import Round, Work, spread


def render_table(results: dict[Work, list[dict[str, Round]]]) -> str:
    """For each work: rates, the ratio of each pair, CPU by process and memory; only rounds that count."""
    blocks = [render_work(work, pairs) for work, pairs in results.items()]
    head = "rates in messages/s and all others: median [lowest - highest] over the rounds that count"
    return "\n".join([head, *blocks])


def render_work(work: Work, pairs: list[dict[str, Round]]) -> str:
    good = [{name: result for name, result in pair.items() if not result.problems} for pair in pairs]
    names = [name for name in ("spoolmta", "Postfix") if any(name in pair for pair in good)]
    lines = ["", f"{work}"]
    for name in names:
        rounds = [pair[name] for pair in good if name in pair]
        lines.append(f"  {name:<9} messages/s   {spread(result.rate for result in rounds)}   ({len(rounds)} rounds)")
    both = [pair for pair in good if len(pair) == 2]
    if both:
        ratios = spread((pair["spoolmta"].rate / pair["Postfix"].rate for pair in both), ".2f")
        lines.append(f"  ratio of the pairs       {ratios}")
    for name in names:
        lines += render_cpu(name, [pair[name] for pair in good if name in pair])
    if both:
        ratios = spread((pair["Postfix"].cpu_total_us / pair["spoolmta"].cpu_total_us for pair in both), ".2f")
        lines.append(f"  CPU: Postfix / spoolmta  {ratios}")
    if not names:
        lines.append("  no round counts")
    return "\n".join(lines)


def render_cpu(name: str, rounds: list[Round]) -> list[str]:
    """CPU per message, in total and by role, the largest first; feeder and sink beside it; peak memory."""
    roles = {role for result in rounds for role in result.cpu_us}
    medians = {role: statistics.median(result.cpu_us.get(role, 0.0) for result in rounds) for role in roles}
    ordered = sorted(medians.items(), key=lambda item: -item[1])
    split = ", ".join(f"{role} {used:,.1f}" for role, used in ordered if used >= 0.05)
    feeder = statistics.median(result.feeder_us for result in rounds)
    sink = statistics.median(result.sink_us for result in rounds)
    idle = statistics.median(result.idle_share for result in rounds)
    others = statistics.median(result.other_share for result in rounds)
    machine = f"machine {idle:.0%} idle, {others:.0%} for others"
    memory = spread((result.peak_memory / 2**20 for result in rounds), ",.0f")
    return [
        f"  {name:<9} CPU us/msg   {spread(result.cpu_total_us for result in rounds)}: {split}",
        f"            not counted: feeder {feeder:,.0f}, smtp-sink {sink:,.0f}; {machine}",
        f"  {name:<9} peak memory  {memory} MiB ({rounds[0].memory_kind}, sum of all processes)",
    ]
