"""`dkim keygen`, and what `check` says of key files."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spoolmta import config, dkim
from spoolmta.cli.frame import cli
from spoolmta.errors import ConfigError
from tests.support.mta import World

BASE = 'host-name = "mta.test"\n{more}\n[spool]\ndirectory = "spool"\n[vmta.news]\n{vmta}\n'


def keygen(*words: str) -> Result:
    return CliRunner().invoke(cli, ["dkim", "keygen", *words])


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPOOLMTA_CONFIG", raising=False)


def test_a_key_is_made_with_its_record_in_strings_that_are_short_enough(tmp_path: Path) -> None:
    result = keygen("s1", "Example.COM")
    assert result.exit_code == 0, result.output
    path = tmp_path / "keys" / "example.com.s1.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    found = re.fullmatch(r's1\._domainkey\.example\.com\. IN TXT ((?:"[^"]{1,255}" ?)+)\n', result.stdout)
    assert found
    assert "".join(re.findall(r'"([^"]*)"', found[1])).startswith("v=DKIM1; k=rsa; p=MIIBIjAN")
    assert dkim.key_of("s1", "example.com", path.read_bytes()).algorithm == "rsa-sha256"
    (tmp_path / "spoolmta.toml").write_text(BASE.format(more="", vmta=result.stderr.splitlines()[1]))
    assert config.load(str(tmp_path / "spoolmta.toml")).vmtas["news"].domain_keys[0].path == str(path)


def test_an_ed25519_key_has_its_32_bytes_in_the_record(tmp_path: Path) -> None:
    result = keygen("s2", "example.com", "--ed25519", "--output", "my.pem")
    assert re.fullmatch(
        r's2\._domainkey\.example\.com\. IN TXT "v=DKIM1; k=ed25519; p=[A-Za-z0-9+/]{43}="\n', result.stdout
    )
    assert dkim.key_of("s2", "example.com", (tmp_path / "my.pem").read_bytes()).algorithm == "ed25519-sha256"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    keygen("s1", "example.com", "--bits", "1024")
    before = (tmp_path / "keys" / "example.com.s1.pem").read_bytes()
    result = keygen("s1", "example.com", "--bits", "1024")
    assert result.exit_code == 64
    assert result.stderr.startswith("spoolmta: keys/example.com.s1.pem is there already")
    assert (tmp_path / "keys" / "example.com.s1.pem").read_bytes() == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file to another group")
def test_the_group_of_the_systems_user_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "spoolmta.toml").write_text('user = "nobody"\n')
    assert keygen("s1", "example.com", "--bits", "1024").exit_code == 0
    status = (tmp_path / "keys" / "example.com.s1.pem").stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o640, pwd.getpwnam("nobody").pw_gid)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a b", "example.com"), '"a b" is no selector'),
        (("s1", "exa mple"), '"exa mple" is no domain'),
        (("s1", "*"), "name them"),
        (("a,b", "c.test"), "name them"),
        (("s1", "[192.0.2.1]"), "is an address"),
        (("s1", "example.com", "--output", "/dev/null/y.pem"), "cannot write /dev/null/y.pem"),
    ],
)
def test_what_cannot_be_a_key_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    result = keygen(*words)
    assert result.exit_code != 0
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def problems(tmp_path: Path, vmta: str, more: str = "") -> str:
    (tmp_path / "spoolmta.toml").write_text(BASE.format(more=more, vmta=vmta))
    with pytest.raises(ConfigError) as caught:
        config.load(str(tmp_path / "spoolmta.toml"))
    return str(caught.value)


def test_a_key_file_that_cannot_be_used_is_an_error_with_its_line(tmp_path: Path) -> None:
    keygen("good", "example.com", "--bits", "1024", "--output", "good.pem")
    (tmp_path / "open.pem").write_bytes((tmp_path / "good.pem").read_bytes())
    (tmp_path / "open.pem").chmod(0o644)
    (tmp_path / "text.pem").write_text("no key")
    (tmp_path / "text.pem").chmod(0o600)
    for name, sentence in (
        ("open.pem", "everybody on this machine may use this key (mode 0644)"),
        ("text.pem", "there is no private key in it"),
        ("missing.pem", "no such file or directory: `spoolmta dkim keygen` makes a key"),
        (".", "this is no file"),
    ):
        found = problems(tmp_path, f'domain-key = ["s1,example.com,{name}"]')
        assert re.search(
            rf"spoolmta.toml:6: vmta.news.domain-key: \S*{re.escape(name.strip('.'))}: {re.escape(sentence)}", found
        )
        assert found.count("\n") == 0


def test_a_key_that_the_systems_user_cannot_read_is_an_error(tmp_path: Path) -> None:
    keygen("s1", "example.com", "--bits", "1024", "--output", "a.pem")
    own = pwd.getpwuid(os.getuid())
    other = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, own.pw_uid) and
                 entry.pw_gid != (tmp_path / "a.pem").stat().st_gid and
                 entry.pw_name not in grp.getgrgid((tmp_path / "a.pem").stat().st_gid).gr_mem)  # fmt: skip
    found = problems(tmp_path, 'domain-key = ["s1,example.com,a.pem"]', f'user = "{other.pw_name}"')
    assert f"the user {other.pw_name}, who runs spoolmta, cannot read it" in found


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('domain-key = "s1,example.com,a.pem"', 'expected a list like ["s1,example.com,keys/example.com.s1.pem"]'),
        ('domain-key = ["s1,example.com"]', "expected a list of keys as selector, domain"),
        ('domain-key = ["s 1,example.com,a.pem"]', "is no selector"),
        ('domain-key = ["s1,exa mple,a.pem"]', "is no domain"),
    ],
)
def test_what_is_no_key_is_an_error_with_its_line(tmp_path: Path, line: str, sentence: str) -> None:
    found = problems(tmp_path, line)
    assert "spoolmta.toml:6: vmta.news.domain-key" in found
    assert sentence in found


@pytest.mark.parametrize("identity", ["", "example.com", "@", "a b@example.com", "@exa mple", "sender"])
def test_an_identity_is_a_domain_behind_an_at_sign_or_an_address(tmp_path: Path, identity: str) -> None:
    found = problems(tmp_path, f'[vmta.news.domain."*"]\ndkim-identity = "{identity}"')
    assert 'expected "sender-or-from", "strict-from", "@example.com" or an address' in found


def zones_of(record: str) -> dict[str, object]:
    name, _, text = record.partition(". IN TXT ")
    return {"test": {"SOA": []}, name: {"TXT": ["".join(re.findall(r'"([^"]*)"', text))]}}


def test_check_tells_whether_what_a_key_signs_verifies_by_its_record(tmp_path: Path) -> None:
    records = {name: keygen(name, "us.test", *options, "--output", f"{name}.pem").stdout.strip()
               for name, options in (("rsa", ["--bits", "1024"]), ("ed", ["--ed25519"]), ("gone", ["--ed25519"]),
                                     ("other", ["--bits", "1024"]))}  # fmt: skip
    zones: dict[str, object] = {}
    for name in ("rsa", "ed"):
        zones |= zones_of(records[name])
    zones |= zones_of(records["rsa"].replace("rsa._domainkey", "other._domainkey"))
    zones["unknown._domainkey.sick.test"] = "SERVFAIL"
    keys = [f"{name},us.test,{name}.pem" for name in records] + ["unknown,sick.test,rsa.pem", "any,*,rsa.pem"]
    with World(tmp_path, zones=zones) as world:
        more = f'[dns]\nnameservers = ["{world.nameserver}"]'
        (tmp_path / "spoolmta.toml").write_text(BASE.format(more="", vmta=f"domain-key = {json.dumps(keys)}") + more)
        result = CliRunner().invoke(cli, ["--config", "spoolmta.toml", "dkim", "check", "--json"])
        found = {
            Path(row["key"]).stem + row["record"][:2]: (row["is"], row["found"]) for row in json.loads(result.stdout)
        }
    assert result.exit_code == 69
    assert found["rsars"][0] == found["eded"][0] == "ok"
    assert found["rsars"][1] == "a message that is signed by it verifies"
    assert found["gonego"] == ("wrong", "there is no TXT record at gone._domainkey.us.test")
    assert found["otherot"] == ("wrong", "p= is another key")
    assert found["rsaun"][0] == "cannot tell"
    assert found["rsa"][0] == "ok"
