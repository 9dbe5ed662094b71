"""The vocabulary: enums and frozen values, no behaviour beyond printing themselves.

Values are `msgspec.Struct`s because making one costs 0.15 microseconds against 1.2 for a frozen
dataclass with slots, and several are made for every message.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Literal

import msgspec

Struct = msgspec.Struct


class Stage(enum.Enum):
    """Where in an attempt something was said or went wrong, in the order it happens (RFC 5321 section 3)."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    AUTH = "auth"
    STARTTLS = "starttls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    TRANSFER = "content"
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
    TOO_BIG = "message is larger than this host takes"
    UNCONVERTIBLE = "message cannot be made 7-bit"
    LOOP = "mail loops back to us"
    NO_LOGIN = "cannot log in"
    NO_TLS = "TLS not available"
    TLS = "TLS failed"
    HELD = "held by a response rule"
    CONDEMNED = "bounced with its queue"
    DELETED = "deleted by the operator"
    RETURNED = "bounced by the operator"

    __hash__ = object.__hash__

    @property
    def is_observed(self) -> bool:
        """Whether something outside showed it. What we made up ourselves (and our own trouble) is not the receiver's
        doing, so no response rule may look at it: it could quote the reply that fired the rule."""
        return self not in _MADE_UP


_MADE_UP = frozenset(
    {
        FailureKind.EXPIRED,
        FailureKind.HELD,
        FailureKind.CONDEMNED,
        FailureKind.DELETED,
        FailureKind.RETURNED,
        FailureKind.LOCAL,
        FailureKind.UNBOUND,
        FailureKind.TOO_BIG,
        FailureKind.UNCONVERTIBLE,
        FailureKind.LOOP,
        FailureKind.NO_LOGIN,
    }
)


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


class Ruling(enum.Enum):
    """What a response rule makes of an answer, whatever it says by itself."""

    DEFER = "defer"
    BOUNCE = "bounce"


class Answer(Struct, frozen=True):
    """What became of one recipient in one transaction. Every recipient gets exactly one."""

    stage: Stage
    result: Reply | Failure
    ruling: Ruling | None = None


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


class WarmUp(Struct, frozen=True):
    """A plan for a new address: on the first day `start` (days since 1970-01-01, local) `plan[0]` messages, and so on;
    what is over goes to the VMTA `overflow`. There is no limit behind the plan's end, and no plan where it is empty."""

    start: int = 0
    plan: tuple[int, ...] = ()
    overflow: str = ""


class Secret(Struct, frozen=True):
    """A text that must not be seen: it prints as stars wherever a value is shown."""

    text: str = ""

    def __repr__(self) -> str:
        return "***" if self.text else '""'

    __str__ = __repr__


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
    notify_of_delay_every: float = 14_400.0
    dsn_format: Literal["standard", "plain-text"] = "standard"
    max_errors_per_connection: int = 0
    mx_connection_attempts: int = 10
    connection_idle_timeout: float = 0.0
    max_cold_virtual_mta_msg: tuple[int, ...] = ()
    warm_up: WarmUp = WarmUp()
    connect_timeout: float = 120.0
    smtp_greeting_timeout: float = 300.0
    data_send_timeout: float = 180.0
    smtp_data_termination_timeout: float = 600.0
    smtp_multiple_line_response_timeout: float = 300.0
    assume_delivery_upon_data_termination_timeout: bool = False
    retry_after_dns_error: float = 60.0
    bounce_upon_no_mx: bool = False
    bounce_upon_5xx_greeting: bool = False
    bounce_upon_transfer_failure: bool = False
    smtp_553_means_invalid_mailbox: bool = True
    smtp_421_means_mx_unavailable: bool = True
    replace_smtp_421_service_response: bool = False
    ignore_8bitmime: bool = False
    ignore_chunking: bool = False
    ignore_pipelining: bool = False
    ignore_dsn: bool = False
    auth_username: str = ""
    auth_password: Secret = Secret()
    use_unencrypted_plain_auth: bool = False
    use_starttls: bool = True
    require_starttls: bool = False
    smtp_tls_verify: bool = False
    smtp_tls_min_version: str = "1.2"
    smtp_tls_ciphers: str = ""
    smtp_tls_ca_file: str = ""
    smtp_client_certificate: str = ""
    reuse_ssl_session: bool = True
    use_dane: bool = False
    use_mta_sts: bool = False


class ResponseAction(enum.Enum):
    """What a response rule does when it fires. BOUNCE_RCPT is for a 4xx to RCPT only."""

    BACKOFF = "backoff"
    NORMAL = "normal"
    SKIP_MX = "skip-mx"
    BOUNCE_QUEUE = "bounce-queue"
    BOUNCE_RCPT = "bounce-rcpt"
    DISABLE_SOURCE_IP = "disable-source-ip"
    DEFER_QUEUE = "defer-queue"
    PAUSE = "pause"
    SET = "set"

    __hash__ = object.__hash__


class Trigger(Struct, frozen=True):
    """When a rule that matches fires: at once (period 0), at the `count`-th match within `period` seconds, or when
    matches are at least `share` (0 to 1) of the answers within `period`, of which there are at least `count`."""

    count: int = 1
    period: float = 0.0
    share: float = 0.0


AT_ONCE = Trigger()


class Change(Struct, frozen=True):
    """What a rule sets one DomainPolicy field to: `value`, or `factor` of what it is, but not below `floor`."""

    field: str
    value: Any = None
    factor: float = 0.0
    floor: Any = None


class ResponseRule(Struct, frozen=True, kw_only=True):
    """One `[[response]]`. `provider` is the one it is for ("" for all); `reply` holds its patterns as written; no
    `stages` means every stage; `duration` None: until something else ends it. `id` stays the same when the rule moves
    to another line or file."""

    id: str
    reply: tuple[str, ...]
    stages: tuple[Stage, ...] = ()
    actions: tuple[ResponseAction, ...] = ()
    duration: float | None = None
    trigger: Trigger = AT_ONCE
    changes: tuple[Change, ...] = ()
    name: str = ""
    provider: str = ""
    file: str = ""
    line: int = 0


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
    weak to strong: those of its pool, those of its policy file, then its own; `responses` are its own rules, then its
    policy file's."""

    name: str
    source_hosts: tuple[SourceHost, ...] = ()
    host_name: str = ""
    max_smtp_out: int = 0
    max_smtp_msg_rate: Rate = UNLIMITED
    max_smtp_data_volume_rate: Rate = UNLIMITED
    cold_virtual_mta: tuple[str, ...] = ()
    layers: tuple[tuple[DomainTable, ...], ...] = ()
    responses: tuple[ResponseRule, ...] = ()


class Pool(Struct, frozen=True, kw_only=True):
    """VMTAs among which mail is dealt out by weight. `layer` is also the weakest layer of each of its members."""

    name: str
    virtual_mta: dict[str, int] = {}
    layer: tuple[DomainTable, ...] = ()


class Select(Struct, frozen=True, kw_only=True):
    """One rule of `[[source.NAME.select]]`: regular expressions ("" for what is not asked) and what they select, a VMTA
    or pool ("" for the source's default) and a priority (-1: the source's). `match` is for the values of `header`."""

    mail_from: str = ""
    rcpt_to: str = ""
    header: str = ""
    match: str = ""
    virtual_mta: str = ""
    recipient_priority: int = -1


class Source(Struct, frozen=True, kw_only=True):
    """How mail that arrives one way is treated. `pickup` is a folder that is scanned ("" for none);
    `allowed_virtual_mta` empty means any. `select` is in the order of the file."""

    name: str
    select: tuple[Select, ...] = ()
    recipient_priority: int = 50
    default_virtual_mta: str = "default"
    process_x_virtual_mta: bool = True
    process_x_job: bool = True
    allowed_virtual_mta: tuple[str, ...] = ()
    pickup: str = ""
    max_message_size: int = 50_000_000
    suppress_local_dsn: bool = False
    dsn_return_default: Literal["full", "headers"] = "headers"


MORE_COLUMNS: dict[str, tuple[str, ...]] = dict.fromkeys(("d", "b", "t"), ("dlvTlsProtocol", "dlvTlsCipher"))
"""What an accounting file can have by name behind the usual columns, by record type."""


class AcctFile(Struct, frozen=True, kw_only=True):
    """One accounting file: which record types it takes, with which columns ("*" are the usual ones), and when it is
    rotated (seconds, bytes)."""

    path: str
    records: tuple[str, ...] = ("d", "b")
    move_interval: float = 86_400.0
    max_size: int = 250_000_000
    record_fields: dict[str, tuple[str, ...]] = {}


CopyMode = Literal["auto", "always", "never"]


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration: one immutable value. Paths are absolute. `domains` are the global domain and provider
    tables, `providers` the MX patterns of each provider."""

    host_name: str
    spool: str
    user: str = ""
    custom_dsn_from_header: str = ""
    sleep_after: float = 60.0
    event_loop: Literal["uvloop", "asyncio"] = "uvloop"
    min_free_space: int = 500_000_000
    min_free_inodes: int = 1000
    copy: CopyMode = "auto"
    nameservers: tuple[str, ...] = ()
    allow_loopback_mx: bool = False
    dnssec_trusted: bool = False
    mta_sts_port: int = 443
    sources: dict[str, Source] = {}
    vmtas: dict[str, Vmta] = {}
    pools: dict[str, Pool] = {}
    domains: tuple[DomainTable, ...] = ()
    providers: dict[str, tuple[str, ...]] = {}
    responses: tuple[ResponseRule, ...] = ()
    acct_files: tuple[AcctFile, ...] = ()
    files: tuple[str, ...] = ()
