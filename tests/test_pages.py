"""results/README.md and the pages of datasets."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from made_records import EPS, FIGURES, GATE, record, row, six

from dml.common.files import ROOT
from dml.reporting import pages, style
from dml.reporting.records import Stale

ORIGINS = {"others": "Somebody's images.", "toys": "Drawn here."}


@pytest.fixture
def everything() -> list[dict[str, Any]]:
    """Every kind of suite, a control, two datasets."""
    runs = six()
    runs += [run | {"suite": "auto", "digests": run["digests"] | {"evaluation": "auto"}} for run in six()]
    runs.append(record("none", "pixels_8", 0.4, 60))
    single = [row("none", 0.0, 400), row("margin", EPS, 100), row("fgsm", EPS, 200), row("worst", EPS, 90)]
    runs.append(record("triplet", "robust", 0.9, 90, "single", rows=single, alone=True, claims=False, gates=[]))
    proven = [row("none", 0.0, 360, norm="l2"), row("certified", 0.1, 90, norm="l2")]
    scores = {"sigma": 0.1, "alpha": 0.001}
    runs.append(record("triplet", "robust", 0.9, 1, "certified", rows=proven, scores=scores, survival={}, gates=[]))
    scores = {"CA+": 1.0, "ERS": 33.3, "ERS low": 30.0, "ERS high": 36.6}
    runs.append(record("triplet", "robust", 0.9, 1, "ranking", scores=scores, claims=False))
    return [*runs, record("triplet", "robust", 0.7, 10, dataset="others")]


def write(folder: Path, runs: list[dict[str, Any]], stale: list[Stale] | None = None, **more: Any) -> dict[str, str]:
    written = pages.write(folder, runs, stale or [], FIGURES, ORIGINS, **more)
    named = {file.relative_to(folder).with_suffix("").as_posix(): file.read_text() for file in written}
    return {name.removeprefix("pages/"): text for name, text in named.items()}


def test_the_overview_is_one_screen_with_best_models_claims_and_links(
    everything: list[dict[str, Any]], tmp_path: Path
) -> None:
    text = write(tmp_path, everything)["README"]
    assert len(text.splitlines()) < 45
    assert text.index("| [toys](pages") < text.index("| [others](pages"), "the most defences lead"
    assert text.index("queries): [others](pages") < text.index(", [toys](pages"), "in the order of origins"
    assert (
        "| dataset: best model | natural R@1 | R@1 at 0.01 | R@1 at 8/255 | standard | robust | start | best cont"
        in text
    )
    assert (
        "| [toys](pages/toys.md): robust (triplet) | 0.880 | – | **0.500** (0.451 to 0.549) | 0.050 | 0.500 | – | "
        "0.150 |"
    ) in text
    link = "pages/toys.md#the-best-model-against-the-others-query-by-query"
    told = "Models and controls beaten beyond chance at eps 8/255: **triplet, robust** beats 6 of 6 in R@1"
    assert f"\n{told}. [By name]({link}).\n" in text
    told = {"toys": "**holds in part** at eps 8/255", "others": "not tested here"}
    assert verdicts(text, "`robust` models beat `single_step` ones") == told
    assert "[toys](pages/toys.md) (16; `quick`, 400)" in text
    assert "](figures/" not in text
    board = text[text.index("| defence | loss |") : text.index("## Best models")]
    assert re.findall(r"^\| (\w+)", board, re.MULTILINE) == ["defence", "robust", "single", "pixels", "standard"]
    assert "[toys](pages/toys.md)" in text[: text.index("| defence | loss |")], "where most defences were measured"


def verdicts(text: str, claim: str) -> dict[str, str]:
    """Dataset -> verdict on a claim, from the table that has a column for each claim."""
    found: dict[str, str] = {}
    column = None
    for line in text[text.index("## Claims") :].splitlines():
        cells = line.strip("|").split("|") if line.startswith("|") else []
        cells = [cell.strip() for cell in cells]
        if cells[:1] == ["dataset"]:
            column = cells.index(claim) if claim in cells else None
        elif column is not None and cells and cells[0].startswith("["):
            found[cells[0][1 : cells[0].index("]")]] = cells[column]
    return found


def test_verdicts_at_two_radii_share_a_cell(tmp_path: Path) -> None:
    both = {"survival": {"0.010000": "1" * 400, "0.031373": "1" * 20 + "0" * 380}}
    rows = [row("none", 0.0, 360), row("worst", 0.01, 400), row("worst", EPS, 20)]
    runs = [record("triplet", name, 0.9, 20, rows=rows, **both) for name in ("standard", "robust")]
    text = write(tmp_path, runs)["README"]
    loses = verdicts(text, "`standard` models lose more than half of their natural R@1")
    assert loses == {"toys": "**holds** / **fails**"}
    assert verdicts(text, "`robust` models beat `standard` ones") == {"toys": "**not separated**"}
    assert "Verdicts at eps 8/255 and at eps 0.01, one where they agree." in text


def test_the_overview_shows_every_class_of_defence_at_its_best(tmp_path: Path) -> None:
    def trained(name: str, kind: str, survive: int) -> dict[str, Any]:
        return record("triplet", name, 0.9, survive) | {"settings": {"defense": {"name": name, "defense": kind}}}

    runs = [trained("standard", "standard", 4), trained("robust", "robust", 200), trained("robust_20", "robust", 280)]
    runs += [trained("robust_4", "robust", 240), trained("joint", "joint", 260), trained("best", "nearest", 300)]
    text = write(tmp_path, runs)["README"]
    board = text[text.index("| defence | loss |") : text.index("## Best models")]
    names = re.findall(r"^\| ([\w ]+) \| triplet", board, re.MULTILINE)
    assert names == ["best", "robust 20", "joint", "robust", "standard"], "robust 4 is on the page"


def test_the_overview_shows_the_scatter_of_the_first_dataset(tmp_path: Path) -> None:
    runs = [*six(), record("triplet", "robust", 0.7, 10, dataset="others")]
    for dataset, name in (("toys", "scatter"), ("others", "scatter"), ("others", "grid"), ("toys", "headline")):
        figure, _ = plt.subplots()
        style.save(figure, tmp_path / "figures" / dataset, name, f"The {name} of {dataset}.")
    text = write(tmp_path, runs)["README"]
    assert re.findall(r"!\[(.+)\]", text) == ["The scatter of toys."]
    assert text.index("| defence | loss |") < text.index("The scatter of toys.") < text.index("## Best models")


def test_the_committed_overview_is_one_screen() -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert len(text.split()) <= 1_560
    first, *_ = re.findall(r"^(?:\||!\[).*", text, re.MULTILINE)
    assert first.startswith("| defence |"), "one table leads"
    assert re.findall(r"!\[.*\]\((.+)\)", text)[0].endswith("/scatter.png"), "one scatter follows"


def test_every_link_and_figure_leads_to_a_file(everything: list[dict[str, Any]], tmp_path: Path) -> None:
    figure, _ = plt.subplots()
    style.save(figure, tmp_path / "figures" / "toys", "headline", "The headline.")
    write(tmp_path, everything)
    (tmp_path / "metrics.csv").touch()
    (tmp_path / "runs").mkdir()
    named = ("README.md", "pages/toys.md", "pages/others.md", "pages/trust/toys.md", "pages/trust/others.md")
    for file in (tmp_path / name for name in named):
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text())
        assert links
        for link in links:
            assert (file.parent / link).exists(), f"{file.name} links to {link}"


def test_a_dataset_page_shows_what_its_suites_measured(everything: list[dict[str, Any]], tmp_path: Path) -> None:
    written = write(tmp_path, everything)
    text, doubts = written["toys"], written["trust/toys"]
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# toys",
        "## Leaderboard",
        "## Models compared",
        "## The best model against the others, query by query",
        "## Claims",
        "## Controls",
        "## How far to trust these numbers",
        "## Other suites",
        "## How it was measured",
    ]
    assert "Drawn here. [All results](../README.md)" in text
    assert "At eps 8/255, R@1 is 0.500 (0.451 to 0.549) for `robust`, triplet loss; 0.050 for `standard`;" in text
    assert "| robust | triplet | 0.880 | – | **0.500** (0.451 to 0.549) | 10.0 (6.5 to 15.5) | 5.0 |" in text
    assert "| triplet | robust | 0.880 | 0.550 | **0.500** (0.451 to 0.549) | 10.0 (6.5 to 15.5) |" in text
    assert "| – | pixels 8, untrained | 0.400 | 0.550 | **0.150** (" in text
    assert "fill their sphere](trust/toys.md)" in text
    assert doubts.startswith("# How far to trust the numbers of toys\n\n[What was found](../toys.md)\n")
    for summary in (
        "Gates of suite <code>auto</code>",
        "More effort on the same queries, eps 8/255",
        "One attack at a time, eps 8/255",
        "Defences on the same queries, suite <code>quick</code>, eps 8/255",
    ):
        assert f"<details><summary>{summary}</summary>" in doubts
    for summary in (
        "Suite <code>auto</code>",
        "Ranking attacks and ERS",
        "Certified R@1 in the l2 ball",
        "Settings",
    ):
        assert f"<details><summary>{summary}</summary>" in text
    assert "<summary>Suite <code>quick</code>" not in text, "the main suite is open at the top"
    assert text.count("<details>") == text.count("</details>")
    assert "eps 0.01" not in text, "no table for a radius that was not attacked"
    assert "7 trained models" not in text
    assert "6 trained models, 1 control. Measured on: CPU." in text


def test_no_table_is_wider_than_eight_columns_however_many_models(tmp_path: Path) -> None:
    runs = [record("triplet", f"defence_{place}", 0.9, 10 * place, gates=[GATE] * 2) for place in range(20)]
    runs += [run | {"suite": "ranking", "scores": {"ERS": 1.0, "ERS low": 0.5, "ERS high": 1.5}} for run in runs]
    for text in write(tmp_path, runs).values():
        widths = {line.count(" | ") + 1 for line in text.splitlines() if line.startswith("|")}
        assert max(widths) <= 8


def test_stale_runs_are_listed_at_the_end_and_counted_nowhere_else(tmp_path: Path) -> None:
    old = [record("triplet", "old", 0.99, 399, suite) for suite in ("quick", "auto")]
    old.append({key: value for key, value in record("triplet", "older", 0.9, 1).items() if key != "machine"})
    gone = record("triplet", "robust", 0.9, 1, dataset="gone")
    stale = [Stale(run, "trained with other settings or code") for run in [*old, gone]]
    text = write(tmp_path, six(), stale)
    before, listed = text["toys"].split("## Stale runs")
    assert "0.99" not in before + text["README"]
    assert "0.998" not in before
    assert "<summary>3 runs</summary>" in listed
    assert "| triplet, old, seed 0 | `auto` | 0.990 | 0.998 at 8/255 | trained with other" in listed
    assert "| triplet, older, seed 0 | `quick` | 0.900 | 0.003 at 8/255 | trained with other" in listed
    assert "[toys](pages/toys.md) (6, 3 stale; `quick`, 400)" in text["README"]
    assert "[gone](pages/gone.md) (0, 1 stale)" in text["README"]
    assert "## Models compared" not in text["gone"]


def test_figures_of_an_earlier_run_stay_on_the_page(tmp_path: Path) -> None:
    for name, caption in (("search_1_robust", "A search."), ("headline", "The headline."), ("other", "")):
        figure, _ = plt.subplots()
        style.save(figure, tmp_path / "figures" / "toys", name, caption)
    found = pages.figures_of(tmp_path, "toys", ["figures/toys/headline.png"])
    assert found == [
        ("figures/toys/headline.png", "The headline."),
        ("figures/toys/search_1_robust.png", "A search. (Drawn in an earlier run.)"),
        ("figures/toys/other.png", "other (Drawn in an earlier run.)"),
    ]
    text = write(tmp_path, six(), drawn=["figures/toys/headline.png"])["toys"]
    assert text.index("![The headline.](../figures/toys/headline.png)") < text.index("## Models compared")
    assert text.index("## Figures") < text.index("![A search. (Drawn in an earlier run.)]")
    assert pages.figures_of(tmp_path, "none") == []
    assert "Drawn in an earlier run" not in write(tmp_path, six())["toys"], "nobody said which were drawn"
    nothing = write(tmp_path, six(), drawn=[])["toys"]
    assert nothing.count("(Drawn in an earlier run.)](") == 3, "none was"
    old = [Stale(made, "the code changed") for made in six()]
    assert "figures/toys" not in write(tmp_path, [], stale=old, drawn=[])["toys"], "no current record says the same"


def test_what_other_programs_wrote_is_linked_where_it_exists(tmp_path: Path) -> None:
    assert "benchmarks" not in write(tmp_path, six())["README"]
    (tmp_path / "benchmarks.md").touch()
    text = write(tmp_path, six())["README"]
    assert " **Further**: [time beside floors and peers](benchmarks.md)." in text
    assert "strength" not in text


def test_a_page_whose_dataset_has_no_record_any_more_goes(tmp_path: Path) -> None:
    write(tmp_path, [record("triplet", "robust", 0.9, 1, dataset="others"), *six()])
    assert (tmp_path / "pages" / "others.md").exists()
    write(tmp_path, six())
    left = {file.relative_to(tmp_path / "pages").as_posix() for file in (tmp_path / "pages").rglob("*.md")}
    assert left == {"toys.md", "trust/toys.md"}


def test_the_same_records_give_the_same_bytes_in_any_order(everything: list[dict[str, Any]], tmp_path: Path) -> None:
    first = write(tmp_path / "a", everything)
    again = write(tmp_path / "b", everything)
    assert first == again
    assert json.loads((tmp_path / "a" / "provenance.json").read_text())["runs"]


def test_results_without_any_record_are_a_page_too(tmp_path: Path) -> None:
    assert list(write(tmp_path, [])) == ["README"]


def test_claims_at_both_radii_stand_once_each() -> None:
    runs = six()
    for run in runs:
        run["rows"].insert(1, row("worst", 0.01, 300))
        run["survival"]["0.010000"] = run["survival"]["0.031373"]
    judged = [verdict.claim for verdict in pages.judged(runs, FIGURES)]
    assert len(judged) == len(set(judged)) == 13
    assert sum("0.95" in claim for claim in judged) == 1, "natural scores have no radius"
