"""What the supervisor tells of the spool and of each process, from the page of shared memory."""

from __future__ import annotations

import os
from typing import Any

from spoolmta import disk
from spoolmta.model import AcctFile, Config
from spoolmta.shared import Cell, Row
from spoolmta.spool.layout import Layout


def of_spool(layout: Layout) -> dict[str, Any]:
    space, inodes = disk.free(layout.root)
    return {"spool": layout.root, "free_bytes": space, "free_inodes": inodes}


def of_pickup(row: Row) -> dict[str, Any]:
    return {
        "pid": row[Cell.PID],
        "ready": bool(row[Cell.READY]),
        "config_generation": row[Cell.CONFIG_GENERATION],
        "waiting": row[Cell.QUEUED],
        "messages": row[Cell.MESSAGES],
        "recipients": row[Cell.ACCEPTED],
        "refused": row[Cell.REFUSED],
        "left_alone": row[Cell.LEFT_ALONE],
        "disk_full": bool(row[Cell.TROUBLE]),
        "restarts": row[Cell.RESTARTS],
    }


def of_pipe(file: AcctFile, row: Row) -> dict[str, Any]:
    """`unread` are bytes that are there for the program and that it has not read."""
    return {
        "name": file.pipe,
        "command": list(file.command),
        "pid": row[Cell.PID],
        "state": "running" if row[Cell.READY] else "broken" if row[Cell.TROUBLE] else "starting",
        "rows": row[Cell.MESSAGES],
        "unread": row[Cell.QUEUED],
        "restarts": row[Cell.RESTARTS],
    }


def unwanted_pipes(layout: Layout, config: Config) -> list[str]:
    """Folders with rows for programs that are not configured any more, as sentences."""
    folders = sorted(os.listdir(layout.path("pipes")))
    return [
        f"pipes/{name} holds rows for a program that is not configured any more: read them with "
        f"`spoolmta log find {layout.path('pipes', name)}/acct.csv`, or remove the folder"
        for name in folders
        if name not in config.pipes
    ]


def of_vmta(name: str, row: Row, state: str, generation: int) -> dict[str, Any]:
    """A VMTA without a process has every configuration taken over."""
    return {
        "name": name,
        "state": state,
        "pid": row[Cell.PID],
        "config_generation": row[Cell.CONFIG_GENERATION] if state == "running" else generation,
        "queued": row[Cell.QUEUED],
        "connections": row[Cell.CONNECTIONS],
        "delivered": row[Cell.DELIVERED],
        "bounced": row[Cell.BOUNCED],
        "deferred": row[Cell.DEFERRED],
        "expired": row[Cell.EXPIRED],
        "deleted": row[Cell.DELETED],
        "quarantined": row[Cell.QUARANTINED],
        "unsigned": row[Cell.UNSIGNED],
        "bytes": row[Cell.BYTES],
        "restarts": row[Cell.RESTARTS],
        "disk_full": bool(row[Cell.TROUBLE]),
    }
