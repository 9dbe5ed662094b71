from __future__ import annotations

from pathlib import Path

import pytest

from spoolmta import config, message
from spoolmta.errors import ConfigError, MessageRefused
from spoolmta.model import Config, Source
from spoolmta.selection import Choice, choose

BASE = 'host-name = "mta.example.com"\nspool = { directory = "spool" }\n'


def load(folder: Path, text: str) -> Config:
    (folder / "spoolmta.toml").write_text(BASE + text)
    return config.load(str(folder / "spoolmta.toml"))


def chosen(
    loaded: Config, source: Source, *, sender: str = "a@b.c", to: str = "x@y.z", header: str = "", vmta: str = ""
) -> Choice:
    lines = [f"x-sender: {sender}", *(f"x-receiver: {one}" for one in to.split())]
    lines += [f"x-virtual-mta: {vmta}"] if vmta else []
    data = "\n".join([*lines, header or "Subject: x", "", "X-Stream: body", ""]).encode()
    return choose(loaded, source, message.parse(data), data)


def test_a_message_chooses_its_vmta_only_where_its_source_lets_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[vmta.bulk]\n[vmta.news]\n")
    free = Source(name="s", default_virtual_mta="news")
    bound = Source(name="s", default_virtual_mta="news", allowed_virtual_mta=("bulk",))
    deaf = Source(name="s", default_virtual_mta="news", process_x_virtual_mta=False)
    assert chosen(loaded, free).name == "news"
    assert chosen(loaded, free, vmta="Bulk").name == "bulk"
    assert chosen(loaded, bound, vmta="bulk").name == "bulk"
    assert chosen(loaded, bound).name == "news"
    assert chosen(loaded, deaf, vmta="nonsense").name == "news"
    with pytest.raises(MessageRefused, match='the VMTA "blk", which does not exist'):
        chosen(loaded, free, vmta="blk")
    with pytest.raises(MessageRefused, match='the VMTA "default", which the source "s" does not allow'):
        chosen(loaded, bound, vmta="default")


RULES = """
[vmta.alerts]
[vmta.news]
[source.pickup]
default-virtual-mta = "news"
recipient-priority = 40
[[source.pickup.select]]
mail-from = '^alerts@'
rcpt-to = '@vip\\.test$'
virtual-mta = "alerts"
recipient-priority = 90
[[source.pickup.select]]
mail-from = '^alerts@'
recipient-priority = 60
[[source.pickup.select]]
header = "X-Stream"
match = '^reset$'
virtual-mta = "alerts"
"""


def test_all_that_a_rule_asks_for_must_match_and_the_first_such_rule_decides(tmp_path: Path) -> None:
    loaded = load(tmp_path, RULES)
    source = loaded.sources["pickup"]
    assert chosen(loaded, source) == Choice("news", 40, "default-virtual-mta of the source pickup")
    both = chosen(loaded, source, sender="Alerts@x.test", to="a@b.test c@VIP.test")
    assert both == Choice("alerts", 90, "select 1 of the source pickup")
    one = chosen(loaded, source, sender="alerts@x.test", header="X-Stream: reset")
    assert (one.name, one.priority) == ("news", 60)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("X-Stream: reset", "alerts"),
        ("x-stream:reset", "alerts"),
        ("Subject: x\nX-STREAM:\n reset  \nTo: y", "alerts"),
        ("X-Stream: other\nX-Stream: reset", "alerts"),
        ("X-Stream: resets", "news"),
        ("X-Stream-2: reset", "news"),
        ("Subject: X-Stream: reset", "news"),
    ],
)
def test_a_header_rule_looks_at_whole_unfolded_values_of_that_field(tmp_path: Path, header: str, name: str) -> None:
    loaded = load(tmp_path, RULES)
    assert chosen(loaded, loaded.sources["pickup"], header=header).name == name


def test_what_a_message_asks_for_is_stronger_than_a_rule_but_keeps_its_priority(tmp_path: Path) -> None:
    loaded = load(tmp_path, RULES)
    asked = chosen(loaded, loaded.sources["pickup"], sender="alerts@x.test", to="a@vip.test", vmta="news")
    assert asked == Choice("news", 90, "x-virtual-mta")


def test_the_null_sender_can_be_asked_for(tmp_path: Path) -> None:
    text = "[vmta.bounces]\n[[source.pickup.select]]\nmail-from = '^$'\nvirtual-mta = 'bounces'\n"
    loaded = load(tmp_path, text)
    assert chosen(loaded, loaded.sources["pickup"], sender="<>").name == "bounces"
    assert chosen(loaded, loaded.sources["pickup"]).name == "default"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mail-from = '('\nvirtual-mta = 'default'", "5: source.pickup.select.mail-from: this regular expression ca"),
        ("mail-from = 'x'\nvirtual-mta = 'defalt'", '6: source.pickup.select.virtual-mta: there is no VMTA "defalt"'),
        ("mail-from = 'x'", "4: source.pickup.select: a rule selects something"),
        ("virtual-mta = 'default'", "4: source.pickup.select: a rule asks for something"),
        ("header = 'X-A'\nvirtual-mta = 'default'", "4: source.pickup.select: header and match belong together"),
        ("header = 'X-A:'\nmatch = 'x'\nvirtual-mta = 'default'", "5: source.pickup.select.header: expected the name"),
        ("mail-from = 'x'\nrecipient-priority = 101", "6: source.pickup.select.recipient-priority: expected a whole"),
        ("rcpt = 'x'\nrecipient-priority = 1", '5: source.pickup.select.rcpt: unknown key (did you mean "rcpt-to"?)'),
    ],
)
def test_a_rule_that_cannot_be_obeyed_is_an_error_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[vmta.a]\n[[source.pickup.select]]\n{text}\n")
    assert any(found.startswith(f"{tmp_path}/spoolmta.toml:{problem}") for found in caught.value.problems), (
        caught.value.problems
    )
