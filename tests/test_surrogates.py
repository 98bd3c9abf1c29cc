"""The models whose adversarial images the gates try on another one: which are opened, and what the record says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dml.common.files import write_json
from dml.config.load import load
from dml.config.schema import Model, Recipe
from dml.data.base import Dataset, Split
from dml.evaluation.suites.base import Evaluation
from dml.models import weights
from dml.models.embedder import build
from dml.pipeline import paths, stored
from dml.pipeline.digest import training_settings
from dml.pipeline.stages import attack
from dml.pipeline.stages.attack import Found, Target

RUN = "triplet-robust-0"


@pytest.fixture
def recipe() -> Recipe:
    """That of glyphs, with a small head, and a defence more."""
    found = load().recipe("glyphs")
    defenses, schedules = ({**held, "robust-9": held["robust"]} for held in (found.defenses, found.schedules))
    model = Model(backbone="conv4", dimension=8)
    return replace(found, model=model, defenses=defenses, schedules=schedules)


@pytest.fixture
def keep(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that stores a model of a seed, and returns the digest of its weights."""
    for module in (paths, stored):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def store(workspace: str, seed: int, run: str = RUN, **settings: object) -> str:
        model, folder = build("conv4", 8, seed=seed), tmp_path / workspace / paths.model_dir("glyphs", run)
        weights.save(model, folder / "weights.safetensors")
        loss, defense = run.rpartition("-")[0].split("-", 1)
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


def test_one_that_is_not_there_is_one_sentence(recipe: Recipe, keep: Callable[..., str]) -> None:
    for name in ("robust", RUN):
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist; train it first"):
            opened(recipe, name)


def test_names_may_hold_a_hyphen(recipe: Recipe, keep: Callable[..., str]) -> None:
    name = "triplet-robust-9-0"
    keep("scratch", 1, name, schedule={"epochs": 1})
    own = keep(".", 0, name)
    assert opened(recipe, name) == own


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


@pytest.fixture
def toy_data(toy_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images in place of the prepared ones."""
    monkeypatch.setattr(attack, "open_data", lambda *words: Dataset(toy_split, toy_split, toy_split))
    monkeypatch.setattr(attack, "attacked_rows", lambda *words: np.arange(3))


@pytest.mark.usefixtures("toy_data")
def test_kept_gates_belong_to_their_surrogates(
    recipe: Recipe, keep: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates that tried the images of weights that are gone are not continued."""
    folders = []
    monkeypatch.setattr(attack.gates, "check", lambda *given, folder, **named: folders.append(folder))
    monkeypatch.setattr(attack.Target, "unfinished", tmp_path / "unfinished")
    for seed in (0, 1, 0):
        keep(".", seed, "triplet-joint-3")
        changes = {"recipes.glyphs.model.dimension": 8}
        target = attack.open_target(
            "glyphs", "none", "pixels_8", 0, "quick", changes=changes, others=["triplet-joint-3"]
        )
        again = attack.open_target(**target.asked)
        assert again.surrogate_weights == target.surrogate_weights != {}
        attack.run_gates(again, Found(Evaluation(pd.DataFrame()), pd.DataFrame(), 0.0))
    assert folders[0] == folders[2] != folders[1]
    assert folders[0].parent == tmp_path / "unfinished"


@pytest.mark.usefixtures("toy_data", "keep")
def test_another_model_that_is_not_there_is_told_before_the_attack() -> None:
    with pytest.raises(FileNotFoundError, match="triplet-joint-4 does not exist; train it first"):
        attack.open_target("glyphs", "none", "pixels_8", 0, "quick", others=["triplet-joint-4"])
