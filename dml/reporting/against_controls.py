"""The leading model against each control in every score: what a claim of robustness on photographs rests on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.paired import Difference, holm, in_map_r, in_r1, same_queries
from dml.reporting.records import Record, eps_key
from dml.reporting.sections import queries_text
from dml.reporting.spelling import CONTROL, MARK, interval, model_text, spell, table
from dml.reporting.standing import WORDS
from dml.reporting.tables import comparison, of_suite, ranked
from dml.reporting.variants import OWN

UNSURE = "~"  # beside a difference that a test does not tell from chance
METHODS = (
    "Natural scores are over the whole test half, R@1 with the unpaired 95% interval of Newcombe (1998), wider than a "
    f"paired one; {UNSURE} where it holds 0. Natural MAP@R was not tested. The other scores are on the queries "
    "that both met, with a paired 95% interval; intervals and tests are those of the table above. "
    f"{UNSURE} there marks a difference that may be chance: p is .05 or more after correction for all differences of "
    "this table (Holm 1979), or, with R@1 over several seeds, mean and number of queries favour different models."
)


class Apart(NamedTuple):
    """How far one share is ahead of another, and the 95% interval, where the images they share are not known."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """As :attr:`dml.reporting.paired.Difference.verdict`."""
        return "not separated" if self.low <= 0 <= self.high else "holds" if self.value > 0 else "fails"


Cells = dict[str, Difference | Apart | float]
"""Score -> how far the model is ahead of a control; a plain number where nothing was tested."""


def section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show how far the project's own defence, or the best model where there is none, is ahead of each control.

    Of the suites that claims rest on, and that attacked models and controls, the one with the most queries counts.

    Args:
        records: of one dataset.
        figures: gives the two radii, and the suite that counts among equals.
    """
    records = _of_largest_suite(records, figures)
    if not records:
        return []
    found = comparison(records, figures.eps, figures)
    models = ranked(found[found["loss"] != CONTROL])
    controls = found[found["loss"] == CONTROL]
    if models.empty or controls.empty:
        return []
    own = models[models["defense"].isin(OWN)]
    model = (models if own.empty else own).iloc[0]
    ahead = _corrected({row["defense"]: _cells(records, model, row, figures) for _, row in controls.iterrows()})
    scores = list(next(iter(ahead.values())))
    rows = [[spell(name), *(_text(cells[score]) for score in scores)] for name, cells in ahead.items()]
    name = model_text(model["loss"], model["defense"]) + (MARK if model["gates"] == "fail" else "")
    told = f"Suite `{records[0]['suite']}`, {queries_text(models)}: {_summary(name, ahead)} {METHODS}"
    return ["", told, *table(["ahead of", *scores], rows)]


def _of_largest_suite(records: Sequence[Record], figures: Figures) -> list[Record]:
    sizes: dict[str, int] = {}
    for record in records:
        if record["claims"] and record["rows"] and record["loss"] != CONTROL:
            sizes[record["suite"]] = record["rows"][0]["queries"]
    held = {record["suite"] for record in records if record["loss"] == CONTROL}
    names = sorted(sizes.keys() & held, key=lambda name: (sizes[name], name == figures.suite), reverse=True)
    return of_suite(records, names[0]) if names else []


def _cells(records: Sequence[Record], model: pd.Series, control: pd.Series, figures: Figures) -> Cells:
    """All scores that both have."""
    cells: Cells = {"natural R@1": natural(model, control), "natural MAP@R": float(model["map_r"] - control["map_r"])}
    pair = [(row["loss"], row["defense"]) for row in (model, control)]
    for eps in dict.fromkeys((figures.paper_eps, figures.eps)):
        both = same_queries(records, *pair, eps_key(eps))
        for score, compare in (("R@1", in_r1), ("MAP@R", in_map_r)):
            cells[f"{score} at {radius_text(eps)}"] = compare(both, eps_key(eps)) if both else None
    return {score: value for score, value in cells.items() if value is not None}


def natural(model: Any, control: Any) -> Apart:
    """Return how far a row of :func:`dml.reporting.tables.comparison` is ahead of another in natural R@1.

    The interval is that of Newcombe (1998, method 10), from Wilson's of either share.
    """
    value = model.natural - control.natural
    below = math.hypot(model.natural - model.natural_low, control.natural_high - control.natural)
    above = math.hypot(model.natural_high - model.natural, control.natural - control.natural_low)
    return Apart(float(value), float(value - below), float(value + above))


def _corrected(ahead: Mapping[str, Cells]) -> dict[str, Cells]:
    """The same with p-values corrected for the number of tests; scores that some control lacks are left out."""
    common = [score for score in next(iter(ahead.values())) if all(score in cells for cells in ahead.values())]
    tested = [
        (name, score) for name, cells in ahead.items() for score in common if isinstance(cells[score], Difference)
    ]
    chances = dict(zip(tested, holm([ahead[name][score].chance for name, score in tested]), strict=True))
    return {
        name: {
            score: cells[score]._replace(chance=chances[name, score]) if (name, score) in chances else cells[score]
            for score in common
        }
        for name, cells in ahead.items()
    }


def _text(value: Difference | Apart | float) -> str:
    if isinstance(value, float):
        return f"{value:+.3f}"
    mark = UNSURE if value.verdict == "not separated" else ""
    return f"{value.value:+.3f}{mark} {interval(value.low, value.high)}"


def _verdict(value: Difference | Apart | float) -> str:
    if isinstance(value, float):
        return "ahead of" if value > 0 else "behind"
    return WORDS[value.verdict]


def _summary(model: str, ahead: Mapping[str, Cells]) -> str:
    """One sentence: in which scores the model is ahead of all controls, and in which it is not, and of which."""
    whole, parts = [], []
    for score in next(iter(ahead.values())):
        found: dict[str, list[str]] = {}
        for name, cells in ahead.items():
            found.setdefault(_verdict(cells[score]), []).append(spell(name))
        if set(found) == {"ahead of"}:
            whole.append(score)
        else:
            told = [f"{word} {', '.join(found[word])}" for word in ("behind", "not separated from") if word in found]
            parts.append(f"{' and '.join(told)} in {score}")
    held = [f"ahead of every control in {', '.join(whole)}"] if whole else []
    return f"**{model}** is {'; '.join([*held, *parts])}."
