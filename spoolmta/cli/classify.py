"""The bounce category of replies, by the rules in force; and which of these rules are of no use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click
import msgspec

from spoolmta.cli.frame import SEARCHED, cli, json_option, load, plain
from spoolmta.errors import DataError, UsageError
from spoolmta.model import BounceRule

if TYPE_CHECKING:
    from spoolmta.bounce import Classifier

AT_ONCE = 512
"""Lines that are written together."""


@cli.command()
@click.argument("replies", nargs=-1, metavar="[REPLY|FILE]...")
@click.option("--explain", is_flag=True, help="Also tell which rule decided, as FILE:LINE.")
@click.option("--lint", is_flag=True, help="Tell which rules can decide nothing, or decide none of the replies.")
@json_option
@click.pass_context
def classify(context: click.Context, replies: tuple[str, ...], explain: bool, lint: bool, as_json: bool) -> None:
    """Tell the bounce category of replies: CATEGORY, a tab and the reply, a line each.

    Replies are arguments like "550 5.1.1 No such user", or lines of files, or of the standard input ("-", or nothing).
    Nothing need be running. The rules of the configuration, if there is one, come first. --json gives an object a line.
    """
    from spoolmta.bounce import Classifier

    classifier = Classifier(_own_rules(context))
    if lint:
        _tell_findings(classifier, _lines(replies) if replies else (), as_json)
        return
    from spoolmta import bounce, pattern

    def told(line: str) -> str:
        reply = bounce.reply_in(line)
        status, text = bounce.status_of(reply), pattern.text_of(reply)
        if not explain and not as_json:
            return f"{classifier.category(status, text)}\t{line if line.isprintable() else plain(line)}\n"
        rule = classifier.rule(status, text)
        category, place = (rule.category, _place(rule)) if rule else (bounce.OTHER, "")
        if not as_json:
            return f"{category}\t{place}\t{plain(line)}\n"
        found = {"category": category, "status": status, "rule": place, "reply": plain(line)}
        return msgspec.json.encode(found).decode() + "\n"

    _write(told(line) for line in _lines(replies))


def _own_rules(context: click.Context) -> tuple[BounceRule, ...]:
    has_config = context.obj or os.environ.get("SPOOLMTA_CONFIG") or any(os.path.exists(path) for path in SEARCHED)
    return load(context).bounces if has_config else ()


def _place(rule: BounceRule) -> str:
    return f"{rule.file}:{rule.line}"


def _tell_findings(classifier: Classifier, lines: Iterable[str], as_json: bool) -> None:
    from spoolmta import bounce, lint

    findings = lint.check_bounces(classifier, [bounce.reply_in(line) for line in lines])
    for finding in findings:
        if as_json:
            found = {"file": finding.rule.file, "line": finding.rule.line, "text": finding.text}
            click.echo(msgspec.json.encode(found).decode())
        else:
            click.echo(plain(str(finding)))
    if any(finding.is_proven for finding in findings):
        sys.exit(DataError.exit_status)


def _lines(sources: Iterable[str]) -> Iterator[str]:
    """The replies in arguments, files and the standard input. A file's line may hold anything."""
    for source in sources or ("-",):
        if source[:3].isdecimal() and source[3:4] in (" ", "-"):
            yield source
        elif source == "-":
            yield from _decoded(sys.stdin.buffer)
        else:
            try:
                with open(source, "rb") as file:
                    yield from _decoded(file)
            except OSError as error:
                raise UsageError(f"{plain(source)} cannot be read: {error.strerror}") from None


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        yield line.rstrip(b"\r\n").decode("utf-8", "replace")


def _write(texts: Iterable[str]) -> None:
    waiting: list[str] = []
    together = 1 if sys.stdout.isatty() else AT_ONCE
    for text in texts:
        waiting.append(text)
        if len(waiting) >= together:
            sys.stdout.write("".join(waiting))
            waiting.clear()
    sys.stdout.write("".join(waiting))
    sys.stdout.flush()
