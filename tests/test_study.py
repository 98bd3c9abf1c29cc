"""The study: which jobs are left, in which order, and what a killed one skips."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dml.common.files import ROOT
from dml.config.load import load
from dml.config.run import Params
from dml.defenses import DEFENSES
from dml.pipeline import paths, repro, study
from dml.pipeline.children import Children
from dml.pipeline.digest import data_settings, expected, training_digest
from dml.pipeline.shares import Shares, cores
from dml.pipeline.stages.prepare import check_queries
from dml.reporting import records

SETTINGS = {
    "study": {
        "main": {
            "datasets": ["glyphs"],
            "losses": {"triplet": ["standard", "robust"], "contrastive": ["single_step"]},
            "suite": "quick",
            "seeds": [0, 1],
        },
        "grid": {"datasets": ["glyphs"], "losses": {"triplet": ["robust", "joint"]}, "suite": "radii", "seeds": [0]},
    },
    "run.controls": ["pixels_8"],
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(repro, "Repo", lambda root: SimpleNamespace(tmp_dir=str(tmp_path)))  # for a separate lock
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0)
    keep(tmp_path / "data" / "glyphs" / "glyphs.json", {})
    return load(SETTINGS)


def planned(params: Params, block: str = "main") -> dict[str, set[str]]:
    """Titles of jobs, with their chapter's number alone, each with those that it needs."""

    def short(title: str) -> str:
        chapter, name = title.split()
        return f"{chapter[:2]} {name}"

    found = study.plan(params, [params.block(block)])
    return {short(title): {short(other) for other in needs} for title, (_, needs) in found.items()}


def keep(place: Path, value: dict) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(value))


def test_all_is_to_be_done_at_first(params: Params) -> None:
    found = planned(params)
    titles = list(found)
    assert titles[:2] == ["01 glyphs", "02 glyphs-triplet-standard-0"]
    assert set(titles[1:7]) == {
        "02 glyphs-triplet-standard-0",
        "03 glyphs-triplet-robust-0",
        "02 glyphs-contrastive-standard-100",  # a surrogate of the gates, as are the next two
        "02 glyphs-contrastive-standard-0",
        "03 glyphs-contrastive-robust-0",
        "03 glyphs-contrastive-single_step-0",
    }
    assert titles[7:11] == [
        "04 glyphs-triplet-standard-0-quick",
        "04 glyphs-triplet-robust-0-quick",
        "04 glyphs-contrastive-single_step-0-quick",
        "04 glyphs-none-pixels_8-0-quick",
    ]
    assert len(titles) == 1 + 6 + 4 + 5 + 3, "the surrogate of seed 100 serves both, a control is fitted once"
    assert titles[-1] == "04 glyphs-contrastive-single_step-1-quick"


def test_a_job_needs_images_its_model_and_surrogates_and_nothing_else(params: Params) -> None:
    found = planned(params)
    assert found["01 glyphs"] == set()
    assert found["03 glyphs-triplet-robust-1"] == {"01 glyphs"}
    assert found["04 glyphs-none-pixels_8-0-quick"] == {"01 glyphs"}
    assert found["04 glyphs-triplet-robust-1-quick"] == {
        "01 glyphs",
        "03 glyphs-triplet-robust-1",
        "02 glyphs-triplet-standard-1",
        "02 glyphs-contrastive-standard-100",
    }


def test_a_block_can_have_its_own_surrogate(params: Params) -> None:
    """A loss on whole queries refuses the target of `robust`, so that another defence takes its place in the gates."""
    block = replace(params.block("grid"), suite="quick", surrogate="joint")
    params = replace(params, study={"grid": block})
    _, needs = study.plan(params, [block])["04_attack_evaluation glyphs-triplet-robust-0-quick"]
    assert {title.split()[1] for title in needs} == {
        "glyphs",
        "glyphs-triplet-robust-0",
        "glyphs-triplet-standard-0",
        "glyphs-triplet-joint-0",
        "glyphs-contrastive-standard-100",
    }
    assert params.surrogate("glyphs", "triplet") == "joint"
    assert params.surrogate("glyphs", "contrastive") == params.surrogate("glyphs_long", "triplet") == "robust"
    two = replace(params, study={"grid": block, "other": replace(block, surrogate="est")})
    with pytest.raises(ValueError, match="two surrogates for glyphs with triplet: est and joint"):
        two.surrogate("glyphs", "triplet")


def test_blocks_that_ask_for_the_same_share_it(params: Params) -> None:
    both = study.plan(params, [params.block("main"), params.block("grid")])
    alone = [study.plan(params, [params.block(name)]) for name in ("main", "grid")]
    assert both.keys() == alone[0].keys() | alone[1].keys()
    assert len(both) < sum(map(len, alone))


def test_what_is_current_is_skipped(params: Params, tmp_path: Path) -> None:
    recipe, key = params.recipe("glyphs"), ("glyphs", "triplet", "robust", "quick")
    keep(tmp_path / "artifacts/data/glyphs/settings.json", {"settings": data_settings(recipe.data)})
    digest = training_digest(recipe, "triplet", "robust")
    keep(tmp_path / "artifacts/models/glyphs/triplet-robust-0/settings.json", {"digest": digest})
    keep(tmp_path / "artifacts/models/glyphs/triplet-standard-0/settings.json", {"digest": "of an older recipe"})
    keep(tmp_path / "results/runs/glyphs/triplet-robust-0/quick.json", {"digests": expected(params, [key])[key]})
    keep(tmp_path / "results/runs/glyphs/triplet-standard-0/quick.json", {"digests": {"training": "x"}})
    damaged = tmp_path / "results/runs/glyphs/triplet-single_step-0/quick.json"
    keep(damaged, {})
    damaged.write_text("{")
    found = planned(params)
    assert "01 glyphs" not in found
    assert found["04 glyphs-triplet-standard-0-quick"] == {
        "02 glyphs-triplet-standard-0",
        "02 glyphs-contrastive-standard-100",
    }, "the robust surrogate is there"
    older = data_settings(recipe.data) | {"code": "of an older version"}
    keep(tmp_path / "artifacts/data/glyphs/settings.json", {"settings": older})
    assert "01 glyphs" in planned(params), "prepared by other code"
    assert "03 glyphs-triplet-robust-0" not in found
    assert "02 glyphs-triplet-standard-0" in found
    assert "04 glyphs-triplet-robust-0-quick" not in found


def test_raw_images_that_changed_are_prepared_again(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path / "artifacts/data/glyphs/settings.json", {"settings": data_settings(params.recipe("glyphs").data)})
    assert "01 glyphs" not in planned(params)
    monkeypatch.setattr(study, "changed", lambda data, prepared: prepared == tmp_path / "artifacts/data/glyphs")
    found = planned(params)
    assert "01 glyphs" in found["02 glyphs-triplet-standard-0"]


def test_only_what_a_missing_record_needs_is_made(params: Params, tmp_path: Path) -> None:
    """A fresh clone has all records and no models: one more defence trains itself and what its gates need."""
    block = params.block("main")
    for model in study.models(params, block):
        key = (*model[:3], "quick")
        file = tmp_path / "results/runs" / model.dataset / "-".join(map(str, model[1:])) / "quick.json"
        keep(file, {"digests": expected(params, [key])[key]})
    assert planned(params) == {}
    (tmp_path / "results/runs/glyphs/triplet-robust-1/quick.json").unlink()
    assert list(planned(params)) == [
        "01 glyphs",
        "03 glyphs-triplet-robust-1",
        "02 glyphs-triplet-standard-1",
        "02 glyphs-contrastive-standard-100",
        "04 glyphs-triplet-robust-1-quick",
    ]


def test_a_dataset_without_images_is_left_out(params: Params, tmp_path: Path) -> None:
    """A clone has the records of photographs that are no part of it; those that are missing cannot be made there."""
    photos = replace(params.block("grid"), datasets=["flowers", "glyphs"])
    assert study.without_images(params, [photos, params.block("main")]) == [
        "flowers: data/flowers is not there, so that 3 records are left out; data/README.md says where its images come "
        "from"
    ]
    assert not any("flowers" in title for title in study.plan(params, [photos]))
    (tmp_path / "data" / "flowers").mkdir()
    assert study.without_images(params, [photos]) == []
    assert "01_data flowers" in study.plan(params, [photos])
    (tmp_path / "data" / "flowers").rmdir()
    settings = data_settings(params.recipe("flowers").data)
    keep(tmp_path / "artifacts/data/flowers/settings.json", {"settings": settings})
    assert study.without_images(params, [photos]) == [], "they are prepared"
    cars = replace(photos, datasets=["cars196_half"])
    assert len(study.without_images(params, [cars])) == 1
    data = replace(params.recipes["cars196_half"].data, source="torchvision")
    recipes = params.recipes | {"cars196_half": replace(params.recipes["cars196_half"], data=data)}
    assert study.without_images(replace(params, recipes=recipes), [cars]) == [], "torchvision downloads them"


def test_a_study_lists_every_record_of_results() -> None:
    """Whoever has the images can make all of them again. Controls may have more seeds than the first."""
    params, wanted = load(), set()
    for block in params.study.values():
        wanted |= {(*model, block.suite) for model in study.models(params, block)}
    run = params.run
    wanted |= set(itertools.product(run.datasets, run.losses, run.attacked, run.seeds, run.suites))
    wanted |= set(itertools.product(run.datasets, ["none"], run.controls, run.seeds, run.suites))
    found = {tuple(record[key] for key in records.KEYS) for record in records.read(ROOT / paths.RECORDS)}
    assert {record for record in found - wanted if record[1] != "none"} == set()


@pytest.mark.parametrize("dataset", ["glyphs_long", "flowers", "gtsrb"])
def test_a_recipe_has_every_defence_of_the_study(dataset: str) -> None:
    recipe = load().recipe(dataset)
    kinds = {settings.get("defense", name) for name, settings in recipe.defenses.items()}
    assert kinds >= {name for name in load().study["main"].losses["triplet"] if name in DEFENSES} | {"nearest"}


def test_a_failed_job_is_told_and_the_others_go_on(
    params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: study.Job, shares: Shares, children: Children) -> tuple[int, float, Path]:
        return int("robust" in job.name), 61.0, tmp_path / "artifacts" / "logs" / f"{job.name}.log"

    monkeypatch.setattr(study.Job, "run", run)
    assert study.run(params, [params.block("main")], 2, Shares(2)) == 10, "four trainings and what needs them"
    printed = capsys.readouterr().out
    assert (
        "03_robust_training glyphs-triplet-robust-0: FAILED, see artifacts/logs/glyphs-triplet-robust-0.log" in printed
    )
    assert "04_attack_evaluation glyphs-none-pixels_8-0-quick: 61 s, " in printed
    assert re.search(r"^1/\d+ .*, \d+ min left$", printed, re.MULTILINE)
    left_out = printed.splitlines()[-1]
    assert left_out.startswith(
        "not done, as they need what failed: 04_attack_evaluation glyphs-contrastive-single_step-0"
    )
    assert left_out.count("04_attack_evaluation") == 6, "a robust model is a surrogate of all trained ones"


def test_blocks_run_in_order_and_share_what_is_trained(
    params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    def run(job: study.Job, shares: Shares, children: Children) -> tuple[int, float, Path]:
        done.append(f"{job.notebook[:2]} {job.name}")
        if job.notebook[:2] in ("02", "03"):
            loss, defense, seed = job.name.split("-")[1:]
            digest = training_digest(params.recipe("glyphs"), loss, defense)
            keep(
                tmp_path / "artifacts" / "models" / "glyphs" / f"{loss}-{defense}-{seed}" / "settings.json",
                {"digest": digest},
            )
        return 0, 1.0, tmp_path

    monkeypatch.setattr(study.Job, "run", run)
    monkeypatch.setattr(study, "load", lambda: params)
    assert study.main(["--jobs", "1"]) == 0
    assert [name for name in done if name[:2] == "03" and "robust-0" in name] == [
        "03 glyphs-triplet-robust-0",
        "03 glyphs-contrastive-robust-0",
    ], "once each"
    assert done.index("04 glyphs-triplet-robust-0-quick") < done.index("03 glyphs-triplet-joint-0")
    assert {name for name in done if name.endswith("radii")} == {
        "04 glyphs-triplet-robust-0-radii",
        "04 glyphs-triplet-joint-0-radii",
        "04 glyphs-none-pixels_8-0-radii",
    }
    done.clear()
    assert study.main(["grid", "--jobs", "1"]) == 0
    assert {name[-5:] for name in done if name[:2] == "04"} == {"radii"}


def test_an_unknown_block_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["gird"]) == 1
    assert capsys.readouterr().err == "ValueError: study block 'gird' is unknown; did you mean 'grid'?\n"


def test_a_job_runs_its_notebook_with_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    class Recorded(Children):
        def start(self, words: list[str], **others: object) -> subprocess.Popen:
            calls.append((words, others))
            return super().start([sys.executable, "-c", "raise SystemExit(3)"])

    monkeypatch.setattr(study, "ROOT", tmp_path)
    status, _, log = study.Job("01_data", "glyphs", {"dataset": "glyphs"}).run(Shares(cores()), Recorded())
    ((words, others),) = calls
    assert status == 3
    assert " ".join(words[1:]) == (
        "-m dml notebook run notebooks/01_data.ipynb artifacts/notebooks/01_data/glyphs.ipynb "
        "-p workspace . -p dataset glyphs"
    )
    assert others["env"]["OMP_NUM_THREADS"] == "1"
    assert log.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study.main.seeds": []}, "study.main.seeds is empty; list at least one"),
        ({"study.grid.suite": "quikc"}, "study.grid.suite 'quikc' is unknown; did you mean 'quick'"),
        ({"study.main.datasets": ["glyph"]}, "study.main.datasets 'glyph' is unknown"),
        (
            {"study.main.losses": {"triplet": ["robus"]}},
            r"study.main.losses.triplet \(of recipes.glyphs_long\) 'robus' is unknown",
        ),
        ({"study": ["main"]}, r"study is \['main'\]; it must hold keys and values"),
        ({"study.main.sweets": ["quick"]}, "study.main key 'sweets' is unknown"),
    ],
)
def test_a_wrong_study_is_one_sentence(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(change)


def test_a_study_waits_for_nobody_who_makes_the_same_files(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "load", lambda: params)
    monkeypatch.setattr(study, "run", lambda *given: 0)
    with study.pipeline_lock():
        assert study.main(["--jobs", "1"]) == 1
    assert capsys.readouterr().err.startswith("another process runs this pipeline; wait")
    assert study.main(["--jobs", "1"]) == 0


def test_a_study_that_wants_more_queries_than_there_are_is_refused_before_training() -> None:
    params = load({"suites.study.queries": 501})
    check_queries(params, "glyphs_long", 501)
    check_queries(params, "cub200", 500)
    with pytest.raises(ValueError, match=r"suites\.study\.queries is 501; glyphs_long has 500 test images"):
        check_queries(params, "glyphs_long", 500)
