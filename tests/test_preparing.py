"""Images that several jobs need at once are prepared by one of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dml.common.files import ROOT

PROGRAM = "import sys, json; from dml.pipeline.preparing import prepare_missing as p; p(*json.loads(sys.argv[1]))"


def test_jobs_that_start_together_prepare_once(tmp_path: Path) -> None:
    options = {"images_per_class": 20, "size": 32, "seed": 0}
    given = json.dumps(["glyphs", str(tmp_path), {"recipes.glyphs.data.options": options}])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM, given]
    jobs = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], told
    assert sum("preparing glyphs" in text for text in told) == 1
    assert (tmp_path / "artifacts/data/glyphs/settings.json").is_file()
