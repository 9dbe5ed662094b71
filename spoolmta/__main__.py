"""`python -m spoolmta`."""

from spoolmta.cli import main

main()
