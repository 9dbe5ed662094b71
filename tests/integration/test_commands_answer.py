"""What an operator types, with the system running, stopped, and without any."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scenario import drop
from tests.support.mta import ROOT, Mta, World, wait_for

CONFIG = """
[vmta.bulk]
[vmta.news]
[domain."waits.test"]
smtp-hosts = ["[127.0.0.9]:1"]
retry-after = "1h"
"""


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spoolmta", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, timeout=60, check=False)


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    """A system with two messages that wait, and one delivered."""
    with World(tmp_path_factory.mktemp("commands")) as world, world.mta(CONFIG, start=False) as mta:
        drop(mta, "a@waits.test", "b@waits.test", vmta="bulk", job="j1", sender="one@from.test")
        drop(mta, "c@waits.test", vmta="news", job="j2", sender="two@from.test")
        drop(mta, "d@example.test")
        mta.start()
        mta.wait_for(lambda: mta.count("tq") == 2 and mta.count("d") == 1)
        mta.wait_for(lambda: len(mta.entries()) == 2)
        yield mta


def listed(mta: Mta, *filters: str) -> list[str]:
    """Who each listed message is for."""
    result = mta.command("queue", "list", "--json", *filters)
    assert result.returncode == 0, result.stderr
    return sorted(row["to"][0] for row in json.loads(result.stdout))


def test_queue_list_shows_what_waits_and_its_filters_choose(mta: Mta) -> None:
    first, second = "a@waits.test", "c@waits.test"
    assert listed(mta) == [first, second]
    assert listed(mta, "--vmta", "bulk") == [first]
    assert listed(mta, "--domain", "WAITS.test") == [first, second]
    assert listed(mta, "--domain", "other.test") == []
    assert listed(mta, "--job", "j2", "--rcpt", "C@waits.test", "--orig", "two@from.test") == [second]
    assert listed(mta, "--older-than", "1h") == []
    (row,) = json.loads(mta.command("queue", "list", "--json", "--vmta", "bulk").stdout)
    assert row["from"] == "one@from.test"
    assert row["to"] == ["a@waits.test", "b@waits.test"]
    assert row["recipients"] == 2
    assert row["attempts"] == 0
    assert row["queue"] == "waits.test/bulk"


def test_a_listing_is_tab_separated_when_nobody_looks(mta: Mta) -> None:
    header, *rows = mta.command("queue", "list").stdout.splitlines()
    assert header.split("\t") == ["id", "queue", "from", "to", "recipients", "bytes", "accepted", "attempts", "due"]
    assert [len(row.split("\t")) for row in rows] == [9, 9]


def test_a_bad_duration_is_one_sentence(mta: Mta) -> None:
    result = mta.command("queue", "list", "--older-than", "yesterday")
    assert result.returncode in (64, 65, 78)
    assert len(result.stderr.splitlines()) == 1
    assert "yesterday" in result.stderr


def test_queue_count_counts_per_queue(mta: Mta) -> None:
    rows = json.loads(mta.command("queue", "count", "--json").stdout)
    assert [(row["queue"], row["messages"], row["recipients"]) for row in rows] == [
        ("waits.test/bulk", 1, 2),
        ("waits.test/news", 1, 1),
    ]


def test_queue_show_tells_of_one_message_or_queue(mta: Mta) -> None:
    (row,) = json.loads(mta.command("queue", "list", "--json", "--vmta", "news").stdout)
    (shown,) = json.loads(mta.command("queue", "show", "--json", row["id"]).stdout)
    assert shown["waiting for"] == ["c@waits.test"]
    assert (shown["job"], shown["subject"], shown["from"]) == ("j2", "test", "two@from.test")
    assert Path(shown["file"]).is_file()
    text = mta.command("queue", "show", "waits.test/news").stdout
    assert row["id"] in text
    nothing = mta.command("queue", "show", "none")
    assert (nothing.returncode, nothing.stderr) == (65, "spoolmta: nothing in the queue is called none\n")


def test_status_tells_of_every_vmta(mta: Mta) -> None:
    status = mta.status()
    assert {v["name"] for v in status["vmtas"]} == {"default", "bulk", "news"}
    assert mta.vmta("default")["delivered"] == 1
    assert mta.vmta("bulk")["queued"] == 1
    assert status["pickup"]["messages"] == 3
    text = mta.command("status").stdout.splitlines()
    assert text[1].startswith("pickup: 3 messages for 4 recipients taken")
    assert text[2].split("\t")[:3] == ["name", "state", "pid"]


def test_the_queue_can_be_seen_when_nothing_runs_too(mta: Mta) -> None:
    stopped = mta.command("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    mta.wait_for(mta.process_ended)
    assert listed(mta) == ["a@waits.test", "c@waits.test"]
    assert mta.command("queue", "count").returncode == 0
    audit = mta.command("queue", "audit")
    assert audit.returncode == 0
    assert audit.stdout.splitlines()[-1] == "balanced"
    assert mta.audit()["accepted"] == 4
    for command in (["status"], ["reload"], ["stop"], ["acct", "rotate"]):
        result = mta.command(*command)
        assert (result.returncode, result.stdout) == (69, "")
        assert result.stderr == "spoolmta: spoolmta is not running on this spool\n"
    mta.start()


def test_an_entry_that_vanished_makes_the_audit_fail(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        mta = world.mta(CONFIG, start=False)
        drop(mta, "a@waits.test")
        mta.start()
        mta.wait_for(lambda: mta.count("tq") == 1)
        mta.stop()
        mta.entries()[0].unlink()
        result = mta.command("queue", "audit")
        assert result.returncode == 1
        assert result.stdout.splitlines()[-1] == "NOT BALANCED: difference 1"


def test_check_prints_every_error_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "spoolmta.toml"
    file.write_text(
        'host-name = "a.test"\nhost-nam = "b.test"\n[spool]\ndirectory = "spool"\n'
        '[domain."*"]\nmax-smtp-out = 0\nretry-after = "soon"\n'
    )
    result = run("--config", str(file), "check")
    assert result.returncode == 78
    lines = result.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{file}:{number}" for number in (2, 6, 7)]
    assert 'did you mean "host-name"?' in lines[0]
    assert "max-smtp-out" in lines[1]
    assert run("--config", str(file), "run").returncode == 78


def test_check_reads_included_files_and_policies_and_says_ok(tmp_path: Path) -> None:
    (tmp_path / "vmta.d").mkdir()
    (tmp_path / "vmta.d" / "news.toml").write_text('[vmta.news]\npolicy = "../slow.toml"\n')
    (tmp_path / "slow.toml").write_text('[domain."*"]\nmax-smtp-out = 9\n')
    file = tmp_path / "spoolmta.toml"
    file.write_text(
        'host-name = "a.test"\ninclude = ["vmta.d/*.toml"]\n[spool]\ndirectory = "spool"\n'
        '[domain."slow.test"]\nmax-smtp-out = 1\n'
    )
    result = run("--config", str(file), "check")
    assert result.returncode == 0
    assert result.stdout == f"{file}: OK, 2 VMTAs, 1 domain tables\n"
    assert result.stderr.startswith("warning: ")
    assert "slow.toml:2: " in result.stderr
    assert "undoes the stricter limit" in result.stderr


def test_without_a_configuration_a_command_says_where_it_looked(tmp_path: Path) -> None:
    if Path("/etc/spoolmta/spoolmta.toml").exists():
        pytest.skip("this machine has a configuration")
    result = run("status", cwd=tmp_path, SPOOLMTA_CONFIG="")
    assert result.returncode == 78
    assert result.stderr.startswith("no configuration: give --config PATH")
    missing = run("status", cwd=tmp_path, SPOOLMTA_CONFIG=str(tmp_path / "none.toml"))
    assert missing.returncode == 78
    assert "none.toml" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    wrong = run("--config", "none.toml", "frobnicate", cwd=tmp_path)
    assert wrong.returncode == 64
    assert "Traceback" not in wrong.stderr


def test_an_unused_spool_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "spoolmta.toml"
    file.write_text('host-name = "a.test"\n[spool]\ndirectory = "spool"\n')
    result = run("--config", str(file), "queue", "list")
    assert result.returncode == 69
    assert result.stderr == f"spoolmta: the spool {tmp_path}/spool has not been used yet: start `spoolmta run` first\n"


def test_sink_accepts_and_tells_what_it_saw(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spoolmta", "sink", "127.0.0.2:0", "--no-pipelining", "--json"]
    command += ["--host-name", "mine.test", "--maildir", str(tmp_path / "mail"), "--record", str(tmp_path / "record")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
    wait_for(lambda: "listening on" in (tmp_path / "log").read_text(), lambda: "the sink did not start")
    port = int((tmp_path / "log").read_text().rpartition(":")[2])
    with smtplib.SMTP("127.0.0.2", port, timeout=10) as client:
        _, offered = client.ehlo("client.test")
        assert offered.startswith(b"mine.test")
        assert b"PIPELINING" not in offered
        refused = client.sendmail("a@a.test", ["fine@b.test", "550-5.1.1@b.test"], "Subject: x\n\nx\n")
        assert [*refused] == ["550-5.1.1@b.test"]
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    seen = json.loads(output)
    assert (seen["totals"]["messages"], seen["totals"]["recipients_refused"]) == (1, 1)
    assert seen["pairs"][0]["ehlo"] == {"client.test": 1}
    assert len([*(tmp_path / "mail" / "new").iterdir()]) == 1
    assert json.loads((tmp_path / "record").read_text())["recipients"] == ["fine@b.test"]


def test_sink_prints_a_table_and_refuses_a_bad_address() -> None:
    command = [sys.executable, "-m", "spoolmta", "sink", "127.0.0.2:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("listening on 127.0.0.2:")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, "no connections\n")
    bad = run("sink", "nowhere")
    assert bad.returncode == 64
    assert "is no address to listen on" in bad.stderr


def test_demo_shows_the_main_job_and_cleans_up_after_itself(tmp_path: Path) -> None:
    began = time.monotonic()
    result = run("demo", "--directory", str(tmp_path / "demo"), "--messages", "60", COLUMNS="150")
    assert result.returncode == 0, result.stdout + result.stderr
    assert time.monotonic() - began < 40
    assert "all 60 recipients settled" in result.stdout
    assert "accepted 60 = delivered 54 + bounced 6 + expired 0 + queued 0: balanced" in result.stdout
    for vmta, source in (("alerts", "127.0.0.11"), ("news", "127.0.0.12"), ("bulk", "127.0.0.13")):
        assert any(vmta in line.split() and source in line for line in result.stdout.splitlines())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    refused = run("demo", "--directory", str(tmp_path / "mine"))
    assert refused.returncode == 69
    assert (tmp_path / "mine" / "precious").exists()
