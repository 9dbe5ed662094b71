from __future__ import annotations

from pathlib import Path

import pytest

from spoolmta import config, policy
from spoolmta.errors import MessageRefused
from spoolmta.model import Config, DomainPolicy, Envelope, Setting, Source

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


def envelope(virtual_mta: str) -> Envelope:
    return Envelope("a@b.c", (), virtual_mta=virtual_mta)


def test_a_message_chooses_its_vmta_only_where_its_source_lets_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[vmta.bulk]\n[vmta.news]\n")
    free = Source(name="s", default_virtual_mta="news")
    bound = Source(name="s", default_virtual_mta="news", allowed_virtual_mta=("bulk",))
    deaf = Source(name="s", default_virtual_mta="news", process_x_virtual_mta=False)
    assert policy.choose_vmta(loaded, free, envelope("")) == "news"
    assert policy.choose_vmta(loaded, free, envelope("Bulk")) == "bulk"
    assert policy.choose_vmta(loaded, bound, envelope("bulk")) == "bulk"
    assert policy.choose_vmta(loaded, bound, envelope("")) == "news"
    assert policy.choose_vmta(loaded, deaf, envelope("nonsense")) == "news"
    with pytest.raises(MessageRefused, match='the VMTA "blk", which does not exist'):
        policy.choose_vmta(loaded, free, envelope("blk"))
    with pytest.raises(MessageRefused, match='the VMTA "default", which the source "s" does not allow'):
        policy.choose_vmta(loaded, bound, envelope("default"))


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
