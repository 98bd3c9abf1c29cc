"""The claims of the paper that is reproduced, judged by what was measured here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.paired import Model, in_r1, same_queries
from dml.reporting.records import Record, eps_key
from dml.reporting.spelling import CONTROL, chance_text, factor_text, interval, spell
from dml.reporting.tables import best_control, comparison

FACTOR = 5  # the least fold increase that the paper reports
KEPT = 0.95  # of natural R@1, below which robustness is bought dearly


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
    for eps in dict.fromkeys((figures.eps, figures.paper_eps)):
        for row in verdicts(records, eps, figures):
            found.setdefault(row.claim, row)
    return list(found.values())


def verdicts(records: Sequence[Record], eps: float, figures: Figures) -> list[Verdict]:
    """Judge the claims about one dataset at one radius.

    A claim holds if it does for every loss. A model beats another if more queries survive under it than under the
    other by McNemar's exact test on the queries that both met (:mod:`dml.reporting.paired`), and the claim fails if the
    test says the opposite for some loss. A factor counts if its 95% interval lies on one side of 5. A claim about a
    model with a gate that does not hold is not judged.

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
    trained = found[found["loss"] != CONTROL]
    models = {defense: rows.set_index("loss") for defense, rows in trained.groupby("defense")}
    base, paper, peer = (models.get(name) for name in (figures.baseline, figures.paper, figures.peer))
    base_name, paper_name, peer_name = (f"`{name}`" for name in (figures.baseline, figures.paper, figures.peer))
    judged = []
    if base is not None:
        lost = _judge(base["r1_high"] < base["natural"] / 2, base["r1_low"] >= base["natural"] / 2)
        change = _each(base, lambda row: f"{row.natural:.3f} to {row.r1:.3f}")
        claim = f"{base_name} models lose more than half of their natural R@1 {at}"
        judged.append(_unless(Verdict(claim, change, lost), base))
    if base is not None and paper is not None and paper["factor"].notna().all():
        gain = _judge(paper["factor_low"] >= FACTOR, paper["factor_high"] < FACTOR)
        times = _each(paper, lambda row: factor_text(row.factor, row.factor_low, row.factor_high))
        claim = f"{paper_name} models keep at least {FACTOR} times the R@1 of {base_name} ones {at}"
        judged.append(_unless(Verdict(claim, times, gain), base, paper))
        share = paper["natural"] / base["natural"].reindex(paper.index)
        kept = _each(paper.assign(share=share), lambda row: f"{row.share:.3f}")
        claim = f"{paper_name} models keep at least {KEPT:g} of the natural R@1 of {base_name} ones"
        judged.append(Verdict(claim, kept, _judge(share >= KEPT, share < KEPT)))
    if paper is not None and peer is not None:
        claim = f"{paper_name} models beat {peer_name} ones {at}"
        others = {loss: ((loss, figures.peer), row["r1"]) for loss, row in peer.iterrows()}
        judged += [_unless(verdict, paper, peer) for verdict in _beats(claim, paper, others, records, eps)]
    control = best_control(found)
    if paper is not None and control is not None:
        others = dict.fromkeys(paper.index, ((CONTROL, control["defense"]), control["r1"]))
        claim = f"{paper_name} models keep more than the best control {at}"
        for verdict in _beats(claim, paper, others, records, eps):
            verdict = verdict._replace(measured=f"{verdict.measured} ({spell(control['defense'])})")
            judged.append(_unless(verdict, paper, control.to_frame().T))
    return judged


def _unless(verdict: Verdict, *models: pd.DataFrame) -> Verdict:
    """The verdict, unless a gate of one of the models does not hold or was not run."""
    words = {word for rows in models for word in rows["gates"]} - {"hold"}
    if not words:
        return verdict
    reason = "a gate does not hold" if "fail" in words else "gates were not run"
    return verdict._replace(measured=f"{verdict.measured}; {reason}", verdict="not judged")


def _beats(
    claim: str, paper: pd.DataFrame, others: Mapping[str, tuple[Model, float]], records: Sequence[Record], eps: float
) -> list[Verdict]:
    """Whether R@1 is higher than another model's for every loss; nothing where no two met the same queries.

    Args:
        claim: its words.
        paper: rows of the models that are judged, by loss.
        others: loss -> the other model and its R@1.
        records: of one dataset and suite.
        eps: the radius.
    """
    key, measured, words = eps_key(eps), [], set()
    for loss, row in paper.iterrows():
        other, r1 = others.get(loss, (None, 0.0))
        found = in_r1(same_queries(records, (loss, row["defense"]), other, key), key) if other else None
        if found:
            measured.append(f"{loss} {row['r1']:.3f} against {r1:.3f}, p {chance_text(found.chance)}")
            words.add(found.verdict)
    verdict = "fails" if "fails" in words else "holds" if words == {"holds"} else "not separated"
    return [Verdict(claim, "; ".join(measured), verdict)] if measured else []


def _judge(holds: pd.Series, fails: pd.Series) -> str:
    """The verdict on a claim that for some losses may be neither shown nor refuted."""
    if holds.all():
        return "holds"
    if holds.any():
        return "holds in part"
    return "fails" if fails.all() else "not shown"


def _each(rows: pd.DataFrame, text: Callable[[Any], str]) -> str:
    return "; ".join(f"{loss} {text(row)}" for loss, row in rows.iterrows())


def finding(found: pd.DataFrame, eps: float, figures: Figures) -> str:
    """Return one sentence: R@1 of the best trained model, of its baseline, and of the best control.

    Args:
        found: :func:`dml.reporting.tables.comparison` at this radius.
        eps: the radius.
        figures: names the baseline.
    """
    trained = found[found["loss"] != CONTROL]
    if trained.empty:
        return ""
    best = trained.loc[trained["r1"].idxmax()]
    values = [
        f"{best['r1']:.3f} {interval(best['r1_low'], best['r1_high'])} after {spell(best['defense'])} training with "
        f"the {spell(best['loss'])} loss"
    ]
    base = trained[trained["defense"].eq(figures.baseline) & trained["loss"].eq(best["loss"])]
    if best["defense"] != figures.baseline and not base.empty:
        values.append(f"{base['r1'].iloc[0]:.3f} after {spell(figures.baseline)} training")
    control = best_control(found)
    if control is not None:
        values.append(f"{control['r1']:.3f} for the best control ({spell(control['defense'])})")
    return f"At eps {radius_text(eps)}, R@1 is {'; '.join(values)}."
