"""Two gradient steps of three presets at their full batch: seconds per step and peak memory.

A synthetic CUB200-2011 in the official layout, with the published counts, is drawn to a temporary folder and prepared.
Random weights stand in for those of ImageNet; all else is as in a real run. Each training has a new process. On
a GPU the memory is that of the GPU, and the held-out classes are attacked after the two steps, since that takes more
than a step. Without a GPU, on two cores, a step of `paper` took 35 to 189 seconds and up to 21 GB, and nothing is
validated.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dml.config.build import training as build
from dml.config.build.model import start
from dml.config.load import load as params
from dml.config.load import preset as load_preset
from dml.data.base import load
from dml.data.prepare import prepare
from dml.data.sources.cub200 import CUB200, read_cub200
from dml.models.embedder import best_device
from dml.training.loop import fit
from dml.training.selection import validator

SIZES = {"photos": (128, 0), "field": (256, 224), "paper": (256, 224)}  # preset -> size and crop of its images, pixels
TRAININGS = (("contrastive", "standard"), ("triplet", "single_step"), ("triplet", "robust"))


def draw(folder: Path) -> None:
    """CUB_200_2011 as its publisher lays it out, with images of smooth noise."""
    generator = np.random.default_rng(0)
    train_classes, train_images, test_classes, test_images = CUB200.counts
    halves = np.arange(train_images) % train_classes, train_classes + np.arange(test_images) % test_classes
    labels = np.sort(np.concatenate(halves))
    place = folder / "CUB_200_2011"
    (place / "images").mkdir(parents=True)
    names = [f"{label + 1:03d}.Bird_{label}" for label in range(train_classes + test_classes)]
    for name in names:
        (place / "images" / name).mkdir()
    paths = [f"{names[label]}/{row}.jpg" for row, label in enumerate(labels)]
    for path in tqdm(paths, desc="drawing", unit="image", mininterval=5):
        coarse = generator.integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((320, 280), Image.Resampling.BILINEAR).save(place / "images" / path)
    lists = {"images": paths, "image_class_labels": labels + 1, "classes": names}
    for name, values in lists.items():
        lines = [f"{number} {value}\n" for number, value in enumerate(values, 1)]
        (place / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def train(preset: str, loss: str, defense: str, folder: Path) -> None:
    """Two steps, and a line of what they took."""
    changes = load_preset(preset, "cub200") | {
        "recipes.cub200.model.weights": "random",
        "recipes.cub200.data.size": SIZES[preset][0],
        "recipes.cub200.data.crop": SIZES[preset][1],
        "recipes.cub200.schedule.epochs": 1,
        "recipes.cub200.schedule.batches": 2,
    }
    recipe = params(changes).recipe("cub200")
    schedule = recipe.schedules[defense]
    data, device = load(folder / _name(preset)), best_device()
    model = start(recipe.model, data.train, seed=0).to(device)
    metric = build.loss(loss, recipe.losses[loss], classes=len(data.train.classes), dimension=model.dimension)
    began = time.perf_counter()
    history = fit(
        model,
        data.train,
        metric,
        build.defense(defense, recipe.defenses[defense]),
        schedule,
        seed=0,
        validate=lambda model: {"natural": 0.0, "adversarial": 0.0},
        report=lambda line: None,
        timing=lambda line: None,
    )
    seconds = (time.perf_counter() - began) / 2
    batch = schedule.classes * schedule.images_per_class
    if device.type == "cuda":
        check = recipe.validation
        validator(data.validation, queries=check.queries, eps=check.eps, steps=check.steps, seed=0)(model)
        memory = torch.cuda.max_memory_allocated(device) / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    side = recipe.data.crop or recipe.data.size
    print(
        f"{preset:6} {recipe.model.backbone:9} {loss:12} {defense:12} {batch:4} {side:4} px  {device}"
        f"  loss {history.epochs[0]['loss']:.3f}  {seconds:6.1f} s per step  {memory:5.1f} GB",
        flush=True,
    )


def _name(preset: str) -> str:
    """Folder of the prepared images."""
    return "x".join(map(str, SIZES[preset]))


def main() -> None:
    """Print a line for each training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--one", nargs=4, metavar=("PRESET", "LOSS", "DEFENSE", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        *training, folder = chosen.one
        train(*training, Path(folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder)
        for preset in chosen.presets:
            size, crop = SIZES[preset]
            if not (folder / _name(preset)).exists():
                prepare(
                    read_cub200(folder),
                    folder / _name(preset),
                    name="cub200",
                    size=size,
                    crop=crop,
                    train_fraction=0.5,
                    validation_fraction=0.2,
                )
            for training in TRAININGS:
                subprocess.run([sys.executable, __file__, "--one", preset, *training, temporary], check=True)


if __name__ == "__main__":
    main()
