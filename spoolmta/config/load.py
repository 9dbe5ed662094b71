"""From the tree of a TOML file to one complete frozen `Config`, or to everything that is wrong with it.

Reading never stops at the first problem: what is wrong is noted with its place and left out, and the rest is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from spoolmta import address
from spoolmta.config import files, keys, places, plans, queues, records, responses, signing, tls, values
from spoolmta.config.files import Document, Problems, dotted
from spoolmta.config.lines import Path
from spoolmta.errors import ConfigError
from spoolmta.model import (
    AcctFile,
    BounceRule,
    Config,
    DomainKey,
    DomainTable,
    Pool,
    ResponseRule,
    Select,
    Setting,
    Source,
    Vmta,
)

Layer = tuple[DomainTable, ...]

_JOURNAL_NAME = re.compile(r"(pickup|listener|api|http|smtp)\.[0-9]+")
"""Journals of intake processes are named so, and a VMTA's journal is named as the VMTA."""


def load(path: str) -> Config:
    """The configuration in a file. Raises ConfigError with every problem there is."""
    problems = Problems()
    try:
        document = files.read(path, problems)
        config = _Reader(document, problems).config()
        tls.check(config, problems)
        queues.check(config, problems)
        signing.check(config, problems)
    except RecursionError:
        raise ConfigError(f"{path}: lists or tables are nested too deeply") from None
    problems.raise_if_any()
    return config


class _Reader:
    """Reads one document; policy files are documents of their own, read once however many VMTAs name them."""

    def __init__(self, document: Document, problems: Problems) -> None:
        self._document = document
        self._problems = problems
        self._policies: dict[str, Layer] = {}
        self._policy_responses: dict[str, tuple[ResponseRule, ...]] = {}
        self._absolute: dict[tuple[str, str], str] = {}
        self._mx: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"_Reader({self._document!r}, {self._problems!r})"

    def _complain(self, path: Path, text: str) -> None:
        self._problems.add(self._document.place(path), path, text)

    def config(self) -> Config:
        tree = self._document.tree
        fields = self._table(tree, (), "")
        for name in ("spool", "pickup", "dns"):
            fields |= self._table(tree.get(name, {}), (name,), name)
        spool = fields.setdefault("spool", "")
        fields.setdefault("host_name", "")
        fields["domain_keys"] = self._domain_keys(fields.get("domain_keys", ()), ("domain-key",))
        domains = self._layer(tree, (), self._mx)
        vmtas = self._vmtas()
        pools = self._pools(vmtas)
        shared = [*domains, *(table for pool in pools.values() for table in pool.layer)]
        self._check_warming(vmtas, shared)
        self._check_rerouting(vmtas, shared, [*vmtas, *pools])
        config = Config(
            **fields,
            vmtas=self._with_pools(vmtas, pools),
            pools=pools,
            sources=self._sources([*vmtas, *pools], spool),
            domains=domains,
            providers=self._mx,
            responses=self._responses(tree, ()),
            bounces=self._bounces(),
            acct_files=self._acct_files(spool),
        )
        policies = [name for name in self._policies if name not in self._document.files]
        return msgspec.structs.replace(config, files=(*self._document.files, *policies))

    def _table(self, raw: object, path: Path, table: str) -> dict[str, Any]:
        """The fields of one table that could be read."""
        if not isinstance(raw, dict):
            self._complain(path, f"expected a table, got {values.shown(raw)}")
            return {}
        kinds, within = keys.TABLES[table], keys.TABLES_WITHIN.get(table, ())
        fields: dict[str, Any] = {}
        for key, value in raw.items():
            kind = kinds.get(key)
            if kind is None:
                if key not in within:
                    self._complain((*path, key), _unknown((*path, key), value, table))
                continue
            try:
                read = kind.read(value)
                fields[keys.field_of(key)] = self._resolved((*path, key), read) if kind is keys.PATH else read
            except values.BadValue as error:
                self._complain((*path, key), str(error))
        for key, example in keys.REQUIRED.get(table, {}).items():
            if key not in raw:
                self._complain((*path, key), f"this key is required, for example {example}")
        return fields

    def _resolved(self, path: Path, text: str) -> str:
        file = self._document.place(path)[0]
        found = self._absolute.get((file, text))
        if found is None:
            found = self._absolute[file, text] = files.absolute(file, text)
        return found

    def _named(self, table: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """The tables `[TABLE.NAME]` with a good name."""
        raw = self._document.tree.get(table, {})
        if not isinstance(raw, dict):
            self._complain((table,), f"expected tables like [{table}.NAME], got {values.shown(raw)}")
            return
        for name, value in raw.items():
            if not isinstance(value, dict):
                self._complain((table, name), f"expected a table like [{table}.NAME], got {values.shown(value)}")
                continue
            try:
                values.read_name(name)
            except values.BadValue as error:
                self._complain((table, name), str(error))
            yield name, value

    def _vmtas(self) -> dict[str, Vmta]:
        vmtas: dict[str, Vmta] = {}
        for name, raw in self._named("vmta"):
            path = ("vmta", name)
            if name == "pool":
                self._complain(path, 'a VMTA cannot be named "pool": a folder in the spool is named so')
            if _JOURNAL_NAME.fullmatch(name):
                self._complain(path, f'a VMTA cannot be named "{name}": the journal of a process is named so')
            fields = self._table(raw, path, "vmta")
            policy = fields.pop("policy", "")
            fields["domain_keys"] = self._domain_keys(fields.get("domain_keys", ()), (*path, "domain-key"))
            layers = [self._policy(policy, raw["policy"], (*path, "policy"))] if policy else []
            if warm_up := fields.pop("warm_up", None):
                setting = Setting(warm_up, *self._document.place((*path, "warm-up")))
                layers.append((DomainTable("*", {"warm_up": setting}),))
            layers.append(self._layer(raw, path))
            rules = (*self._responses(raw, path), *self._policy_responses.get(policy, ()))
            vmtas[name] = Vmta(name=name, layers=tuple(layer for layer in layers if layer), responses=rules, **fields)
        return vmtas if "default" in vmtas else {"default": Vmta(name="default")} | vmtas

    def _domain_keys(self, found: Iterable[DomainKey], path: Path) -> tuple[DomainKey, ...]:
        file, line = self._document.place(path)
        return tuple(DomainKey(key.selector, key.domain, self._resolved(path, key.path), file, line) for key in found)

    def _pools(self, vmtas: dict[str, Vmta]) -> dict[str, Pool]:
        pools: dict[str, Pool] = {}
        for name, raw in self._named("pool"):
            path = ("pool", name)
            if name in vmtas:
                self._complain(path, f'there is a VMTA "{name}" too: VMTAs and pools share their names')
            fields = self._table(raw, path, "pool")
            for member in fields.get("virtual_mta", ()):
                self._check_vmta((*path, "virtual-mta", member), [member], vmtas)
            pools[name] = Pool(name=name, layer=self._layer(raw, path), **fields)
        return pools

    def _with_pools(self, vmtas: dict[str, Vmta], pools: dict[str, Pool]) -> dict[str, Vmta]:
        """The VMTAs with the tables of their pools below their own."""
        found = dict(vmtas)
        taken: dict[str, str] = {}
        for pool in pools.values():
            for member in pool.virtual_mta if pool.layer else ():
                if (other := taken.setdefault(member, pool.name)) != pool.name:
                    first = self._document.place(("pool", other))
                    text = f'the VMTA "{address.show(member)}" is in the pool "{other}" too ({first[0]}:{first[1]})'
                    self._complain(("pool", pool.name), f"{text}, and both pools have domain or provider tables")
                elif member in found:
                    layers = (pool.layer, *found[member].layers)
                    found[member] = msgspec.structs.replace(found[member], layers=layers)
        return found

    def _check_warming(self, vmtas: dict[str, Vmta], shared: Iterable[DomainTable]) -> None:
        """Cold VMTAs and those that take what is over must be there, and mail must not go round between them."""
        for table in shared:
            if found := table.settings.get("warm_up"):
                text = "a plan is for one VMTA: it belongs into [vmta.NAME], its tables or its policy file"
                self._problems.add((found.file, found.line), ("warm-up",), text)
        for vmta in vmtas.values():
            path = ("vmta", vmta.name, "cold-virtual-mta")
            self._check_vmta(path, vmta.cold_virtual_mta, vmtas)
            if vmta.name in vmta.cold_virtual_mta:
                self._complain(path, "a VMTA cannot be its own cold one")
        for place, text in plans.wrong_overflows(vmtas):
            self._problems.add(place, ("warm-up",), text)

    def _check_rerouting(self, vmtas: dict[str, Vmta], shared: Iterable[DomainTable], names: Collection[str]) -> None:
        """The VMTAs and pools to which mail goes instead must be there. Circles are seen where they arise."""
        own = [(vmta.name, table) for vmta in vmtas.values() for layer in vmta.layers for table in layer]
        for vmta, table in [*(("", table) for table in shared), *own]:
            for key in ("reroute-to-virtual-mta", "backoff-reroute-to-virtual-mta"):
                found = table.settings.get(keys.field_of(key))
                target = str(found.value) if found else ""
                if found and target and target not in names:
                    text = f'there is no VMTA "{address.show(target)}"' + _meant(target, names)
                    self._problems.add((found.file, found.line), (key,), text)
                elif found and target and target == vmta:
                    self._problems.add((found.file, found.line), (key,), "the mail is this VMTA's already")

    def _policy(self, whole: str, written: str, here: Path) -> Layer:
        """The domain tables of a policy file, named at `here`."""
        if whole in self._policies:
            return self._policies[whole]
        self._policies[whole] = ()
        file = files.named_in(self._document.place(here)[0], written)
        document = Document(file)
        self._problems.open(file)
        try:
            tree, found = files.parse(file)
        except files.Unreadable as error:
            if error.line:
                self._problems.add((file, error.line), (), error.text)
            else:
                self._complain(here, f"{file}: {error.text}")
            return ()
        document.merge(file, tree, found, self._problems)
        reader = _Reader(document, self._problems)
        reader._mx = self._mx
        for key in document.tree:
            if key not in ("domain", "provider", "response"):
                tables = '[domain."gmail.com"], [provider.google] and [[response]]'
                reader._complain((key,), f"a policy file holds nothing but tables like {tables}")
        self._policies[whole] = reader._layer(document.tree, ())
        self._policy_responses[whole] = reader._responses(document.tree, ())
        return self._policies[whole]

    def _layer(self, tree: dict[str, Any], path: Path, mx: dict[str, tuple[str, ...]] | None = None) -> Layer:
        """The domain and provider tables that stand at one place. Only the global ones name MX hosts: into `mx`."""
        domains = self._domains(tree.get("domain", {}), (*path, "domain"))
        raw = tree.get("provider", {})
        here = (*path, "provider")
        if not isinstance(raw, dict):
            self._complain(here, f"expected tables like [provider.google], got {values.shown(raw)}")
            return domains
        providers = [self._provider(name, table, (*here, name), mx) for name, table in raw.items()]
        return (*domains, *providers)

    def _provider(self, name: str, table: object, path: Path, mx: dict[str, tuple[str, ...]] | None) -> DomainTable:
        try:
            values.read_name(name)
        except values.BadValue as error:
            self._complain(path, str(error))
        fields = self._table(table, path, "provider")
        patterns = fields.pop("mx", ())
        if mx is not None:
            mx[name] = patterns
            if not patterns and isinstance(table, dict) and "mx" not in table:
                self._complain(path, 'a provider is known by its mail hosts: mx = ["*.google.com"]')
        elif patterns:
            self._complain((*path, "mx"), f"the mail hosts of a provider stand in the global [provider.{name}]")
        elif name not in self._mx:
            self._complain(path, f'there is no provider "{address.show(name)}"' + _meant(name, self._mx))
        return DomainTable(f"provider {name}", self._settings(fields, path))

    def _domains(self, raw: object, path: Path) -> Layer:
        if not isinstance(raw, dict):
            self._complain(path, f'expected tables like [domain."gmail.com"], got {values.shown(raw)}')
            return ()
        tables: dict[str, DomainTable] = {}
        as_written: dict[str, str] = {}
        for written, table in raw.items():
            here = (*path, written)
            if not isinstance(table, dict):
                example = f'[{dotted(path)}."*"]'
                self._complain(
                    here, f"expected a table, got {values.shown(table)}: a setting stands in a table like {example}"
                )
                continue
            unquoted = [key for key, value in table.items() if isinstance(value, dict) and key not in keys.DOMAIN]
            for key in unquoted:
                self._complain_unquoted(path, written, key, table[key])
            if unquoted and len(unquoted) == len(table):
                continue
            try:
                pattern = places.read_pattern(written)
            except values.BadValue as error:
                self._complain(here, str(error))
                pattern = written
            if pattern in tables:
                first = self._document.place((*path, as_written[pattern]))
                self._complain(here, f'the same pattern stands in {first[0]}:{first[1]}, as "{as_written[pattern]}"')
            as_written[pattern] = written
            tables[pattern] = self._domain_table(pattern, {k: v for k, v in table.items() if k not in unquoted}, here)
        return tuple(tables.values())

    def _domain_table(self, pattern: str, table: dict[str, object], path: Path) -> DomainTable:
        return DomainTable(pattern, self._settings(self._table(table, path, "domain"), path))

    def _settings(self, fields: dict[str, Any], path: Path) -> dict[str, Setting]:
        return {
            field: Setting(value, *self._document.place((*path, field.replace("_", "-"))))
            for field, value in fields.items()
        }

    def _complain_unquoted(self, path: Path, first: str, second: str, node: dict[str, Any]) -> None:
        """`[domain.gmail.com]` is a table `com` in a table `gmail`: say how to write what was meant."""
        names = [first, second]
        while below := [key for key, value in node.items() if isinstance(value, dict) and key not in keys.DOMAIN]:
            names.append(below[0])
            node = node[below[0]]
        name = address.show(".".join(names))
        text = f'a domain with a dot in it is written in quotes: [{dotted(path)}."{name}"]'
        self._complain((*path, *names), text)

    def _responses(self, tree: dict[str, Any], path: Path) -> tuple[ResponseRule, ...]:
        """The rules that stand at one place, as they are tried: the providers' first."""
        providers = tree.get("provider", {})
        found: list[ResponseRule] = []
        for name, table in providers.items() if isinstance(providers, dict) else ():
            if isinstance(table, dict):
                found += self._response_list(table, (*path, "provider", name), name)
        return (*found, *self._response_list(tree, path, ""))

    def _response_list(self, tree: dict[str, Any], path: Path, provider: str) -> Iterator[ResponseRule]:
        raw, path = tree.get("response", []), (*path, "response")
        if not isinstance(raw, list):
            self._complain(path, f"a response rule is written with two brackets: [[{dotted(path)}]]")
            return
        for number, table in enumerate(raw):
            here = (*path, number)
            fields = self._table(table, here, "response")
            if not isinstance(table, dict) or fields.keys() != {keys.field_of(key) for key in table}:
                continue  # what is wrong with a key has been said; what it should be decides what the rest means
            try:
                yield responses.build(fields, provider, *self._document.place(here))
            except KeyError:
                continue  # a required key, which has been asked for
            except values.BadValue as error:
                self._complain(here, str(error))

    def _bounces(self) -> tuple[BounceRule, ...]:
        raw = self._document.tree.get("bounce", [])
        if not isinstance(raw, list):
            self._complain(("bounce",), "a rule for bounce categories is written with two brackets: [[bounce]]")
            return ()
        found = []
        for number, table in enumerate(raw):
            fields = self._table(table, ("bounce", number), "bounce")
            if isinstance(table, dict) and not table.keys() & {"status", "words", "names", "pattern"}:
                text = "a rule looks for something: pattern, words, names or status (pattern = '' is in every reply)"
                self._complain(("bounce", number), text)
            elif "category" in fields:
                file, line = self._document.place(("bounce", number))
                found.append(BounceRule(file=file, line=line, **fields))
        return tuple(found)

    def _sources(self, names: Collection[str], spool: str) -> dict[str, Source]:
        sources: dict[str, Source] = {}
        folders: dict[str, str] = {}
        for name, raw in self._named("source"):
            path = ("source", name)
            fields = self._table(raw, path, "source")
            self._check_vmta((*path, "default-virtual-mta"), [fields.get("default_virtual_mta", "default")], names)
            self._check_vmta((*path, "allowed-virtual-mta"), fields.get("allowed_virtual_mta", ()), names)
            fields["select"] = self._selects(raw.get("select", []), (*path, "select"), names)
            if name == "pickup" and spool:
                fields.setdefault("pickup", f"{spool.rstrip('/')}/pickup")
            sources[name] = Source(name=name, **fields)
        if "pickup" not in sources:
            sources = {"pickup": Source(name="pickup", pickup=f"{spool.rstrip('/')}/pickup")} | sources
        for source in sources.values():
            other = folders.setdefault(source.pickup, source.name) if source.pickup else source.name
            if other != source.name:
                self._complain(
                    ("source", source.name, "pickup"),
                    f'the sources "{other}" and "{source.name}" have the same folder, {source.pickup}',
                )
        return sources

    def _selects(self, raw: object, path: Path, names: Collection[str]) -> tuple[Select, ...]:
        if not isinstance(raw, list):
            self._complain(path, f"a rule is written with two brackets: [[{dotted(path)}]]")
            return ()
        found = []
        for number, table in enumerate(raw):
            here = (*path, number)
            fields = self._table(table, here, "select")
            rule = Select(**fields)
            written = table if isinstance(table, dict) else {}
            if not {"mail-from", "rcpt-to", "header"} & written.keys():
                self._complain(here, "a rule asks for something: mail-from, rcpt-to, or header and match")
            if ("header" in written) != ("match" in written):
                self._complain(here, "header and match belong together")
            if not {"virtual-mta", "recipient-priority"} & written.keys():
                self._complain(here, "a rule selects something: virtual-mta or recipient-priority")
            self._check_vmta((*here, "virtual-mta"), [rule.virtual_mta] if rule.virtual_mta else [], names)
            found.append(rule)
        return tuple(found)

    def _check_vmta(self, path: Path, names: Iterable[str], known: Collection[str]) -> None:
        for name in names:
            if name not in known:
                self._complain(path, f'there is no VMTA "{address.show(name)}"' + _meant(name, known))

    def _acct_files(self, spool: str) -> tuple[AcctFile, ...]:
        raw = self._document.tree.get("acct-file", [])
        if not isinstance(raw, list):
            self._complain(("acct-file",), "an accounting file is written with two brackets: [[acct-file]]")
            return ()
        found: dict[str, AcctFile] = {}
        for number, table in enumerate(raw):
            file = self._acct_file(table, ("acct-file", number), spool)
            if file is not None and file.path in found:
                text = f"another accounting file has the same path, {file.path}"
                text = "another pipe has the same command" if file.command else text
                self._complain(("acct-file", number, "path"), text)
            elif file is not None:
                found[file.path] = file
        return tuple(found.values()) or (AcctFile(path=f"{spool.rstrip('/')}/accounting/acct.csv"),)

    def _acct_file(self, table: dict[str, Any], path: Path, spool: str) -> AcctFile | None:
        fields = self._table(table, path, "acct-file")
        place = fields.get("path", "")
        if not place:
            return None
        is_pipe = place.startswith("|")
        keys_of_others, why = records.wrong_keys(is_pipe)
        for key in keys_of_others:
            if key in table:
                self._complain((*path, key), why)
        own = records.pipe(place, spool) if is_pipe else {"path": self._resolved((*path, "path"), place)}
        return AcctFile(**(fields | own))


def _unknown(path: Path, value: object, table: str) -> str:
    """Why a key is unknown, and what may have been meant."""
    key = str(path[-1])
    known = [*keys.TABLES[table], *keys.TABLES_WITHIN.get(table, ())]
    if meant := _meant(key, known):
        return f"unknown key{meant}"
    if isinstance(value, dict) and table in ("vmta", "pool", "source") and len(path) == 3:
        return (
            f'unknown key; a name with a dot in it is written in quotes: [{table}."{address.show(f"{path[1]}.{key}")}"]'
        )
    written = key.lower().replace("_", "-")
    homes = [name for name, kinds in keys.TABLES.items() if written in kinds]
    if "domain" in homes:
        homes.remove("provider")
    return f"unknown key; it belongs {' or '.join(map(_home, homes))}" if homes else "unknown key"


def _home(table: str) -> str:
    headers = {"": "at the top of the file, before the first table", "domain": 'into [domain."PATTERN"]'}
    headers |= {"select": "into [[source.NAME.select]]"}
    headers |= {name: f"into [[{name}]]" for name in ("acct-file", "bounce")}
    headers |= {name: f"into [{name}.NAME]" for name in ("vmta", "pool", "source", "provider")}
    return headers.get(table, f"into [{table}]")


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower().replace("_", "-"), known, 1)
    return f' (did you mean "{close[0]}"?)' if close else ""
