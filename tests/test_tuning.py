"""Settings are compared on held-out training classes alone."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dml.common.files import ROOT, write_json
from dml.config.load import load
from dml.data import base
from dml.data.base import Split
from dml.data.prepare import prepare
from dml.data.sources.folder import read_folder
from dml.evaluation.suites.attacks import AttackSuite
from dml.models.embedder import build
from dml.pipeline import paths, tuning
from dml.pipeline.digest import data_settings
from dml.reporting.trials import trials_page
from dml.retrieval.index import Search

TINY = {
    "schedule.epochs": 2,
    "schedule.batches": 2,
    "schedule.classes": 2,
    "schedule.images_per_class": 2,
    "validation.queries": 4,
    "validation.steps": 2,
}


def row(defense: str, settings: str = "{}", seed: int = 0, **scores: float) -> dict:
    found = {"R@1": 0.9, "MAP@R": 0.5, "R@1 at 0.01": 0.4, "R@1 at 8/255": 0.2} | scores
    key = {"dataset": "d", "loss": "l", "defense": defense, "settings": settings, "seed": seed}
    made = {**key, "epoch_kept": 1, **found}
    return made | {"score": tuning.score(made, "standard")}


@pytest.fixture
def workspace(tmp_path: Path, picture_folder: Callable[..., Path]) -> Path:
    """Eight classes of pictures, prepared as those of glyphs."""
    source, target = read_folder(picture_folder(classes=8, images=6)), tmp_path / paths.data_dir("glyphs")
    prepare(source, target, name="glyphs", size=16, train_fraction=0.75, validation_fraction=0.34)
    write_json(target / "settings.json", {"settings": data_settings(load().recipe("glyphs").data)})
    return tmp_path


def test_scores_by_hand() -> None:
    assert row("standard")["score"] == 0.5
    assert row("robust")["score"] == pytest.approx((0.9 + 0.4 + 0.2) / 3)


def test_a_row_replaces_that_of_the_same_training_only(tmp_path: Path) -> None:
    file = tmp_path / "results" / "tuning.csv"
    for made in (row("robust"), row("robust", seed=1), row("robust", "{a: 1}"), row("standard")):
        tuning.add(made, file)
    tuning.add(row("robust", **{"R@1": 0.6}), file)
    table = pd.read_csv(file)
    assert len(table) == 4
    robust = table[table["defense"] == "robust"]
    assert robust["score"].tolist() == pytest.approx([0.5, 0.5, 0.4], abs=1e-4), "best first"
    assert robust.iloc[-1]["settings"] == "{}"
    assert [path.name for path in sorted(file.parent.iterdir())] == ["tuning.csv", "tuning.md"]


def test_a_row_without_a_count_leaves_those_of_the_others_whole(tmp_path: Path) -> None:
    file = tmp_path / "tuning.csv"
    row = {"dataset": "toys", "loss": "triplet", "defense": "robust", "settings": "{}", "seed": 0}
    file.write_text(pd.DataFrame([row | {"embedded": None, "epoch_kept": 6, "score": 0.5}]).to_csv(index=False))
    tuning.add(row | {"seed": 1, "embedded": 240_000, "epoch_kept": 3, "score": 0.4}, file)
    lines = file.read_text().splitlines()
    assert lines[1:] == ["toys,triplet,robust,{},0,,6,0.5000", "toys,triplet,robust,{},1,240000,3,0.4000"]


def test_the_page_shows_means_costs_and_the_best_first() -> None:
    short = "{defenses.robust.steps: 1, schedule.averaging: 0.98}"
    made = [
        row("robust", embedded=96_000),
        row("robust", seed=1, embedded=96_000) | {"score": 0.7},
        row("robust", short, embedded=48_000, **{"R@1": 1.0}),
        row("standard") | {"dataset": "elsewhere"},
    ]
    page = trials_page(pd.DataFrame(made), {"d": 24_000, "elsewhere": None}, load().figures)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[2] == "| as in the recipe | 2 | 4.0 | 0.900 | 0.400 | 0.200 | **0.600** (0.500 to 0.700) |"
    assert lines[3].startswith(
        "| `steps: 1`<br>`schedule.averaging: 0.98` | 1 | 2.0 | 1.000 | 0.400 | 0.200 | **0.533** |"
    )
    assert lines[-1].startswith("| as in the recipe | 1 | – |")
    assert page.index("## d: robust, l") < page.index("## elsewhere: standard, l")


def test_the_page_in_results_is_that_of_its_table() -> None:
    file = ROOT / tuning.TABLE
    assert file.with_suffix(".md").read_text() == tuning.page(file)


def test_standard_training_embeds_each_image_of_each_batch_once() -> None:
    params = load()
    assert tuning.standard_images(params.recipe("glyphs")) == 6 * 40 * 25 * 4
    assert tuning.standard_images(params.recipe("cub200")) is None


def test_settings_are_one_text_in_any_order() -> None:
    assert tuning.as_text({"b.c": 0.5, "a": [1, 2]}) == tuning.as_text({"a": [1, 2], "b.c": 0.5})
    assert yaml.safe_load(tuning.as_text(TINY)) == TINY


def test_held_out_scores_are_those_of_the_search(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0).eval()
    attacks = {"margin": {"steps": 5}, "targeted": {"classes": 1, "steps": 10}}
    suite = AttackSuite(queries=1, eps=(0.0, 0.5), attacks=attacks)
    found = tuning.held_out_scores(model, toy_split, suite)
    natural = Search.over(model, toy_split).natural()
    assert found["R@1"] == pytest.approx(float(natural.r1.float().mean()))
    assert found["MAP@R"] == pytest.approx(float(natural.map_r.mean()))
    assert found["R@1 at 0/255"] == found["R@1"]
    assert found["R@1 at 0.5"] < found["R@1"]


@pytest.mark.parametrize("defense", ["standard", "robust"])
def test_the_test_classes_are_never_looked_at(workspace: Path, defense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = base.load
    monkeypatch.setattr(base, "load", lambda *place, **share: replace(whole(*place, **share), test=None))
    made = tuning.train_and_score("glyphs", "triplet", defense, TINY, seed=0, workspace=str(workspace))
    assert yaml.safe_load(made["settings"]) == TINY
    assert made["epoch_kept"] in (1, 2)
    assert made["embedded"] == {"standard": 16, "robust": 64}[defense]  # 4 batches of 4 images, 2 steps of PGD
    assert 0 <= made["R@1 at 8/255"] <= made["R@1"] <= 1
    again = tuning.train_and_score("glyphs", "triplet", defense, TINY, seed=0, workspace=str(workspace))
    assert made == again


def test_more_classes_can_be_held_out(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(
        tuning, "held_out_scores", lambda model, split, suite: seen.update(labels=split.labels) or row("standard")
    )
    settings = TINY | {"data.validation_fraction": 0.67}
    tuning.train_and_score("glyphs", "triplet", "standard", settings, seed=0, workspace=str(workspace))
    assert sorted(set(seen["labels"])) == [2, 3, 4, 5], "of the six training classes"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["glyphs", "triplet", "robust", "{data.size: 64}"],
            "other than data.validation_fraction cannot",
        ),
        (["glyphs", "triplet", "robust", "{schedule.epochs: -1}"], "epochs is -1"),
        (["glyphs", "triplet", "robust", "{data.validation_fraction: 0}"], "glyphs holds no training class out; add"),
        (["glyphs", "triplet", "robust", "epochs"], "'epochs' holds no settings"),
        (["glyphs", "triplet", "robust", "{epochs: [}"], "holds no settings"),
        (["glyphs", "triplet", "robust", "{}", "epochs"], "'epochs' holds no settings"),
        (["glyphs", "triplet", "rubust", "{}"], "rubust"),
        (["birds", "triplet", "robust", "{}"], "birds"),
    ],
)
def test_what_cannot_be_tried_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = tmp_path / "tuning.csv"
    assert tuning.main([*arguments, "--table", str(table)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not table.exists()


def test_rows_of_two_processes_are_all_kept(tmp_path: Path) -> None:
    """Each reads the table, adds its line and writes it whole; a lock lets one at a time."""
    code = (
        "import sys; from pathlib import Path; from dml.pipeline.tuning import add\n"
        "for seed in range(4):\n"
        "    add({'dataset': 'x', 'loss': 'y', 'defense': 'z', 'settings': sys.argv[2], 'seed': seed, 'score': 0.5}, "
        "Path(sys.argv[1]))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "tuning.csv")]
    running = [subprocess.Popen([*words, name], cwd=ROOT) for name in ("{a: 1}", "{b: 1}")]
    assert [process.wait() for process in running] == [0, 0]
    assert len(pd.read_csv(tmp_path / "tuning.csv")) == 8


def test_keys_of_settings_are_names() -> None:
    with pytest.raises(ValueError, match="holds no settings"):
        tuning.as_settings("{1: 2}")
