"""What an operator is shown of a queue: its mode and who changed it, what holds it, what is going on, which limits are
in force and where they stand. Plain values."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from spoolmta import config
from spoolmta.condition import NORMAL, Condition, EventKind, in_force
from spoolmta.model import Config
from spoolmta.policy import PolicyTable
from spoolmta.site import Queue, Site

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
        "next_retry": 0.0,
        "domains": [],
        "disabled_sources": {address: msgspec.to_builtins(hold) for address, hold in state.disabled.items()},
        "overrides": [msgspec.to_builtins(override) for override in state.overrides],
        "condition": msgspec.to_builtins(state),
        "events": [msgspec.to_builtins(event) for event in state.events],
    }


def of_site(site: Site, now: float) -> dict[str, Any]:
    """A queue that is worked on."""
    queues = [queue for group in site.groups.values() for queue in group.queues]
    shown = of_condition(site.key, site.condition, now) | _mail(queues)
    shown["sessions"], shown["opening"] = len(site.sessions), site.opening
    if not shown["held_by"]:
        shown["held_by"] = site.hold.replace("_", "-")
    if shown["blocked_until"] and shown["ready"]:
        shown["next_retry"] = min(shown["next_retry"] or math.inf, shown["blocked_until"])
    return shown


def of_queue(queue: Queue, now: float) -> dict[str, Any]:
    """The mail of a domain whose site is not known yet."""
    shown = of_condition(queue.domain, Condition(), now) | _mail([queue])
    shown["last_failure"] = shown["last_reply"] = queue.reason
    if queue.retry_at > now:
        shown["held_by"] = "retry-after (its mail hosts are not known)"
        shown["next_retry"] = queue.retry_at
    return shown


def _mail(queues: list[Queue]) -> dict[str, Any]:
    waiting = [queue.waiting[0][0] for queue in queues if queue.waiting]
    return {
        "ready": sum(len(line.names) for queue in queues for line in queue.lines.values()),
        "waiting": sum(len(queue.waiting) for queue in queues),
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
