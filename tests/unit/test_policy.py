from __future__ import annotations

from pathlib import Path

import pytest

from spoolmta import config, policy
from spoolmta.errors import ConfigError
from spoolmta.model import Config, DomainPolicy, Setting

BASE = 'host-name = "mta.example.com"\nspool = { directory = "spool" }\n'


def load(folder: Path, text: str, bulk: str = "") -> Config:
    (folder / "bulk.toml").write_text(bulk)
    (folder / "spoolmta.toml").write_text(BASE + text)
    return config.load(str(folder / "spoolmta.toml"))


def limit(loaded: Config, vmta: str, domain: str) -> int:
    return policy.resolve(loaded, vmta, domain, domain).max_smtp_out


def test_without_tables_the_built_in_defaults_hold(tmp_path: Path) -> None:
    loaded = load(tmp_path, "")
    assert policy.resolve(loaded, "default", "a.b", "a.b") == DomainPolicy()
    assert set(policy.explain(loaded, "default", "a.b", "a.b").values()) >= {Setting(20, "", 0)}


def test_a_stronger_layer_wins_whatever_its_pattern(tmp_path: Path) -> None:
    layers = ['[domain."*"]\nmax-smtp-out = 1\n', '[domain."a.b"]\nmax-smtp-out = 2\n']
    assert limit(load(tmp_path, layers[0]), "default", "a.b") == 1
    assert limit(load(tmp_path, "".join(layers)), "default", "a.b") == 2
    text = "".join(layers) + '[vmta.v]\npolicy = "bulk.toml"\n'
    bulk = '[domain."*"]\nmax-smtp-out = 3\n'
    assert limit(load(tmp_path, text, bulk), "v", "a.b") == 3
    assert limit(load(tmp_path, text, bulk), "default", "a.b") == 2
    bulk += '[domain."a.b"]\nmax-smtp-out = 4\n'
    assert limit(load(tmp_path, text, bulk), "v", "a.b") == 4
    text += '[vmta.v.domain."*"]\nmax-smtp-out = 5\n'
    assert limit(load(tmp_path, text, bulk), "v", "a.b") == 5
    text += '[vmta.v.domain."a.b"]\nmax-smtp-out = 6\n'
    assert limit(load(tmp_path, text, bulk), "v", "a.b") == 6


def test_within_a_layer_the_more_specific_pattern_wins_in_any_order(tmp_path: Path) -> None:
    text = ""
    for number, pattern in enumerate(["mail.a.b", "[*.]mail.a.b", "*.a.b", "[*.]a.b", "*.b", "*"], 1):
        text += f'[domain."{pattern}"]\nmax-smtp-out = {number}\n'
    loaded = load(tmp_path, text)
    domains = ["mail.a.b", "x.mail.a.b", "x.a.b", "a.b", "c.b", "b", "xa.b", "mail.a.b.c"]
    assert [limit(loaded, "default", domain) for domain in domains] == [1, 2, 3, 4, 5, 6, 5, 6]


def test_settings_merge_from_general_to_specific(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[domain."*"]\nmax-smtp-out = 1\nbounce-after = 9\n[domain."a.b"]\nmax-smtp-out = 2\n')
    found = policy.resolve(loaded, "default", "a.b", "a.b")
    assert (found.max_smtp_out, found.bounce_after, found.connect_timeout) == (2, 9.0, 120.0)
    where = policy.explain(loaded, "default", "a.b", "a.b")
    assert [where[field].line for field in ("max_smtp_out", "bounce_after", "connect_timeout")] == [7, 5, 0]


def test_an_address_literal_has_what_holds_for_all(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[domain."*"]\nmax-smtp-out = 3\n')
    assert limit(loaded, "default", "ip-192.0.2.1") == limit(loaded, "default", "ip-2001:db8::1") == 3


def test_a_vmta_that_is_gone_has_the_global_policy(tmp_path: Path) -> None:
    assert limit(load(tmp_path, '[domain."*"]\nmax-smtp-out = 3\n'), "gone", "a.b") == 3


def test_a_star_that_undoes_a_stricter_limit_is_warned_about(tmp_path: Path) -> None:
    text = (
        '[domain."gmail.com"]\nmax-smtp-out = 5\nmax-msg-rate = "10/m"\nmax-msg-per-connection = 9\n'
        '[domain."*.b.c"]\nmax-smtp-out = 7\n[vmta.v]\npolicy = "bulk.toml"\n[vmta.w]\npolicy = "bulk.toml"\n'
    )
    bulk = '[domain."*"]\nmax-smtp-out = 6\nmax-msg-rate = "5/m"\nmax-msg-per-connection = 0\n'
    found = policy.warnings(load(tmp_path, text, bulk))
    place = f"{tmp_path}/bulk.toml"
    assert [line for line in found if '"v"' in line] == [
        f'{place}:2: domain."*".max-smtp-out of the VMTA "v" undoes the stricter limit of domain."gmail.com" '
        f"in {tmp_path}/spoolmta.toml:4",
        f'{place}:4: domain."*".max-msg-per-connection of the VMTA "v" undoes the stricter limit of domain."gmail.com" '
        f"in {tmp_path}/spoolmta.toml:6",
    ]


def test_a_star_whose_vmta_sets_the_limit_again_is_not_warned_about(tmp_path: Path) -> None:
    text = '[domain."a.b"]\nmax-smtp-out = 5\n[vmta.v.domain."*"]\nmax-smtp-out = 9\n'
    assert len(policy.warnings(load(tmp_path, text))) == 1
    assert not policy.warnings(load(tmp_path, text + '[vmta.v.domain."[*.]a.b"]\nmax-smtp-out = 8\n'))
    assert not policy.warnings(load(tmp_path, text.replace("= 9", "= 4")))


def site(loaded: Config, vmta: str, domain: str, *hosts: str) -> str:
    return policy.PolicyTable(loaded, vmta).site_of(domain, hosts)


GOOGLE = '[provider.google]\nmx = ["*.google.com", "*.googlemail.com"]\nmax-smtp-out = 50\n'


def test_a_domain_belongs_to_the_provider_that_runs_all_its_mail_hosts(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOGLE)
    both = ("aspmx.l.google.com", "aspmx2.googlemail.com")
    assert site(loaded, "default", "example.com", *both) == "google.rollup"
    assert site(loaded, "default", "example.com", *both, "mx.elsewhere.net") == "aspmx.l.google.com.rollup"
    assert site(loaded, "default", "example.com", "google.com") == "google.com.rollup"


def test_domains_with_the_same_mail_hosts_share_a_site_named_by_the_first(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[domain."own.example"]\nmax-smtp-out = 3\n')
    hosts = ("mx2.host.net", "mx1.host.net")
    assert site(loaded, "default", "a.example", *hosts) == site(loaded, "default", "b.example", *hosts)
    assert site(loaded, "default", "a.example", *hosts) == "mx1.host.net.rollup"
    assert site(loaded, "default", "own.example", *hosts) == "own.example"
    assert site(loaded, "default", "a.example") == "a.example"
    assert site(loaded, "default", "a.example", "a.example") == "a.example"


def test_a_domain_can_be_taken_out_of_the_roll_up(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOGLE + '[domain."gmail.com"]\ndisable-mx-rollup = true\n')
    assert site(loaded, "default", "gmail.com", "gmail-smtp-in.l.google.com") == "gmail.com"
    assert site(loaded, "default", "example.com", "aspmx.l.google.com") == "google.rollup"


def test_a_provider_is_stronger_than_the_star_and_weaker_than_a_domain(tmp_path: Path) -> None:
    text = '[domain."*"]\nmax-smtp-out = 1\nmax-msg-per-connection = 7\n' + GOOGLE
    text += '[domain."gmail.com"]\nmax-smtp-out = 2\n[vmta.v.provider.google]\nmax-smtp-out = 9\n'
    loaded = load(tmp_path, text)
    table = policy.PolicyTable(loaded, "default")
    assert table.resolve("google.rollup", "google.rollup").max_smtp_out == 50
    assert table.resolve("google.rollup", "google.rollup").max_msg_per_connection == 7
    assert table.resolve("google.rollup", "gmail.com").max_smtp_out == 2
    assert table.resolve("gmail.com", "gmail.com").max_smtp_out == 2
    assert table.resolve("other.example", "other.example").max_smtp_out == 1
    own = policy.PolicyTable(loaded, "v")
    assert own.resolve("google.rollup", "google.rollup").max_smtp_out == 9
    assert own.resolve("google.rollup", "gmail.com").max_smtp_out == 9


def test_a_star_that_undoes_a_providers_limit_is_told(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOGLE + '[vmta.v.domain."*"]\nmax-smtp-out = 99\n')
    (warning,) = policy.warnings(loaded)
    assert "the stricter limit of provider.google in" in warning


def test_providers_are_named_with_their_mail_hosts_in_the_global_tables_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as trouble:
        load(tmp_path, "[provider.a]\nmax-smtp-out = 1\n[vmta.v.provider.b]\nmax-smtp-out = 1\n")
    assert "provider.a: a provider is known by its mail hosts" in str(trouble.value)
    assert 'vmta.v.provider.b: there is no provider "b"' in str(trouble.value)
    with pytest.raises(ConfigError) as trouble:
        load(tmp_path, GOOGLE + '[vmta.v.provider.google]\nmx = ["*.x.com"]\n')
    assert "the mail hosts of a provider stand in the global [provider.google]" in str(trouble.value)
