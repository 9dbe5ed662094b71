"""What is no regular file is left where it is, named once in the log and counted; the rest goes on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mta import Mta, World


@pytest.fixture(scope="module")
def mta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mta]:
    with World(tmp_path_factory.mktemp("left")) as world, world.mta() as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        yield mta


def make_symlink(path: Path) -> None:
    target = path.parents[2] / "target.eml"
    target.write_bytes(b"x-sender: a@mta.test\nx-receiver: linked@one.test\n\nbody\n")
    path.symlink_to(target)


def make_device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a device needs root")
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError as error:
        pytest.skip(f"no device can be made here: {error}")


KINDS = {
    "symlink": make_symlink,
    "dangling": lambda path: path.symlink_to("nowhere.eml"),
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "device": make_device,
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_left_alone_logged_once_and_counted(mta: Mta, kind: str) -> None:
    path = mta.spool / "pickup" / f"{kind}.eml"
    counted, delivered = mta.status()["pickup"]["left_alone"], mta.count("d")
    KINDS[kind](path)
    before = path.lstat()
    mta.wait_for_log(f"left alone '{kind}.eml': ")
    for number in range(3):
        mta.drop(f"{kind}-{number}@one.test")
        mta.wait_for(lambda wanted=delivered + number + 1: mta.count("d") == wanted)
    assert path.lstat() == before
    assert mta.log().count(f"'{kind}.eml'") == 1
    assert mta.status()["pickup"]["left_alone"] == counted + 1


def test_a_whole_file_renamed_over_what_was_left_alone_is_taken(mta: Mta) -> None:
    path = mta.spool / "pickup" / "replaced.eml"
    path.symlink_to("nowhere.eml")
    mta.wait_for_log("left alone 'replaced.eml': ")
    mta.drop("replaced@one.test", name="replaced.eml")
    mta.wait_for(lambda: any(row["rcpt"] == "replaced@one.test" for row in mta.rows("d")))
    assert not path.exists()


def test_nothing_else_happened(mta: Mta) -> None:
    assert not any(row["rcpt"] == "linked@one.test" for row in mta.rows())
    assert not list((mta.spool / "bad").iterdir())
    assert mta.status()["pickup"]["restarts"] == 0
    assert mta.audit()["balanced"]
