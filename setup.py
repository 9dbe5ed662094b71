"""What every message passes, compiled: with SPOOLMTA_COMPILE=1 these modules become C extensions (mypyc).

They are the same sources, checked by the same types, and need a C compiler once, where they are built. Without the
variable the package is plain Python. Not in the list, and so always interpreted: what runs once in a process's life or
once a connection; `disk`, whose functions tests replace to see what a failing disk does; and modules whose Structs
msgspec reads from a file (a compiled class keeps no annotations that it could read).
"""

import os

from setuptools import setup

COMPILED = """
    address columns wording bounce entry message selection verdict response record rate limits backlog waiting dealing
    site sources concurrency sharing metering assignment sessions sites schedule reaction
    smtp/wire smtp/transaction smtp/allowance
    clock processor shared journal accounting control transport spool/partition spool/intake
    lane ledger inflow carrier pickup delivery
    smtp/client smtp/starttls smtp/auth protection opener resolver commons common survey passage standing rerouting
    mailer agenda policy
""".split()


def extensions() -> list[object]:
    if os.environ.get("SPOOLMTA_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    sources = [f"spoolmta/{name}.py" for name in COMPILED]
    return list(mypycify(sources, opt_level="3", debug_level="1", multi_file=True, group_name="spoolmta"))


setup(ext_modules=extensions())
