from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta.backlog import EIGHTH, Backlog, Line
from spoolmta.site import Queue

Mail = tuple[str, int, str, int]
"""Domain, priority, job, recipients."""

mail = st.tuples(
    st.sampled_from(["a.test", "b.test"]),
    st.sampled_from([10, 50, 90]),
    st.sampled_from(["0", "aaaaaaaa", "bbbbbbbb"]),
    st.integers(1, 5),
)


class Desk:
    """A backlog with the lines of some queues."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.queues: dict[str, Queue] = {}
        self.number = 0

    def push(self, domain: str, priority: int, job: str, recipients: int = 1) -> str:
        self.number += 1
        more = f",N={recipients}" if recipients > 1 else ""
        urgency = f",P={priority}" if priority != 50 else ""
        name = f"1.M{self.number:06d}P1Q{self.number}.mx,S=1,C=00000000,J={job}{more}{urgency}"
        line = self.queues.setdefault(domain, Queue(domain)).line_of(name)
        assert (line.priority, line.job) == (priority, job)
        line.names.append(name)
        self.backlog.push(line)
        return name


@given(st.lists(st.none() | mail, max_size=80))
def test_what_is_pushed_is_taken_once_in_order_within_its_line(story: list[Mail | None]) -> None:
    desk = Desk()
    expected: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    taken: dict[tuple[str, int, str], list[str]] = defaultdict(list)

    def take() -> None:
        promised = desk.backlog.peek()
        line, name = desk.backlog.take()
        assert promised == (line, name)
        taken[line.queue.domain, line.priority, line.job].append(name)

    for one in story:
        if one is not None:
            expected[one[:3]].append(desk.push(*one))
        elif desk.backlog:
            take()
    left = sum(map(len, expected.values())) - sum(map(len, taken.values()))
    assert desk.backlog.at_least(1000) == left
    while desk.backlog:
        take()
    assert taken == expected
    assert desk.backlog.peek() is None


@given(st.lists(mail, min_size=1, max_size=60), st.data())
def test_a_line_that_is_removed_gives_nothing_and_the_others_give_all(story: list[Mail], data: st.DataObject) -> None:
    desk = Desk()
    for one in story:
        desk.push(*one)
    lines = desk.backlog.lines()
    removed = data.draw(st.sampled_from(lines))
    desk.backlog.remove(removed)
    found: Counter[Line] = Counter()
    while desk.backlog:
        found[desk.backlog.take()[0]] += 1
    assert removed not in found
    assert set(found) == set(lines) - {removed}


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(10, 300))
def test_jobs_of_one_priority_share_recipients_to_within_one_message(sizes: list[int], takes: int) -> None:
    desk = Desk()
    served: Counter[str] = Counter()
    jobs = {f"{number:08x}": size for number, size in enumerate(sizes, start=0x10000000)}
    for job, size in jobs.items():
        for _ in range(2):
            desk.push("a.test", 50, job, size)
    for _ in range(takes):
        line, _ = desk.backlog.take()
        served[line.job] += jobs[line.job]
        desk.push("a.test", 50, line.job, jobs[line.job])
        assert max(served[job] for job in jobs) - min(served[job] for job in jobs) <= 2 * max(sizes)


def test_a_job_of_ten_does_not_wait_behind_a_job_of_a_hundred_thousand() -> None:
    desk = Desk()
    for _ in range(100_000):
        desk.push("a.test", 50, "aaaaaaaa")
    for _ in range(5):
        desk.backlog.take()
    for _ in range(10):
        desk.push("a.test", 50, "bbbbbbbb")
    order = [desk.backlog.take()[0].job for _ in range(20)]
    assert order.count("bbbbbbbb") >= 9


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 50))
def test_a_priority_goes_first_and_bulk_still_moves(bulk: int, urgent: int) -> None:
    desk = Desk()
    for _ in range(bulk):
        desk.push("a.test", 50, "aaaaaaaa")
    for _ in range(urgent):
        desk.push("a.test", 90, "bbbbbbbb")
    order = [desk.backlog.take()[0].priority for _ in range(min(bulk, urgent))]
    assert order[0] == 90
    assert order.count(50) == len(order) // EIGHTH


def test_new_jobs_do_not_starve_an_old_one() -> None:
    desk = Desk()
    desk.push("a.test", 50, "ffffffff", 10)
    desk.push("a.test", 50, "ffffffff", 10)
    waits = 0
    for number in range(100):
        desk.push("a.test", 50, f"{0x10000000 + number:08x}")
        if desk.backlog.take()[0].job == "ffffffff":
            waits = number
    assert 0 < waits < 30


def test_the_domains_of_a_job_take_turns() -> None:
    desk = Desk()
    for _ in range(50):
        desk.push("a.test", 50, "0")
    desk.push("b.test", 50, "0")
    assert "b.test" in [desk.backlog.take()[0].queue.domain for _ in range(2)]
