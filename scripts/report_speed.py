"""How long reports of a long log take, and how much memory.

    .venv/bin/python scripts/report_speed.py                        # ten million rows: 3.6 GB in a temporary folder
    .venv/bin/python scripts/report_speed.py --rows 1000000 --dir DIR
    .venv/bin/python scripts/report_speed.py --report top-bounce --by sender

The log has twelve files, 20,000 domains with shares as in a real list, 40 VMTAs, 50 jobs, a sender of its own in each
message; 90 % are delivered, 3 % bounce, 7 % are deferrals, each with other numbers and addresses in the reply. Each
report is a command of its own; its time is that of the clock, its memory the most that was resident.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from spoolmta.columns import header
from spoolmta.reports.known import KNOWN

FILES, DOMAINS, VMTAS, JOBS = 12, 20_000, 40, 50
BEGIN, RATE = 1_790_000_000, 120
SECONDS, MEGABYTES = 60, 500
WAITED = (0, 1, 1, 2, 3, 5, 9, 30, 200, 1800, 9000, 50_000)
COLUMNS = header(("d", "b", "t", "r"), {})
BOUNCES = (
    ("5.1.1 (bad destination mailbox address)", "bad-mailbox", "550 5.1.1 <{rcpt}>: Recipient address rejected"),
    ("5.7.1 (delivery not authorized)", "policy-related", "554 5.7.1 Service unavailable; Client [{ip}] blocked"),
    ("5.2.2 (mailbox full)", "quota-issues", "552 5.2.2 Mailbox full: {n} bytes"),
)
DEFERRALS = (
    ("4.7.1 (delivery not authorized)", "other", "451 4.7.1 <{rcpt}>: greylisted, try again in {n} seconds"),
    ("4.7.0 (other security status)", "policy-related", "421 4.7.0 [{ip}] Too many connections; id {n:x}-{n}"),
    ("4.2.2 (mailbox full)", "quota-issues", "452 4.2.2 The mailbox is full"),
)


def stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S+0000")


def rows(count: int) -> Iterator[str]:
    chance = random.Random(7)
    picks = chance.choices(range(DOMAINS), [1 / (place + 1) for place in range(DOMAINS)], k=100_000)
    second, times = -1, [""]
    for number in range(count):
        if BEGIN + number // RATE != second:
            second = BEGIN + number // RATE
            times = [stamp(second - waited) for waited in WAITED]
        place = picks[number * 7919 % len(picks)]
        ip = f"10.2.{number // 250 % 250}.{number % 250}"
        rcpt, kind = f"user{number % 700_000}@d{place}.example", number * 2_654_435_761 % 1000
        vmta = f"vmta{place % VMTAS}"
        if kind < 900:
            said = f'd,{{}},relayed,2.0.0 (success),"smtp;250 2.0.0 Ok: queued as {number:X}, thanks"'
            category, size = "", str(4000 + number % 1000)
        else:
            status, category, text = (BOUNCES if kind < 930 else DEFERRALS)[number % 3]
            size = ""
            said = f"{'b' if kind < 930 else 't'},{{}},{'failed' if kind < 930 else 'delayed'},{status},smtp;"
            said += text.format(rcpt=rcpt, ip=ip, n=number % 9000)
        who = f"{times[0]},{times[number * 31 % len(WAITED)]},bounce-{number}@sender.example,{rcpt},"
        yield (
            f"{said.format(who)},mx1.d{place}.example ({ip}),{category},pickup,,smtp,10.1.0.{place % VMTAS},{ip},"
            f'"8BITMIME,SIZE,PIPELINING",{size},{vmta},job{number * JOBS // count},,d{place}.example/{vmta},,'
            f"1790000000.M{number}P1Q1.node,1,,\r\n"
        )


def write_log(folder: Path, count: int) -> Path:
    made = rows(count)
    for number in range(FILES):
        day = stamp(BEGIN + number * count // FILES // RATE)[:10]
        name = "acct.csv" if number == FILES - 1 else f"acct-{day}-{number:04d}.csv"
        with open(folder / name, "w", newline="") as file:
            file.write(",".join(COLUMNS) + "\r\n")
            for _, row in zip(range(count // FILES), made, strict=False):
                file.write(row)
    return folder / "acct.csv"


def run(words: list[str]) -> tuple[float, float]:
    """(seconds, MB) of one command."""
    begun = time.monotonic()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "spoolmta", *words],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"spoolmta {' '.join(words)} failed")
    return time.monotonic() - begun, used.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dir", help="where to make the log (a temporary folder)")
    parser.add_argument("--report", choices=[*KNOWN], action="append", help="only this one")
    parser.add_argument("--by", default="")
    options = parser.parse_args()
    is_missed = False
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        path = write_log(Path(folder), options.rows)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        print(f"{options.rows:,} rows, {size / 1e9:.1f} GB; at most {SECONDS} s and {MEGABYTES} MB each")
        for name in options.report or KNOWN:
            seconds, megabytes = run(
                ["report", name, str(path), *(["--by", options.by] if options.by and not KNOWN[name].is_fixed else [])]
            )
            is_bad = seconds > SECONDS or megabytes > MEGABYTES
            is_missed |= is_bad
            print(f"{name:<20} {seconds:6.1f} s {megabytes:6.0f} MB{'  MISSED' if is_bad else ''}", flush=True)
    sys.exit(is_missed)


if __name__ == "__main__":
    main()
