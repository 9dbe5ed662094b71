"""What an operator sets: `Config` and all that it is made of."""

from __future__ import annotations

import enum
import math
from typing import Any, Literal

import msgspec

from spoolmta.model.mail import Stage


class Rate(msgspec.Struct, frozen=True):
    """At most `count` recipients (connections, bytes) in any window of `period` seconds; `math.inf` for unlimited."""

    count: float
    period: float = 1.0


UNLIMITED = Rate(math.inf)


class Host(msgspec.Struct, frozen=True):
    """A host to connect to: a name or an address literal without brackets. `port` 0 means default-smtp-port.
    `lookup_mx`: in the configuration, the hosts that the MX records of this name name; in a route, one of them."""

    name: str
    port: int = 0
    lookup_mx: bool = False


class WarmUp(msgspec.Struct, frozen=True):
    """A plan for a new address: on the first day `start` (days since 1970-01-01, local) `plan[0]` messages, and so on;
    what is over goes to the VMTA `overflow`. There is no limit behind the plan's end, and no plan where it is empty."""

    start: int = 0
    plan: tuple[int, ...] = ()
    overflow: str = ""


class Secret(msgspec.Struct, frozen=True):
    """A text that must not be seen: it prints as stars wherever a value is shown."""

    text: str = ""

    def __repr__(self) -> str:
        return "***" if self.text else '""'

    __str__ = __repr__


class DomainKey(msgspec.Struct, frozen=True):
    """A DKIM key: `path` is its PEM file, `domain` "*" any; `file` and `line` are where it is named."""

    selector: str
    domain: str
    path: str
    file: str = ""
    line: int = 0


class DomainPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that holds for one (VMTA, site, domain), complete. Field names are the directives with `_` for `-`.

    Durations are seconds, `math.inf` for never; volumes are bytes. `source_ip_...` are (network, limit), each for every
    address within. `smtp_hosts` are preference levels, best first; empty means MX lookup. `queue_to` "" is the domain
    by itself.
    A list of durations is a schedule: the i-th failure waits for its i-th value, the last one repeats.
    """

    queue_to: str = ""
    smtp_hosts: tuple[tuple[Host, ...], ...] = ()
    default_smtp_port: int = 25
    disable_mx_rollup: bool = False
    reroute_to_virtual_mta: str = ""
    backoff_reroute_to_virtual_mta: str = ""
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
    backoff_notify: tuple[str, ...] = ()
    backoff_upon_all_sources_disabled: bool = False
    reenable_source_ip_after: float = math.inf
    disabled_source_ip_notify: tuple[str, ...] = ()
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
    dkim_sign: bool | Literal["if-x-dkim-options-present"] = True
    dkim_identity: str = "sender-or-from"
    dkim_headers: tuple[str, ...] = ()
    dkim_headers_canon: Literal["relaxed", "simple"] = "relaxed"
    dkim_body_canon: Literal["relaxed", "simple"] = "relaxed"
    dkim_add_timestamp: bool = True
    dkim_expire_after: float = math.inf
    dkim_disallow_adding_headers: bool = True
    dk_sign: bool = False
    dk_canon: Literal["nofws", "simple"] = "nofws"


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


class Trigger(msgspec.Struct, frozen=True):
    """When a rule that matches fires: at once (period 0), at the `count`-th match within `period` seconds, or when
    matches are at least `share` (0 to 1) of the answers within `period`, of which there are at least `count`."""

    count: int = 1
    period: float = 0.0
    share: float = 0.0


AT_ONCE = Trigger()


class Change(msgspec.Struct, frozen=True):
    """What a rule sets one DomainPolicy field to: `value`, or `factor` of what it is, but not below `floor`."""

    field: str
    value: Any = None
    factor: float = 0.0
    floor: Any = None


class ResponseRule(msgspec.Struct, frozen=True, kw_only=True):
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


class BounceRule(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[bounce]]`: it gives its category to a reply with one of the statuses (none: with any) that has one of the
    phrases in its `words` or `names`, or matches one of the patterns (none of these: whatever it says). `file` and
    `line` are where it stands."""

    category: str
    status: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    pattern: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    file: str = ""
    line: int = 0


class Setting(msgspec.Struct, frozen=True):
    """One configured value and where it stands."""

    value: object
    file: str
    line: int


class DomainTable(msgspec.Struct, frozen=True):
    """One `[domain."PATTERN"]` table: only what was written. `settings` is keyed by `DomainPolicy` field name.
    A `[provider.NAME]` table is one too; its pattern is `provider NAME`."""

    pattern: str
    settings: dict[str, Setting]


class SourceHost(msgspec.Struct, frozen=True):
    """`smtp-source-host`: the address to bind and the name to say in EHLO ("" means the VMTA's host-name)."""

    address: str
    host_name: str = ""


class Vmta(msgspec.Struct, frozen=True, kw_only=True):
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
    domain_keys: tuple[DomainKey, ...] = ()
    layers: tuple[tuple[DomainTable, ...], ...] = ()
    responses: tuple[ResponseRule, ...] = ()


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """VMTAs among which mail is dealt out by weight. `layer` is also the weakest layer of each of its members; the
    limits hold for all of them together, `max_smtp_out` 0 is none."""

    name: str
    virtual_mta: dict[str, int] = {}
    max_smtp_out: int = 0
    max_smtp_msg_rate: Rate = UNLIMITED
    max_smtp_data_volume_rate: Rate = UNLIMITED
    layer: tuple[DomainTable, ...] = ()


class Select(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of `[[source.NAME.select]]`: regular expressions ("" for what is not asked) and what they select, a VMTA
    or pool ("" for the source's default) and a priority (-1: the source's). `match` is for the values of `header`."""

    mail_from: str = ""
    rcpt_to: str = ""
    header: str = ""
    match: str = ""
    virtual_mta: str = ""
    recipient_priority: int = -1


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """How mail that arrives one way is treated. `pickup` is a folder that is scanned ("" for none);
    `allowed_virtual_mta` empty means any. `select` is in the order of the file."""

    name: str
    select: tuple[Select, ...] = ()
    recipient_priority: int = 50
    default_virtual_mta: str = "default"
    process_x_virtual_mta: bool = True
    process_x_job: bool = True
    process_x_dkim_options: bool = False
    allowed_virtual_mta: tuple[str, ...] = ()
    pickup: str = ""
    max_message_size: int = 50_000_000
    suppress_local_dsn: bool = False
    dsn_return_default: Literal["full", "headers"] = "headers"


class AcctFile(msgspec.Struct, frozen=True, kw_only=True):
    """One accounting file: which record types it takes, with which columns, of which queues, and what is written how;
    when it is rotated (seconds, bytes), where it goes then, and when it is deleted (seconds).

    `map_header_to_field`: by record type, which column the value of a header field takes (`header_X-Campaign`).

    With a `command` it is a pipe: the rows go to a program, by way of a file of ours in the spool (`path`). What the
    program takes within `write_timeout` or not, and when it is started again (`retry_interval`), is in seconds."""

    path: str
    command: tuple[str, ...] = ()
    records: tuple[str, ...] = ("d", "b")
    record_fields: dict[str, tuple[str, ...]] = {}
    queue_filter: tuple[str, ...] = ()
    map_header_to_field: dict[str, dict[str, str]] = {}
    privacy_policy: Secret = Secret("retain")
    user_string: str = ""
    iso_times: bool = True
    world_readable: bool = False
    sync: bool = False
    move_interval: float = 86_400.0
    max_size: int = 250_000_000
    move_to: str = ""
    delete_after: float = 691_200.0
    count_moved_records: bool = False
    write_timeout: float = 60.0
    retry_interval: float = 300.0

    @property
    def pipe(self) -> str:
        """What a pipe is called: as its folder in the spool."""
        return self.path.split("/")[-2] if self.command else ""

    @property
    def position(self) -> str:
        """The file that says how far the program of a pipe has read."""
        return f"{self.path.rpartition('/')[0]}/position"


CopyMode = Literal["auto", "always", "never"]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration: one immutable value. Paths are absolute. `domains` are the global domain and provider
    tables, `providers` the MX patterns of each provider. `total_max_smtp_out` 0 is no limit; the other two
    limits are for hosts and networks, from each of our addresses. `bounces` are the operator's own rules."""

    host_name: str
    spool: str
    user: str = ""
    custom_dsn_from_header: str = ""
    domain_keys: tuple[DomainKey, ...] = ()
    sleep_after: float = 60.0
    event_loop: Literal["uvloop", "asyncio"] = "uvloop"
    min_free_space: int = 500_000_000
    min_free_inodes: int = 1000
    copy: CopyMode = "auto"
    nameservers: tuple[str, ...] = ()
    allow_loopback_mx: bool = False
    dnssec_trusted: bool = False
    mta_sts_port: int = 443
    total_max_smtp_out: int = 0
    mx_connection_limit: tuple[tuple[str, int], ...] = ()
    ip_connection_limit: tuple[tuple[str, int], ...] = ()
    sources: dict[str, Source] = {}
    vmtas: dict[str, Vmta] = {}
    pools: dict[str, Pool] = {}
    domains: tuple[DomainTable, ...] = ()
    providers: dict[str, tuple[str, ...]] = {}
    responses: tuple[ResponseRule, ...] = ()
    bounces: tuple[BounceRule, ...] = ()
    acct_files: tuple[AcctFile, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def pipes(self) -> dict[str, AcctFile]:
        """The accounting files that are pipes, by what they are called."""
        return {file.pipe: file for file in self.acct_files if file.command}

    @property
    def log(self) -> AcctFile | None:
        """The log that commands read: the first accounting file that is no pipe."""
        return next((file for file in self.acct_files if not file.command), None)
