"""Fetching an MTA-STS policy (RFC 8461 section 3.3): https, its certificate verified, no redirects, 64 KB, a minute."""

from __future__ import annotations

import asyncio
import http.client
import io
import re
import ssl
from typing import cast

from spoolmta import sts, tls
from spoolmta.model import Failure
from spoolmta.resolver import Resolver
from spoolmta.tls_channel import explain

PATIENCE = 60.0
_MAX_HEADER = 65_536
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
FAMILIES = frozenset((4, 6))


class NotFetched(Exception):
    """Why there is no policy: one clause for the log."""


async def fetch(domain: str, resolver: Resolver, port: int, ca_file: str) -> sts.Policy:
    """The policy of a domain, from its web server. Raises NotFetched."""
    try:
        async with asyncio.timeout(PATIENCE):
            answer = await _ask(f"mta-sts.{domain}", resolver, port, ca_file)
            return sts.read_policy(body_of(answer))
    except TimeoutError:
        raise NotFetched("the web server did not answer in time") from None
    except sts.BadPolicy as error:
        raise NotFetched(str(error)) from None


async def _ask(host: str, resolver: Resolver, port: int, ca_file: str) -> bytes:
    addresses = await resolver.addresses(host, FAMILIES)
    if isinstance(addresses, Failure):
        raise NotFetched(addresses.text)
    try:
        context = tls.verifying(ca_file)
    except tls.Unloadable as error:
        raise NotFetched(str(error)) from None
    trouble = ""
    for address in addresses:
        try:
            return await _exchange(address, host, port, context)
        except ssl.SSLError as error:
            trouble = explain(error)
        except OSError as error:
            trouble = f"{address} port {port}: {error.strerror or error}"
    raise NotFetched(trouble)


async def _exchange(address: str, host: str, port: int, context: ssl.SSLContext) -> bytes:
    """What a web server answers, as it comes."""
    reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host)
    try:
        writer.write(
            f"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {host}\r\nAccept: text/plain\r\n"
            "User-Agent: spoolmta\r\nConnection: close\r\n\r\n".encode()
        )
        received = b""
        while not is_complete(received):
            if len(received) > _MAX_HEADER + 2 * sts.MAX_BODY:
                raise NotFetched(f"the answer is larger than {sts.MAX_BODY} bytes")
            part = await reader.read(65_536)
            if not part:
                break
            received += part
        return received
    finally:
        cast(asyncio.Transport, writer.transport).abort()


def is_complete(received: bytes) -> bool:
    """Whether an HTTP answer has come as far as its header says; one that does not say ends with the connection."""
    header, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return False
    header += b"\r\n"
    if _CHUNKED.search(header):
        return body.endswith(b"\r\n0\r\n\r\n") or body == b"0\r\n\r\n"
    length = _LENGTH.search(header)
    return length is not None and len(body) >= int(length[1])


class _Received:
    """What `http.client` takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def body_of(received: bytes) -> bytes:
    """The body of an answer that is 200 and text. Raises NotFetched."""
    answer = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]
    try:
        answer.begin()
        if answer.status != 200:
            raise NotFetched(f"the web server answers {answer.status}")
        if answer.headers.get_content_type() != "text/plain":
            raise NotFetched("the answer is not text/plain")
        body = answer.read(sts.MAX_BODY + 1)
    except (http.client.HTTPException, OSError, ValueError):
        raise NotFetched("the answer is not HTTP") from None
    if len(body) > sts.MAX_BODY:
        raise NotFetched(f"the answer is larger than {sts.MAX_BODY} bytes")
    return body
