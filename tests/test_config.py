"""params.yaml: the committed file is valid, and whatever is wrong is one sentence that names it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dml.config.build import evaluation, training
from dml.config.load import PARAMS, load, preset
from dml.config.schema import ParamsError
from dml.data.base import split_classes
from dml.defenses import DEFENSES
from dml.defenses.robust import Robust
from dml.losses import LOSSES
from dml.losses.triplet import Triplet
from dml.pipeline.digest import training_code
from dml.pipeline.stage_digests import dependence_code


def robust(dataset: str, file: Path = PARAMS) -> Robust:
    """The robust defence of a recipe."""
    return training.defense("robust", load(file=file).recipe(dataset).defenses["robust"])


def test_the_committed_file_becomes_the_objects_that_run() -> None:
    params = load()
    recipe = params.recipe("glyphs")
    loss = training.loss("triplet", recipe.losses["triplet"], classes=80, dimension=128)
    assert isinstance(loss, Triplet)
    assert (robust("glyphs").eps, robust("glyphs").steps, robust("glyphs").target) == (8 / 255, 2, "positive")
    suites = {name: evaluation.suite(settings) for name, settings in params.suites.items()}
    assert suites["quick"].eps == (0.01, 8 / 255)
    assert {"quick", "auto", "thorough", "study", "wide"} <= {name for name, suite in suites.items() if suite.claims}
    assert not any(
        suites[name].claims for name in ("radii", "one_by_one", "paper", "ranking", "poisoning", "certified")
    )
    assert suites["wide"].queries == 1000
    assert params.figures.paper_eps == 0.01


def test_every_defence_has_a_recipe() -> None:
    recipes = load().recipes.values()
    named = {settings.get("defense", name) for recipe in recipes for name, settings in recipe.defenses.items()}
    assert named == set(DEFENSES)


@pytest.mark.parametrize(("name", "dataset"), [("paper", "sop"), ("field", "cub200"), ("photos", "flowers")])
def test_every_preset_makes_a_recipe(name: str, dataset: str) -> None:
    """As `<<: *preset` would: what a recipe shares comes from the preset, its data stay its own."""
    params = load()
    side = 128 if name == "photos" else params.recipe(dataset).data.size
    recipe = load(preset(name, dataset) | {f"recipes.{dataset}.data.size": side}).recipe(dataset)
    assert recipe.model.backbone == params.presets[name]["model"]["backbone"]
    assert set(recipe.defenses) == set(params.presets[name]["defenses"])


CLASSES = {"flowers": 89, "grocery": 81, "cars196_half": 196, "gtsrb": 43}  # as the origins of their recipes tell


@pytest.mark.parametrize("name", CLASSES)
def test_photographs_have_a_recipe_for_a_gpu(name: str) -> None:
    small, wanted = load().recipe(name), {128: ("resnet18", 128, 0), 224: ("resnet50", 256, 224)}
    for side, (backbone, size, crop) in wanted.items():
        recipe = load().recipe(f"{name}_{side}")
        assert (recipe.model.backbone, recipe.data.size, recipe.data.crop) == (backbone, size, crop)
        schedule = recipe.schedules["robust"]
        assert schedule.classes * schedule.images_per_class == 112
        assert schedule.flip == small.schedules["robust"].flip, "arrows have a direction"
        assert (recipe.data.path, recipe.data.train_fraction) == (small.data.path, small.data.train_fraction)
        kinds = {settings.get("defense", key) for key, settings in recipe.defenses.items()}
        assert kinds >= {settings.get("defense", key) for key, settings in small.defenses.items()}
        total = CLASSES[name]
        seen = round(total * recipe.data.train_fraction)
        first, last = split_classes(total, seen, recipe.data.validation_fraction)["train"]
        assert last - first >= schedule.classes


def test_the_word_robust_stands_for_the_committed_weights() -> None:
    changed = load({"recipes.grocery.model.weights": "robust"}).recipe("grocery").model
    assert changed.weights == "pretrained/grids.safetensors"
    assert (PARAMS.parent / changed.weights).exists()
    with pytest.raises(ParamsError, match=r"recipes\.glyphs\.model\.weights: weights is 'pretrained/.*from random"):
        load({"recipes.glyphs.model.weights": "robust"})
    with pytest.raises(ParamsError, match=r"recipes\.glyphs\.model\.weights"):
        load({"recipes.glyphs.model.weights": ["robust"]})


def test_a_change_leaves_what_shares_an_alias_with_it() -> None:
    before, changed = load(), load({"recipes.glyphs.defenses.trades.beta": 2.0})
    assert changed.recipe("glyphs").defenses["trades"]["beta"] == 2
    others = {name: kept for name, kept in before.recipe("glyphs").defenses.items() if name != "trades"}
    assert {name: changed.recipe("glyphs").defenses[name] for name in others} == others


def test_a_radius_stands_once_and_a_message_is_one_line() -> None:
    with pytest.raises(ParamsError, match=r"suites\.quick\.eps lists 8/255 more than once"):
        load({"suites.quick.eps": ["8/255", 8 / 255]})
    with pytest.raises(ParamsError, match="known: ") as caught:
        load({"run.defenses": ["one\n", "single_step"]})
    assert "\n" not in str(caught.value)


def test_changes_replace_values() -> None:
    changed = load({"recipes.glyphs.schedule.epochs": 2, "recipes.glyphs.defenses.robust.eps": "4/255"})
    assert changed.recipe("glyphs").schedules["robust"].epochs == 2
    assert changed.recipe("glyphs").defenses["robust"]["eps"] == pytest.approx(4 / 255)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("run.loses", ["triplet"], r"run key 'loses' is unknown; did you mean 'losses'\?"),
        ("run.datasets", ["cub"], "run.datasets 'cub' is unknown"),
        ("recipes", {}, "recipes is empty; it must hold at least one"),
        ("suites", {}, "suites is empty; it must hold at least one"),
        ("run.losses", ["triplett"], "'triplett' is unknown; did you mean 'triplet'"),
        ("run.defenses", ["standard"], "standard training always runs"),
        ("run.attacked", ["standard", "robust", "other"], "'other' is unknown"),
        ("run.suites", ["slow"], "run.suites 'slow' is unknown; known: .*auto"),
        ("run.seeds", ["one"], r"run\.seeds\[0\] is 'one'"),
        (
            "recipes.glyphs_long.model.dimension",
            10**14,
            r"glyphs_long\.model\.dimension is 1000+; it must be at most 65536",
        ),
        ("recipes.glyphs.schedule.epoch", 3, "did you mean 'epochs'"),
        ("recipes.glyphs.schedule.epochs", "ten", r"recipes\.glyphs\.schedule\.epochs is 'ten'"),
        ("recipes.glyphs.schedule.epochs", 0, "epochs is 0; it must be at least 1"),
        ("recipes.glyphs.schedule.learning_rate", -1, "learning_rate is -1.0; it must be above 0"),
        ("recipes.glyphs.defenses.robust.target", "postive", r"defenses\.robust\.target is 'postive': Input should be"),
        ("recipes.glyphs.defenses.robust.target", ["positive", "positive"], "target lists 'positive' more than once"),
        ("recipes.glyphs.defenses.other", {"defense": "robst"}, "'robst' is unknown; did you mean 'robust'"),
        ("recipes.glyphs.defenses.robst", {}, "'robst' is unknown; did you mean 'robust'"),
        ("recipes.glyphs.defenses.robust.schedule", {"epoch": 3}, r"robust\.schedule key 'epoch' is unknown; did you"),
        (
            "recipes.glyphs.defenses.robust.schedule",
            {"epochs": 0},
            r"recipes\.glyphs\.defenses\.robust\.schedule\.epochs is 0; it must be at least",
        ),
        ("recipes.glyphs.defenses.robust.schedule", 3, r"robust\.schedule is 3; it must hold keys and values"),
        ("recipes.glyphs.defenses.robust.eps", -0.1, r"recipes\.glyphs\.defenses\.robust\.eps is -0\.1"),
        ("recipes.glyphs.defenses.robust.target", "pos", "Input should be 'positive', 'negative', 'anchor' or 'query'"),
        ("recipes.glyphs.defenses.robust.strength", 1, "robust key 'strength' is unknown"),
        ("recipes.glyphs.losses.triplet.miner", "semihard", "miner 'semihard' is unknown; did you mean 'semi_hard'"),
        ("recipes.glyphs.losses.pml", {"alpha": 2}, "recipes.glyphs.losses.pml lacks the key 'name'"),
        ("recipes.glyphs.model.backbone", "resnet", "backbone 'resnet' is unknown; did you mean 'resnet"),
        ("recipes.glyphs.model", None, "it must hold the keys backbone, dimension"),
        ("recipes.glyphs.data.source", "zip", "source 'zip' is unknown"),
        ("recipes.glyphs.data.options", {"siz": 3}, "options key 'siz' is unknown; did you mean 'size'"),
        ("recipes.glyphs.data.crop", 40, "crop is 40; it must be at most size, 32"),
        ("recipes.glyphs.data.crop", 28, r"schedule\.crop is 0; it must be data\.crop, 28"),
        ("recipes.glyphs.model.weights", "imagenet", "conv4 starts from random"),
        ("recipes.flowers.model.weights", "imagenet", "grids_linear starts from random or a file"),
        ("recipes.glyphs.data.size", 12, r"data\.size, for the backbone conv4, is 12; it must be at least 16"),
        ("recipes.glyphs.data.height", 12, r"data\.height, for the backbone conv4, is 12; it must be at least 16"),
        ("recipes.glyphs.losses.triplet.average", "non_zero", "Input should be 'all' or 'nonzero'"),
        ("recipes.glyphs.schedule.precision", "half", "Input should be 'float32' or 'bfloat16'"),
        ("recipes.glyphs.defenses.robust.step_size", 0, "step_size is 0.0; it must be above 0"),
        ("recipes.glyphs.data.train_fraction", 1.5, "it must lie between 0 and 1"),
        ("recipes.glyphs.data.validation_fraction", -0.1, "it must be at least 0 and below 1"),
        ("suites.quick.eps", ["-1/255"], r"suites\.quick\.eps is -0\.0039"),
        ("suites.quick.eps", [8], r"suites\.quick\.eps is 8.* at most 1: perhaps 8/255"),
        ("recipes.glyphs.defenses.robust.eps", 8, r"robust\.eps is 8.* at most 1: perhaps 8/255"),
        ("recipes.glyphs.defenses.single_step.eps", 8, r"single_step\.eps is 8"),
        ("recipes.glyphs.validation.eps", 8, r"validation\.eps is 8"),
        ("suites.quick.kind", "attack", "suites.quick.kind 'attack' is unknown; did you mean 'attacks'"),
        ("suites.quick", {"queries": 3}, "suites.quick lacks the key 'kind'"),
        ("run.surrogate_seed", 0, "run.surrogate_seed is 0, one of run.seeds; it must be another"),
        ("run.surrogate", "standard", "run.surrogate 'standard' is unknown; known: .*robust"),
        ("study.batch.surrogate", "nonsense", r"study\.batch\.surrogate \(of recipes\.glyphs_long, .*'nonsense' is"),
        ("suites.quick.eps", [0.01], r"suites\.quick\.eps lacks 0\.0313725, the radius figures\.eps"),
        ("suites.quick.attacks", {"margins": {"steps": 3}}, "'margins' is unknown; did you mean 'margin'"),
        ("suites.quick.attacks", {"margin": {"step": 3}}, "key 'step' is unknown; did you mean 'steps'"),
        ("run.controls", ["pixel_8"], "control 'pixel_8' is unknown; did you mean 'pixels_8'"),
        ("run.seeds", [], "run.seeds is empty; list at least one"),
        ("run.seeds", [0, 0], "run.seeds lists 0 twice; once is enough"),
        ("study.main.losses", {"triplet": ["robust", "robust"]}, "triplet lists 'robust' twice"),
        (
            "study.main.datasets",
            ["tiny_imagenet"],
            r"run\.losses \(of recipes\.tiny_imagenet, for study\.main\) 'contrastive'",
        ),
        ("run.datasets", [], "run.datasets is empty; list at least one"),
        ("figures.suite", "quik", "figures.suite 'quik' is unknown; did you mean 'quick'"),
        ("figures.paper", "robuts", "'robuts' is unknown; did you mean 'robust'"),
        ("suites.quick.queries", 0, "queries is 0; it must be at least 1"),
        ("figures", {"eps": 0.1}, "figures lacks the key 'baseline'"),
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
    with pytest.raises(ParamsError, match="is not valid YAML"):
        load(file=tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("run\n")
    with pytest.raises(ParamsError, match="it must hold the keys"):
        load(file=tmp_path / "params.yaml")


def test_a_new_loss_is_checked_by_its_own_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of an entry reach its class converted by its annotations; nothing else has to know of it."""
    monkeypatch.setitem(LOSSES, "soft", f"{__name__}:Soft")
    params = load({"recipes.glyphs.losses.soft": {"sharpness": 3}})
    loss = training.loss("soft", params.recipe("glyphs").losses["soft"], classes=5, dimension=7)
    assert (loss.classes, loss.dimension, loss.sharpness) == (5, 7, 3.0)
    with pytest.raises(ParamsError, match="soft key 'sharp' is unknown; did you mean 'sharpness'"):
        load({"recipes.glyphs.losses.soft": {"sharp": 3}})


class Soft:
    """Stands in for a loss."""

    def __init__(self, classes: int, dimension: int, *, sharpness: float = 1.0) -> None:
        self.classes, self.dimension, self.sharpness = classes, dimension, sharpness


def test_the_benchmarks_have_the_published_recipe() -> None:
    for dataset in ("cub200", "cars196", "sop"):
        recipe = load().recipe(dataset)
        schedule = recipe.schedules["robust"]
        assert (recipe.model.backbone, recipe.model.dimension, schedule.freeze_batchnorm) == ("resnet50", 128, True)
        assert (robust(dataset).eps, robust(dataset).steps) == (0.01, 5)
        assert schedule.classes * schedule.images_per_class == 112
        assert (recipe.data.size, recipe.data.crop, schedule.crop) == (256, 224, 224)


def test_a_preset_is_chosen_by_one_word(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS.read_text().replace("<<: *paper", "<<: *field"))
    recipe = load(file=file).recipe("cub200")
    assert (recipe.model.backbone, recipe.model.dimension) == ("resnet18", 512)
    defense = robust("cub200", file)
    assert (defense.eps, defense.steps, defense.step_size) == (8 / 255, 8, 1 / 255)


def test_a_loss_may_stand_under_two_names() -> None:
    """As a defence may: here with two miners, each with its own digest."""
    other = {"loss": "triplet", "miner": "semi_hard", "margin": 0.2}
    recipe = load({"recipes.glyphs.losses.triplet_semi": other}).recipe("glyphs")
    built = training.loss("triplet_semi", recipe.losses["triplet_semi"], classes=3, dimension=4)
    assert (type(built).__name__, built.miner) == ("Triplet", "semi_hard")
    code = training_code(recipe, "triplet_semi", "standard")
    assert "dml.losses.triplet" in code
    assert "dml.losses.miners.semi_hard" in code
    with pytest.raises(ParamsError, match=r"recipes\.glyphs\.losses\.other 'tripled' is unknown"):
        load({"recipes.glyphs.losses.other": other | {"loss": "tripled"}})
    with pytest.raises(ParamsError, match=r"losses has a loss called 'none', the word for controls"):
        load({"recipes.glyphs.losses.none": other})
    shown = load({"recipes.glyphs.losses.triplet": {"loss": "proxy_anchor", "margin": 0.1, "alpha": 32.0}})
    assert "dml.losses.proxy_anchor" in dependence_code(shown)


def test_turns_are_for_squares() -> None:
    assert load({"recipes.glyphs.data.height": 64}).recipe("glyphs").data.height == 64
    with pytest.raises(ParamsError, match=r"turns is true; with data\.height, images that are no squares"):
        load({"recipes.glyphs.data.height": 64, "recipes.glyphs.schedule.turns": True})
    with pytest.raises(ParamsError, match="crop is 24; with a height it must be 0"):
        load({"recipes.glyphs.data.height": 64, "recipes.glyphs.data.crop": 24})
    with pytest.raises(ParamsError, match="height is 4; it must be at least 8"):
        load({"recipes.glyphs.data.height": 4})
