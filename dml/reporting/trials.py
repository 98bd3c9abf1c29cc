"""results/tuning.md: settings that were compared on held-out training classes, from results/tuning.csv."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import yaml

from dml.config.run import Figures
from dml.reporting.spelling import MISSING, number, spell, table

ABOUT = (
    "Settings compared on training classes that were held out; no test class was read. Each line replaces settings of "
    "the recipe. *Images / standard* is what the training cost: images that the model embedded, relative to standard "
    "training by the recipe (–: not counted). R@1 is that of all held-out images, natural and under the attacks of "
    "suite `{suite}`, the mean over trainings. The *score* chooses: for `{baseline}` it is natural MAP@R, for other "
    "defences the mean of all R@1 shown; beside it those of the worst and the best training. "
    "Few classes are held out, so R@1 is far higher than on the test classes. `python -m dml tune` adds lines to "
    "[tuning.csv](tuning.csv) and writes this page."
)


def trials_page(trials: pd.DataFrame, standard: Mapping[str, int | None], figures: Figures) -> str:
    """Return the page.

    Args:
        trials: rows of tuning.csv, one per training.
        standard: dataset -> images that standard training by the recipe embeds; None if that is not known.
        figures: names the suite that the held-out classes are attacked by, and the baseline.
    """
    about = ABOUT.format(suite=figures.suite, baseline=figures.baseline)
    lines = ["# Settings compared on held-out classes", "", about]
    for (dataset, defense, loss), found in trials.groupby(["dataset", "defense", "loss"]):
        lines += ["", f"## {dataset}: {spell(defense)}, {loss}", *_compared(found, defense, standard.get(dataset))]
    return "\n".join(lines) + "\n"


def _compared(trials: pd.DataFrame, defense: str, standard: int | None) -> list[str]:
    """Return a table of the settings of one defence, best first."""
    scores = [name for name in trials if name.startswith("R@1")]
    names = ["natural R@1" if name == "R@1" else name for name in scores]
    groups = sorted(trials.groupby("settings"), key=lambda item: -item[1]["score"].mean())
    rows = []
    for settings, found in groups:
        cost = MISSING if standard is None else number(float(found["embedded"].astype(float).mean()) / standard, 1)
        left = [number(float(found[name].mean())) for name in scores]
        rows.append([_text(str(settings), defense), str(len(found)), cost, *left, _score(found["score"].to_numpy())])
    return table(["settings", "trainings", "images / standard", *names, "score"], rows)


def _text(settings: str, defense: str) -> str:
    """Return settings one below the other, those of the defence itself by their own names."""
    given = yaml.safe_load(settings)
    if not given:
        return "as in the recipe"
    own = {name.removeprefix(f"defenses.{defense}."): value for name, value in given.items()}
    return "<br>".join(f"`{line}`" for line in yaml.safe_dump(own, sort_keys=False).splitlines())


def _score(scores: np.ndarray) -> str:
    ends = f" ({number(scores.min())} to {number(scores.max())})" if len(scores) > 1 else ""
    return f"**{number(scores.mean())}**{ends}"
