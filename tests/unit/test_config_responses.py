from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from spoolmta import config, response
from spoolmta.model import Change, Rate, ResponseAction, Stage, Trigger
from tests.support.rules import reply
from tests.unit.test_config import load, one_problem, problems

RULE = "[[response]]\nreply = '^421 '\naction = \"backoff\"\n"


def test_a_rule_with_everything_is_read(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """
[[response]]
name = "many"
reply = ['^421 .*too many', "(?-i)HL:ICC"]
stage = ["greeting", "eod"]
action = ["backoff", "set"]
for = "2h"
trigger = "5% of 200/1h"
set = { max-smtp-out = 2, max-msg-rate = { factor = 0.5, floor = "10/m" } }
""",
    )
    rule = loaded.responses[0]
    assert rule.reply == ("^421 .*too many", "(?-i)HL:ICC")
    assert rule.stages == (Stage.GREETING, Stage.EOD)
    assert rule.actions == (ResponseAction.BACKOFF, ResponseAction.SET)
    assert rule.trigger == Trigger(200, 3600.0, 0.05)
    assert rule.duration == 7200.0
    assert rule.changes == (Change("max_smtp_out", 2), Change("max_msg_rate", factor=0.5, floor=Rate(10.0, 60.0)))
    assert (rule.name, rule.file, rule.line) == ("many", str(tmp_path / "spoolmta.toml"), 4)


def test_a_rule_needs_only_what_is_said_and_what_to_do(tmp_path: Path) -> None:
    rule = load(tmp_path, RULE).responses[0]
    assert (rule.stages, rule.duration, rule.trigger, rule.changes, rule.name) == ((), None, Trigger(), (), "")


def test_rules_keep_their_order_over_files_and_know_their_places(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text(f"\n{RULE.replace('421', '450')}")
    text = f"{RULE}{RULE.replace('421', '554')}"
    base = 'host-name = "mta.example.com"\ninclude = ["more.toml"]\nspool = { directory = "spool" }\n'
    (tmp_path / "main.toml").write_text(base + text)
    rules = config.load(str(tmp_path / "main.toml")).responses
    assert [rule.reply for rule in rules] == [("^421 ",), ("^554 ",), ("^450 ",)]
    assert [(Path(rule.file).name, rule.line) for rule in rules] == [
        ("main.toml", 4),
        ("main.toml", 7),
        ("more.toml", 2),
    ]


def test_a_vmta_has_rules_of_its_own(tmp_path: Path) -> None:
    loaded = load(tmp_path, f"[vmta.news]\n{RULE.replace('[[', '[[vmta.news.')}")
    assert [rule.line for rule in loaded.vmtas["news"].responses] == [4]
    assert loaded.responses == ()


def test_the_rules_of_a_policy_file_come_behind_the_vmtas_own_and_before_the_global_ones(tmp_path: Path) -> None:
    (tmp_path / "bulk.toml").write_text(RULE)
    text = f'[vmta.news]\npolicy = "bulk.toml"\n{RULE.replace("[[", "[[vmta.news.").replace("421", "450")}'
    loaded = load(tmp_path, f"{text}[vmta.bulk]\npolicy = 'bulk.toml'\n{RULE.replace('421', '554')}")
    reasons = [rule.reply[0] for rule in response.rules_for(loaded, "news", "")]
    assert reasons == ["^450 ", "^421 ", "^554 "]
    assert [rule.reply[0] for rule in response.rules_for(loaded, "bulk", "")] == ["^421 ", "^554 "]
    assert [rule.reply[0] for rule in response.rules_for(loaded, "unknown", "")] == ["^554 "]


def test_the_rules_of_a_provider_come_before_those_for_all_that_stand_at_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "bulk.toml").write_text(RULE.replace("[[", "[[provider.big.").replace("421", "422"))
    loaded = load(
        tmp_path,
        RULE
        + '[provider.big]\nmx = ["mx.example.com"]\n'
        + RULE.replace("[[", "[[provider.big.").replace("421", "451")
        + "[vmta.news]\npolicy = 'bulk.toml'\n"
        + RULE.replace("[[", "[[vmta.news.provider.big.").replace("421", "452"),
    )
    assert [rule.reply[0] for rule in response.rules_for(loaded, "news", "big")] == ["^452 ", "^422 ", "^451 ", "^421 "]
    assert [rule.reply[0] for rule in response.rules_for(loaded, "news", "")] == ["^421 "]
    assert [rule.provider for rule in response.all_rules(loaded, "news")] == ["big", "big", "big", ""]


def test_rules_for_a_provider_that_does_not_exist_are_a_mistake(tmp_path: Path) -> None:
    problem = one_problem(tmp_path, "[vmta.news]\n" + RULE.replace("[[", "[[vmta.news.provider.gogle."))
    assert 'there is no provider "gogle"' in problem


def test_the_id_of_a_rule_does_not_depend_on_where_it_stands(tmp_path: Path) -> None:
    first = load(tmp_path, RULE).responses[0]
    second = load(tmp_path, f"\n\n{RULE}name = 'x'\n").responses[0]
    third = load(tmp_path, f'{RULE}trigger = "2/1h"\n').responses[0]
    assert first.id == second.id
    assert first.id != third.id


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("reply = '('", "no regular expression"),
        ("reply = ''", "matches everything"),
        ("reply = '(a+)+'", "for ever"),
        ("reply = 421", "a regular expression in single quotes"),
        ("reply = []", "empty"),
        ('stage = "dot"', "one of resolve, connect"),
        ('action = "stop"', "one of backoff, normal"),
        ('action = ["pause", "pause"]', "twice"),
        ('action = ["backoff", "normal"]', "cannot go together"),
        ('action = ["skip-mx", "bounce-queue"]', "cannot go together"),
        ('action = "skip-mx"\nfor = "1h"', "over at once"),
        ('action = "bounce-rcpt"\nstage = "eod"', "is for replies to RCPT"),
        ('action = "set"', "go together"),
        ("set = { max-smtp-out = 1 }", "go together"),
        ("set = {}", "a table like"),
        ("set = { max-smtp-outs = 1 }", "cannot be set"),
        ("set = { smtp-hosts = [] }", "cannot be set"),
        ("set = { max-smtp-out = 0 }", "max-smtp-out: expected a whole number"),
        ("set = { max-smtp-out = { factor = 2, floor = 1 } }", "factor between 0 and 1"),
        ("set = { max-smtp-out = { factor = 0.5 } }", "max-smtp-out"),
        ("set = { retry-after = { factor = 0.5, floor = 1 } }", "expected a value"),
        ("set = { max-msg-per-connection = { factor = 0.5, floor = 0 } }", "floor that is no limit"),
        ('set = { max-msg-rate = { factor = 0.5, floor = "unlimited" } }', "floor that is no limit"),
        ('trigger = "often"', '"at once"'),
        ('trigger = "10/0h"', '"at once"'),
        ('trigger = "0/1h"', "from 1 to"),
        ('trigger = "20000/1h"', "from 1 to"),
        ('trigger = "101% of 10/1h"', "at most 100%"),
        ('trigger = "0% of 10/1h"', "above 0%"),
        ('replies = "x"', 'did you mean "reply"?'),
    ],
)
def test_a_mistake_in_a_rule_is_one_sentence_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    given = {part.partition(" = ")[0] for part in line.split("\n")}
    rest = [part for part in ("reply = '^421 '", 'action = "backoff"') if part.partition(" = ")[0] not in given]
    problem = one_problem(tmp_path, "[[response]]\n" + "\n".join([*rest, line]) + "\n")
    assert problem.startswith("spoolmta.toml:")
    assert 3 <= int(problem.split(":")[1]) <= 7
    assert said in problem


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    found = problems(tmp_path, "[[response]]\n")
    assert [problem.partition(",")[0] for problem in found] == [
        "spoolmta.toml:3: response.reply: this key is required",
        "spoolmta.toml:3: response.action: this key is required",
    ]


def test_a_single_bracket_is_a_mistake(tmp_path: Path) -> None:
    assert "two brackets: [[response]]" in one_problem(tmp_path, "[response]\nreply = 'x'\naction = 'pause'\n")


def test_rules_reach_the_processes_as_they_were_read(tmp_path: Path) -> None:
    loaded = load(tmp_path, RULE + 'stage = "eod"\n')
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert response.rules_for(pickle.loads(pickle.dumps(loaded)), "default", "").match(Stage.EOD, reply("421 x"))
