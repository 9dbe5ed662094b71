"""The process that gives rows to a program is killed, again and again, while rows come and files are rotated."""

from __future__ import annotations

from pathlib import Path

from tests.support import spool_kit

KILLS = 25

PROGRAM = """
import os, random, signal, sys, time
from spoolmta.accounting import Log
from spoolmta.columns import USUAL
from spoolmta.feeder import Feeder, take
from spoolmta.model import AcctFile
from spoolmta.rotation import Rotation
from spoolmta.shared import Cell, Page

folder, kills = sys.argv[1], int(sys.argv[2])
command = ("sh", "-c", f'exec cat > "{folder}/runs/$(date +%s.%N)"')
file = AcctFile(path=f"{folder}/pipes/one/acct.csv", records=("d",), command=command)
os.mkdir(f"{folder}/runs")
page, chance, count = Page(2), random.Random(), 0
log = Log((file,), page, page.row("writer"))
rotation = Rotation((file,), time.time())

def write(rows):
    global count
    for count in range(count + 1, count + rows + 1):
        log.write(["d", *(str(count) for _ in USUAL["d"][1:])])
    log.flush()

def start():
    parent, child = os.getpid(), os.fork()
    if child == 0:
        take(file, lambda: True)
        feeder = Feeder(file, page, page.row("feeder"))
        signal.signal(signal.SIGTERM, lambda *_: feeder.leave())
        feeder.run(lambda: os.getppid() != parent)
        os._exit(0)
    return child

for _ in range(kills):
    feeder = start()
    end = time.monotonic() + chance.choice((0.02, 0.1, 0.2))
    while time.monotonic() < end:
        write(chance.randrange(60))
        time.sleep(0.01)
        if chance.random() < 0.1:
            rotation.begin([file], page, time.time())
            log.flush()
        rotation.finish([page.row("writer")[Cell.LOG_GENERATION]], page)
    os.kill(feeder, signal.SIGKILL)
    os.waitpid(feeder, 0)
feeder = start()
write(1)
before = page.row("feeder")[Cell.MESSAGES]
while page.row("feeder")[Cell.QUEUED] or page.row("feeder")[Cell.MESSAGES] == before:
    time.sleep(0.02)
os.kill(feeder, signal.SIGTERM)
os.waitpid(feeder, 0)
print(count)
"""


def test_no_row_is_lost_when_the_feeder_is_killed_and_each_run_goes_on_before_the_first_that_was_not_read(
    tmp_path: Path,
) -> None:
    with spool_kit.run(PROGRAM, str(tmp_path), str(KILLS)) as process:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    count, highest = int(output), 0
    for run in sorted((tmp_path / "runs").iterdir()):
        lines = run.read_text().splitlines()
        if not lines:
            continue  # killed before it had written the header
        assert lines[0].startswith("type,")
        numbers = [int(line.split(",")[1]) for line in lines[1:]]
        if numbers:
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert numbers[0] <= highest + 1, run
            highest = max(highest, numbers[-1])
    assert highest == count > KILLS
    assert not list((tmp_path / "pipes" / "one").glob("acct-*"))
