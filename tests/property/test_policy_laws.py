from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from spoolmta.model import Config, DomainPolicy, DomainTable, Setting, Vmta
from spoolmta.policy import PolicyTable, explain, patterns_for, resolve

FIELDS = ("max_smtp_out", "max_msg_per_connection", "max_rcpt_per_transaction")
domains = st.lists(st.sampled_from(["a", "b", "com"]), min_size=1, max_size=4).map(".".join)
patterns = st.just("*") | st.builds(str.__add__, st.sampled_from(["", "*.", "[*.]"]), domains)
settings = st.dictionaries(
    st.sampled_from(FIELDS), st.builds(Setting, st.integers(1, 9), st.sampled_from(["x", "y"]), st.integers(1, 99))
)
layers = st.dictionaries(patterns, settings, max_size=6).map(
    lambda tables: tuple(DomainTable(pattern, found) for pattern, found in tables.items())
)


def build(*found: tuple[DomainTable, ...]) -> Config:
    vmtas = {"v": Vmta(name="v", layers=found[1:])}
    return Config(host_name="h", spool="/s", vmtas=vmtas, domains=found[0])


configs = st.builds(build, layers, layers, layers)


def matches(pattern: str, domain: str) -> bool:
    """The meaning of a pattern, said in another way than the code under test does."""
    if pattern.startswith("[*.]"):
        return f".{domain}".endswith(f".{pattern[4:]}")
    return pattern in ("*", domain) or (pattern.startswith("*.") and domain.endswith(pattern[1:]))


@given(patterns, domains)
def test_a_pattern_is_looked_up_for_exactly_the_domains_it_matches(pattern: str, domain: str) -> None:
    assert (pattern in list(patterns_for(domain))) == matches(pattern, domain)


@given(configs, domains)
def test_explain_agrees_with_resolve_field_by_field(config: Config, domain: str) -> None:
    found = resolve(config, "v", domain, domain)
    where = explain(config, "v", domain, domain)
    assert msgspec.structs.asdict(found) == {field: setting.value for field, setting in where.items()}
    assert list(where) == list(DomainPolicy.__struct_fields__)


@given(configs, domains)
def test_resolving_again_gives_the_same(config: Config, domain: str) -> None:
    table = PolicyTable(config, "v")
    assert table.resolve(domain, domain) == table.resolve(domain, domain) == resolve(config, "v", "", domain.upper())


@given(configs, domains)
def test_the_policy_of_a_domain_as_a_table_of_its_own_changes_nothing(config: Config, domain: str) -> None:
    where = explain(config, "v", domain, domain)
    vmta = config.vmtas["v"]
    own = msgspec.structs.replace(vmta, layers=(*vmta.layers, (DomainTable(domain, where),)))
    again = msgspec.structs.replace(config, vmtas={"v": own})
    assert explain(again, "v", domain, domain) == where


@given(configs, domains)
def test_the_strongest_layer_that_matches_decides(config: Config, domain: str) -> None:
    where = explain(config, "v", domain, domain)
    for field in FIELDS:
        for layer in reversed((config.domains, *config.vmtas["v"].layers)):
            found = [table for table in layer if field in table.settings and matches(table.pattern, domain)]
            if found:
                best = max(found, key=lambda table: _specificity(table.pattern))
                assert where[field] == best.settings[field]
                break
        else:
            assert where[field] == Setting(getattr(DomainPolicy(), field), "", 0)


def _specificity(pattern: str) -> tuple[int, int]:
    name = pattern.removeprefix("[*.]").removeprefix("*.")
    if pattern == "*":
        return (0, 0)
    return (len(name), 0 if pattern.startswith("[") else 1)
