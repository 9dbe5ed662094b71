"""A VMTA's part of the queue, worked on without a network: found, loaded, deferred, settled, removed, quarantined."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from spoolmta import entry
from spoolmta.errors import SpoolError
from spoolmta.model import Outcome
from spoolmta.spool.intake import Acceptor
from spoolmta.spool.partition import Gone, NotReady, Partition
from tests.support.spool_kit import Spool, deliver, reap


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_a_message_is_found_once_loaded_delivered_and_removed(spool: Spool) -> None:
    (hint,) = spool.take("u@a.test")
    spool.check_balance(1, queued=1)
    with spool.partition() as one:
        ((domain, name, due),) = one.scan()
        assert (f"{domain}/new/{name}", due) == (hint, 0)
        assert list(one.scan()) == []
        assert one.add(domain, name) is None
        loaded = one.load(domain, name)
        assert [r.address for r in loaded.recipients] == ["u@a.test"]
        deliver(one, domain, name, loaded)
        assert reap(one) == 1
        assert one.known == 0
    assert spool.queued() == []
    spool.check_balance(1, delivered=1)


def test_an_entry_is_removed_only_by_a_sync_that_began_after_its_line_was_written(spool: Spool) -> None:
    spool.take("u@a.test")
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        deliver(one, domain, name, one.load(domain, name))
        assert one.reap(time.monotonic_ns()) == 0  # nothing is written yet
        before = time.monotonic_ns()
        one.flush()
        assert one.reap(before) == 0
        assert len(spool.queued()) == 1
        assert one.waiting_since is not None
        spool.check_balance(1, delivered=1, queued=0)
        assert one.reap(time.monotonic_ns()) == 1
    assert spool.queued() == []


def test_a_deferred_entry_says_its_attempts_and_due_time_in_its_name(spool: Spool) -> None:
    spool.take("u@a.test")
    names: list[str] = []
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        one.defer(domain, name, 2_000_000_000, [], names.append)
        one.defer(domain, names[0], 2_000_000_100, [], names.append)
    assert entry.state(names[1]) == (2, 2_000_000_100)
    with spool.partition() as one:
        assert list(one.scan()) == [(domain, names[1], 2_000_000_100)]
        assert one.load(domain, names[1]).name.attempts == 2
    spool.check_balance(1, queued=1)


def test_settled_recipients_are_not_offered_again_after_a_crash_or_a_deferral(spool: Spool) -> None:
    addresses = [f"u{number}@a.test" for number in range(4)]
    spool.take(*addresses)
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        loaded = one.load(domain, name)
        one.settle(loaded, loaded.recipients[1], Outcome.DELIVERED)
        one.flush()
    spool.check_balance(4, delivered=1, queued=3)
    names: list[str] = []
    with spool.partition() as one:  # died before the entry could be renamed
        ((domain, name, due),) = one.scan()
        one.forget_settled()
        assert due == 0
        loaded = one.load(domain, name)
        assert [r.address for r in loaded.recipients] == [addresses[0], *addresses[2:]]
        one.settle(loaded, loaded.recipients[0], Outcome.BOUNCED)
        one.defer(domain, name, 2_000_000_000, [loaded.recipients[0]], names.append)
        assert names == []
        assert [r.address for r in one.load(domain, name).recipients] == addresses[2:]
        reap(one)
        assert [r.address for r in one.load(domain, names[0]).recipients] == addresses[2:]
        one._journal.compact(one._settled.keys())
    spool.check_balance(4, delivered=1, bounced=1, queued=2)
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        one.forget_settled()
        deliver(one, domain, name, one.load(domain, name))
        reap(one)
    assert spool.queued() == []
    spool.check_balance(4, delivered=3, bounced=1)


def test_what_is_settled_in_one_domain_is_not_forgotten_when_another_is_done(spool: Spool) -> None:
    spool.take("x@a.test", "u@b.test", "v@b.test")
    names: list[str] = []
    with spool.partition() as one:
        (_, first, _), (_, second, _) = one.scan()
        loaded = one.load("b.test", second)
        one.settle(loaded, loaded.recipients[0], Outcome.DELIVERED)
        one.defer("b.test", second, 2_000_000_000, loaded.recipients[:1], names.append)
        deliver(one, "a.test", first, one.load("a.test", first))
        reap(one)
        assert [r.address for r in one.load("b.test", names[0]).recipients] == ["v@b.test"]
        one._journal.compact(one._settled.keys())
        spool.check_balance(3, delivered=2, queued=1)
    with spool.partition() as one:
        list(one.scan())
        assert [r.address for r in one.load("b.test", names[0]).recipients] == ["v@b.test"]


def test_domains_of_a_message_share_one_file_and_go_one_by_one(spool: Spool) -> None:
    hints = spool.take("u@a.test", "v@a.test", "w@b.test", "x@[192.0.2.1]", "y@[ipv6:2001:DB8::1]")
    assert [hint.split("/")[0] for hint in hints] == ["a.test", "b.test", "ip-192.0.2.1", "ip-2001:db8::1"]
    assert len({path.stat().st_ino for path in spool.queued()}) == 1
    assert entry.recipients(hints[0]) == 2
    spool.check_balance(5, queued=5)
    with spool.partition() as one:
        for number, (domain, name, _) in enumerate(one.scan()):
            loaded = one.load(domain, name)
            assert {r.domain for r in loaded.recipients} == {domain}
            deliver(one, domain, name, loaded)
            one.flush()
            assert spool.audit().balanced
            reap(one)
            assert len(spool.queued()) == 3 - number
            assert spool.audit().balanced
    spool.check_balance(5, delivered=5)


def test_an_entry_is_not_touched_while_its_incoming_name_exists(spool: Spool) -> None:
    acceptor = Acceptor(spool.layout, "pickup")
    claimed = spool.claim(acceptor, "u@a.test", "v@b.test")
    acceptor.begin([claimed])
    acceptor.finish()
    path = Path(acceptor.incoming.path, claimed.file)
    os.link(path, spool.root / "held")
    acceptor.incoming.enqueue(claimed)
    os.rename(spool.root / "held", path)
    with spool.partition() as one:
        for domain, name, _ in list(one.scan()):
            with pytest.raises(NotReady):
                one.load(domain, name)
            with pytest.raises(NotReady):
                one.move(domain, name, "two", [])
        spool.check_balance(2, queued=2)
        acceptor.incoming.enqueue(claimed)
        assert [len(one.load(f"{d}.test", p.name).recipients) for d, p in zip("ab", spool.queued(), strict=True)] == [
            1,
            1,
        ]
    acceptor.close()
    assert list((spool.root / "incoming").iterdir()) == []


BODY = "line\n" * 40


HARM = [(harm, place) for harm in ("truncate", "flip") for place in range(0, 250, 31)]
HARM += [(harm, 0) for harm in ("empty", "longer", "folder", "symlink", "fifo")]


@pytest.mark.parametrize(("harm", "place"), HARM)
def test_a_damaged_entry_is_quarantined_and_the_others_go_on(spool: Spool, harm: str, place: int) -> None:
    spool.take("u@a.test", "v@a.test", body=BODY)
    path = spool.queued()[0]
    spool.take("w@a.test", body=BODY)
    data = path.read_bytes()
    if harm == "truncate":
        path.write_bytes(data[:place])
    elif harm == "flip":
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "longer":
        path.write_bytes(data + b"x")
    else:
        path.unlink()
        {"folder": path.mkdir, "symlink": lambda: path.symlink_to("x"), "fifo": lambda: os.mkfifo(path)}[harm]()
    with spool.partition() as one:
        for domain, name, _ in list(one.scan()):
            if name == path.name:
                with pytest.raises(Gone) as caught:
                    one.load(domain, name)
                assert caught.value.recipients == 2
                assert caught.value.reason
            else:
                deliver(one, domain, name, one.load(domain, name))
        spool.check_balance(3, queued=3)
        one.flush()
        spool.check_balance(3, quarantined=2, delivered=1)
        assert one.reap(time.monotonic_ns()) == 2
    spool.check_balance(3, quarantined=2, delivered=1)
    assert spool.queued() == []
    assert os.path.lexists(spool.root / "corrupt" / path.name)
    assert "one/a.test: " in (spool.root / "corrupt" / f"{path.name}.reason").read_text()


def test_only_what_is_unsettled_of_a_damaged_entry_counts_as_quarantined(spool: Spool) -> None:
    spool.take("u@[192.0.2.1]", "v@[192.0.2.1]", "w@[192.0.2.1]")
    names: list[str] = []
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        loaded = one.load(domain, name)
        one.settle(loaded, loaded.recipients[0], Outcome.DELIVERED)
        one.defer(domain, name, 2_000_000_000, loaded.recipients[:1], names.append)
        reap(one)
        spool.queued()[0].write_bytes(b"x")
        with pytest.raises(Gone, match="checksum"):
            one.load(domain, names[0])
        one.flush()  # and a crash before the sync
    with spool.partition() as one:
        list(one.scan())
        with pytest.raises(Gone):
            one.load(domain, names[0])
        reap(one)
    spool.check_balance(3, delivered=1, quarantined=2)


@pytest.mark.parametrize(
    "name", ["notes.txt", "a b", "x\ny", "\udcff", f"1700000000.M000000P1Q1.n,S={10**11},C=00000000,J=0"]
)
def test_a_strangers_file_in_the_queue_is_put_aside(spool: Spool, name: str) -> None:
    (hint,) = spool.take("u@a.test")
    folder = spool.queued()[0].parent
    (folder / name).write_bytes(b"hello")
    with spool.partition() as one:
        list(one.scan())
        with pytest.raises(Gone) as caught:
            one.load("a.test", name)
        assert caught.value.reason
        reap(one)
        one._journal.compact(set())
    assert [path.name for path in spool.queued()] == [os.path.basename(hint)]
    assert len(spool.files("corrupt")) == 2
    if not name.startswith("17"):
        spool.check_balance(1, queued=1)


def test_an_entry_somebody_took_away_is_gone_without_a_reason(spool: Spool) -> None:
    spool.take("u@a.test")
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        spool.queued()[0].unlink()
        with pytest.raises(Gone) as caught:
            one.load(domain, name)
        assert caught.value.reason == ""
        assert one.known == 0
        one.defer(domain, name, 2_000_000_000, [], print)
    assert not spool.audit().balanced


def test_a_partition_is_worked_on_by_one_process_at_a_time(spool: Spool) -> None:
    with spool.partition(), pytest.raises(SpoolError, match="another process"):
        Partition(spool.layout, "one")
    with spool.partition():
        pass


def test_a_move_takes_along_what_is_settled(spool: Spool) -> None:
    spool.take("u@a.test", "v@a.test", "w@b.test")
    names: list[str] = []
    with spool.partition() as one:
        (_, first, _), _ = one.scan()
        loaded = one.load("a.test", first)
        one.settle(loaded, loaded.recipients[0], Outcome.DELIVERED)
        one.defer("a.test", first, 2_000_000_000, loaded.recipients[:1], names.append)
        reap(one)
        with pytest.raises(NotReady):  # more is settled than the other one knows
            one.move("a.test", names[0], "two", [])
    with spool.partition("two") as two:
        two.learn([(entry.entry_id(names[0]), "u@a.test", "D", 1)])
        two.flush()
    with spool.partition("two") as two:  # which begins anew before the entry comes
        list(two.scan())
        two.forget_settled()
        two._journal.compact(two._settled.keys())
    with spool.partition() as one:
        list(one.scan())
        assert one.move("a.test", names[0], "two", ["u@a.test"]) == 1
        with pytest.raises(Gone):
            one.move("a.test", names[0], "two", ["u@a.test"])
    spool.check_balance(3, delivered=1, queued=2)
    with spool.partition() as one:  # the source forgets the details of what has left, and keeps the sum
        list(one.scan())
        one.forget_settled()
        one._journal.compact(one._settled.keys())
    spool.check_balance(3, delivered=1, queued=2)
    with spool.partition("two") as two:
        ((domain, name, due),) = two.scan()
        two.forget_settled()
        assert (domain, due) == ("a.test", 2_000_000_000)
        loaded = two.load(domain, name)
        assert [r.address for r in loaded.recipients] == ["v@a.test"]
        deliver(two, domain, name, loaded)
        reap(two)
        two._journal.compact(set())
    spool.check_balance(3, delivered=2, queued=1)


def test_folders_long_empty_are_removed_and_others_stay(spool: Spool) -> None:
    (hint,) = spool.take("u@a.test")
    folder = spool.root / "queue" / "one" / "a.test"
    with spool.partition() as one:
        ((domain, name, _),) = one.scan()
        os.utime(folder / "new", (0, 0))
        list(one.scan())
        assert folder.exists()
        deliver(one, domain, name, one.load(domain, name))
        reap(one)
        list(one.scan())
        assert folder.exists()
        os.utime(folder / "new", (0, 0))
        list(one.scan())
        assert not folder.exists()
    assert spool.take("u@a.test")[0].split("/")[0] == hint.split("/")[0]
