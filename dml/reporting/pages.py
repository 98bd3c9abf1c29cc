"""results/README.md, and two pages per dataset below it: what was found, and how far to trust it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dml.attacks.balls import radius_text
from dml.common.files import atomic, write_json, write_text
from dml.config.run import Figures
from dml.reporting import ablation, against_controls, grid, kinds, made, sections, standing, trust
from dml.reporting.claims import judged
from dml.reporting.compared import columns_page, compared
from dml.reporting.overview import FOLDER, overview
from dml.reporting.paper import claims_page
from dml.reporting.provenance import provenance
from dml.reporting.records import Record, Stale
from dml.reporting.spelling import CONTROL, MARK, count, details, table, verdict_text
from dml.reporting.style import caption_of
from dml.reporting.tables import comparison, main_records, main_suite, of_suite, write_metrics

# Order of figures.
FIRST = ("headline", "scatter", "accuracy_by_eps", "grid", "attacks", "certified", "search", "embeddings")
MEANING = (
    "*Natural* scores are over every query of the test half. *Adversarial* R@1 counts the worst of all attacks for "
    "each query in the l-inf ball, with the whole test half as gallery and a 95% Wilson interval over the attacked "
    "queries. The *factor* is relative to the standard model of the same loss, over the seeds of both, with its 95% "
    "interval; where none of that model's queries survive, it is the least that the sample allows. Of several "
    "trainings, natural scores are the mean, and the attacked queries are counted together; the interval leaves out "
    "how trainings differ. A model of fewer trainings met fewer queries, so that close models may be out of order: "
    "tests of two models are on the queries that both met. "
    "*Adversarial* MAP@R is what an attack on MAP@R itself leaves."
)
JUDGED = (
    "Only suites with gates support claims. Gates look for signs that the attack failed; most run further attacks on "
    f"surviving queries, and fail if these lower R@1 by more than its standard error. {MARK} marks a model with a gate "
    "that does not hold, or with a collapsed embedding; claims about it are not judged, unless it is behind even so."
)

TRUST = "trust"  # folder of the pages that say how far to trust the others
DOUBTS = "Gates, tests on the same queries, and how the embeddings fill their sphere"
FURTHER = {  # files that other stages and programs write -> what results/README.md says of each
    "dependence/README.md": "[why a metric loss changes adversarial training]({})",
    "strength.png": "[three attacks by gradients spent]({}) ([table](strength.csv))",
    "tuning.md": "[settings on held-out classes]({})",
    "benchmarks.md": "[time beside floors and peers]({})",
}


def write(
    results: Path,
    records: Sequence[Record],
    stale: Sequence[Stale],
    figures: Figures,
    origins: Mapping[str, str],
    drawn: Sequence[str] | None = None,
) -> list[Path]:
    """Write README.md, the pages, claims.md, compared.csv, columns.md, cost.md and provenance.json.

    Pages of datasets without records are removed.

    Args:
        results: folder to write to. Figures that lie in its ``figures/<dataset>/`` are shown, whoever drew them.
        records: current ones.
        stale: records that are listed only.
        figures: what results/ reports.
        origins: where each dataset's images come from, in the order of the pages.
        drawn: figures of this run, relative to ``results``; the others are marked as earlier ones. None: no figure
            is marked. Those of a dataset without current records are left out.

    Returns:
        The pages, README.md first.
    """
    datasets = {record["dataset"] for record in [*records, *(found.record for found in stale)]}
    places = list(origins)
    order = sorted(datasets, key=lambda name: (places.index(name) if name in places else len(places), name))
    by_dataset = {name: [record for record in records if record["dataset"] == name] for name in order}
    drawings = {name: figures_of(results, name, drawn) if own else [] for name, own in by_dataset.items()}
    pages = {}
    for name, own in by_dataset.items():
        old = [found for found in stale if found.record["dataset"] == name]
        doubts = trust_page(name, own, figures)
        place = f"{TRUST}/{name}.md" if doubts else ""
        pages[f"{name}.md"] = dataset_page(name, own, old, figures, origins.get(name, ""), drawings[name], place)
        pages |= {place: doubts} if doubts else {}
    text = overview(by_dataset, stale, figures, drawings)
    further = [told.format(file) for file, told in FURTHER.items() if (results / file).exists()]
    told = f" **Further**: {', '.join(further)}." if further else ""
    write_text(results / "README.md", f"{text.rstrip()}{told}\n")
    with atomic(results / FOLDER) as partial:
        partial.mkdir()
        for name, text in pages.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text, encoding="utf-8")
    write_text(results / "claims.md", claims_page(main_records(by_dataset, figures), figures))
    write_metrics(compared(by_dataset, figures), results / "compared.csv")
    write_text(results / "columns.md", columns_page(figures))
    write_text(results / "cost.md", made.cost_page(by_dataset, figures))
    write_json(results / "provenance.json", provenance(records))
    return [results / "README.md", *(results / FOLDER / name for name in pages)]


def figures_of(results: Path, dataset: str, drawn: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return the figures of a dataset that lie in ``results``: file relative to ``results``, and caption.

    Args:
        results: folder of results.
        dataset: whose figures to list.
        drawn: figures of this run; the captions of all others say that they are earlier ones. None: no caption does.
    """

    def place(file: Path) -> tuple[int, str]:
        known = [number for number, name in enumerate(FIRST) if file.stem.startswith(name)]
        return known[0] if known else len(FIRST), file.stem

    found = []
    for file in sorted((results / "figures" / dataset).glob("*.png"), key=place):
        name = file.relative_to(results).as_posix()
        earlier = "" if drawn is None or name in drawn else " (Drawn in an earlier run.)"
        found.append((name, caption_of(file) + earlier))
    return found


def dataset_page(
    dataset: str,
    records: Sequence[Record],
    stale: Sequence[Stale],
    figures: Figures,
    origin: str,
    drawn: Sequence[tuple[str, str]],
    further: str = "",
) -> str:
    """Return the page of a dataset.

    Args:
        dataset: its name.
        records: its current records.
        stale: its stale ones.
        figures: what results/ reports.
        origin: where its images come from.
        drawn: file relative to results/, and caption, of each figure.
        further: place of the page on how far to trust this one, if there is one.
    """
    twins = kinds.groups_section(records, figures)
    records = [record for record in records if not kinds.counts_groups(record)]
    main, families = main_suite(records, figures), grid.families(records, figures)
    grids = [item for item in drawn if families and Path(item[0]).stem == "grid"]
    drawn = [item for item in drawn if item not in grids]
    lines = [f"# {dataset}", "", f"{origin} [All results](../README.md)".strip()]
    if main:
        compared = comparison(of_suite(records, main), figures.eps, figures)
        lines += ["", sections.finding(compared, figures.eps, figures)] if not compared.empty else []
    lines += _figures(drawn[:1])
    if main:
        board = sections.leaderboard_section(records, figures)
        lines += ["", "## Leaderboard", *board] if board else []
        every = sections.suite_section(of_suite(records, main), figures)
        every = details("Every training at each radius", every) if board else every
        lines += ["", "## Models compared", *every]
        lines += standing.best_section(of_suite(records, main), figures)
        lines += standing.elsewhere(records, main, figures)
        lines += _claims(of_suite(records, main), figures)
        controls = sections.controls_section(of_suite(records, main), figures)
        beside = against_controls.section(records, figures)
        lines += ["", "## Controls", *controls, *beside] if controls else []
        parts = ablation.section(of_suite(records, main), figures.eps, figures)
        lines += ["", "## What each part is worth", *parts] if parts else []
    if families:
        lines += ["", "## Training radius and test radius", *grid.section(families), *_figures(grids)]
    lines += _figures(drawn[1:], "## Figures")
    if further:
        lines += ["", "## How far to trust these numbers", "", f"[{DOUBTS}]({further})"]
    lines += _suites(records, main, twins, figures)
    lines += _made(records)
    lines += made.stale_section(stale)
    return "\n".join(lines) + "\n"


def trust_page(dataset: str, records: Sequence[Record], figures: Figures) -> str:
    """Return the page that says how far to trust the numbers of a dataset; empty if there is nothing to say.

    Args:
        dataset: its name.
        records: its current records.
        figures: what results/ reports.
    """
    lines = _trust([record for record in records if not kinds.counts_groups(record)], figures)
    if not lines:
        return ""
    title = [f"# How far to trust the numbers of {dataset}", "", f"[What was found](../{dataset}.md)"]
    return "\n".join([*title, "", JUDGED, *lines]) + "\n"


def _figures(drawn: Sequence[tuple[str, str]], title: str = "") -> list[str]:
    lines = ["", title] if drawn and title else []
    for file, caption in drawn:
        lines += ["", f"![{caption}](../{file})", "", f"*{caption}*"]
    return lines


def _claims(records: Sequence[Record], figures: Figures) -> list[str]:
    rows = [[row.claim, row.measured, verdict_text(row.verdict)] for row in judged(records, figures)]
    return ["", "## Claims", *table(["claim", "measured", "verdict"], rows)] if rows else []


def _trust(records: Sequence[Record], figures: Figures) -> list[str]:
    """What tells whether the attacks were strong enough and the differences are real."""
    eps, radius = figures.eps, radius_text(figures.eps)
    lines: list[str] = []
    for suite in trust.suites_of(records):
        own = of_suite(records, suite)
        lines += details(f"Gates of suite <code>{suite}</code>", trust.gates_section(own, figures))
    for radius_eps in dict.fromkeys((figures.eps, figures.paper_eps)):
        effort = trust.effort_section(records, radius_eps, figures)
        lines += details(f"More effort on the same queries, eps {radius_text(radius_eps)}", effort)
        alone = kinds.alone_section(records, radius_eps, figures)
        lines += details(f"One attack at a time, eps {radius_text(radius_eps)}", alone)
    for suite in trust.suites_of(records):
        own = of_suite(records, suite)
        summary = f"Defences on the same queries, suite <code>{suite}</code>, eps {radius}"
        lines += details(summary, trust.paired_section(own, eps, figures))
    lines += details(f"Over seeds, eps {radius}", trust.seeds_section(records, eps, figures))
    lines += details("How the embeddings fill their sphere", trust.collapse_section(records, figures))
    return lines


def _suites(records: Sequence[Record], main: str | None, twins: list[str], figures: Figures) -> list[str]:
    """The suites that the headline does not show."""
    lines = details("Where near duplicates count", twins)
    for suite in trust.suites_of(records):
        if suite != main:
            own = of_suite(records, suite)
            lines += details(f"Suite <code>{suite}</code>", sections.suite_section(own, figures))
    lines += details("Ranking attacks and ERS", kinds.ranking_section(records, figures))
    lines += details("Certified R@1 in the l2 ball", kinds.certified_section(records, figures))
    return ["", "## Other suites", *lines] if lines else []


def _made(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    devices = sorted({record["machine"]["device"] for record in records if record.get("machine")})
    models = {(record["loss"], record["defense"], record["seed"]) for record in records}
    trained = sum(loss != CONTROL for loss, _, _ in models)
    controls = {defense for loss, defense, _ in models if loss == CONTROL}
    text = f"{count(trained, 'trained model')}, {count(len(controls), 'control')}."
    if devices:
        text += f" Measured on: {'; '.join(devices)}."
    lines = ["", "## How it was measured", "", text, "", MEANING, "", JUDGED]
    return lines + details("Settings", made.settings_section(records))
