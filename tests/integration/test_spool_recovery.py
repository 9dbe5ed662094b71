"""The intake process dies at every step of its order; the next one carries on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spoolmta.model import Outcome
from spoolmta.spool import intake
from spoolmta.spool.intake import Acceptor, Ids
from spoolmta.spool.partition import NotReady
from tests.support import spool_kit
from tests.support.spool_kit import Spool, deliver, reap

DIES = """
import os, signal
import msgspec
from spoolmta import disk, entry
from spoolmta.spool import intake
from tests.support.spool_kit import Spool
root, step, *recipients = sys.argv[1:]
spool = Spool(root)

def reached(name):
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)

acceptor = intake.Acceptor(spool.layout, "pickup")
reached("locked")
claimed = spool.claim(acceptor, *recipients)
reached("claimed")
acceptor.journal.append(intake.journal_lines([claimed]))
reached("journalled")
acceptor.committer.sync()
reached("synced")
path = f"{acceptor.incoming.path}/{claimed.file}"
if step == "one link made":
    domain, count = next(iter(claimed.domains.items()))
    file = entry.format_name(msgspec.structs.replace(claimed.name, recipients=count, vmta=""))
    intake.put(disk.link, path, f"{spool.layout.queue}/one/{domain}/new/{file}")
if step == "all links made":
    os.link(path, root + "/held")
    acceptor.incoming.enqueue(claimed)
    os.rename(root + "/held", path)
reached("one link made")
reached("all links made")
acceptor.incoming.enqueue(claimed)
reached("enqueued")
"""
MANY = ("u@a.test", "v@a.test", "w@b.test")


def die(spool: Spool, step: str, *recipients: str) -> None:
    with spool_kit.run(DIES, str(spool.root), step, *recipients) as process:
        assert process.wait(timeout=30) == -9


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.mark.parametrize(
    ("step", "recipients", "accepted"),
    [(step, MANY, step not in ("locked", "claimed"))
     for step in ("locked", "claimed", "journalled", "synced", "one link made", "all links made", "enqueued")]
    + [(step, ("u@a.test",), step != "claimed") for step in ("claimed", "journalled", "synced", "enqueued")],
)  # fmt: skip
def test_what_was_claimed_is_queued_once(spool: Spool, step: str, recipients: tuple[str, ...], accepted: bool) -> None:
    die(spool, step, *recipients)
    before = len(recipients) if accepted else 0
    spool.check_balance(before, queued=before)
    with spool.partition() as one:
        for domain, name, _ in list(one.scan()):
            if step != "enqueued":
                with pytest.raises(NotReady):
                    one.load(domain, name)
    found, quarantined = spool.recover()
    assert (found, quarantined) == (int(step not in ("locked", "enqueued")), [])
    after = 0 if step == "locked" else len(recipients)
    spool.check_balance(after, queued=after)
    assert len(spool.queued()) == (0 if step == "locked" else len({r.partition("@")[2] for r in recipients}))
    assert len({path.stat().st_ino for path in spool.queued()}) <= 1
    assert spool.files("pickup") == []
    assert spool.recover() == (0, [])
    assert list((spool.root / "incoming").iterdir()) == []
    with spool.partition() as one:
        for domain, name, _ in list(one.scan()):
            deliver(one, domain, name, one.load(domain, name))
        reap(one)
    spool.check_balance(after, delivered=after)


def test_a_recovery_that_dies_itself_is_done_again_without_a_second_copy(spool: Spool) -> None:
    for recipients in (MANY, ("x@c.test",)):
        die(spool, "claimed", *recipients)
    acceptor = Acceptor(spool.layout, "pickup")
    found, _, locks = acceptor.recover()
    assert len(found) == 2
    intake.enqueue(spool.layout, *found[0])
    acceptor.close()
    for lock in locks:
        os.close(lock)
    spool.check_balance(4, queued=4)
    assert spool.recover() == (1, [])
    assert len(spool.queued()) == 3
    spool.check_balance(4, queued=4)


def test_the_folder_of_a_dead_process_with_our_own_number_is_recovered(spool: Spool) -> None:
    die(spool, "synced", "u@a.test")
    (folder,) = (spool.root / "incoming").iterdir()
    folder.rename(folder.parent / f"pickup.{os.getpid()}")
    assert spool.recover() == (1, [])
    spool.check_balance(1, queued=1)


def test_a_living_process_keeps_its_folder(spool: Spool) -> None:
    living = Acceptor(spool.layout, "listener")
    claimed = spool.claim(living, "u@a.test")
    assert spool.recover() == (0, [])
    living.begin([claimed])
    living.finish()
    living.incoming.enqueue(claimed)
    living.close()
    spool.check_balance(1, queued=1)


@pytest.mark.parametrize("step", ["claimed", "synced"])
def test_a_damaged_claim_is_quarantined_and_half_a_copy_is_removed(spool: Spool, step: str) -> None:
    die(spool, step, *MANY)
    (path,) = spool.files("incoming")
    path.write_bytes(path.read_bytes()[:-3])
    (path.parent / ".tmp.half").write_bytes(b"x-sender")
    (path.parent / "folder").mkdir()
    found, quarantined = spool.recover()
    assert found == 0
    assert sorted(quarantined) == sorted([path.name, "folder"])
    assert list((spool.root / "incoming").iterdir()) == []
    assert (spool.root / "corrupt" / path.name).exists()
    count = 3 if step == "synced" else 0
    spool.check_balance(count, quarantined=count)


def test_a_written_copy_is_whole_before_it_has_its_name(spool: Spool) -> None:
    acceptor = Acceptor(spool.layout, "pickup")
    claimed = spool.claim(acceptor, "u@a.test")
    path = Path(acceptor.incoming.path, claimed.file)
    data = path.read_bytes()
    path.unlink()
    acceptor.incoming.write(data, claimed)
    assert path.read_bytes() == data
    assert len(list(path.parent.iterdir())) == 1
    acceptor.begin([claimed])
    acceptor.finish()
    acceptor.incoming.enqueue(claimed)
    assert acceptor.incoming.is_empty()
    acceptor.close()


def test_a_file_somebody_else_took_is_not_claimed(spool: Spool) -> None:
    acceptor = Acceptor(spool.layout, "pickup")
    claimed = spool.claim(acceptor, "u@a.test")
    assert not acceptor.incoming.claim(str(spool.root / "pickup" / "none.eml"), claimed)
    acceptor.close()


def test_the_intake_journal_is_compacted_without_losing_a_count(spool: Spool) -> None:
    spool.take(*MANY)
    die(spool, "synced", "u@a.test")
    acceptor = Acceptor(spool.layout, "pickup")
    acceptor.journal.compact(intake.claimed_ids(spool.layout))
    acceptor.close()
    text = (spool.root / "journal" / "pickup.0.log").read_text()
    assert text.startswith("T A=3\n")
    assert text.count("\n") == 2
    spool.check_balance(4, queued=4)
    assert spool.recover() == (1, [])
    spool.check_balance(4, queued=4)


@pytest.mark.parametrize("name", ["order.eml", "x" * 250 + ".eml", "\udcff.eml", "with space.eml"])
def test_a_refused_file_is_kept_whole_with_its_reason(spool: Spool, name: str) -> None:
    kept = []
    for number in range(3):
        path = spool.root / "pickup" / name
        path.write_bytes(b"%d" % number)
        kept.append(intake.refuse(spool.layout, str(path), f"reason {number}", Ids("node")))
        assert not path.exists()
    assert len(set(kept)) == 3
    assert (kept[0] == name) == (len(name) < 250)
    for number, name_there in enumerate(kept):
        assert (spool.root / "bad" / name_there).read_bytes() == b"%d" % number
        reason = spool.root / "bad" / name_there.replace(".eml", ".reason")
        assert reason.read_text() == f"reason {number}\n"


def test_a_file_that_cannot_be_moved_leaves_no_reason_behind(spool: Spool) -> None:
    with pytest.raises(FileNotFoundError):
        intake.refuse(spool.layout, str(spool.root / "pickup" / "none.eml"), "reason", Ids("node"))
    assert spool.files("bad") == []


def test_outcomes_are_counted_each_for_itself(spool: Spool) -> None:
    for number in range(4):
        spool.take(f"u{number}@a.test")
    with spool.partition() as one:
        outcomes = (Outcome.DELIVERED, Outcome.BOUNCED, Outcome.EXPIRED, Outcome.DELETED)
        for (domain, name, _), outcome in zip(list(one.scan()), outcomes, strict=True):
            deliver(one, domain, name, one.load(domain, name), outcome)
        reap(one)
        spool.check_balance(4, delivered=1, bounced=1, expired=1, deleted=1)
        one._journal.compact(set())
    spool.check_balance(4, delivered=1, bounced=1, expired=1, deleted=1)
