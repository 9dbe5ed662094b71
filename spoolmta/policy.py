"""Which domains share a site, and what holds for a domain there.

Settings come in layers, from weak to strong: the built-in defaults, the global `[domain]` and `[provider]` tables,
those of the VMTA's pool, the VMTA's policy file, the VMTA's own tables. A stronger layer wins whatever its pattern: a
VMTA's `*` beats a global `example.com` (`warnings` tells where that loosens a limit). Within a layer the more specific
pattern wins, setting by setting: `*`, the provider, then `[*.]com`, `*.com`, `[*.]example.com`, `*.example.com`, ...,
`mail.example.com`.
A domain is looked up under each of these few names, so the cost does not depend on how many patterns there are.

A site is what shares connections, limits and back-off state (`PolicyTable.site_of`). Its limits are those of its name:
`google.rollup` has what is written for the provider, and in `[domain."google.rollup"]`. What a domain of a provider
has in tables of its own holds for the domain, within the provider's limits.

`queue-to` is followed once. A name that anything is queued to is a queue of its own: it is not rolled up, and a
`queue-to` that would match it does not hold for it. So there are no chains and no circles.

Laws. With `queue-to` all of a domain's policy but `queue-to` itself is that of the name it says, and so is its site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from spoolmta.model import Config, DomainPolicy, DomainTable, Rate, Setting

Layer = dict[str, dict[str, Setting]]

ROLLUP = ".rollup"
"""How the names of sites end that may hold several domains."""

BUILT_IN: dict[str, Setting] = {
    field: Setting(value, "", 0) for field, value in msgspec.structs.asdict(DomainPolicy()).items()
}


def _per_second(rate: Any) -> float:
    assert isinstance(rate, Rate)
    return rate.count / rate.period


_LIMITS: dict[str, Callable[[Any], float]] = {
    "max_smtp_out": float,
    "max_msg_rate": _per_second,
    "max_msg_per_connection": lambda count: count or math.inf,
}
"""The settings whose loosening is worth a warning, and a number that is lower where they are stricter."""


class PolicyTable:
    """The layers of one VMTA, ready for look-ups. A VMTA that is not configured has the global layer only."""

    def __init__(self, config: Config, vmta_name: str) -> None:
        vmta = config.vmtas.get(vmta_name)
        self._name = vmta_name
        self._providers = Providers(config.providers)
        self._layers = [_layer(tables) for tables in (config.domains, *(vmta.layers if vmta else ()))]
        tables = [(pattern, settings["queue_to"].value) for pattern, settings in _queueing(self._layers)]
        self._queues = frozenset(queue for _, queue in tables if queue)
        self._queueing = {pattern: None for pattern, _ in tables if _is_of_provider(pattern)}

    def __repr__(self) -> str:
        return f"PolicyTable({self._name!r}, {[len(layer) for layer in self._layers]} patterns)"

    def explain(self, site: str, domain: str) -> dict[str, Setting]:
        """Every field of the policy and where its value stands; a built-in default has no file and line 0."""
        return BUILT_IN | self._settings(site, domain)

    def resolve(self, site: str, domain: str) -> DomainPolicy:
        """The complete policy for a domain at a site; for the site itself where both are its name."""
        values: dict[str, Any] = {field: setting.value for field, setting in self._settings(site, domain).items()}
        return DomainPolicy(**values)

    def site_of(self, domain: str, hosts: Iterable[str]) -> str:
        """The site of a domain whose MX records name these hosts.

        What `queue-to` says; that of the provider that runs all of the hosts; else domains with the same hosts share
        one, named by the first name of the hosts, unless a domain has a table of its own; else the domain is one by
        itself.
        """
        if fixed := self.fixed_site_of(domain):
            return fixed
        names = frozenset(hosts)
        if names and (provider := self._providers.find(names)):
            site = provider + ROLLUP
            return self.resolve(site, domain).queue_to or site
        if queue_to := self.resolve("", domain).queue_to:
            return queue_to
        if not names or names == {domain} or self._is_named(domain):
            return domain
        return min(names) + ROLLUP

    def fixed_site_of(self, domain: str) -> str:
        """The site of a domain where that is no matter of its MX hosts, else ""."""
        if domain in self._queues:
            return domain
        policy = self.resolve("", domain)
        if not policy.queue_to:
            return domain if policy.smtp_hosts or policy.disable_mx_rollup else ""
        others = (self._followed("", (pattern,), domain).get("queue_to") for pattern in self._queueing)
        is_fixed = all(other is not None and other.value == policy.queue_to for other in others)
        return policy.queue_to if is_fixed else ""

    def _is_named(self, domain: str) -> bool:
        patterns = [*patterns_for(domain)][1:]
        return any(name in layer for layer in self._layers for name in patterns)

    def _settings(self, site: str, domain: str) -> dict[str, Setting]:
        settings = self._followed(site, self._providers.table_of(site), domain)
        if site in self._queues and self._queueing and not _leads_to(site, settings):
            # What the tables of its provider have brought to a queue is not at the provider's site any more.
            others = (self._followed(site, (pattern,), domain) for pattern in self._queueing)
            return next((other for other in others if _leads_to(site, other)), settings)
        return settings

    def _followed(self, site: str, providers: tuple[str, ...], domain: str) -> dict[str, Setting]:
        """What holds at a site for a domain by its tables and those of providers, or for what it is queued to."""
        settings = self._written(providers, domain)
        queue_to = settings.pop("queue_to", None)
        if queue_to is None or domain in self._queues:
            return settings
        if queue_to.value:
            settings = self._written(self._providers.table_of(site), str(queue_to.value))
        return settings | {"queue_to": queue_to}

    def _written(self, providers: tuple[str, ...], domain: str) -> dict[str, Setting]:
        """What the tables say of a domain, those of providers among them, and no `queue-to` followed."""
        settings: dict[str, Setting] = {}
        everything, *patterns = patterns_for(domain)
        names = [everything, *providers, *patterns]
        for layer in self._layers:
            for name in names:
                if found := layer.get(name):
                    settings |= found
        return settings


class Providers:
    """The providers of a configuration, found by the MX hosts they run."""

    def __init__(self, providers: dict[str, tuple[str, ...]]) -> None:
        self._names = [*providers]
        self._by_pattern: dict[str, set[str]] = {}
        for name, patterns in providers.items():
            for pattern in patterns:
                self._by_pattern.setdefault(pattern, set()).add(name)

    def __repr__(self) -> str:
        return f"Providers({self._names})"

    def find(self, hosts: Iterable[str]) -> str:
        """The first provider whose patterns match every host, "" if there is none."""
        fitting = set(self._names)
        for host in hosts:
            fitting &= self._running(host.lower())
        return next((name for name in self._names if name in fitting), "")

    def _running(self, host: str) -> set[str]:
        found = set(self._by_pattern.get(host, ()))
        rest = host.partition(".")[2]
        while rest:
            found |= self._by_pattern.get(f"*.{rest}", set())
            rest = rest.partition(".")[2]
        return found

    def table_of(self, site: str) -> tuple[str, ...]:
        """The pattern of the provider's tables where a site is a provider's, else nothing."""
        name = site.removesuffix(ROLLUP)
        return (f"provider {name}",) if name != site and name in self._names else ()


def _layer(tables: tuple[DomainTable, ...]) -> Layer:
    return {table.pattern: table.settings for table in tables}


def _queueing(layers: Iterable[Layer]) -> Iterator[tuple[str, dict[str, Setting]]]:
    """The tables that say where mail is queued to, or that it is not."""
    for layer in layers:
        for pattern, settings in layer.items():
            if "queue_to" in settings:
                yield pattern, settings


def _leads_to(site: str, settings: dict[str, Setting]) -> bool:
    return "queue_to" in settings and settings["queue_to"].value == site


def _is_of_provider(pattern: str) -> bool:
    return pattern.startswith("provider ")


def patterns_for(domain: str) -> Iterator[str]:
    """Every pattern that matches a domain, from the most general to the most specific."""
    yield "*"
    labels = domain.lower().split(".")
    for start in range(len(labels) - 1, 0, -1):
        suffix = ".".join(labels[start:])
        yield f"[*.]{suffix}"
        yield f"*.{suffix}"
    whole = ".".join(labels)
    yield f"[*.]{whole}"
    yield whole


def resolve(config: Config, vmta_name: str, site: str, domain: str) -> DomainPolicy:
    """The complete policy for one domain. Who asks more than once keeps a `PolicyTable`."""
    return PolicyTable(config, vmta_name).resolve(site, domain)


def explain(config: Config, vmta_name: str, site: str, domain: str) -> dict[str, Setting]:
    """Where each value of `resolve` comes from, by field name."""
    return PolicyTable(config, vmta_name).explain(site, domain)


def warnings(config: Config) -> list[str]:
    """Where a VMTA's `*` undoes a stricter limit of a global domain, as `file:line: ...`, one line a setting."""
    strict = [
        (table.pattern, field, table.settings[field])
        for table in config.domains
        if table.pattern != "*"
        for field in _LIMITS
        if field in table.settings
    ]
    found: dict[str, None] = {}  # a policy file that several VMTAs share warns once
    for vmta in config.vmtas.values():
        stars = [table for layer in vmta.layers for table in layer if table.pattern == "*"]
        if strict and any(field in table.settings for table in stars for field in _LIMITS):
            found |= dict.fromkeys(_undone(vmta.name, PolicyTable(config, vmta.name), stars, strict))
    return [*found]


def _undone(
    name: str, policies: PolicyTable, stars: list[DomainTable], strict: list[tuple[str, str, Setting]]
) -> Iterator[str]:
    for field, is_at in _LIMITS.items():
        loosened: dict[tuple[str, int], list[tuple[str, Setting]]] = {}
        for pattern, limited, limit in strict:
            if limited != field:
                continue
            # one domain stands for all that the pattern matches
            domain = f"any{pattern[1:]}" if pattern.startswith("*.") else pattern.removeprefix("[*.]")
            if _is_of_provider(pattern):
                domain = pattern.removeprefix("provider ") + ROLLUP
            holds = policies.explain(domain, domain)[field]
            is_star = any(table.settings.get(field) is holds for table in stars)
            if is_star and is_at(holds.value) > is_at(limit.value):
                loosened.setdefault((holds.file, holds.line), []).append((pattern, limit))
        for (file, line), undone in loosened.items():
            pattern, limit = undone[0]
            more = f" and {len(undone) - 1} more" if len(undone) > 1 else ""
            yield (
                f'{file}:{line}: domain."*".{field.replace("_", "-")} of the VMTA "{name}" undoes '
                f"the stricter limit of {_table(pattern)} in {limit.file}:{limit.line}{more}"
            )


def _table(pattern: str) -> str:
    return pattern.replace(" ", ".") if _is_of_provider(pattern) else f'domain."{pattern}"'
