"""Live figures, from the spool and from every process: by VMTA, by recipient domain, by job."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from spoolmta.cli.frame import cli, json_option, layout_of, load, moment, show
from spoolmta.errors import DataError, UnavailableError
from spoolmta.model import Config
from spoolmta.spool import audit as spool_audit
from spoolmta.spool.audit import Item
from spoolmta.spool.layout import Layout
from spoolmta.switch import Switch

COUNTED = ("delivered", "bounced", "deferred", "expired", "deleted")


def running(layout: Layout) -> dict[str, dict[str, Any]]:
    """What the running system says of each VMTA; nothing if there is none."""
    from spoolmta.control import ask

    try:
        return {one["name"]: one for one in ask(layout.control, {"ask": "status"})["vmtas"]}
    except UnavailableError:
        return {}


def grouped(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, dict[str, Any]]:
    """Messages, recipients and bytes by whatever `key` says."""
    rows: dict[str, dict[str, Any]] = {}
    for item in items:
        name = key(item)
        row = rows.get(name)
        if row is None:
            row = rows[name] = {**no_mail(), "oldest": item.received}
        row["messages"] += 1
        row["recipients"] += item.recipients
        row["bytes"] += item.size
        row["deferred"] += item.attempts > 0
        row["oldest"] = min(row["oldest"], item.received)
        row["vmtas"].add(item.vmta)
    return rows


def no_mail() -> dict[str, Any]:
    return {"messages": 0, "recipients": 0, "bytes": 0, "deferred": 0, "oldest": 0.0, "vmtas": set()}


def print_grouped(rows: dict[str, dict[str, Any]], head: str, as_json: bool) -> None:
    """Largest first."""
    listed = sorted(rows.items(), key=lambda pair: (-pair[1]["recipients"], pair[0]))
    plainly = [{head: name, **row, "vmtas": sorted(row["vmtas"])} for name, row in listed]
    for row in [] if as_json else plainly:
        row["oldest"] = moment(row["oldest"])
    show(plainly, as_json, "the queue is empty")


def states(config: Config, layout: Layout, vmta: str) -> list[dict[str, Any]]:
    """The queues of a VMTA as an operator reads them in a list, the fullest first."""
    from spoolmta import standin

    rows = [
        {
            "queue": f"{one['site']}/{vmta}",
            "mode": one["mode"],
            "paused": one["paused"],
            "held_by": one["held_by"],
            "ready": one["ready"],
            "waiting": one["waiting"],
            "held": one["held"],
            "sessions": one["sessions"],
            "next_retry": one["next_retry"],
            "last_reply": one["last_reply"],
            "domains": one["domains"],
        }
        for one in standin.look(config, layout, vmta)["sites"]
    ]
    return sorted(rows, key=lambda row: (-row["ready"] - row["waiting"] - row["held"], row["queue"]))


def print_states(rows: list[dict[str, Any]], as_json: bool) -> None:
    if not as_json:
        rows = [
            {**row, "next_retry": moment(row["next_retry"]), "paused": "yes" if row["paused"] else ""} for row in rows
        ]
        rows = [{key: value for key, value in row.items() if key != "domains"} for row in rows]
    show(rows, as_json, "no mail")


@cli.command()
@click.argument("name", default="")
@json_option
@click.pass_context
def vmta(context: click.Context, name: str, as_json: bool) -> None:
    """The VMTAs: mail, sessions, queues that are paused or in back-off. With NAME: its queues, the fullest first."""
    from spoolmta import standin

    config, layout = load(context), layout_of(context)
    every = standin.vmtas(config, layout)
    if name:
        if name.lower() not in every:
            raise DataError(f"there is no VMTA called {name}")
        print_states(states(config, layout, name.lower()), as_json)
        return
    live = running(layout)
    mail = grouped(spool_audit.items(layout), lambda item: item.vmta)
    rows = []
    for one in every:
        queues = states(config, layout, one)
        seen = live.get(one, {})
        row = mail.get(one, {})
        rows.append(
            {
                "vmta": one,
                "state": seen.get("state", "not configured" if one not in config.vmtas else "stopped"),
                "queues": sum(1 for queue in queues if queue["ready"] or queue["waiting"] or queue["held"]),
                "messages": row.get("messages", 0),
                "recipients": row.get("recipients", 0),
                "sessions": sum(queue["sessions"] for queue in queues),
                "paused": sum(queue["paused"] for queue in queues),
                "backoff": sum(queue["mode"] != "normal" for queue in queues),
                **{key: seen.get(key, 0) for key in COUNTED},
            }
        )
    show(rows, as_json, "no VMTA")


@cli.command()
@click.argument("name", default="")
@json_option
@click.pass_context
def domain(context: click.Context, name: str, as_json: bool) -> None:
    """Recipient domains with mail. With NAME: the queues its mail is in, and what holds them."""
    config, layout = load(context), layout_of(context)
    wanted = name.lower()
    mail = list(spool_audit.items(layout, "", wanted))
    if not wanted:
        print_grouped(grouped(mail, lambda item: item.domain), "domain", as_json)
        return
    rows = [
        row
        for one in sorted({item.vmta for item in mail})
        for row in states(config, layout, one)
        if wanted in row["domains"]
    ]
    print_states(rows, as_json)


@cli.command()
@click.argument("name", default="")
@json_option
@click.pass_context
def job(context: click.Context, name: str, as_json: bool) -> None:
    """Jobs with mail, and where they are paused. With NAME: the queues its mail is in, who paused it, until when."""
    from spoolmta import entry, standin

    layout = layout_of(context)
    held = {one: standin.held_jobs(layout, one) for one in standin.vmtas(load(context), layout)}
    if name:
        print_job(layout, entry.job_hash(name), held, as_json)
        return
    names: dict[str, str] = {"0": ""}

    def job_of(item: Item) -> str:
        """The name of its job: one message of each tells, the others have the same hash."""
        hashed = entry.flow(item.name)[1]
        if hashed not in names:
            found = spool_audit.envelope(layout, item)
            if found is None:
                return f"({hashed})"
            names[hashed] = found[0].job
        return names[hashed]

    rows = grouped(spool_audit.items(layout), job_of)
    for vmta, switches in held.items():
        for one in switches.values():
            rows.setdefault(one.job_name, no_mail()).setdefault("paused_in", []).append(vmta)
    for row in rows.values():
        row.setdefault("paused_in", [])
    print_grouped(rows, "job", as_json)


def print_job(layout: Layout, job: str, held: dict[str, dict[str, Switch]], as_json: bool) -> None:
    """The queues with mail of a job, and each VMTA that holds it though there is none."""
    rows = grouped((item for item in spool_audit.items(layout) if f",J={job}" in item.name), lambda item: item.queue)
    with_mail = {name.rpartition("/")[2] for name in rows}
    rows |= {f"*/{vmta}": no_mail() for vmta, jobs in held.items() if job in jobs and vmta not in with_mail}
    for name, row in rows.items():
        pause = held.get(name.rpartition("/")[2], {}).get(job)
        row["paused_by"] = pause.reason if pause else ""
        row["paused_until"] = pause.until if pause else 0.0
        if not as_json:
            row["paused_until"] = moment(row["paused_until"])
    print_grouped(rows, "queue", as_json)
