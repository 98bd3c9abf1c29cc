"""Kill the preparation of a dataset at random moments with SIGKILL, and compare it with one that was never killed.

    python tests/faults/kill_preparation.py --kills 20

Every byte of the prepared folder must be the same. Prints one line per kill.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from killing import compare
from PIL import Image

from dml.data import prepare
from dml.data.sources.folder import read_folder

prepare.NOTED = 5  # images after which progress is saved: often, since there are few


def pictures(folder: Path, classes: int, images: int) -> None:
    """Fill a folder with noisy images, one sub-folder per class."""
    draw = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class_{label:02d}").mkdir()
        for copy in range(images):
            pixels = draw.integers(0, 255, (48, 52, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class_{label:02d}" / f"{copy}.png")


def main() -> int:
    """Run the command line and return its exit status: 1 if the prepared folders differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=40, help="of each of eight classes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as raw:
        pictures(Path(raw), 8, chosen.images)

        def work(folder: Path) -> dict[str, bytes]:
            made = folder / "made"
            options = {"name": "killed", "size": 16, "train_fraction": 0.5, "validation_fraction": 0.5}
            prepare.prepare(read_folder(Path(raw)), made, **options)
            assert [place.name for place in folder.iterdir()] == ["made"], "nothing else is left"
            return {file.name: file.read_bytes() for file in sorted(made.iterdir())}

        return compare(work, chosen.kills, chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
