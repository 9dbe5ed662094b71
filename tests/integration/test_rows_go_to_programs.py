"""Accounting goes to programs: started once, fed through their standard input, started again when they break.

The programs are shell scripts, which read a pipe byte by byte: they have read no row that they have not written down.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spoolmta import columns, config
from tests.support.mta import Mta, World, wait_for

READER = """#!/bin/sh
# Writes all lines down; with a number ends after so many.
n=0
while IFS= read -r line; do
    printf '%s\\n' "$line" >> "$1"
    n=$((n + 1))
    [ "$n" = "$2" ] && exit 3
done
"""
DEAF = """#!/bin/sh
printf 'no \\033[1mdatabase\\n' >&2
exec sleep 1000
"""
CONFIG = """
[[acct-file]]
path = "|{folder}/steady '{folder}/steady rows'"
[[acct-file]]
path = "|{folder}/brief {folder}/brief.rows 4"
records = ["d"]
record-fields = {{ d = ["rcpt", "userString"] }}
user-string = "to a program"
retry-interval = "1s"
[[acct-file]]
path = "|{folder}/deaf"
write-timeout = "1s"
[[acct-file]]
path = "|{folder}/late {folder}/late.rows"
"""
HEADER = ",".join(columns.header(("d", "b"), {}))


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    folder = tmp_path_factory.mktemp("programs")
    for name, text in (("steady", READER), ("brief", READER), ("deaf", DEAF)):
        script(folder / name, text)
    with World(folder) as world, world.mta(CONFIG.format(folder=folder), start=False) as mta:
        leave_old_rows(mta)
        mta.start()
        yield mta


def leave_old_rows(mta: Mta) -> None:
    """Two files that a program has not read: one of nine days ago, one of seven."""
    file = next(file for file in config.load(str(mta.config_file)).pipes.values() if file.pipe.startswith("late"))
    for number, age in enumerate((9, 7)):
        path = Path(file.path).with_name(f"acct-2020-01-01-000{number}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEADER}\r\n" + f"d,,,,{age}@days.old{',' * (HEADER.count(',') - 4)}\r\n" * 2)
        then = path.stat().st_mtime - age * 86_400
        os.utime(path, (then, then))


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def lines(mta: Mta, name: str) -> list[str]:
    path = mta.path.parent / name
    return path.read_text().splitlines() if path.exists() else []


def rcpts(mta: Mta, name: str, place: int = 4) -> list[str]:
    """Who the rows that a program has got are for."""
    return [line.split(",")[place] for line in lines(mta, name) if not line.startswith("type,")]


def pipe(mta: Mta, program: str) -> dict[str, Any]:
    return next(one for one in mta.status()["pipes"] if one["name"].startswith(program))


def send(mta: Mta, *names: str) -> list[str]:
    """Mail that is delivered, a message each, one after the other."""
    recipients = [f"{name}@example.test" for name in names]
    for recipient in recipients:
        mta.drop(recipient)
        mta.wait_for(lambda recipient=recipient: recipient in {row["rcpt"] for row in mta.rows("d")})
    return recipients


def rotated(mta: Mta, program: str) -> list[Path]:
    return list((mta.spool / "pipes" / pipe(mta, program)["name"]).glob("acct-*"))


def test_a_program_gets_the_header_and_then_rows_in_order_through_a_rotation(mta: Mta) -> None:
    sent = send(mta, "a", "b")
    assert mta.command("acct", "rotate").returncode == 0
    sent += send(mta, "c")
    mta.wait_for(lambda: rcpts(mta, "steady rows") == sent)
    assert lines(mta, "steady rows")[0] == HEADER
    assert lines(mta, "steady rows").count(HEADER) == 1
    mta.wait_for(lambda: pipe(mta, "steady")["rows"] == len(sent) and pipe(mta, "steady")["unread"] == 0)
    mta.wait_for(lambda: rotated(mta, "steady") == [])
    assert rotated(mta, "deaf") != []


def test_a_program_that_ends_is_started_again_and_misses_no_row(mta: Mta) -> None:
    sent = [row["rcpt"] for row in mta.rows("d")] + send(mta, "d", "e")
    mta.wait_for(lambda: rcpts(mta, "brief.rows", 1) == sent)
    found = lines(mta, "brief.rows")
    assert (found[0], found[4]) == ("type,rcpt,userString", "type,rcpt,userString")
    assert found[1] == f"d,{sent[0]},to a program"
    mta.wait_for_log(r"brief .*ended with status 3 after 3 rows: it is started again in 1 s, or at a reload")


def test_a_program_that_reads_nothing_is_ended_and_delays_no_mail(mta: Mta) -> None:
    mta.wait_for_log(r"/deaf has read nothing for 1 s after 0 rows: it is started again in 300 s")
    mta.wait_for_log(r"pipe deaf-[0-9a-f]{8}: its program says: no  \[1mdatabase")
    send(mta, "f")
    mta.wait_for(lambda: pipe(mta, "deaf")["unread"] > 0)
    shown = mta.command("status").stdout
    assert re.search(r"pipe deaf-[0-9a-f]{8}: 0 rows read, [1-9]\d+ bytes unread, BROKEN", shown), shown


def test_a_program_that_cannot_be_started_is_one_sentence_and_after_a_reload_gets_all_rows(mta: Mta) -> None:
    mta.wait_for_log(r"/late\.rows cannot be started: No such file or directory: it is started again in 300 s")
    assert "Traceback" not in mta.log()
    script(mta.path.parent / "late", READER)
    assert mta.command("reload").returncode == 0
    mta.wait_for(lambda: rcpts(mta, "late.rows")[2:] == [row["rcpt"] for row in mta.rows("d")])


def test_rows_that_wait_for_longer_than_delete_after_are_dropped_and_that_is_told(mta: Mta) -> None:
    mta.wait_for_log(
        r"pipe late-[0-9a-f]{8}: 2 rows are dropped unread, in .*acct-2020-01-01-0000\.csv: .* delete-after"
    )
    mta.wait_for(lambda: rcpts(mta, "late.rows")[:2] == ["7@days.old"] * 2)
    mta.wait_for(lambda: rotated(mta, "late") == [])


def test_a_pipe_that_is_taken_out_leaves_its_rows_and_says_where(mta: Mta) -> None:
    text = mta.config_file.read_text()
    name, pid = pipe(mta, "deaf")["name"], pipe(mta, "deaf")["pid"]
    without = re.sub(r'\[\[acct-file\]\]\npath = "\|[^"]*/deaf"\nwrite-timeout = "1s"\n', "", text)
    mta.config_file.write_text(without)
    assert mta.command("reload").returncode == 0
    mta.wait_for(lambda: not Path(f"/proc/{pid}").exists())
    mta.wait_for_log(
        rf"pipes/{name} holds rows for a program that is not configured any more: read them with `spoolmta"
    )
    found = mta.command("log", "find", str(mta.spool / "pipes" / name / "acct.csv"), "--json").stdout
    assert found.count('"type"') == mta.count("d")


def test_other_columns_begin_a_new_run_of_the_program(mta: Mta) -> None:
    more = mta.config_file.read_text().replace('"rcpt", "userString"]', '"rcpt", "vmta"]')
    mta.config_file.write_text(more.replace('retry-interval = "1s"', ""))
    assert mta.command("reload").returncode == 0
    mta.wait_for(lambda: "vmta" in (mta.spool / "pipes" / pipe(mta, "brief")["name"] / "acct.csv").read_text())
    (sent,) = send(mta, "g")
    mta.wait_for(lambda: lines(mta, "brief.rows")[-2:] == ["type,rcpt,vmta", f"d,{sent},default"])


def test_a_kill_repeats_what_was_in_flight_at_most_and_loses_nothing(mta: Mta) -> None:
    before = send(mta, "h")
    mta.wait_for(lambda: rcpts(mta, "steady rows")[-1:] == before)
    wait_for_position(mta)
    os.kill(pipe(mta, "steady")["pid"], signal.SIGKILL)
    sent = send(mta, "i")
    mta.wait_for(lambda: rcpts(mta, "steady rows")[-1:] == sent)
    assert rcpts(mta, "steady rows") == [row["rcpt"] for row in mta.rows("d")]
    assert lines(mta, "steady rows").count(HEADER) == 2


def test_where_all_accounting_goes_to_programs_reading_the_log_is_refused_with_a_sentence(tmp_path: Path) -> None:
    text = 'host-name = "a.test"\n[spool]\ndirectory = "spool"\n[[acct-file]]\npath = "|cat"\n'
    with Mta(tmp_path, text, start=False) as mta:
        found = mta.command("log", "find")
    assert (found.returncode, found.stdout) == (64, "")
    assert "all accounting goes to programs, there is no file to read: add an [[acct-file]] with a path" in found.stderr


def wait_for_position(mta: Mta) -> None:
    """Until the position behind all rows is kept."""
    folder = mta.spool / "pipes" / pipe(mta, "steady")["name"]
    size = (folder / "acct.csv").stat().st_size
    wait_for(lambda: f'"offset":{size}' in (folder / "position").read_text(), lambda: (folder / "position").read_text())


def test_when_everything_is_killed_and_when_it_is_stopped_no_row_is_lost(mta: Mta) -> None:
    wait_for_position(mta)
    status = mta.status()
    others = [status["pickup"]["pid"], *(one["pid"] for one in (*status["pipes"], *status["vmtas"]) if one["pid"])]
    sent = send(mta, "j")
    mta.wait_for(lambda: rcpts(mta, "steady rows")[-1:] == sent)
    os.kill(status["pid"], signal.SIGSTOP)  # so that it starts nobody again
    for pid in others:
        os.kill(pid, signal.SIGKILL)
    os.kill(status["pid"], signal.SIGKILL)
    assert mta.process is not None
    mta.process.wait()
    mta.start()
    send(mta, "k")
    assert mta.stop() == 0
    found = rcpts(mta, "steady rows")
    assert list(dict.fromkeys(found)) == [row["rcpt"] for row in mta.rows("d")]
    assert len(found) - len(set(found)) in (0, 1)
    mta.start()
    sent = send(mta, "l")
    mta.wait_for(lambda: rcpts(mta, "steady rows") == [*found, *sent])
