"""The best model, and this project's own defence, against all others, query by query."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.paired import Difference, Model, holm, in_map_r, in_r1, same_queries
from dml.reporting.records import Record, eps_key
from dml.reporting.spelling import CONTROL, MARK, MISSING, chance_text, details, interval, model_text, spell, table
from dml.reporting.tables import comparison, of_suite, ranked
from dml.reporting.variants import KIND, OWN, leaves, trained

OPEN = 12  # rows, at most, of a table that is not folded
NAMED = 6  # models, at most, that a sentence lists
BEST = "The best model against the others, query by query"  # a section of a dataset's page
METHODS = (
    "How far it is ahead of each other model on the queries that both met, with a paired 95% interval over queries "
    "(R@1: Bonett and Price 2012; MAP@R: Student's t), and the probability p of a difference as large if both were "
    "equally good (R@1: McNemar's exact test; MAP@R: paired t-test). Only p is corrected for the number of rows (Holm "
    "1979). A query that several seeds attacked counts once, with the mean over them. Neither interval nor p accounts "
    "for how trainings differ, or for the choice of the best model by these same queries."
)
WORDS = {"holds": "ahead of", "fails": "behind", "not separated": "not separated from"}
Nouns = tuple[str, str]
"""One of a kind, and several."""
OTHERS: Nouns = ("the other model", "other models")
FOREIGN: Nouns = ("the model of another defence", "models of other defences")  # than the project's own
CONTROLS: Nouns = ("the control", "controls")


class Standing(NamedTuple):
    """A model against all others.

    Attributes:
        name: of the model, marked where a gate does not hold.
        defense: of the model.
        recall: name of each other model -> how far the model is ahead of it in R@1, p corrected for their number.
        precision: the same in adversarial MAP@R, empty where that was not attacked.
        kin: names of those that are variants: the same class of defence with other settings, or with another loss.
        controls: names of those that are controls.
    """

    name: str
    defense: str
    recall: dict[str, Difference]
    precision: dict[str, Difference]
    kin: set[str]
    controls: set[str]


def standings(records: Sequence[Record], figures: Figures) -> list[Standing]:
    """Compare the model with the highest adversarial R@1 with every other model and control, query by query.

    Args:
        records: of one dataset and suite.
        figures: gives the radius.

    Returns:
        Its standing, and after it that of the best of the project's own defences, if it is none of these.
        Nothing without a trained model and one that met the same queries.
    """
    found = comparison(records, figures.eps, figures)
    models = ranked(found[found["loss"] != CONTROL])
    if models.empty:
        return []
    leader = models.iloc[0]
    shown, own = [leader], models[models["defense"].isin(OWN)]
    if leader["defense"] not in OWN and not own.empty:
        shown.append(own.iloc[0])
    standing = [_standing(records, row, found, eps_key(figures.eps)) for row in shown]
    return [item for item in standing if item.recall]


def _standing(records: Sequence[Record], row: pd.Series, found: pd.DataFrame, key: str) -> Standing:
    kinds = {(record["loss"], record["defense"]): leaves(record)[KIND] for record in trained(records)}
    model = _model(row)
    others = ranked(found[[_model(other) != model for _, other in found.iterrows()]])
    pairs = {_name(other): same_queries(records, model, _model(other), key) for _, other in others.iterrows()}
    recall = _corrected({name: in_r1(both, key) for name, both in pairs.items()})
    precision = _corrected({name: in_map_r(both, key) for name, both in pairs.items()})
    alike = [model in kinds and kinds.get(_model(other)) == kinds[model] for _, other in others.iterrows()]
    kin = {_name(other) for _, other in others[alike].iterrows()}
    controls = {_name(other) for _, other in others[others["loss"] == CONTROL].iterrows()}
    return Standing(_name(row), row["defense"], recall, precision, kin, controls)


def best_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show what :func:`standings` finds.

    Args:
        records: of one dataset and suite.
        figures: gives the radius.
    """
    shown = standings(records, figures)
    if not shown:
        return []
    leader, *own = shown
    lines = ["", f"## {BEST}", "", leader_text(leader, figures), "", METHODS, *_table(leader)]
    for standing in own:
        title = f"### `{spell(standing.defense)}` against the others, query by query"
        lines += ["", title, "", own_text(standing, leader, figures)]
        lines += _variants_text(standing) + _table(standing)
    return lines


def elsewhere(records: Sequence[Record], suite: str, figures: Figures) -> list[str]:
    """Say how a suite's best model stands against models that another suite alone attacked, where it met that one too.

    Args:
        records: of one dataset.
        suite: whose best model is compared.
        figures: gives the radius.
    """
    found = comparison(of_suite(records, suite), figures.eps, figures)
    models = ranked(found[found["loss"] != CONTROL])
    known, lines = {_model(row) for _, row in found.iterrows()}, []
    for other in sorted({record["suite"] for record in records if record["claims"]} - {suite}):
        own = of_suite(records, other)
        rows = [row for _, row in comparison(own, figures.eps, figures).iterrows()]
        best = [row for row in rows if not models.empty and _model(row) == _model(models.iloc[0])]
        missing = [row for row in rows if _model(row) not in known and row["loss"] != CONTROL]
        if best and missing:
            compared = _standing(own, best[0], pd.DataFrame([*best, *missing]), eps_key(figures.eps))
            told = f"**{compared.name}** is {_ahead('R@1', compared.recall, compared.controls)}"
            lines += ["", f"Of the models that suite `{other}` alone attacked: {told}."] if compared.recall else []
    return lines


def counted_text(told: Sequence[Standing], figures: Figures) -> str:
    """Return in one sentence how many others the models are ahead of; variants of the project's own are left out.

    Args:
        told: of :func:`standings`, one at least.
        figures: gives the radius.
    """
    parts = []
    for item in told:
        left_out = set() if item is told[0] else item.kin
        scores = {"R@1": item.recall, "MAP@R": item.precision}
        counts = [
            _counts(score, [one for name, one in found.items() if name not in left_out])
            for score, found in scores.items()
        ]
        if told_counts := " and ".join(filter(None, counts)):
            parts.append(f"**{item.name}** beats {told_counts}{', variants of it left out' if left_out else ''}")
    return f"Models and controls beaten beyond chance at eps {radius_text(figures.eps)}: {'; '.join(parts)}."


def _counts(score: str, found: Sequence[Difference]) -> str:
    verdicts = [one.verdict for one in found]
    behind = f" (behind {verdicts.count('fails'):,})" if "fails" in verdicts else ""
    return f"{verdicts.count('holds'):,} of {len(found):,} in {score}{behind}" if found else ""


def leader_text(leader: Standing, figures: Figures) -> str:
    """Return a sentence for each score: which of the others the best model is ahead of."""
    scores = [_ahead("R@1", leader.recall, leader.controls)]
    scores += [_ahead("MAP@R", leader.precision, leader.controls)] if leader.precision else []
    return f"At eps {radius_text(figures.eps)}, **{leader.name}** is {'. It is '.join(scores)}."


def own_text(own: Standing, leader: Standing, figures: Figures) -> str:
    """Return a sentence for each score: which other defences and controls the project's own is ahead of, if any.

    Args:
        own: standing of the project's own defence.
        leader: that of the best model, which may be a variant of it.
        figures: gives the radius.
    """
    pairs = (("R@1", own.recall), ("MAP@R", own.precision))
    others = {score: {name: d for name, d in found.items() if name not in own.kin} for score, found in pairs}
    scores = [_ahead(score, found, own.controls, FOREIGN) for score, found in others.items() if found]
    if not scores:
        return ""  # there is nothing but variants
    variant = f", of which {leader.name} is a variant," if leader.name in own.kin else ""
    return f"At eps {radius_text(figures.eps)}, **{own.name}**{variant} is {'. It is '.join(scores)}."


def _variants_text(own: Standing) -> list[str]:
    """How the project's own defence compares with its variants, one line per score."""
    lines = []
    for score, found in (("R@1", own.recall), ("MAP@R", own.precision)):
        kin = {name: difference for name, difference in found.items() if name in own.kin}
        told = [
            f"{word} {'; '.join(names)}"
            for verdict, word in WORDS.items()
            if (names := [name for name, difference in kin.items() if difference.verdict == verdict])
        ]
        if told:
            lines.append(f"- {score}: {', '.join(told)}.")
    if not lines:
        return []
    return ["", "Against its variants, which are the same defence with other settings or another loss:", "", *lines]


def _table(standing: Standing) -> list[str]:
    recall, precision = standing.recall, standing.precision
    rows = [
        [name, f"{found.queries:,}", *_cells(found), *(_cells(precision.get(name)) if precision else [])]
        for name, found in recall.items()
    ]
    columns = ["against", "queries", "R@1 ahead by", "p", *(["MAP@R ahead by", "p"] if precision else [])]
    shown = table(columns, rows)
    return details(f"All {len(rows)} comparisons", shown) if len(rows) > OPEN else shown


def _model(row: pd.Series) -> Model:
    return row["loss"], row["defense"]


def _name(row: pd.Series) -> str:
    return model_text(row["loss"], row["defense"]) + (MARK if row["gates"] == "fail" else "")


def _corrected(found: Mapping[str, Difference | None]) -> dict[str, Difference]:
    """The differences that there are, their p-values corrected for their number."""
    known = {name: difference for name, difference in found.items() if difference}
    chances = holm([difference.chance for difference in known.values()])
    return {
        name: difference._replace(chance=chance)
        for (name, difference), chance in zip(known.items(), chances, strict=True)
    }


def _cells(found: Difference | None) -> list[str]:
    if found is None:
        return [MISSING, MISSING]
    return [f"{found.value:+.3f} {interval(found.low, found.high)}", chance_text(found.chance)]


def _ahead(score: str, compared: Mapping[str, Difference], controls: Set[str], models: Nouns = OTHERS) -> str:
    """Which of the others a model is ahead of, which are ahead of it, and which are neither.

    Args:
        score: its name.
        compared: name of each other model -> how far the model is ahead of it.
        controls: names of those that are controls.
        models: nouns for those that are none.
    """
    found = {verdict: [name for name, one in compared.items() if one.verdict == verdict] for verdict in WORDS}
    ahead = found.pop("holds")
    named = sum(map(len, found.values())) <= NAMED
    told = []
    for verdict, names in found.items():
        every = "any of the" if verdict == "not separated" else "all"
        whom = "; ".join(names) if named and ahead else _whom(names, compared, controls, models, every)
        told += [f"{WORDS[verdict]} {whom}"] if names else []
    if not ahead:
        return f"{' and '.join(told)} in {score}"
    chance = f"largest corrected p {chance_text(max(one.chance for one in compared.values()))}"
    whom = _whom(ahead, compared, controls, models)
    return f"ahead of {whom} in {score} beyond chance ({', '.join(told) or chance})"


def _whom(names: Sequence[str], compared: Iterable[str], controls: Set[str], models: Nouns, every: str = "all") -> str:
    """How many of the models and of the controls that a model is compared with have these names."""
    parts = []
    for (one, many), group in ((CONTROLS, controls.intersection(compared)), (models, set(compared) - controls)):
        if held := group.intersection(names):
            few = f"{every} {len(group)} {many}" if held == group else f"{len(held)} of {len(group)} {many}"
            parts.append(one if len(group) == 1 else few)
    return " and ".join(parts)
