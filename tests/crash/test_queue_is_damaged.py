"""Queue files that are damaged in every way a disk or a person may do it, in one running system: each is put aside with
a reason, everything else is delivered, and the books balance. The seed is printed; give it as SPOOLMTA_CRASH_SEED."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mta import World
from tests.support.torture import tell

Damage = Callable[[Path, random.Random], None]


def truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def empty(path: Path, _: random.Random) -> None:
    os.truncate(path, 0)


def lengthen(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * chance.choice((1, 4096, 2 << 20)))


def zero(path: Path, chance: random.Random) -> None:
    """As a lost block reads."""
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data))
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)


def make_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def make_full_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("in the way")


def make_symlink(path: Path, _: random.Random) -> None:
    aside = path.parents[4] / "aside"
    aside.mkdir(exist_ok=True)
    path.symlink_to(shutil.move(path, aside))


def make_dangling_symlink(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def make_fifo(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


WAYS: tuple[Damage, ...] = (
    truncate,
    truncate,
    flip,
    flip,
    flip,
    empty,
    lengthen,
    zero,
    make_folder,
    make_full_folder,
    make_symlink,
    make_dangling_symlink,
    make_fifo,
)


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.torture)])
def test_damaged_files_are_put_aside_and_all_others_are_delivered(tmp_path: Path, count: int) -> None:
    seed = int(os.environ.get("SPOOLMTA_CRASH_SEED", random.randrange(10**9)))
    print(f"SPOOLMTA_CRASH_SEED={seed}")
    chance = random.Random(seed)
    total = 2 * count * len(WAYS)
    with World(tmp_path) as world, world.mta() as mta:
        mta.command("queue", "pause", "*/default")
        sizes = [chance.choice((0, 100, 5000, 1_500_000 if number % 40 == 0 else 300)) for number in range(total)]
        for number, size in enumerate(sizes):
            mta.drop(f"n{number}@d{number % 7}.test", test_id=f"n{number}", body="text\n" * (size // 5))
        mta.wait_for(lambda: mta.count("r") == total, 60)
        entries = mta.entries()
        assert len(entries) == total
        chance.shuffle(entries)
        for number, path in enumerate(entries[: total // 2]):
            WAYS[number % len(WAYS)](path, chance)
        mta.command("queue", "resume", "*/default")
        mta.wait_for(lambda: mta.count("d") == total // 2, 60)
        mta.wait_for(lambda: mta.audit()["quarantined"] == total // 2, 60)
        mta.wait_for(lambda: len(list((mta.spool / "corrupt").glob("*.reason"))) == total // 2)
        audit = mta.audit()
        told = f"{audit['delivered']} delivered, {audit['quarantined']} put aside"
        tell(f"{total} queue files, every other one damaged", f"{total // 2} and {total // 2}", told)
        assert audit["balanced"], audit
        assert (audit["accepted"], audit["delivered"], audit["queued"]) == (total, total // 2, 0)
        assert len(world.received()) == len({line["test_id"] for line in world.received()}) == total // 2
        names = {path.name for path in (mta.spool / "corrupt").iterdir()}
        reasons = {name for name in names if name.endswith(".reason")}
        assert len(reasons) == total // 2
        assert {f"{name}.reason" for name in names - reasons} == reasons
        assert all((mta.spool / "corrupt" / reason).read_text().startswith("default/d") for reason in reasons)
        assert not mta.rows("b", "t")
        assert mta.vmta("default")["restarts"] == 0
        assert "Traceback" not in mta.log()
