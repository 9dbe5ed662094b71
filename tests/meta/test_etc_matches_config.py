"""The shipped configuration is also its documentation: what it says must be so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from spoolmta import config, policy
from spoolmta.cli.frame import cli
from spoolmta.model import Config, DomainPolicy, Pool, Secret, Source, Vmta, WarmUp
from tests.support.tls import Authority

ETC = Path(__file__).parents[2] / "etc"
COMMENTED = re.compile(r"^# (\[.*\]|[a-z0-9-]+ = .*)$", re.MULTILINE)


def uncommented() -> str:
    return COMMENTED.sub(r"\1", (ETC / "spoolmta.toml").read_text())


@pytest.fixture
def with_everything(tmp_path: Path) -> Config:
    """The shipped configuration with every key in use that is commented out in it."""
    shutil.copytree(ETC, tmp_path / "etc")
    authority = Authority(tmp_path)
    shutil.copy(authority.ca, tmp_path / "etc/ca.pem")
    shutil.copy(authority.certificate("mta.example.com"), tmp_path / "etc/client.pem")
    for selector in ("s1", "s2", "news"):
        key = tmp_path / f"etc/keys/example.com.{selector}.pem"
        assert CliRunner().invoke(cli, ["dkim", "keygen", selector, "example.com", "--output", str(key)]).exit_code == 0
        key.chmod(0o640)
    (tmp_path / "etc/spoolmta.toml").write_text(f"{uncommented()}\n[vmta.news]\n")
    return config.load(str(tmp_path / "etc/spoolmta.toml"))


def documented() -> set[str]:
    found, table, is_provider = set(), "", False
    for line in uncommented().splitlines():
        if header := re.fullmatch(r"\[+(.*?)\]+", line):
            names = header[1].split(".")
            table = next((name for name in ("domain", "select") if name in names), names[0])
            is_provider = table == "provider"
        elif key := re.match(r"([a-z0-9-]+) = ", line):
            home = "domain" if is_provider and key[1] != "mx" else table
            found.add(f"{home}.{key[1]}" if home else key[1])
    return found


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    assert documented() == set(config.known_keys())


def test_every_field_of_a_domain_policy_has_its_key() -> None:
    fields = {f"domain.{field.replace('_', '-')}" for field in DomainPolicy.__struct_fields__}
    assert fields == {key for key in config.known_keys() if key.startswith("domain.")}


def test_the_shipped_configuration_loads_and_warns_of_nothing() -> None:
    loaded = config.load(str(ETC / "spoolmta.toml"))
    assert loaded.spool == str(ETC.parent.resolve() / "spool")
    assert loaded.acct_files[0].records == ("r", "d", "b", "t", "tq")
    assert policy.resolve(loaded, "default", "a.b", "a.b").connection_idle_timeout == 5.0
    assert policy.warnings(loaded) == []


def test_the_examples_that_are_commented_out_load_too(with_everything: Config) -> None:
    assert set(with_everything.pools) == {"alerts"}
    assert set(with_everything.vmtas) == {"default", "bulk", "news"}
    assert policy.resolve(with_everything, "bulk", "gmail.com", "gmail.com").queue_to == "bulk.queue"
    tables = [
        table for layer in with_everything.vmtas["bulk"].layers for table in layer if table.pattern == "gmail.com"
    ]
    assert [table.settings["max_smtp_out"].value for table in tables if "max_smtp_out" in table.settings] == [10]


def test_the_defaults_it_tells_are_the_defaults(with_everything: Config) -> None:
    told = {field: setting.value for field, setting in with_everything.domains[0].settings.items()}
    examples = ("smtp_hosts", "dkim_headers", *(field for field in told if field.startswith("source_ip_")))
    told |= dict.fromkeys(examples, ()) | {"queue_to": "", "auth_username": "", "auth_password": Secret()}
    told |= {"smtp_tls_ciphers": "", "smtp_tls_ca_file": "", "smtp_client_certificate": ""}  # examples too
    told |= {"connection_idle_timeout": 0.0}  # the one that is set on purpose
    told |= {"reroute_to_virtual_mta": "", "backoff_reroute_to_virtual_mta": ""}  # examples
    told |= {"max_cold_virtual_mta_msg": (), "warm_up": WarmUp()}  # an example, and what is never global
    assert told == msgspec.structs.asdict(DomainPolicy())
    plain = Config(host_name="", spool="")
    for field in ("sleep_after", "event_loop", "min_free_space", "min_free_inodes", "copy", "total_max_smtp_out"):
        assert getattr(with_everything, field) == getattr(plain, field)
    source = with_everything.sources["pickup"]
    allowed, folder = source.allowed_virtual_mta, source.pickup
    assert source == Source(name="pickup", allowed_virtual_mta=allowed, pickup=folder, select=source.select)
    assert folder == f"{with_everything.spool}/pickup"
    assert with_everything.vmtas["bulk"].max_smtp_out == Vmta(name="").max_smtp_out
    assert with_everything.pools["alerts"].max_smtp_out == Pool(name="").max_smtp_out
