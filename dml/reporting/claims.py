"""The claims of the paper that is reproduced, judged by what was measured here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.evaluation.statistics import ratio_interval
from dml.reporting.against_controls import natural
from dml.reporting.paired import Model, in_r1, same_queries, shares
from dml.reporting.records import Record, eps_key
from dml.reporting.spelling import CONTROL, MISSING, UNTESTED, chance_text, factor_text, interval, spell
from dml.reporting.tables import best_control, comparison
from dml.reporting.variants import as_the_papers

FACTOR = 5  # the least fold increase that the paper reports
SHARED = "joint"  # one perturbation per image, as a classifier's training has it
START = "start"  # the model that training begins with, robust already, and trained no further
OWED = "owed to the start"  # verdict where that model does as well
UNJUDGED = "not judged"  # verdict that would rest on a gate that does not hold
KEPT = 0.95  # of natural R@1, below which robustness is bought dearly


class Kept(NamedTuple):
    """How much natural R@1 a defence keeps.

    Attributes:
        difference: natural R@1 less that of the undefended model.
        low, high: its 95% interval (Newcombe 1998, "Interval estimation for the difference between independent
            proportions", method 10: from Wilson's interval of each).
        share: natural R@1 relative to that of the undefended model.
        share_low, share_high: its 95% interval.
    """

    difference: float
    low: float
    high: float
    share: float
    share_low: float
    share_high: float


class Verdict(NamedTuple):
    """A claim, what was measured here, and whether it holds."""

    claim: str
    measured: str
    verdict: str


def judged(records: Sequence[Record], figures: Figures) -> list[Verdict]:
    """Return the verdicts at both radii of results/, each claim once.

    Args:
        records: of one dataset and suite.
        figures: what results/ reports.
    """
    found: dict[str, Verdict] = {}
    records = as_the_papers(records, figures)
    for eps in dict.fromkeys((figures.eps, figures.paper_eps)):
        for row in verdicts(records, eps, figures):
            found.setdefault(row.claim, row)
    return list(found.values())


def verdicts(records: Sequence[Record], eps: float, figures: Figures) -> list[Verdict]:
    """Judge the claims about one dataset at one radius.

    A claim holds if it does for every loss, and in part if it does for some. A model beats another if more queries
    survive under it than under the other by McNemar's exact test on the queries that both met
    (:mod:`dml.reporting.paired`), and the claim fails if the test says the opposite for some loss and this for none. If
    the model is not ahead of the robust start that its training began with, it owes to that what it is ahead
    (:func:`owed`). A factor counts if its 95% interval lies on one side of 5, and the share of natural R@1 that is kept
    if its interval lies on one side of 0.95. A claim about a model with a gate that does not hold is not judged, unless
    the model is behind even so. One about a model without a record was not tested, nor was one about undefended models
    where all begin with robust weights.

    Args:
        records: of one dataset and suite.
        eps: the radius.
        figures: names the baseline, the paper's defence and its peer.

    Returns:
        Nothing for a radius that was not attacked, or a suite that no claim rests on.
    """
    found = comparison(records, eps, figures)
    if not found["claims"].any():
        return []
    at = f"at eps {radius_text(eps)}"
    trained = found[found["loss"] != CONTROL].set_index("loss")
    names = figures.baseline, figures.paper, figures.peer, SHARED
    base, paper, peer, shared = (trained[trained["defense"].eq(name)] for name in names)
    base_name, paper_name, peer_name, shared_name = (f"`{name}`" for name in names)
    undefended = is_undefended(records)

    def beats(other_name: str, other: pd.DataFrame) -> Verdict:
        others = {loss: ((loss, row["defense"]), row["gates"]) for loss, row in other.iterrows()}
        return _beats(f"{paper_name} models beat {other_name} ones {at}", paper, others, records, eps)

    return [
        _loses(f"{base_name} models lose more than half of their natural R@1 {at}", base, undefended),
        beats(shared_name, shared),
        beats(base_name, base),
        _gains(
            f"{paper_name} models keep at least {FACTOR} times the R@1 of {base_name} ones {at}",
            paper,
            base,
            undefended,
        ),
        _keeps(f"{paper_name} models keep at least {KEPT:g} of the natural R@1 of {base_name} ones", paper, base),
        beats(peer_name, peer),
        _beats_control(f"{paper_name} models keep more than the best control {at}", paper, found, records, eps),
    ]


def starts(records: Sequence[Record]) -> set[str]:
    """Return the files of weights, robust ones, that training begins with."""
    found = {record["settings"].get("model", {}).get("weights", "") for record in records}
    return {weights for weights in found if "/" in weights}


def is_undefended(records: Sequence[Record]) -> bool:
    """Whether the baseline of a dataset is an undefended model: not where its training begins with robust weights."""
    return not starts(records)


def _loses(claim: str, base: pd.DataFrame, undefended: bool) -> Verdict:
    """Whether attacks break more than half of what is right on natural images."""
    if base.empty:
        return Verdict(claim, MISSING, UNTESTED)
    measured = _each(base, lambda row: f"{row.natural:.3f} to {row.r1:.3f}")
    return _of_undefended(claim, measured, [loses(row) for _, row in base.iterrows()], undefended)


def _gains(claim: str, paper: pd.DataFrame, base: pd.DataFrame, undefended: bool) -> Verdict:
    """Whether R@1 is several times that of the undefended model."""
    paper = paper[paper.index.isin(base.index)]
    if paper.empty:
        return Verdict(claim, MISSING, UNTESTED)
    times = _each(paper, lambda row: factor_text(row.factor, row.factor_low, row.factor_high))
    words = [gains(row, base.loc[loss]) for loss, row in paper.iterrows()]
    return _of_undefended(claim, times, words, undefended)


def _of_undefended(claim: str, measured: str, words: Sequence[str], undefended: bool) -> Verdict:
    """The verdict over all losses on a claim about undefended models, if the baseline is one."""
    if not undefended:
        return Verdict(claim, f"{measured}; training begins with robust weights", UNTESTED)
    return Verdict(claim, measured + _doubts(words), _over_losses(words))


def _keeps(claim: str, paper: pd.DataFrame, base: pd.DataFrame) -> Verdict:
    """Whether natural R@1 is nearly that of the undefended model."""
    kept = {loss: natural_kept(row, base.loc[loss]) for loss, row in paper.iterrows() if loss in base.index}
    if not kept:
        return Verdict(claim, MISSING, UNTESTED)
    words = [keeps(row) for row in kept.values()]
    told = [f"{loss} {row.share:.3f} {interval(row.share_low, row.share_high)}" for loss, row in kept.items()]
    return Verdict(claim, "; ".join(told), _over_losses(words))


def keeps(kept: Kept) -> str:
    """Return the verdict on natural R@1 of one model."""
    return "holds" if kept.share_low >= KEPT else "fails" if kept.share_high < KEPT else "not shown"


def loses(base: Any) -> str:
    """Return the verdict on what attacks break of the undefended model, a row of a comparison."""
    half = base.natural / 2
    verdict = "holds" if base.r1_high < half else "fails" if base.r1_low >= half else "not shown"
    return judged_by(verdict, *([] if verdict == "holds" else [base.gates]))


def gains(row: Any, base: Any) -> str:
    """Return the verdict on a model's factor over the undefended one, both rows of a comparison.

    The factor may be too high if a gate of the model fails, and too low if one of the baseline does.
    """
    verdict = "holds" if row.factor_low >= FACTOR else "fails" if row.factor_high < FACTOR else "not shown"
    return judged_by(verdict, *rests_on(verdict, row.gates, base.gates))


def natural_kept(row: Any, base: Any) -> Kept:
    """Compare natural R@1 with that of the undefended model, each over all images of the test half.

    Outcomes of single images are not recorded, so the intervals treat the two shares as independent. They are of the
    same images, which makes the intervals wider than need be.

    Args:
        row: the model's row of :func:`dml.reporting.tables.comparison`.
        base: the undefended model's.
    """
    right = [(round(side.natural * side.images), side.images) for side in (row, base)]
    return Kept(*natural(row, base), row.natural / base.natural, *ratio_interval(*right[0], *right[1]))


def judged_by(verdict: str, *gates: str) -> str:
    """Return a verdict on one model, unless one of the gates that it rests on does not hold or was not run.

    A failed gate means that a model's R@1 may be too high. What would be true all the more were it lower does not rest
    on the gate.
    """
    return verdict if set(gates) <= {"hold"} else UNJUDGED


def _over_losses(words: Sequence[str]) -> str:
    """The verdict on a claim from those on its losses: where none holds, what was found of all, or the weakest word."""
    if "holds" in words:
        return "holds" if set(words) == {"holds"} else "holds in part"
    for word in (UNJUDGED, OWED, "not shown", "not separated"):
        if word in words:
            return word
    return "fails"


def _doubts(words: Sequence[str]) -> str:
    return "; a gate fails or was not run, or an embedding collapsed" if UNJUDGED in words else ""


def _beats(
    claim: str,
    paper: pd.DataFrame,
    others: Mapping[str, tuple[Model, str]],
    records: Sequence[Record],
    eps: float,
    note: str = "",
) -> Verdict:
    """Whether R@1 is higher than another model's for every loss; not tested where no two met the same queries.

    Args:
        claim: its words.
        paper: rows of the models that are judged, by loss.
        others: loss -> the other model and its gates.
        records: of one dataset and suite.
        eps: the radius.
        note: after what was measured.
    """
    key, measured, words = eps_key(eps), [], []
    for loss, row in paper.iterrows():
        other, gates = others.get(loss, (None, ""))
        pairs = same_queries(records, (loss, row["defense"]), other, key) if other else []
        found = in_r1(pairs, key)
        if found:
            own, theirs = shares(pairs, key)
            measured.append(f"{loss} {own[0]:.3f} against {theirs[0]:.3f}, p {chance_text(found.chance)}")
            word = judged_by(found.verdict, *rests_on(found.verdict, row["gates"], gates))
            words.append(owed(word, records, (loss, row["defense"]), key))
    if not measured:
        return Verdict(claim, MISSING, UNTESTED)
    verdict = "fails" if "fails" in words and not {"holds", OWED} & set(words) else _over_losses(words)
    if OWED in words:
        note += f"; `{START}`, trained no further, is not behind"
    return Verdict(claim, "; ".join(measured) + note + _doubts(words), verdict)


def owed(verdict: str, records: Sequence[Record], model: Model, key: str) -> str:
    """Return the verdict that a model is ahead of another, or that it owes this to the start of its training.

    It does where the start, trained no further, was attacked on the same queries, and McNemar's test does not find the
    model ahead of it. (Nearly no training happens there, so its loss does not matter.)

    Args:
        verdict: that the model is ahead of another one.
        records: of one dataset and suite.
        model: its loss and defence.
        key: the radius.
    """
    start = next(((record["loss"], START) for record in records if record["defense"] == START), None)
    if verdict != "holds" or start is None or model[1] == START:
        return verdict
    found = in_r1(same_queries(records, model, start, key), key)
    return OWED if found and found.verdict != "holds" else verdict


def rests_on(verdict: str, first: str, second: str) -> list[str]:
    """Return the gates that a comparison of two models rests on: not those of the one that is behind even so."""
    return {"holds": [first], "fails": [second]}.get(verdict, [first, second])


def _beats_control(
    claim: str, paper: pd.DataFrame, found: pd.DataFrame, records: Sequence[Record], eps: float
) -> Verdict:
    """Whether R@1 is higher than that of the control with the highest one."""
    control = best_control(found)
    if control is None:
        return Verdict(claim, MISSING, UNTESTED)
    others = dict.fromkeys(paper.index, ((CONTROL, control["defense"]), control["gates"]))
    return _beats(claim, paper, others, records, eps, f" ({spell(control['defense'])})")


def _each(rows: pd.DataFrame, text: Callable[[Any], str]) -> str:
    return "; ".join(f"{loss} {text(row)}" for loss, row in rows.iterrows())
