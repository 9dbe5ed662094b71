"""What the settings of TLS need besides a good value, before any mail depends on it: certificate files that are there,
readable and of the right kind, ciphers that exist, and for DANE a name server that can be believed."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Iterator

from spoolmta.config.files import Problems
from spoolmta.config.lines import Path
from spoolmta.model import Config, DomainTable, Setting


def check(config: Config, problems: Problems) -> None:
    """Note every certificate file that cannot be used, at the line that names it, once; and a use-dane that could do
    nothing."""
    seen: set[tuple[str, int]] = set()
    is_believed = config.dnssec_trusted or all(_is_here(server) for server in config.nameservers)
    for path, setting in _settings(config):
        if path[-1] == "use-dane" and setting.value and not is_believed:
            problems.add((setting.file, setting.line), path, _NOT_BELIEVED)
        use = _USES.get(str(path[-1]))
        if use is None or not setting.value or (setting.file, setting.line) in seen:
            continue
        seen.add((setting.file, setting.line))
        load, what = use
        try:
            load(str(setting.value))
        except ssl.SSLError:
            problems.add((setting.file, setting.line), path, f"{setting.value} is not {what}")
        except OSError as error:
            reason = error.strerror or str(error)
            problems.add((setting.file, setting.line), path, f"{setting.value}: {reason}: name {what}")


_NOT_BELIEVED = (
    "the name servers of [dns] are not on this machine: what they say of DNSSEC is believed only with "
    "dnssec-trusted = true there, and without it there is no DANE"
)


def _is_here(server: str) -> bool:
    return ipaddress.ip_address(server.rpartition(":")[0].strip("[]")).is_loopback


def _settings(config: Config) -> Iterator[tuple[Path, Setting]]:
    for tables, path in (
        (config.domains, ()),
        *((layer, ("vmta", vmta.name)) for vmta in config.vmtas.values() for layer in vmta.layers),
    ):
        yield from _of_tables(tables, path)


def _of_tables(tables: tuple[DomainTable, ...], path: Path) -> Iterator[tuple[Path, Setting]]:
    for table in tables:
        for field, setting in table.settings.items():
            yield (*path, "domain", table.pattern, field.replace("_", "-")), setting


def _take_ciphers(text: str) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(text)


def _load_client(file: str) -> None:
    # without the function, OpenSSL would ask for a password on the terminal
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(file, password=lambda: "")


def _load_authorities(file: str) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)


_USES: dict[str, tuple[Callable[[str], None], str]] = {
    "smtp-client-certificate": (
        _load_client,
        "a PEM file with a certificate, its chain and its private key, without a password",
    ),
    "smtp-tls-ciphers": (_take_ciphers, 'a list of ciphers that OpenSSL knows, like "ECDHE+AESGCM:ECDHE+CHACHA20"'),
    "smtp-tls-ca-file": (_load_authorities, "a PEM file with the certificates of the authorities to trust"),
}
