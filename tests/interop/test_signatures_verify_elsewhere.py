"""What we sign is good to three verifiers that are not ours, with the records that `dkim keygen` prints in an unbound,
as it comes to a sink and as a real Postfix passes it on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mta import ROOT, World, wait_for
from tests.support.postfix import Postfix, find_program, needs

pytestmark = [pytest.mark.interop, needs("postfix", "opendkim-testmsg", "unbound", "ip", "perl", root=True)]

NETNS = f"spoolmta-signed-{os.getpid()}"
CONFIG = """
[vmta.rsa]
domain-key = ["s1,us.test,s1.pem"]
[vmta.both]
domain-key = ["s1,us.test,s1.pem", "s2,us.test,s2.pem"]
[vmta.old]
domain-key = ["s1,us.test,s1.pem"]
[vmta.old.domain."*"]
dk-sign = true
[vmta.simple]
domain-key = ["s1,us.test,s1.pem"]
[vmta.simple.domain."*"]
dkim-headers-canon = "simple"
dkim-body-canon = "simple"
dk-sign = true
dk-canon = "simple"
[domain."relay.test"]
smtp-hosts = ["[127.0.0.1]:{postfix}"]
"""
FROM = b"From: Some One <someone@us.test>\nDate: Thu, 26 Nov 2026 10:00:00 +0000\n"
"""OpenDKIM takes no message without a date, and none with two subjects."""
MESSAGES = {
    "plain": FROM + b"To: you@there.test\nSubject: hello\n\nHello\n",
    "folded": FROM + b"Subject: a very\n\tlong \t subject\n  indeed  \nTo: a@b.test,\n c@d.test\n\n one \t two \n\n\n",
    "8-bit": FROM + "Subject: Grüße\nContent-Type: text/plain; charset=utf-8\nMIME-Version: 1.0\n\nGrüße\n".encode(),
    "bare-cr": FROM + b"Subject: cr\n\nan old\rline end\r\rand\r\nothers\n",
    "no-line-end": FROM + b"Subject: end\n\nno line end at the end  ",
    "no-body": FROM + b"Subject: nothing\n\n",
    "blank-body": FROM + b"Subject: blanks\n\n \t \n\n \n",
    "dots": FROM + b"Subject: dots\n\n.\n..\n.a\n\n.",
    "long": FROM + b"Subject: long\n\n" + b"x" * 990 + b"\n" + b"y z " * 240 + b"\n",
    "lists": FROM + b"List-Unsubscribe: <https://us.test/u>\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\n\nx\n",
    "twice": FROM + b"Subject: one\nSubject: two\nTo: a@b.test\nTo: c@d.test\nReceived: by x\nReceived: by y\n\nx\n",
}
MANY = FROM + b"".join(b"X-%d: 1\n" % number for number in range(10_000)) + b"To: a@b.test\n\nx\n"

PERL = r"""
use Mail::DKIM::Verifier;
my $dkim = Mail::DKIM::Verifier->new();
while (<STDIN>) { s/\015?\012$//; $dkim->PRINT("$_\015\012"); }
$dkim->CLOSE;
foreach my $signature ($dkim->signatures) {
    my $kind = ref($signature) =~ /DkSignature/ ? "domainkeys" : "dkim";
    print join(" ", $kind, $signature->algorithm, $signature->result), "\n";
}
"""


class Scene(NamedTuple):
    direct: dict[str, Path]
    relayed: dict[str, Path]


def inside(*words: str, data: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """A program that asks the unbound with our records."""
    command = ["ip", "netns", "exec", NETNS, *words]
    text = data.read_bytes() if data else b""
    return subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)


@contextmanager
def unbound(folder: Path, records: list[str]) -> Iterator[None]:
    """A network of its own in which an unbound has these records, and nobody else is asked."""
    lines = "\n".join(f"  local-data: '{record}'" for record in records)
    (folder / "unbound.conf").write_text(
        'server:\n  interface: 127.0.0.1\n  username: ""\n  chroot: ""\n  pidfile: ""\n  use-syslog: no\n'
        f"  do-daemonize: no\n  module-config: iterator\n  local-zone: us.test. static\n{lines}\n"
        "remote-control:\n  control-enable: no\n"
    )
    settings = Path("/etc/netns") / NETNS
    settings.mkdir(parents=True)
    (settings / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    subprocess.run(["ip", "netns", "add", NETNS], check=True)
    try:
        subprocess.run(["ip", "-n", NETNS, "link", "set", "lo", "up"], check=True)
        with open(folder / "unbound.log", "wb") as log:
            program = find_program("unbound") or ""
            process = subprocess.Popen(
                ["ip", "netns", "exec", NETNS, program, "-d", "-c", str(folder / "unbound.conf")],
                stdout=log,
                stderr=log,
            )
        try:
            asking = "import dns.resolver; dns.resolver.resolve('s1._domainkey.us.test', 'TXT', lifetime=1)"
            wait_for(lambda: not inside(sys.executable, "-c", asking).returncode, (folder / "unbound.log").read_text)
            yield
        finally:
            process.terminate()
            process.wait(10)
    finally:
        subprocess.run(["ip", "netns", "delete", NETNS], check=False)
        (settings / "resolv.conf").unlink()
        settings.rmdir()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    path = tmp_path_factory.mktemp("signed")
    with (
        World(path, maildir=str(path / "received")) as world,
        Postfix(["user@inbox.test"], relay={"relay.test": world.sinks[0]}) as postfix,
        world.mta(CONFIG.format(postfix=postfix.ports[0]), start=False) as mta,
    ):
        records = []
        for selector, kind in (("s1", "--bits=2048"), ("s2", "--ed25519")):
            command = [sys.executable, "-m", "spoolmta", "dkim", "keygen", selector, "us.test", kind]
            output = str(mta.path / f"{selector}.pem")
            done = subprocess.run([*command, "--output", output], capture_output=True, text=True, cwd=ROOT, check=True)
            records.append(done.stdout.strip())
        mta.start()
        count = 0
        for vmta in ("rsa", "both", "old", "simple"):
            for name, data in MESSAGES.items():
                for domain in ("direct.test", "relay.test"):
                    head = f"x-sender: bounce@us.test\nx-receiver: a@{domain}\nx-virtual-mta: {vmta}\n"
                    test_id = f"X-Test-Id: {domain}/{vmta}-{name}\n"
                    mta.drop(f"a@{domain}", data=(head + test_id).encode() + data)
                    count += 1
        mta.drop("a@direct.test", data=b"x-sender: b@us.test\nx-receiver: a@direct.test\nx-virtual-mta: rsa\n"
                 b"X-Test-Id: direct.test/rsa-many\n" + MANY)  # fmt: skip
        mta.wait_for(lambda: mta.count("d", "b") == count + 1)
        assert mta.count("b") == 0, mta.rows("b")
        wait_for(lambda: len(os.listdir(path / "received" / "new")) == count + 1, postfix.log)
        found: dict[str, dict[str, Path]] = {"direct.test": {}, "relay.test": {}}
        for file in (path / "received" / "new").iterdir():
            test_id = re.search(rb"X-Test-Id: (\S+)/(\S+)\r?\n", file.read_bytes())
            assert test_id
            found[test_id[1].decode()][test_id[2].decode()] = file
        with unbound(path, records):
            yield Scene(found["direct.test"], found["relay.test"])


def everything(scene: Scene) -> Iterator[tuple[str, Path]]:
    for way, files in (("direct", scene.direct), ("relayed", scene.relayed)):
        yield from ((f"{way} {name}", path) for name, path in sorted(files.items()))


def test_all_arrive_with_their_signatures(scene: Scene) -> None:
    assert set(scene.relayed) | {"rsa-many"} == set(scene.direct)
    for name, path in everything(scene):
        header = path.read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")[0]
        wanted = (2 if " both-" in name else 1, int(" old-" in name or " simple-" in name))
        assert (header.count(b"DKIM-Signature:"), header.count(b"DomainKey-Signature:")) == wanted, name


def test_opendkim_finds_them_good(scene: Scene) -> None:
    program = find_program("opendkim-testmsg") or ""
    for name, path in everything(scene):
        if name.endswith("-twice"):
            continue
        done = inside(program, data=path)
        assert (done.returncode, done.stderr) == (0, b""), f"{name}: {done.stderr.decode()}"


def test_mail_dkim_finds_all_of_them_good(scene: Scene) -> None:
    if inside("perl", "-MMail::DKIM", "-e", "1").returncode:
        pytest.skip("Mail::DKIM is not installed (Debian: apt-get install libmail-dkim-perl)")
    knows_ed = not inside("perl", "-MMail::DKIM::Algorithm::ed25519_sha256", "-e", "1").returncode  # Debian 12 does not
    for name, path in everything(scene):
        done = inside("perl", "-e", PERL, data=path)
        found = sorted(done.stdout.decode().splitlines())
        expected = ["dkim rsa-sha256 pass"]
        expected += [f"dkim ed25519-sha256 {'pass' if knows_ed else 'invalid'}"] if " both-" in name else []
        expected += ["domainkeys rsa-sha1 pass"] if " old-" in name or " simple-" in name else []
        assert found == sorted(expected), f"{name}: {found} {done.stderr.decode()}"


def test_dkimverify_finds_them_good(scene: Scene) -> None:
    checking = (
        "import sys, dkim\nfor path in sys.argv[1:]:\n"
        "    message = dkim.DKIM(open(path, 'rb').read())\n"
        "    count = sum(name.lower() == b'dkim-signature' for name, _ in message.headers)\n"
        "    print(all(message.verify(idx=number) for number in range(count)), path)"
    )
    paths = [str(path) for _, path in everything(scene)]
    done = inside(sys.executable, "-c", checking, *paths)
    lines = done.stdout.decode().splitlines()
    assert lines == [f"True {path}" for path in paths], done.stderr.decode()
