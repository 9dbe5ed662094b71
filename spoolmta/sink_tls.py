"""STARTTLS of the test receiver, done right or wrong as its options say.

starttls    what STARTTLS gets, where a certificate is given
ok          220, and TLS
454         454: not now
garbage     220, and to the client's first words an answer that is no TLS
close       220, and to the client's first words the end of the connection
inject      220 with replies to commands of later in the same packet (CVE-2021-38371), and TLS
"""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING, Any

from spoolmta import tls
from spoolmta.errors import UsageError
from spoolmta.tls_channel import Channel

if TYPE_CHECKING:
    from spoolmta.sink_session import Session

MODES = ("ok", "454", "garbage", "close", "inject")
GO = b"220 2.0.0 Go ahead\r\n"
NOT_NOW = b"454 4.7.0 TLS is not available\r\n"
INJECTED = b"250-evil.test\r\n250 AUTH PLAIN\r\n"


@functools.lru_cache(maxsize=64)
def server_context(certificate: str, version: str, client_ca: str) -> ssl.SSLContext:
    """A receiver's context: its certificate (PEM with the key), the only TLS version it speaks ("" for all), whose
    client certificates it demands ("" for none). Raises UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if version:
        if version not in tls.VERSIONS:
            raise UsageError(f"{version!r} is no version of TLS: one of {', '.join(tls.VERSIONS)} is needed")
        context.set_ciphers(tls.ALL_CIPHERS)
        tls.set_versions(context, version, version)
    try:
        context.load_cert_chain(certificate)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise UsageError(f"cannot use the certificate {certificate}: {error.strerror or error}") from None
    context.sni_callback = _note_name
    return context


def _note_name(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    connection.asked_name = name  # type: ignore[attr-defined]


def starttls(session: Session, text: str) -> None:
    """The command, with what it was said with."""
    if not session.options.tls_certificate or text.upper() != "STARTTLS":
        session.out.append(session.replies.unknown if len(text) == 8 else session.replies.syntax)
    elif session.channel is not None or not session.name or session.sender is not None:
        session.out.append(session.replies.order)
    else:
        answer(session)


def answer(session: Session) -> None:
    """Answer STARTTLS and begin TLS; what came behind the command is thrown away (RFC 3207 section 4.2)."""
    options = session.options
    if options.starttls == "454":
        session.out.append(NOT_NOW)
        return
    session.out.append(GO + INJECTED if options.starttls == "inject" else GO)
    session.flush()
    session.discards = True
    if options.starttls in ("garbage", "close"):
        session.says_to_hello = b"this is no TLS\r\n" if options.starttls == "garbage" else b""
        return
    context = server_context(options.tls_certificate, options.tls_version, options.tls_client_ca)
    session.channel = Channel(session.transport, session, context, is_server=True)
    session.transport = session.channel
    session.channel.begin()


def describe(channel: Channel | None) -> dict[str, Any]:
    """What the record shows of a connection's TLS; nothing for a plain one."""
    if channel is None:
        return {}
    return {
        "tls": channel.protocol,
        "tls_cipher": channel.cipher,
        "tls_name": channel.asked_name,
        "tls_resumed": channel.was_resumed,
        "tls_client": bool(channel.certificate),
    }
