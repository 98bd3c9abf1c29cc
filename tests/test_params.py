"""params.yaml: the committed file is valid, and whatever is wrong is one sentence that names it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dml.attacks import Linf
from dml.config import params
from dml.config.params import ParamsError, load
from dml.defenses import DEFENSES, Robust
from dml.evaluation.suites import Auto
from dml.losses import LOSSES, Triplet
from dml.losses.mining import distance_weighted
from dml.pipeline.paths import PARAMS


def test_the_committed_file_becomes_the_objects_that_run() -> None:
    recipe = load().recipe("glyphs")
    assert isinstance(recipe.losses["triplet"].cost, Triplet)
    assert recipe.losses["triplet"].mine is distance_weighted
    assert recipe.defenses["robust"] == Robust(eps=8 / 255, steps=3, target="positive")
    assert load().suites["quick"].eps[-1] == 8 / 255
    assert isinstance(load().suites["auto"], Auto)
    assert load().figures.paper_eps == 0.01


def test_every_loss_and_defence_has_a_recipe_in_glyphs() -> None:
    recipe = load().recipe("glyphs")
    assert set(recipe.losses) == set(LOSSES)
    assert set(recipe.defenses) == set(DEFENSES)


@pytest.mark.parametrize(("preset", "dataset"), [("paper", "sop"), ("field", "cub200"), ("photos", "flowers")])
def test_every_preset_makes_a_recipe(preset: str, dataset: str) -> None:
    """As `<<: *preset` would: what a recipe shares comes from the preset, its data stay its own."""
    raw = load().raw
    side = 128 if preset == "photos" else raw["recipes"][dataset]["data"]["size"]
    recipe = load(params.preset(preset, dataset) | {f"recipes.{dataset}.data.size": side}).recipe(dataset)
    assert recipe.model.backbone == raw["presets"][preset]["model"]["backbone"]
    assert set(recipe.losses) == set(LOSSES)
    assert set(recipe.defenses) == set(DEFENSES)


def test_changes_replace_values() -> None:
    changed = load({"recipes.glyphs.schedule.epochs": 2, "recipes.glyphs.defenses.robust.eps": "4/255"})
    assert changed.recipe("glyphs").schedules["robust"].epochs == 2
    assert changed.recipe("glyphs").defenses["robust"].eps == pytest.approx(4 / 255)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("run.loses", ["triplet"], r"run key 'loses' is unknown; did you mean 'losses'\?"),
        ("run.datasets", ["cub"], "run.datasets 'cub' is unknown"),
        ("run.losses", ["triplett"], "'triplett' is unknown; did you mean 'triplet'"),
        ("run.defenses", ["standard"], "standard training is always run"),
        ("run.attacked", ["standard", "robust", "other"], "'other' is unknown"),
        ("run.suites", ["slow"], "run.suites 'slow' is unknown; known: auto, certified, paper"),
        ("run.seeds", ["one"], r"run\.seeds\[0\] is 'one'"),
        ("recipes.glyphs.schedule.epoch", 3, "did you mean 'epochs'"),
        ("recipes.glyphs.schedule.epochs", "ten", r"recipes\.glyphs\.schedule\.epochs is 'ten'"),
        ("recipes.glyphs.schedule.epochs", 0, "epochs is 0; it should be at least 1"),
        ("recipes.glyphs.schedule.learning_rate", -1, "learning_rate is -1.0; it should be above 0"),
        ("recipes.glyphs.defenses.robust.schedule", {"epoch": 3}, r"robust\.schedule key 'epoch' is unknown; did you"),
        (
            "recipes.glyphs.defenses.robust.schedule",
            {"epochs": 0},
            r"robust\.schedule: epochs is 0; it should be at least",
        ),
        ("recipes.glyphs.defenses.robust.schedule", 3, r"robust\.schedule is 3; it should hold keys and values"),
        ("recipes.glyphs.defenses.robust.eps", -0.1, r"recipes\.glyphs\.defenses\.robust: eps is -0\.1"),
        ("recipes.glyphs.defenses.robust.target", "pos", "Input should be 'positive', 'negative' or 'anchor'"),
        ("recipes.glyphs.defenses.robust.strength", 1, "robust key 'strength' is unknown"),
        ("recipes.glyphs.losses.triplet.miner", "hard", "miner 'hard' is unknown; did you mean 'semi_hard'"),
        ("recipes.glyphs.losses.triplet", {"margin": 0.2}, "miner 'missing' is unknown"),
        ("recipes.glyphs.model.backbone", "resnet", "backbone 'resnet' is unknown; did you mean 'resnet"),
        ("recipes.glyphs.model", None, "it should hold the keys backbone, dimension"),
        ("recipes.glyphs.data.source", "zip", "source 'zip' is unknown"),
        ("recipes.glyphs.data.options", {"siz": 3}, "options key 'siz' is unknown; did you mean 'size'"),
        ("recipes.glyphs.data.crop", 40, "crop is 40; it should be at most size, 32"),
        ("recipes.glyphs.data.crop", 28, r"schedule\.crop is 0; it should be data\.crop, 28"),
        ("recipes.glyphs.model.weights", "imagenet", "conv4 starts from random"),
        ("recipes.flowers.model.weights", "some.pth", "lite0_colours starts from random or imagenet"),
        ("recipes.glyphs.data.size", 12, "conv4 halves pictures and needs 16 pixels"),
        ("recipes.glyphs.schedule.precision", "half", "Input should be 'float32' or 'bfloat16'"),
        ("recipes.glyphs.defenses.robust.step_size", 0, "step_size is 0.0; it should be above 0"),
        ("recipes.glyphs.data.train_fraction", 1.5, "it should lie between 0 and 1"),
        ("suites.quick.eps", ["-1/255"], r"suites\.quick: eps is -0\.0039"),
        ("suites.quick.eps", [8], r"suites\.quick: eps is 8.* at most 1: perhaps 8/255"),
        ("recipes.glyphs.defenses.robust.eps", 8, r"robust: eps is 8.* at most 1: perhaps 8/255"),
        ("recipes.glyphs.defenses.single_step.eps", 8, r"single_step: eps is 8"),
        ("recipes.glyphs.validation.eps", 8, r"validation: eps is 8"),
        ("suites.quick.kind", "automatic", "suites.quick.kind 'automatic' is unknown; did you mean 'auto'"),
        ("suites.quick", {"queries": 3}, "suites.quick lacks the key 'kind'"),
        ("run.surrogate_seed", 0, "run.surrogate_seed is 0, one of run.seeds; it should be another"),
        ("run.standard_seeds", [0], r"run.standard_seeds is \[0\]; it should be \[0, 100\]"),
        ("run.surrogate", "standard", "run.surrogate 'standard' is unknown; known: robust, single_step"),
        ("suites.quick.eps", [0.01], r"suites\.quick\.eps lacks 0\.0313725, the radius figures\.eps"),
        ("suites.quick.queries", 0, "queries is 0; it should be at least 1"),
        ("figures", {"eps": 0.1}, "figures lacks the key 'paper_eps'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(key: str, value: Any, words: str) -> None:
    with pytest.raises(ParamsError, match=words) as caught:
        load({key: value})
    assert "\n" not in str(caught.value)


def test_a_defence_may_set_parts_of_its_schedule() -> None:
    own = {"epochs": 2, "freeze_batchnorm": True}
    recipe, plain = load({"recipes.glyphs.defenses.robust.schedule": own}).recipe("glyphs"), load().recipe("glyphs")
    assert recipe.schedules["robust"] == replace(plain.schedules["robust"], **own)
    assert recipe.schedules["standard"] == plain.schedules["standard"]
    assert recipe.defenses == plain.defenses


def test_a_change_of_a_key_that_is_not_there() -> None:
    with pytest.raises(ParamsError, match=r"no key 'recipes\.cub\.data\.size'"):
        load({"recipes.cub.data.size": 3})


def test_an_unknown_dataset_is_named() -> None:
    with pytest.raises(ValueError, match="dataset 'glyph' is unknown; did you mean 'glyphs'"):
        load().recipe("glyph")


def test_a_file_that_is_no_yaml_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="cannot be read"):
        load(file=tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("run: [a\nb")
    with pytest.raises(ParamsError, match="is no valid YAML"):
        load(file=tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("run\n")
    with pytest.raises(ParamsError, match="it should hold the keys"):
        load(file=tmp_path / "params.yaml")


def test_a_new_loss_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its settings are checked by its own constructor; nothing else has to know of it."""

    class Soft:
        def __init__(self, sharpness: float = 1.0) -> None:
            self.sharpness = sharpness

    monkeypatch.setitem(params.LOSSES, "soft", Soft)
    raw = yaml.safe_load(PARAMS.read_text())
    raw["recipes"]["glyphs"]["losses"]["soft"] = {"miner": "random", "sharpness": 3}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert load(file=file).recipe("glyphs").losses["soft"].cost.sharpness == 3.0
    with pytest.raises(ParamsError, match="soft key 'sharp' is unknown; did you mean 'sharpness'"):
        load({"recipes.glyphs.losses.soft": {"miner": "random", "sharp": 3}}, file)


def test_a_new_defence_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider:
        def __init__(self, eps: float) -> None:
            self.ball = Linf(eps)

    monkeypatch.setitem(params.DEFENSES, "wider", Wider)
    changed = load(
        {
            "recipes.glyphs.defenses.wider": {"eps": "8/255"},
            "run.defenses": ["robust", "wider"],
            "run.attacked": ["wider"],
        }
    )
    assert changed.recipe("glyphs").defenses["wider"].ball == Linf(8 / 255)


def test_a_new_suite_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Brief:
        def __init__(self, queries: int, eps: tuple[float, ...] = (0.1,)) -> None:
            self.queries, self.eps = queries, eps

    monkeypatch.setitem(params.SUITES, "brief", Brief)
    changed = load({"suites.mine": {"kind": "brief", "queries": 3, "eps": ["8/255"]}, "run.suites": ["mine"]})
    assert changed.suites["mine"].eps == (8 / 255,)
    with pytest.raises(ParamsError, match="mine key 'query' is unknown; did you mean 'queries'"):
        load({"suites.mine": {"kind": "brief", "query": 3}})


def test_the_benchmarks_have_the_published_recipe() -> None:
    for dataset in ("cub200", "cars196", "sop"):
        recipe = load().recipe(dataset)
        schedule = recipe.schedules["robust"]
        assert (recipe.model.backbone, recipe.model.dimension, schedule.freeze_batchnorm) == ("resnet50", 128, True)
        assert recipe.defenses["robust"] == Robust(eps=0.01, steps=5)
        assert schedule.classes * schedule.images_per_class == 112
        assert (recipe.data.size, recipe.data.crop, schedule.crop) == (256, 224, 224)


def test_a_preset_is_chosen_by_one_word(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS.read_text().replace("<<: *paper", "<<: *field"))
    recipe = load(file=file).recipe("cub200")
    assert (recipe.model.backbone, recipe.model.dimension) == ("resnet18", 512)
    assert recipe.defenses["robust"] == Robust(eps=8 / 255, steps=8, step_size=1 / 255)
