"""Values that name a place in the net: hosts, domains, addresses, ports."""

from __future__ import annotations

import ipaddress
import re

from spoolmta import address
from spoolmta.config.values import BadValue, Kind, listed, number, shown, toml, wrong
from spoolmta.model import Host, SourceHost

_PORT = re.compile(r"[0-9]{1,5}")
LOOKUP_MX = "lookup-mx:"


def _domain_name(text: str) -> str:
    """A domain as A-labels in lower case, as the queue folders have it."""
    if text[:1] == "[":
        raise BadValue("an address literal cannot stand here")
    if not text or "@" in text:
        raise BadValue("there is an @ in it" if text else "it is empty")
    try:
        return address.split(f"x@{text}")[2]
    except address.NotAnAddress as error:
        raise BadValue(str(error)) from None


def read_host_name(value: object) -> str:
    expected = 'a host name like "mta.example.com"'
    if not isinstance(value, str):
        raise wrong(expected, value)
    try:
        return _domain_name(value)
    except BadValue as error:
        raise BadValue(f"expected {expected}, got {shown(value)}: {error}") from None


def _read_queue(value: object) -> str:
    expected = 'the name of a queue like "bulk.queue", or "" for the domain by itself'
    if not isinstance(value, str):
        raise wrong(expected, value)
    try:
        return _domain_name(value) if value else ""
    except BadValue as error:
        raise BadValue(f"expected {expected}, got {shown(value)}: {error}") from None


def read_pattern(text: str) -> str:
    """A domain pattern, normalised: `*`, `example.com`, `*.example.com`, `[*.]example.com`."""
    if text == "*":
        return text
    prefix = next((prefix for prefix in ("[*.]", "*.") if text.startswith(prefix)), "")
    try:
        return prefix + _domain_name(text[len(prefix) :])
    except BadValue as error:
        forms = '"*", "example.com", "*.example.com" (its subdomains) or "[*.]example.com" (both)'
        raise BadValue(f"expected a domain pattern, {forms}: {error}") from None


def _read_mx_pattern(value: object) -> str:
    """`*.google.com` (any host below it) or `mx.example.com`."""
    expected = 'the name of a mail host, like "mx.example.com" or "*.example.com"'
    if not isinstance(value, str):
        raise wrong(expected, value)
    prefix = "*." if value.startswith("*.") else ""
    try:
        return prefix + _domain_name(value[len(prefix) :])
    except BadValue as error:
        raise BadValue(f"expected {expected}, got {shown(value)}: {error}") from None


def read_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def _read_port(text: str) -> int | None:
    port = int(text) if _PORT.fullmatch(text) else 0
    return port if 1 <= port <= 65_535 else None


def _read_source_host(value: object) -> SourceHost:
    expected = 'an address and a name, like "192.0.2.10 news.example.com", or the address alone'
    words = value.split() if isinstance(value, str) else []
    if not 1 <= len(words) <= 2:
        raise wrong(expected, value)
    ip = read_ip(words[0])
    if ip is None:
        if len(words) == 2 and read_ip(words[1]):
            raise BadValue(f'the address stands first: write "{words[1]} {words[0]}"')
        if "/" in words[0]:
            raise BadValue(f"a network cannot stand here, list its addresses one by one, got {shown(value)}")
        raise wrong(expected, value)
    return SourceHost(str(ip), read_host_name(words[1]) if len(words) == 2 else "")


def _read_nameserver(value: object) -> str:
    expected = 'an address like "127.0.0.1", "127.0.0.1:53" or "[2001:db8::1]:53"'
    if not isinstance(value, str):
        raise wrong(expected, value)
    if ip := read_ip(value):
        host, port = str(ip), 53
    else:
        text, _, after = value.rpartition(":")
        if value.endswith("]"):
            text, after = value, "53"
        is_bracketed = text[:1] == "[" and text[-1:] == "]"
        ip = read_ip(text[1:-1] if is_bracketed else text)
        number_ = _read_port(after)
        if ip is None or number_ is None or is_bracketed != (ip.version == 6):
            raise wrong(expected, value)
        host, port = str(ip), number_
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_host(value: object) -> Host:
    expected = 'a host like "mx.example.com", "mx.example.com:2525", "[192.0.2.1]:2525" or "[IPv6:2001:db8::1]"'
    if not isinstance(value, str):
        raise wrong(expected, value)
    is_looked_up = value.startswith(LOOKUP_MX)
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([^:]*))?", value.removeprefix(LOOKUP_MX))
    port = _read_port(found[2]) if found and found[2] is not None else 0
    if found is None:
        raise wrong(expected, value)
    if port is None:
        raise BadValue(f"expected a port from 1 to 65535 behind the colon, got {shown(value)}")
    if found[1][0] != "[":
        return Host(read_host_name(found[1]), port, is_looked_up)
    if is_looked_up:
        raise BadValue(f'expected a domain behind "{LOOKUP_MX}", got {shown(value)}')
    inside = found[1][1:-1]
    ip = read_ip(inside[5:] if inside[:5].lower() == "ipv6:" else inside)
    if ip is None:
        raise wrong(expected, value)
    return Host(str(ip), port)


def _read_hosts(value: object) -> tuple[tuple[Host, ...], ...]:
    """Preference levels: the hosts of a list are one level, each list within it the next one."""
    if not isinstance(value, list):
        raise wrong('a list of hosts like ["mx.example.com", "[192.0.2.1]:2525"]', value)
    level: list[Host] = []
    deeper: list[tuple[Host, ...]] = []
    for item in value:
        if not isinstance(item, list):
            if deeper:
                raise BadValue(f"{shown(item)} stands behind a list: put it before the lists, or into one of them")
            level.append(_read_host(item))
        elif not item:
            raise BadValue("a preference level is an empty list")
        else:
            deeper += _read_hosts(item)
    return ((tuple(level),) if level else ()) + tuple(deeper)


def _write_hosts(value: object) -> str:
    assert isinstance(value, tuple)
    if not value:
        return "[]"
    first, *others = [[_write_host(host) for host in level] for level in value]
    return toml([*first, *others])


def _write_host(host: Host) -> str:
    name = host.name
    if ip := read_ip(name):
        name = f"[IPv6:{name}]" if ip.version == 6 else f"[{name}]"
    name = f"{LOOKUP_MX}{name}" if host.lookup_mx else name
    return f"{name}:{host.port}" if host.port else name


def by_mx(limit: Kind) -> Kind:
    """A table of names of mail hosts (`*.google.com` for all below it) and a limit for each."""

    def read(value: object) -> tuple[tuple[str, object], ...]:
        if not isinstance(value, dict) or not value:
            raise wrong('a table of mail hosts and limits, like { "*.google.com" = 50 }', value)
        return tuple((_read_mx_pattern(key), limit.read(item)) for key, item in value.items())

    def write(value: object) -> str:
        assert isinstance(value, tuple)
        return "{ " + ", ".join(f"{toml(pattern)} = {limit.write(item)}" for pattern, item in value) + " }"

    return Kind(read, write)


HOST_NAME = Kind(read_host_name)
QUEUE = Kind(_read_queue)
PORT = number(25, 1, 65_535)
HOSTS = Kind(_read_hosts, _write_hosts)
SOURCE_HOSTS = Kind(listed(_read_source_host, '["192.0.2.10 news.example.com"]'))
MX_PATTERNS = Kind(listed(_read_mx_pattern, '["*.google.com"]'))
NAMESERVERS = Kind(listed(_read_nameserver, '["127.0.0.1:53"]', is_empty_allowed=True))
