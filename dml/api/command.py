"""Attack a retrieval model on a folder of images, and write a report.

python -m dml evaluate FOLDER --model timm:tf_efficientnet_lite0 --size 224 --eps 8/255 --output report/
"""

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dml.common.files import remove
from dml.evaluation import CONTROLS

UNFINISHED = ".unfinished"  # in the output: what a stopped evaluation continues from


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status, 0 if the report was written."""
    chosen = _parser().parse_args(arguments)
    try:
        return _run(chosen)
    except (ValueError, OSError) as error:  # OSError: a full disk, or a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # whatever the model does once the checks are over; memory that runs out, too
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"error: {told} ({last.filename}, line {last.lineno}){_again(chosen)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped{_again(chosen) or ' before any query was finished'}", file=sys.stderr)
        return 130


def _again(chosen: argparse.Namespace) -> str:
    """What a stopped evaluation has kept, at the end of a sentence."""
    return "; the same command continues" if (chosen.output / UNFINISHED).exists() else ""


def _run(chosen: argparse.Namespace) -> int:
    from dml.api.attack import RANKS  # torch takes seconds to import, which --help need not wait for
    from dml.api.evaluate import evaluate
    from dml.api.loading import check_folder, check_output, cropped
    from dml.api.suites import chosen as checked
    from dml.api.wrap import load

    # Before the model, which may have to be downloaded.
    checked(chosen.suite, chosen.eps, chosen.queries, chosen.norm)
    check_output(chosen.output)
    for folder in filter(None, (chosen.folder, chosen.gallery, chosen.training)):
        check_folder(folder)

    unfinished = chosen.output / UNFINISHED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the result repeats them
        result = evaluate(
            load(chosen.model, chosen.weights, chosen.dimension, chosen.mean, chosen.std),
            images=None if chosen.gallery else chosen.folder,
            queries=chosen.folder if chosen.gallery else None,
            gallery=chosen.gallery,
            eps=chosen.eps,
            norm=chosen.norm,
            suite=chosen.suite,
            limit=chosen.queries,
            ranks=chosen.ranks or RANKS,
            training=chosen.training,
            similarity=chosen.similarity,
            size=chosen.size if chosen.resize is None else None,
            transform=None if chosen.resize is None else cropped(chosen.resize, chosen.size),
            controls=tuple(CONTROLS) if chosen.controls else (),
            seed=chosen.seed,
            device=chosen.device,
            folder=unfinished,
            report=lambda line: print(line, flush=True),
        )
    print(f"\n{result}\n\nwrote {result.save(chosen.output)}")
    remove(unfinished)
    return 0


def _side(text: str) -> int | tuple[int, ...]:
    """224, or 256x128: height and width."""
    try:
        sides = tuple(int(part) for part in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give pixels, as in 224 or 256x128") from error
    return sides[0] if len(sides) == 1 else sides


def add_weights(add: Callable[..., Any]) -> None:
    """Add the options of :func:`dml.api.wrap.load` for weights of one's own, by a parser's ``add_argument``."""
    add("--weights", type=Path, help="file of weights for a timm or torchvision model")
    add("--dimension", type=int, help="of the embedding, if a linear layer in the classifier's place makes it")
    for name in ("mean", "std"):
        what = (
            f"{name} of red, green and blue that the weights were trained with; those of the published ones by default"
        )
        add(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help=what)


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dml evaluate", description=summary)
    parser.add_argument(
        "folder",
        type=Path,
        help="one sub-folder per class, or a labels.csv of path,label[,group,query,train]: all classes are attacked, "
        "leave out those trained on, or give them 1 in the column train. Or a prepared dataset in artifacts, of which "
        "the test classes are attacked",
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="timm:NAME, torchvision:NAME, hf:PATH, file.py:function, or a folder in artifacts",
    )
    add_weights(add)
    add("--gallery", type=Path, help="folder of what is searched; the first folder then holds the queries alone")
    add("--size", type=_side, help="224: shorter side, of which the central square is kept; 256x128: height x width")
    add(
        "--resize", type=int, help="256: shorter side before the square of --size is cut out; that of --size by default"
    )
    add("--eps", nargs="+", metavar="EPS", help="radius or radii, such as 8/255; the suite's by default")
    add("--norm", default="linf", help="linf (default), or l2 of a whole image's perturbation, without gates")
    add(
        "--suite",
        default="quick",
        help="quick (default), auto, paper, ranking, poisoning, or another list of params.yaml",
    )
    add("--limit", "--queries", dest="queries", type=int, help="queries to attack; the suite's number by default")
    add("--ranks", nargs="+", type=int, metavar="K", help="of R@K beside R@1; 2 4 8 by default")
    add("--similarity", default="cosine", help="cosine (default), dot or euclidean")
    add("--controls", action=argparse.BooleanOptionalAction, default=True, help="attack controls, too")
    add("--training", type=Path, help="images of other classes: the control pixels_linear is fitted to them")
    add("--seed", type=int, default=0)
    add("--device", help="cpu or cuda; the GPU by default if there is one")
    add("--output", type=Path, default=Path("report"), help="folder for the report (report/ by default)")
    return parser
