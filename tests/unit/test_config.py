from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from spoolmta import config
from spoolmta.config import lines
from spoolmta.errors import ConfigError
from spoolmta.model import UNLIMITED, AcctFile, Config, Host, Rate, Setting, SourceHost

BASE = 'host-name = "mta.example.com"\nspool = { directory = "spool" }\n'


def write(folder: Path, text: str, name: str = "spoolmta.toml") -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def load(folder: Path, text: str) -> Config:
    """`text` stands behind BASE, which has two lines."""
    return config.load(write(folder, BASE + text))


def problems(folder: Path, text: str, base: str = BASE) -> list[str]:
    """What `load` says, without the name of the folder."""
    with pytest.raises(ConfigError) as caught:
        config.load(write(folder, base + text))
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def one_problem(folder: Path, text: str, base: str = BASE) -> str:
    found = problems(folder, text, base)
    assert len(found) == 1, found
    return found[0]


def domain_value(folder: Path, setting: str) -> Any:
    loaded = load(folder, f'[domain."*"]\n{setting}\n')
    return next(iter(loaded.domains[0].settings.values())).value


def test_a_file_with_the_two_required_keys_gives_a_complete_configuration(tmp_path: Path) -> None:
    loaded = load(tmp_path, "")
    assert loaded.host_name == "mta.example.com"
    assert loaded.spool == str(tmp_path / "spool")
    assert loaded.sources["pickup"].pickup == str(tmp_path / "spool/pickup")
    assert list(loaded.vmtas) == ["default"]
    assert loaded.acct_files == (AcctFile(path=str(tmp_path / "spool/accounting/acct.csv"), records=("d", "b")),)
    assert loaded.files == (str(tmp_path / "spoolmta.toml"),)


def test_every_kind_of_table_is_read(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """
sleep-after = 90
event-loop = "asyncio"
user = "mail"
[pickup]
copy = "never"
[source.pickup]
default-virtual-mta = "bulk"
process-x-virtual-mta = false
[source.other]
pickup = "drop"
allowed-virtual-mta = ["bulk"]
max-message-size = "1k"
[vmta.bulk]
smtp-source-host = ["192.0.2.10 News.Example.com", "2001:db8:0::10"]
max-smtp-out = 7
[[acct-file]]
path = "a.csv"
records = ["r", "tq"]
move-interval = "12h"
max-size = "1M"
[[acct-file]]
path = "b.csv"
""",
    )
    assert (loaded.sleep_after, loaded.event_loop, loaded.user, loaded.copy) == (90.0, "asyncio", "mail", "never")
    assert loaded.sources["pickup"].default_virtual_mta == "bulk"
    assert not loaded.sources["pickup"].process_x_virtual_mta
    assert loaded.sources["other"].pickup == str(tmp_path / "drop")
    assert loaded.sources["other"].allowed_virtual_mta == ("bulk",)
    assert loaded.sources["other"].max_message_size == 1024
    assert loaded.vmtas["bulk"].source_hosts == (
        SourceHost("192.0.2.10", "news.example.com"),
        SourceHost("2001:db8::10"),
    )
    assert loaded.vmtas["bulk"].max_smtp_out == 7
    assert loaded.acct_files == (
        AcctFile(path=str(tmp_path / "a.csv"), records=("r", "tq"), move_interval=43_200.0, max_size=1024**2),
        AcctFile(path=str(tmp_path / "b.csv")),
    )


def test_all_problems_are_told_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    found = problems(tmp_path, 'usr = "x"\n[domain."*"]\nbounce-after = "10x"\nmax_smtp_out = 1\n[vmta.a]\n"b c" = 1\n')
    assert found == [
        'spoolmta.toml:3: usr: unknown key (did you mean "user"?)',
        'spoolmta.toml:5: domain."*".bounce-after: expected a duration like "4d12h", got "10x"',
        'spoolmta.toml:6: domain."*".max_smtp_out: unknown key (did you mean "max-smtp-out"?)',
        'spoolmta.toml:8: vmta.a."b c": unknown key',
    ]


def test_a_missing_key_is_told_with_an_example_and_the_line_of_its_table(tmp_path: Path) -> None:
    assert problems(tmp_path, 'user = "x"\n\n[spool]\nmin-free-inodes = 1\n', base="") == [
        'spoolmta.toml:1: host-name: this key is required, for example host-name = "mta.example.com"',
        'spoolmta.toml:3: spool.directory: this key is required, for example directory = "../spool"',
    ]
    assert one_problem(tmp_path, '[[acct-file]]\npath = "x"\n[[acct-file]]\n').startswith(
        "spoolmta.toml:5: acct-file.path"
    )


def test_a_key_in_the_wrong_table_is_told_where_it_belongs(tmp_path: Path) -> None:
    assert one_problem(tmp_path, 'max_msg_rate = "1/s"\n').endswith('unknown key; it belongs into [domain."PATTERN"]')


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    assert one_problem(tmp_path, "user = \n").startswith("spoolmta.toml:3: ")
    assert one_problem(tmp_path, "a = [\n1\n").startswith("spoolmta.toml:4: ")
    assert "written in quotes" in one_problem(tmp_path, "[domain.*]\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'user = "a"\n# \xff\n', ":2: there is a byte that is not UTF-8"),
        (b"a = 1\nb = " + b"9" * 5000, ":2: there is a number with too many digits"),
        (b"a = " + b"[" * 5000, ": lists or tables are nested too deeply"),
    ],
)
def test_what_is_no_sane_text_is_refused_in_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.toml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        config.load(str(tmp_path / "x.toml"))
    assert str(caught.value) == f"{tmp_path}/x.toml{message}"


def test_a_missing_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(str(tmp_path / "no.toml"))
    assert str(caught.value) == f"{tmp_path}/no.toml: there is no such file"
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(str(tmp_path))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [('"1w2d12h30m10s"', 822_610.0), ('"4d12h"', 388_800.0), ('"90s"', 90.0), ("600", 600.0), ("0.5", 0.5)],
)
def test_a_duration_is_units_in_order_or_seconds(tmp_path: Path, written: str, seconds: float) -> None:
    assert domain_value(tmp_path, f"bounce-after = {written}") == seconds


@pytest.mark.parametrize(
    "written", ['"10x"', '"h1"', '""', '"1h1d"', '"600"', '"٣s"', "true", "nan", "[]", "-1", '"0s"']
)
def test_what_is_no_duration_is_refused_with_an_example(tmp_path: Path, written: str) -> None:
    message = one_problem(tmp_path, f'[domain."*"]\nbounce-after = {written}\n')
    assert message.startswith('spoolmta.toml:4: domain."*".bounce-after: expected a duration')
    assert 'like "4d12h"' in message


def test_a_schedule_is_one_duration_or_a_list(tmp_path: Path) -> None:
    assert domain_value(tmp_path, 'retry-after = "10m"') == (600.0,)
    assert domain_value(tmp_path, 'retry-after = [\n"10m", # a = 1\n"1h"]') == (600.0, 3600.0)
    assert "got an empty list" in one_problem(tmp_path, '[domain."*"]\nretry-after = []\n')


@pytest.mark.parametrize("key", ["backoff-notify", "disabled-source-ip-notify"])
def test_operators_are_mail_addresses_in_a_list_that_may_be_empty(tmp_path: Path, key: str) -> None:
    assert domain_value(tmp_path, f'{key} = ["ops@example.com", "<a.b@x.test>"]') == ("ops@example.com", "a.b@x.test")
    assert domain_value(tmp_path, f"{key} = []") == ()
    for written, message in (
        ('"ops@example.com"', 'expected a list like ["ops@example.com"], got "ops@example.com"'),
        ('["ops"]', '"ops" is no mail address: it has no @'),
        ('["jörg@example.com"]', 'expected a mail address in ASCII, like "ops@example.com", got "jörg@example.com"'),
    ):
        said = one_problem(tmp_path, f'[domain."*"]\n{key} = {written}\n')
        assert said == f'spoolmta.toml:4: domain."*".{key}: {message}'


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        ("unlimited", UNLIMITED),
        ("100/15m", Rate(100.0, 900.0)),
        ("1/s", Rate(1.0, 1.0)),
        ("5/2day", Rate(5.0, 172_800.0)),
        ("7/hr", Rate(7.0, 3600.0)),
    ],
)
def test_a_rate_is_a_number_in_a_time(tmp_path: Path, written: str, rate: Rate) -> None:
    assert domain_value(tmp_path, f'max-msg-rate = "{written}"') == rate


@pytest.mark.parametrize("written", ["0", '"0"', '"0/h"'])
def test_a_rate_of_zero_is_refused_because_nothing_would_be_sent(tmp_path: Path, written: str) -> None:
    message = one_problem(tmp_path, f'[domain."*"]\nmax-msg-rate = {written}\n')
    assert "would never let anything be sent" in message


@pytest.mark.parametrize("written", ["false", "100", '"100"', '"1/0s"', '"1/w"', '"1/5"', '"-1/s"'])
def test_what_is_no_rate_is_refused_with_an_example(tmp_path: Path, written: str) -> None:
    message = one_problem(tmp_path, f'[domain."*"]\nmax-msg-rate = {written}\n')
    assert 'expected a rate like "100/15m"' in message


@pytest.mark.parametrize(("written", "count"), [('"250M"', 250 * 1024**2), ('"1k"', 1024), ('"3b"', 3), ("0", 0)])
def test_a_size_is_a_power_of_1024_or_bytes(tmp_path: Path, written: str, count: int) -> None:
    text = BASE.replace('"spool"', f'"spool", min-free-space = {written}')
    assert config.load(write(tmp_path, text)).min_free_space == count


@pytest.mark.parametrize(
    ("written", "levels"),
    [
        ('["a","b",["c"]]', ((Host("a"), Host("b")), (Host("c"),))),
        ('["a", ["b", ["c"]], ["d"]]', ((Host("a"),), (Host("b"),), (Host("c"),), (Host("d"),))),
        ('["MX.example.com:2525"]', ((Host("mx.example.com", 2525),),)),
        ('["[127.0.0.1]:2526", "[192.0.2.1]"]', ((Host("127.0.0.1", 2526), Host("192.0.2.1")),)),
        ('["[IPv6:2001:DB8::1]:25", "[::1]"]', ((Host("2001:db8::1", 25), Host("::1")),)),
        ('["bücher.example"]', ((Host("xn--bcher-kva.example"),),)),
        ('["lookup-mx:A.test", ["lookup-mx:b.test:26"]]', ((Host("a.test", 0, True),), (Host("b.test", 26, True),))),
        ("[]", ()),
    ],
)
def test_smtp_hosts_are_preference_levels(tmp_path: Path, written: str, levels: object) -> None:
    assert domain_value(tmp_path, f"smtp-hosts = {written}") == levels


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('"a"', "expected a list of hosts"),
        ('["a:65536"]', "port from 1 to 65535"),
        ('["a:0"]', "port from 1 to 65535"),
        ('["127.0.0.1"]', "an address literal needs brackets"),
        ('["[1.2.3]"]', "expected a host like"),
        ('["a", ["b"], "c"]', "stands behind a list"),
        ('["a", []]', "empty list"),
        ("[1]", "expected a host like"),
        ('["x@y"]', "there is an @ in it"),
        ('["lookup-mx:example.com:0"]', "port from 1 to 65535"),
        ('["lookup-mx:"]', "expected a host like"),
        ('["lookup-mx:[192.0.2.1]"]', 'expected a domain behind "lookup-mx:"'),
    ],
)
def test_what_is_no_smtp_host_is_refused(tmp_path: Path, written: str, message: str) -> None:
    assert message in one_problem(tmp_path, f'[domain."*"]\nsmtp-hosts = {written}\n')


def test_queue_to_is_a_domain_in_lower_case_or_nothing(tmp_path: Path) -> None:
    assert domain_value(tmp_path, 'queue-to = "Bulk.Queue"') == "bulk.queue"
    assert domain_value(tmp_path, 'queue-to = ""') == ""
    for wrong in ('"*.queue"', '"a b"', '"[*.]queue"', "5"):
        assert "expected the name of a queue" in one_problem(tmp_path, f'[domain."*"]\nqueue-to = {wrong}\n')


def test_a_queue_to_that_could_do_nothing_is_refused_where_it_stands(tmp_path: Path) -> None:
    first = '[domain."a.test"]\nqueue-to = "b.queue"\n'
    chain = first + '[vmta.v.domain."b.queue"]\nqueue-to = "c.queue"\n'
    assert one_problem(tmp_path, chain) == (
        'spoolmta.toml:6: domain."b.queue".queue-to: b.queue is a queue itself, by spoolmta.toml:4: '
        "what is queued goes no further"
    )
    for right in ('[domain."*"]\nqueue-to = "c.queue"\n', '[domain."b.queue"]\nqueue-to = "b.queue"\n'):
        config.load(write(tmp_path, BASE + first + right))


@pytest.mark.parametrize(
    "setting",
    [
        "max-smtp-out = 0",
        "max-smtp-out = true",
        "max-smtp-out = 1.0",
        'max-smtp-out = "5"',
        "max-msg-per-connection = -1",
        "max-rcpt-per-transaction = 0",
        "default-smtp-port = 65536",
        "default-smtp-port = 0",
        'connection-idle-timeout = "11m"',
        "connect-timeout = 0",
        f"max-smtp-out = {'9' * 4000}",
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(tmp_path: Path, setting: str) -> None:
    assert one_problem(tmp_path, f'[domain."*"]\n{setting}\n').startswith('spoolmta.toml:4: domain."*".')


def test_name_servers_get_their_port_and_brackets(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, '[dns]\nnameservers = ["127.0.0.1", "192.0.2.1:5353", "::1", "[::1]", "[2001:db8::1]:54"]\n'
    )
    assert loaded.nameservers == ("127.0.0.1:53", "192.0.2.1:5353", "[::1]:53", "[::1]:53", "[2001:db8::1]:54")
    for bad in ("localhost", "1.2.3.4:0", "[1.2.3.4]:53", "1.2.3.4:", "[fe80::1%a]:53"):
        assert "expected an address like" in one_problem(tmp_path, f'[dns]\nnameservers = ["{bad}"]\n')


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("mta.example.com 192.0.2.1", 'the address stands first: write "192.0.2.1 mta.example.com"'),
        ("192.0.2.0/24 a", "a network cannot stand here"),
        ("192.0.2.256 a", "expected an address and a name"),
        ("192.0.2.1 a b", "expected an address and a name"),
        ("", "expected an address and a name"),
    ],
)
def test_a_wrong_source_host_is_told_how_to_write_it(tmp_path: Path, written: str, message: str) -> None:
    assert message in one_problem(tmp_path, f'[vmta.a]\nsmtp-source-host = ["{written}"]\n')


def test_a_domain_without_quotes_is_told_how_to_write_it(tmp_path: Path) -> None:
    assert problems(
        tmp_path, "[vmta.x.domain.gmail.com]\nmax-smtp-out = 1\n[domain.bbc.co.uk]\n[domain.bbc.com]\n"
    ) == [
        "spoolmta.toml:3: vmta.x.domain.gmail.com: a domain with a dot in it is written in quotes: "
        '[vmta.x.domain."gmail.com"]',
        'spoolmta.toml:5: domain.bbc.co.uk: a domain with a dot in it is written in quotes: [domain."bbc.co.uk"]',
        'spoolmta.toml:6: domain.bbc.com: a domain with a dot in it is written in quotes: [domain."bbc.com"]',
    ]


def test_a_vmta_with_a_dot_without_quotes_is_told_how_to_write_it(tmp_path: Path) -> None:
    assert one_problem(tmp_path, "[vmta.a.b]\n").endswith('written in quotes: [vmta."a.b"]')


def test_patterns_are_normalised_and_none_stands_twice(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[domain."Bücher.Example"]\n[domain."*.A.b"]\n[domain."[*.]A.b"]\n[domain.localhost]\n')
    assert [table.pattern for table in loaded.domains] == ["xn--bcher-kva.example", "*.a.b", "[*.]a.b", "localhost"]
    message = one_problem(tmp_path, '[domain."A.b"]\n[domain."a.b"]\n')
    assert message == 'spoolmta.toml:4: domain."a.b": the same pattern stands in spoolmta.toml:3, as "A.b"'


@pytest.mark.parametrize(
    "pattern", ["", "a b", "a..b", "*.", "**", "*.*.a", "[10.0.0.0/8]", "1.2.3.4", "a@b", "*-", "a."]
)
def test_what_is_no_pattern_is_refused(tmp_path: Path, pattern: str) -> None:
    assert "expected a domain pattern" in one_problem(tmp_path, f'[domain."{pattern}"]\n')


@pytest.mark.parametrize("name", [".a", "A", "a/b", "", "ä", "x" * 33, "pickup.0", "smtp.12", "api.1"])
def test_a_vmta_name_that_cannot_be_a_folder_or_journal_is_refused(tmp_path: Path, name: str) -> None:
    assert "name" in one_problem(tmp_path, f'[vmta."{name}"]\n')


def test_names_that_only_look_like_journals_are_vmtas(tmp_path: Path) -> None:
    assert {"smtp", "smtp.a", "x.1"} < set(load(tmp_path, '[vmta.smtp]\n[vmta."smtp.a"]\n[vmta."x.1"]\n').vmtas)


def test_a_source_names_only_vmtas_that_exist(tmp_path: Path) -> None:
    text = '[vmta.bulk]\n[source.pickup]\ndefault-virtual-mta = "bilk"\nallowed-virtual-mta = ["bulk", "x"]\n'
    assert problems(tmp_path, text) == [
        'spoolmta.toml:5: source.pickup.default-virtual-mta: there is no VMTA "bilk" (did you mean "bulk"?)',
        'spoolmta.toml:6: source.pickup.allowed-virtual-mta: there is no VMTA "x"',
    ]


def test_two_sources_cannot_have_the_same_folder(tmp_path: Path) -> None:
    message = one_problem(tmp_path, '[source.other]\npickup = "x/../spool/pickup"\n')
    assert message.startswith("spoolmta.toml:4: source.other.pickup: the sources ")


def test_an_accounting_file_is_an_array_table_with_known_records_and_its_own_path(tmp_path: Path) -> None:
    assert "[[acct-file]]" in one_problem(tmp_path, '[acct-file]\npath = "x"\n')
    for records in ('["x"]', '"d"', "[]", '["d", "d"]', "[1]"):
        assert "acct-file.records" in one_problem(tmp_path, f'[[acct-file]]\npath = "x"\nrecords = {records}\n')
    assert "same path" in one_problem(tmp_path, '[[acct-file]]\npath = "x"\n[[acct-file]]\npath = "./x"\n')


@pytest.mark.parametrize("text", ["vmta = 1", "domain = []", "source = { a = 1 }", "[domain]\nmax-smtp-out = 1"])
def test_a_value_where_a_table_belongs_is_refused(tmp_path: Path, text: str) -> None:
    assert ": expected " in one_problem(tmp_path, text)


def test_included_files_are_merged_and_their_paths_are_relative_to_themselves(tmp_path: Path) -> None:
    write(tmp_path, '[vmta.a]\npolicy = "p.toml"\n[[acct-file]]\npath = "a.csv"\n', "vmta.d/a.toml")
    write(tmp_path, '[domain."*"]\nmax-smtp-out = 3\n', "vmta.d/p.toml")
    write(tmp_path, '[vmta.b]\ninclude = 1\n[vmta.a.domain."x.y"]\nmax-smtp-out = 4\n', "b.toml")
    text = 'include = ["vmta.d/a*.toml", "b.toml", "none/*.toml"]\n[[acct-file]]\npath = "main.csv"\n'
    assert (
        one_problem(tmp_path, text)
        == "b.toml:2: vmta.b.include: unknown key; it belongs at the top of the file, before the first table"
    )
    write(tmp_path, '[vmta.b]\n[vmta.a.domain."x.y"]\nmax-smtp-out = 4\n', "b.toml")
    loaded = load(tmp_path, text)
    assert [file.path for file in loaded.acct_files] == [str(tmp_path / "main.csv"), str(tmp_path / "vmta.d/a.csv")]
    assert [str(Path(file).relative_to(tmp_path)) for file in loaded.files] == [
        "spoolmta.toml", "vmta.d/a.toml", "b.toml", "vmta.d/p.toml",
    ]  # fmt: skip
    policy, own = loaded.vmtas["a"].layers
    assert policy[0].settings["max_smtp_out"] == Setting(3, str(tmp_path / "vmta.d/p.toml"), 2)
    assert own[0].settings["max_smtp_out"] == Setting(4, str(tmp_path / "b.toml"), 3)


def test_the_same_table_in_two_files_names_both_places(tmp_path: Path) -> None:
    write(tmp_path, "\nsleep-after = 1\n[vmta.a]\nmax-smtp-out = 1\n[vmta.b]\n", "b.toml")
    assert problems(tmp_path, 'include = ["b.toml"]\nsleep-after = 1\n[vmta.a]\nmax-smtp-out = 2\n') == [
        "b.toml:2: sleep-after: the same key stands in spoolmta.toml:4",
        "b.toml:3: vmta.a: the same table stands in spoolmta.toml:5",
    ]


def test_a_problem_in_the_second_file_of_an_array_has_the_place_in_its_file(tmp_path: Path) -> None:
    write(tmp_path, '\nacct-file = [{ path = "b", max-size = "x" }]\n', "b.toml")
    found = one_problem(tmp_path, 'include = ["b.toml"]\n[[acct-file]]\npath = "a"\n')
    assert found.startswith("b.toml:2: acct-file.max-size: expected a size")


def test_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    write(tmp_path, 'include = ["*.toml"]\n[vmta.a]\n', "b.toml")
    assert "a" in load(tmp_path, 'include = ["b.toml", "*.toml"]\n').vmtas


def test_a_named_file_that_is_missing_is_told_at_the_line_that_names_it(tmp_path: Path) -> None:
    assert one_problem(tmp_path, 'include = ["b.toml"]\n') == "spoolmta.toml:3: include: b.toml: there is no such file"
    expected = "spoolmta.toml:4: vmta.a.policy: policy/b.toml: there is no such file"
    assert one_problem(tmp_path, '[vmta.a]\npolicy = "policy/b.toml"\n') == expected


def test_a_policy_file_holds_only_domains_and_its_problems_are_told_once(tmp_path: Path) -> None:
    write(tmp_path, 'max-smtp-out = 1\n[domain."*"]\nmax-smtp-ou = 1\n', "p.toml")
    assert problems(tmp_path, '[vmta.a]\npolicy = "p.toml"\n[vmta.b]\npolicy = "./p.toml"\n') == [
        'p.toml:1: max-smtp-out: a policy file holds nothing but tables like [domain."gmail.com"], '
        "[provider.google] and [[response]]",
        'p.toml:3: domain."*".max-smtp-ou: unknown key (did you mean "max-smtp-out"?)',
    ]
    write(tmp_path, "x =\n", "p.toml")
    assert one_problem(tmp_path, '[vmta.a]\npolicy = "p.toml"\n').startswith("p.toml:1: ")


def test_each_setting_remembers_its_file_and_line(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[domain."*"]\n# comment\nmax-smtp-out = 5\nretry-after = [\n1,\n2\n]\nbounce-after = 9\n')
    file = str(tmp_path / "spoolmta.toml")
    assert loaded.domains[0].settings == {
        "max_smtp_out": Setting(5, file, 5),
        "retry_after": Setting((1.0, 2.0), file, 6),
        "bounce_after": Setting(9.0, file, 10),
    }


NASTY = '''# = [x]
"a#b" = 1 # "
'c=d' = "x # y"
e."f.g".h = [ # [
  "]", ']', """
z = 1
[no]
""", { k = "}" },
]
i = { j = 1, k = { l = 2 } }
[ "q\\"u" . 'o#' ]
x = """\\
y = 1 \\""" ""
"""
z = \'\'\'
w = 1
\'\'\'\'\'
"\\u0061" = 1
[[t]]
a = 1
[[t.u]]
b = 1
[[t]]
[t.v]
c = ""
[[t.u]]
d = 2024-01-01T00:00:00Z
'''


def test_the_line_index_survives_everything_toml_allows() -> None:
    found = lines.index(NASTY)
    tomllib.loads(NASTY)
    assert found.keys == {
        ("a#b",): 2, ("c=d",): 3, ("e",): 4, ("e", "f.g"): 4, ("e", "f.g", "h"): 4, ("i",): 10,
        ('q"u',): 11, ('q"u', "o#"): 11, ('q"u', "o#", "x"): 12, ('q"u', "o#", "z"): 15, ('q"u', "o#", "a"): 18,
        ("t",): 19, ("t", 0): 19, ("t", 0, "a"): 20, ("t", 0, "u"): 21, ("t", 0, "u", 0): 21, ("t", 0, "u", 0, "b"): 22,
        ("t", 1): 23, ("t", 1, "v"): 24, ("t", 1, "v", "c"): 25, ("t", 1, "u"): 26, ("t", 1, "u", 0): 26,
        ("t", 1, "u", 0, "d"): 27,
    }  # fmt: skip
    assert lines.index(NASTY.replace("\n", "\r\n")) == found


def test_ten_thousand_vmtas_load_within_seconds(tmp_path: Path) -> None:
    write(tmp_path, '[domain."*"]\nmax-smtp-out = 5\n', "bulk.toml")
    text = "".join(
        f'[vmta.v{i}]\nsmtp-source-host = ["10.0.{i >> 8}.{i & 255} v{i}.example.com"]\npolicy = "bulk.toml"\n'
        f'[vmta.v{i}.domain."gmail.com"]\nmax-msg-rate = "600/m"\n'
        for i in range(10_000)
    )
    began = time.process_time()
    assert len(load(tmp_path, text).vmtas) == 10_001
    assert time.process_time() - began < 6  # one second on the machine it was written on
