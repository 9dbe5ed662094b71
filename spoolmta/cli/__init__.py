"""The command line: parse, call one function, print."""

from spoolmta.cli import explain as explain
from spoolmta.cli import figures as figures
from spoolmta.cli import queue as queue
from spoolmta.cli import removal as removal
from spoolmta.cli import switches as switches
from spoolmta.cli import system as system
from spoolmta.cli.frame import main as main
