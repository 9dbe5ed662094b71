"""The vocabulary: enums and frozen values, no behaviour beyond printing themselves.

Values are `msgspec.Struct`s because making one costs 0.15 microseconds against 1.2 for a frozen
dataclass with slots, and several are made for every message.
"""

from __future__ import annotations

import enum
import math
from typing import Literal

import msgspec

Struct = msgspec.Struct


class Stage(enum.Enum):
    """Where in an attempt something was said or went wrong, in the order it happens (RFC 5321 section 3)."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    EOD = "end of data"

    __hash__ = object.__hash__  # Enum's own is a Python function, and stages are looked up for every step


class FailureKind(enum.Enum):
    """What can go wrong without a reply that can be obeyed."""

    TIMEOUT = "timeout"
    LOST = "connection lost"
    REFUSED = "connection refused"
    UNREACHABLE = "unreachable"
    PROTOCOL = "protocol error"
    LOCAL = "local trouble"
    UNBOUND = "source address cannot be bound"
    DNS_TEMPORARY = "temporary DNS failure"
    NO_DOMAIN = "domain does not exist"
    NULL_MX = "domain accepts no mail"
    NO_HOST = "no usable mail host"
    EXPIRED = "message expired"
    UNSENDABLE = "message cannot be sent to this host"
    DELETED = "deleted by the operator"
    RETURNED = "bounced by the operator"


class Outcome(enum.Enum):
    """How a recipient ended. The value is its letter in the journal."""

    DELIVERED = "D"
    BOUNCED = "B"
    EXPIRED = "E"
    DELETED = "X"
    QUARANTINED = "Q"

    __hash__ = object.__hash__


class Scope(enum.Enum):
    """How far a failure reaches (the idea of Postfix's `smtp_trouble.c`): what else must not be tried now."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    SESSION = "session"
    HOST = "host"
    SITE = "site"


class Reply(Struct, frozen=True):
    """One complete SMTP reply (RFC 5321 section 4.2). `lines` are the texts behind the code, decoded, cleaned."""

    code: int
    lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(self.lines)

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Failure(Struct, frozen=True):
    """Trouble that is no reply: what kind, and one line for the log."""

    kind: FailureKind
    text: str

    def __str__(self) -> str:
        return self.text


class Answer(Struct, frozen=True):
    """What became of one recipient in one transaction. Every recipient gets exactly one."""

    stage: Stage
    result: Reply | Failure


class Recipient(Struct, frozen=True):
    """`address` as it goes on the wire (local part kept as given, domain as A-label);
    `domain` is the queue folder: A-label in lower case, an address literal is `ip-192.0.2.1`."""

    address: str
    domain: str
    notify: str = ""
    orcpt: str = ""


class Envelope(Struct, frozen=True):
    """RFC 5321 section 2.3.1, and what the submitter asked for. Empty string: not given. `sender` is "" for <>."""

    sender: str
    recipients: tuple[Recipient, ...]
    virtual_mta: str = ""
    job: str = ""
    envid: str = ""
    ret: str = ""


class Parsed(Struct, frozen=True):
    """A message file understood: its envelope, and which byte ranges of the file go out.

    `start` is where the RFC 5322 header begins (behind the envelope lines), `body` where the body
    begins (behind the empty line; the file's length if there is none), `cut` are (start, end) ranges
    of header fields that are taken out before sending (Bcc, X-Virtual-MTA, ...), in order.
    """

    envelope: Envelope
    start: int
    body: int
    cut: tuple[tuple[int, int], ...] = ()


class EntryName(Struct, frozen=True):
    """The name of a queue file, taken apart (design: "the message bytes are immutable; the state is in the name").

    `id` is `<seconds>.M<microseconds>P<pid>Q<sequence>.<node>` and is the msgId of the log; `size` and
    `crc` (crc32) are of the whole file; `job` is eight hex digits (crc32 of the job name) or "0".
    `recipients` is how many recipients this message has in this domain. `folder` (`M=`) names the
    incoming folder whose name must be gone before the entry may be touched; `vmta` (`V=`) is only there
    while the file lies in an incoming folder. `attempts` and `due` (Unix seconds) are 0 in `new/`.
    """

    id: str
    size: int
    crc: int
    job: str = "0"
    recipients: int = 1
    source: str = ""
    pool: str = ""
    priority: int = 50
    folder: str = ""
    vmta: str = ""
    attempts: int = 0
    due: int = 0


class Rate(Struct, frozen=True):
    """At most `count` recipients (connections, bytes) in any window of `period` seconds; `math.inf` for unlimited."""

    count: float
    period: float = 1.0


UNLIMITED = Rate(math.inf)


class Host(Struct, frozen=True):
    """A host to connect to: a name or an address literal without brackets. `port` 0 means default-smtp-port."""

    name: str
    port: int = 0


class DomainPolicy(Struct, frozen=True, kw_only=True):
    """Everything that holds for one (VMTA, site, domain), complete. Field names are the directives with `_` for `-`.

    Durations are seconds, `math.inf` for never; volumes are bytes. `source_ip_...` are (network, limit), each for every
    address within. `smtp_hosts` are preference levels, best first; empty means MX lookup.
    A list of durations is a schedule: the i-th failure waits for its i-th value, the last one repeats.
    """

    smtp_hosts: tuple[tuple[Host, ...], ...] = ()
    default_smtp_port: int = 25
    disable_mx_rollup: bool = False
    queue_priority: int = 50
    allow_priority_interruption: bool = True
    max_smtp_out: int = 20
    backoff_max_smtp_out: int = 20
    source_ip_max_smtp_out: tuple[tuple[str, int], ...] = ()
    max_connect_rate: Rate = UNLIMITED
    backoff_max_connect_rate: Rate = UNLIMITED
    source_ip_max_connect_rate: tuple[tuple[str, Rate], ...] = ()
    smtp_out_rampup_interval: float = 0.0
    max_msg_per_connection: int = 0
    max_rcpt_per_transaction: int = 1000
    max_msg_rate: Rate = UNLIMITED
    backoff_max_msg_rate: Rate = UNLIMITED
    source_ip_max_msg_rate: tuple[tuple[str, Rate], ...] = ()
    max_data_volume_rate: Rate = UNLIMITED
    backoff_max_data_volume_rate: Rate = UNLIMITED
    source_ip_max_data_volume_rate: tuple[tuple[str, Rate], ...] = ()
    retry_after: tuple[float, ...] = (600.0,)
    backoff_retry_after: tuple[float, ...] = (3600.0,)
    backoff_to_normal_after: float = math.inf
    backoff_to_normal_after_delivery: bool = False
    backoff_recovery_interval: float = 0.0
    backoff_upon_all_sources_disabled: bool = False
    reenable_source_ip_after: float = math.inf
    retry_upon_new_mail: bool = False
    retry_recipients_after: tuple[float, ...] = (600.0,)
    bounce_after: float = 388_800.0
    connection_idle_timeout: float = 0.0
    connect_timeout: float = 120.0
    smtp_greeting_timeout: float = 300.0
    data_send_timeout: float = 180.0
    smtp_data_termination_timeout: float = 600.0


class Setting(Struct, frozen=True):
    """One configured value and where it stands."""

    value: object
    file: str
    line: int


class DomainTable(Struct, frozen=True):
    """One `[domain."PATTERN"]` table: only what was written. `settings` is keyed by `DomainPolicy` field name.
    A `[provider.NAME]` table is one too; its pattern is `provider NAME`."""

    pattern: str
    settings: dict[str, Setting]


class SourceHost(Struct, frozen=True):
    """`smtp-source-host`: the address to bind and the name to say in EHLO ("" means the VMTA's host-name)."""

    address: str
    host_name: str = ""


class Vmta(Struct, frozen=True, kw_only=True):
    """One VirtualMTA. `max_smtp_out` 0 means no limit over all its queues. `layers` are its domain tables,
    weak to strong: those of its policy file, then its own."""

    name: str
    source_hosts: tuple[SourceHost, ...] = ()
    host_name: str = ""
    max_smtp_out: int = 0
    max_smtp_msg_rate: Rate = UNLIMITED
    max_smtp_data_volume_rate: Rate = UNLIMITED
    layers: tuple[tuple[DomainTable, ...], ...] = ()


class Source(Struct, frozen=True, kw_only=True):
    """How mail that arrives one way is treated. `pickup` is a folder that is scanned ("" for none);
    `allowed_virtual_mta` empty means any."""

    name: str
    default_virtual_mta: str = "default"
    process_x_virtual_mta: bool = True
    process_x_job: bool = True
    allowed_virtual_mta: tuple[str, ...] = ()
    pickup: str = ""
    max_message_size: int = 50_000_000


class AcctFile(Struct, frozen=True, kw_only=True):
    """One accounting file: which record types it takes, and when it is rotated (seconds, bytes)."""

    path: str
    records: tuple[str, ...] = ("d", "b")
    move_interval: float = 86_400.0
    max_size: int = 250_000_000


CopyMode = Literal["auto", "always", "never"]


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration: one immutable value. Paths are absolute. `domains` are the global domain and provider
    tables, `providers` the MX patterns of each provider."""

    host_name: str
    spool: str
    user: str = ""
    sleep_after: float = 60.0
    event_loop: Literal["uvloop", "asyncio"] = "uvloop"
    min_free_space: int = 500_000_000
    min_free_inodes: int = 1000
    copy: CopyMode = "auto"
    nameservers: tuple[str, ...] = ()
    sources: dict[str, Source] = {}
    vmtas: dict[str, Vmta] = {}
    domains: tuple[DomainTable, ...] = ()
    providers: dict[str, tuple[str, ...]] = {}
    acct_files: tuple[AcctFile, ...] = ()
    files: tuple[str, ...] = ()
