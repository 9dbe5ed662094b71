"""Every key of the configuration, by the table it stands in, with the kind of its value.

A new directive is one line here, beside its field in `model` and its words in `etc/spoolmta.toml`. Defaults are those
of `model`.
"""

from __future__ import annotations

import tomllib
from typing import Any

from spoolmta.config import bounces, places, plans, rates, records, responses, signing, values
from spoolmta.config.values import Kind, choice, duration, number, size

PATH = Kind(values.read_path)
"""A path, relative to the file it stands in: the reader resolves it."""

GLOBAL: dict[str, Kind] = {
    "host-name": places.HOST_NAME,
    "user": values.USER,
    "custom-dsn-from-header": values.AUTHOR,
    "domain-key": signing.KEYS,
    "sleep-after": duration("1m", is_zero_allowed=True),
    "event-loop": choice("uvloop", "asyncio"),
    "total-max-smtp-out": number(1200),
    "mx-connection-limit": places.by_mx(number(50, 1)),
    "ip-connection-limit": rates.by_network(number(10, 1)),
    "include": values.TEXTS,
}
SPOOL: dict[str, Kind] = {
    "directory": PATH,
    "min-free-space": size(),
    "min-free-inodes": number(1000),
}
PICKUP: dict[str, Kind] = {"copy": choice("auto", "always", "never")}
DNS: dict[str, Kind] = {
    "nameservers": places.NAMESERVERS,
    "allow-loopback-mx": values.FLAG,
    "dnssec-trusted": values.FLAG,
    "mta-sts-port": places.PORT,
}
SOURCE: dict[str, Kind] = {
    "default-virtual-mta": values.TEXT,
    "process-x-virtual-mta": values.FLAG,
    "process-x-job": values.FLAG,
    "process-x-dkim-options": values.FLAG,
    "allowed-virtual-mta": values.NAMES,
    "recipient-priority": number(50, 0, 100),
    "pickup": PATH,
    "max-message-size": size(1),
    "suppress-local-dsn": values.FLAG,
    "dsn-return-default": choice("full", "headers"),
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
    "smtp-source-host": places.SOURCE_HOSTS,
    "host-name": places.HOST_NAME,
    "max-smtp-out": number(200),
    "max-smtp-msg-rate": rates.RATE,
    "max-smtp-data-volume-rate": rates.DATA_RATE,
    "cold-virtual-mta": values.NAMES,
    "domain-key": signing.KEYS,
    "warm-up": plans.WARM_UP,
    "policy": PATH,
}
POOL: dict[str, Kind] = {
    "virtual-mta": values.WEIGHTS,
    "max-smtp-out": number(200),
    "max-smtp-msg-rate": rates.RATE,
    "max-smtp-data-volume-rate": rates.DATA_RATE,
}
DOMAIN: dict[str, Kind] = {
    "queue-to": places.QUEUE,
    "smtp-hosts": places.HOSTS,
    "default-smtp-port": places.PORT,
    "disable-mx-rollup": values.FLAG,
    "reroute-to-virtual-mta": Kind(values.read_optional_text),
    "backoff-reroute-to-virtual-mta": Kind(values.read_optional_text),
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
    "max-errors-per-connection": number(10),
    "mx-connection-attempts": number(10, 1, 100),
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
    "backoff-notify": values.ADDRESSES,
    "backoff-upon-all-sources-disabled": values.FLAG,
    "reenable-source-ip-after": rates.DURATION_OR_NEVER,
    "disabled-source-ip-notify": values.ADDRESSES,
    "retry-upon-new-mail": values.FLAG,
    "retry-recipients-after": values.SCHEDULE,
    "bounce-after": duration("4d12h"),
    "notify-of-delay-every": rates.DURATION_OR_NEVER,
    "dsn-format": choice("standard", "plain-text"),
    "connection-idle-timeout": duration("5s", is_zero_allowed=True, most=600),
    "max-cold-virtual-mta-msg": plans.PER_DAY,
    "warm-up": plans.WARM_UP,
    "connect-timeout": duration("2m"),
    "smtp-greeting-timeout": duration("5m"),
    "data-send-timeout": duration("3m"),
    "smtp-data-termination-timeout": duration("10m"),
    "smtp-multiple-line-response-timeout": duration("5m"),
    "assume-delivery-upon-data-termination-timeout": values.FLAG,
    "retry-after-dns-error": duration("1m"),
    "bounce-upon-no-mx": values.FLAG,
    "bounce-upon-5xx-greeting": values.FLAG,
    "bounce-upon-transfer-failure": values.FLAG,
    "smtp-553-means-invalid-mailbox": values.FLAG,
    "smtp-421-means-mx-unavailable": values.FLAG,
    "replace-smtp-421-service-response": values.FLAG,
    "ignore-8bitmime": values.FLAG,
    "ignore-chunking": values.FLAG,
    "ignore-pipelining": values.FLAG,
    "ignore-dsn": values.FLAG,
    "auth-username": Kind(values.read_optional_text),
    "auth-password": values.SECRET,
    "use-unencrypted-plain-auth": values.FLAG,
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
    "dkim-sign": signing.SIGN,
    "dkim-identity": signing.IDENTITY,
    "dkim-headers": signing.HEADERS,
    "dkim-headers-canon": choice("relaxed", "simple"),
    "dkim-body-canon": choice("relaxed", "simple"),
    "dkim-add-timestamp": values.FLAG,
    "dkim-expire-after": rates.DURATION_OR_NEVER,
    "dkim-disallow-adding-headers": values.FLAG,
    "dk-sign": values.FLAG,
    "dk-canon": choice("nofws", "simple"),
}
PROVIDER: dict[str, Kind] = {"mx": places.MX_PATTERNS, **DOMAIN}
"""`mx` stands only where the provider is named first, in the global tables."""
RESPONSE: dict[str, Kind] = {
    "name": values.TEXT,
    "reply": responses.PATTERNS,
    "stage": responses.STAGES,
    "action": responses.ACTIONS,
    "for": duration("2h"),
    "trigger": responses.TRIGGER,
    "set": responses.changes(DOMAIN, lambda key: field_of(key)),
}
BOUNCE: dict[str, Kind] = {
    "category": bounces.CATEGORY,
    "status": bounces.STATUSES,
    "words": bounces.PHRASES,
    "names": bounces.PHRASES,
    "pattern": bounces.PATTERNS,
    "sample": bounces.SAMPLES,
}
ACCT_FILE: dict[str, Kind] = {
    "path": records.PLACE,
    "records": records.RECORDS,
    "record-fields": records.FIELDS,
    "map-header-to-field": records.HEADER_FIELDS,
    "queue-filter": records.QUEUE_FILTER,
    "privacy-policy": records.PRIVACY,
    "user-string": values.TEXT,
    "iso-times": values.FLAG,
    "world-readable": values.FLAG,
    "sync": values.FLAG,
    "move-interval": duration("1d"),
    "max-size": size(1),
    "move-to": PATH,
    "delete-after": rates.DURATION_OR_NEVER,
    "count-moved-records": values.FLAG,
    "write-timeout": duration("1m"),
    "retry-interval": duration("5m"),
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
    "response": RESPONSE,
    "bounce": BOUNCE,
    "acct-file": ACCT_FILE,
}
TABLES_WITHIN: dict[str, tuple[str, ...]] = {
    "": tuple(table for table in TABLES if table not in ("", "select")),
    "vmta": ("domain", "provider", "response"),
    "pool": ("domain", "provider"),
    "provider": ("response",),
    "source": ("select",),
}
REQUIRED: dict[str, dict[str, str]] = {
    "": {"host-name": 'host-name = "mta.example.com"'},
    "spool": {"directory": 'directory = "../spool"'},
    "pool": {"virtual-mta": "virtual-mta = { alerts-1 = 3, alerts-2 = 1 }"},
    "response": {"reply": r"reply = '^421 .*\[TSS04\]'", "action": 'action = "backoff"'},
    "bounce": {"category": 'category = "bad-mailbox"'},
    "acct-file": {"path": 'path = "../spool/accounting/acct.csv"'},
}
"""The keys that have no default, with an example."""

FIELDS: dict[str, str] = {"smtp-source-host": "source_hosts", "directory": "spool"}
FIELDS |= {"domain-key": "domain_keys", "stage": "stages", "action": "actions", "for": "duration", "set": "changes"}
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


def parse_setting(field: str, text: str) -> Any:
    """What `unparse` wrote."""
    return DOMAIN[field.replace("_", "-")].read(tomllib.loads(f"value = {text}")["value"])


def unparse(field: str, value: object) -> str:
    """The value of a DomainPolicy field as it would stand behind `=` in the configuration."""
    return DOMAIN[field.replace("_", "-")].write(value)
