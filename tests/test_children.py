"""Programs that a command starts end with it, whatever they have started themselves."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dml.pipeline.children import Children, EndedError

NOTES = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
STARTS = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
COMMAND = """
import sys
from concurrent.futures import ThreadPoolExecutor
from dml.pipeline.children import Children

def work(file):
    return children.wait(children.start([sys.executable, "-c", STARTS, NOTES, file]))

with ThreadPoolExecutor(2) as pool, Children() as children:
    [future.result() for future in [pool.submit(work, file) for file in sys.argv[1:]]]
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_command_that_is_told_to_end_leaves_nothing_running(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    files = [tmp_path / f"{place}" for place in range(4)]
    program = f"NOTES = {NOTES!r}\nSTARTS = {STARTS!r}\n{COMMAND}"
    command = subprocess.Popen([sys.executable, "-c", program, *map(str, files)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not all(file.exists() and file.read_text() for file in files[:2]):
        assert time.monotonic() < deadline, "the first two of four programs have started"
        time.sleep(0.05)
    command.send_signal(number)
    assert command.wait(10) == status
    started = [int(file.read_text()) for file in files[:2]]
    while any(map(is_alive, started)):
        assert time.monotonic() < deadline, "what the programs started has ended too"
        time.sleep(0.05)
    assert not any(file.exists() for file in files[2:]), "those that waited for a place never started"


def test_an_ordinary_end_leaves_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Children() as children:
        assert signal.getsignal(signal.SIGTERM) != before
        assert children.wait(children.start([sys.executable, "-c", "raise SystemExit(3)"])) == 3
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_starts_after_the_end() -> None:
    children = Children()
    with pytest.raises(SystemExit), children:
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(EndedError, match="told to end"):
        children.start([sys.executable, "-c", ""])
