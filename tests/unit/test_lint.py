from __future__ import annotations

from spoolmta import lint
from spoolmta.model import Config, ResponseRule, Stage, Vmta
from tests.support.rules import rule

TEXT = """
# sample: 421 nobody's
key = 1

# What it is for.
# sample: 421 too many
# sample at greeting: 554 too many
[[provider.one.response]]
reply = 'too many'

# sample: 450 later
  [[ response ]] # another
"""


def placed(line: int, found: ResponseRule) -> ResponseRule:
    return ResponseRule(id=found.id, reply=found.reply, stages=found.stages, file="x.toml", line=line)


def test_samples_belong_to_the_rule_directly_below() -> None:
    assert [*lint.samples(TEXT, "x.toml")] == [
        lint.Sample("421 too many", None, "x.toml", 8),
        lint.Sample("554 too many", Stage.GREETING, "x.toml", 8),
        lint.Sample("450 later", None, "x.toml", 12),
    ]


def test_a_rule_that_does_not_match_its_own_sample_is_dead() -> None:
    dead = placed(8, rule("many too"))
    (finding,) = lint.lint([[dead]], [*lint.samples(TEXT, "x.toml")])
    assert str(finding) == 'x.toml:8: dead: it does not match its own sample "421 too many"'


def test_a_rule_behind_one_that_takes_its_sample_is_shadowed() -> None:
    first, second = placed(3, rule("^421")), placed(8, rule("too many"))
    known = [lint.Sample("421 other", None, "x.toml", 3), *lint.samples(TEXT, "x.toml")]
    (finding,) = lint.lint([[first, second]], known)
    assert finding.rule is second
    assert str(finding) == 'x.toml:8: shadowed by x.toml:3, which comes first and takes "421 too many"'
    assert lint.lint([[second, first]], known) == []


def test_a_rule_that_is_alive_in_one_list_is_alive() -> None:
    first, second = placed(3, rule("^421")), placed(8, rule("too many"))
    known = [lint.Sample("421 other", None, "x.toml", 3), *lint.samples(TEXT, "x.toml")]
    assert lint.lint([[first, second], [second]], known) == []


def test_rules_for_other_stages_do_not_shadow() -> None:
    first = placed(3, rule("421", stages=(Stage.GREETING,)))
    second = placed(8, rule("421", stages=(Stage.EOD,)))
    third = placed(9, rule("421"))
    known = [lint.Sample("421 x", None, "x.toml", line) for line in (3, 8, 9)]
    assert lint.lint([[first, second, third]], known) == []


def test_without_samples_of_its_own_a_rule_is_judged_by_all_and_may_be_unproven() -> None:
    alive, unproven = rule("too many"), rule("nobody says this", name="unproven")
    (finding,) = lint.lint([[alive, unproven]], [*lint.samples(TEXT, "x.toml")])
    assert finding.rule is unproven
    assert "unproven" in finding.text


def test_a_configuration_is_checked_as_its_vmtas_and_providers_try_the_rules() -> None:
    text = "# sample: 421 too many\n[[response]]\n# sample: 421 rate\n[[response]]\n"
    everywhere, own = placed(2, rule("too many")), placed(4, rule("^421"))
    alone = Config(host_name="", spool="", responses=(everywhere,), vmtas={"news": Vmta(name="news")})
    assert lint.check(alone, {"x.toml": text}) == []
    hidden = Config(host_name="", spool="", responses=(own, everywhere))
    (finding,) = lint.check(hidden, {"x.toml": text})
    assert finding.rule is everywhere
    over = Config(host_name="", spool="", responses=(everywhere,), vmtas={"news": Vmta(name="news", responses=(own,))})
    assert lint.check(over, {"x.toml": text}) == []  # another VMTA reaches the global rule
