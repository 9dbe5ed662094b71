"""Whatever the name, whatever the number, each file is taken once; other endings and leading dots are not ours."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.mta import Mta, World

BURST = 3000


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mta]]:
    with World(tmp_path_factory.mktemp("names")) as world, world.mta() as mta:
        mta.drop("first@one.test")
        mta.wait_for(lambda: mta.count("d") == 1)
        yield world, mta


def drop_raw(mta: Mta, name: bytes, recipient: str) -> bytes:
    source = mta.path / "drop" / "raw"
    source.write_bytes(mta.message(recipient))
    target = os.fsencode(mta.spool / "pickup") + b"/" + name
    os.rename(source, target)
    return target


NAMES = {
    "spaces": b" a b  c .eml",
    "newline": b"a\nb\r\n.eml",
    "255-bytes": b"n" * 251 + b".eml",
    "invalid-utf8": b"\xff\xfe\x80.eml",
    "utf8": "Grüße ✉.eml".encode(),
    "quotes": b"a'b\"c,$(d);`e`.eml",
    "colon-like-an-entry": b"1700000000.M000042P4711Q17.mx1,S=4096,C=0badcafe,J=0:1,3,1700003600.eml",
    "percent": b"%s%d%(x)s.eml",
    "two-endings": b"a.eml.eml",
    "option": b"-rf.eml",
}


@pytest.mark.parametrize("case", NAMES)
def test_a_strange_name_is_taken_like_any_other(system: tuple[World, Mta], case: str) -> None:
    world, mta = system
    path = drop_raw(mta, NAMES[case], f"{case}@one.test")
    mta.wait_for(lambda: any(row["rcpt"] == f"{case}@one.test" for row in mta.rows("d")))
    assert not os.path.lexists(path)
    assert sum(line["recipients"] == [f"{case}@one.test"] for line in world.received()) == 1


@pytest.mark.parametrize("case", NAMES)
def test_a_refused_file_with_a_strange_name_keeps_it_or_becomes_an_id(system: tuple[World, Mta], case: str) -> None:
    _, mta = system
    bad = os.fsencode(mta.spool / "bad")
    before = set(os.listdir(bad))
    source = mta.path / "drop" / "raw"
    source.write_bytes(b"Subject: for nobody\n\n")
    os.rename(source, os.fsencode(mta.spool / "pickup") + b"/" + NAMES[case])
    mta.wait_for(lambda: len(set(os.listdir(bad)) - before) == 2)
    new = set(os.listdir(bad)) - before
    assert {name[-4:] for name in new} == {b".eml", b"ason"}
    if len(NAMES[case]) < 240:
        assert NAMES[case] in new
    assert "refused " in mta.log()
    assert all("\r" not in line for line in mta.log().split("\n"))


def test_leading_dots_and_other_endings_are_ignored(system: tuple[World, Mta]) -> None:
    world, mta = system
    names = [b".hidden.eml", b".eml", b"a.EML", b"a.tmp", b"a.eml.tmp", b"eml", b"a.eml~"]
    paths = [drop_raw(mta, name, "ignored@one.test") for name in names]
    mta.drop("behind@one.test")
    mta.wait_for(lambda: any(row["rcpt"] == "behind@one.test" for row in mta.rows("d")))
    assert all(os.path.exists(path) for path in paths)
    assert not any(line["recipients"] == ["ignored@one.test"] for line in world.received())
    assert mta.status()["pickup"]["left_alone"] == 0


def test_the_folder_may_be_removed_and_is_made_anew(system: tuple[World, Mta]) -> None:
    _, mta = system
    pickup = mta.spool / "pickup"
    mode = pickup.stat().st_mode
    shutil.rmtree(pickup)
    mta.wait_for(pickup.exists)
    mta.wait_for(lambda: pickup.stat().st_mode == mode)
    mta.drop("anew@one.test")
    mta.wait_for(lambda: any(row["rcpt"] == "anew@one.test" for row in mta.rows("d")))


@pytest.mark.parametrize("how", ["removed", "moved-away"])
def test_in_a_folder_put_in_its_place_a_file_being_written_is_still_waited_for(
    system: tuple[World, Mta], how: str
) -> None:
    world, mta = system
    pickup = mta.spool / "pickup"
    aside = mta.spool / f"pickup.{how}"
    pickup.rename(aside)
    pickup.mkdir(exist_ok=True)
    if how == "removed":
        shutil.rmtree(aside)
    else:
        (aside / "ring").touch()  # else it is the slow scan that finds out, after up to 15 seconds
    mta.drop(f"{how}-first@one.test")
    mta.wait_for(lambda: any(row["rcpt"] == f"{how}-first@one.test" for row in mta.rows("d")))
    path = pickup / "in-place.eml"
    data = mta.message(f"{how}@one.test", body="one\n" * 500)
    path.write_bytes(data[:500])
    mta.drop(f"{how}-second@one.test")
    mta.wait_for(lambda: any(row["rcpt"] == f"{how}-second@one.test" for row in mta.rows("d")))
    with open(path, "ab") as file:
        file.write(data[500:])
    mta.wait_for(lambda: any(row["rcpt"] == f"{how}@one.test" for row in mta.rows("d")))
    (line,) = [line for line in world.received() if line["recipients"] == [f"{how}@one.test"]]
    assert line["size"] > len(data) // 2
    assert mta.status()["pickup"]["restarts"] == 0


def test_a_burst_of_files_is_delivered_each_exactly_once(system: tuple[World, Mta]) -> None:
    world, mta = system
    folder = mta.path / "burst"
    folder.mkdir()
    for number in range(BURST):
        (folder / f"b{number}.eml").write_bytes(mta.message(f"b{number}@d{number % 20}.test", test_id=f"b{number}"))
    for number in range(BURST):
        os.rename(folder / f"b{number}.eml", mta.spool / "pickup" / f"b{number}.eml")
    mta.wait_for(lambda: len(world.received()) >= BURST and not list((mta.spool / "pickup").glob("b*.eml")), 60)
    mta.wait_for(lambda: not mta.entries())
    got = Counter(line["test_id"] for line in world.received() if line["test_id"])
    assert got == Counter(f"b{number}" for number in range(BURST))
    for kind in ("r", "d"):
        logged = Counter(row["rcpt"] for row in mta.rows(kind) if "@d" in row["rcpt"])
        assert set(logged.values()) == {1}
        assert len(logged) == BURST
    mta.wait_for(lambda: mta.audit()["accepted"] == mta.count("r"))
    audit = mta.audit()
    assert audit["balanced"], audit
    assert audit["delivered"] == mta.count("r")
