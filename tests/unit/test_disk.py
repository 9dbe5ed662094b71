from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spoolmta import disk
from spoolmta.disk import AppendFile


def test_rename_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        disk.rename(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "a").read_text() == "a"
    assert (tmp_path / "b").read_text() == "b"


def test_rename_onto_a_link_of_the_same_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    disk.link(str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(FileExistsError):
        disk.rename(str(tmp_path / "a"), str(tmp_path / "b"))


def test_rename_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        disk.rename(str(tmp_path / "none"), str(tmp_path / "b"))


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    disk.remove(str(tmp_path / "none"))


def test_a_new_file_is_not_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "a"
    disk.write_new(str(path), b"one")
    with pytest.raises(FileExistsError):
        disk.write_new(str(path), b"two")
    assert path.read_bytes() == b"one"


def test_a_replaced_file_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for data in (b"one", b"two" * 10000):
        disk.replace(str(path), data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["state"]


def test_a_sync_says_when_it_began(tmp_path: Path) -> None:
    committer = disk.Committer(str(tmp_path))
    first, second = committer.sync(), committer.sync()
    committer.close()
    assert 0 < first < second


def test_a_folder_has_one_lock(tmp_path: Path) -> None:
    lock = disk.lock_folder(str(tmp_path))
    assert lock is not None
    assert disk.lock_folder(str(tmp_path)) is None
    os.close(lock)
    again = disk.lock_folder(str(tmp_path))
    assert again is not None
    os.close(again)


HOLDER = """
import sys; sys.path.insert(0, sys.argv[1])
from spoolmta import disk
assert isinstance(disk.lock_process(sys.argv[2]), int)
print("locked", flush=True)
sys.stdin.read()
"""


def test_the_process_lock_tells_who_holds_it_and_asking_does_not_take_it(tmp_path: Path) -> None:
    path, root = str(tmp_path / "lock"), str(Path(disk.__file__).parents[1])
    assert not disk.is_locked(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, root, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert disk.is_locked(path)
        assert disk.lock_process(path) == str(holder.pid)
        holder.kill()
    assert not disk.is_locked(path)
    lock = disk.lock_process(path)
    assert isinstance(lock, int)
    os.close(lock)


def test_a_file_open_for_writing_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    reader = os.open(path, disk.GUARDED)
    assert not disk.is_open_for_writing(reader)
    os.close(reader)
    with path.open("a"):
        reader = os.open(path, disk.GUARDED)
        assert disk.is_open_for_writing(reader)
        os.close(reader)


def test_a_guarded_open_follows_no_symlink_and_does_not_hang_on_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="symbolic"):
        os.open(tmp_path / "link", disk.GUARDED)
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path / "fifo", disk.GUARDED)
    assert not disk.is_regular(os.fstat(descriptor))
    os.close(descriptor)


@pytest.mark.parametrize("tail", ["", "half", "\0" * 5000, "x" * 10000])
def test_a_partial_last_line_is_cut_off_and_nothing_else(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "log"
    whole = "a line\n" * 3
    path.write_text(whole + tail)
    file = AppendFile(str(path))
    file.cut_partial_line()
    file.append(b"next\n")
    file.close()
    assert path.read_text() == whole + "next\n"


def test_a_file_without_any_whole_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x" * 9000)
    file = AppendFile(str(path))
    file.cut_partial_line()
    assert file.size == 0
    file.close()


def test_reserved_space_does_not_show_in_the_length(tmp_path: Path) -> None:
    file = AppendFile(str(tmp_path / "log"), reserve=1 << 20)
    file.append(b"line\n")
    file.sync()
    assert file.size == 5
    assert not file.has_rest
    reserved = (tmp_path / "log").stat().st_blocks * 512
    file.close()
    assert (tmp_path / "log").read_bytes() == b"line\n"
    if os.statvfs(tmp_path).f_files:
        assert reserved >= 1 << 20
        assert (tmp_path / "log").stat().st_blocks * 512 <= 8192  # given back


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files = [AppendFile(str(path), reserve=100, shared=True) for _ in range(2)]
    for number in range(500):
        files[number % 2].append(b"%d\n" % number)
    for file in files:
        file.close()
    assert path.read_text().split() == [str(number) for number in range(500)]


def test_free_room_is_counted_in_bytes_and_inodes(tmp_path: Path) -> None:
    space, inodes = disk.free(str(tmp_path))
    assert space > 0
    assert inodes > 0


def test_who_asks_for_writers_is_not_ended_by_one_who_comes_just_then(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    asking = "import os, sys\nfrom spoolmta import disk\nfile = os.open(sys.argv[1], os.O_RDONLY)\n"
    asking += "while not disk.has_writers(file) or os.path.getsize(file) < 3: pass"
    process = subprocess.Popen([sys.executable, "-c", asking, str(path)], cwd=Path(__file__).parents[2])
    try:
        told = 0
        while told < 5 and process.poll() is None:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except BlockingIOError:
                told += 1  # it holds the lease at this moment
        assert process.poll() is None
        with open(path, "wb") as file:
            file.write(b"xyz")
            file.flush()
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
