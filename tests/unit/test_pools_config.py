from __future__ import annotations

from pathlib import Path

import pytest

from spoolmta import config, policy
from spoolmta.errors import ConfigError
from spoolmta.model import Config

BASE = 'host-name = "mta.example.com"\nspool = { directory = "spool" }\n'


def load(folder: Path, text: str) -> Config:
    (folder / "spoolmta.toml").write_text(BASE + text)
    return config.load(str(folder / "spoolmta.toml"))


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [problem.removeprefix(f"{folder}/spoolmta.toml:") for problem in caught.value.problems]


def test_a_pool_has_weights_or_a_list(tmp_path: Path) -> None:
    text = "[vmta.a]\n[vmta.b]\n[pool.p]\nvirtual-mta = { a = 3, b = 1 }\n[pool.q]\nvirtual-mta = ['a', 'b']\n"
    pools = load(tmp_path, text).pools
    assert pools["p"].virtual_mta == {"a": 3, "b": 1}
    assert pools["q"].virtual_mta == {"a": 1, "b": 1}


def test_a_pool_stands_wherever_a_vmta_may(tmp_path: Path) -> None:
    text = (
        "[pool.p]\nvirtual-mta = ['default']\n[source.pickup]\ndefault-virtual-mta = 'p'\n"
        "allowed-virtual-mta = ['p']\n[[source.pickup.select]]\nmail-from = 'x'\nvirtual-mta = 'p'\n"
    )
    source = load(tmp_path, text).sources["pickup"]
    assert (source.default_virtual_mta, source.allowed_virtual_mta, source.select[0].virtual_mta) == ("p", ("p",), "p")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[vmta.news]\n[pool.p]\nvirtual-mta = ['nws']", '5: pool.p.virtual-mta.nws: there is no VMTA "nws" (did you'),
        ("[pool.p]\nvirtual-mta = { q = 1 }", '4: pool.p.virtual-mta.q: there is no VMTA "q"'),
        ("[vmta.p]\n[pool.p]\nvirtual-mta = ['p']", '4: pool.p: there is a VMTA "p" too'),
        ("[pool.default]\nvirtual-mta = ['default']", '3: pool.default: there is a VMTA "default" too'),
        ("[pool.p]", "3: pool.p.virtual-mta: this key is required"),
        ("[pool.p]\nvirtual-mta = []", "4: pool.p.virtual-mta: expected a table of VMTAs and weights"),
        ("[pool.p]\nvirtual-mta = { default = 0 }", "4: pool.p.virtual-mta: expected a whole number from 1 to 1000"),
        ("[pool.p]\nvirtual-mta = ['default', 'default']", '4: pool.p.virtual-mta: "default" is there twice'),
        ("[pool.p]\nhost-name = 'x'", "4: pool.p.host-name: unknown key; it belongs at the top of the file"),
        ("[pool.p]\nmax-smtp-out = -3", "4: pool.p.max-smtp-out: expected a whole number"),
        ("[pool.p]\nmax-smtp-msg-rate = 3", "4: pool.p.max-smtp-msg-rate: expected a rate"),
        ('[domain."*"]\nreroute-to-virtual-mta = "nws"', '4: reroute-to-virtual-mta: there is no VMTA "nws"'),
        (
            '[vmta.a.domain."*"]\nbackoff-reroute-to-virtual-mta = "a"',
            "4: backoff-reroute-to-virtual-mta: the mail is this VMTA's already",
        ),
        ("[vmta.pool]", '3: vmta.pool: a VMTA cannot be named "pool"'),
    ],
)
def test_a_pool_that_cannot_be_is_an_error_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    found = problems(tmp_path, text + "\n")
    assert any(one.startswith(problem) for one in found), found


def test_a_vmta_in_two_pools_with_tables_is_an_error_that_names_both(tmp_path: Path) -> None:
    tables = "[pool.p.domain.'*']\nmax-smtp-out = 2\n"
    text = f"[vmta.a]\n[pool.p]\nvirtual-mta = ['a']\n{tables}[pool.q]\nvirtual-mta = ['a']\n"
    assert load(tmp_path, text).pools
    found = problems(tmp_path, text + "[pool.q.domain.'*']\nmax-smtp-out = 3\n")
    assert found == [
        f'8: pool.q: the VMTA "a" is in the pool "p" too ({tmp_path}/spoolmta.toml:4), and both pools have domain or '
        "provider tables"
    ]


def test_the_tables_of_a_pool_lie_between_the_global_ones_and_the_vmtas_own(tmp_path: Path) -> None:
    (tmp_path / "bulk.toml").write_text('[domain."c.d"]\nmax-smtp-out = 3\n')
    loaded = load(
        tmp_path,
        '[vmta.a]\npolicy = "bulk.toml"\n[vmta.a.domain."e.f"]\nmax-smtp-out = 4\n[pool.p]\nvirtual-mta = ["a"]\n'
        '[pool.p.domain."*"]\nmax-smtp-out = 2\n[domain."a.b"]\nmax-smtp-out = 1\n[provider.x]\nmx = ["*.x.y"]\n'
        "[pool.p.provider.x]\nmax-msg-per-connection = 7\n",
    )
    table = policy.PolicyTable(loaded, "a")
    assert [table.resolve(name, name).max_smtp_out for name in ("a.b", "c.d", "e.f")] == [2, 3, 4]
    assert table.resolve("x.rollup", "a.b").max_msg_per_connection == 7
    assert policy.resolve(loaded, "default", "a.b", "a.b").max_smtp_out == 1
    assert table.explain("a.b", "a.b")["max_smtp_out"].line == 10
