"""Every key of the configuration, by the table it stands in, with the kind of its value.

A new directive is one line here, beside its field in `model` and its words in `etc/spoolmta.toml`. Defaults are those
of `model`.
"""

from __future__ import annotations

from spoolmta.config import plans, rates, values
from spoolmta.config.values import Kind, choice, duration, number, size, subset

PATH = Kind(values.read_path)
"""A path, relative to the file it stands in: the reader resolves it."""

GLOBAL: dict[str, Kind] = {
    "host-name": values.HOST_NAME,
    "user": values.USER,
    "sleep-after": duration("1m", is_zero_allowed=True),
    "event-loop": choice("uvloop", "asyncio"),
    "include": values.TEXTS,
}
SPOOL: dict[str, Kind] = {
    "directory": PATH,
    "min-free-space": size(),
    "min-free-inodes": number(1000),
}
PICKUP: dict[str, Kind] = {"copy": choice("auto", "always", "never")}
DNS: dict[str, Kind] = {"nameservers": values.NAMESERVERS}
SOURCE: dict[str, Kind] = {
    "default-virtual-mta": values.TEXT,
    "process-x-virtual-mta": values.FLAG,
    "process-x-job": values.FLAG,
    "allowed-virtual-mta": values.NAMES,
    "recipient-priority": number(50, 0, 100),
    "pickup": PATH,
    "max-message-size": size(1),
}
SELECT: dict[str, Kind] = {
    "mail-from": values.EXPRESSION,
    "rcpt-to": values.EXPRESSION,
    "header": values.FIELD_NAME,
    "match": values.EXPRESSION,
    "virtual-mta": values.TEXT,
    "recipient-priority": number(50, 0, 100),
}
VMTA: dict[str, Kind] = {
    "smtp-source-host": values.SOURCE_HOSTS,
    "host-name": values.HOST_NAME,
    "max-smtp-out": number(200),
    "max-smtp-msg-rate": rates.RATE,
    "max-smtp-data-volume-rate": rates.DATA_RATE,
    "cold-virtual-mta": values.NAMES,
    "warm-up": plans.WARM_UP,
    "policy": PATH,
}
POOL: dict[str, Kind] = {"virtual-mta": values.WEIGHTS}
DOMAIN: dict[str, Kind] = {
    "smtp-hosts": values.HOSTS,
    "default-smtp-port": values.PORT,
    "disable-mx-rollup": values.FLAG,
    "queue-priority": number(50, 0, 100),
    "allow-priority-interruption": values.FLAG,
    "max-smtp-out": number(20, 1),
    "backoff-max-smtp-out": number(20, 1),
    "source-ip-max-smtp-out": rates.by_network(number(5, 1)),
    "max-connect-rate": rates.RATE,
    "backoff-max-connect-rate": rates.RATE,
    "source-ip-max-connect-rate": rates.by_network(rates.RATE),
    "smtp-out-rampup-interval": duration("1s", is_zero_allowed=True),
    "max-msg-per-connection": number(100),
    "max-rcpt-per-transaction": number(1000, 1),
    "max-msg-rate": rates.RATE,
    "backoff-max-msg-rate": rates.RATE,
    "source-ip-max-msg-rate": rates.by_network(rates.RATE),
    "max-data-volume-rate": rates.DATA_RATE,
    "backoff-max-data-volume-rate": rates.DATA_RATE,
    "source-ip-max-data-volume-rate": rates.by_network(rates.DATA_RATE),
    "retry-after": values.SCHEDULE,
    "backoff-retry-after": values.SCHEDULE,
    "backoff-to-normal-after": rates.DURATION_OR_NEVER,
    "backoff-to-normal-after-delivery": values.FLAG,
    "backoff-recovery-interval": duration("10m", is_zero_allowed=True),
    "backoff-upon-all-sources-disabled": values.FLAG,
    "reenable-source-ip-after": rates.DURATION_OR_NEVER,
    "retry-upon-new-mail": values.FLAG,
    "retry-recipients-after": values.SCHEDULE,
    "bounce-after": duration("4d12h"),
    "connection-idle-timeout": duration("5s", is_zero_allowed=True, most=600),
    "max-cold-virtual-mta-msg": plans.PER_DAY,
    "warm-up": plans.WARM_UP,
    "connect-timeout": duration("2m"),
    "smtp-greeting-timeout": duration("5m"),
    "data-send-timeout": duration("3m"),
    "smtp-data-termination-timeout": duration("10m"),
}
PROVIDER: dict[str, Kind] = {"mx": values.MX_PATTERNS, **DOMAIN}
"""`mx` stands only where the provider is named first, in the global tables."""
ACCT_FILE: dict[str, Kind] = {
    "path": PATH,
    "records": subset("r", "d", "b", "t", "tq"),
    "move-interval": duration("1d"),
    "max-size": size(1),
}

TABLES: dict[str, dict[str, Kind]] = {
    "": GLOBAL,
    "spool": SPOOL,
    "pickup": PICKUP,
    "dns": DNS,
    "source": SOURCE,
    "select": SELECT,
    "vmta": VMTA,
    "pool": POOL,
    "domain": DOMAIN,
    "provider": PROVIDER,
    "acct-file": ACCT_FILE,
}
TABLES_WITHIN: dict[str, tuple[str, ...]] = {
    "": tuple(table for table in TABLES if table not in ("", "select")),
    "vmta": ("domain", "provider"),
    "pool": ("domain", "provider"),
    "source": ("select",),
}
REQUIRED: dict[str, dict[str, str]] = {
    "": {"host-name": 'host-name = "mta.example.com"'},
    "spool": {"directory": 'directory = "../spool"'},
    "pool": {"virtual-mta": "virtual-mta = { alerts-1 = 3, alerts-2 = 1 }"},
    "acct-file": {"path": 'path = "../spool/accounting/acct.csv"'},
}
"""The keys that have no default, with an example."""

FIELDS: dict[str, str] = {"smtp-source-host": "source_hosts", "directory": "spool"}
"""Where the field of `model` is not the key with `_` for `-`."""


def field_of(key: str) -> str:
    return FIELDS.get(key) or key.replace("-", "_")


def known_keys() -> list[str]:
    """The path of every key, for example `host-name`, `vmta.smtp-source-host`, `domain.max-smtp-out`. What holds for a
    domain holds for a provider too and is named once."""
    return [
        f"{table}.{key}" if table else key
        for table, kinds in TABLES.items()
        for key in kinds
        if table != "provider" or key not in DOMAIN
    ]


def unparse(field: str, value: object) -> str:
    """The value of a DomainPolicy field as it would stand behind `=` in the configuration."""
    return DOMAIN[field.replace("_", "-")].write(value)
