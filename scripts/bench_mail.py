"""What the mail of the benchmark looks like: the same for both systems, as a pickup file or as an SMTP transaction.

A message is known by its number. Consecutive numbers go over all VMTAs and domains in turn; after `kinds` numbers they
begin anew. In a mix VMTA and domain are drawn instead, and domains have shares as in a real list, where a few large
receivers have most of the addresses: the n-th of them 1/n of the first (of 200, the ten largest have half the mail, the
hundred smallest an eighth). The local part says what becomes of a message, and `bench_sink` obeys it: `gone...` is
refused for good, `later...` for the time being every other time it is tried, everything else is taken.
"""

import random
from dataclasses import dataclass

SENDER = "sender@bench.test"
DEFERRED, BOUNCED = "later", "gone"
DEFERRED_SHARE, BOUNCED_SHARE = 0.10, 0.03
LINE = b"spoolmta bench " + b"x" * 56 + b"\n"
WARM_UP = 400


@dataclass(frozen=True)
class Work:
    """What a system has to do in a round."""

    name: str
    way: str = "fed"  # or "full", or "beside" a queue that waits
    size: int = 4096
    vmtas: int = 8
    domains: int = 20
    recipients: int = 1
    messages: int = 0  # 0: as many as the seconds of a round allow
    run: int = 1  # so many messages in a row are for the same domain and VMTA
    tls: bool = False
    signed: bool = False  # DKIM, RSA-2048
    mixed: bool = False  # some deferred, some bounced, rate limits on

    def __str__(self) -> str:
        return self.name

    @property
    def kinds(self) -> int:
        return self.vmtas * (self.domains if self.recipients == 1 else 1)

    @property
    def warm_up(self) -> int:
        """How many messages go ahead of a round, so that it finds all processes at work: at least one for each VMTA."""
        return max(self.vmtas, min(self.kinds, WARM_UP))

    @property
    def hosts(self) -> dict[str, str]:
        """The mail host of each domain of a mix: all are the sink, but no two have the same address, as if they were as
        many receivers. Domains of other works share one host."""
        numbers = range(self.domains) if self.mixed else ()
        return {domain_name(number): f"127.1.{number // 250}.{1 + number % 250}" for number in numbers}

    @property
    def needs_own_sink(self) -> bool:
        return self.tls or self.mixed


def domain_name(number: int) -> str:
    return f"d{number:02}.bench.test"


class Mail:
    """The messages of a work."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.body = (LINE * (work.size // len(LINE) + 1))[: work.size - 1] + b"\n"
        self._heads: dict[int, bytes] = {}
        self._users = ["user"] * work.kinds
        self._places: list[tuple[int, int]] = []
        if work.mixed:
            chance = random.Random(1)
            self._users = [draw_user(chance.random()) for _ in range(work.kinds)]
            shares = [1 / rank for rank in range(1, work.domains + 1)]
            drawn = chance.choices(range(work.domains), shares, k=work.kinds)
            self._places = [(kind % work.vmtas, domain) for kind, domain in enumerate(drawn)]

    def __repr__(self) -> str:
        return f"Mail({self.work!r})"

    def kind(self, number: int) -> int:
        return number // self.work.run % self.work.kinds

    def place(self, kind: int) -> tuple[int, int]:
        """VMTA and domain: the more numerous of the two changes from kind to kind, and all pairs come up; in a mix the
        domain is drawn."""
        if self._places:
            return self._places[kind]
        vmtas, domains = self.work.vmtas, self.work.domains
        if domains > vmtas:
            return (kind % domains + kind // domains) % vmtas, kind % domains
        return kind % vmtas, (kind % vmtas + kind // vmtas) % domains

    def recipients(self, kind: int) -> list[str]:
        if self.work.recipients > 1:
            return [f"user{each}@{domain_name(each % self.work.domains)}" for each in range(self.work.recipients)]
        return [f"{self._users[kind]}{kind}@{domain_name(self.place(kind)[1])}"]

    def count(self, user: str, begin: int, end: int) -> int:
        """How many of the messages from `begin` to before `end` have this fate."""
        return sum(self._users[self.kind(number)] == user for number in range(begin, end))

    def pickup_file(self, kind: int) -> bytes:
        head = self._heads.get(kind)
        if head is None:
            to = self.recipients(kind)
            lines = [f"x-sender: {SENDER}", *(f"x-receiver: {address}" for address in to)]
            lines += [f"x-virtual-mta: v{self.place(kind)[0]}", self.header(kind, to[0])]
            head = self._heads[kind] = "\n".join(lines).encode()
        return head + self.body

    def header(self, kind: int, to: str) -> str:
        return (
            f"From: {SENDER}\nTo: {to}\nDate: Mon, 01 Jan 2024 00:00:00 +0000\nMessage-Id: <{kind}@bench.test>\n"
            f"Subject: bench\n\n"
        )

    def transaction(self, kind: int) -> tuple[bytes, bytes]:
        """MAIL, RCPT and DATA as one write; the content with its final dot as another."""
        to = self.recipients(kind)
        commands = [f"MAIL FROM:<{SENDER}>", *(f"RCPT TO:<{address}>" for address in to), "DATA", ""]
        content = self.header(kind, to[0]).encode() + self.body
        return "\r\n".join(commands).encode(), content.replace(b"\n", b"\r\n") + b".\r\n"


def draw_user(chance: float) -> str:
    if chance < BOUNCED_SHARE:
        return BOUNCED
    return DEFERRED if chance < BOUNCED_SHARE + DEFERRED_SHARE else "user"
