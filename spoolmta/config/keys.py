"""Every key of the configuration, by the table it stands in, with the kind of its value.

A new directive is one line here, beside its field in `model` and its words in `etc/spoolmta.toml`. Defaults are those
of `model`.
"""

from __future__ import annotations

from spoolmta.config import values
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
DNS: dict[str, Kind] = {
    "nameservers": values.NAMESERVERS,
    "dnssec-trusted": values.FLAG,
    "mta-sts-port": values.PORT,
}
SOURCE: dict[str, Kind] = {
    "default-virtual-mta": values.TEXT,
    "process-x-virtual-mta": values.FLAG,
    "process-x-job": values.FLAG,
    "allowed-virtual-mta": values.NAMES,
    "pickup": PATH,
    "max-message-size": size(1),
}
VMTA: dict[str, Kind] = {
    "smtp-source-host": values.SOURCE_HOSTS,
    "host-name": values.HOST_NAME,
    "max-smtp-out": number(200),
    "policy": PATH,
}
DOMAIN: dict[str, Kind] = {
    "smtp-hosts": values.HOSTS,
    "default-smtp-port": values.PORT,
    "max-smtp-out": number(20, 1),
    "max-msg-per-connection": number(100),
    "max-rcpt-per-transaction": number(1000, 1),
    "max-msg-rate": values.RATE,
    "retry-after": values.SCHEDULE,
    "retry-recipients-after": values.SCHEDULE,
    "bounce-after": duration("4d12h"),
    "connection-idle-timeout": duration("5s", is_zero_allowed=True, most=600),
    "connect-timeout": duration("2m"),
    "smtp-greeting-timeout": duration("5m"),
    "data-send-timeout": duration("3m"),
    "smtp-data-termination-timeout": duration("10m"),
    "use-starttls": values.FLAG,
    "require-starttls": values.FLAG,
    "smtp-tls-verify": values.FLAG,
    "smtp-tls-min-version": choice("1.0", "1.1", "1.2", "1.3"),
    "smtp-tls-ciphers": values.TEXT,
    "smtp-tls-ca-file": PATH,
    "smtp-client-certificate": PATH,
    "reuse-ssl-session": values.FLAG,
    "use-dane": values.FLAG,
    "use-mta-sts": values.FLAG,
}
ACCT_FILE: dict[str, Kind] = {
    "path": PATH,
    "records": subset("r", "d", "b", "t", "tq"),
    "move-interval": duration("1d"),
    "max-size": size(1),
    "record-fields": values.RECORD_FIELDS,
}

TABLES: dict[str, dict[str, Kind]] = {
    "": GLOBAL,
    "spool": SPOOL,
    "pickup": PICKUP,
    "dns": DNS,
    "source": SOURCE,
    "vmta": VMTA,
    "domain": DOMAIN,
    "acct-file": ACCT_FILE,
}
TABLES_WITHIN: dict[str, tuple[str, ...]] = {"": tuple(TABLES)[1:], "vmta": ("domain",)}
REQUIRED: dict[str, dict[str, str]] = {
    "": {"host-name": 'host-name = "mta.example.com"'},
    "spool": {"directory": 'directory = "../spool"'},
    "acct-file": {"path": 'path = "../spool/accounting/acct.csv"'},
}
"""The keys that have no default, with an example."""

FIELDS: dict[str, str] = {"smtp-source-host": "source_hosts", "directory": "spool"}
"""Where the field of `model` is not the key with `_` for `-`."""


def field_of(key: str) -> str:
    return FIELDS.get(key) or key.replace("-", "_")


def known_keys() -> list[str]:
    """The path of every key, for example `host-name`, `vmta.smtp-source-host`, `domain.max-smtp-out`."""
    return [f"{table}.{key}" if table else key for table, kinds in TABLES.items() for key in kinds]


def unparse(field: str, value: object) -> str:
    """The value of a DomainPolicy field as it would stand behind `=` in the configuration."""
    return DOMAIN[field.replace("_", "-")].write(value)
