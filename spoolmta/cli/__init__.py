"""The command line: parse, call one function, print."""

from spoolmta.cli.frame import main as main
