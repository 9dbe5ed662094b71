"""TLS contexts by policy, and the sessions that can be resumed, of one process.

A context that looks at no certificate costs next to nothing; one with the system's certificates costs 37 ms and
1.5 MiB. Contexts are kept for the life of the process, and `warm_up` makes the common ones before the forks, so that
all processes share them.
"""

from __future__ import annotations

import functools
import os
import ssl
import warnings
from collections.abc import Callable

import msgspec

from spoolmta.model import DomainPolicy
from spoolmta.smtp.starttls import Level
from spoolmta.tls_channel import HAS_CHAIN, Channel, explain

MAX_SESSIONS = 1000
VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
ALL_CIPHERS = "DEFAULT:@SECLEVEL=0"
"""Where no certificate is looked at, an old key or a short one is better than what comes instead: no TLS. TLS 1.0 and
1.1 need it in any case (OpenSSL 3 takes their signatures only there)."""


class Unloadable(Exception):
    """A certificate file of ours that cannot be used: our own trouble, one sentence."""


class Terms(msgspec.Struct, frozen=True):
    """What makes one context differ from another. `stamps` are the change times of the files, so that a renewed
    certificate is used without a reload."""

    min_version: str
    ciphers: str = ""
    is_verified: bool = False
    ca_file: str = ""
    certificate: str = ""
    stamps: tuple[int, ...] = ()


def context_for(policy: DomainPolicy, level: Level) -> ssl.SSLContext:
    """The context of sessions at this level. Raises Unloadable."""
    is_verified = level is Level.VERIFIED
    least = policy.smtp_tls_min_version
    if level in (Level.VERIFIED, Level.DANE):
        least = max(least, "1.2")  # a certificate proves nothing where TLS itself does not (RFC 8461 section 4)
    ca_file = policy.smtp_tls_ca_file if is_verified else ""
    certificate = policy.smtp_client_certificate
    try:
        stamps = tuple(os.stat(path).st_mtime_ns for path in (ca_file, certificate) if path)
    except OSError as error:
        raise Unloadable(f"cannot read {error.filename}: {error.strerror}") from None
    return context(Terms(least, policy.smtp_tls_ciphers, is_verified, ca_file, certificate, stamps))


def verifying(ca_file: str) -> ssl.SSLContext:
    """A context that trusts the authorities of a file, "" for those of the system. Raises Unloadable."""
    policy = DomainPolicy(smtp_tls_ca_file=ca_file)
    return context_for(policy, Level.VERIFIED)


@functools.lru_cache(maxsize=256)
def context(terms: Terms) -> ssl.SSLContext:
    """A client's context on these terms. Raises Unloadable."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.options |= ssl.OP_NO_RENEGOTIATION
    if terms.ciphers or not terms.is_verified or terms.min_version < "1.2":
        made.set_ciphers(terms.ciphers or ALL_CIPHERS)
    set_versions(made, terms.min_version)
    if not terms.is_verified:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    elif terms.ca_file:
        _load(terms.ca_file, made.load_verify_locations)
    else:
        made.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if terms.certificate:
        # without the function, OpenSSL would ask for a password on the terminal
        _load(terms.certificate, lambda file: made.load_cert_chain(file, password=lambda: ""))
    return made


def set_versions(made: ssl.SSLContext, least: str, most: str = "") -> None:
    """The versions of TLS a context speaks; the old ones are wanted here, whatever Python thinks of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made.minimum_version = VERSIONS[least]
        if most:
            made.maximum_version = VERSIONS[most]


def _load(file: str, load: Callable[[str], None]) -> None:
    try:
        load(file)
    except (OSError, ssl.SSLError) as error:
        raise Unloadable(f"cannot use {file}: {explain(error)}") from None


def warm_up() -> None:
    """Make the context of opportunistic TLS, which nearly every process needs, and import what DANE needs."""
    context(Terms(DomainPolicy().smtp_tls_min_version))
    if HAS_CHAIN:
        import cryptography.x509  # noqa: F401


class Handshake(msgspec.Struct, frozen=True):
    """How one connection begins TLS; `problem` looks at what came of it and says what is wrong, "" for nothing."""

    context: ssl.SSLContext
    server_name: str = ""
    session: ssl.SSLSession | None = None
    problem: Callable[[Channel], str] = lambda _: ""


class Sessions:
    """What can be resumed, by context and host address: half the cost of a handshake for both sides."""

    def __init__(self) -> None:
        self._kept: dict[tuple[ssl.SSLContext, str, str], ssl.SSLSession] = {}

    def __repr__(self) -> str:
        return f"Sessions({len(self._kept)})"

    def find(self, made: ssl.SSLContext, name: str, address: str) -> ssl.SSLSession | None:
        return self._kept.get((made, name, address))

    def keep(self, made: ssl.SSLContext, name: str, address: str, channel: Channel) -> None:
        session = channel.session
        if session is None or (not session.has_ticket and not session.id):
            return
        self._kept.pop((made, name, address), None)
        self._kept[made, name, address] = session
        if len(self._kept) > MAX_SESSIONS:
            del self._kept[next(iter(self._kept))]

    def forget(self, made: ssl.SSLContext, name: str, address: str) -> None:
        self._kept.pop((made, name, address), None)
