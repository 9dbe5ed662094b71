"""The speed table: what is compared with what, and what it must come to."""

import statistics
from dataclasses import dataclass, replace

from bench_mail import Work
from bench_measure import Round

OURS, POSTFIX = "spoolmta", "Postfix"
MISSED = "MISSED"


@dataclass(frozen=True)
class Side:
    """One of the two that a pair of rounds compares."""

    system: str
    work: Work

    def __str__(self) -> str:
        return f"{self.work}: {self.system}"


Sides = tuple[Side, Side]
Pair = dict[Side, Round]


@dataclass(frozen=True)
class Row:
    """A line of the table. The ratio is of the rates, or how often one CPU time goes into the other."""

    name: str
    title: str
    sides: Sides
    what: str  # "rate", "saving" (Postfix's CPU against ours) or "growth" (our CPU with much against with little)
    must: float
    aim: float

    def ratio(self, pair: Pair) -> float:
        ours, other = (pair[side] for side in self.sides)
        if self.what == "rate":
            return ours.rate / other.rate
        if self.what == "saving":
            return other.cpu_total_us / ours.cpu_total_us
        return ours.cpu_total_us / other.cpu_total_us

    def value(self, round_: Round) -> float:
        return round_.rate if self.what == "rate" else round_.cpu_total_us

    @property
    def unit(self) -> str:
        return "/s" if self.what == "rate" else " us"

    def meets(self, ratio: float, target: float) -> bool:
        return ratio <= target if self.what == "growth" else ratio >= target

    def target(self, value: float) -> str:
        return f"{'<=' if self.what == 'growth' else '>='} {value:g}x"

    def verdict(self, pairs: list[Pair]) -> str:
        """Whether the median is what it must be, and what we aim at; "-" where there is nothing to compare."""
        ratios = self.ratios(pairs)
        if not ratios:
            return "-"
        ratio = statistics.median(ratios)
        if not self.meets(ratio, self.must):
            return MISSED
        return "ok" if self.meets(ratio, self.aim) else "aim MISSED"

    def ratios(self, pairs: list[Pair]) -> list[float]:
        return [self.ratio(pair) for pair in pairs if all(side in pair for side in self.sides)]


def against_postfix(work: Work) -> Sides:
    return Side(OURS, work), Side(POSTFIX, work)


def against_ourselves(much: Work, little: Work) -> Sides:
    return Side(OURS, much), Side(OURS, little)


def make_rows(quick: bool) -> list[Row]:
    """The table, or a short form of it whose works are small."""
    fed = Work("4 KB, fed")
    full = Work("4 KB, full", way="full")
    large = Work("40 KB, fed", size=40_960)
    single = Work("4 KB, fed, 1 VMTA", vmtas=1)
    tls = Work("4 KB, fed, TLS", tls=True)
    signed = Work("4 KB, fed, DKIM", signed=True)
    recipients = Work("1,000 recipients, fed", recipients=1000)
    mix = Work("mix, fed", vmtas=50, domains=200, mixed=True)
    queued = 100_000 if quick else 1_000_000
    vmtas, of_each = (100, 50) if quick else (1000, 100)
    domains = 4000 if quick else 50_000
    rows = [
        Row("fed", "4 KB, fed", against_postfix(fed), "rate", 6, 10),
        Row("full", "4 KB, full", against_postfix(full), "rate", 3.5, 5),
        Row("cpu", "4 KB, fed: CPU a message", against_postfix(fed), "saving", 8, 12),
        Row("large", "40 KB, fed", against_postfix(large), "rate", 3, 4.5),
        Row("single", "4 KB, fed, 1 VMTA", against_postfix(single), "rate", 4, 7),
        Row("tls", "4 KB, fed, TLS", against_postfix(tls), "rate", 3, 5),
        Row("signed", "4 KB, fed, DKIM (RSA-2048)", against_postfix(signed), "rate", 7, 10),
        Row("recipients", "1,000 recipients a message: recipients", against_postfix(recipients), "rate", 4, 8),
        Row("mix", "mix, 200 domains, 50 VMTAs", against_postfix(mix), "rate", 4, 7),
    ]
    many = Work(f"{queued:,} queued", way="beside", vmtas=1, messages=queued)
    few = Work(f"{queued // 100:,} queued", way="beside", vmtas=1, messages=queued // 100)
    rows.append(Row("queued", f"CPU, {many} / {few}", against_ourselves(many, few), "growth", 1.3, 1.1))
    many = Work(f"{vmtas:,} VMTAs", vmtas=vmtas, messages=vmtas * of_each, run=5)
    few = replace(many, name="8 VMTAs", vmtas=8)
    rows.append(Row("vmtas", f"CPU, {many} / {few}", against_ourselves(many, few), "growth", 1.8, 1.4))
    many = Work(f"{domains:,} domains", domains=domains, messages=domains * 10, run=10)
    few = replace(many, name="20 domains", domains=20, messages=min(many.messages, 100_000))
    rows.append(Row("domains", f"CPU, {many} / {few}", against_ourselves(many, few), "growth", 2, 1.5))
    return rows
