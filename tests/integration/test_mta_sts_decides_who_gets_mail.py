"""MTA-STS (RFC 8461): what a domain publishes, and whether mail goes to its hosts."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolmta import dane, sts, sts_fetch
from spoolmta.model import Host
from tests.support.tls import Authority, der_in
from tests.support.tls_scene import MX, Scene
from tests.support.web import PolicyServer, policy

TXT = "_mta-sts.a.test"
WEB = {"mta-sts.a.test": {"A": ["127.0.0.3"]}}
PUBLISHED = {**WEB, TXT: {"TXT": ["v=STSv1; id=1;"]}}
NOT_NAMED = f"the MTA-STS policy of a.test does not name the host {MX}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def web(authority: Authority) -> Iterator[PolicyServer]:
    with PolicyServer(authority.certificate("mta-sts.a.test"), policy(MX)) as server:
        yield server


class Play:
    """Runs a story with a scene whose domain publishes a policy."""

    def __init__(self, path: Path, authority: Authority, web: PolicyServer) -> None:
        self.path, self.authority, self.web = path, authority, web

    def __call__(
        self,
        story: Callable[[Scene], Awaitable[None]],
        zones: dict[str, Any] | None = None,
        certificate: str | None = None,
        **options: Any,
    ) -> None:
        async def run() -> None:
            shown = self.authority.certificate(MX) if certificate is None else certificate
            scene = Scene(self.path, PUBLISHED | (zones or {}), tls_certificate=shown, **options)
            scene.sts_port, scene.ca_file = self.web.port, self.authority.ca
            async with scene:
                await story(scene)

        (self.path / "state").mkdir(exist_ok=True)
        asyncio.run(run())

    def outcome(self, zones: dict[str, Any] | None = None, certificate: str | None = None, **options: Any) -> str:
        found: list[str] = []

        async def story(scene: Scene) -> None:
            found.append(await scene.version(use_mta_sts=True))

        self(story, zones, certificate, **options)
        return found[0]


@pytest.fixture
def play(tmp_path: Path, authority: Authority, web: PolicyServer) -> Play:
    return Play(tmp_path, authority, web)


def test_a_host_that_the_policy_names_gets_mail_with_a_valid_certificate(play: Play, web: PolicyServer) -> None:
    assert play.outcome() == "TLSv1.3"
    assert web.hosts == ["mta-sts.a.test"]


def test_a_host_that_the_policy_does_not_name_gets_none(play: Play, web: PolicyServer) -> None:
    web.body = policy("other.test", "*.test")
    assert play.outcome() == NOT_NAMED


def test_a_host_without_a_valid_certificate_gets_none(play: Play, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger").certificate(MX)
    for certificate in (authority.certificate("other.test"), authority.certificate(MX, is_expired=True), stranger):
        said = play.outcome(certificate=certificate)
        assert "certificate not trusted" in said
        assert "(MTA-STS demands TLS)" in said


@pytest.mark.parametrize("how", ["", "454", "garbage"])
def test_a_host_without_tls_gets_none(play: Play, authority: Authority, how: str) -> None:
    options = {"starttls": how} if how else {}
    assert "MTA-STS demands" in play.outcome(certificate=authority.certificate(MX) if how else "", **options)


@pytest.mark.parametrize("mode", ["testing", "none"])
def test_a_policy_that_is_not_enforced_holds_nothing_up(
    play: Play, web: PolicyServer, authority: Authority, mode: str
) -> None:
    web.body = policy("other.test", mode=mode)
    assert play.outcome(certificate=authority.certificate("other.test")) == "TLSv1.3"
    assert play.outcome(certificate="") == "plain"


def test_hosts_that_do_not_match_are_passed_over_for_those_that_do(play: Play) -> None:
    zones = {"a.test": {"MX": ["10 bad.test", f"20 {MX}"]}, "bad.test": {"A": ["127.0.0.2"]}}

    async def story(scene: Scene) -> None:
        assert (await scene.open(use_mta_sts=True)).ends.host == MX

    play(story, zones)


def test_a_domain_without_a_record_is_asked_for_no_policy(play: Play, web: PolicyServer) -> None:
    assert play.outcome({TXT: {"TXT": ["v=spf1 -all"]}}, certificate="") == "plain"
    assert play.outcome({TXT: {"TXT": ["v=STSv1; id=1;", "v=STSv1; id=2;"]}}, certificate="") == "plain"
    assert web.hosts == []


def test_without_use_mta_sts_and_on_the_operators_own_route_nobody_asks(play: Play, web: PolicyServer) -> None:
    async def story(scene: Scene) -> None:
        assert await scene.version() == "plain"
        fixed = ((Host("127.0.0.2", scene.port),),)
        assert await scene.version(use_mta_sts=True, smtp_hosts=fixed) == "plain"
        assert scene.dns.count(TXT) == 0

    play(story, certificate="")
    assert web.hosts == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": 301, "location": "https://mta-sts.a.test/other"}, "answers 301"),
        ({"status": 404}, "answers 404"),
        ({"kind": "text/html"}, "not text/plain"),
        ({"body": policy(MX) + b"#" * 65_536}, "larger than 65536"),
        ({"body": b"<html>"}, "no field"),
        ({"body": policy()}, "no mx"),
        ({"delay": 2.0}, "did not answer in time"),
    ],
)
def test_a_policy_that_cannot_be_had_is_none_and_not_asked_for_again_at_once(
    play: Play,
    web: PolicyServer,
    change: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sts_fetch, "PATIENCE", 0.5 if "delay" in change else 20.0)
    for field, value in change.items():
        setattr(web, field, value)

    async def story(scene: Scene) -> None:
        assert await scene.version(use_mta_sts=True) == "plain"
        assert await scene.version(use_mta_sts=True) == "plain"
        assert await scene.open(scene.another_opener(), use_mta_sts=True)

    with caplog.at_level(logging.WARNING, "spoolmta"):
        play(story, certificate="")
    assert len(web.hosts) == 1
    assert reason in caplog.text


def test_a_web_server_without_a_valid_certificate_is_not_believed(
    play: Play, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger").certificate("mta-sts.a.test")
    for certificate in (authority.certificate("a.test"), stranger):
        with PolicyServer(certificate, policy(MX)) as server:
            play.web = server
            assert play.outcome(certificate="") == "plain"
            assert server.hosts == []


def test_a_policy_is_fetched_once_for_all_sessions_and_kept_on_disk(play: Play, web: PolicyServer) -> None:
    web.delay = 0.2

    async def story(scene: Scene) -> None:
        found = await asyncio.gather(*(scene.version(use_mta_sts=True) for _ in range(10)))
        assert found == ["TLSv1.3"] * 10
        assert (await scene.open(scene.another_opener(), use_mta_sts=True)).ends.tls_protocol == "TLSv1.3"

    play(story)
    assert len(web.hosts) == 1
    assert (play.path / "state" / ".mta-sts" / "a.test.json").exists()


@pytest.mark.parametrize("answer", ["SERVFAIL", "NXDOMAIN", {"TXT": ["v=spf1 -all"]}])
def test_a_kept_policy_holds_when_its_record_is_gone(play: Play, web: PolicyServer, answer: Any) -> None:
    async def story(scene: Scene) -> None:
        assert await scene.version(use_mta_sts=True) == NOT_NAMED
        scene.serve({TXT: answer})
        opened = await scene.open(scene.another_opener(), use_mta_sts=True)
        assert str(opened.failure) == NOT_NAMED  # type: ignore[union-attr]

    web.body = policy("other.test")
    play(story)


@pytest.mark.parametrize(("age", "expected"), [(1000.0, NOT_NAMED), (100_000.0, "plain")])
def test_an_expired_policy_holds_no_more(play: Play, age: float, expected: str) -> None:
    kept = sts.Kept(sts.Policy("enforce", ("other.test",), 86_400), "1", time.time() - age)
    folder = play.path / "state" / ".mta-sts"
    folder.mkdir(parents=True)
    (folder / "a.test.json").write_bytes(msgspec.json.encode(kept))
    assert play.outcome({TXT: {"TXT": ["v=spf1 -all"]}}, certificate="") == expected


def test_a_damaged_file_of_the_cache_is_fetched_anew(play: Play, web: PolicyServer) -> None:
    folder = play.path / "state" / ".mta-sts"
    folder.mkdir(parents=True)
    (folder / "a.test.json").write_bytes(b'{"policy": 5')
    assert play.outcome() == "TLSv1.3"
    assert len(web.hosts) == 1


def test_before_mail_fails_by_a_policy_the_domain_is_asked_whether_it_has_another(
    play: Play, web: PolicyServer
) -> None:
    async def story(scene: Scene) -> None:
        assert await scene.version(use_mta_sts=True) == NOT_NAMED
        web.body = policy(MX)
        scene.serve({TXT: {"TXT": ["v=STSv1; id=2;"]}})  # our cache of the DNS still has the old record
        assert await scene.version(use_mta_sts=True) == "TLSv1.3"

    web.body = policy("other.test")
    play(story)


@pytest.mark.parametrize(
    ("record", "named", "expected"),
    [
        ("wrong", MX, "the host's certificate is not the one of its TLSA records (DANE demands TLS)"),
        ("right", "other.test", "TLSv1.3"),
        ("unusable", "other.test", NOT_NAMED),
        ("unusable", MX, "TLSv1.3"),
    ],
)
def test_mta_sts_does_not_make_good_what_dane_refuses_and_dane_needs_no_mta_sts(
    play: Play, web: PolicyServer, authority: Authority, record: str, named: str, expected: str
) -> None:
    key = hashlib.sha256(dane.public_key(der_in(authority.certificate(MX)))).hexdigest()
    records = {"wrong": "3 1 1 " + "ab" * 32, "right": f"3 1 1 {key}", "unusable": "0 0 1 " + "ab" * 32}
    web.body = policy(named)

    async def story(scene: Scene) -> None:
        assert await scene.version(use_mta_sts=True, use_dane=True) == expected

    play(story, {f"_PORT._tcp.{MX}": {"TLSA": [records[record]], "AD": True}})
