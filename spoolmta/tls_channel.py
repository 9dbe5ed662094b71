"""TLS between a socket and whoever speaks over it.

A `Channel` takes the protocol's place at the transport, and the transport's place at the protocol: a connection
without TLS never meets it. It drives OpenSSL over two memory buffers, as `loop.start_tls` of both event loops does,
but without their own timers, tasks and pauses, and with a session to resume, which they cannot take.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol

_READ = 262_144
_WRITE = 65_536
HAS_CHAIN = hasattr(ssl.SSLObject, "get_unverified_chain")
"""Since Python 3.13."""


class Speaker(Protocol):
    """Who speaks over a channel: an `asyncio.Protocol` that also hears of the handshake."""

    def secured(self) -> None: ...
    def not_secured(self, reason: str) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Channel(asyncio.Transport, asyncio.Protocol):
    """One TLS connection over a transport. `begin` takes the transport over; `secured` of the speaker is called when
    the handshake is done, `not_secured` with a reason when it, or TLS after it, fails: the speaker closes then."""

    def __init__(
        self,
        transport: asyncio.Transport,
        speaker: Speaker,
        context: ssl.SSLContext,
        *,
        is_server: bool = False,
        server_name: str = "",
        session: ssl.SSLSession | None = None,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._speaker = speaker
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, is_server, server_hostname=server_name or None, session=session
        )
        self.is_ready = False

    def __repr__(self) -> str:
        return f"Channel({self._object.version()}, ready={self.is_ready})"

    def begin(self) -> None:
        """Take over the transport; a client says its first words."""
        self._transport.set_protocol(self)
        self._shake_hands()

    # What was negotiated

    @property
    def protocol(self) -> str:
        """For example "TLSv1.3"."""
        return self._object.version() or ""

    @property
    def cipher(self) -> str:
        """OpenSSL's name of the cipher suite, for example "TLS_AES_256_GCM_SHA384"."""
        cipher = self._object.cipher()
        return cipher[0] if cipher else ""

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection can resume. With TLS 1.3 it comes with the first words behind the handshake."""
        return self._object.session

    @property
    def was_resumed(self) -> bool:
        return bool(self._object.session_reused)

    @property
    def asked_name(self) -> str:
        """The name a client asked a server for (SNI), where its context has noted it."""
        return getattr(self._object, "asked_name", None) or ""

    @property
    def chain(self) -> list[bytes]:
        """The certificates the peer showed (DER), its own first; only that one where HAS_CHAIN is false."""
        if HAS_CHAIN:
            return list(self._object.get_unverified_chain())  # type: ignore[attr-defined,unused-ignore]
        return [self.certificate] if self.certificate else []

    @property
    def certificate(self) -> bytes:
        """The peer's certificate (DER), empty if it showed none."""
        return self._object.getpeercert(True) or b""

    # The protocol of the transport

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if not self.is_ready:
            self._shake_hands()
        if self.is_ready:
            self._read()

    def eof_received(self) -> None:
        return None  # the transport closes

    def connection_lost(self, exc: Exception | None) -> None:
        self._speaker.connection_lost(exc)

    def pause_writing(self) -> None:
        self._speaker.pause_writing()

    def resume_writing(self) -> None:
        self._speaker.resume_writing()

    def _shake_hands(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, ValueError) as error:
            self._flush()  # the alert that tells the peer
            self._speaker.not_secured(explain(error))
            return
        self._flush()
        self.is_ready = True
        self._speaker.secured()

    def _read(self) -> None:
        parts = []
        try:
            while part := self._object.read(_READ):
                parts.append(part)
            self._transport.close()
        except ssl.SSLWantReadError:
            self._flush()  # for example the answer to a change of keys
        except ssl.SSLZeroReturnError:
            self._transport.close()
        except ssl.SSLError as error:
            if not parts:
                self._speaker.not_secured(explain(error))
                return
            self._transport.close()
        if parts:
            self._speaker.data_received(b"".join(parts))

    # The transport of the protocol

    def write(self, data: Any) -> None:
        """Encrypt and send, piece by piece, so that a long message is not held twice more."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _WRITE):
                self._object.write(view[start : start + _WRITE])
                self._flush()
        except ssl.SSLError:
            self._transport.abort()  # whoever waits hears that the connection is lost

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


def explain(error: Exception) -> str:
    """OpenSSL's complaint in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    reason = getattr(error, "reason", None)
    return reason.lower().replace("_", " ") if isinstance(reason, str) else str(error)
