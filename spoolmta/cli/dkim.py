"""Keys for DKIM: made, and compared with what DNS says."""

from __future__ import annotations

import os
import pwd
import sys
import time
import tomllib

import click
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from spoolmta import dkim as signing
from spoolmta.cli.doctor import nameservers_of
from spoolmta.cli.frame import Group, cli, config_path, json_option, load, plain, show
from spoolmta.config import values
from spoolmta.config.signing import KEYS
from spoolmta.doctor import Inquiry, public_key
from spoolmta.errors import ConfigError, TemporaryError, UnavailableError, UsageError
from spoolmta.model import DomainKey, DomainPolicy
from spoolmta.published import dkim_key, lookup, zone
from spoolmta.published.dkim_key import DkimKey


@cli.group(cls=Group)
def dkim() -> None:
    """Keys with which mail is signed (DKIM)."""


@dkim.command("keygen")
@click.argument("selector")
@click.argument("domain")
@click.option("--bits", type=click.IntRange(1024, 8192), default=2048, show_default=True, help="Of an RSA key.")
@click.option("--ed25519", "is_ed25519", is_flag=True, help="An Ed25519 key (RFC 8463), beside an RSA one.")
@click.option("--output", default="", metavar="FILE", help="Where to write it [keys/DOMAIN.SELECTOR.pem].")
@click.pass_context
def keygen(context: click.Context, /, selector: str, domain: str, bits: int, is_ed25519: bool, output: str) -> None:
    """Make a key: writes the PEM file, never over another one, and prints the record to publish."""
    try:
        ((_, domain, _),) = [
            (key.selector, key.domain, key.path) for key in KEYS.read([f"{selector},{domain},{output or 'x'}"])
        ]
    except values.BadValue as error:
        raise UsageError(str(error)) from None
    if domain == "*" or "," in selector:
        raise UsageError("a record is published in one domain, at one selector: name them")
    private = ed25519.Ed25519PrivateKey.generate() if is_ed25519 else rsa.generate_private_key(65537, bits)
    path = output or os.path.join("keys", f"{domain}.{selector}.pem")
    write(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), user_of(context))
    kind, public = signing.public_text(private)
    click.echo(f"the key is in {path}; put this into [vmta.NAME], or at the top of the configuration:", err=True)
    click.echo(f'domain-key = ["{selector},{domain},{os.path.abspath(path)}"]', err=True)
    click.echo("and this record into the zone:", err=True)
    key = DkimKey(selector, domain, public, kind)
    click.echo(f"{key.name}. IN TXT {zone.quoted(key.record)}")


@dkim.command("check")
@click.option("--nameserver", "nameservers", multiple=True, metavar="ADDRESS[:PORT]", help="Ask this name server.")
@click.option("--timeout", "seconds", default=30.0, show_default=True, help="Seconds for all questions together.")
@json_option
@click.pass_context
def check(context: click.Context, /, nameservers: tuple[str, ...], seconds: float, as_json: bool) -> None:
    """Try every key of the configuration: is it whole, is its record in the DNS, does a message that it signs verify by
    that record? The exit status is 69 if something is wrong, 75 if something cannot be told."""
    config = load(context)
    inquiry = Inquiry(nameservers_of(nameservers) or config.nameservers, seconds)
    listed = [("all", key) for key in config.domain_keys]
    listed += [(vmta.name, key) for vmta in config.vmtas.values() for key in vmta.domain_keys]
    rows = [{"vmta": vmta, "key": key.path, **tried(key, inquiry)} for vmta, key in listed]
    show(rows, as_json, "no keys: domain-key names them")
    verdicts = {row["is"] for row in rows}
    if "wrong" in verdicts:
        sys.exit(UnavailableError.exit_status)
    if "cannot tell" in verdicts:
        sys.exit(TemporaryError.exit_status)


def tried(key: DomainKey, inquiry: Inquiry) -> dict[str, str]:
    """What is to be said of one key."""
    try:
        public = public_key(key)
    except UnavailableError as error:
        return {"record": "", "is": "wrong", "found": str(error)}
    if key.domain == "*":
        return {
            "record": "",
            "is": "ok",
            "found": "for any domain: `spoolmta doctor --from DOMAIN` looks at its record",
        }
    try:
        wrong = lookup.resolve(dkim_key.check(public), inquiry.ask)
        if not wrong:
            wrong = verified(key, lookup.resolve(lookup.records(public.name, "TXT"), inquiry.ask)[0])
    except lookup.Unanswered as error:
        return {"record": public.name, "is": "cannot tell", "found": plain(str(error))}
    if wrong:
        return {"record": public.name, "is": "wrong", "found": plain("; ".join(wrong))}
    return {"record": public.name, "is": "ok", "found": "a message that is signed by it verifies"}


def verified(key: DomainKey, record: str) -> list[str]:
    """Whether dkimpy, which is not ours, finds good what this key signs."""
    import dkim as dkimpy  # type: ignore[import-untyped]

    message = f"From: someone@{key.domain}\r\nSubject: test\r\n\r\nHello\r\n".encode()
    with open(key.path, "rb") as file:
        mine = signing.key_of(key.selector, key.domain, file.read())
    made = signing.signed(message, [[mine]], DomainPolicy(), time.time())
    try:
        is_good = dkimpy.DKIM(made).verify(dnsfunc=lambda _name, **_: record.encode())
    except dkimpy.DKIMException as error:
        return [f"a message that is signed by it does not verify: {error}"]
    return [] if is_good else ["a message that is signed by it does not verify"]


def user_of(context: click.Context) -> str:
    """The user that runs the system, if a configuration names one: it is not read as a whole, since the key may be what
    is still missing in it."""
    try:
        with open(config_path(context.obj), "rb") as file:
            user = tomllib.load(file).get("user", "")
    except (ConfigError, OSError, ValueError):
        return ""
    return user if isinstance(user, str) else ""


def write(path: str, pem: bytes, user: str) -> None:
    """0640 with the group of the system's user; 0600 where there is none. A folder that is made for it likewise."""
    group = group_of(user)
    try:
        if not os.path.exists(folder := os.path.dirname(path) or "."):
            os.makedirs(folder)
            give(folder, group, 0o750, 0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already: a key is never overwritten; choose another selector") from None
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
        give(path, group, 0o640, 0o600)
    except OSError as error:
        os.unlink(path)
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from error


def group_of(user: str) -> int:
    """The group of this user; -1 where there is none."""
    try:
        return pwd.getpwnam(user).pw_gid if user else -1
    except KeyError:
        return -1


def give(path: str, group: int, mode: int, alone: int) -> None:
    """To a group, with this mode; where that cannot be, the owner keeps it for himself."""
    try:
        os.chown(path, -1, group)
    except PermissionError:
        group = -1
    os.chmod(path, mode if group >= 0 else alone)
