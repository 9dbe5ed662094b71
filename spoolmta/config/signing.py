"""Keys for DKIM and how mail is signed; and whether a key file can be used, before any mail depends on it."""

from __future__ import annotations

import grp
import pathlib
import pwd
import re
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spoolmta import address, dkim
from spoolmta.config import values
from spoolmta.config.files import Problems
from spoolmta.config.lines import Path
from spoolmta.config.values import BadValue, Kind, toml, wrong
from spoolmta.model import Config, DomainKey

if TYPE_CHECKING:
    import os

_EXAMPLE = '["s1,example.com,keys/example.com.s1.pem"]'
IF_PRESENT = "if-x-dkim-options-present"
_SELECTOR = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*", re.IGNORECASE)


def _read_key(value: object) -> DomainKey:
    parts = [part.strip() for part in value.split(",", 2)] if isinstance(value, str) else []
    if len(parts) != 3 or not all(parts) or "\0" in parts[2]:
        raise wrong(f"a list of keys as selector, domain (* for any) and PEM file, like {_EXAMPLE}", value)
    selector, domain, path = parts
    if not _SELECTOR.fullmatch(selector) or len(selector) > 100:
        raise BadValue(f'"{address.show(selector)}" is no selector: it becomes a part of a name in DNS')
    return DomainKey(selector, domain if domain == "*" else _domain(domain), path)


def _domain(text: str) -> str:
    try:
        return dkim.domain_of(text)
    except address.NotAnAddress as error:
        raise BadValue(f'"{address.show(text)}" is no domain: {error}') from None


def _read_identity(value: object) -> str:
    """`sender-or-from`, `strict-from`, `@domain`, or an address. What stands in a signature is ASCII."""
    if value in ("sender-or-from", "strict-from"):
        return str(value)
    text = value if isinstance(value, str) else ""
    local, at, domain = text.rpartition("@")
    try:
        if not at or not text.isascii() or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]*", local):
            raise wrong('"sender-or-from", "strict-from", "@example.com" or an address', value)
        return f"{local}@{_domain(domain)}"
    except BadValue:
        raise wrong('"sender-or-from", "strict-from", "@example.com" or an address', value) from None


def _read_sign(value: object) -> bool | str:
    if not isinstance(value, bool) and value != IF_PRESENT:
        raise wrong(f'true, false or "{IF_PRESENT}"', value)
    return value


KEYS = Kind(
    values.listed(_read_key, _EXAMPLE, is_empty_allowed=True),
    lambda keys: toml([f"{key.selector},{key.domain},{key.path}" for key in keys]),  # type: ignore[attr-defined]
)


def _read_header(value: object) -> str:
    name: str = values.FIELD_NAME.read(value)
    if ";" in name:  # which ends the list of names in a signature
        raise wrong('the name of a header field without ";", like "X-Campaign"', value)
    return name


IDENTITY = Kind(_read_identity)
SIGN = Kind(_read_sign)
HEADERS = Kind(values.listed(_read_header, '["X-Campaign"]', is_empty_allowed=True))


def check(config: Config, problems: Problems) -> None:
    """Note every key file that cannot be used, at the line that names it, once a file."""
    seen: set[tuple[str, int, str]] = set()
    for path, key in _named(config):
        place = (key.file, key.line, key.path)
        if place not in seen:
            seen.add(place)
            try:
                _look_at(key, config.user)
            except dkim.BadKey as error:
                problems.add((key.file, key.line), path, f"{key.path}: {error}")


def _named(config: Config) -> Iterator[tuple[Path, DomainKey]]:
    yield from ((("domain-key",), key) for key in config.domain_keys)
    for vmta in config.vmtas.values():
        yield from ((("vmta", vmta.name, "domain-key"), key) for key in vmta.domain_keys)


def _look_at(key: DomainKey, user: str) -> None:
    """Raises BadKey. A file that everybody may read is no secret; one that only the system's user can read is not
    looked into by others (an operator who asks for the status)."""
    file = pathlib.Path(key.path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise dkim.BadKey("this is no file: name a PEM file with a private key")
        if status.st_mode & 0o007:
            raise dkim.BadKey(
                f"everybody on this machine may use this key (mode {status.st_mode & 0o777:04o}): chmod 0640, and chgrp"
                " to the group of the user that runs spoolmta"
            )
        if user and not _reads(file, user):
            raise dkim.BadKey(
                f"the user {user}, who runs spoolmta, cannot read it: chgrp to its group, and chmod 0640 (0750 for the"
                " folders above it)"
            )
        pem = file.read_bytes()
    except PermissionError:
        return
    except OSError as error:
        raise dkim.BadKey(f"{(error.strerror or str(error)).lower()}: `spoolmta dkim keygen` makes a key") from None
    dkim.key_of(key.selector, key.domain, pem)


def _may(status: os.stat_result, entry: pwd.struct_passwd, what: int) -> bool:
    """Whether a user may read (4) a file or go through (1) a folder, by its mode."""
    if entry.pw_uid == 0:
        return True
    if status.st_uid == entry.pw_uid:
        return bool(status.st_mode >> 6 & what)
    try:
        members = grp.getgrgid(status.st_gid).gr_mem
    except KeyError:
        members = []
    is_member = status.st_gid == entry.pw_gid or entry.pw_name in members
    return bool(status.st_mode >> (3 if is_member else 0) & what)


def _reads(file: pathlib.Path, user: str) -> bool:
    """Whether this user can read a file; True of one that does not exist, which is another error."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return True
    return _may(file.stat(), entry, 4) and all(_may(folder.stat(), entry, 1) for folder in file.resolve().parents)
