"""A copied file is taken once, whenever the intake process dies."""

from __future__ import annotations

import os
from pathlib import Path

from spoolmta import message
from spoolmta.spool.intake import Acceptor
from spoolmta.spool.layout import prepare

TEXT = b"x-sender: a@b.test\nx-receiver: c@d.test\n\nHello\n"


def abandon(acceptor: Acceptor) -> None:
    """What kill -9 leaves: the folder, unlocked."""
    acceptor.journal.close()
    acceptor.committer.close()
    os.close(acceptor.incoming._lock)


def copy_and_die(path: Path, *, synced: bool) -> tuple[Path, Acceptor]:
    layout = prepare(str(path))
    original = path / "pickup" / "one.eml"
    original.write_bytes(TEXT)
    acceptor = Acceptor(layout, "pickup")
    claimed = acceptor.incoming.describe(TEXT, message.parse(TEXT), "default", "pickup")
    acceptor.incoming.write(TEXT, claimed, str(original), original.stat())
    if synced:
        acceptor.begin([claimed])
        acceptor.finish()
    abandon(acceptor)
    return original, Acceptor(layout, "pickup")


def test_recovery_removes_the_original_of_a_copy_it_carries_on_with(tmp_path: Path) -> None:
    for synced in (False, True):
        spool = tmp_path / str(synced)
        spool.mkdir()
        original, successor = copy_and_die(spool, synced=synced)
        found, quarantined, locks = successor.recover()
        assert len(found) == 1
        assert not quarantined
        assert not original.exists()
        assert [name for name in os.listdir(os.path.dirname(found[0][0])) if name.startswith(".")] == []
        for lock in locks:
            os.close(lock)
        abandon(successor)


def test_another_file_of_the_same_name_is_not_taken_for_the_original(tmp_path: Path) -> None:
    original, successor = copy_and_die(tmp_path, synced=True)
    newer = tmp_path / "newer"
    newer.write_bytes(TEXT)
    newer.replace(original)
    found, _, locks = successor.recover()
    assert len(found) == 1
    assert original.exists()
    for lock in locks:
        os.close(lock)
    abandon(successor)


def test_recovery_writes_what_it_found_anew(tmp_path: Path) -> None:
    _, successor = copy_and_die(tmp_path, synced=False)
    folder = next(f for f in (tmp_path / "incoming").iterdir() if f.name != successor.incoming.name)
    (before,) = [f.stat().st_ino for f in folder.iterdir() if not f.name.startswith(".")]
    found, _, locks = successor.recover()
    assert os.stat(found[0][0]).st_ino != before
    assert Path(found[0][0]).read_bytes() == TEXT
    for lock in locks:
        os.close(lock)
    abandon(successor)
