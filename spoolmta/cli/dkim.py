"""Keys for DKIM: made, and compared with what DNS says."""

from __future__ import annotations

import base64
import os
import pwd
import tomllib

import click
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from spoolmta.cli.frame import Group, cli, config_path
from spoolmta.config import values
from spoolmta.config.signing import KEYS
from spoolmta.errors import ConfigError, UnavailableError, UsageError

STRING = 255
"""Bytes of one string of a TXT record (RFC 1035 section 3.3)."""


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
    if domain == "*":
        raise UsageError("a record is published in one domain: name it")
    private = ed25519.Ed25519PrivateKey.generate() if is_ed25519 else rsa.generate_private_key(65537, bits)
    path = output or os.path.join("keys", f"{domain}.{selector}.pem")
    write(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), user_of(context))
    if isinstance(private, ed25519.Ed25519PrivateKey):
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    else:
        public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    kind = "ed25519" if is_ed25519 else "rsa"
    click.echo(f"the key is in {path}; put this into [vmta.NAME], or at the top of the configuration:", err=True)
    click.echo(f'domain-key = ["{selector},{domain},{path}"]', err=True)
    click.echo("and this record into the zone:", err=True)
    click.echo(record(selector, domain, f"v=DKIM1; k={kind}; p={base64.b64encode(public).decode()}"))


def record(selector: str, domain: str, text: str) -> str:
    """A line for a zone file, in strings that are short enough."""
    pieces = [text[at : at + STRING] for at in range(0, len(text), STRING)]
    return f"{selector}._domainkey.{domain}. IN TXT {' '.join(f'{chr(34)}{piece}{chr(34)}' for piece in pieces)}"


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
    """0640 with the group of the system's user; 0600 where there is none."""
    mode, group = 0o600, -1
    if user:
        try:
            mode, group = 0o640, pwd.getpwnam(user).pw_gid
        except KeyError:
            pass
    try:
        if not os.path.exists(folder := os.path.dirname(path) or "."):
            os.makedirs(folder)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already: a key is never overwritten; choose another selector") from None
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from error
    with open(descriptor, "wb") as file:
        try:
            os.fchown(descriptor, -1, group)
        except PermissionError:
            mode = 0o600
        os.fchmod(descriptor, mode)
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
