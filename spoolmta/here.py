"""Which mail hosts are this machine: mail that comes back to us would go round for ever (RFC 5321 section 5.1)."""

from __future__ import annotations

import functools
import ipaddress

import msgspec

from spoolmta.derived import derived
from spoolmta.model import Config


class Here(msgspec.Struct, frozen=True):
    """What we are called, and where we send from. `allows_loopback`: a host on this machine is somebody else."""

    names: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    allows_loopback: bool = False

    def is_own(self, address: str) -> bool:
        """Whether a connection to this address would end on this machine, as far as we know."""
        if _is_local(address):
            return not self.allows_loopback
        return address in self.addresses


@derived
def here(config: Config) -> Here:
    """All names and source addresses of all VMTAs: each of them is this machine."""
    hosts = [host for vmta in config.vmtas.values() for host in vmta.source_hosts]
    names = {config.host_name, *(vmta.host_name for vmta in config.vmtas.values()), *(host.host_name for host in hosts)}
    addresses = frozenset(host.address for host in hosts)
    return Here(frozenset(name.lower() for name in names if name), addresses, config.allow_loopback_mx)


@functools.lru_cache(maxsize=4096)
def _is_local(address: str) -> bool:
    """127/8, ::1, 0.0.0.0 and ::, which the system takes for 127.0.0.1 and ::1; also written as ::ffff:127.0.0.1."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_unspecified
