"""Preparing a folder of JPEGs against a plain loop of Pillow: images per second, their ratio, and peak memory.

Synthetic photographs of 500 x 400 pixels are written to a temporary folder first. Both ways resize the shorter side to
256 pixels and keep the central square; each runs in its own process.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from benchmarks.measure import apart, peak
from dml.data.prepare import prepare
from dml.data.sources.folder import read_folder

IMAGES, CLASSES, SIZE = 20_000, 200, 256


def draw(folder: Path, count: int) -> None:
    """Write smooth noise, which JPEG stores in about as many bytes as a photograph."""
    draw = np.random.default_rng(0)
    for number in tqdm(range(count), desc="drawing", unit="image", mininterval=5):
        coarse = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        place = folder / f"class_{number % min(CLASSES, count // 4):03d}"
        place.mkdir(exist_ok=True)
        image = Image.fromarray(coarse).resize((500, 400), Image.Resampling.BICUBIC)
        image.save(place / f"{number:06d}.jpg", quality=90)


def ours(folder: Path, target: Path) -> None:
    """Prepare with the library."""
    prepare(read_folder(folder), target, name="jpegs", size=SIZE, train_fraction=0.5, validation_fraction=0.2)


def plain(folder: Path, target: Path) -> None:
    """Open, resize and keep one image after the other in a memory-mapped array, as a script would."""
    files = sorted(folder.rglob("*.jpg"))
    target.mkdir()
    images = np.lib.format.open_memmap(target / "images.npy", "w+", np.uint8, (len(files), SIZE, SIZE, 3))
    for row, file in enumerate(files):
        with Image.open(file) as image:
            images[row] = np.asarray(ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR))


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print one line per way, and the ratio of their speeds; return the ratio of their times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="at least 40")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "FOLDER", "TARGET"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    if chosen.one:
        way, folder, target = chosen.one
        start = time.perf_counter()
        {"ours": ours, "plain": plain}[way](Path(folder), Path(target))
        print(chosen.images / (time.perf_counter() - start), peak())
        return {}
    speeds = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        folder.mkdir()
        draw(folder, chosen.images)
        print(f"{'':8}{'images / s':>12}{'peak memory, MB':>18}", flush=True)
        for way in ("plain", "ours"):
            told = apart("prepare", "--images", str(chosen.images), "--one", way, str(folder), str(Path(place, way)))
            speeds[way], memory = map(float, told.splitlines()[-1].split())
            print(f"{way:8}{speeds[way]:12.0f}{memory:18.0f}", flush=True)
    print(f"ours / plain: {speeds['ours'] / speeds['plain']:.2f}")
    return {"time per image, ours / plain loop": speeds["plain"] / speeds["ours"]}


if __name__ == "__main__":
    main()
