from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.unit.test_config import load, one_problem

FILE = '[[acct-file]]\npath = "a.csv"\n'


def test_a_file_with_everything_is_read(tmp_path: Path) -> None:
    (file,) = load(
        tmp_path,
        FILE
        + """
records = ["delivery", "tq", "feedback-loop"]
record-fields = { delivery = ["*", "!orcpt", "header_X-Id"], f = ["rcpt", "arf_Version"] }
map-header-to-field = { bounce = { header_X-Campaign = "jobId" } }
queue-filter = ["!*/test", "*.rollup/*"]
privacy-policy = "siphash-hexkey 000102030405060708090a0b0c0d0e0f"
user-string = "node 7"
iso-times = false
world-readable = true
sync = true
move-to = "done"
delete-after = "never"
""",
    ).acct_files
    assert file.records == ("d", "tq", "f")
    assert file.record_fields == {"d": ("*", "!orcpt", "header_X-Id"), "f": ("rcpt", "arf_Version")}
    assert file.map_header_to_field == {"b": {"header_X-Campaign": "jobId"}}
    assert file.queue_filter == ("!*/test", "*.rollup/*")
    assert (file.iso_times, file.world_readable, file.sync, file.user_string) == (False, True, True, "node 7")
    assert (file.move_to, file.delete_after) == (str(tmp_path / "done"), math.inf)
    assert "0001" not in repr(file)


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ('records = ["delivered"]', "records", "d (delivery)"),
        ('records = ["d", "delivery"]', "records", '"d" is there twice'),
        ('record-fields = { d = ["*", "recipient"] }', "record-fields", 'd has no column "recipient": it has type'),
        ('record-fields = { d = ["*", "!type"] }', "record-fields", '"!type" leaves out what d does not have'),
        ('record-fields = { d = "*" }', "record-fields", 'a list of columns for d, like ["*", "!orcpt"]'),
        ('record-fields = { tq = ["header_X"] }', "record-fields", 'tq has no column "header_X"'),
        ('record-fields = { d = ["*", "*"] }', "record-fields", '"*" is there twice'),
        ('map-header-to-field = { d = { X-Campaign = "jobId" } }', "map-header-to-field", "header_X-Campaign"),
        ('map-header-to-field = { d = { header_X = "job" } }', "map-header-to-field", 'd has no column "job"'),
        ('map-header-to-field = { tq = { header_X = "vmta" } }', "map-header-to-field", "expected a table like"),
        ('queue-filter = ["news"]', "queue-filter", 'a list of queues, like ["*/alerts"'),
        ('privacy-policy = "hide"', "privacy-policy", "retain, redact, siphash"),
        ('privacy-policy = "siphash s3cret"', "privacy-policy", "a key of 16 bytes, and this one has 6"),
        ('delete-after = "soon"', "delete-after", "expected a duration"),
    ],
)
def test_what_a_file_cannot_show_is_told_with_its_line(tmp_path: Path, line: str, key: str, said: str) -> None:
    problem = one_problem(tmp_path, FILE + line + "\n")
    assert problem.startswith(f"spoolmta.toml:5: acct-file.{key}: ")
    assert said in problem
    assert "s3cret" not in problem


def test_a_program_is_split_into_words_as_by_a_shell_and_its_file_lies_in_the_spool(tmp_path: Path) -> None:
    text = """
[[acct-file]]
path = "| /usr/bin/php -q 'my bounces.php'"
records = ["b"]
delete-after = "2d"
write-timeout = "2m"
retry-interval = "10s"
[[acct-file]]
path = "a.csv"
[[acct-file]]
path = "|cat"
"""
    loaded = load(tmp_path, text)
    php, cat = loaded.pipes.values()
    assert php.command == ("/usr/bin/php", "-q", "my bounces.php")
    assert re.fullmatch(r"php-[0-9a-f]{8}", php.pipe)
    assert php.path == f"{tmp_path}/spool/pipes/{php.pipe}/acct.csv"
    assert php.position == f"{tmp_path}/spool/pipes/{php.pipe}/position"
    assert (php.records, php.delete_after, php.write_timeout, php.retry_interval) == (("b",), 172_800.0, 120.0, 10.0)
    assert (cat.write_timeout, cat.retry_interval, cat.delete_after) == (60.0, 300.0, 691_200.0)
    assert loaded.log is not None
    assert loaded.log.path == str(tmp_path / "a.csv")
    again = load(tmp_path, text.replace("| /usr/bin/php -q 'my bounces.php'", "|/usr/bin/php  -q my' bounces.php'"))
    assert list(again.pipes) == list(loaded.pipes)


def test_where_all_accounting_goes_to_programs_there_is_no_log(tmp_path: Path) -> None:
    assert load(tmp_path, '[[acct-file]]\npath = "|cat"\n').log is None


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ('path = "|"', "path", 'a program and its arguments stand behind the "|"'),
        ('path = "|cat \'x"', "path", "the words of this command cannot be told: no closing quotation"),
        *(
            (f'path = "|cat"\n{key} = {value}', key, "this is for a file, and here the rows go to a program")
            for key, value in (
                ("move-to", '"done"'),
                ("move-interval", '"1h"'),
                ("max-size", '"1M"'),
                ("world-readable", "false"),
                ("sync", "true"),
                ("count-moved-records", "true"),
            )
        ),
        ('path = "a.csv"\nwrite-timeout = "1m"', "write-timeout", "this is for a program that reads the rows"),
        ('path = "a.csv"\nretry-interval = "1m"', "retry-interval", "this is for a program that reads the rows"),
        ('path = "|cat -u"\n[[acct-file]]\npath = "|cat  -u"', "path", "another pipe has the same command"),
    ],
)
def test_what_a_pipe_cannot_be_is_told_with_its_line(tmp_path: Path, line: str, key: str, said: str) -> None:
    problem = one_problem(tmp_path, f"[[acct-file]]\n{line}\n")
    number = 3 + len(line.splitlines())
    assert problem.startswith(f"spoolmta.toml:{number}: acct-file.{key}: ")
    assert said in problem
