"""A power cut, with the disk that was there at that moment: the spool lies on an ext4 or xfs image on a tmpfs;
everything is stopped, the image is copied under the mounted filesystem (what a disk would hold), everything is killed,
and the system starts on the copy. Nothing acknowledged is missing, only the last half second is delivered twice.

The same oracle must find a loss where a promise is broken on purpose: without the sync, and with removals that do not
wait for it. So the test can fail. Needs root, for the mount.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from spoolmta import disk, journal
from tests.support.crash import CrashMta, by_recipient, crash_seed
from tests.support.mta import BASE, World, wait_for
from tests.support.torture import tell

MEMORY = Path("/dev/shm")
IMAGE_BYTES = {"ext4": 64 << 20, "xfs": 300 << 20}
"""xfs does with no less."""
OPTIONS = {"ext4": "loop,noatime,commit=60", "xfs": "loop,noatime,nouuid"}
"""On ext4 nothing reaches the disk but by a sync (or after a minute). A copy of an xfs has the UUID of the first."""
ROUTE = """\
[domain."*"]
smtp-hosts = ["[{host}]:{port}"]
retry-after = ["1s"]
retry-recipients-after = ["4s"]
connection-idle-timeout = "1s"
[vmta.one]
"""
HALF_SECOND = 0.5
COPY = "copy"


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    """The image (`NAME.FILESYSTEM`) mounted for as long as the block lasts; a copy must be whole."""
    options = OPTIONS[image.suffix[1:]]
    done = subprocess.run(["mount", "-o", options, image, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or image.stem != COPY, done.stderr
    if done.returncode:
        pytest.skip(f"cannot mount a filesystem image here: {done.stderr.strip()}")
    try:
        yield
    finally:
        # A moment for killed processes to let go; then out of the way at any price. The loop device goes too.
        for _ in range(100):
            if subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.02)
        else:
            subprocess.run(["umount", "--lazy", folder], check=False)


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a power cut is simulated with a mounted filesystem image: this needs root")
    missing = [
        name
        for name in (f"mkfs.{request.param}", "mount", "umount")
        if shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") is None
    ]
    if missing or not MEMORY.is_dir():
        pytest.skip(f"a power cut cannot be simulated without {', '.join(missing) or MEMORY}")
    folder = MEMORY / f"spoolmta-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    try:
        yield folder / f"disk.{request.param}"
    finally:
        shutil.rmtree(folder)


def cut_power(image: Path, mta: CrashMta) -> tuple[Path, float]:
    """Stop everything, keep what the disk holds, kill everything: the copy of the disk, and when it was."""
    processes = mta.processes()
    for pid in processes.values():
        os.kill(pid, signal.SIGSTOP)
    moment = time.time()
    copy = image.with_stem(COPY)
    copy.unlink(missing_ok=True)
    while True:  # what the kernel was writing when all stopped, it goes on writing
        before = _written(image)
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
        if _written(image) == before:
            break
    for pid in processes.values():
        os.kill(pid, signal.SIGKILL)
    assert mta.process is not None
    mta.process.wait()
    mta.process = None
    wait_for(lambda: not any(_is_alive(pid) for pid in processes.values()), lambda: f"{processes} do not die")
    return copy, moment


def _written(image: Path) -> str:
    """The counters of the loop device of an image."""
    told = subprocess.run(["losetup", "-j", image, "-O", "NAME", "-n"], capture_output=True, text=True, check=True)
    return Path("/sys/block", Path(told.stdout.split()[0]).name, "stat").read_text()


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def somebody_syncs(mta: CrashMta) -> None:
    """Another program's fsync on this filesystem: it makes names and removals durable, other files' data not."""
    file = mta.path / "somebody's"
    file.write_text("something else")
    disk.sync_path(str(file))


class Scenario(NamedTuple):
    """What is done before the cut (giving who was acknowledged), and how it is reckoned after it."""

    config: str
    work: Callable[[CrashMta, World], set[str]]
    reckon: Callable[[CrashMta, World, set[str], float], list[str]]


def losses(path: Path, image: Path, scenario: Scenario, *mutations: str) -> list[str]:
    """What a power cut in the middle of work loses, or doubles against the promise."""
    filesystem = image.suffix[1:]
    image.unlink(missing_ok=True)  # whoever still has the last one open must not write into this
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES[filesystem])
    force = "-F" if filesystem == "ext4" else "-f"
    subprocess.run([f"mkfs.{filesystem}", "-q", force, image], check=True, capture_output=True)
    folder = path / "mta"
    folder.mkdir(parents=True)
    with World(path) as world:
        config = BASE.format(dns="", default_route=ROUTE.format(host=world.host, port=world.port), sleep_after="1m")
        config += scenario.config
        with mounted(image, folder):
            mta = CrashMta(folder, config)
            committer = disk.Committer(str(folder))
            committer.sync()
            committer.close()
            mta.mutations = mutations
            try:
                acknowledged = scenario.work(mta, world)
                copy, moment = cut_power(image, mta)
            finally:
                if mta.process is not None:
                    mta.process.kill()
                    mta.process.wait()
        with mounted(copy, folder), CrashMta(folder, config) as mta:
            return scenario.reckon(mta, world, acknowledged, moment)


def remains(mta: CrashMta) -> list[str]:
    """What lies in the spool, but for files in `pickup/` that the cut has emptied: nobody had taken those."""

    def is_emptied(path: str) -> bool:
        try:
            return path.startswith("pickup/") and os.path.getsize(mta.spool / path) == 0
        except FileNotFoundError:
            return False

    return [path for path in mta.left_over() if not is_emptied(path)]


def work(mta: CrashMta, world: World) -> set[str]:
    """Mail settled long before the cut, mail deferred over it, mail in its last half second; who was acknowledged."""
    mta.start()
    for number in range(30):
        mta.drop(f"early{number}@a.test", f"early{number}@b.test", vmta="one")
        mta.drop(f"once-451-deferred{number}@a.test", vmta="one")
    mta.wait_for(lambda: mta.count("d") == 60 and mta.count("t") == 30)
    time.sleep(2 * HALF_SECOND)  # so long that nothing of it may be doubled
    for number in range(60):
        mta.drop(f"late{number}@a.test", vmta="one")
    mta.wait_for(lambda: mta.count("r") == 150 and len(world.received()) >= 80)
    somebody_syncs(mta)
    return {row["rcpt"] for row in mta.rows("r")}


def reckon(mta: CrashMta, world: World, acknowledged: set[str], moment: float) -> list[str]:
    """Let the system finish on what the disk held, and compare."""
    mta.wait_for(lambda: all(path.startswith(("corrupt/", "bad/")) for path in remains(mta)))
    mta.stop()
    wrong = [f"damaged: {path}" for path in remains(mta)]
    delivered = by_recipient(world.received())
    rows = {row["rcpt"] for row in mta.rows("d")}
    settled = mta.settled()
    # The next process writes the journal anew where it finds something settled, and then only the balance is there.
    is_renewed = bool(journal.read(str(mta.spool / "journal" / "one.log")).totals)
    for address in sorted(acknowledged):
        copies = delivered.get(address, [])
        if not copies:
            wrong.append(f"lost: {address}")
        if address not in settled and not is_renewed:
            wrong.append(f"delivered, and not settled: {address}")
        # A sync writes one file after the other: a line that came while it was at it may be on the disk without the row
        # that was written before it. So the log, not the journal, may lack what was settled in the last half second.
        if address not in rows and not (copies and copies[-1].time >= moment - HALF_SECOND):
            wrong.append(f"delivered, and no row: {address}")
        if len(copies) > 1 and copies[0].time < moment - HALF_SECOND:
            wrong.append(f"twice, {moment - copies[0].time:.2f} s after it was settled: {address}")
    balance = mta.balance()
    if not balance.balanced:
        wrong.append(f"out of balance: {balance}")
    return wrong


def work_on_refusals(mta: CrashMta, world: World) -> set[str]:
    """Mail refused and reported long before the cut, and mail refused in its last moment, when the journal happens to
    be written to disk before anything else; the senders."""
    mta.start()
    for number in range(20):
        mta.drop(f"early{number}--550@a.test", sender=f"early{number}@home.test", vmta="one")
    mta.wait_for(lambda: len(world.received()) == 20)
    time.sleep(2 * HALF_SECOND)
    for number in range(60):
        mta.drop(f"late{number}--550@a.test", sender=f"late{number}@home.test", vmta="one")
    outbox = mta.spool / "queue" / "one" / ".dsn" / "new"
    mta.wait_for(lambda: outbox.exists() and len(os.listdir(outbox)) >= 20)
    senders = {row["orig"] for row in mta.rows("r")} - {""}
    disk.sync_path(str(mta.spool / "journal" / "one.log"))
    return senders


def reckon_reports(mta: CrashMta, world: World, senders: set[str], moment: float) -> list[str]:
    """Every sender of refused mail has one report; a second copy only of what came in the last half second."""
    mta.wait_for(lambda: all(path.startswith(("corrupt/", "bad/")) for path in remains(mta)))
    mta.stop()
    wrong = [f"damaged: {path}" for path in remains(mta)]
    delivered = by_recipient(world.received())
    for sender in sorted(senders):
        copies = delivered.get(sender, [])
        if not copies:
            wrong.append(f"never told: {sender}")
        if len(copies) > 2 or (len(copies) == 2 and copies[0].time < moment - HALF_SECOND):
            wrong.append(f"told {len(copies)} times: {sender}")
    balance = mta.balance()
    if not balance.balanced:
        wrong.append(f"out of balance: {balance}")
    return wrong


def work_until_any_moment(chance: random.Random) -> Callable[[CrashMta, World], set[str]]:
    """A stream of mail of all kinds, cut anywhere."""

    def work_on(mta: CrashMta, _: World) -> set[str]:
        mta.start()
        cut_at, number = time.monotonic() + chance.uniform(0.3, 4.0), 0
        while time.monotonic() < cut_at:
            number += 1
            mta.drop(f"n{number}@a.test", f"once-451-n{number}@b.test", f"n{number}@c.test", vmta="one")
            time.sleep(0.002)
        if chance.random() < 0.5:
            somebody_syncs(mta)
        return {row["rcpt"] for row in mta.rows("r")}

    return work_on


DELIVERIES = Scenario("", work, reckon)
REFUSALS = Scenario("[source.pickup]\nsuppress-local-dsn = false\n", work_on_refusals, reckon_reports)
on = partial(pytest.mark.parametrize, "image", indirect=True)
"""On which filesystem. What `make test` leaves out for the time it takes is in `make torture`."""
OTHER = partial(pytest.param, marks=pytest.mark.torture)
CUTS = 10


@on(argvalues=["ext4", OTHER("xfs")])
def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path, image: Path) -> None:
    found = losses(tmp_path, image, DELIVERIES)
    tell(f"a power cut among deliveries, {image.suffix[1:]}", "nothing lost", f"{len(found)} contradictions")
    assert found == []


@on(argvalues=[OTHER("ext4"), "xfs"])
def test_a_power_cut_loses_no_report(tmp_path: Path, image: Path) -> None:
    found = losses(tmp_path, image, REFUSALS)
    tell(f"a power cut among reports, {image.suffix[1:]}", "none lost", f"{len(found)} contradictions")
    assert found == []


@pytest.mark.torture
@on(argvalues=["ext4", "xfs"])
def test_power_cuts_at_any_moment_lose_nothing_acknowledged(tmp_path: Path, image: Path) -> None:
    chance = random.Random(seed := crash_seed())
    found: list[str] = []
    for number in range(CUTS):
        scenario = Scenario("", work_until_any_moment(chance), reckon)
        found += losses(tmp_path / str(number), image, scenario)
    tell(f"{CUTS} power cuts at any moment, {image.suffix[1:]}", "nothing lost", f"{len(found)} contradictions")
    assert found == [], f"SPOOLMTA_CRASH_SEED={seed}"


@pytest.mark.parametrize(
    ("scenario", "mutation", "image"),
    [
        (DELIVERIES, "no-sync", "ext4"),
        (DELIVERIES, "remove-before-sync", "xfs"),
        (REFUSALS, "settle-before-report", "ext4"),
        OTHER(DELIVERIES, "no-sync", "xfs"),
        OTHER(DELIVERIES, "remove-before-sync", "ext4"),
        OTHER(REFUSALS, "settle-before-report", "xfs"),
    ],
    indirect=["image"],
)
def test_the_oracle_finds_what_a_broken_promise_loses(
    tmp_path: Path, image: Path, scenario: Scenario, mutation: str
) -> None:
    for attempt in range(3):
        found = losses(tmp_path / str(attempt), image, scenario, mutation)
        if found:
            print(f"for example {found[0]} and {found[-1]}")
            tell(f"a power cut with {mutation}, {image.suffix[1:]}", ">= 1 contradiction", str(len(found)))
            return
    pytest.fail(f"three power cuts with the mutation {mutation}, and nothing was lost")
