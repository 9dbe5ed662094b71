"""The limits that a VMTA shares with others, as its process asks about them (`sharing.Partners`): of its pools, of the
whole machine, and of single hosts of receivers from one of our addresses."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable

import msgspec

from spoolmta import sharing
from spoolmta.common import Common
from spoolmta.model import UNLIMITED, Config, Rate
from spoolmta.spool.layout import Layout


class Terms(msgspec.Struct, frozen=True):
    """One shared limit, as configured: the file it is counted in, what it is called, and its numbers."""

    file: str
    connections_held: str
    rates_held: str = ""
    connections: int = 0
    recipients: Rate = UNLIMITED
    volume: Rate = UNLIMITED


def terms_of(config: Config, vmta: str) -> list[Terms]:
    """What the process of a VMTA shares: the machine's connections, and the limits of each pool it is a member of."""
    found = [Terms("total", "total-max-smtp-out", "", config.total_max_smtp_out)] if config.total_max_smtp_out else []
    for pool in config.pools.values():
        rates = (pool.max_smtp_msg_rate, pool.max_smtp_data_volume_rate)
        if vmta in pool.virtual_mta and (pool.max_smtp_out or rates != (UNLIMITED, UNLIMITED)):
            name = f" of the pool {pool.name}"
            found.append(Terms(f"pool.{pool.name}", f"max-smtp-out{name}", name, pool.max_smtp_out, *rates))
    return found


def hosts_terms(config: Config, host: str, address: str, source: str) -> list[Terms]:
    """What is shared by all connections from `source` to a host at an address: every limit that is for it."""
    held = [
        (f"mx-connection-limit of {pattern}", limit)
        for pattern, limit in config.mx_connection_limit
        if host == pattern or (pattern[:2] == "*." and host.endswith(pattern[1:]))
    ]
    if config.ip_connection_limit:
        ip = ipaddress.ip_address(address)
        held += [
            (f"ip-connection-limit of {text}", limit)
            for text, limit in config.ip_connection_limit
            if (network := ipaddress.ip_network(text)).version == ip.version and ip in network
        ]
    return [Terms(_digest(f"{name} {source}"), name, connections=limit) for name, limit in held]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class Place:
    """A connection's place in the limits of its host. It is given back once, whoever gives it back."""

    def __init__(self, commons: list[Common]) -> None:
        self._commons = commons

    def __repr__(self) -> str:
        return f"Place({self._commons})"

    def leave(self) -> None:
        for common in self._commons:
            common.close_one()
        self._commons = []

    def is_wanted(self) -> bool:
        """Whether another process wants it more."""
        return any(common.is_wanted() for common in self._commons)


class Commons:
    """All shared limits of one VMTA. `chance` gives numbers from 0 to 1."""

    def __init__(self, config: Config, vmta: str, layout: Layout, chance: Callable[[], float]) -> None:
        self._vmta = vmta
        self._layout = layout
        self._chance = chance
        self._connections = 0
        self._every: dict[str, Common] = {}
        self._hosts: dict[str, Common] = {}
        self.reconfigure(config)

    def __repr__(self) -> str:
        return f"Commons({[*self._every.values()]}, {[*self._hosts.values()]})"

    def reconfigure(self, config: Config) -> None:
        """What is open counts under new limits too."""
        self._config = config
        terms = {one.file: one for one in terms_of(config, self._vmta)}
        for file in self._every.keys() - terms.keys():
            self._every.pop(file).close()
        for file, one in terms.items():
            common = self._every.get(file)
            if common is None:
                common = self._every[file] = Common(self._layout.common(file), one.connections_held, one.rates_held)
            own = self._connections if one.connections else 0
            common.set_limits(own, one.connections, one.recipients, one.volume)
        self._limiting = [common for common in self._every.values() if common.connections]
        self._rated = [common for common in self._every.values() if common.has_rates]
        self.has_connections, self.has_rates = bool(self._limiting), bool(self._rated)

    def close(self) -> None:
        for common in (*self._every.values(), *self._hosts.values()):
            common.close()

    def rest(self) -> None:
        """Once in a while: take no part where nothing is wanted."""
        for common in (*self._limiting, *self._hosts.values()):
            common.rest()

    # As the scheduler asks

    def open(self) -> tuple[float, str]:
        for number, common in enumerate(self._limiting):
            if not common.open():
                for other in self._limiting[:number]:
                    other.close_one()
                return sharing.AGAIN * (0.5 + self._chance()), common.connections_held
        self._connections += 1
        return 0.0, ""

    def close_one(self) -> None:
        self._connections -= 1
        for common in self._limiting:
            common.close_one()

    def is_wanted(self) -> bool:
        return any(common.is_wanted() for common in self._limiting)

    def most(self) -> float:
        return min(common.most for common in self._rated)

    def take(self, recipients: int, size: int) -> tuple[float, str]:
        for number, common in enumerate(self._rated):
            pause, held = common.take(recipients, size)
            if pause:
                for other in self._rated[:number]:
                    other.give_back(recipients, size, 0.0)
                # Others wait for the same moment: who comes a little later takes what has gathered by then.
                return max(pause, common.pace() / 4 * (0.5 + self._chance())), held
        return 0.0, ""

    def give_back(self, size: int, age: float) -> None:
        for common in self._rated:
            common.give_back(0, size, age)

    # As the opener asks

    def place(self, host: str, address: str, source: str) -> Place | str:
        """A place for one more connection to a host, or the directive that forbids it."""
        taken: list[Common] = []
        for terms in hosts_terms(self._config, host, address, source):
            common = self._hosts.get(terms.file)
            if common is None:
                common = self._hosts[terms.file] = Common(self._layout.common(terms.file), terms.connections_held)
            if common.connections != terms.connections:
                common.set_limits(common.own, terms.connections)
            if not common.open():
                Place(taken).leave()
                return terms.connections_held
            taken.append(common)
        return Place(taken)
