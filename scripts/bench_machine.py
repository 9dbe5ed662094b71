"""What the benchmark borrows from the machine: a filesystem of its own, free ports, and a receiver.

Creating a file on an ext4 without a journal costs 30 to 600 microseconds, depending on how many were deleted in the
last minute; with a journal it is a steady 28. So root measures on an ext4 with a journal on a loop device
that is made for the run and removed at its end.
"""

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench_measure import BenchError, read_stat

SINK_CONNECTIONS = 4096
SINK_BACKLOG = 1000
MKFS = {
    # Everything is written now, so that no background thread initialises tables while we measure.
    "ext4": ["mkfs.ext4", "-q", "-F", "-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}


def find_program(name: str) -> str:
    """The full path of a program, also where root's directories are not in PATH."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise BenchError(
            f"{name} is not installed (Debian: postfix for smtp-sink and smtp-source, openssl, e2fsprogs, xfsprogs)"
        )
    return path


def run_quietly(*command: str | Path) -> str:
    """Run a command to its end; what it printed, or a BenchError with what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise BenchError(f"`{' '.join(str(part) for part in command)}` failed with status {done.returncode}: {said}")
    return done.stdout + done.stderr


def parse_size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMGT]?)", text.strip().upper())
    if found is None:
        raise BenchError(f"a size looks like 8G or 500M, not like {text!r}")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2]]


@contextlib.contextmanager
def bench_directory(kind: str, size: str, given: Path | None, keep: bool) -> Iterator[tuple[Path, str]]:
    """A directory for both spools and one line on what it lies on; removed at the end, however that comes."""
    if given is None and os.geteuid() == 0:
        with loop_filesystem(kind, size, keep) as mounted:
            yield mounted, f"{kind}{' with a journal' if kind == 'ext4' else ''} on a loop device of {size}"
        return
    if given is None:
        print("bench: not root, so no filesystem of our own: figures depend on the one below", file=sys.stderr)
    base = Path(tempfile.mkdtemp(prefix="spoolmta-bench-", dir=given)).resolve()
    base.chmod(0o755)  # Postfix's own users must be able to walk through
    try:
        kind_of = run_quietly(find_program("stat"), "-f", "-c", "%T", base).strip()
        yield base, f"a directory given, on {kind_of}"
    finally:
        if keep:
            print(f"bench: kept {base}", file=sys.stderr)
        else:
            shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def loop_filesystem(kind: str, size: str, keep: bool) -> Iterator[Path]:
    """A new filesystem in a sparse file, mounted over a loop device."""
    base = Path(tempfile.mkdtemp(prefix="spoolmta-bench-"))
    base.chmod(0o755)
    image, mounted = base / "image", base / "fs"
    mounted.mkdir()
    is_mounted = False
    try:
        image.touch(0o600)
        os.truncate(image, parse_size(size))
        run_quietly(find_program(MKFS[kind][0]), *MKFS[kind][1:], image)
        run_quietly(find_program("mount"), "-o", "loop,noatime", image, mounted)
        is_mounted = True
        yield mounted
    finally:
        if keep:
            print(f"bench: kept {mounted} (mounted from {image})", file=sys.stderr)
        else:
            if is_mounted:
                unmount(mounted)
            shutil.rmtree(base, ignore_errors=True)


def unmount(mounted: Path) -> None:
    for _ in range(20):
        if subprocess.run([find_program("umount"), mounted], capture_output=True).returncode == 0:
            return
        time.sleep(0.25)
    # Somebody still holds a file: it disappears from the tree now and for good with the last holder.
    run_quietly(find_program("umount"), "-l", mounted)


def refuse_listened_port(port: int) -> None:
    """smtp-sink shares a port with whoever listens there and says nothing; half of the mail would go elsewhere."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # no IPv6 here
        with probe:
            # With this option the dead connections of an earlier run do no harm, but a listener does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError as error:
                if family == socket.AF_INET6 and error.errno != 98:
                    continue
                raise BenchError(f"port {port} is in use on {address}: choose another") from error


def wait_for_port(port: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchError(f"nobody answers on port {port} after {seconds:.0f} s") from error
            time.sleep(0.05)
        else:
            return


class Sink:
    """A receiver on one port; its CPU is told apart and counted to neither system."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.port = port
        self.name = Path(command[0]).name
        refuse_listened_port(port)
        raise_descriptor_limit()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            wait_for_port(port)
        except BaseException:
            self.close()
            raise
        if self.process.poll() is not None:
            raise BenchError(f"{self.name} left with status {self.process.returncode}; see {log}")

    def __repr__(self) -> str:
        return f"Sink({self.name}, port={self.port}, pid={self.process.pid})"

    def cpu_us(self) -> int:
        stat = read_stat(self.process.pid)
        if stat is None or self.process.poll() is not None:
            raise BenchError("the sink died during a round")
        return stat.own_us

    def close(self) -> None:
        stop_process(self.process, 5.0)


def smtp_sink(port: int, log: Path) -> Sink:
    """Postfix's."""
    command = [find_program("smtp-sink"), "-m", str(SINK_CONNECTIONS)]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]
    return Sink([*command, f"inet:127.0.0.1:{port}", str(SINK_BACKLOG)], port, log)


def own_sink(port: int, log: Path, certificate: Path | None = None) -> Sink:
    """`bench_sink`, which does STARTTLS and answers by recipient."""
    program = Path(__file__).with_name("bench_sink.py")
    return Sink([sys.executable, str(program), str(port), *([str(certificate)] if certificate else [])], port, log)


def make_certificate(path: Path) -> Path:
    """A certificate with its key in one file. A key on P-256 costs the sink a twentieth of one with RSA."""
    if not path.exists():
        command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        names = ["-subj", "/CN=sink.test", "-keyout", str(path), "-out", f"{path}.cert"]
        run_quietly(find_program("openssl"), *command, *names)
        path.write_text(path.read_text() + Path(f"{path}.cert").read_text())
    return path


def make_key(path: Path) -> Path:
    """An RSA key of 2,048 bits, which both systems sign with."""
    if not path.exists():
        run_quietly(find_program("openssl"), "genrsa", "-out", str(path), "2048")
        path.chmod(0o600)
    return path


def stop_process(process: subprocess.Popen[bytes], patience: float) -> bool:
    """SIGTERM, and SIGKILL after `patience` seconds; whether SIGTERM was enough."""
    if process.poll() is not None:
        return True
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 16
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
