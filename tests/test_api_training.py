"""The control that `dml.evaluate` fits to training images is the pipeline's."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dml
from dml.__main__ import main
from dml.api.images import training_data
from dml.api.leaderboard import reports
from dml.api.report import page
from dml.api.result import Result
from dml.config.build.evaluation import suite as build_suite
from dml.data import base
from dml.data.base import Dataset, Split
from dml.data.prepare import prepare
from dml.data.sources.folder import read_folder
from dml.evaluation.linear_metric import RobustLinear
from dml.models import linear_metric
from dml.retrieval.index import Search
from tests.model_file import MODEL_FILE

SMALL = {"queries": 8, "claims": False, "attacks": {"margin": {"steps": 4}}}
EPS = 0.05


def silent(line: str) -> None:
    """Progress is not looked at here."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit takes a quarter of its steps, and the last matrix wins, which is never the identity."""
    turn = itertools.count()
    monkeypatch.setattr(linear_metric, "STEPS", 40)
    monkeypatch.setattr("dml.evaluation.linear_metric.certified_share", lambda *given: next(turn))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).eval()


def noisy(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Five images of each class, hard to tell apart, in no order."""
    draw = np.random.default_rng(seed)
    patterns = draw.integers(60, 195, (classes, 1, 1, 3)) + draw.integers(-30, 30, (classes, 16, 16, 3))
    images = patterns.repeat(5, axis=0) + draw.normal(0, 50, (5 * classes, 16, 16, 3))
    order = draw.permutation(5 * classes)
    return np.clip(images, 0, 255).astype(np.uint8)[order], np.arange(classes).repeat(5)[order]


def evaluate(model: nn.Module, *images: Any, **settings: Any) -> Result:
    """A short suite and one control beside that which is fitted."""
    common = {"eps": EPS, "suite": SMALL, "controls": ("pixels_8", "pixels_linear"), "report": silent}
    return dml.evaluate(model, *images, **{**common, **settings})


def check(result: Result, data: Dataset) -> None:
    """The control stands in the table, with the outcomes that the suite has of the metric fitted to the same images."""
    search = Search.over(RobustLinear.fit(data, 0, report=silent), data.test, data.queries)
    suite = build_suite({"kind": "attacks", "eps": [EPS], **SMALL})
    wanted = suite.evaluate(search, result.images.rows, seed=0, report=silent).outcomes
    keys = ["query", "attack", "eps"]
    wanted = wanted[wanted["attack"] != "certified"].sort_values(keys)  # proofs stand in the pipeline's tables alone
    found = result.outcomes.query("model == 'pixels_linear' and attack != 'map'").sort_values(keys)[wanted.columns]
    pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted.reset_index(drop=True), check_dtype=False)
    assert set(result.summary["model"]) == {"your model", "pixels_8", "pixels_linear"}
    assert "pixels_linear, fitted " in str(result)
    assert "pixels_8, untrained " in str(result)
    assert "pixels_linear, fitted" in page(result)


@pytest.fixture
def prepared(picture_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Four classes to fit to, two to choose by, six to attack."""
    source = read_folder(picture_folder(classes=12))
    prepare(source, tmp_path / "data", name="mine", size=16, train_fraction=0.5, validation_fraction=0.2)
    return tmp_path / "data"


def test_a_prepared_dataset_brings_its_training_classes(model: nn.Module, prepared: Path) -> None:
    check(evaluate(model, prepared), base.load(prepared))


def test_training_images_of_any_form(model: nn.Module) -> None:
    (x, y), (images, labels) = noisy(1, 6), noisy(0, 8)
    names = [str(label) for label in range(8)]
    train, validation = (Split(images[rows], labels[rows], names) for rows in (labels < 6, labels >= 6))
    result = evaluate(model, x, y, training=(images, labels))
    check(result, Dataset(train, validation, Split(x, y, names)))
    dataset = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    again = evaluate(model, x, y, training=dataset)
    pd.testing.assert_frame_equal(again.outcomes, result.outcomes)


def test_the_last_classes_are_held_out(picture_folder: Callable[..., Path], prepared: Path) -> None:
    data = training_data(picture_folder(classes=11, name="more"), None, (), 8, None, [])
    assert [data.train.class_names[label] for label in data.validation.classes] == ["class_09", "class_10"]
    assert len(data.train) == 9 * 4
    assert data.train.images[3:5].shape == (2, 8, 8, 3)
    assert training_data(prepared, "elsewhere", (), 8, None, []).train.classes.tolist() == [0, 1, 2, 3]


def test_what_is_kept_of_one_fit_is_not_taken_for_another(model: nn.Module, tmp_path: Path) -> None:
    x, y = noisy(1, 6)
    settings = {"controls": ("pixels_linear",), "folder": tmp_path, "suite": SMALL | {"queries": 2}}
    first, second = (evaluate(model, x, y, training=noisy(seed, 4), **settings) for seed in (2, 3))
    assert len(list(tmp_path.rglob("pixels_linear *"))) == 2
    told = [result.outcomes.query("model == 'pixels_linear'") for result in (first, second)]
    assert not told[0].equals(told[1])


def test_without_training_images_or_controls_nothing_is_fitted(
    model: nn.Module, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*given: object, **settings: object) -> None:
        raise AssertionError("nothing to fit")

    monkeypatch.setattr(RobustLinear, "fit", fit)
    x, y = noisy(1, 6)
    assert set(evaluate(model, x, y).summary["model"]) == {"your model", "pixels_8"}
    assert set(evaluate(model, prepared, controls=()).summary["model"]) == {"your model"}
    narrow = dml.evaluate(
        lambda images: images.flatten(1), x[:, :12], y, training=(x[:, :12], y), eps=EPS, suite=SMALL, report=silent
    )
    assert set(narrow.summary["model"]) == {"your model", "colour_histogram", "soft_histogram"}, (
        "12 pixels are no multiple of 8"
    )


def test_training_images_that_cannot_be_used_are_one_sentence(model: nn.Module) -> None:
    (x, y), (images, labels) = noisy(1, 6), noisy(0, 8)
    for sentence, training in {
        "training has 3 classes; a control takes two to fit and two to choose by": (
            images[labels < 3],
            labels[labels < 3],
        ),
        r"training images have \(8, 16\) pixels and the others \(16, 16\)": (images[:, :8], labels),
        "no training image has another of its class": (images[:8], np.arange(8)),
        "labels is missing": images,
    }.items():
        with pytest.raises(ValueError, match=sentence):
            evaluate(model, x, y, training=training)


def test_the_command_fits_it_and_the_leaderboard_takes_the_others(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MODEL_FILE)
    folder, training = picture_folder(classes=4), picture_folder(classes=6, name="training")
    words = [str(folder), "--model", f"{tmp_path}/mine.py:make", "--size", "16", "--output", str(tmp_path / "out")]
    assert main(["evaluate", *words, "--eps", "2/255", "--queries", "3", "--training", str(training)]) == 0
    assert "pixels_linear, fitted " in capsys.readouterr().out
    told = reports.Told("mine", "A. Author", "https://example.org", "none", "linear", "pictures")
    names = {entry.name for entry in reports.entries(tmp_path / "out", told, show_failing=True)}
    assert names == {"mine", "pixels_8", "pixels_16", "colour_histogram", "soft_histogram"}
