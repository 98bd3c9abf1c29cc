"""results/claims.md: each claim of the paper (arXiv 2102.07265), the measurement that tests it here, and a verdict."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.claims import (
    FACTOR,
    KEPT,
    OWED,
    SHARED,
    START,
    gains,
    is_undefended,
    keeps,
    loses,
    natural_kept,
    starts,
)
from dml.reporting.evidence import Asked, Evidence, by_radius, gathered, paired, paired_table, r1, told
from dml.reporting.records import Record
from dml.reporting.spelling import (
    MISSING,
    UNTESTED,
    factor_text,
    interval,
    model_text,
    number,
    settings_text,
    spell,
    table,
)
from dml.reporting.tables import best_control
from dml.reporting.variants import ON_QUERIES, RADIUS, SCOPE, leaves, one_difference, trained

PUBLISHED = "visual_phish_net"  # the peer as its authors' code has it
ABOUT_PUBLISHED = (
    "The code that the authors of VisualPhishNet published perturbs without the hinge of the loss, so that every "
    "anchor moves. The same against that."
)
REPORTED = ("cub200", "cars196", "sop")  # the datasets of the paper's own figures


def claims_page(by_dataset: Mapping[str, Sequence[Record]], figures: Figures) -> str:
    """Return results/claims.md.

    Args:
        by_dataset: dataset -> current records of the one suite that its headline shows.
        figures: names the baseline, the paper's defence and its peer, and gives the radii.
    """
    evidence = gathered(by_dataset, figures)
    missing = ", ".join(name for name in REPORTED if name not in by_dataset)
    lines = [
        "# The paper's claims",
        "",
        "What [Exploring Adversarial Robustness of Deep Metric Learning](https://arxiv.org/abs/2102.07265) claims, and "
        "what was measured here. R@1 counts the worst of all attacks for each query, with its 95% interval; p is not "
        "corrected for the number of tests. For losses that cost whole queries, which the paper does not train with, "
        f"{spell(figures.paper)} is `{ON_QUERIES}`, an extension made here: it perturbs each query. "
        "[All results](README.md)",
        *_on_training(evidence),
        *_on_starts(evidence),
        *_on_attacks(evidence),
        *_on_dependence(evidence),
        *_on_gains(evidence),
        *_on_natural_images(evidence),
        "",
        "## Not tested here",
        "",
        f"The figures of the paper itself, on {missing}: these need the official archives and a GPU."
        if missing
        else "Nothing.",
    ]
    return "\n".join(lines) + "\n"


def _on_training(evidence: Evidence) -> list[str]:
    """Which radius the paper's defence was trained with, and which trainings kept their first epoch."""
    figures = evidence.figures
    named = (figures.baseline, figures.paper, figures.peer, SHARED)
    radii, first = set(), set()
    for dataset, records in evidence.by_dataset.items():
        for record in trained(records):
            if record["defense"] == figures.paper:
                radii.add(leaves(record)[RADIUS])
            if record["defense"] in named and record.get("epoch_kept") == 1 < record["settings"]["schedule"]["epochs"]:
                first.add(f"{model_text(record['loss'], record['defense'])} on {dataset}")
    told = []
    if radii:
        given = " and ".join(map(radius_text, sorted(radii)))
        told.append(f"{spell(figures.paper).capitalize()} models were trained at eps {given}, at any attack radius.")
    if first:
        told.append(f"These kept their first epoch, the best on held-out classes: {'; '.join(sorted(first))}.")
    return ["", " ".join(told)] if told else []


def _on_starts(evidence: Evidence) -> list[str]:
    """Where training begins with weights from a file, the baseline may owe robustness to them."""
    begun: dict[str, list[str]] = {}
    for dataset, records in evidence.by_dataset.items():
        for weights in starts(records):
            begun.setdefault(weights, []).append(dataset)
    return [
        line
        for weights, datasets in sorted(begun.items())
        for line in (
            "",
            f"On {', '.join(datasets)} all models, {spell(evidence.figures.baseline)} ones too, begin with the weights "
            f"of `{weights}`, to which they may owe robustness. *{OWED.capitalize()}*: `{START}`, those weights "
            f"trained no further, is not behind {spell(evidence.figures.paper)} training on the same queries.",
        )
    ]


def _on_attacks(evidence: Evidence) -> list[str]:
    base = evidence.figures.baseline
    return [
        "",
        "## 1. Undefended models fail under attack",
        "",
        f"Holds where {spell(base)} training loses more than half of its natural R@1, a limit of this page; the paper "
        "says that it loses. Not tested where training begins with robust weights: no model there is undefended.",
        *by_radius(["natural R@1", "adversarial R@1", "verdict"], evidence, _fails),
    ]


def _on_dependence(evidence: Evidence) -> list[str]:
    base, paper = spell(evidence.figures.baseline), spell(evidence.figures.paper)
    return [
        "",
        "## 2. Adversarial training as for classifiers does not carry over",
        "",
        f"A metric loss depends on the whole tuple. `{SHARED}` trains as one would a classifier: one perturbation per "
        f"image, shared by all tuples. Holds where {paper} training, which perturbs one element per tuple, beats it on "
        "the same queries (McNemar's exact test).",
        *paired_table(evidence, SHARED),
        *_trained_otherwise(evidence),
        "",
        "## 3. A robust formulation accounts for the dependence on the batch",
        "",
        "A metric loss depends on the other samples of the batch. The formulation perturbs one element of each tuple "
        "against fixed natural embeddings of the others, and replaces it in that tuple alone. "
        "[Chapter 6](dependence/README.md) tests what this rests on: how one perturbed image changes the other tuples "
        "that hold it, and what remains if other elements are perturbed, shared between tuples or mined again. "
        f"The table tests it as a whole. Holds where {paper} training beats {base} training on the same queries "
        "(McNemar's exact test).",
        *paired_table(evidence, evidence.figures.baseline),
        *_at_other_scopes(evidence),
    ]


def _at_other_scopes(evidence: Evidence) -> list[str]:
    """The paper's defence, at any training radius, against the same with one perturbation per image for all tuples."""
    paper, rows = evidence.figures.paper, []
    for dataset, loss, eps in evidence.found:
        own = [record for record in trained(evidence.by_dataset[dataset]) if record["loss"] == loss]
        radii = {leaves(record)[RADIUS]: paper for record in own if record["defense"] == paper}
        for radius, name in sorted((radii | _that_differ(own, paper, RADIUS)).items()):
            for shared in _that_differ(own, name, SCOPE).values():
                if cells := paired((dataset, loss, eps), evidence, name, shared):
                    rows.append([dataset, spell(loss), radius_text(radius), radius_text(eps), *cells])
    if not rows:
        return []
    text = (
        f"Of its parts, replacing an element *in that tuple alone*: {spell(paper)} training against the same with one "
        "perturbation per image, in all tuples where it has that role."
    )
    header = ["dataset", "loss", "training eps", "eps", spell(paper), "shared", "p", "verdict"]
    return ["", text, *table(header, rows)]


def _trained_otherwise(evidence: Evidence) -> list[str]:
    """The same for models of both kinds that differ from these in nothing but training radius and schedule."""
    text = (
        "With other training radii and schedules, all else the same. Where a gate fails or an embedding collapses, "
        "R@1 may be too high, and a model that is behind even so is behind."
    )
    return _by_training(evidence, SHARED, text, others_only=True)


def _by_training(evidence: Evidence, other: str, text: str, others_only: bool = False) -> list[str]:
    """A table of the paper's defence beside another in each way that both were trained, below a text."""
    paper, rows = evidence.figures.paper, []
    for dataset, loss, eps in evidence.found:
        own = [record for record in trained(evidence.by_dataset[dataset]) if record["loss"] == loss]
        first, second = (_trainings(own, name) for name in (paper, other))
        for way in sorted(first.keys() & second.keys()):
            names = first[way], second[way]
            if others_only and names == (paper, other):
                continue
            if cells := paired((dataset, loss, eps), evidence, *names):
                rows.append([dataset, spell(loss), ", ".join(filter(None, way[1:])), radius_text(eps), *cells])
    header = ["dataset", "loss", "training", "eps", spell(paper), spell(other), "p", "verdict"]
    return ["", text, *table(header, rows)] if rows else []


def _trainings(records: Sequence[Record], name: str) -> dict[tuple[float, str, str], str]:
    """Radius, its spelling, and what else the schedule has -> the defence that differs from a named one in these."""
    found = {record["defense"]: leaves(record) for record in records}
    usual, ways = found.get(name, {}), {}
    for defense, own in found.items() if RADIUS in usual else ():
        differs = {setting for setting in own | usual if own.get(setting) != usual.get(setting)} - {RADIUS}
        if all(setting.startswith("schedule.") for setting in differs):
            schedule = {setting.split(".")[-1]: own[setting] for setting in sorted(differs)}
            ways[own[RADIUS], radius_text(own[RADIUS]), settings_text(schedule)[1:-1]] = defense
    return ways


def _that_differ(records: Sequence[Record], name: str, setting: str) -> dict[Any, str]:
    """Value of a setting -> the defence that differs from a named one in that alone."""
    found = {record["defense"]: leaves(record) for record in records}
    if name not in found:
        return {}
    return {own[setting]: other for other, own in found.items() if one_difference(own, found[name]) == setting}


def _on_gains(evidence: Evidence) -> list[str]:
    figures = evidence.figures
    base, paper, peer = map(spell, (figures.baseline, figures.paper, figures.peer))
    return [
        "",
        f"## 4. {paper.capitalize()} training keeps 5 to 76 times the adversarial R@1",
        "",
        f"Holds where the 95% interval of the factor lies above {FACTOR}. Not tested where training begins with robust "
        f"weights, since {base} models keep much there. The best control stands beside it: "
        "where standard training keeps next to nothing, a large factor may still be a small share.",
        *by_radius([base, paper, "factor", "best control", "verdict"], evidence, _factor),
        "",
        f"## 5. {paper.capitalize()} training beats {peer} training",
        "",
        "On the same queries, by McNemar's exact test. The peer is VisualPhishNet's training, as the paper tells it.",
        *paired_table(evidence, figures.peer),
        *_by_training(evidence, PUBLISHED, ABOUT_PUBLISHED),
    ]


def _on_natural_images(evidence: Evidence) -> list[str]:
    """Natural R@1 has no radius, so the first at which both models were measured is as good as any."""
    base, paper = evidence.figures.baseline, evidence.figures.paper
    rows = []
    for (dataset, loss), group in itertools.groupby(evidence.found, key=lambda asked: asked[:2]):
        pairs = [pair for asked in group if (pair := evidence.rows(asked, base, paper))]
        cells = _natural(*pairs[0]) if pairs else [*[MISSING] * 4, UNTESTED]
        rows.append([dataset, spell(loss), *cells])
    return [
        "",
        f"## 6. {spell(paper).capitalize()} models retrieve well on natural images too",
        "",
        "An earlier version of the paper, *Adversarial Deep Metric Learning* (submitted to ICLR 2021), says that "
        "natural retrieval stays almost as good. *Share kept* is relative to "
        f"{spell(base)} training; the claim holds where its 95% interval lies above {KEPT:g}. Both intervals treat the "
        "models as independent (Newcombe 1998; Donner and Zou 2012), so they are wider than need be.",
        *table(["dataset", "loss", spell(base), spell(paper), "difference", "share kept", "verdict"], rows),
    ]


def _fails(asked: Asked, evidence: Evidence) -> list[str]:
    found = evidence.rows(asked, evidence.figures.baseline)
    if not found:
        return []
    (row,) = found
    return [number(row.natural), r1(row), _of_undefended(asked, evidence, loses(row))]


def _factor(asked: Asked, evidence: Evidence) -> list[str]:
    pair = evidence.rows(asked, evidence.figures.baseline, evidence.figures.paper)
    if not pair:
        return []
    (base, row), (dataset, _, eps) = pair, asked
    control = best_control(evidence.compared[dataset, eps])
    beside = MISSING if control is None else f"{control['r1']:.3f} ({spell(control['defense'])})"
    factor = factor_text(row.factor, row.factor_low, row.factor_high)
    return [r1(base), r1(row), factor, beside, _of_undefended(asked, evidence, gains(row, base))]


def _of_undefended(asked: Asked, evidence: Evidence, verdict: str) -> str:
    return told(verdict) if is_undefended(evidence.by_dataset[asked[0]]) else UNTESTED


def _natural(base: Any, row: Any) -> list[str]:
    kept = natural_kept(row, base)
    difference = f"{kept.difference:+.3f} {interval(kept.low, kept.high)}"
    share = f"{kept.share:.3f} {interval(kept.share_low, kept.share_high)}"
    return [number(base.natural), number(row.natural), difference, share, told(keeps(kept))]
