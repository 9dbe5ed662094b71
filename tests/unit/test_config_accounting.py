from __future__ import annotations

import math
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


def test_a_program_is_not_started_for_a_log_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    problem = one_problem(tmp_path, '[[acct-file]]\npath = "|/usr/bin/php bounces.php"\n')
    assert problem.startswith("spoolmta.toml:4: acct-file.path: a program is not started for a log")
    assert "spoolmta log follow" in problem
