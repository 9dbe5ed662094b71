"""Asks the DNS and this machine whether they are in step with the configuration. Nothing is sent, nothing need run.

The checks are pure (`diagnosis`); here they are given subjects, answers, and a time in which all must be done. A
question is asked once, however many checks want to know, in a few threads.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import dns.exception
import dns.flags
import dns.name
import dns.resolver
import msgspec

from spoolmta import diagnosis, dkim
from spoolmta.address import show
from spoolmta.diagnosis import Finding, Sender, Subject, Verdict
from spoolmta.errors import UnavailableError
from spoolmta.model import Config, DomainKey, Vmta
from spoolmta.published import lookup
from spoolmta.published.dkim_key import DkimKey
from spoolmta.published.lookup import Answer, Question
from spoolmta.published.zone import Remedy
from spoolmta.resolver import explain, nameserver, text_of

PATIENCE = 5.0
"""Seconds for one question, within those for all."""
THREADS = 16
MAX_RECORDS = 100
ANY = "*"
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_PRIVATE = [*map(ipaddress.ip_network, "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7".split())]
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that nobody has (RFC 5737, RFC 3849), to learn which source address the system would choose."""


class Wishes(msgspec.Struct, frozen=True):
    """What the operator tells beside the configuration. `seen_as`: by source address what receivers see, where it is
    translated on the way; `nameservers` are `address:port`, none for those of the configuration or the system."""

    senders: tuple[str, ...] = ()
    return_path: str = ""
    seen_as: Mapping[str, str] = {}
    nameservers: tuple[str, ...] = ()
    seconds: float = 30.0


class Examined(msgspec.Struct, frozen=True):
    """One source address of a VMTA. `senders_from` says how the sender domains are known."""

    vmta: str
    address: str
    seen_as: str
    ehlo: str
    senders: tuple[str, ...]
    senders_from: str
    findings: tuple[Finding, ...]


class Inquiry:
    """Name servers as several threads ask them: each question once, and none when the time is up."""

    def __init__(self, nameservers: tuple[str, ...], seconds: float) -> None:
        try:
            self._resolver = dns.resolver.Resolver(configure=not nameservers)
        except dns.resolver.NoResolverConfiguration:
            raise UnavailableError("this machine has no name servers: give --nameserver ADDRESS") from None
        if nameservers:
            self._resolver.nameservers = [nameserver(text) for text in nameservers]
        self._resolver.use_edns(0, 0, 1232)
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._asked: dict[Question, Future[Answer]] = {}

    def __repr__(self) -> str:
        return f"Inquiry({self._resolver.nameservers}, {len(self._asked)} asked)"

    def ask(self, question: Question) -> Answer:
        with self._lock:
            future = self._asked.get(question)
            is_ours = future is None
            if future is None:
                future = self._asked[question] = Future()
        if is_ours:
            try:
                future.set_result(self._query(question))
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()

    def _query(self, question: Question) -> Answer:
        what = f"{question.kind} of {show(question.name)}"
        left = self._end - time.monotonic()
        if left <= 0:
            return Answer(failure=f"{what}: not asked, the time of --timeout is up")
        try:
            # not by from_text: a name out of a macro may hold backslashes
            name = dns.name.Name([*question.name.encode("ascii").split(b"."), b""])
            found = self._resolver.resolve(
                name, question.kind, raise_on_no_answer=False, search=False, lifetime=min(PATIENCE, left)
            )
        except dns.resolver.NXDOMAIN:
            return Answer()
        except (dns.exception.DNSException, OSError, ValueError) as error:
            return Answer(failure=f"{what}: {show(explain(error))}")
        return Answer(tuple(text_of(record) for record in list(found.rrset or ())[:MAX_RECORDS]))


def examine(config: Config, names: tuple[str, ...], wishes: Wishes) -> list[Examined]:
    """Every source address of these VMTAs (all of them, where none is named), in the order of the configuration."""
    inquiry = Inquiry(wishes.nameservers or config.nameservers, wishes.seconds)
    with ThreadPoolExecutor(THREADS) as pool:
        begun = []
        for vmta in _meant(config, names):
            for address, ehlo in _sources(config, vmta):
                subject, senders_from = _subject(wishes, keys_of(config, vmta), address, ehlo)
                checks = diagnosis.checks(subject) if _is_public(subject.address) else []
                futures = [pool.submit(lookup.resolve, check, inquiry.ask) for check in checks]
                begun.append((vmta.name, address, subject, senders_from, futures))
        return [
            Examined(
                name,
                address,
                subject.address,
                subject.ehlo,
                tuple(sender.domain for sender in subject.senders),
                senders_from,
                (plumbed(address), *(future.result() for future in futures)) if futures else _unknown(address),
            )
            for name, address, subject, senders_from, futures in begun
        ]


def _meant(config: Config, names: tuple[str, ...]) -> list[Vmta]:
    """The VMTA `default` is there unwritten, too: where no source falls back on it, it counts only by its name."""
    is_idle = len(config.vmtas) > 1 and all(one.default_virtual_mta != "default" for one in config.sources.values())
    left_out = Vmta(name="default") if is_idle else None
    return [vmta for vmta in config.vmtas.values() if (vmta.name in names if names else vmta != left_out)]


def keys_of(config: Config, vmta: Vmta) -> tuple[DkimKey, ...]:
    """The DKIM keys that sign the mail of a VMTA, its own and the global ones; the domain "*" is that of any sender.
    Raises UnavailableError."""
    return tuple(public_key(key) for key in (*vmta.domain_keys, *config.domain_keys))


def public_key(key: DomainKey) -> DkimKey:
    """What belongs into the DNS for a key. Raises UnavailableError."""
    try:
        with open(key.path, "rb") as file:
            algorithm, public = dkim.public_text(dkim.private_of(file.read(), is_tried=True))
    except (OSError, dkim.BadKey) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise UnavailableError(f"the key {key.path} cannot be used: {text}") from error
    return DkimKey(key.selector, key.domain, public, algorithm)


def _subject(wishes: Wishes, keys: tuple[DkimKey, ...], address: str, ehlo: str) -> tuple[Subject, str]:
    """Whose mail goes out from an address, and how that is known."""
    domains, known_from = wishes.senders, "--from"
    if not domains:
        domains, known_from = tuple(dict.fromkeys(key.domain for key in keys if key.domain != ANY)), "domain-key"
    if not domains:
        domains, known_from = (ehlo,), "the EHLO name"
    senders = tuple(Sender(domain, wishes.return_path or domain) for domain in domains)
    signing = [
        msgspec.structs.replace(key, domain=domain)
        for key in keys
        for domain in (domains if key.domain == ANY else (key.domain,))
    ]
    seen_as = wishes.seen_as.get(address, address)
    return Subject(seen_as, ehlo, senders, tuple(dict.fromkeys(signing))), known_from


def _sources(config: Config, vmta: Vmta) -> list[tuple[str, str]]:
    """Addresses and EHLO names: those of smtp-source-host, or what the system chooses; "" if that is nothing."""
    name = vmta.host_name or config.host_name
    if vmta.source_hosts:
        return [(host.address, host.host_name or name) for host in vmta.source_hosts]
    return [(address, name) for address in _chosen_by_system()] or [("", name)]


def _chosen_by_system() -> list[str]:
    """A connected UDP socket has a source address, and has sent nothing."""
    found = []
    for family, target in _ELSEWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((target, 25))
                found.append(sock.getsockname()[0])
        except OSError:
            continue
    return found


def _is_public(address: str) -> bool:
    """Whether receivers may see it as it is; loopback addresses too, where tests live."""
    return bool(address) and not any(ipaddress.ip_address(address) in network for network in _PRIVATE)


def _unknown(address: str) -> tuple[Finding, ...]:
    """What there is to say of an address that receivers do not see."""
    if not address:
        return (Finding("address", "", Verdict.UNKNOWN, "no smtp-source-host, and the system has no way to anywhere"),)
    why = f"a private address: say with --seen-as {address}=ADDRESS what receivers see"
    return plumbed(address), Finding("DNS", address, Verdict.UNKNOWN, why)


def plumbed(address: str) -> Finding:
    """Whether a connection can come from this address, tried as the delivery does it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.bind((address, 0))
    except OSError as error:
        if error.errno not in _NOT_HERE:
            return Finding("address", address, Verdict.UNKNOWN, f"cannot be bound: {error.strerror}")
        remedy = Remedy(f"on this machine: ip address add {address} dev INTERFACE")
        return Finding("address", address, Verdict.WRONG, "no address of this machine", (remedy,))
    return Finding("address", address, Verdict.OK, "of this machine")
