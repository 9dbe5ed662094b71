"""Whoever carries out an operator's command on a VMTA: its process, or, where it has none (it sleeps, or nothing runs),
the command itself, with the lock of its queue in hand.

The lock is what both go by: a process that is about to start waits for it, and one that is about to end lets go of it.
So the command asks the process, and if there is none takes the lock, and if neither can be had tries again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from spoolmta import alert, clock, condition, control, disk, entry, state, switch, view
from spoolmta.assignment import JOB_IS_HELD
from spoolmta.clearance import BATCH, Chosen, Clearance, Learned, Outcome
from spoolmta.condition import Condition
from spoolmta.errors import SpoolError, UnavailableError
from spoolmta.ledger import Ledger
from spoolmta.model import Config, DomainPolicy
from spoolmta.policy import PolicyTable
from spoolmta.reporter import Owner
from spoolmta.shared import Page
from spoolmta.spool import audit
from spoolmta.spool.audit import Item
from spoolmta.spool.layout import Layout
from spoolmta.spool.partition import Partition, take
from spoolmta.switch import Switch

BATCH_BYTES = 100_000_000
"""Of messages that are taken out at once, beside BATCH of them."""
PATIENCE = 30.0
"""Seconds in which a process answers, or lets go of its queue."""
Answer = dict[str, Any]


def carry_out(layout: Layout, vmta: str, question: Answer, alone: Callable[[int], Answer]) -> Answer:
    """Ask the VMTA's process; without one do it `alone`, under the lock of its queue (it gets the descriptor). The
    answer says by `process` which it was. Raises UnavailableError."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(UnavailableError):
            answer = control.ask(layout.control_of(vmta), question, PATIENCE)
            if "error" in answer:
                raise SpoolError(f"the process of {vmta}: {answer['error']}")
            if not answer.get("later"):
                return {**answer, "process": True}
        with locked(layout, vmta) as lock:
            if lock is not None:
                return {**alone(lock), "process": False}
        if time.monotonic() > deadline:
            raise UnavailableError(f"the process of {vmta} has its queue in hand, but does not answer")
        time.sleep(0.02)


@contextlib.contextmanager
def locked(layout: Layout, vmta: str) -> Iterator[int | None]:
    """The lock of a VMTA's queue, if nobody has it; gives the descriptor that holds it, or None."""
    lock = take(layout, vmta)
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def wake(layout: Layout, vmta: str, *, has_news: bool = False) -> None:
    """Have the running system, if there is one, begin a process for a VMTA that has mail, or something to tell the
    operator by mail: its state has changed."""
    if disk.is_locked(layout.lock) and (has_news or next(audit.items(layout, vmta), None) is not None):
        hints = control.HintWriter(layout.run)
        hints.send(vmta, [control.SCAN])
        hints.close()


def vmtas(config: Config, layout: Layout) -> list[str]:
    """All that are configured, or have mail."""
    queues = [name for name in os.listdir(layout.queue) if os.path.isdir(f"{layout.queue}/{name}")]
    return sorted({*config.vmtas, *queues})


# Looking


def look(config: Config, layout: Layout, vmta: str) -> Answer:
    """Every queue of a VMTA there is mail for, or anything known of."""
    question = {"ask": "sites"}
    with contextlib.suppress(UnavailableError):
        return {**control.ask(layout.control_of(vmta), question, PATIENCE), "process": True}
    return {**_look_alone(config, layout, vmta), "process": False}


def _look_alone(config: Config, layout: Layout, vmta: str) -> Answer:
    left = state.load(layout, vmta)
    table = PolicyTable(config, vmta)
    now = clock.now()
    jobs = switch.held_jobs(left.orders, now)
    names: dict[str, list[str]] = {}
    shown = {key: view.of_condition(key, _ticked(table, key, found, now), now) for key, found in left.sites.items()}
    for item in audit.items(layout, vmta):
        site = left.domains.get(item.domain, item.domain)
        if site not in shown:
            found = Condition()
            _apply_standing(left, table, site, found, now)
            shown[site] = view.of_condition(site, found, now)
        of_site = shown[site]
        if item.domain not in of_site["domains"]:
            of_site["domains"].append(item.domain)
        if item.due > now:
            of_site["waiting"] += 1
            of_site["next_retry"] = min(of_site["next_retry"] or item.due, item.due)
        else:
            of_site["held" if entry.flow(item.name)[1] in jobs else "ready"] += 1
        names.setdefault(site, []).append(item.name)
    for site, of_site in shown.items():
        of_site["held_jobs"] = view.of_jobs(names.get(site, ()), jobs)
        if of_site["held_by"]:
            continue
        if of_site["ready"]:
            of_site["held_by"] = "no process"
        elif of_site["held"]:
            of_site["held_by"] = JOB_IS_HELD
        elif of_site["waiting"]:
            of_site["held_by"] = "retry-recipients-after"
    return {"sites": list(shown.values()), "orders": msgspec.to_builtins(switch.in_force(left.orders, now))}


def _ticked(table: PolicyTable, key: str, found: Condition, now: float) -> Condition:
    condition.tick(found, table.resolve(key, key), now)
    return found


def _apply_standing(left: state.State, table: PolicyTable, site: str, found: Condition, now: float) -> None:
    for order in switch.standing(left.orders, site, now):
        switch.apply(found, table.resolve(site, site), now, order)


def held_jobs(layout: Layout, vmta: str) -> dict[str, Switch]:
    """The jobs that are paused in a VMTA, by their hashes. Its state tells, also of a running process: a switch is
    there before it is answered."""
    return switch.held_jobs(state.load(layout, vmta).orders, clock.now())


# Switching


def turn(config: Config, layout: Layout, vmta: str, pattern: str, wanted: Switch) -> Answer:
    """Turn a switch at the queues of a VMTA that `pattern` names."""
    question = {"ask": "switch", "site": pattern, "switch": msgspec.to_builtins(wanted)}
    answer = carry_out(layout, vmta, question, lambda _: _turn_alone(config, layout, vmta, pattern, wanted))
    if not answer["process"] and (wanted.do != switch.PAUSE or wanted.until):
        table = PolicyTable(config, vmta)
        is_heard = any(alert.is_wanted(table.resolve(site, site)) for site in answer.get("changed", ()))
        wake(layout, vmta, has_news=is_heard)
    return answer


def _turn_alone(config: Config, layout: Layout, vmta: str, pattern: str, wanted: Switch) -> Answer:
    left = state.load(layout, vmta)
    now = clock.now()
    if wanted.job:
        orders, is_news = switch.order_job(left.orders, wanted, now)
        state.save(layout, vmta, msgspec.structs.replace(left, orders=orders))
        return {"changed": [switch.EVERYWHERE] if is_news else []}
    other = left.domains.get(pattern, "")
    if other:
        return {"elsewhere": other}
    table = PolicyTable(config, vmta)
    changed = []
    for key in _named(layout, vmta, left, pattern):
        found = left.sites.get(key)
        if found is None:
            found = Condition()
            _apply_standing(left, table, key, found, now)
            if not switch.is_pattern(pattern):  # else the order is there when it gets its site
                left.sites[key] = found
        policy = table.resolve(key, key)
        condition.tick(found, policy, now)
        if switch.apply(found, policy, now, wanted):
            changed.append(key)
    orders = switch.in_force(switch.order(left.orders, pattern, wanted), now)
    sites = {key: found for key, found in left.sites.items() if not found.is_ordinary(now)}
    state.save(layout, vmta, msgspec.structs.replace(left, sites=sites, orders=orders))
    return {"changed": changed}


def rehearse(config: Config, layout: Layout, vmta: str, pattern: str, wanted: Switch | None) -> Answer:
    """What would come of turning a switch (none: of trying again), with the mail that is there; nothing is done."""
    sites = {one["site"]: one for one in look(config, layout, vmta)["sites"]}
    if not switch.is_pattern(pattern) and pattern not in sites:
        other = next((key for key, one in sites.items() if pattern in one["domains"]), "")
        if other:
            return {"elsewhere": other}
        sites[pattern] = view.of_condition(pattern, Condition(), clock.now())
    table = PolicyTable(config, vmta)
    named = [one for key, one in sorted(sites.items()) if switch.matches(pattern, key)]
    return {"changed": [one for one in named if _would_change(table, one, wanted)]}


def rehearse_job(layout: Layout, vmta: str, wanted: Switch) -> Answer:
    """What would come of pausing or resuming a job, with its mail that is there; nothing is done."""
    now = clock.now()
    if not switch.order_job(state.load(layout, vmta).orders, wanted, now)[1]:
        return {"changed": []}
    found: dict[str, Answer] = {}
    for item in audit.items(layout, vmta):
        if entry.flow(item.name)[1] == wanted.job:
            mail = found.setdefault(item.domain, {"site": item.domain, "ready": 0, "waiting": 0})
            mail["waiting" if item.due > now else "ready"] += 1
    return {"changed": [*found.values()] or [{"site": switch.EVERYWHERE, "ready": 0, "waiting": 0}]}


def _would_change(table: PolicyTable, shown: Answer, wanted: Switch | None) -> bool:
    if wanted is None:
        return bool(shown["waiting"] or shown["blocked_until"])
    found = msgspec.convert(shown["condition"], Condition)
    return switch.apply(found, table.resolve(shown["site"], shown["site"]), clock.now(), wanted)


def _named(layout: Layout, vmta: str, left: state.State, pattern: str) -> list[str]:
    if not switch.is_pattern(pattern):
        return [pattern]
    with_mail = {left.domains.get(domain, domain) for domain in domains(layout, vmta)}
    return sorted(key for key in {*left.sites, *with_mail} if switch.matches(pattern, key))


def domains(layout: Layout, vmta: str) -> set[str]:
    """The domains a VMTA has mail for."""
    return {item.domain for item in audit.items(layout, vmta)}


# Trying again


def retry(layout: Layout, vmta: str, pattern: str) -> Answer:
    """Have the mail of these queues tried now that waits for its time."""
    question = {"ask": "retry", "site": pattern}
    answer = carry_out(layout, vmta, question, lambda _: _retry_alone(layout, vmta, pattern))
    if not answer["process"]:
        wake(layout, vmta)
    return answer


def _retry_alone(layout: Layout, vmta: str, pattern: str) -> Answer:
    left = state.load(layout, vmta)
    other = left.domains.get(pattern, "")
    if other:
        return {"elsewhere": other}
    now = clock.now()
    changed = {key for key in left.sites if switch.matches(pattern, key) and _unblock(left, key, now)}
    count = 0
    for domain in domains(layout, vmta):
        site = left.domains.get(domain, domain)
        if not switch.matches(pattern, site):
            continue
        for item in audit.items(layout, vmta, domain):
            if _hasten(layout, item, now):
                changed.add(site)
                count += 1
    _leave_retried(layout, vmta, left, count, now)
    return {"changed": sorted(changed), "messages": count}


def retry_some(layout: Layout, vmta: str, entries: list[Chosen]) -> Answer:
    """Have these entries tried now."""
    changed: set[str] = set()
    count = 0

    def alone(left: list[Chosen], _lock: int) -> Answer:
        return _retry_some_alone(layout, vmta, left)

    for answer in _hand_over(layout, vmta, entries, {"ask": "retry some"}, alone):
        changed.update(answer["changed"])
        count += answer["messages"]
        if not answer["process"]:
            wake(layout, vmta)
    return {"changed": sorted(changed), "messages": count}


def _retry_some_alone(layout: Layout, vmta: str, entries: list[Chosen]) -> Answer:
    left = state.load(layout, vmta)
    now = clock.now()
    meant = {(one.domain, entry.bare(one.name)) for one in entries}
    found = [
        item
        for domain in sorted({one.domain for one in entries})
        for item in audit.items(layout, vmta, domain)
        if (domain, entry.bare(item.name)) in meant
    ]
    for item in found:
        _hasten(layout, item, now)
    changed = {left.domains.get(item.domain, item.domain) for item in found}
    for key in changed:
        _unblock(left, key, now)
    _leave_retried(layout, vmta, left, len(found), now)
    return {"changed": sorted(changed), "messages": len(found)}


def _hasten(layout: Layout, item: Item, now: float) -> bool:
    """The due time is in the name: one that lies ahead becomes now."""
    if item.due <= now:
        return False
    target = entry.with_state(item.name, item.attempts, int(now))
    folder = f"{layout.queue}/{item.vmta}/{item.domain}/cur"
    disk.rename(f"{folder}/{item.name}", f"{folder}/{target}")
    return True


def _unblock(left: state.State, key: str, now: float) -> bool:
    """A site is tried again, whatever failed there; whether anything kept it."""
    found = left.sites.get(key)
    if found is None or found.blocked_until <= now:
        return False
    found.blocked_until = 0.0
    return True


def _leave_retried(layout: Layout, vmta: str, left: state.State, count: int, now: float) -> None:
    state.save(layout, vmta, msgspec.structs.replace(left, wake=min(left.wake or now, now) if count else left.wake))


# Taking mail out


def remove(config: Config, layout: Layout, vmta: str, entries: list[Chosen], kind: str, text: str) -> Outcome:
    """Delete or bounce entries of a VMTA (`kind`); `text` is the diagnostic."""
    question = {"ask": "remove", "kind": kind, "text": text}
    return _clear(config, layout, vmta, entries, question, lambda hands, some: hands.remove(some, kind, text))


def move(config: Config, layout: Layout, vmta: str, entries: list[Chosen], target: str) -> Outcome:
    """Move entries to another VMTA, which has learned what is settled of them."""
    question = {"ask": "move", "to": target}
    return _clear(config, layout, vmta, entries, question, lambda hands, some: hands.move(some, target))


def learn(config: Config, layout: Layout, vmta: str, lines: list[Learned]) -> None:
    """Have a VMTA know what is settled of entries that will move to it."""

    def alone(lock: int) -> Answer:
        with _hands(config, layout, vmta, lock) as hands:
            hands.learn(lines)
        return {}

    for begin in range(0, len(lines), BATCH):
        question = {"ask": "learn", "lines": msgspec.to_builtins(lines[begin : begin + BATCH])}
        if not carry_out(layout, vmta, question, alone)["process"]:
            return


def _clear(
    config: Config,
    layout: Layout,
    vmta: str,
    entries: list[Chosen],
    question: Answer,
    work: Callable[[Clearance, list[Chosen]], Outcome],
) -> Outcome:
    done = Outcome()

    def alone(left: list[Chosen], lock: int) -> Answer:
        did = Outcome()
        with _hands(config, layout, vmta, lock) as hands:
            for some in batches(left):
                did.add(work(hands, some))
        return {"done": msgspec.to_builtins(did)}

    for answer in _hand_over(layout, vmta, entries, question, alone):
        done.add(msgspec.convert(answer["done"], Outcome))
    return done


# Handing entries over


def _hand_over(
    layout: Layout, vmta: str, entries: list[Chosen], question: Answer, alone: Callable[[list[Chosen], int], Answer]
) -> Iterator[Answer]:
    """Batch by batch where a process does it; all that is left at once where it is done alone."""
    begin = 0
    for batch in batches(entries):
        left = entries[begin:]
        answer = carry_out(layout, vmta, {**question, "entries": msgspec.to_builtins(batch)}, partial(alone, left))
        yield answer
        if not answer["process"]:
            return
        begin += len(batch)


def batches(entries: list[Chosen]) -> list[list[Chosen]]:
    """As many at once as a process can do without holding its mail up for long: it reads the files."""
    found: list[list[Chosen]] = []
    room = 0
    for one in entries:
        if not found or room <= 0 or len(found[-1]) == BATCH:
            found.append([])
            room = BATCH_BYTES
        found[-1].append(one)
        room -= entry.size(one.name)
    return found


@contextlib.contextmanager
def _hands(config: Config, layout: Layout, vmta: str, lock: int) -> Iterator[Clearance]:
    """A queue without a process in our own hands, with an accounting log of our own. (A rotation does not wait for us:
    our rows may get into the file that was just put aside.)"""
    left = state.load(layout, vmta)
    page = Page(1)
    partition = Partition(layout, vmta, os.dup(lock))
    table = PolicyTable(config, vmta)
    is_mail_there = False

    def site_of(domain: str) -> str:
        return left.domains.get(domain, domain)

    def policy(domain: str) -> DomainPolicy:
        return table.resolve(site_of(domain), domain)

    def on_queued(_domain: str, _name: str) -> None:
        nonlocal is_mail_there
        is_mail_there = True

    ledger = Ledger(config, Owner(policy, site_of, on_queued), layout.root, page, page.row(vmta), partition)
    try:
        yield Clearance(layout, partition, ledger, site_of, policy, clock.now)
    finally:
        ledger.close()
        partition.close()
        if is_mail_there:  # reports of what was bounced
            wake(layout, vmta)
