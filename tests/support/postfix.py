"""Strangers to speak SMTP with: a private Postfix, its smtp-sink and smtp-source, and swaks.

    pytestmark = [pytest.mark.interop, needs("postfix", root=True)]

    with Postfix(["user@inbox.test"], relay={"relay.test": "127.0.0.2:2525"}) as postfix:
        postfix.ports[0]; postfix.mail("user@inbox.test"); postfix.log()
    with SmtpSinks({"c1.test": ["-r", "RCPT"]}) as sinks:
        sinks.ports["c1.test"]

The Postfix has its own configuration, queue, data, log and mailboxes, and leaves those of the machine alone. It looks
nobody up in the DNS.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.mta import BASE, ROUTE, Mta, wait_for

HOST = "127.0.0.1"
PACKAGES = "postfix swaks opendkim-tools libmail-dkim-perl unbound"

MAIN_CF = """\
compatibility_level = 3.6
config_directory = {base}/etc
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/log/mail.log
maillog_file_prefixes = {base}/log
myhostname = postfix.test
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
local_header_rewrite_clients =
smtpd_error_sleep_time = 0
virtual_transport = virtual
virtual_mailbox_domains = {domains}
virtual_mailbox_maps = texthash:{base}/etc/mailboxes
virtual_mailbox_base = {base}/mail
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
relay_domains = {relayed}
transport_maps = texthash:{base}/etc/transport
smtp_dns_support_level = disabled
smtp_host_lookup = native
"""

MASTER_CF = """\
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""


def find_program(name: str) -> str | None:
    """The full path of a program, also where root's directories are not in PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def needs(*programs: str, root: bool = False) -> pytest.MarkDecorator:
    """Skips where these programs are not installed, or where we are not root and have to be."""
    missing = [name for name in programs if find_program(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed (Debian: apt-get install {PACKAGES})"
    else:
        reason = "only root can start Postfix"
    return pytest.mark.skipif(bool(missing) or (root and os.geteuid() != 0), reason=reason)


def run(program: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; it must have been asked for with `needs`."""
    path = find_program(program)
    assert path is not None
    return subprocess.run([path, *arguments], input=b"", capture_output=True, timeout=timeout, check=False)


def free_ports(count: int) -> list[int]:
    """Different ports nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def is_listened(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def mta_towards(path: Path, port: int, more: str = "") -> Iterator[Mta]:
    """A running system that delivers everything to one port, unless `more` has other routes."""
    route = ROUTE.format(host=HOST, port=port)
    with Mta(path / "mta", BASE.format(dns="", default_route=route, sleep_after="1m") + more) as mta:
        # Or every test of a module would wait for its rows in vain.
        assert not mta.process_ended(), mta.log()
        yield mta


def assert_balanced(mta: Mta) -> None:
    """The audit, taken when it sees all mail (a live one leaves out the last seconds), agrees with the log's rows."""
    accepted, delivered, bounced = (mta.count(kind) for kind in ("r", "d", "b"))
    mta.wait_for(lambda: mta.audit()["accepted"] == accepted)
    audit = mta.audit()
    assert audit["balanced"], audit
    found = {key: audit[key] for key in ("accepted", "delivered", "bounced", "queued")}
    queued = accepted - delivered - bounced
    assert found == {"accepted": accepted, "delivered": delivered, "bounced": bounced, "queued": queued}


class Postfix:
    """A private Postfix on 127.0.0.1. `listeners` are smtpd's, each with a port and settings of its own; mail to
    `mailboxes` goes into maildirs, mail to the domains of `relay` to another host, any other recipient is refused."""

    def __init__(
        self,
        mailboxes: Sequence[str],
        *,
        settings: Mapping[str, str] | None = None,
        listeners: Sequence[str] = ("",),
        relay: Mapping[str, str] | None = None,
    ) -> None:
        self.ports = free_ports(len(listeners))
        self._mailboxes, self._settings = mailboxes, settings or {}
        self._listeners, self._relay = listeners, relay or {}
        # pytest's own folders are closed to other users, and Postfix's must be able to walk through.
        self.base = Path(tempfile.mkdtemp(prefix="spoolmta-postfix-"))
        self.base.chmod(0o755)

    def __repr__(self) -> str:
        return f"Postfix({self.base}, ports={self.ports})"

    def __enter__(self) -> Postfix:
        try:
            self._write_files()
            started = self._command("start")
            assert started.returncode == 0, f"postfix start: {started.stderr.decode()}\n{self.log()}"
            wait_for(lambda: all(map(is_listened, self.ports)), self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._command("abort")
        wait_for(lambda: self._command("status").returncode != 0, self.log)
        shutil.rmtree(self.base, ignore_errors=True)

    def _write_files(self) -> None:
        config, mail = self.base / "etc", self.base / "mail"
        for name in ("etc", "queue", "data", "log", "mail"):
            (self.base / name).mkdir(mode=0o755)
        owner = run("postconf", "-d", "-h", "mail_owner").stdout.decode().strip()
        nobody = pwd.getpwnam("nobody")
        shutil.chown(self.base / "data", owner)
        os.chown(mail, nobody.pw_uid, nobody.pw_gid)
        main = MAIN_CF.format(
            base=self.base,
            domains=" ".join(sorted({address.partition("@")[2] for address in self._mailboxes})),
            relayed=" ".join(self._relay),
            uid=nobody.pw_uid,
            gid=nobody.pw_gid,
        )
        main += "".join(f"{key} = {value}\n" for key, value in self._settings.items())
        master = MASTER_CF
        for port, setting in zip(self.ports, self._listeners, strict=True):
            master += f"{HOST}:{port} inet n - n - - smtpd\n" + (f"  -o {setting}\n" if setting else "")
        (config / "main.cf").write_text(main)
        (config / "master.cf").write_text(master)
        (config / "mailboxes").write_text("".join(f"{address} {address}/\n" for address in self._mailboxes))
        routes = ((domain, *address.rpartition(":")) for domain, address in self._relay.items())
        (config / "transport").write_text("".join(f"{name} smtp:[{host}]:{port}\n" for name, host, _, port in routes))

    def _command(self, word: str) -> subprocess.CompletedProcess[bytes]:
        return run("postfix", "-c", str(self.base / "etc"), word)

    def mail(self, address: str) -> list[bytes]:
        """The messages in a mailbox, as Postfix wrote them (line ends are LF)."""
        folder = self.base / "mail" / address / "new"
        return [file.read_bytes() for file in folder.iterdir()] if folder.exists() else []

    def log(self) -> str:
        file = self.base / "log" / "mail.log"
        return file.read_text(errors="replace") if file.exists() else "no log of Postfix"


class SmtpSinks:
    """Processes of smtp-sink, one for each name, each with options of its own."""

    def __init__(self, options: Mapping[str, Sequence[str]], ports: Mapping[str, int] | None = None) -> None:
        self._options = options
        self.ports = dict(ports or zip(options, free_ports(len(options)), strict=True))
        self._processes: list[subprocess.Popen[bytes]] = []

    def __repr__(self) -> str:
        return f"SmtpSinks({self.ports})"

    def __enter__(self) -> SmtpSinks:
        program = find_program("smtp-sink")
        assert program is not None
        # It wants to be told so where it stays root.
        user = ["-u", pwd.getpwuid(0).pw_name] if os.geteuid() == 0 else []
        for name, options in self._options.items():
            command = [program, *user, *options, f"inet:{HOST}:{self.ports[name]}", "100"]
            # It warns of every client that leaves.
            self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        try:
            wait_for(lambda: all(map(is_listened, self.ports.values())), lambda: f"an smtp-sink is deaf: {self}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
