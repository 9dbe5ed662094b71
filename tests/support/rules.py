"""Response rules as values, without a configuration around them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from spoolmta.config import keys, lines, responses
from spoolmta.model import AT_ONCE, Failure, FailureKind, Reply, ResponseAction, ResponseRule, Stage, Trigger


def rule(
    *reply: str,
    name: str = "",
    stages: tuple[Stage, ...] = (),
    actions: tuple[ResponseAction, ...] = (ResponseAction.BACKOFF,),
    trigger: Trigger = AT_ONCE,
    duration: float | None = None,
) -> ResponseRule:
    """One rule with an id of its own for each name and pattern."""
    return ResponseRule(
        id=f"{name}{reply}",
        reply=reply,
        name=name,
        stages=stages,
        actions=actions,
        trigger=trigger,
        duration=duration,
        file="etc/policy.toml",
        line=7,
    )


def reply(line: str) -> Reply:
    return Reply(int(line[:3]), (line[4:],))


def made_up(text: str, kind: FailureKind = FailureKind.REFUSED) -> Failure:
    return Failure(kind, text)


def rules_in(path: Path) -> tuple[dict[str, list[ResponseRule]], list[ResponseRule]]:
    """The rules of a policy file: of each provider, and of all."""
    text = path.read_text()
    tree, where = tomllib.loads(text), lines.index(text).keys

    def read(tables: list[dict[str, Any]], provider: str, *above: str) -> list[ResponseRule]:
        found = []
        for number, table in enumerate(tables):
            fields = {keys.field_of(key): keys.RESPONSE[key].read(value) for key, value in table.items()}
            found.append(responses.build(fields, provider, str(path), where[*above, "response", number]))
        return found

    own = {
        name: read(table.get("response", []), name, "provider", name)
        for name, table in tree.get("provider", {}).items()
    }
    return own, read(tree.get("response", []), "")
