"""The claims of the paper that is reproduced, judged by what was measured here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.spelling import CONTROL, factor_text, interval, spell
from dml.reporting.tables import best_control

FACTOR = 5  # the least fold increase that the paper reports
KEPT = 0.95  # of natural R@1, below which robustness is bought dearly


class Verdict(NamedTuple):
    """A claim, what was measured here, and whether it holds."""

    claim: str
    measured: str
    verdict: str


def verdicts(found: pd.DataFrame, eps: float, figures: Figures) -> list[Verdict]:
    """Judge the claims about one dataset at one radius.

    A claim holds if it does for every loss. A model beats another if their 95% intervals do not overlap; a factor
    counts if its interval lies on one side of 5. A claim about a model with a gate that does not hold is not judged.

    Args:
        found: :func:`dml.reporting.tables.comparison` of one suite at this radius.
        eps: the radius.
        figures: names the baseline, the paper's defence and its peer.

    Returns:
        Nothing for a suite that no claim rests on.
    """
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
        both = paper.merge(peer[["r1", "r1_high"]], left_index=True, right_index=True, suffixes=("", "_other"))
        judged.append(_unless(_beats(claim, both), paper, peer))
    control = best_control(found)
    if paper is not None and control is not None:
        other = {f"{column}_other": control[column] for column in ("r1", "r1_high")}
        claim = f"{paper_name} models keep more than the best control {at}"
        verdict = _beats(claim, paper.assign(**other))
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


def _beats(claim: str, both: pd.DataFrame) -> Verdict:
    """Whether R@1 is higher than another's (``r1_other``) for every loss; it fails where it is not ahead at all."""
    apart, behind = both["r1_low"] > both["r1_high_other"], both["r1"] <= both["r1_other"]
    measured = _each(both, lambda row: f"{row.r1:.3f} against {row.r1_other:.3f}")
    return Verdict(claim, measured, "holds" if apart.all() else "fails" if behind.any() else "not separated")


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
