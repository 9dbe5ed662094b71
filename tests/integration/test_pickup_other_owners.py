"""Files of other users: taken over where the system lets us, copied where it does not, left alone where we may not."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mta import Mta, World

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners can only be made as root")

NOBODY = 65534
OTHER = 54321
DOWN = """
[domain."down.test"]
smtp-hosts = ["[127.0.0.1]:1"]
retry-after = ["1h"]
"""


def give(mta: Mta, name: str, owner: int, mode: int, recipient: str, data: bytes | None = None) -> Path:
    """Drop a file as somebody else."""
    source = mta.path / "drop" / f"given-{name}"
    source.write_bytes(mta.message(recipient) if data is None else data)
    os.chown(source, owner, owner)
    source.chmod(mode)
    target = mta.spool / "pickup" / f"{name}.eml"
    source.rename(target)
    return target


def delivered(mta: Mta, recipient: str) -> int:
    return sum(row["rcpt"] == recipient for row in mta.rows("d"))


def queued(mta: Mta, domain: str) -> list[os.stat_result]:
    """The queue files of a domain whose host is down."""
    return [path.stat() for path in (mta.spool / "queue" / "default" / domain).glob("*/*")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user of the machine may enter (pytest's own are for the one who runs it)."""
    path = Path(tempfile.mkdtemp(prefix="spoolmta-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def as_nobody(world: World, more: str = "") -> Iterator[Mta]:
    """A system that is started by root and drops to `nobody`."""
    with world.mta(DOWN + more, start=False) as mta:
        mta.config_file.write_text('user = "nobody"\n' + mta.config_file.read_text())
        os.chown(mta.spool, NOBODY, NOBODY)
        mta.start()
        assert not mta.process_ended(), mta.log()
        yield mta


def open_to_all(mta: Mta) -> None:
    (mta.spool / "pickup").chmod(0o777)


def test_as_root_a_file_of_another_owner_is_adopted_not_copied(tmp_path: Path) -> None:
    with World(tmp_path) as world, world.mta(DOWN) as mta:
        source = mta.path / "drop" / "adopted"
        source.write_bytes(mta.message("adopted@down.test"))
        os.chown(source, NOBODY, NOBODY)
        inode = source.stat().st_ino
        source.rename(mta.spool / "pickup" / "adopted.eml")
        mta.wait_for(lambda: len(queued(mta, "down.test")) == 1)
        (status,) = queued(mta, "down.test")
        assert status.st_uid == 0
        assert status.st_ino == inode
        assert mta.audit()["balanced"]


def test_an_unprivileged_system_copies_what_it_may_read_and_leaves_alone_what_it_may_not(folder: Path) -> None:
    with World(folder) as world, as_nobody(world) as mta:
        assert os.stat(mta.spool / "queue").st_uid == NOBODY
        open_to_all(mta)

        path = give(mta, "readable", OTHER, 0o644, "readable@down.test")
        mta.wait_for(lambda: len(queued(mta, "down.test")) == 1)
        (status,) = queued(mta, "down.test")
        assert status.st_uid == NOBODY
        assert not path.exists()

        path = give(mta, "mine", NOBODY, 0o600, "mine@one.test")
        mta.wait_for(lambda: delivered(mta, "mine@one.test") == 1)

        path = give(mta, "secret", OTHER, 0o600, "secret@one.test")
        mta.wait_for_log("left alone 'secret.eml': Permission denied")
        for number in range(3):
            give(mta, f"more-{number}", OTHER, 0o644, f"more-{number}@one.test")
            mta.wait_for(lambda number=number: delivered(mta, f"more-{number}@one.test") == 1)
        assert path.exists()
        assert mta.log().count("'secret.eml'") == 1
        assert mta.status()["pickup"]["left_alone"] == 1

        path.chmod(0o644)  # mended by its owner
        mta.wait_for(lambda: delivered(mta, "secret@one.test") == 1)
        assert not path.exists()

        bad = give(mta, "bad", OTHER, 0o644, "", data=b"Subject: for nobody\n\n")
        mta.wait_for(lambda: (mta.spool / "bad" / "bad.reason").exists() and not bad.exists())
        assert mta.audit()["balanced"]
        assert mta.status()["pickup"]["restarts"] == 0
        assert "Traceback" not in mta.log()


def test_what_cannot_be_removed_after_copying_is_left_alone_and_not_sent_again_and_again(folder: Path) -> None:
    with World(folder) as world, as_nobody(world) as mta:
        os.chown(mta.spool / "pickup", 0, 0)
        (mta.spool / "pickup").chmod(0o1777)
        path = give(mta, "sticky", OTHER, 0o644, "sticky@one.test")
        mta.wait_for_log("left alone 'sticky.eml': it could be copied, but not removed")
        give(mta, "mine", NOBODY, 0o600, "mine@one.test")
        mta.wait_for(lambda: delivered(mta, "mine@one.test") == 1)
        assert path.exists()
        assert delivered(mta, "sticky@one.test") == 0
        assert mta.status()["pickup"]["restarts"] == 0
        os.chown(path, NOBODY, NOBODY)  # now it may be removed
        mta.wait_for(lambda: delivered(mta, "sticky@one.test") == 1)
        assert not path.exists()


def test_a_file_that_another_user_still_writes_in_place_is_not_taken_half(folder: Path) -> None:
    with World(folder) as world, as_nobody(world) as mta:
        open_to_all(mta)
        give(mta, "first", NOBODY, 0o600, "first@one.test")
        mta.wait_for(lambda: delivered(mta, "first@one.test") == 1)
        path = mta.spool / "pickup" / "slow.eml"
        data = mta.message("slow@one.test", body="one\n" * 1000)
        with open(path, "wb", buffering=0) as file:
            os.fchown(file.fileno(), OTHER, OTHER)
            os.fchmod(file.fileno(), 0o644)
            file.write(data[:1000])
            number = 0
            # Quiet for more than the two seconds that would do if it were closed.
            while os.stat(path).st_ctime > time.time() - 3.0:
                number += 1
                give(mta, f"other-{number}", NOBODY, 0o600, f"other-{number}@one.test")
                mta.wait_for(lambda number=number: delivered(mta, f"other-{number}@one.test") == 1)
                assert path.exists(), "taken half"
            file.write(data[1000:])
        mta.wait_for(lambda: delivered(mta, "slow@one.test") == 1)
        (line,) = [line for line in world.received() if line["recipients"] == ["slow@one.test"]]
        header = data[data.index(b"From: ") :]
        assert line["size"] == len(header) + header.count(b"\n")


def test_with_copy_never_a_file_of_another_owner_is_left_alone(folder: Path) -> None:
    with World(folder) as world, as_nobody(world, '[pickup]\ncopy = "never"\n') as mta:
        open_to_all(mta)
        path = give(mta, "never", OTHER, 0o644, "never@one.test")
        mta.wait_for_log("left alone 'never.eml': it belongs to another user, and copy is \"never\"")
        give(mta, "mine", NOBODY, 0o600, "mine@one.test")
        mta.wait_for(lambda: delivered(mta, "mine@one.test") == 1)
        assert path.exists()
        assert delivered(mta, "never@one.test") == 0
        os.chown(path, NOBODY, NOBODY)  # given to us
        mta.wait_for(lambda: delivered(mta, "never@one.test") == 1)
        assert mta.audit()["balanced"]


def test_with_copy_always_our_own_file_is_copied_too(tmp_path: Path) -> None:
    with World(tmp_path) as world, world.mta(DOWN + '[pickup]\ncopy = "always"\n') as mta:
        source = mta.path / "drop" / "held-open"
        source.write_bytes(mta.message("always@down.test"))
        with open(source, "rb") as held:  # keeps the inode from being used again
            source.rename(mta.spool / "pickup" / "always.eml")
            mta.wait_for(lambda: len(queued(mta, "down.test")) == 1)
            (status,) = queued(mta, "down.test")
            assert status.st_ino != os.fstat(held.fileno()).st_ino
            assert os.fstat(held.fileno()).st_nlink == 0
        assert mta.audit()["balanced"]
