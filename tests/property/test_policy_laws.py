from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from spoolmta.model import Config, DomainPolicy, DomainTable, Host, Setting, Vmta
from spoolmta.policy import PolicyTable, explain, patterns_for, resolve
from spoolmta.routing import is_moved, routing
from spoolmta.warming import Plans

FIELDS = ("max_smtp_out", "max_msg_per_connection", "max_rcpt_per_transaction")
PROVIDERS = {"big": ("*.big.test",), "small": ("mx.small.test",)}
domains = st.lists(st.sampled_from(["a", "b", "com"]), min_size=1, max_size=4).map(".".join)
patterns = st.just("*") | st.builds(str.__add__, st.sampled_from(["", "*.", "[*.]"]), domains)
settings = st.dictionaries(
    st.sampled_from(FIELDS), st.builds(Setting, st.integers(1, 9), st.sampled_from(["x", "y"]), st.integers(1, 99))
)
layers = st.dictionaries(patterns, settings, max_size=6).map(
    lambda tables: tuple(DomainTable(pattern, found) for pattern, found in tables.items())
)
queued = st.builds(Setting, st.sampled_from(["", "a", "b.com", "q.queue"]), st.just("z"), st.integers(1, 99))
queueing = st.dictionaries(
    patterns | st.sampled_from(["provider big", "provider small"]),
    st.builds(lambda found, to: {**found, **({"queue_to": to} if to else {})}, settings, st.none() | queued),
    max_size=6,
).map(lambda tables: tuple(DomainTable(pattern, found) for pattern, found in tables.items()))
hosts = st.frozensets(st.sampled_from(["mx1.big.test", "mx2.big.test", "mx.small.test", "mx.a"]), max_size=2)


def build(*found: tuple[DomainTable, ...]) -> Config:
    vmtas = {"v": Vmta(name="v", layers=found[1:])}
    return Config(host_name="h", spool="/s", vmtas=vmtas, domains=found[0], providers=PROVIDERS)


configs = st.builds(build, layers, layers, layers)
with_queues = st.builds(build, queueing, queueing, queueing)


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


@given(with_queues, domains, hosts)
def test_with_queue_to_all_but_queue_to_itself_is_that_of_the_name_it_says(
    config: Config, domain: str, mx: frozenset[str]
) -> None:
    table = PolicyTable(config, "v")
    for site in (table.site_of(domain, mx), "big.rollup", ""):
        found = table.explain(site, domain)
        queue = found["queue_to"].value
        if queue:
            there = table.explain(site, str(queue))
            assert there["queue_to"] == Setting("", "", 0), "a queue goes no further"
            assert found == there | {"queue_to": found["queue_to"]}
            assert found["queue_to"].file == "z"
            policy = table.resolve(site, domain)
            assert msgspec.structs.replace(policy, queue_to="") == table.resolve(site, str(queue))


@given(with_queues, domains, hosts, hosts)
def test_the_site_of_what_is_queued_to_a_name_is_the_name_whatever_the_mail_hosts(
    config: Config, domain: str, mx: frozenset[str], others: frozenset[str]
) -> None:
    table = PolicyTable(config, "v")
    site = table.site_of(domain, mx)
    queue = table.resolve(site, domain).queue_to
    if queue:
        assert site == queue == table.site_of(queue, mx) == table.site_of(queue, others)
    fixed = table.fixed_site_of(domain)
    if fixed:
        assert table.site_of(domain, mx) == table.site_of(domain, others) == fixed
        assert table.resolve("", domain).queue_to in ("", fixed)


@given(with_queues, domains, hosts)
def test_an_address_that_warms_up_is_counted_at_the_site_to_which_the_mail_goes(
    config: Config, domain: str, mx: frozenset[str]
) -> None:
    plans, site = Plans(config, "v"), PolicyTable(config, "v").site_of(domain, mx)
    assert plans.site_of(domain, mx) == site
    assert plans.site_of(domain, None) == (site if plans.is_fixed(domain) else "")


@given(with_queues, domains, domains, hosts)
def test_the_same_configuration_moves_nothing_and_one_queue_has_one_routing(
    config: Config, domain: str, other: str, mx: frozenset[str]
) -> None:
    table = PolicyTable(config, "v")
    assert not is_moved(table, PolicyTable(config, "v"), domain, mx)
    mine = routing(table, domain, mx)
    if mine.queue_to:
        assert routing(table, mine.queue_to, mx) == msgspec.structs.replace(mine, queue_to="")
        if table.fixed_site_of(other) == mine.queue_to != other:
            assert routing(table, other, mx) == mine


@given(with_queues, domains, hosts)
def test_whatever_changes_where_mail_goes_moves_it(config: Config, domain: str, mx: frozenset[str]) -> None:
    table = PolicyTable(config, "v")
    policy = table.resolve(table.site_of(domain, mx), domain)
    changes: list[tuple[str, object]] = [
        ("smtp_hosts", ((Host("elsewhere.test"),),)),
        ("default_smtp_port", 26),
        ("require_starttls", True),
        ("use_mta_sts", True),
    ]
    for field, value in changes:
        change = DomainTable(policy.queue_to or domain, {field: Setting(value, "w", 1)})
        vmta = config.vmtas["v"]
        more = msgspec.structs.replace(vmta, layers=(*vmta.layers, (change,)))
        changed = PolicyTable(msgspec.structs.replace(config, vmtas={"v": more}), "v")
        assert is_moved(table, changed, domain, mx), field


def _specificity(pattern: str) -> tuple[int, int]:
    name = pattern.removeprefix("[*.]").removeprefix("*.")
    if pattern == "*":
        return (0, 0)
    return (len(name), 0 if pattern.startswith("[") else 1)
