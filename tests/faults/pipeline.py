"""Disturb `python -m dml repro`: two at once, plain `dvc repro` beside it, a kill, and files missing in DVC's cache.

    python tests/faults/pipeline.py

Each runs in a new project of two small stages, the first of which waits for a file, so that no fault comes too late.
Prints one line per fault: the exit status, what was said, and whether the outputs are whole at the end.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dml.common.files import ROOT

STAGES = """
stages:
  first:
    cmd: >-
      python -c "import os, time; [time.sleep(.1) for _ in range(1200) if not os.path.exists('go')];
      open('first', 'w').write('1')"
    outs: [first]
  second:
    cmd: python -c "open('second', 'w').write(open('first').read() + '2')"
    deps: [first]
    outs: [second]
"""
OURS = """
import sys
from pathlib import Path
from dml.pipeline import repro
repro.ROOT = Path.cwd()
sys.exit(repro.main(["--jobs", "2"]))
"""
PLAIN = "import sys; from dvc.cli import main; sys.exit(main(['repro']))"


def start(project: Path, code: str) -> subprocess.Popen[str]:
    """Start a pipeline run in a new process group."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_stage(running: subprocess.Popen[str]) -> None:
    """Return once the first stage runs."""
    assert running.stdout is not None
    for line in running.stdout:
        if "Running stage 'first'" in line:
            return


def finish(running: subprocess.Popen[str]) -> str:
    """Wait for the end; return the exit status and the last line of each stream."""
    out, err = running.communicate()
    last = [text.strip().splitlines()[-1] for text in (out, err) if text.strip()]
    return f"{running.returncode}: {' | '.join(last)}"


def two_at_once(project: Path, first: str, other: str) -> list[str]:
    """A second run while the first is in its first stage, which does not end before the second run does."""
    running = start(project, first)
    wait_for_stage(running)
    second = finish(start(project, other))
    (project / "go").touch()
    if second.startswith("0:"):
        raise RuntimeError(f"the second run was not refused: {second}")
    return [f"the second, {second}", f"the first, {finish(running)}"]


def killed(project: Path) -> list[str]:
    """A run that is killed in its first stage with all its processes, and the next one."""
    running = start(project, OURS)
    wait_for_stage(running)
    time.sleep(1)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    if (project / "first").exists():
        raise RuntimeError("the first stage had ended before the kill")
    (project / "go").touch()
    return [f"after the kill, {finish(start(project, OURS))}"]


def missing(project: Path) -> list[str]:
    """An output that is gone from the project and from DVC's cache."""
    (project / "go").touch()
    finish(start(project, OURS))
    (project / "first").unlink()
    shutil.rmtree(project / ".dvc" / "cache" / "files")
    return [f"the next, {finish(start(project, OURS))}"]


FAULTS: dict[str, Callable[[Path], list[str]]] = {
    "two at once": lambda project: two_at_once(project, OURS, OURS),
    "a plain dvc repro at once": lambda project: two_at_once(project, OURS, PLAIN),
    "two plain dvc repro at once": lambda project: two_at_once(project, PLAIN, PLAIN),
    "killed": killed,
    "missing in the cache": missing,
}


def main() -> int:
    """Try every fault and return the exit status: 1 if an output is not whole at the end."""
    status = 0
    for name, disturb in FAULTS.items():
        with tempfile.TemporaryDirectory() as place:
            project = Path(place)
            subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=project, check=True)
            (project / "dvc.yaml").write_text(STAGES)
            said = disturb(project)
            whole = [(project / file).read_text() for file in ("first", "second")] == ["1", "12"]
            status |= not whole
            print(f"{name}: {'; '.join(said)}; outputs {'whole' if whole else 'NOT WHOLE'}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
