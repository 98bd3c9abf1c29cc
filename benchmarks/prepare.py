"""Preparing a folder of JPEGs beside a plain loop of Pillow: images a second, and peak memory of each process.

Synthetic photographs of 500 x 400 pixels are written to a temporary folder first. Both ways resize the shorter side to
256 pixels and keep the central square; each runs in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dml.data import prepare
from dml.data.sources.folder import read_folder

IMAGES, CLASSES, SIZE = 20_000, 200, 256


def draw(folder: Path, count: int) -> None:
    """Smooth noise, which JPEG stores in about as many bytes as it does a photograph."""
    draw = np.random.default_rng(0)
    for number in tqdm(range(count), desc="drawing", unit="image", mininterval=5):
        coarse = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        place = folder / f"class_{number % CLASSES:03d}"
        place.mkdir(exist_ok=True)
        picture = Image.fromarray(coarse).resize((500, 400), Image.Resampling.BICUBIC)
        picture.save(place / f"{number:06d}.jpg", quality=90)


def ours(folder: Path, target: Path) -> None:
    """The library's way."""
    prepare(read_folder(folder), target, name="jpegs", size=SIZE, train_fraction=0.5, validation_fraction=0.2)


def plain(folder: Path, target: Path) -> None:
    """What a script does: open, resize, keep, one after the other, into a memory-mapped array."""
    files = sorted(folder.rglob("*.jpg"))
    target.mkdir()
    images = np.lib.format.open_memmap(target / "images.npy", "w+", np.uint8, (len(files), SIZE, SIZE, 3))
    for row, file in enumerate(files):
        with Image.open(file) as picture:
            images[row] = np.asarray(ImageOps.fit(picture.convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR))


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--way", nargs=3, metavar=("WAY", "FOLDER", "TARGET"), help="run one way in this process")
    chosen = parser.parse_args()
    if chosen.way:
        way, folder, target = chosen.way
        start = time.perf_counter()
        {"ours": ours, "plain": plain}[way](Path(folder), Path(target))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"{way:8}{chosen.images / seconds:12.0f}{peak:16.0f}", flush=True)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        folder.mkdir()
        draw(folder, chosen.images)
        print(f"{'':8}{'images / s':>12}{'peak memory, MB':>16}", flush=True)
        for way in ("plain", "ours"):
            arguments = [sys.executable, __file__, "--images", str(chosen.images), "--way", way, str(folder)]
            subprocess.run([*arguments, str(Path(place, way))], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
