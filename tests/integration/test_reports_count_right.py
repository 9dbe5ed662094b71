"""Every report of a log that lies in many files counts what is counted here row by row, and no row injects anything."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import pytest
from click.testing import CliRunner, Result

from spoolmta import log
from spoolmta.cli.frame import cli
from spoolmta.columns import header
from spoolmta.reports.known import KNOWN
from spoolmta.row import Record
from spoolmta.warehouse import Warehouse
from tests.support.mta import ROOT, wait_for

BEGIN = 1_795_687_200  # 2026-11-26 10:00:00 UTC
NAMES = header(("d", "b", "t", "r"), {})
EVIL = '=HYPERLINK("x")<script>alert(1)</script>\x1b[31m,\'";--'


def stamp(seconds: int) -> str:
    return f"2026-11-26 {10 + seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}+0000"


def rows_of(chance: random.Random) -> list[dict[str, str]]:
    """An hour of mail to a thousand recipients, some of them deferred before."""
    rows = []
    for number in range(1000):
        queued, domain = chance.randrange(3000), f"d{chance.choice([1, 1, 1, 2, 3])}.test"
        vmta = chance.choice(["news", "bulk"])
        row = {
            "timeQueued": stamp(queued),
            "orig": "from@us.test",
            "rcpt": f"user{number}@{domain.upper() if number % 7 == 0 else domain}",
            "vmta": vmta,
            "jobId": chance.choice(["", "spring", "autumn"]),
            "queue": f"{domain}/{vmta}",
            "dlvSourceIp": "127.0.0.2" if vmta == "news" else "127.0.0.3",
        }
        rows.append(row | {"type": "r", "timeLogged": stamp(queued), "queue": "", "dlvSourceIp": ""})
        at = queued
        while chance.random() < 0.2:
            at += chance.randrange(200)
            diag = f"smtp;451 4.7.1 <{row['rcpt']}>: try again in {chance.randrange(900)} seconds"
            rows.append(row | {"type": "t", "timeLogged": stamp(at), "dsnDiag": diag, "bounceCat": "policy-related"})
        at += chance.randrange(300)
        if chance.random() < 0.1:
            category = chance.choice(["bad-mailbox", "quota-issues", "message-expired", EVIL])
            diag = f"smtp;550 5.1.1 <{row['rcpt']}>: no such user"
            rows.append(row | {"type": "b", "timeLogged": stamp(at), "dsnDiag": diag, "bounceCat": category})
        elif chance.random() < 0.95:
            rows.append(row | {"type": "d", "timeLogged": stamp(at), "dlvSize": str(1000 + number), "attempts": "1"})
    rows.sort(key=lambda found: found["timeLogged"])
    return rows


def text_of(rows: list[dict[str, str]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, NAMES, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file, a plain one, and the current one with half a row at its end."""
    folder = tmp_path_factory.mktemp("accounting")
    rows = rows_of(random.Random(11))
    (folder / "acct-2026-11-26-0000.csv.gz").write_bytes(gzip.compress(text_of(rows[:700])))
    (folder / "acct-2026-11-26-0001.csv").write_bytes(text_of(rows[700:1400]))
    (folder / "acct.csv").write_bytes(text_of(rows[1400:]) + b"d,2026-11-26 11:00:00+0000,2026-11")
    return folder / "acct.csv"


@pytest.fixture(scope="module")
def records(path: Path) -> list[Record]:
    with log.follow(path, wait=False) as rows:
        return [*rows]


def spoolmta(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


def tables(path: Path, *words: str) -> dict[str, list[dict[str, object]]]:
    result = spoolmta("report", *words, path, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, list[dict[str, object]]] = json.loads(result.stdout)["tables"]
    return found


def domain(record: Record) -> str:
    return record.rcpt.rpartition("@")[2].lower()


def took(record: Record) -> int:
    assert record.time_logged is not None
    assert record.time_queued is not None
    return int(record.time_logged - record.time_queued)


def test_message_counts_are_those_of_the_rows_by_whatever_they_are_put_together(
    path: Path, records: list[Record]
) -> None:
    keys = {"vmta": lambda row: row.vmta, "job": lambda row: row.job_id or "(none)", "domain": domain}
    for by, key in keys.items():
        found = {row[by]: row for row in tables(path, "message-counts", "--by", by)["counts"]}
        for kind, column in {"r": "received", "d": "delivered", "b": "bounced", "t": "deferrals"}.items():
            expected = Counter(key(row) for row in records if row.type == kind)
            assert {name: row[column] for name, row in found.items() if name != "all"} == dict(expected)
            assert found["all"][column] == expected.total()
        assert found["all"]["bytes"] == sum(row.dlv_size or 0 for row in records)
        assert found["all"]["expired"] == sum(row.bounce_cat == "message-expired" for row in records)


def test_categories_reasons_and_bounces_are_counted(path: Path, records: list[Record]) -> None:
    found = tables(path, "bounce-categories", "--by", "vmta")
    shown = {row["category"]: (row["bounced"], row["deferrals"]) for row in found["categories"]}
    for category in {row.bounce_cat for row in records if row.type in "bt"}:
        counted = tuple(sum(row.bounce_cat == category and row.type == kind for row in records) for kind in "bt")
        assert shown["".join(ch if ch.isprintable() else " " for ch in category)] == counted
    groups = Counter((row.vmta, row.bounce_cat) for row in records if row.type == "b" and row.bounce_cat != EVIL)
    assert {(row["vmta"], row["category"]): row["bounced"] for row in found["groups"] if row["bounced"]} | {
        key: groups[key] for key in groups
    } == {(row["vmta"], row["category"]): row["bounced"] for row in found["groups"] if row["bounced"]}
    [deferral] = tables(path, "deferral-reasons")["reasons"]
    assert deferral["reason"] == "451 4.7.1 <address>: try again in <n> seconds"
    assert deferral["number"] == sum(row.type == "t" for row in records)
    top = tables(path, "top-bounce")
    bounced = Counter(domain(row) for row in records if row.type == "b")
    assert {row["domain"]: row["bounced"] for row in top["bounces"]} == dict(bounced)
    assert [row["bounced"] for row in top["bounces"]] == sorted(bounced.values(), reverse=True)
    assert [row["reason"] for row in top["reasons"]] == ["550 5.1.1 <address>: no such user"]
    pairs = Counter((row.vmta, domain(row)) for row in records if row.type == "b")
    listed = tables(path, "vmta-top-bounce")["bounces"]
    assert {(row["vmta"], row["domain"]): row["bounced"] for row in listed} == dict(pairs)


def test_times_domains_and_vmtas_are_those_of_the_deliveries(path: Path, records: list[Record]) -> None:
    delivered = [row for row in records if row.type == "d"]
    times = sorted(map(took, delivered))
    found = tables(path, "delivery-times", "--by", "vmta")
    shares = {row["fastest"]: row for row in found["percentiles"]}
    assert shares["100 %"]["maximum"] == times[-1]
    assert shares["100 %"]["average"] == pytest.approx(sum(times) / len(times), abs=0.01)
    assert shares["50 %"]["maximum"] == times[-(-len(times) // 2) - 1]
    assert sum(int(str(row["recipients"])) for row in found["histogram"]) == len(times)
    assert {row["vmta"]: row["delivered"] for row in found["groups"]} == dict(Counter(row.vmta for row in delivered))
    broken = tables(path, "vmta-time-breakdown")["times"]
    fast = Counter(row.vmta for row in delivered if took(row) < 5)
    assert {row["vmta"]: row["0-5 s"] for row in broken} == dict(fast)
    domains = {row["domain"]: row for row in tables(path, "top-domains")["domains"]}
    assert {name: row["delivered"] for name, row in domains.items()} == dict(Counter(map(domain, delivered)))
    for name, row in domains.items():
        assert row["maximum"] == max(took(record) for record in delivered if domain(record) == name)
    summary = tables(path, "vmta-summary")["summary"]
    pairs = Counter((row.vmta, row.dlv_source_ip) for row in delivered)
    assert {(row["vmta"], row["source-ip"]): row["delivered"] for row in summary} == dict(pairs)


def test_the_best_minute_five_minutes_and_hour_are_the_best_there_are(path: Path, records: list[Record]) -> None:
    minutes = Counter(int(row.time_logged or 0) // 60 for row in records if row.type == "d")
    [found] = tables(path, "top-rates")["rates"]
    for name, width in (("minute", 1), ("5 minutes", 5), ("hour", 60)):
        best = max(sum(minutes[last - back] for back in range(width)) for last in minutes)
        assert found[f"best {name}"] == best


def test_a_campaign_has_what_is_left_of_it(path: Path, records: list[Record]) -> None:
    [found] = tables(path, "campaign", "--job", "spring")["jobs"]
    counts = Counter(row.type for row in records if row.job_id == "spring")
    assert (found["recipients"], found["delivered"], found["bounced"]) == (counts["r"], counts["d"], counts["b"])
    assert found["left"] == counts["r"] - counts["d"] - counts["b"]
    [found] = tables(path, "campaign", "--job", "spring", "--total", "100000")["jobs"]
    assert found["left"] == 100_000 - counts["d"] - counts["b"]
    assert found["ends about"] is None  # nothing of it goes at present


def test_what_is_chosen_is_counted_only(path: Path, records: list[Record]) -> None:
    words = ["--vmta", "NEWS", "--domain", "d1.*", "--since", "2026-11-26 10:10:00+0000"]
    [found] = tables(path, "message-counts", *words, "--until", "2026-11-26 10:20:00+0000")["counts"]
    begin, end = BEGIN + 600, BEGIN + 1200
    chosen = [row for row in records if row.vmta == "news" and domain(row) == "d1.test"]
    counts = Counter(row.type for row in chosen if begin <= (row.time_logged or 0) <= end)
    assert (found["delivered"], found["bounced"]) == (counts["d"], counts["b"])


@pytest.mark.parametrize("name", [*KNOWN])
def test_every_report_is_had_in_every_form_with_nothing_injected(name: str, path: Path, tmp_path: Path) -> None:
    text = spoolmta("report", name, path)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith(f"# {KNOWN[name].title}\n# 2026-11-26 ")
    assert "\x1b" not in text.stdout
    rows = [*csv.reader(io.StringIO(spoolmta("report", name, path, "--csv").stdout), strict=True)]
    assert len(rows) > 1
    assert not any(cell.startswith("=") for row in rows for cell in row)
    ElementTree.fromstring(spoolmta("report", name, path, "--xml").stdout)
    result = spoolmta("report", name, path, "--html", "--output", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_log_without_rows_has_reports_that_say_so(tmp_path: Path) -> None:
    (tmp_path / "acct.csv").write_bytes(text_of([]))
    for name in KNOWN:
        result = spoolmta("report", name, tmp_path / "acct.csv")
        assert result.exit_code == 0, (name, result.output)
        assert "no rows" in result.stdout
        assert spoolmta("report", name, tmp_path / "acct.csv", "--html").exit_code == 0


def test_sql_has_every_column_and_two_more(path: Path, records: list[Record]) -> None:
    query = (
        "select vmta, count(*) as n, min(timeLogged) as t from log where type = 'd' and domain = 'd1.test' group by 1"
    )
    listed = [row for row in records if row.type == "d" and domain(row) == "d1.test"]
    expected = Counter(row.vmta for row in listed)
    found = [json.loads(line) for line in spoolmta("sql", query, "--json", "--file", path).stdout.splitlines()]
    assert {row["vmta"]: row["n"] for row in found} == dict(expected)
    lines = spoolmta("sql", query, "--file", path).stdout.splitlines()
    assert lines[0] == "vmta\tn\tt"
    assert {line.split("\t")[0] for line in lines[1:]} == {*expected}
    evil = spoolmta("sql", "select distinct bounceCat from log where bounceCat like '=%'", "--csv", "--file", path)
    assert [*csv.reader(io.StringIO(evil.stdout))][1] == ["'" + EVIL]
    assert "\x1b" not in spoolmta("sql", "select distinct bounceCat from log", "--file", path).stdout


@pytest.mark.parametrize("query", ["selec 1", "select nothing from log", "select * from elsewhere"])
def test_what_is_no_sql_is_one_sentence(query: str, path: Path) -> None:
    result = spoolmta("sql", query, "--file", path)
    assert result.exit_code == 64
    assert result.stderr.startswith("spoolmta: ")
    assert "Traceback" not in result.stderr


def test_an_export_has_every_row_in_every_format(path: Path, records: list[Record], tmp_path: Path) -> None:
    for form in ("csv", "json", "xml", "parquet"):
        result = spoolmta("log", "export", "--format", form, path, "--output", tmp_path / form)
        assert result.exit_code == 0, result.output
    text = io.StringIO((tmp_path / "csv").read_bytes().decode(), newline="")
    assert len([*csv.reader(text, strict=True)]) == len(records) + 1
    assert len((tmp_path / "json").read_text().splitlines()) == len(records)
    assert len(ElementTree.parse(tmp_path / "xml").getroot()) == len(records)
    found = duckdb.sql(
        f"select rcpt, epoch(timeLogged), dlvSize, type from read_parquet('{tmp_path / 'parquet'}')"
    ).fetchall()
    assert found == [(row.rcpt, row.time_logged, row.dlv_size, row.type) for row in records]
    spoolmta("log", "export", "--format", "parquet", path, "--type", "b", "--output", tmp_path / "b.parquet")
    bounced = duckdb.sql(f"select count(*) from read_parquet('{tmp_path / 'b.parquet'}')").fetchall()
    assert bounced == [(sum(row.type == "b" for row in records),)]
    result = spoolmta("log", "export", "--format", "parquet", path)
    assert "--output" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("report", "campaign", "/nonexistent/acct.csv"), "cannot read /nonexistent"),
        (("report", "vmta-summary", "--by", "domain", "x"), "vmta-summary is always by vmta"),
        (
            ("report", "top-rates", "PATH", "--csv", "--table", "nope"),
            'there is no table "nope" in this report: it has rates',
        ),
        (("report", "top-rates", "PATH", "--output", "/nonexistent/x"), "cannot write /nonexistent/x"),
        (("report", "top-rates", "--since", "yesterday", "x"), "expected a time"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words: tuple[str, ...], sentence: str, path: Path) -> None:
    result = spoolmta(*(str(path) if word == "PATH" else word for word in words))
    assert result.exit_code != 0
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_log_that_is_rotated_moved_and_deleted_meanwhile_is_counted_as_it_was(tmp_path: Path) -> None:
    rows = rows_of(random.Random(3))
    for name, part in (("acct-2026-11-26-0000.csv", rows[:500]), ("acct.csv", rows[500:])):
        (tmp_path / name).write_bytes(text_of(part))
    with Warehouse(str(tmp_path / "acct.csv")) as house:
        for name in os.listdir(tmp_path):
            os.unlink(tmp_path / name)
        assert house.ask("SELECT count(*) FROM log") == [(len(rows),)]


def test_what_is_no_log_of_ours_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "acct.csv").write_text("a,b\r\n1,2\r\n")
    (tmp_path / "packed.csv.gz").write_bytes(b"no gzip")
    (tmp_path / "folder.csv").mkdir()
    for name, sentence in (
        ("acct.csv", "is no accounting log: the columns in its header have no type"),
        ("packed.csv.gz", "is damaged, or not packed to its end"),
        ("folder.csv", "is no file that can be a log"),
        ("nothing.csv", "there is no log"),
    ):
        result = spoolmta("report", "top-rates", tmp_path / name)
        assert result.exit_code in (65, 69)
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_log_of_powermta_is_counted_with_what_it_has(tmp_path: Path) -> None:
    names = "type,timeLogged,orig,rcpt,dsnDiag,vmta,queue,custom"
    row = 'd,1795687200,a@us.test,x@D1.test,"smtp;250 ok, thanks",news,d1.test/news,"=1+1"'
    (tmp_path / "acct.csv").write_text(f"{names}\n{row}\n{row}\n")
    [found] = tables(tmp_path / "acct.csv", "message-counts", "--by", "domain")["counts"][1:]
    assert (found["domain"], found["delivered"]) == ("d1.test", 2)
    result = spoolmta(
        "sql", "select custom, timeQueued, epoch(timeLogged) from log limit 1", "--file", tmp_path / "acct.csv"
    )
    assert result.stdout.splitlines()[1] == "=1+1\t\t1795687200.0"


def test_without_duckdb_it_is_said_how_to_get_it(path: Path, tmp_path: Path) -> None:
    (tmp_path / "duckdb.py").write_text("raise ImportError")
    for words in (["report", "top-rates", str(path)], ["sql", "select 1", "--file", str(path)]):
        result = subprocess.run(
            [sys.executable, "-m", "spoolmta", *words],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 69
        assert "python -m pip install 'spoolmta[report]'" in result.stderr
        assert result.stderr.count("\n") == 1


ODD_TIMES = (
    "99999999999999999",
    "nan",
    "1e300",
    "infinity",
    "-infinity",
    "20000-01-01",
    "0001-01-01 00:00:00+0000",
    "x",
    "",
)


def test_times_that_are_none_are_in_no_time_and_hurt_no_report(tmp_path: Path) -> None:
    good = {
        "timeLogged": stamp(100),
        "timeQueued": stamp(0),
        "rcpt": "a@b.test",
        "queue": "b.test/news",
        "vmta": "news",
    }
    rows = [good | {"type": "d"}]
    rows += [good | {"type": "d", "timeLogged": time} for time in ODD_TIMES]
    rows += [good | {"type": "d", "timeQueued": time} for time in ODD_TIMES]
    (tmp_path / "acct.csv").write_bytes(text_of(rows))
    for name in KNOWN:
        result = spoolmta("report", name, tmp_path / "acct.csv")
        assert result.exit_code == 0, (name, result.output)
    [found] = tables(tmp_path / "acct.csv", "top-domains")["domains"]
    assert (found["delivered"], found["average"], found["maximum"]) == (len(rows), 100, 100)
    for form in ("csv", "parquet"):
        assert (
            spoolmta("log", "export", "--format", form, tmp_path / "acct.csv", "--output", tmp_path / "o").exit_code
            == 0
        )


def test_a_column_with_a_line_break_in_its_name_hides_no_row(tmp_path: Path) -> None:
    (tmp_path / "acct.csv").write_text('type,timeLogged,"a\nb"\nd,2026-11-26 10:00:00+0000,x\nd,,y\n')
    [found] = tables(tmp_path / "acct.csv", "message-counts")["counts"]
    assert found["delivered"] == 2


def test_the_end_of_a_campaign_that_is_never_is_not_told(tmp_path: Path) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S+0000")
    row = {"type": "d", "timeLogged": now, "timeQueued": now, "rcpt": "a@b.test", "jobId": "j"}
    (tmp_path / "acct.csv").write_bytes(text_of([row]))
    [found] = tables(tmp_path / "acct.csv", "campaign", "--total", str(10**12))["jobs"]
    assert found["ends about"] is None


def command(tmp_path: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A shell's line with `spoolmta` in it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    line = line.replace("spoolmta", f"{sys.executable} -m spoolmta")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False, env=environment
    )


LONG = "select count(*) from range(100000000000) t(i) where i % 7 = 3"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_leaves_nothing_and_says_nothing(number: int, path: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-m", "spoolmta", "sql", LONG, "--file", str(path)]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: bool(os.listdir(tmp_path)), lambda: "it has not begun")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (128 + number, "")
    assert os.listdir(tmp_path) == []


def test_who_reads_only_the_beginning_gets_it_and_a_full_disk_is_one_sentence(path: Path, tmp_path: Path) -> None:
    done = command(tmp_path, f"spoolmta sql 'select * from range(300000)' --file {path} | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "range\n", "")
    assert command(tmp_path, f"spoolmta log export --format csv {path} | head -1").returncode == 0
    done = command(tmp_path, f"spoolmta report top-rates {path} > /dev/full")
    assert done.returncode == 69
    assert done.stderr == "spoolmta: cannot write the standard output: No space left on device\n"


def test_output_may_be_a_device_or_behind_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    assert spoolmta("report", "top-rates", path, "--output", tmp_path / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text().startswith("# The best minute")
    os.mkfifo(tmp_path / "fifo")
    done = command(tmp_path, f"cat {tmp_path}/fifo & spoolmta report top-rates {path} --output {tmp_path}/fifo; wait")
    assert done.stdout.startswith("# The best minute")
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize("query", ["", "select error('boom') from range(3)"])
def test_sql_that_gives_nothing_or_fails_late_is_no_traceback(query: str, path: Path) -> None:
    result = spoolmta("sql", query, "--file", path)
    assert result.exit_code == (64 if query else 0)
    assert result.stderr.count("\n") == (1 if query else 0)


def test_columns_of_the_same_name_are_all_there(path: Path) -> None:
    result = spoolmta("sql", "select 1 as a, 2 as a", "--json", "--file", path)
    assert json.loads(result.stdout) == {"a": 1, "a_2": 2}
