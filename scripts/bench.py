#!/usr/bin/env python3
"""The speed table: works that spoolmta and Postfix do in one run, alternating, and some that spoolmta does with much
and with little; see README.md beside this file. What a round is stands in `bench_rounds`, the table in `bench_rows`.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from bench_backlog import Backlog
from bench_machine import bench_directory, raise_descriptor_limit, refuse_listened_port
from bench_measure import BenchError
from bench_postfix import Postfix
from bench_report import good_pairs, render_details, render_doubt, render_table
from bench_rounds import Bench, System
from bench_rows import MISSED, OURS, POSTFIX, Row, make_rows
from bench_spoolmta import Spoolmta

QUEUED_MESSAGES = 20_000
QUEUED_MESSAGES_QUICK = 5_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The speed table: spoolmta and Postfix doing the same, alternating.")
    add = parser.add_argument
    names = [row.name for row in make_rows(quick=False)]
    add("--rows", type=lambda text: text.split(","), default=names, help=f"of {','.join(names)} (all)")
    add("--seconds", type=float, help="the least length of a round (15)")
    add("--pairs", type=int, help="pairs of rounds for each work (7)")
    add("--quick", action="store_true", help="2 pairs of 4 s and smaller works: does it work at all")
    add("--fs", choices=["ext4", "xfs"], default="ext4", help="the filesystem made for the run by root (ext4)")
    add("--fs-size", default="8G", help="its size; the file below it is sparse (8G)")
    add("--dir", type=Path, help="make no filesystem, use this directory")
    add("--json", type=Path, metavar="FILE", help="write the table and every round here as well")
    add("--no-postfix", action="store_true", help="only spoolmta")
    add("--keep", action="store_true", help="leave spools and logs behind and say where")
    project = Path(__file__).resolve().parent.parent
    add("--spoolmta", type=Path, default=project / ".venv" / "bin" / "spoolmta", help="the program to run")
    add("--records", default="d,b,t,tq", help="accounting records of spoolmta (d,b,t,tq)")
    add("--max-smtp-out", type=int, default=50, help="connections of a VMTA to a domain (50)")
    add("--sink-port", type=int, default=12525, help="where the sink listens (12525)")
    add("--postfix-port", type=int, default=12526, help="where Postfix listens (12526)")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(names):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    options.seconds = options.seconds or (4.0 if options.quick else 15.0)
    options.pairs = options.pairs or (2 if options.quick else 7)
    return options


def choose_rows(options: argparse.Namespace) -> list[Row]:
    return [row for row in make_rows(options.quick) if row.name in options.rows]


@contextlib.contextmanager
def made_systems(options: argparse.Namespace, base: Path) -> Iterator[dict[str, System]]:
    systems: dict[str, System] = {}
    try:
        records = options.records.split(",")
        systems[OURS] = Spoolmta(base / "spoolmta", options.spoolmta, options.sink_port, records, options.max_smtp_out)
        if not options.no_postfix:
            systems[POSTFIX] = Postfix(base / "postfix", options.postfix_port, options.sink_port)
        yield systems
    finally:
        for system in systems.values():
            system.stop()


def leave(number: int, _frame: FrameType | None) -> None:
    """A signal becomes an exception, so that everything started is stopped and everything mounted unmounted."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    raise SystemExit(128 + number)


def write_json(path: Path, place: str, rows: list[Row], bench: Bench) -> None:
    table = []
    for row in rows:
        pairs = bench.results.get(row.sides, [])
        rounds = [[{"side": str(side), **asdict(result)} for side, result in pair.items()] for pair in pairs]
        good = good_pairs(pairs)
        table.append(
            {
                "row": row.name,
                "title": row.title,
                "ratios": row.ratios(good),
                "must": row.must,
                "aim": row.aim,
                "verdict": row.verdict(good),
                "pairs": rounds,
            }
        )
    path.write_text(json.dumps({"filesystem": place, "rows": table, "failures": bench.failures}, indent=2) + "\n")


def main() -> int:
    options = parse_arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    for port in (options.sink_port, *(() if options.no_postfix else (options.postfix_port,))):
        refuse_listened_port(port)
    raise_descriptor_limit()
    rows = choose_rows(options)
    with bench_directory(options.fs, options.fs_size, options.dir, options.keep) as (base, place):
        print(f"bench: both spools on {place}; {os.cpu_count()} processors", file=sys.stderr, flush=True)
        with made_systems(options, base) as systems:
            messages = QUEUED_MESSAGES_QUICK if options.quick else QUEUED_MESSAGES
            backlog = Backlog(base / "backlog", options.sink_port, options.spoolmta, messages)
            bench = Bench(systems, backlog, options.sink_port, base, options.seconds)
            try:
                for sides in dict.fromkeys(row.sides for row in rows):
                    bench.compare(sides, options.pairs)
            finally:
                parts = (
                    render_details(bench.results),
                    render_doubt(bench.results),
                    render_table(rows, bench.results),
                )
                print("\n\n".join(part for part in parts if part), flush=True)
                if options.json is not None:
                    write_json(options.json, place, rows, bench)
    for failure in bench.failures:
        print(f"bench: does not count: {failure}", file=sys.stderr)
    is_missed = any(row.verdict(good_pairs(bench.results[row.sides])) == MISSED for row in rows)
    return 1 if bench.failures or is_missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
