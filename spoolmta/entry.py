"""The name of a queue file, which is its state: written, read, and changed by renaming.

    1700000000.M000042P4711Q17.mx1-example-com,S=4096,C=0badcafe,J=0:1,3,1700003600

`format_name` and `parse_name` are inverse to each other: a name has one spelling (no leading zeros, defaults left
out), so equal entries have equal names and a rename onto "the same" name cannot miss. What can be written can be read.

A name with `M=` has no `V=` (that one is only there in an incoming folder), and one with `V=` has no state; then every
name is below 255 bytes, the limit of Linux file systems, also after `with_state`. Other combinations that would come
out longer are a ValueError, never a cut name.
"""

from __future__ import annotations

import functools
import re
import zlib

import msgspec

from spoolmta.model import EntryName

MAX_NAME = 254
MAX_NODE = 32

_WORD = r"[a-z0-9_-][a-z0-9._-]{0,31}"
_NAME = re.compile(
    r"([1-9][0-9]{0,10}\.M[0-9]{6}P[1-9][0-9]{0,6}Q(?:0|[1-9][0-9]{0,11})\.[A-Za-z0-9-]{1,32})"
    r",S=(0|[1-9][0-9]{0,11}),C=([0-9a-f]{8}),J=(0|[0-9a-f]{8})"
    r"(?:,N=([2-9]|[1-9][0-9]{1,6}))?"
    r"(?:,P=(?!50(?![0-9]))(0|[1-9][0-9]{0,2}))?"
    rf"(?:,L=({_WORD}))?"
    rf"(?:,F=(?!pickup(?![a-z0-9._-]))({_WORD}))?"
    r"(?:,R=((?:[0-9a-f]{4}){1,8}))?"
    rf"(?:,M=({_WORD}))?"
    r"(?:,V=([A-Za-z0-9_-][A-Za-z0-9._-]{0,31}))?"
    r"(?::1,(?!0,0\Z)(0|[1-9][0-9]{0,5}),(0|[1-9][0-9]{0,10}))?"
)
_NOT_NODE = re.compile(r"[^A-Za-z0-9-]+")


def make_id(seconds: int, microseconds: int, pid: int, sequence: int, node: str) -> str:
    """The id of an entry, the msgId of the log: unique while one pid on one node counts `sequence` up."""
    return f"{seconds}.M{microseconds:06d}P{pid}Q{sequence}.{node_name(node)}"


@functools.lru_cache(maxsize=16)
def node_name(host: str) -> str:
    """A host name as it may stand in an id: dots separate the parts of the id, so they become hyphens."""
    return _NOT_NODE.sub("-", host)[:MAX_NODE] or "-"


def job_hash(job: str) -> str:
    """Eight hex digits for a job name, "0" for none."""
    return f"{zlib.crc32(job.encode('utf-8', 'surrogateescape')):08x}" if job else "0"


def format_name(name: EntryName) -> str:
    """The file name of an entry. ValueError if `parse_name` could not read it again."""
    text = f"{name.id},S={name.size},C={name.crc:08x},J={name.job}"
    if name.recipients != 1:
        text += f",N={name.recipients}"
    if name.priority != 50:
        text += f",P={name.priority}"
    if name.pool:
        text += f",L={name.pool}"
    if name.source and name.source != "pickup":
        text += f",F={name.source}"
    if name.rerouted:
        text += f",R={name.rerouted}"
    if name.folder:
        text += f",M={name.folder}"
    if name.vmta:
        text += f",V={name.vmta}"
    if name.attempts or name.due:
        text += f":1,{name.attempts},{name.due}"
    if len(text) > MAX_NAME or ".." in text or _NAME.fullmatch(text) is None:
        raise ValueError(f"not the name of a queue file: {text[:300]!a}")
    return text


def parse_name(text: str) -> EntryName:
    """The entry that a file name stands for. ValueError for every other text."""
    found = _NAME.fullmatch(text)
    if found is None or len(text) > MAX_NAME or ".." in text:
        raise ValueError(f"not the name of a queue file: {text[:300]!a}")
    id_, size, crc, job, recipients, priority, pool, source, rerouted, folder, vmta, attempts, due = found.groups("")
    return EntryName(
        id_,
        int(size),
        int(crc, 16),
        job,
        int(recipients or 1),
        source,
        pool,
        int(priority or 50),
        folder,
        vmta,
        int(attempts or 0),
        int(due or 0),
        rerouted,
    )


def received(name: str) -> float:
    """When the message was accepted, in Unix seconds: the id says it, so it survives every rename."""
    dot = name.index(".M")
    return int(name[:dot]) + int(name[dot + 2 : dot + 8]) / 1e6


def is_older(name: str, time: float) -> bool:
    """Whether the message was accepted at `time` or before. What is no entry is not."""
    try:
        return received(name) <= time
    except ValueError:
        return False


def entry_id(name: str) -> str:
    return name.partition(",")[0]


def bare(name: str) -> str:
    """The name without attempts and due time: as it stands in `new/`."""
    return name.partition(":")[0]


def with_state(name: str, attempts: int, due: int) -> str:
    """The name this entry gets in `cur/` (in `new/` if both are 0)."""
    name = name.partition(":")[0]
    return f"{name}:1,{attempts},{due}" if attempts or due else name


def state(name: str) -> tuple[int, int]:
    """(attempts, due) as the name says."""
    suffix = name.partition(":1,")[2]
    if not suffix:
        return 0, 0
    attempts, _, due = suffix.partition(",")
    return int(attempts), int(due)


def recipients(name: str) -> int:
    """How many recipients the entry has in its domain; the name says so where it is not one."""
    start = name.find(",N=")
    if start < 0:
        return 1
    digits = name[start + 3 :].partition(",")[0].partition(":")[0]
    return int(digits)


def size(name: str) -> int:
    """The bytes of the file, as the name says."""
    start = name.find(",S=")
    return int(name[start + 3 :].partition(",")[0]) if start >= 0 else 0


def pool(name: str) -> str:
    """The pool the entry was dealt out of, "" for none."""
    start = name.find(",L=")
    return name[start + 3 :].partition(",")[0].partition(":")[0] if start >= 0 else ""


def was_rerouted_by(name: str, vmta: str) -> bool:
    """Whether this VMTA has passed the entry on to another one already."""
    start = name.find(",R=")
    digits = name[start + 3 :].partition(",")[0].partition(":")[0] if start >= 0 else ""
    return _mark(vmta) in (digits[place : place + 4] for place in range(0, len(digits), 4))


def rerouted(name: str, vmta: str) -> str:
    """The name an entry gets that this VMTA passes on. ValueError where it has been passed on too often, or its name
    would be too long."""
    parts = parse_name(name)
    return format_name(msgspec.structs.replace(parts, rerouted=parts.rerouted + _mark(vmta)))


def _mark(vmta: str) -> str:
    """Four digits that stand for a VMTA. Where two are alike a message stays where it could have gone on."""
    return f"{zlib.crc32(vmta.encode()) & 0xFFFF:04x}"


def flow(name: str) -> tuple[int, str]:
    """(priority, job hash): what shares the way out with what."""
    start = name.find(",J=") + 3
    job = "0" if name[start : start + 2] in ("0,", "0:", "0") or start == 2 else name[start : start + 8]
    start = name.find(",P=")
    if start < 0:
        return 50, job
    return int(name[start + 3 :].partition(",")[0].partition(":")[0]), job
