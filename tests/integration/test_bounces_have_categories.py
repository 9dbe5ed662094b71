"""Bounce categories at work: in the rows of a running system, by rules of the operator's, and at the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolmta import bounce
from tests.integration.scenario import drop, to
from tests.support.mta import ROOT, Mta, World
from tests.support.scripted import Scripted, Talk

SAID = {
    "full": "552 5.2.2 Mailbox full",
    "later": "450 4.7.1 Greylisted, come back in five minutes",
    "pattern": "550 5.1.1 no such user (X-17)",
    "words": "550 5.1.1 This MAILBOX is, alas, in quarantine",
    "names": "550 5.7.1 see http://lists.example.org/why",
    "status": "550 5.9.17 Mailbox full",
    "deferred": "450 5.9.17 Mailbox full",
    "reloaded": "550 5.1.1 reloaded",
}
RULES = r"""
[[bounce]]
category = "own-pattern"
pattern = '\(X-\d+\)'
sample = "550 5.1.1 no such user (X-17)"
[[bounce]]
category = "own-words"
words = "{mailbox} .. quarantine"
[[bounce]]
category = "own-names"
names = ["lists example"]
[[bounce]]
category = "own-status"
status = "5.9.17"
"""


def serve(talk: Talk) -> None:
    talk.hello()
    while not (line := talk.line()).upper().startswith("QUIT"):
        name = line.partition("<")[2].partition("@")[0]
        talk.say(SAID[name] if line.upper().startswith("RCPT") else "250 ok")


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    with Scripted(serve) as server, World(tmp_path_factory.mktemp("categories")) as world:
        route = f'[domain."a.test"]\nsmtp-hosts = ["[127.0.0.2]:{server.port}"]\nretry-recipients-after = "1h"\n'
        with world.mta(route + RULES, route=False) as mta:
            yield mta


def category_of(mta: Mta, name: str) -> tuple[str, str]:
    drop(mta, f"{name}@a.test")
    mta.wait_for(lambda: len(to(mta, f"{name}@a.test")) == 1)
    row = to(mta, f"{name}@a.test")[0]
    return row["type"], row["bounceCat"]


def test_rows_have_the_category_of_the_first_rule_that_holds(mta: Mta) -> None:
    assert {name: category_of(mta, name) for name in SAID if name != "reloaded"} == {
        "full": ("b", "quota-issues"),
        "later": ("t", "policy-related"),
        "pattern": ("b", "own-pattern"),
        "words": ("b", "own-words"),
        "names": ("b", "own-names"),
        "status": ("b", "own-status"),
        "deferred": ("t", "quota-issues"),
    }


def test_a_reload_takes_new_rules_over(mta: Mta) -> None:
    own = "\n[[bounce]]\ncategory = 'new'\npattern = 'reloaded'\n"
    mta.config_file.write_text(mta.config_file.read_text() + own)
    assert mta.command("reload").returncode == 0
    assert category_of(mta, "reloaded") == ("b", "new")


def classify(*arguments: str, said: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spoolmta", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.run(command, input=said, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_classify_needs_nothing_but_replies(tmp_path: Path) -> None:
    (tmp_path / "replies").write_bytes(b"552 over quota\r\n\n\xff\xfe 550 No such user\n")
    done = classify("classify", "replies", "-", "550 Host unknown", said="421 too many connections", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "quota-issues\t552 over quota",
        "other\t",
        "bad-mailbox\t\ufffd\ufffd 550 No such user",
        "policy-related\t421 too many connections",
        "bad-domain\t550 Host unknown",
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_receiver_says_does_nothing_to_a_terminal() -> None:
    evil = "550 5.1.1 \x1b]0;owned\x07 no\x1b[2J such user \x9b \u2028 \x00"
    for options in ((), ("--explain",), ("--json",), ("--lint",)):
        done = classify("classify", *options, *([] if options == ("--lint",) else ["-"]), said=f"{evil}\n")
        assert all(line.replace("\t", "").isprintable() for line in done.stdout.splitlines())
        assert len(done.stdout.splitlines()) == (0 if options == ("--lint",) else 1)


def test_classify_tells_which_rule_decided_also_one_of_the_operators(mta: Mta) -> None:
    config = str(mta.config_file)
    place = config + ":" + str(mta.config_file.read_text().split("\n").index("[[bounce]]") + 1)
    done = classify("--config", config, "classify", "--explain", SAID["pattern"], SAID["full"])
    first, second = (line.split("\t") for line in done.stdout.splitlines())
    assert first == ["own-pattern", place, SAID["pattern"]]
    assert second[0] == "quota-issues"
    assert "bounce.toml:" in second[1]
    done = classify("--config", config, "classify", "--json", SAID["pattern"])
    assert json.loads(done.stdout) == {
        "category": "own-pattern",
        "status": "5.1.1",
        "rule": place,
        "reply": SAID["pattern"],
    }


def test_lint_tells_of_rules_that_can_decide_nothing_with_their_lines(tmp_path: Path) -> None:
    assert classify("classify", "--lint", cwd=tmp_path).returncode == 0
    config = tmp_path / "own.toml"
    rules = "[[bounce]]\ncategory = 'a'\npattern = 'x y'\nsample = '550 x y'\n" * 2
    config.write_text(f'host-name = "a.test"\n{rules}[spool]\ndirectory = "spool"\n')
    done = classify("--config", str(config), "classify", "--lint", cwd=tmp_path)
    assert done.returncode == 65
    assert done.stdout == f'{config}:6: shadowed by {config}:2, which comes first and takes "550 x y"\n'
    (tmp_path / "replies").write_text("550 x y\n")
    done = classify("--config", str(config), "classify", "--lint", "replies", cwd=tmp_path)
    assert len(done.stdout.splitlines()) == len(bounce.Classifier().rules) + 1
    assert "decides none of the 1 replies" in done.stdout


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("category = 'a'", "bounce: a rule looks for something: pattern, words, names or status"),
        ("pattern = 'x'", 'bounce.category: this key is required, for example category = "bad-mailbox"'),
        ("category = 'A b'\npattern = 'x'", 'bounce.category: expected a category like "bad-mailbox"'),
        ("category = 'a'\npattern = '('", 'bounce.pattern: "(": it is no regular expression'),
        ("category = 'a'\npattern = '(a|b)*c'", 'bounce.pattern: "(a|b)*c": a group that repeats has a choice in it'),
        ("category = 'a'\nwords = ['{box} full']", 'bounce.words: "{box} full": there is no list of words {box}'),
        ("category = 'a'\nstatus = '5.1'", 'bounce.status: expected an enhanced status code like "5.1.1"'),
        ("category = 'a'\npattern = 'x'\nsample = 'x'", "bounce.sample: expected a reply like"),
        ("category = 'a'\npatern = 'x'", 'bounce.patern: unknown key (did you mean "pattern"?)'),
    ],
)
def test_a_bad_rule_is_a_sentence_with_its_place(tmp_path: Path, rule: str, problem: str) -> None:
    config = tmp_path / "own.toml"
    config.write_text(f'host-name = "a.test"\n[spool]\ndirectory = "spool"\n[[bounce]]\n{rule}\n')
    done = classify("--config", str(config), "check", cwd=tmp_path)
    assert done.returncode == 78
    assert problem in done.stderr
    assert f"{config}:" in done.stderr
