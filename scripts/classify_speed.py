"""How many distinct replies a second one core files into bounce categories, none of them seen before.

    python scripts/classify_speed.py [FILE] [--count N]

The replies are those of FILE, a reply a line, or the samples of the shipped rules; each gets another address, host and
queue id each time, so that no memory of whole replies helps. What a process does once (reading the rules, making the
expressions of phrases that are looked at) is left out: it is the time of the first 2,000 replies, which is told too.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from spoolmta import bounce, pattern
from spoolmta.model import Reply

WARM_UP = 2000


def distinct(texts: list[str], count: int) -> list[Reply]:
    chance = random.Random(1)
    found = []
    for number in range(count):
        code, _, text = chance.choice(texts).partition(" ")
        who = f"<user{number}@example{chance.randrange(10**6)}.com>"
        where = f"[mx{chance.randrange(1000)}.example.net] {chance.getrandbits(40):x}"
        found.append(Reply(int(code), (f"{text} {who} {where}",)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    options = parser.parse_args()
    began = time.process_time()
    classifier = bounce.Classifier()
    lines = options.file.read_text().splitlines() if options.file else [t for r in classifier.rules for t in r.sample]
    texts = [str(bounce.reply_in(line)) for line in lines if line.strip()]
    replies = distinct(texts, WARM_UP + options.count)

    def file(some: list[Reply]) -> float:
        before = time.process_time()
        for reply in some:
            classifier.category(bounce.status_of(reply), pattern.text_of(reply))
        return time.process_time() - before

    first, rest = file(replies[:WARM_UP]), file(replies[WARM_UP:])
    print(
        f"start, and the first {WARM_UP} replies: {time.process_time() - began - rest:.2f} s, of it {first:.2f} filing"
    )
    print(f"{options.count} distinct replies: {rest / options.count * 1e6:.1f} microseconds each,", end=" ")
    print(f"{options.count / rest:,.0f} a second")


if __name__ == "__main__":
    main()
