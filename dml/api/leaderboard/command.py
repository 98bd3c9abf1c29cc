"""Add a model to the leaderboard, check arrays that claim to break one, or write the page.

python -m dml leaderboard add report/ --name "ResNet-50" --authors "A. Author" --link https://... \\
    --data CUB200-2011 --architecture ResNet-50 --dataset cub200
python -m dml leaderboard check results/leaderboard/resnet_50-cub200-8_255.json --adversarial arrays.npz \\
    --images artifacts/data/cub200 --model mine.py:make --by "B. Breaker"
python -m dml leaderboard page
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dml.api.command import add_weights
from dml.common.files import ROOT

if TYPE_CHECKING:
    from dml.api.leaderboard.entry import Entry
    from dml.data.base import Split

FOLDER = ROOT / "results" / "leaderboard"


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status, 0 if an entry was added or lowered, or the page was written."""
    chosen = _parser().parse_args(arguments)
    try:
        return {"add": _add, "check": _check, "page": _page}[chosen.action](chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _add(chosen: argparse.Namespace) -> int:
    from dml.api.leaderboard import entry, reports  # torch takes seconds to import, which --help need not wait for

    told = reports.Told(
        name=chosen.name,
        authors=chosen.authors,
        link=chosen.link,
        training_data=chosen.data,
        architecture=chosen.architecture,
        dataset=chosen.dataset,
        model=chosen.model,
        images=chosen.images,
    )
    found = reports.entries(chosen.report, told, show_failing=chosen.show_failing)
    for file in entry.join(found, chosen.folder):
        print(f"wrote {file}")
    return _page(chosen)


def _check(chosen: argparse.Namespace) -> int:
    from dml.api.controls import control
    from dml.api.leaderboard import claims, entry
    from dml.api.wrap import load

    item = entry.read(chosen.entry)
    images, model = chosen.images or item.images, chosen.model or item.model
    if images is None or (model is None and not item.control):
        raise ValueError(f"{chosen.entry.name} does not say where its model and images are; give --images and --model")
    claim = claims.read(chosen.adversarial)
    split, asked = _images(item, images, chosen)
    given = (chosen.weights, chosen.dimension, chosen.mean, chosen.std)
    embed = control(item.name, item.shape) if item.control else load(model, *given)
    verdict = claims.check(item, claim, embed, split, asked, by=chosen.by)
    for sentence in verdict.sentences:
        print(sentence)
    if not verdict.broken:
        print("No array breaks a query that survives; the entry stays as it is.")
        return 1
    before, after = (value.worst_case.r1.value for value in (item, verdict.entry))
    print(
        f"{len(verdict.broken)} queries broken: R@1 left {before:.3f} -> {after:.3f} at {item.radius}, by {chosen.by}"
    )
    print(f"wrote {entry.write(verdict.entry, chosen.entry.parent)}")
    return _page(argparse.Namespace(folder=chosen.entry.parent))


def _images(item: "Entry", images: str, chosen: argparse.Namespace) -> "tuple[Split, Split | None]":
    """The gallery and queries of an entry. Square images were cut out or, with --size 224x224, resized as a whole."""
    from dml.api.images import splits
    from dml.api.leaderboard import claims
    from dml.api.loading import cropped, found_at

    given = (images, None, None, None) if chosen.gallery is None else (None, None, images, chosen.gallery)
    if (found_at(images) / "images.bin").exists():
        if chosen.resize is not None:
            raise ValueError(f"{images} is prepared, with its size; leave --resize out")
        return splits(*given, None)
    height, width = item.shape
    if chosen.resize is not None:
        return splits(*given, None, transform=cropped(chosen.resize, height if height == width else (height, width)))
    whole = splits(*given, None, size=(height, width))
    return whole if height != width or claims.are_of(item, *whole) else splits(*given, None, size=height)


def _page(chosen: argparse.Namespace) -> int:
    from dml.api.leaderboard import page
    from dml.api.leaderboard.entry import read_all

    entries = read_all(chosen.folder)
    if not entries:
        raise ValueError(f"{chosen.folder} holds no entries; add one with python -m dml leaderboard add")
    print(f"wrote {page.write(entries, chosen.folder)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dml leaderboard", description=summary)
    actions = parser.add_subparsers(dest="action", required=True)

    add = actions.add_parser("add", help="write the entries of a report").add_argument
    add("report", type=Path, help="folder that result.save or python -m dml evaluate wrote")
    add("--name", required=True, help="of the model, such as 'triplet, robust'")
    add("--authors", required=True)
    add("--link", required=True, help="to a paper or code: https://..., or a file of this repository")
    add("--data", required=True, help="what the model was trained on")
    add("--architecture", required=True, help="such as ResNet-50")
    add("--dataset", required=True, help="that it was attacked on")
    add("--model", help="what python -m dml evaluate takes as --model, if others can have it")
    add("--images", help="the folder of images, if others can have it")
    add("--show-failing", action="store_true", help="accept gates that fail or were not run; the entry says so")
    add("--folder", type=Path, default=FOLDER, help="of the leaderboard (results/leaderboard by default)")

    add = actions.add_parser("check", help="verify arrays that break an entry, and lower it").add_argument
    add("entry", type=Path, help="JSON file of the entry")
    add("--adversarial", type=Path, required=True, help="npz file of rows (B,) and adversarial (B, 3, H, W) in [0, 1]")
    add("--by", required=True, help="who breaks it")
    add("--images", help="the images of the entry; those that it names by default")
    add("--model", help="the model, as python -m dml evaluate takes it; the one that the entry names by default")
    add("--gallery", help="what is searched, if the images are queries alone")
    add("--resize", type=int, help="if the entry's report was made with it")
    add_weights(add)

    add = actions.add_parser("page", help="write README.md and index.html anew").add_argument
    add("--folder", type=Path, default=FOLDER, help="of the leaderboard (results/leaderboard by default)")
    return parser
