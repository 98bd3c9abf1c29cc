"""results/README.md: one screen with every defence, the best models, the verdicts, and links to the pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.claims import OWED, START, judged
from dml.reporting.records import Record, Stale
from dml.reporting.sections import flagged, leaderboard_table, marked, queries_text, range_text
from dml.reporting.spelling import (
    CONTROL,
    MARK,
    MISSING,
    UNTESTED,
    number,
    spell,
    table,
    verdict_text,
    wide_table,
)
from dml.reporting.standing import BEST, counted_text, standings
from dml.reporting.tables import leaderboard, main_records, main_suite
from dml.reporting.variants import OWN, at_their_best

FOLDER = "pages"  # of the datasets' pages
SHOWN = (OWN[0], OWN[-1])  # of this project's defences, beside the best of each class
MEASURED = (
    "**How it was measured.** Attacks perturb queries in the l-inf ball. The gallery is the whole test half. No model"
    " was trained on its images; pretrained weights may have seen such classes, and so have models that take turned "
    "images for classes (`turns`). Each training keeps its best epoch on held-out classes, under attack or, "
    "without a defence, on natural images; its last, if none are held out. Intervals and tests are over queries; "
    "differences between classes and trainings would widen them."
)
FILES = (
    "**Numbers**: [compared.csv](compared.csv) on the pages, [metrics.csv](metrics.csv) all "
    "([columns](columns.md)), [runs/](runs) each query, [cost.md](cost.md) the cost of training, "
    "[provenance.json](provenance.json) devices and versions."
)


def overview(
    by_dataset: Mapping[str, Sequence[Record]],
    stale: Sequence[Stale],
    figures: Figures,
    drawings: Mapping[str, Sequence[tuple[str, str]]],
) -> str:
    """Return results/README.md: every defence where most were measured, the best model of each dataset, and verdicts.

    Args:
        by_dataset: dataset -> its current records, in the order of the pages.
        stale: records that are counted only.
        figures: what results/ reports.
        drawings: file and caption of each dataset's figures.
    """
    main = main_records(by_dataset, figures)
    boards = {name: leaderboard(own, figures) for name, own in main.items()}
    boards = {name: board for name, board in boards.items() if not board.empty}
    boards = dict(sorted(boards.items(), key=lambda item: -len(item[1])))  # the most defences lead
    lead = next(iter(boards), "")
    lines = ["# Results"]
    if lead:
        lines += [*_defenses(lead, main[lead], boards[lead], figures), *_figure(drawings[lead], "scatter")]
        if told := standings(main[lead], figures):
            link = f"{FOLDER}/{lead}.md#{BEST.lower().replace(',', '').replace(' ', '-')}"
            lines += ["", f"{counted_text(told, figures)} [By name]({link})."]
        lines += ["", "## Best models", "", _introduction(figures), *_best_models(boards, figures)]
    lines += _claims(main, figures)
    listed = ", ".join(_page(name, own, boards, stale, figures) for name, own in by_dataset.items())
    note = " Stale runs are listed there and count nowhere else." if stale else ""
    lines += ["", f"{MEASURED} **Pages** (runs; suite, attacked queries): {listed}.{note} {FILES}"]
    return "\n".join(lines) + "\n"


def _defenses(name: str, records: Sequence[Record], board: pd.DataFrame, figures: Figures) -> list[str]:
    """The leaderboard of a dataset with the best of each class of defence, and the controls."""
    best = at_their_best(board, records, {figures.baseline, figures.paper, *SHOWN})
    models = zip(board["loss"], board["defense"], strict=True)
    board = board[[loss == CONTROL or (loss, defense) in best for loss, defense in models]]
    kept = ", ".join(f"`{defense}`" for defense in (figures.baseline, figures.paper, *SHOWN))
    text = (
        f"Each class of defence with its best settings on [{name}]({FOLDER}/{name}.md), which explains the names; "
        f"{kept} in any case. Classes with more settings had more chances. R@1 is what the worst of all attacks leaves "
        f"of {queries_text(board)}, suite `{records[0]['suite']}` (95% interval over queries; below it the range of "
        "the trainings). The factor, and the cost in images embedded, are relative to undefended training with the "
        f"same loss and the shortest schedule. {MARK}: a gate fails, or the embedding collapsed."
    )
    return ["", text, *leaderboard_table(board, figures)]


def _page(
    name: str, own: Sequence[Record], boards: Mapping[str, pd.DataFrame], stale: Sequence[Stale], figures: Figures
) -> str:
    """Link to a dataset's page, and how many runs it shows."""
    old = sum(found.record["dataset"] == name for found in stale)
    runs = f"{len(own):,}" + (f", {old:,} stale" if old else "")
    suite = ""
    if name in boards:
        suite = f"; `{main_suite(own, figures)}`, {range_text(boards[name]['queries'])}"
    return f"[{name}]({FOLDER}/{name}.md) ({runs}{suite})"


def _introduction(figures: Figures) -> str:
    return (
        f"The trained model that keeps the most R@1 at eps {radius_text(figures.eps)} (of equals the first), and R@1 "
        f"there of `{figures.baseline}` and the paper's `{figures.paper}` with their best losses, of `{START}`, the "
        "weights that training begins with, and of the best control."
    )


def _best_models(boards: Mapping[str, pd.DataFrame], figures: Figures) -> list[str]:
    """One row per dataset with a trained model.

    Args:
        boards: dataset -> :func:`dml.reporting.tables.leaderboard`.
        figures: names the baseline and the paper's defence, and gives the radii.
    """
    rows = []
    for name, board in boards.items():
        trained = board[board["loss"] != CONTROL]
        if trained.empty:
            continue
        best = trained.iloc[0]
        others = [trained[trained["defense"].eq(defense)] for defense in (figures.baseline, figures.paper, START)]
        controls = board[board["loss"] == CONTROL]
        rows.append(
            [
                f"[{name}]({FOLDER}/{name}.md): {spell(best['defense'])} ({spell(best['loss'])})",
                number(best["natural"]),
                flagged(best["r1_paper"], best["gates"]),
                marked(best["r1"], best["r1_low"], best["r1_high"], best["gates"], bold=True),
                *map(_r1, [*others, controls]),
            ]
        )
    radii = radius_text(figures.paper_eps), radius_text(figures.eps)
    header = ["dataset: best model", "natural R@1", *(f"R@1 at {radius}" for radius in radii)]
    names = map(spell, (figures.baseline, figures.paper, START))
    return table([*header, *names, "best control"], rows)


def _r1(rows: pd.DataFrame) -> str:
    """R@1 of the first of some rows, if there is one."""
    if rows.empty:
        return MISSING
    first: Any = rows.iloc[0]
    return flagged(first["r1"], first["gates"])


def _figure(drawings: Sequence[tuple[str, str]], stem: str) -> list[str]:
    shown = [item for item in drawings if Path(item[0]).stem == stem]
    first = [(file, caption, caption.split(". ")[0].rstrip(".").split(", ")[0]) for file, caption in shown]
    return [line for file, caption, alt in first for line in ("", f"![{alt}.]({file})", f"*{caption}*")]


def _claims(main: Mapping[str, Sequence[Record]], figures: Figures) -> list[str]:
    """One row per dataset, one column per claim; verdicts on the same claim at two radii share a cell."""
    verdicts: dict[str, dict[str, dict[str, str]]] = {}
    radii = [f" at eps {radius_text(eps)}" for eps in (figures.eps, figures.paper_eps)]
    for name, own in main.items():
        for row in judged(own, figures):
            radius = next((radius for radius in radii if row.claim.endswith(radius)), "")
            cells = verdicts.setdefault(row.claim.removesuffix(radius), {})
            cells.setdefault(name, {})[radius] = verdict_text(row.verdict)
    if not verdicts:
        return []
    found = {claim: {name: _both(by_radius) for name, by_radius in cells.items()} for claim, cells in verdicts.items()}
    datasets = [name for name in main if any(name in verdicts for verdicts in found.values())]
    rows = [
        ([f"[{name}]({FOLDER}/{name}.md#claims)"], [cells.get(name, MISSING) for cells in found.values()])
        for name in datasets
    ]
    text = (
        f"Verdicts{radii[0]} and{radii[1]}, one where they agree. "
        "A claim holds if it does for every loss that was measured, and in part if it does for some. *Not shown*: a "
        "95% interval reaches across the limit. *Not separated*: McNemar's exact test on the same queries finds p of "
        f"0.05 or more, not corrected for the number of claims. *{OWED.capitalize()}*: the model that training begins "
        "with does as well, trained no further. One by one: [claims.md](claims.md)."
    )
    return ["", "## Claims", "", text, *wide_table(["dataset"], list(found), rows)]


def _both(verdicts: Mapping[str, str]) -> str:
    """Verdicts on a claim by radius, in one cell; a single one names its radius, if the claim has one."""
    if len(verdicts) == 1 and UNTESTED not in verdicts.values():
        return "".join(f"{verdict}{radius}" for radius, verdict in verdicts.items())
    return " / ".join(dict.fromkeys(verdicts.values()))
