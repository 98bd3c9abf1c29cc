"""The models whose adversarial images the gates try on another one: which are opened, and what the record says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dml.common.files import write_json
from dml.config.load import load
from dml.config.schema import Model, Recipe
from dml.models import weights
from dml.models.embedder import build
from dml.pipeline import paths, stored
from dml.pipeline.digest import training_settings
from dml.pipeline.stages.attack import Target

RUN = "triplet-robust-0"


@pytest.fixture
def recipe() -> Recipe:
    """That of glyphs, with a small head."""
    return replace(load().recipe("glyphs"), model=Model(backbone="conv4", dimension=8))


@pytest.fixture
def keep(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that stores a model of a seed, and returns the digest of its weights."""
    for module in (paths, stored):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def store(workspace: str, seed: int, run: str = RUN, **settings: object) -> str:
        model, folder = build("conv4", 8, seed=seed), tmp_path / workspace / paths.model_dir("glyphs", run)
        weights.save(model, folder / "weights.safetensors")
        loss, defense, _ = paths.run_parts(run)
        made_with = training_settings(recipe, loss, defense) | settings
        about = {"settings": made_with, "digest": "d", "weights": weights.digest(model)}
        write_json(folder / "settings.json", about)
        write_json(folder / "history.json", {"chosen": 0, "embedded": 1})
        return about["weights"]

    return store


def opened(recipe: Recipe, run: str = RUN) -> str:
    """Digest of the weights that a hand run would take."""
    return weights.digest(stored.open_surrogate("glyphs", recipe, run, "scratch").model)


def test_that_of_the_recipe_comes_before_one_of_other_settings(recipe: Recipe, keep: Callable[..., str]) -> None:
    """A hand run with changed settings left a model of the same name in scratch."""
    other = keep("scratch", 1, schedule={"epochs": 1})
    assert opened(recipe) == other, "a gate holds whatever the images come from"
    own = keep(".", 0)
    assert opened(recipe) == own != other
    mine = keep("scratch", 2)
    assert opened(recipe) == mine != own, "of two of the recipe, that of the hand run"


def test_a_name_that_is_none_is_one_sentence(recipe: Recipe, keep: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="'robust' is no name of a model; give loss-defense-seed"):
        opened(recipe, "robust")
    with pytest.raises(FileNotFoundError, match="triplet-robust-0 does not exist; train it first"):
        opened(recipe)


def test_a_target_knows_its_surrogates(recipe: Recipe, keep: Callable[..., str]) -> None:
    """Undefended and defended with the same loss, undefended with another seed, those asked for, and never itself."""
    names = ("triplet-standard-7", "triplet-robust-7", "contrastive-standard-100", "triplet-joint-3")
    made = {name: keep(".", number, name) for number, name in enumerate(names)}
    given = dict.fromkeys(Target.__dataclass_fields__) | {"dataset": "glyphs", "loss": "triplet", "seed": 7}
    given |= {"params": load(), "recipe": recipe, "workspace": ".", "others": ("triplet-joint-3",)}
    robust, act = (Target(**given | {"defense": defense}) for defense in ("robust", "act"))
    assert robust.surrogate_weights == {name: made[name] for name in sorted(names) if name != "triplet-robust-7"}
    assert act.surrogate_weights == {name: made[name] for name in sorted(names)}
    control = Target(**given | {"loss": "none", "defense": "pixels_8"})
    assert list(control.surrogates) == ["triplet-joint-3"]
