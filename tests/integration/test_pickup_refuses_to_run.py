"""`spoolmta run` on a spool it cannot work on: one sentence on stderr, no traceback, and the status that says why."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mta import Mta

CONFIG = 'host-name = "mta.test"\n[spool]\ndirectory = "spool"\nmin-free-space = "1M"\n'
CONFIGURATION, DISK = 78, 74


def refusal(mta: Mta, status: int) -> str:
    """What `run` says on its way out."""
    result = mta.command("run")
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in line
    return line


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[None]:
    """A filesystem of its own, unmounted at the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {result.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_spool_that_is_missing(tmp_path: Path) -> None:
    mta = Mta(tmp_path, CONFIG, start=False)
    mta.spool.rmdir()
    assert f"the spool directory {mta.spool} does not exist" in refusal(mta, CONFIGURATION)
    assert not mta.spool.exists()


def test_a_spool_that_is_a_file(tmp_path: Path) -> None:
    mta = Mta(tmp_path, CONFIG, start=False)
    mta.spool.rmdir()
    mta.spool.write_text("not a folder")
    assert str(mta.spool) in refusal(mta, CONFIGURATION)


@pytest.mark.parametrize("text", ["2\n", "1.5\n", "", "99999999999999999999\n"])
def test_a_spool_of_a_newer_or_unknown_format(tmp_path: Path, text: str) -> None:
    mta = Mta(tmp_path, CONFIG, start=False)
    (mta.spool / "format").write_text(text)
    assert "format" in refusal(mta, CONFIGURATION)
    assert [path.name for path in mta.spool.iterdir()] == ["format"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_spool_of_somebody_else(tmp_path: Path) -> None:
    mta = Mta(tmp_path, CONFIG, start=False)
    mta.spool.chmod(0o555)
    try:
        assert f"the spool directory {mta.spool} cannot be written" in refusal(mta, DISK)
    finally:
        mta.spool.chmod(0o755)


@pytest.mark.parametrize("is_used", [False, True], ids=["new", "used"])
def test_a_spool_on_a_read_only_filesystem(tmp_path: Path, is_used: bool) -> None:
    mta = Mta(tmp_path, CONFIG, start=False)
    with tmpfs(mta.spool, "size=16M"):
        if is_used:
            mta.start()
            assert mta.stop() == 0
        subprocess.run(["mount", "-o", "remount,ro", str(mta.spool)], check=True)
        assert f"the spool directory {mta.spool} cannot be written: Read-only file system" in refusal(mta, DISK)


def test_a_pickup_folder_that_is_missing(tmp_path: Path) -> None:
    mta = Mta(tmp_path, CONFIG + '[source.other]\npickup = "nowhere"\n', start=False)
    reason = f"source other: the pickup folder {tmp_path}/nowhere does not exist"
    assert reason in refusal(mta, CONFIGURATION)


def test_a_pickup_folder_on_another_filesystem_where_copying_is_forbidden(tmp_path: Path) -> None:
    mta = Mta(tmp_path, CONFIG + '[pickup]\ncopy = "never"\n[source.other]\npickup = "other"\n', start=False)
    (tmp_path / "other").mkdir()
    with tmpfs(tmp_path / "other", "size=1M"):
        assert "lies on another filesystem than the spool" in refusal(mta, CONFIGURATION)


def test_from_another_filesystem_files_are_copied_and_refused_ones_are_kept_whole(tmp_path: Path) -> None:
    more = '[[acct-file]]\npath = "spool/accounting/acct.csv"\nrecords = ["r", "d"]\n'
    route = '[domain."*"]\nsmtp-hosts = ["[127.0.0.1]:1"]\nretry-after = ["1h"]\n'
    mta = Mta(tmp_path, CONFIG + '[source.other]\npickup = "other"\n' + route + more, start=False)
    other = tmp_path / "other"
    other.mkdir()
    with tmpfs(other, "size=8M"), mta:
        mta.start()
        for name, data in {
            "good": mta.message("a@down.test"),
            "bad": b"Subject: for nobody\n\n" + b"x\n" * 1_000_000,
        }.items():
            (other / f"{name}.new").write_bytes(data)
            (other / f"{name}.new").rename(other / f"{name}.eml")
        mta.wait_for(lambda: mta.count("r") == 1 and not list(other.iterdir()))
        bad = mta.spool / "bad"
        assert (bad / "bad.reason").read_text() == "no recipient\n"
        assert (bad / "bad.eml").read_bytes() == b"Subject: for nobody\n\n" + b"x\n" * 1_000_000
        assert sorted(path.name for path in bad.iterdir()) == ["bad.eml", "bad.reason"]
        mta.wait_for(lambda: mta.audit()["queued"] == 1)
        assert mta.audit()["balanced"]
        assert mta.status()["pickup"]["left_alone"] == 0
