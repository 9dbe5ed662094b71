"""A file that may not be finished is waited for; one that was renamed into the folder is taken at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spoolmta.arrivals import QUIET, Folder
from spoolmta.model import Source
from spoolmta.pickup import GRACE
from tests.support.mta import Mta, World
from tests.support.torture import tell


class System:
    """A running system, and what it did with one recipient."""

    def __init__(self, world: World, mta: Mta) -> None:
        self.world, self.mta = world, mta
        self.pickup = mta.spool / "pickup"

    def was_delivered(self, recipient: str) -> bool:
        return any(row["rcpt"] == recipient for row in self.mta.rows("d"))

    def sizes(self, recipient: str) -> list[int]:
        """The size of each message the receiver got for it."""
        return [line["size"] for line in self.world.received() if line["recipients"] == [recipient]]

    def stays(self, path: Path, seconds: float) -> None:
        """Watch that the file is not taken for so long, while others come and go."""
        number = 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            number += 1
            recipient = f"{path.stem}-{number}@others.test"
            self.mta.drop(recipient)
            self.mta.wait_for(lambda recipient=recipient: self.was_delivered(recipient))
            assert path.exists(), self.mta.log()
        assert number > 0

    def is_taken(self, path: Path, seconds: float = 8.0) -> float:
        """Wait until the file is gone from the folder; when that was."""
        self.mta.wait_for(lambda: not path.exists(), seconds)
        return time.monotonic()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with World(tmp_path_factory.mktemp("whole")) as world, world.mta() as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        yield System(world, mta)
        mta.wait_for(lambda: mta.count("d") == mta.count("r"))
        assert mta.audit()["balanced"]
        assert "Traceback" not in mta.log()


def test_the_grace_counts_from_when_the_last_change_was_first_seen(tmp_path: Path) -> None:
    folder = Folder(Source(name="pickup", pickup=str(tmp_path)))
    assert folder.waited("old.eml", 1000.0, 5000.0) == 0.0
    assert folder.waited("old.eml", 1000.0, 5059.0) == 59.0
    assert folder.waited("old.eml", 5058.0, 5059.0) == 0.0
    assert folder.waited("old.eml", 5058.0, 5059.0 + GRACE) == GRACE
    assert folder.waited("new.eml", 5000.0, 5060.0) == 0.0


def test_what_is_gone_from_the_folder_begins_its_grace_anew(tmp_path: Path) -> None:
    folder = Folder(Source(name="pickup", pickup=str(tmp_path)))
    (tmp_path / "a.eml").touch()
    assert folder.scan(1000.0) == ["a.eml"]
    folder.waited("a.eml", 0.0, 1000.0)
    (tmp_path / "a.eml").unlink()
    assert folder.scan(1010.0) == []
    assert folder.waited("a.eml", 0.0, 1050.0) == 0.0


def test_a_renamed_file_is_taken_at_once(system: System) -> None:
    began = time.monotonic()
    path = system.mta.drop("renamed@one.test")
    assert system.is_taken(path) - began < QUIET / 2
    system.mta.wait_for(lambda: system.was_delivered("renamed@one.test"))


def test_a_file_renamed_from_a_temporary_name_in_the_folder_is_taken_at_once(system: System) -> None:
    for temporary in (".dot.eml.tmp", "dot.tmp", ".dot.eml"):
        began = time.monotonic()
        (system.pickup / temporary).write_bytes(system.mta.message(f"{temporary}@one.test".lstrip(".")))
        (system.pickup / temporary).rename(system.pickup / "dot.eml")
        assert system.is_taken(system.pickup / "dot.eml") - began < QUIET / 2


def test_a_file_written_in_place_is_taken_once_whole_when_it_is_closed_and_quiet(system: System) -> None:
    path = system.pickup / "in-place.eml"
    data = system.mta.message("in-place@one.test", body="one\n" * 1000)
    with open(path, "wb", buffering=0) as file:
        file.write(data[:2000])
        system.stays(path, QUIET + 0.7)
        file.write(data[2000:])
    closed = time.monotonic()
    assert system.is_taken(path) - closed > QUIET - 0.1
    system.mta.wait_for(lambda: system.was_delivered("in-place@one.test"))
    header = data[data.index(b"From: ") :]
    assert system.sizes("in-place@one.test") == [len(header) + header.count(b"\n") + 2 * (header[-1:] != b"\n")]


def test_a_file_that_is_appended_to_within_two_seconds_is_taken_once_whole(system: System) -> None:
    path = system.pickup / "appended.eml"
    data = system.mta.message("appended@one.test", body="one\n")
    path.write_bytes(data)
    closed = time.time()
    system.stays(path, 1.0)
    with open(path, "ab") as file:
        assert time.time() - closed < QUIET
        file.write(b"two\n" * 1000)
    closed = time.monotonic()
    assert system.is_taken(path) - closed > QUIET - 0.1
    system.mta.wait_for(lambda: system.was_delivered("appended@one.test"))
    header = data[data.index(b"From: ") :] + b"two\n" * 1000
    assert system.sizes("appended@one.test") == [len(header) + header.count(b"\n")]


@pytest.mark.parametrize("moved", [-86400.0, 86400.0], ids=["past", "future"])
def test_a_file_copied_in_place_with_another_time_is_taken_when_it_is_quiet(system: System, moved: float) -> None:
    path = system.pickup / f"dated{moved:.0f}.eml"
    path.write_bytes(system.mta.message(f"dated{moved:.0f}@one.test"))
    os.utime(path, (time.time() + moved,) * 2)
    closed = time.monotonic()
    assert system.is_taken(path) - closed > QUIET - 0.1


def second_link(system: System, path: Path) -> Callable[[], None]:
    other = system.mta.path / "drop" / "other-link"
    other.write_bytes(system.mta.message("second-link@one.test"))
    os.link(other, path)
    return other.unlink


def open_for_writing(system: System, path: Path) -> Callable[[], None]:
    source = system.mta.path / "drop" / "still-open"
    file = open(source, "wb", buffering=0)
    file.write(system.mta.message("open@one.test")[:50])
    source.rename(path)

    def finish() -> None:
        file.write(system.mta.message("open@one.test")[50:])
        file.close()

    return finish


def empty(system: System, path: Path) -> Callable[[], None]:
    source = system.mta.path / "drop" / "empty"
    source.touch()
    source.rename(path)

    def fill() -> None:
        path.write_bytes(system.mta.message("empty@one.test"))

    return fill


TROUBLES = {"second-link": second_link, "open": open_for_writing, "empty": empty}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_within_the_grace_it_is_not_taken_and_once_the_trouble_is_gone_it_is(system: System, trouble: str) -> None:
    path = system.pickup / f"{trouble}.eml"
    mend = TROUBLES[trouble](system, path)
    system.stays(path, 1.5)
    mend()
    system.is_taken(path)
    recipient = f"{trouble}@one.test"
    system.mta.wait_for(lambda: system.was_delivered(recipient))
    assert len(system.sizes(recipient)) == 1
    assert not list((system.mta.spool / "bad").iterdir())


@pytest.mark.torture
def test_after_a_minute_a_second_link_is_copied_and_the_others_are_refused(system: System) -> None:
    link, still_open, nothing = (system.pickup / f"minute-{name}.eml" for name in TROUBLES)
    other = system.mta.path / "drop" / "minute"
    other.write_bytes(system.mta.message("minute@one.test"))
    os.link(other, link)
    os.utime(other, (time.time() + 86400,) * 2)
    empty(system, nothing)
    source = system.mta.path / "drop" / "minute-open"
    bad = system.mta.spool / "bad"
    with open(source, "wb", buffering=0) as file:
        file.write(b"half")
        source.rename(still_open)
        system.stays(link, GRACE - 5.0)
        assert still_open.exists()
        assert nothing.exists()
        system.is_taken(link, 15.0)
        system.mta.wait_for(lambda: system.was_delivered("minute@one.test"))
        assert other.read_bytes() == system.mta.message("minute@one.test")
        system.mta.wait_for(lambda: (bad / nothing.name).exists() and (bad / still_open.name).exists())
        assert (bad / nothing.name).with_suffix(".reason").read_text() == "is empty\n"
        reason = (bad / still_open.name).with_suffix(".reason").read_text()
        assert reason == "is still open for writing after 60 seconds\n"
    tell("files that are not whole after a minute", "copied or refused", "1 copied, 2 refused")
    for path in bad.iterdir():
        path.unlink()
