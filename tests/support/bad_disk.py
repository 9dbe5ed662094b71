"""A spool on a disk that can be made to fail: an ext4 image in a small tmpfs, mounted where the spool is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.mta import Mta
from tests.support.spool_kit import fill

IMAGE_BYTES = 48 << 20
STORE_BYTES = 128 << 20


class BadDisk:
    """Mounted at `folder` for as long as the block lasts; the test is skipped where that cannot be. With a `journal` of
    its own the filesystem becomes read-only with the first failed write; without one it goes on."""

    def __init__(self, path: Path, folder: Path, *, journal: bool = True) -> None:
        self._store, self.folder, self._journal = path / "store", folder, journal

    @property
    def _image(self) -> Path:
        return self._store / "disk"

    def __enter__(self) -> BadDisk:
        if os.geteuid() != 0:
            pytest.skip("a disk that fails is simulated with a mounted filesystem image: this needs root")
        missing = [
            name for name in ("mkfs.ext4", "e2fsck", "dumpe2fs") if shutil.which(name, path="/usr/sbin:/sbin") is None
        ]
        if missing:
            pytest.skip(f"a disk that fails cannot be simulated without {' and '.join(missing)}")
        self._store.mkdir()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run("mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", self._store)
        self._make_image()
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()
        subprocess.run(["umount", "--lazy", self._store], check=False)

    def _make_image(self) -> None:
        """Only blocks that are free have no room in the store yet: what the filesystem itself needs can be written."""
        sparse = self._store / "sparse"
        kind = () if self._journal else ("-O", "^has_journal")
        self._run("mkfs.ext4", "-q", "-F", *kind, sparse, f"{IMAGE_BYTES >> 10}K")
        self._run("cp", "--sparse=never", sparse, self._image)
        sparse.unlink()
        told = subprocess.run(["dumpe2fs", self._image], capture_output=True, text=True, check=True).stdout
        size = int(re.findall(r"^Block size: +([0-9]+)", told, re.MULTILINE)[0])
        for line in re.findall(r"^  Free blocks: (.+)", told, re.MULTILINE):
            for first, last in re.findall(r"([0-9]+)-([0-9]+)", line):
                length = (int(last) - int(first) + 1) * size
                self._run("fallocate", "-p", "-o", int(first) * size, "-l", length, self._image)

    def mount(self) -> None:
        self._run(
            "mount",
            "-o",
            f"loop,noatime,errors={'remount-ro' if self._journal else 'continue'}",
            self._image,
            self.folder,
        )

    def unmount(self) -> None:
        for _ in range(200):
            done = subprocess.run(["umount", self.folder], capture_output=True, text=True, check=False)
            if done.returncode == 0 or "not mounted" in done.stderr:
                return
            time.sleep(0.02)
        subprocess.run(["umount", "--lazy", self.folder], check=False)

    def repair(self) -> None:
        """What an operator does: unmount, check, mount."""
        self.unmount()
        subprocess.run(["e2fsck", "-f", "-y", self._image], capture_output=True, check=False)
        self.mount()

    def make_read_only(self) -> None:
        """The kernel finds an error in the filesystem, and lets nobody write any more."""
        source = subprocess.run(
            ["findmnt", "-n", "-o", "SOURCE", self.folder], capture_output=True, text=True, check=True
        )
        trigger = Path("/sys/fs/ext4") / Path(source.stdout.strip()).name / "trigger_fs_error"
        try:
            trigger.write_text("a test\n")
        except OSError as error:
            pytest.skip(f"this kernel raises no error of a filesystem on demand: {error.strerror}")

    def fail_new_blocks(self) -> None:
        """The device fails with every block that was not written before: a sync reports that it failed."""
        for _ in range(3):  # a tmpfs counts for each processor by itself, and finds room again
            fill(self._store)

    def mend(self) -> None:
        (self._store / "filler").unlink()

    def _run(self, *command: object) -> None:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no disk that fails can be made here: {command[0]}: {done.stderr.strip()}")


def place(mta: Mta, folder: Path, *recipients: str, body: str = "") -> Path:
    """Drop without the harness's rename, which cannot cross filesystems."""
    hidden = folder / f"{recipients[0]}.new"
    hidden.write_bytes(mta.message(*recipients, body=body))
    return hidden.rename(folder / f"{recipients[0]}.eml")
