"""From the JSON of each run to metrics.csv, provenance.json and the page that people browse."""

import itertools
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from dml.attacks.balls import radius_text
from dml.common.files import ROOT, atomic
from dml.evaluation.statistics import over_seeds, paired_test, pool_seeds, ratio_interval, wilson
from dml.reporting.plots import order, spell

COLUMNS = [
    "dataset",
    "loss",
    "defense",
    "seed",
    "suite",
    "attack",
    "norm",
    "eps",
    "queries",
    "r1",
    "r1_low",
    "r1_high",
    "map_r",
    "gates",
]
KEYS = ["dataset", "loss", "defense", "seed", "suite"]
MODEL = ["dataset", "loss", "defense", "suite"]  # what the trainings of several seeds share
BASE = ["dataset", "suite", "loss"]  # what a model shares with the undefended one it is compared with
MARK = "†"  # beside a figure whose gates do not all hold
LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "papermill", "dvc")


def write_text(file: Path, text: str) -> None:
    """Write a text file, all or nothing."""
    with atomic(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write the JSON of one run: its keys, settings, natural outcome, rows of metrics, device and seconds."""
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_records(*folders: Path) -> list[dict[str, Any]]:
    """The JSON of every run below some folders, in the order of their paths; a later folder's stands for an earlier's.

    Raises:
        ValueError: a file is no such record.
    """
    files = {file.relative_to(folder): file for folder in folders for file in sorted(folder.rglob("*.json"))}
    records = []
    for _, file in sorted(files.items()):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            missing = {*KEYS, "rows", "natural", "device", "seconds"} - set(record)
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        if missing:
            raise ValueError(f"{file} lacks the key {sorted(missing)[0]!r}")
        records.append(record)
    return records


def main_run(records: list[dict[str, Any]], dataset: str) -> tuple[str, str, int]:
    """Suite, loss and seed of the pictures of a dataset: ``quick``, triplet and the least seed where it has them."""
    own = [record for record in records if record["dataset"] == dataset]
    suites, losses = sorted({record["suite"] for record in own}), sorted({record["loss"] for record in own})
    return (
        "quick" if "quick" in suites else suites[0],
        "triplet" if "triplet" in losses else losses[0],
        min(record["seed"] for record in own),
    )


def gates_of(record: Mapping[str, Any]) -> str:
    """``hold`` or ``fail``, or ``not run`` for a suite that no claim rests on."""
    if not record.get("gates"):
        return "not run"
    return "hold" if all(gate["passed"] for gate in record["gates"]) else "fail"


def metrics(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a dataset, loss, defence, seed, suite, attack, norm and eps; the columns of metrics.csv."""
    rows = [
        {**{key: record[key] for key in KEYS}, **row, "gates": gates_of(record)}
        for record in records
        for row in record["rows"]
    ]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values([*KEYS, "norm", "eps", "attack"], ignore_index=True)


def write_metrics(table: pd.DataFrame, file: Path) -> None:
    """metrics.csv with six digits after the point, so that the same outcomes give the same bytes."""
    with atomic(file) as partial:
        table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


def device_name(device: torch.device) -> str:
    """What a person would call the device that a model is on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def versions() -> dict[str, str]:
    """Of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def provenance(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What made the results: commit and versions of the figures, and device, versions, weights and seconds of each run.

    Device and versions of a run are those of its evaluation.
    """
    told = ("device", "versions", "weights", "seconds")
    return {
        "commit": _commit(),
        "versions": versions(),
        "runs": [{key: record[key] for key in (*KEYS, *told) if key in record} for record in records],
    }


def comparison(table: pd.DataFrame, records: list[dict[str, Any]], eps: float) -> pd.DataFrame:
    """A row a model at one radius, with its fold increase over the undefended model of the same loss.

    Of several trainings that differ in the seed alone, natural figures are the mean, and the attacked queries are
    counted together.

    Args:
        table: rows of metrics.csv.
        records: the runs they come from.
        eps: the radius.

    Returns:
        ``dataset, suite, loss, defense, trainings, natural, map_r, r1, r1_low, r1_high, queries, adversarial_map_r,
        gates, factor, factor_low, factor_high``. The factor of an undefended model is undefined (NaN); where none of
        the undefended model's queries stood, it and the upper end of its 95% interval are infinite.
    """
    natural = pd.DataFrame(
        [
            {
                **{key: record[key] for key in MODEL},
                "natural": record["natural"]["r1"],
                "natural_map_r": record["natural"]["map_r"],
            }
            for record in records
        ]
    )
    natural = natural.groupby(MODEL, as_index=False).mean()
    pooled = pool_seeds(table)
    worst = pooled[(pooled["attack"] == "worst") & np.isclose(pooled["eps"], eps)]
    found = worst.rename(columns={"map_r": "adversarial_map_r"}).merge(natural, on=MODEL)
    found = found.rename(columns={"natural_map_r": "map_r"})
    base = found.loc[found["defense"] == "standard", [*BASE, "r1", "queries"]]
    found = found.merge(base, on=BASE, how="left", suffixes=("", "_standard"))
    found[["factor", "factor_low", "factor_high"]] = np.reshape([_factor(row) for row in found.itertuples()], (-1, 3))
    places = {name: place for place, name in enumerate(order(found["defense"]))}
    return found.sort_values(
        [*BASE, "defense"],
        key=lambda column: column.map(places) if column.name == "defense" else column,
        ignore_index=True,
    )


def _factor(row: Any) -> tuple[float, float, float]:
    """A model's fold increase over the undefended one, and its 95% interval."""
    if row.defense == "standard" or np.isnan(row.r1_standard):
        return np.nan, np.nan, np.nan
    stood, stood_standard = round(row.r1 * row.queries), round(row.r1_standard * row.queries_standard)
    interval = ratio_interval(stood, row.queries, stood_standard, int(row.queries_standard))
    return row.r1 / row.r1_standard if stood_standard else np.inf, *interval


def comparison_markdown(found: pd.DataFrame) -> str:
    """:func:`comparison` as a table for people."""
    lines = [
        "| loss | defence | natural R@1 | natural MAP@R | adversarial R@1 (95% interval) "
        "| MAP@R of these pictures | factor (95% interval) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found.itertuples():
        lines.append(
            f"| {row.loss} | {spell(row.defense)} | {row.natural:.3f} | {row.map_r:.3f} "
            f"| **{row.r1:.3f}**{MARK if row.gates == 'fail' else ''} ({row.r1_low:.3f} to {row.r1_high:.3f}) "
            f"| {row.adversarial_map_r:.3f} "
            f"| {factor_text(row)} |"
        )
    return "\n".join(lines)


class Verdict(NamedTuple):
    """A claim of the paper, what was measured here, and whether it holds."""

    claim: str
    measured: str
    verdict: str


def verdicts(found: pd.DataFrame, eps: float, untrained: Mapping[str, Any] | None = None) -> list[Verdict]:
    """The paper's claims about one dataset at one radius, and that training gained anything, judged for every loss by
    :func:`comparison`. ``untrained`` is what :func:`dml.evaluation.controls.attacked_histogram` gave.

    A claim holds if it does for every loss. A difference of two defences counts if their 95% intervals do not overlap,
    a factor if its interval lies on one side of 5. Nothing is judged by a suite that has no gates, nor where one does
    not hold.
    """
    if found["gates"].eq("not run").all():
        return []
    if not found["gates"].eq("hold").all():
        failed = found.loc[found["gates"] != "hold", ["loss", "defense"]].agg(", ".join, axis=1)
        return [Verdict("None is judged", f"gates do not hold, or were not run: {'; '.join(failed)}", "not judged")]
    at = f"at eps {radius_text(eps)}"
    models = {defense: rows.set_index("loss") for defense, rows in found.groupby("defense")}
    standard, robust, single = (models.get(name) for name in ("standard", "robust", "single_step"))
    judged = []
    if standard is not None:
        judged.append(
            Verdict(
                f"Undefended models lose more than half of their natural R@1 {at}",
                _each(standard, lambda row: f"{row.natural:.3f} to {row.r1:.3f}"),
                _judge(standard["r1_high"] < standard["natural"] / 2, standard["r1_low"] >= standard["natural"] / 2),
            )
        )
    if standard is not None and robust is not None and robust["factor"].notna().all():
        judged.append(
            Verdict(
                f"Robust training gives at least 5 times the adversarial R@1 of the undefended model {at}",
                _each(robust, factor_text),
                _judge(robust["factor_low"] >= 5, robust["factor_high"] < 5),
            )
        )
        ratio = robust["natural"] / standard["natural"].reindex(robust.index)
        judged.append(
            Verdict(
                "Robust training keeps at least 0.95 of the natural R@1",
                _each(robust.assign(ratio=ratio), lambda row: f"{row.ratio:.3f}"),
                _judge(ratio >= 0.95, ratio < 0.95),
            )
        )
    if robust is not None and single is not None:
        both = robust.merge(single[["r1", "r1_high"]], on="loss", suffixes=("", "_other"))
        judged.append(_beats(f"Robust training beats single-step training {at}", both))
    left = untrained["left"].get(radius_text(eps)) if untrained else None
    if robust is not None and left is not None:
        high = wilson(round(left * untrained["queries"]), untrained["queries"])[1]
        both = robust.assign(r1_other=left, r1_high_other=high)
        judged.append(_beats(f"Robust models keep more than a soft histogram that nobody trained {at}", both))
    return judged


def _beats(claim: str, both: pd.DataFrame) -> Verdict:
    """Whether R@1 is higher than another's (``r1_other``), judged by intervals that do not overlap."""
    apart, below = both["r1_low"] > both["r1_high_other"], both["r1"] <= both["r1_other"]
    measured = _each(both, lambda row: f"{row.r1:.3f} against {row.r1_other:.3f}")
    return Verdict(claim, measured, "holds" if apart.all() else "fails" if below.any() else "not separated")


def _judge(holds: pd.Series, fails: pd.Series) -> str:
    """Of a claim that for some losses may neither be seen to hold nor to fail."""
    if holds.all():
        return "holds"
    if holds.any():
        return "holds in part"
    return "fails" if fails.all() else "not shown"


def _each(rows: pd.DataFrame, text: Callable[[Any], str]) -> str:
    return "; ".join(f"{loss} {text(row)}" for loss, row in rows.iterrows())


def factor_text(row: Any) -> str:
    """The fold increase of a row of :func:`comparison` with its interval, of which there may be a lower end alone."""
    if np.isnan(row.factor):
        return "–"
    if np.isinf(row.factor):
        return f"at least {row.factor_low:.1f}"
    return f"{row.factor:.1f} ({row.factor_low:.1f} to {row.factor_high:.1f})"


def suites_side_by_side(table: pd.DataFrame, eps: float) -> list[str]:
    """R@1 left by each suite at one radius, a row a model, as lines of Markdown; nothing where there is one suite."""
    # Suites with gates are of one kind; the others attack something else, or with less.
    worst = table[(table["attack"] == "worst") & np.isclose(table["eps"], eps) & (table["gates"] != "not run")]
    suites = sorted(worst["suite"].unique())
    if len(suites) < 2:
        return []
    # The same trainings for all: those of another seed may be easier to attack.
    trainings = worst.groupby(["loss", "defense", "seed"])["suite"].transform("nunique")
    worst = pool_seeds(worst[trainings == len(suites)])
    lines = [
        "",
        f"### Does more effort find more? Suites side by side, eps {radius_text(eps)}",
        "",
        "Adversarial R@1 of the trainings that all of them attacked, with its 95% interval and the number of queries, "
        "which each suite draws for itself.",
        "",
        "| loss | defence | " + " | ".join(f"`{suite}`" for suite in suites) + " |",
        "|---|---|" + "---|" * len(suites),
    ]
    for (loss, defense), rows in worst.groupby(["loss", "defense"]):
        found = {
            row.suite: f"{row.r1:.3f}{MARK if row.gates == 'fail' else ''} ({row.r1_low:.3f} to {row.r1_high:.3f}), "
            f"{row.queries:,}"
            for row in rows.itertuples()
        }
        cells = [found.get(suite, "–") for suite in suites]
        lines.append(f"| {loss} | {spell(defense)} | " + " | ".join(cells) + " |")
    return lines


def gates_section(records: list[dict[str, Any]]) -> list[str]:
    """What the gates measured, a row a model, a column a gate; nothing where none were run."""
    checked = sorted((record for record in records if record.get("gates")), key=_place)
    lines: list[str] = []
    for suite in sorted({record["suite"] for record in checked}):
        own = [record for record in checked if record["suite"] == suite]
        names = list(dict.fromkeys(_general(gate["gate"]) for record in own for gate in record["gates"]))
        lines += [
            "",
            f"### Gates, suite `{suite}`",
            "",
            "Measured, and in brackets the most it may be; a bold figure does not hold. Shares are of all attacked "
            "queries, estimated on at most a hundred; those that *fall* stood under the suite. Where a cell is empty, "
            "the gate was not run at that radius.",
            "",
            "| model | eps | stand | " + " | ".join(names) + " |",
            "|---|---|---|" + "---|" * len(names),
        ]
        for record in own:
            radii = sorted(row["eps"] for row in record["rows"] if row["attack"] == "worst")
            for eps in radii:
                # What was measured at a radius that is none of the suite's stands in the model's first row.
                here = [
                    gate
                    for gate in record["gates"]
                    if gate["eps"] == eps or (eps == radii[0] and gate["eps"] not in radii)
                ]
                cells = ["; ".join(_gate(gate) for gate in here if _general(gate["gate"]) == name) for name in names]
                stand = record["standing"][f"{eps:.6f}"]
                lines.append(
                    f"| {_model(record, own)} | {radius_text(eps)} | {stand.count('1'):,} of {len(stand):,} | "
                    + " | ".join(cells)
                    + " |"
                )
    return lines


def collapse_section(records: list[dict[str, Any]]) -> list[str]:
    """How the embeddings fill their sphere, a row a model of the suites with gates; nothing where none was measured."""
    # The same weights under several suites are one model.
    models = {record["weights"]: record for record in records if record.get("gates") and record.get("embedding")}
    own = sorted(models.values(), key=_place)
    if not own:
        return []
    lines = [
        "",
        "### Does the embedding fill its sphere?",
        "",
        "An embedding that robust training has drawn together is hard to move, and for that reason alone looks robust: "
        "its effective rank (of the covariance over the test half) is far below that of the undefended model. "
        "Distances are means over pairs.",
        "",
        "| model | effective rank | share of the largest direction | distance in a class | between classes | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for record in own:
        found = record["embedding"]
        lines.append(
            f"| {_model(record, own)} | {found['effective_rank']:.1f} | {found['top_share']:.2f} "
            f"| {found['intra']:.2f} | {found['inter']:.2f} | {found['ratio']:.2f} |"
        )
    return lines


def _general(gate: str) -> str:
    """Gates on other models' pictures share a column, whichever models they were."""
    return "fall to pictures that fool another model" if gate.startswith("fall to pictures") else gate


def _gate(gate: Mapping[str, Any]) -> str:
    value = f"{gate['measured']:.3f}" if gate["passed"] else f"**{gate['measured']:.3f}**"
    return f"{value} ({gate['limit']:.3f})"


def _model(record: Mapping[str, Any], records: list[dict[str, Any]]) -> str:
    several = len({other["seed"] for other in records}) > 1
    name = f"{record['loss']}, {spell(record['defense'])}" + (f", seed {record['seed']}" if several else "")
    return name + (MARK if gates_of(record) == "fail" else "")


def best_compared(records: list[dict[str, Any]], what: str = "attacks") -> list[dict[str, Any]]:
    """The records of the suite whose attacks were compared on the most queries, in the order of tables.

    ``what`` of the comparison they have to hold: ``attacks`` one by one, or what more ``steps`` or ``radii`` leave.
    """
    held = [record for record in records if record.get("compared", {}).get(what)]
    if not held:
        return []
    suite = max(held, key=lambda record: record["compared"]["attacks"][0]["queries"])["suite"]
    return sorted((record for record in held if record["suite"] == suite), key=_place)


def _place(record: Mapping[str, Any]) -> tuple[str, int, bool, str]:
    """By loss and seed, the undefended model first."""
    return record["loss"], record["seed"], record["defense"] != "standard", record["defense"]


def attacks_section(records: list[dict[str, Any]]) -> list[str]:
    """R@1 left by each attack by itself, a row an attack, a column a model, and by the whole suite on those queries."""
    own = best_compared(records)
    if not own:
        return []
    first = own[0]["compared"]
    eps, queries, suite = first["eps"], first["attacks"][0]["queries"], own[0]["suite"]
    lines = [
        "",
        f"### One attack at a time, eps {radius_text(eps)}, {queries} queries",
        "",
        f"R@1 left by each attack by itself, {first['steps_each']} steps each (towards each of 5 targets), and by the "
        f"whole suite `{suite}` on the same queries.",
        "",
        "| attack | " + " | ".join(_model(record, own) for record in own) + " |",
        "|---|" + "---|" * len(own),
    ]
    left = [{row["attack"]: row["r1"] for row in record["compared"]["attacks"]} for record in own]
    for name in dict.fromkeys(name for column in left for name in column):
        label = {"none": "none (natural)", "worst": "all of these"}.get(name, name)
        cells = [f"{column[name]:.3f}" if name in column else "–" for column in left]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    cells = []
    for record in own:
        marks = record["standing"][f"{eps:.6f}"]
        some = marks[:: max(1, len(marks) // queries)][:queries]  # as the compared queries were taken
        cells.append(f"**{some.count('1') / len(some):.3f}**")
    lines.append(f"| the whole suite `{suite}` | " + " | ".join(cells) + " |")
    pairs = [record["compared"].get("map_r") for record in own]
    for place, label in enumerate(("MAP@R, natural", "MAP@R left by APGD that aims at it")):
        cells = [f"{pair[place]:.3f}" if pair else "–" for pair in pairs]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def ranking_section(records: list[dict[str, Any]]) -> list[str]:
    """The field's ten scores and ERS, a row a model, beside what tells a collapsed embedding."""
    own = [record for record in records if "ERS" in record.get("scores", {})]
    if not own:
        return []
    names = list(own[0]["scores"])
    lines = [
        "",
        "### Ranking attacks and ERS",
        "",
        "Higher is better but for CA-, QA-, TMA and ES:D. ERS rewards an embedding that hardly moves, and so a "
        "collapsed one: effective rank (of the embedding's covariance) and the ratio of distances within and between "
        "classes stand beside it.",
        "",
        "| suite | loss | defence | seed | natural R@1 | " + " | ".join(names) + " | effective rank | intra / inter |",
        "|---|---|---|---|---|" + "---|" * (len(names) + 2),
    ]
    for record in sorted(own, key=_place):
        cells = [f"{record['scores'][name]:.{3 if name in ('TMA', 'ES:D') else 1}f}" for name in names]
        lines.append(
            f"| `{record['suite']}` | {record['loss']} | {spell(record['defense'])} | {record['seed']} "
            f"| {record['natural']['r1']:.3f} | "
            + " | ".join(cells)
            + f" | {record['embedding']['effective_rank']:.1f} | {record['embedding']['ratio']:.2f} |"
        )
    return lines


def paired_section(records: list[dict[str, Any]], eps: float) -> list[str]:
    """Every two defences of a loss on the same queries, those of all seeds together, by McNemar's exact test."""
    key = f"{eps:.6f}"
    held = [record for record in sorted(records, key=_place) if record.get("gates") and key in record["standing"]]
    lines: list[str] = []
    for suite in sorted({record["suite"] for record in held}):
        own = [record for record in held if record["suite"] == suite]
        rows = []
        for loss, (first, second) in itertools.product(
            sorted({record["loss"] for record in own}),
            itertools.combinations(order([record["defense"] for record in own]), 2),
        ):
            pairs = _same_queries(own, loss, first, second, key)
            if not pairs:
                continue
            sides = list(zip(*pairs, strict=True))
            outcomes = [[mark == "1" for record in side for mark in record["standing"][key]] for side in sides]
            only_first, only_second, chance = paired_test(*outcomes)
            names = [
                spell(side[0]["defense"]) + (MARK if any(gates_of(record) == "fail" for record in side) else "")
                for side in sides
            ]
            rows.append(
                f"| {loss} | {names[0]} | {names[1]} | {len(outcomes[0]):,} | {only_first} | {only_second} "
                f"| {'< 0.0001' if chance < 1e-4 else f'{chance:.4f}'} |"
            )
        if rows:
            lines += [
                "",
                f"### The same queries under two defences, suite `{suite}`, eps {radius_text(eps)}",
                "",
                "How many queries stand under one of the two alone, and the probability of so uneven a split if both "
                "were equally good (McNemar's exact test, two-sided).",
                "",
                "| loss | A | B | queries | A alone | B alone | p |",
                "|---|---|---|---|---|---|---|",
                *rows,
            ]
    return lines


def _same_queries(
    records: list[dict[str, Any]], loss: str, first: str, second: str, key: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of two defences trained with the same seed and attacked on the same queries at radius ``key``."""
    models = {(record["defense"], record["seed"]): record for record in records if record["loss"] == loss}
    seeds = sorted({seed for _, seed in models})
    pairs = [(models[first, s], models[second, s]) for s in seeds if (first, s) in models and (second, s) in models]
    return [pair for pair in pairs if len({len(record["standing"][key]) for record in pair}) == 1]


def seeds_section(table: pd.DataFrame, eps: float) -> list[str]:
    """Mean and t-interval over independent trainings, where there are several."""
    worst = table[(table["attack"] == "worst") & np.isclose(table["eps"], eps)]
    rows = [
        f"| `{suite}` | {loss} | {spell(defense)} | {len(group)} | "
        + "{:.3f}{} ({:.3f} to {:.3f}) |".format(*_with_mark(group))
        for (suite, loss, defense), group in worst.groupby(["suite", "loss", "defense"])
        if len(group) > 1
    ]
    if not rows:
        return []
    return [
        "",
        f"### Over seeds, eps {radius_text(eps)}",
        "",
        "Mean adversarial R@1 of independent trainings with its 95% t-interval, cut to [0, 1].",
        "",
        "| suite | loss | defence | trainings | R@1 |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _with_mark(group: pd.DataFrame) -> tuple[float, str, float, float]:
    mean, low, high = over_seeds(group["r1"].tolist())
    return mean, MARK if group["gates"].eq("fail").any() else "", max(low, 0.0), min(high, 1.0)


def norms_section(table: pd.DataFrame, records: list[dict[str, Any]]) -> list[str]:
    """Certified R@1 and what attacks leave, by l2 radius."""
    rows = table[(table["norm"] == "l2") & (table["attack"] != "none")]
    if rows.empty:
        return []
    radii = sorted(rows["eps"].unique())
    told = [record["scores"] for record in records if "sigma" in record.get("scores", {})]
    noise, wrong = (
        ", ".join(f"{value:g}" for value in sorted({scores[key] for scores in told})) for key in ("sigma", "alpha")
    )
    lines = [
        "",
        "### Certified R@1, l2",
        "",
        "*Certified*: right, and provably so within the radius, by randomized smoothing of the nearest neighbour. "
        "*Smoothed*: what an attack on the smoothed search leaves. *Base*: what an attack leaves of the search without "
        f"smoothing. Noise of standard deviation {noise}; a certificate is wrong with a probability of {wrong} at "
        "most. Where none is given, the noisy copies that were counted are too few for so large a radius.",
        "",
        "| suite | loss | defence | seed | | " + " | ".join(f"{eps:g}" for eps in radii) + " |",
        "|---|---|---|---|---|" + "---|" * len(radii),
    ]
    for (suite, loss, defense, seed, attack), group in rows.groupby(["suite", "loss", "defense", "seed", "attack"]):
        values = group.set_index("eps")["r1"].reindex(radii)
        cells = ["–" if np.isnan(value) else f"{value:.3f}" for value in values]
        lines.append(f"| `{suite}` | {loss} | {spell(defense)} | {seed} | {attack} | " + " | ".join(cells) + " |")
    return lines


def _queries(compared: pd.DataFrame) -> str:
    """How many queries a table rests on."""
    words = []
    for what in ("queries", "trainings"):
        least, most = int(compared[what].min()), int(compared[what].max())
        words.append(f"{most:,} {what}" if least == most else f"{least:,} to {most:,} {what}")
    return words[0] if compared["trainings"].max() == 1 else " of ".join(words)


def baselines_of(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of embeddings that nobody trained, by name, where a record of the dataset says it."""
    return next((record["baselines"] for record in records if record.get("baselines")), {})


def _without_learning(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What embeddings that nobody trained retrieve."""
    scores = [f"{name} {score['r1']:.3f} (MAP@R {score['map_r']:.3f})" for name, score in found.items()]
    lines = ["", f"R@1 without learning, nearest neighbour by: {'; '.join(scores)}."] if scores else []
    for name, score in found.items():
        if "left" in score:
            left = " and ".join(f"{share:.3f} at {eps}" for eps, share in score["left"].items())
            lines += ["", f"Attacks leave {left} of the {name} ({score['queries']:,} queries), which nothing defends."]
    return lines


def _figure(figure: tuple[str, str] | None) -> list[str]:
    """A figure and its caption as lines of Markdown."""
    return ["", f"![{figure[1]}]({figure[0]})", "", figure[1]] if figure else []


def page(
    table: pd.DataFrame,
    records: list[dict[str, Any]],
    radii: Sequence[float],
    origins: Mapping[str, str],
    figures: Mapping[str, Sequence[tuple[str, str]]],
) -> str:
    """results/README.md.

    Args:
        table: rows of metrics.csv.
        records: the runs they come from.
        radii: that tables are given for, the headline's first.
        origins: where each dataset's images come from, in the order of the page.
        figures: of each dataset, (file below results/, caption).
    """
    lines = [
        "# Results",
        "",
        "Written by the pipeline from the JSON of each run in [runs/](runs); the same rows as a table are in "
        "[metrics.csv](metrics.csv), and what made them (device, versions, commit, seconds) in "
        "[provenance.json](provenance.json).",
        "",
        "*Natural* figures are over every image of the test half. *Adversarial* R@1 is what is left when the worst of "
        "all attacks counts for each query, l-inf ball, whole test half as gallery; 95% Wilson intervals over the "
        "attacked queries. The *factor* is over the undefended model of the same loss; where none of that model's "
        "queries stood, it is the least that the sample allows. Where a model was trained with several seeds, "
        "natural figures are their mean and the queries of all, drawn anew for each, are counted together; the "
        "interval leaves out how trainings differ, which the section over seeds gives. The attacks aim at R@1 and stop "
        "where it is lost: the *MAP@R of these pictures* is not the worst there is, which the tables of one attack at "
        "a time have for fewer queries.",
        "",
        "Claims are judged by suites with gates alone. Gates look for signs that the attack failed rather than the "
        "attacker: what else fells the queries that stand may change R@1 by no more than its standard error, at each "
        f"radius that the table of gates has figures for. {MARK} marks a model with one that does not hold: nothing is "
        "then judged.",
    ]
    places = {name: place for place, name in enumerate(origins)}
    for dataset in sorted(table["dataset"].unique(), key=lambda name: (places.get(name, len(places)), name)):
        found = table[table["dataset"] == dataset]
        own = [record for record in records if record["dataset"] == dataset]
        devices = "; ".join(sorted({record["device"] for record in own}))
        first, *others = figures.get(dataset) or [None]
        lines += ["", f"## {dataset}", "", f"{origins.get(dataset, '')} Measured on: {devices}.".strip()]
        lines += _figure(first)
        lines += _without_learning(baselines_of(own))
        for suite, rows in found.groupby("suite"):
            for eps in radii:
                compared = comparison(rows, [record for record in own if record["suite"] == suite], eps)
                if compared.empty:
                    continue
                lines += ["", f"### Suite `{suite}`, eps {radius_text(eps)}, {_queries(compared)}", ""]
                lines.append(comparison_markdown(compared))
                judged = verdicts(compared, eps, baselines_of(own).get("soft histogram"))
                if judged:
                    lines += ["", "| claim | measured | verdict |", "|---|---|---|"]
                    lines += [f"| {row.claim} | {row.measured} | **{row.verdict}** |" for row in judged]
        lines += suites_side_by_side(found, radii[0])
        lines += attacks_section(own)
        lines += gates_section(own)
        lines += collapse_section(own)
        lines += paired_section(own, radii[0])
        lines += seeds_section(found, radii[0])
        lines += ranking_section(own)
        lines += norms_section(found, own)
        for figure in others:
            lines += _figure(figure)
    return "\n".join(lines) + "\n"


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return described.stdout.strip() or None
