"""What an operator is shown of a queue: its mode and who changed it, what holds it, what is going on, which limits are
in force and where they stand. Plain values."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from spoolmta import config, entry
from spoolmta.assignment import JOB_IS_HELD
from spoolmta.condition import NORMAL, Condition, EventKind, in_force
from spoolmta.model import Config
from spoolmta.policy import PolicyTable
from spoolmta.site import Queue, Site
from spoolmta.switch import Switch


def of_jobs(names: Iterable[str], jobs: Mapping[str, Switch]) -> list[dict[str, Any]]:
    """The paused jobs that some of these entries belong to: who paused each, until when, how many entries it holds."""
    counts = Counter(entry.flow(name)[1] for name in names) if jobs else Counter[str]()
    return [
        {"job": held.job_name, "held_by": held.reason, "until": held.until, "messages": counts[job]}
        for job, held in jobs.items()
        if counts[job]
    ]


_MODES = frozenset({EventKind.BACKOFF, EventKind.RECOVERING, EventKind.NORMAL})


def of_condition(key: str, state: Condition, now: float) -> dict[str, Any]:
    """A queue of which only the condition is known: it has no mail, or nobody works on it. Times are Unix seconds, 0
    for none."""
    changed = [event for event in state.events if event.kind in _MODES]
    return {
        "site": key,
        "mode": state.mode,
        "mode_changed_by": state.mode_reason,
        "mode_changed": changed[-1].time if changed else 0.0,
        "mode_until": state.mode_until,
        "paused": state.paused is not None,
        "paused_by": state.paused.reason if state.paused else "",
        "paused_until": state.paused.until if state.paused else 0.0,
        "held_by": "pause" if state.paused else "retry-after" if state.blocked_until > now else "",
        "blocked_until": state.blocked_until if state.blocked_until > now else 0.0,
        "failures": state.failures,
        "last_failure": state.reason,
        "last_reply": state.last_reply or state.reason,
        "sessions": 0,
        "opening": 0,
        "ready": 0,
        "waiting": 0,
        "held": 0,
        "held_jobs": [],
        "next_retry": 0.0,
        "domains": [],
        "disabled_sources": {address: msgspec.to_builtins(hold) for address, hold in state.disabled.items()},
        "overrides": [msgspec.to_builtins(override) for override in state.overrides],
        "condition": msgspec.to_builtins(state),
        "events": [msgspec.to_builtins(event) for event in state.events],
    }


def of_site(site: Site, jobs: Mapping[str, Switch], now: float) -> dict[str, Any]:
    """A queue that is worked on."""
    queues = [queue for group in site.groups.values() for queue in group.queues]
    shown = of_condition(site.key, site.condition, now) | _mail(queues, jobs)
    shown["sessions"], shown["opening"] = len(site.sessions), site.opening
    if not shown["held_by"]:
        is_held = shown["held"] and not shown["ready"]
        shown["held_by"] = JOB_IS_HELD if is_held else site.hold.replace("_", "-")
    if shown["blocked_until"] and shown["ready"]:
        shown["next_retry"] = min(shown["next_retry"] or math.inf, shown["blocked_until"])
    return shown


def of_queue(queue: Queue, state: Condition, jobs: Mapping[str, Switch], now: float) -> dict[str, Any]:
    """The mail of a domain whose site is not known yet; `state` is what holds if it is one by itself."""
    shown = of_condition(queue.domain, state, now) | _mail([queue], jobs)
    shown["last_failure"] = shown["last_reply"] = queue.reason
    if queue.retry_at > now:
        shown["held_by"] = "retry-after (its mail hosts are not known)"
        shown["next_retry"] = queue.retry_at
    elif not shown["held_by"] and shown["held"] and not shown["ready"]:
        shown["held_by"] = JOB_IS_HELD
    return shown


def _mail(queues: list[Queue], jobs: Mapping[str, Switch]) -> dict[str, Any]:
    waiting = [queue.waiting.first_due for queue in queues if queue.waiting]
    lines = [line for queue in queues for line in queue.lines.values()]
    names = itertools.chain(*(line.names for line in lines), *(queue.waiting for queue in queues))
    return {
        "ready": sum(len(line.names) for line in lines if not line.is_held),
        "waiting": sum(len(queue.waiting) for queue in queues),
        "held": sum(len(line.names) for line in lines if line.is_held),
        "held_jobs": of_jobs(names, jobs),
        "next_retry": min(waiting, default=0.0),
        "domains": sorted(queue.domain for queue in queues),
    }


def limits(configuration: Config, vmta: str, site: str, domain: str, state: Condition) -> list[dict[str, str]]:
    """Every directive as it holds now for a domain at a site, where its value stands, and what else changed it."""
    table = PolicyTable(configuration, vmta)
    settings = table.explain(site, domain)
    policy = table.resolve(site, domain)
    force = in_force(policy, state)
    overridden = {override.field: override.reason for override in state.overrides}
    shown = []
    for field in policy.__struct_fields__:
        value, setting = getattr(force, field), settings[field]
        because = ""
        if value != getattr(policy, field):
            because = overridden.get(field) or f"mode {state.mode}"
            if field not in overridden and state.mode != NORMAL:
                setting = settings.get(f"backoff_{field}", setting)
        shown.append(
            {
                "directive": field.replace("_", "-"),
                "value": config.unparse(field, value),
                "where": f"{setting.file}:{setting.line}" if setting.line else "default",
                "changed_by": because,
            }
        )
    return shown
