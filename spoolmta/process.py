"""How a process of the system begins: descriptors, signals, privileges, notices."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import logging
import os
import pwd
import resource
import signal
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import setproctitle

from spoolmta import bounce, processor
from spoolmta.errors import ConfigError, SpoolError, SpoolmtaError
from spoolmta.model import Config

log = logging.getLogger("spoolmta")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_PR_SET_PDEATHSIG = 1
_FAULTS = (errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""Troubles of the machine, not of the program: a sentence says more than a traceback."""


def become_child(parent: int, title: str, keep: int, work: Callable[[], None]) -> NoReturn:
    """The first moments of a child: nothing of the parent's stays open but what it needs; never returns."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the role listens; the supervisor repeats it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        os.closerange(3, keep) if keep >= 0 else None
        os.closerange(max(keep + 1, 3), 1 << 20)
        introduce(title)
        gc.enable()
        if os.getppid() == parent:
            work()
        code = 0
    except SpoolmtaError as error:
        log.error("%s", error)
        code = error.exit_status
    except OSError as error:
        if error.errno in _FAULTS:
            log.error("%s: %s", error.strerror, error.filename or title)
            code = SpoolError.exit_status
        else:
            log.exception("%s failed", title)
    except BaseException:
        log.exception("%s failed", title)
    finally:
        logging.shutdown()
        os._exit(code)


def introduce(title: str) -> None:
    """The process is called so. Notices go to stderr, one line each, with the time and who speaks."""
    setproctitle.setproctitle(f"spoolmta: {title}")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {title}: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)


def may_go_ahead() -> None:
    """Let this process and those it forks take precedence (`processor.Precedence`), also as somebody else. Only root
    may; whoever is not can be given it (LimitNICE of systemd)."""
    most = 20 + processor.AHEAD
    if resource.getrlimit(resource.RLIMIT_NICE)[0] < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NICE, (most, most))


def drop_privileges(config: Config) -> None:
    """Become the `user` of the configuration for good, when started as root. Everything that is imported lazily must be
    imported before; the rules of bounces are read here, for the user may not enter where spoolmta lies."""
    user = config.user
    if os.geteuid() != 0 or not user:
        return
    import encodings.ascii
    import encodings.idna  # noqa: F401  (cannot be read any more once we are somebody else)

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"user: there is no user {user!r} on this machine") from None
    bounce.classifier(config)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def warm_up(event_loop: str) -> None:
    """Import what is imported late, before the forks: it costs each child its own memory, and may not be readable any
    more once we are somebody else."""
    import concurrent.futures.thread  # noqa: F401
    import encodings.idna  # noqa: F401
    import http.client  # noqa: F401

    import dns.rdtypes.ANY.CNAME
    import dns.rdtypes.ANY.MX
    import dns.rdtypes.ANY.OPT
    import dns.rdtypes.ANY.SOA
    import dns.rdtypes.ANY.TLSA
    import dns.rdtypes.ANY.TXT
    import dns.rdtypes.IN.A
    import dns.rdtypes.IN.AAAA  # noqa: F401

    from spoolmta import tls

    tls.warm_up()
    if event_loop == "uvloop":
        import uvloop  # noqa: F401


def run_loop(event_loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on the configured event loop ("uvloop" or "asyncio")."""
    factory = None
    if event_loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
