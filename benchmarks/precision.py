"""R@1 left by the suite of the headline when attacks search with layers in float32 and in bfloat16, and the time.

Both find images, and float32 judges them. Seconds are of the processor on one thread. Ratios below 1 mean that bfloat16
is faster.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import dml
from dml.attacks.balls import radius_text
from dml.config.build.evaluation import suite
from dml.config.load import load
from dml.data import base
from dml.data.sampling import attacked_rows
from dml.retrieval.index import Search

MODELS = [f"{loss}-{defense}-0" for loss in ("triplet", "contrastive") for defense in ("robust", "single_step")]


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print a line for each model: seconds, their ratio, and what is left in either precision; return the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", type=Path, default=[Path("artifacts/models/glyphs", x) for x in MODELS])
    parser.add_argument("--data", type=Path, default=Path("artifacts/data/glyphs"), help="prepared images")
    parser.add_argument("--queries", type=int, default=300)
    chosen, params, ratios = parser.parse_args(words), load(), {}
    torch.set_num_threads(1)
    split, attacks = base.load(chosen.data).test, suite(params.suite(params.figures.suite))
    radii = "".join(f"{'R@1 at ' + radius_text(eps):>18}" for eps in attacks.eps)
    print(f"{'model':26}{'float32, s':>12}{'bfloat16, s':>12}{'ratio':>8}{radii}")
    for place in chosen.models:
        search = Search.over(dml.load(place), split)
        rows, seconds, left = attacked_rows(chosen.queries, len(search), 0), [], []
        for precision in ("float32", "bfloat16"):
            start = time.process_time()
            found = replace(attacks, precision=precision).evaluate(search, rows, seed=0, report=lambda line: None)
            seconds.append(time.process_time() - start)
            worst = found.outcomes[found.outcomes["attack"] == "worst"]
            left.append(worst.groupby("eps")["r1"].mean().to_list())
        cells = "".join(f"{f'{exact:.3f}, {half:.3f}':>18}" for exact, half in zip(*left, strict=True))
        ratios[f"{place.name}, bfloat16 / float32"] = ratio = seconds[1] / seconds[0]
        print(f"{place.name:26}{seconds[0]:12.1f}{seconds[1]:12.1f}{ratio:8.2f}{cells}", flush=True)
    return ratios


if __name__ == "__main__":
    main()
