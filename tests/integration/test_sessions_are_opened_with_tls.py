"""Opening a session with a receiver that does TLS well, badly or not at all, on both event loops."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from spoolmta.model import Config, DomainPolicy, FailureKind, Host, Recipient, Reply, Vmta
from spoolmta.opener import NotOpened, Opened, Opener
from spoolmta.resolver import Resolver
from spoolmta.sink import Options, Sink
from spoolmta.smtp.client import Result, transaction
from spoolmta.spool.layout import Layout
from tests.support.tls import Authority

BODY = b"Subject: a\r\n\r\nb\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


class Scene:
    """A receiver, and an opener that knows it by the name mx.mail.test only."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.record = tmp_path / "record.jsonl"
        self.sink = Sink(Options(record=str(self.record), **options))

    async def __aenter__(self) -> Scene:
        await self.sink.start(["127.0.0.1:0"])
        self.port = int(self.sink.addresses[0].rpartition(":")[2])
        config = Config(host_name="me.test", spool=str(self.record.parent))
        self.opener = Opener(Vmta(name="v"), config, random.Random(1), Layout(config.spool))
        self.opener.resolver = _Resolver(("127.0.0.1:1",), random.Random(1))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sink.close()

    async def open(self, **policy: Any) -> Opened | NotOpened:
        fixed = ((Host("mx.mail.test", self.port),),)
        return await asyncio.wait_for(
            self.opener.open("a.test", DomainPolicy(smtp_hosts=fixed, **policy), (), lambda: None), 20
        )

    async def deliver(self, **policy: Any) -> Opened:
        """Open, send one message, leave."""
        opened = await self.open(**policy)
        assert isinstance(opened, Opened), opened
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        people = [Recipient("r@a.test", "a.test")]
        opened.connection.run(transaction("s@a.test", people, BODY, opened.capabilities), done.set_result)
        result = await asyncio.wait_for(done, 10)
        assert isinstance(result.answers[0].result, Reply), result
        assert result.answers[0].result.code == 250
        opened.connection.quit()
        return opened

    async def refused(self, **policy: Any) -> NotOpened:
        result = await self.open(**policy)
        assert isinstance(result, NotOpened), result
        return result

    @property
    def connections(self) -> int:
        return int(self.sink.stats()["totals"]["connections"])


class _Resolver(Resolver):
    async def addresses(self, host: str, families: frozenset[int]) -> Any:
        return ["127.0.0.1"] if host == "mx.mail.test" else await super().addresses(host, families)


Play = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    def run(story: Callable[[], Awaitable[None]]) -> None:
        async def tell() -> None:
            await story()

        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(tell())

    return run


def test_mail_goes_through_tls_where_it_is_offered_and_the_certificate_is_not_looked_at(
    play: Play, tmp_path: Path, authority: Authority
) -> None:
    async def story() -> None:
        async with Scene(tmp_path, tls_certificate=authority.certificate("other.test")) as scene:
            opened = await scene.deliver()
            assert opened.connection.is_encrypted
            assert (opened.ends.tls_protocol, opened.ends.tls_cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
            assert "STARTTLS" not in opened.capabilities
            assert '"tls":"TLSv1.3"' in scene.record.read_text()
            assert '"tls_name":"mx.mail.test"' in scene.record.read_text()

    play(story)


@pytest.mark.parametrize("options", [{}, {"starttls": "454"}])
def test_without_tls_mail_goes_in_the_clear_unless_somebody_demands_it(
    play: Play, tmp_path: Path, authority: Authority, options: dict[str, str]
) -> None:
    certificate = authority.certificate("mx.mail.test") if options else ""

    async def story() -> None:
        async with Scene(tmp_path, tls_certificate=certificate, **options) as scene:
            opened = await scene.deliver()
            assert not opened.connection.is_encrypted
            assert opened.ends.tls_protocol == ""
            assert scene.connections == 1
            result = await scene.refused(require_starttls=True)
            assert result.failure.kind is FailureKind.NO_TLS  # type: ignore[union-attr]

    play(story)


def test_use_starttls_false_never_begins_tls(play: Play, tmp_path: Path, authority: Authority) -> None:
    async def story() -> None:
        async with Scene(tmp_path, tls_certificate=authority.certificate("mx.mail.test")) as scene:
            opened = await scene.deliver(use_starttls=False)
            assert "STARTTLS" in opened.capabilities
            assert not opened.connection.is_encrypted

    play(story)


@pytest.mark.parametrize("how", ["garbage", "close"])
def test_a_broken_handshake_is_tried_again_in_the_clear_and_remembered(
    play: Play, tmp_path: Path, authority: Authority, how: str
) -> None:
    async def story() -> None:
        async with Scene(tmp_path, tls_certificate=authority.certificate("mx.mail.test"), starttls=how) as scene:
            assert not (await scene.deliver()).connection.is_encrypted
            assert scene.connections == 2
            await scene.deliver()
            assert scene.connections == 3  # the second message did not try TLS at all
            result = await scene.refused(require_starttls=True)
            assert "(require-starttls demands TLS)" in str(result.failure)
            assert scene.connections == 4

    play(story)


def test_words_behind_the_220_end_the_session_and_no_mail_follows_in_the_clear(
    play: Play, tmp_path: Path, authority: Authority
) -> None:
    async def story() -> None:
        async with Scene(tmp_path, tls_certificate=authority.certificate("mx.mail.test"), starttls="inject") as scene:
            for demand in (False, True):
                result = await scene.refused(require_starttls=demand)
                assert result.failure.kind is FailureKind.PROTOCOL  # type: ignore[union-attr]
            assert scene.connections == 2

    play(story)


def test_an_old_version_of_tls_counts_as_none_until_it_is_allowed(
    play: Play, tmp_path: Path, authority: Authority
) -> None:
    async def story() -> None:
        async with Scene(tmp_path, tls_certificate=authority.certificate("mx.mail.test"), tls_version="1.0") as scene:
            result = await scene.refused(require_starttls=True)
            assert result.failure.kind is FailureKind.TLS  # type: ignore[union-attr]
            allowed = await scene.deliver(require_starttls=True, smtp_tls_min_version="1.0")
            assert allowed.ends.tls_protocol == "TLSv1"
            assert not (await scene.deliver()).connection.is_encrypted

    play(story)


@pytest.mark.parametrize(
    ("names", "is_expired", "is_ours", "trouble"),
    [
        (("mx.mail.test",), False, True, ""),
        (("*.mail.test",), False, True, ""),
        (("other.test",), False, True, "Hostname mismatch"),
        (("mx.mail.test",), True, True, "expired"),
        (("mx.mail.test",), False, False, "self-signed certificate in certificate chain"),
    ],
)
def test_smtp_tls_verify_takes_only_a_valid_certificate_for_the_hosts_name(
    play: Play,
    tmp_path: Path,
    authority: Authority,
    names: tuple[str, ...],
    is_expired: bool,
    is_ours: bool,
    trouble: str,
) -> None:
    signer = authority if is_ours else Authority(tmp_path / "stranger")
    certificate = signer.certificate(*names, is_expired=is_expired)

    async def story() -> None:
        async with Scene(tmp_path, tls_certificate=certificate) as scene:
            result = await scene.open(smtp_tls_verify=True, smtp_tls_ca_file=authority.ca)
            assert isinstance(result, NotOpened) is bool(trouble)
            if isinstance(result, NotOpened):
                assert trouble in str(result.failure)
                assert "(smtp-tls-verify demands TLS)" in str(result.failure)
            else:
                result.connection.abort()
            assert scene.connections == 1

    play(story)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_certificate_is_shown_to_who_demands_one(
    play: Play, tmp_path: Path, authority: Authority, version: str
) -> None:
    ours = authority.certificate("me.test")
    options = {"tls_certificate": authority.certificate("mx.mail.test"), "tls_client_ca": authority.ca}

    async def story() -> None:
        async with Scene(tmp_path, tls_version=version, **options) as scene:
            result = await scene.refused(require_starttls=True)
            assert result.failure.kind is FailureKind.TLS  # type: ignore[union-attr]
            await scene.deliver(require_starttls=True, smtp_client_certificate=ours)
            assert '"tls_client":true' in scene.record.read_text()
            missing = await scene.refused(require_starttls=True, smtp_client_certificate=str(tmp_path / "gone.pem"))
            assert missing.is_ours

    play(story)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_second_connection_resumes_the_session_of_the_first(
    play: Play, tmp_path: Path, authority: Authority, version: str
) -> None:
    async def story() -> None:
        certificate = authority.certificate("mx.mail.test")
        async with Scene(tmp_path, tls_certificate=certificate, tls_version=version) as scene:
            policy = {"smtp_tls_verify": True, "smtp_tls_ca_file": authority.ca}
            was_resumed = []
            for reuse in (True, True, False):
                opened = await scene.deliver(**policy, reuse_ssl_session=reuse)
                assert opened.connection.channel is not None
                was_resumed.append(opened.connection.channel.was_resumed)
            assert was_resumed == [False, True, False]

    play(story)


def test_a_long_message_goes_whole_through_tls(play: Play, tmp_path: Path, authority: Authority) -> None:
    async def story() -> None:
        certificate = authority.certificate("mx.mail.test")
        async with Scene(tmp_path, tls_certificate=certificate, maildir=str(tmp_path / "mail")) as scene:
            opened = await scene.open()
            assert isinstance(opened, Opened)
            done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            body = b"Subject: a\r\n\r\n" + b"".join(b"%070d\r\n" % number for number in range(100_000))
            people = [Recipient("r@a.test", "a.test")]
            opened.connection.run(transaction("s@a.test", people, body, opened.capabilities), done.set_result)
            assert str((await asyncio.wait_for(done, 20)).answers[0].result).startswith("250")
            (file,) = (tmp_path / "mail" / "new").iterdir()
            assert file.read_bytes() == body
            opened.connection.quit()

    play(story)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, ssl.SSLContext], Awaitable[None]]


async def say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n")
    writer.write(b"250-mx\r\n250-STARTTLS\r\n250 PIPELINING\r\n")
    await reader.readuntil(b"\r\n")


async def begin(writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
    writer.write(b"220 go\r\n")
    await writer.drain()
    await writer.start_tls(context)


async def speaks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
    await say_hello(reader, writer)
    await begin(writer, context)
    writer.write(b"250-mx\r\n250 AUTH PLAIN\r\n250 more\r\n")
    await reader.readuntil(b"\r\n")


async def is_well(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
    await say_hello(reader, writer)
    await begin(writer, context)
    await reader.readuntil(b"\r\n")
    writer.write(b"250-mx\r\n250 SIZE\r\n")


async def half_a_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ssl.SSLContext) -> None:
    await say_hello(reader, writer)
    writer.write(b"220 go\r\n25")


async def speaks_up_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ssl.SSLContext) -> None:
    await say_hello(reader, writer)
    writer.write(b"220 go\r\n")
    await reader.read(10)
    writer.write(b"250-evil\r\n250 AUTH PLAIN\r\n")


async def goodbye_with_220(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ssl.SSLContext) -> None:
    await say_hello(reader, writer)
    writer.write(b"220 go\r\n421 or not\r\n")


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ssl.SSLContext) -> None:
    await say_hello(reader, writer)
    writer.write(b"220 go\r\n")
    await reader.read()


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        (is_well, "TLSv1.3"),
        (speaks_first, "the server sent more replies than there were commands"),
        (half_a_line, "the server sent more replies than there were commands (require-starttls demands TLS)"),
        (goodbye_with_220, "421 or not"),
        (speaks_up_later, "TLS with the host failed: wrong version number (require-starttls demands TLS)"),
        (hangs, "no answer in time (starttls) (require-starttls demands TLS)"),
    ],
)
def test_a_server_with_another_tls_than_ours(
    play: Play,
    tmp_path: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    serve: Serve,
    expected: str,
) -> None:
    monkeypatch.setattr("spoolmta.opener.HANDSHAKE_TIMEOUT", 0.3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("mx.mail.test"))

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"220 mx\r\n")
            await serve(reader, writer, context)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def story() -> None:
        async with Scene(tmp_path) as scene:
            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            scene.port = server.sockets[0].getsockname()[1]
            try:
                result = await scene.open(require_starttls=True)
            finally:
                server.close()
            if isinstance(result, Opened):
                result.connection.abort()
                assert (result.ends.tls_protocol, list(result.capabilities.keywords)) == (expected, ["SIZE"])
            else:
                assert str(result.failure) == expected

    play(story)
