"""Whether DNS and this machine are in step with the configuration, and what to publish where they are not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec

from spoolmta.cli.frame import cli, json_option, load, plain, show
from spoolmta.errors import DataError, TemporaryError, UnavailableError, UsageError

if TYPE_CHECKING:
    from spoolmta.doctor import Examined
    from spoolmta.published.zone import Remedy


@cli.command()
@click.argument("vmtas", nargs=-1, metavar="[VMTA]...")
@click.option("--from", "senders", multiple=True, metavar="DOMAIN", help="A domain in From: of their mail.")
@click.option("--return-path", default="", metavar="DOMAIN", help="The domain of x-sender, where it is another one.")
@click.option("--seen-as", multiple=True, metavar="OURS=SEEN", help="What receivers see of a translated address.")
@click.option("--nameserver", "nameservers", multiple=True, metavar="ADDRESS[:PORT]", help="Ask this name server.")
@click.option("--timeout", "seconds", default=30.0, show_default=True, help="Seconds for all questions together.")
@json_option
@click.pass_context
def doctor(
    context: click.Context,
    vmtas: tuple[str, ...],
    senders: tuple[str, ...],
    return_path: str,
    seen_as: tuple[str, ...],
    nameservers: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Say of each source address whether this machine has it, whether PTR, EHLO name, SPF, DKIM, DMARC and the way back
    of bounces are in order, and what to publish where they are not. Asks name servers only; sends no mail.

    Without --from the domains of the VMTA's DKIM keys are taken for its senders, or else its EHLO names. The exit
    status is 69 if something is wrong, 75 if nothing is but something cannot be told."""
    from spoolmta import doctor as examination
    from spoolmta.published import zone

    config = load(context)
    names = tuple(name.lower() for name in vmtas)
    for name in names:
        if name not in config.vmtas:
            raise DataError(f"there is no VMTA called {plain(name)}")
    if not seconds > 0:
        raise UsageError("--timeout: expected more than 0 seconds")
    wishes = examination.Wishes(
        tuple(domain_of("--from", text) for text in senders),
        domain_of("--return-path", return_path) if return_path else "",
        dict(addresses_of(text) for text in seen_as),
        nameservers_of(nameservers),
        seconds,
    )
    examined = examination.examine(config, names, wishes)
    remedies = zone.to_publish(remedy for one in examined for finding in one.findings for remedy in finding.remedies)
    tell_json(examined, remedies) if as_json else tell(examined, remedies)
    verdicts = [finding.verdict.value for one in examined for finding in one.findings]
    if "wrong" in verdicts:
        sys.exit(UnavailableError.exit_status)
    if "cannot tell" in verdicts:
        sys.exit(TemporaryError.exit_status)


def domain_of(option: str, text: str) -> str:
    from spoolmta.config import places, values

    try:
        return places.read_host_name(text)
    except values.BadValue as error:
        raise UsageError(f"{option}: {error}") from None


def nameservers_of(texts: tuple[str, ...]) -> tuple[str, ...]:
    from spoolmta.config import places, values

    try:
        return tuple(places.NAMESERVERS.read([*texts]))
    except values.BadValue as error:
        raise UsageError(f"--nameserver: {error}") from None


def addresses_of(text: str) -> tuple[str, str]:
    from spoolmta.config import places

    ours, seen = (places.read_ip(part) for part in (text.partition("=")[::2]))
    if ours is None or seen is None or ours.version != seen.version:
        raise UsageError(f'--seen-as: expected two addresses like "10.0.0.5=192.0.2.5", got "{plain(text)}"')
    return str(ours), str(seen)


def tell_json(examined: list[Examined], remedies: list[Remedy]) -> None:
    addresses = [msgspec.to_builtins(one) for one in examined]
    publish = [{**msgspec.to_builtins(remedy), "line": remedy.line} for remedy in remedies]
    click.echo(msgspec.json.format(msgspec.json.encode({"addresses": addresses, "publish": publish})).decode())


def tell(examined: list[Examined], remedies: list[Remedy]) -> None:
    """A table for each address, and all that is to be published together under them."""
    for one in examined:
        seen = f", seen as {one.seen_as}" if one.seen_as != one.address else ""
        click.echo(f"{one.vmta}: {one.address or 'no address'}{seen}, EHLO {one.ehlo}")
        click.echo(f"senders ({one.senders_from}): {plain(one.senders)}")
        rows = ({"check": f.check, "about": f.about, "is": f.verdict.value, "found": f.found} for f in one.findings)
        show(rows, False, "")
        click.echo()
    if remedies:
        click.echo("what to publish:")
    for remedy in remedies:
        click.echo(f"    {plain(remedy.line)}")
