"""On a machine with a GPU all tensors lie where they belong: shown on a stand-in that refuses what a GPU refuses."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from stand_in import GPU, OnGPU, attach, waited
from torch.utils.data import TensorDataset

import dml
from dml.api.embedding import Embedding, bounded
from dml.api.loading import load as load_images
from dml.attacks.balls import L2, Linf
from dml.common.files import ROOT
from dml.common.randomness import torch_generator
from dml.common.table import find
from dml.config.build import training as build
from dml.config.build.evaluation import suite as build_suite
from dml.config.load import load
from dml.data.base import Split
from dml.defenses import DEFENSES
from dml.losses import LOSSES
from dml.losses.base import TupleLoss
from dml.models.embedder import best_device
from dml.models.embedder import build as embedder
from dml.pipeline.stages.prepare import prepare
from dml.retrieval.index import Search
from dml.training.checkpoint import Checkpoint
from dml.training.loop import History, fit
from dml.training.schedule import Schedule
from dml.training.selection import validator

WITH_STEPS = [name for name in DEFENSES if "steps" in signature(find(DEFENSES, name, "defense")).parameters]
TINY = {
    "recipes.glyphs.data.options": {"images_per_class": 4, "size": 32, "seed": 0},
    "recipes.glyphs.schedule": {"epochs": 1, "batches": 2, "classes": 5, "images_per_class": 3},
    "recipes.glyphs.validation": {"queries": 10, "eps": 0.03, "steps": 1},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with ExitStack() as stack:
        for mode in attach(monkeypatch):
            stack.enter_context(mode)
        yield GPU


def test_the_stand_in_refuses_what_a_gpu_refuses(gpu: torch.device) -> None:
    here, there = torch.rand(3, 4), torch.rand(3, 4).to("cuda")
    assert there.device == gpu
    assert (there * 2 + there.new_ones(4) + torch.zeros(4, device=gpu))[:, torch.tensor([0, 1])].device == gpu
    assert torch.equal((there * torch.tensor(2.0)).cpu(), there.cpu() * 2), "one number may come from the CPU"
    refused: tuple[Callable[[], Any], ...] = (
        lambda: here + there,
        lambda: there @ torch.rand(4, 2),
        lambda: torch.where(here > 0, there, 0.0),
        lambda: there.index_fill(0, torch.tensor([0]), 1.0),
        lambda: torch.cat([here, there]),
        lambda: torch.rand(3, device=gpu, generator=torch.Generator()),
        lambda: torch.multinomial(there, 1, generator=torch.Generator()),
        lambda: torch.rand(3, generator=torch.Generator("cuda")),
        lambda: torch.nn.Linear(4, 2)(there),
    )
    for call in refused:
        with pytest.raises(RuntimeError, match="Expected"):
            call()
    for call in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            call()


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.5)])
def test_random_starts_are_drawn_there(ball: Linf | L2, gpu: torch.device) -> None:
    """They repeat, differ from call to call, and lie in the ball; the generator of the CPU seeds another."""
    images = torch.full((5, 3, 8, 8), 0.5, device=gpu)
    generators = [torch_generator(0, "start") for _ in range(2)]
    first, again = (ball.start(images, generator) for generator in generators)
    assert torch.equal(first, again)
    assert not torch.equal(first, ball.start(images, generators[0]))
    torch.testing.assert_close(ball.project(first, images).cpu(), first.cpu())


def train(split: Split, loss: str, defense: str, **changes: Any) -> History:
    """Train a small network on the best device."""
    recipe = load().recipe("glyphs_long")
    metric = build.loss(loss, recipe.losses.get(loss, {}), classes=6, dimension=8)
    settings = dict(recipe.defenses.get(defense, {}))
    if defense == "robust" and not isinstance(metric, TupleLoss):
        settings["target"] = "query"
    model = embedder("conv4", 8, seed=0, statistics=split.statistics()).to(best_device())
    schedule = Schedule(epochs=2, batches=1, classes=4, images_per_class=3, averaging=0.5, shift=1, flip=True)
    given = {"validate": validator(split, queries=6, eps=0.03, steps=1, seed=0), "seed": 0} | changes
    history = fit(
        model, split, metric, build.defense(defense, settings), schedule, report=str, timing=lambda _: None, **given
    )
    assert all(isinstance(value, OnGPU) for value in model.state_dict().values())
    return history


@pytest.mark.parametrize("defense", DEFENSES)
def test_every_defence_trains(defense: str, toy_split: Split, gpu: torch.device) -> None:
    assert len(train(toy_split, "triplet", defense).epochs) == 2


@pytest.mark.parametrize("defense", WITH_STEPS)
def test_no_step_of_an_adversary_waits_for_the_gpu(defense: str, gpu: torch.device) -> None:
    """More steps wait for nothing more: what is waited for, as the tuples of a batch, is known before the first."""
    images, labels = torch.rand(24, 3, 16, 16).to(gpu), (torch.arange(24) // 4).to(gpu)
    counts = []
    for steps in (1, 4):
        loss = build.loss("triplet", {"miner": "distance_weighted"}, classes=6, dimension=8)
        adversary = build.defense(defense, {"eps": 0.03, "steps": steps})
        model, generator = embedder("conv4", 8, seed=0).to(gpu).train(), torch_generator(0, "batch")
        adversary(model, images, labels, loss, generator, 1.0)  # the first batch may keep what later ones use
        waited.clear()
        adversary(model, images, labels, loss, generator, 1.0)
        counts.append(len(waited))
    assert counts[0] == counts[1] <= 4


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"pml", "triplet"}))
def test_every_loss_trains(loss: str, toy_split: Split, gpu: torch.device) -> None:
    assert len(train(toy_split, loss, "robust").epochs) == 2


@pytest.mark.parametrize("defense", ["ca_tride", "fare"])
def test_a_killed_training_goes_on(defense: str, toy_split: Split, tmp_path: Path, gpu: torch.device) -> None:
    """What is saved lies on the CPU."""
    epochs: list[dict[str, float]] = []

    def killed(_: Any) -> dict[str, float]:
        if epochs:
            raise KeyboardInterrupt
        epochs.append({"natural": 0.5, "adversarial": 0.5})
        return epochs[0]

    checkpoint = Checkpoint(tmp_path / "state.pt", "key")
    with pytest.raises(KeyboardInterrupt):
        train(toy_split, "triplet", defense, validate=killed, checkpoint=checkpoint)
    assert train(toy_split, "triplet", defense, checkpoint=checkpoint).epochs[0]["natural"] == 0.5


def chapter(name: str, workspace: Path, **parameters: Any) -> dict[str, Any]:
    """Run a notebook's cells, the parameters replaced."""
    book, names = nbformat.read(next((ROOT / "notebooks").glob(f"{name}*.ipynb")), as_version=4), {}
    for cell in (cell for cell in book.cells if cell.cell_type == "code"):
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters | {"workspace": str(workspace)}
    plt.close("all")
    return names


def test_the_chapters_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    """Two trainings, and attacks on a model and on the controls, with all that the chapters show and write."""
    shortened = {
        "suites.quick": {
            "kind": "attacks",
            "claims": True,
            "queries": 8,
            "eps": [0.01, 8 / 255],
            "attacks": {"soft_margin": {"steps": 3, "classes": 2, "target_steps": 2}, "map": {"steps": 2}},
            "gate_tries": 3,
        }
    }
    changes = TINY | shortened
    monkeypatch.setattr("dml.models.linear_metric.STEPS", 40)
    prepare("glyphs", workspace=str(tmp_path), changes=changes)
    chapter("02", tmp_path, changes=changes)
    chapter("02", tmp_path, changes=changes, seed=100, loss="contrastive")
    trained = chapter("03", tmp_path, changes=changes)
    assert trained["perturbed"].device == gpu
    for loss, defense in (("triplet", "robust"), ("none", "pixels_linear")):
        found = chapter("04", tmp_path, changes=changes, loss=loss, defense=defense, surrogates=["triplet-standard-0"])
        assert len(found["checked"])
        assert found["target"].search.gallery.embeddings.device == gpu
        assert found["file"].is_file()


@pytest.mark.parametrize("name", ["one_by_one", "paper", "with_groups", "ranking", "poisoning", "certified"])
def test_every_kind_of_suite_runs(name: str, toy_split: Split, gpu: torch.device) -> None:
    """With few queries and steps."""
    settings = dict(load().suites[name]) | {"queries": 4, "eps": [0.03]}
    if "attacks" in settings:
        settings["attacks"] = {
            attack: {key: 2 if isinstance(value, int) else value for key, value in given.items()}
            for attack, given in settings["attacks"].items()
        }
    else:
        settings |= {"steps": 2} | ({"samples": 60, "draws": 2} if name == "certified" else {})
    suite = build_suite(settings)
    split = replace(toy_split, groups=np.arange(len(toy_split)) // 2) if name == "with_groups" else toy_split
    search = Search.over(embedder("conv4", 8, seed=0).to(best_device()).eval(), split)
    found = suite.evaluate(search, np.arange(4), seed=0, report=lambda _: None)
    assert found.outcomes["query"].nunique() == 4


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_anybodys_model_is_attacked(similarity: Any, toy_split: Split, gpu: torch.device) -> None:
    """A module, which is moved, and a function that takes images on the GPU."""
    images, labels, whole = toy_split.images, toy_split.labels, similarity == "cosine"
    suite = {
        "attacks": {"soft_margin": {"steps": 3, "classes": 2, "target_steps": 2}},
        "claims": whole,
        "gate_tries": 3,
    }
    controls = ("colour_histogram",) if whole else ()
    given = {"eps": 0.03, "suite": suite, "limit": 4, "similarity": similarity, "controls": controls, "report": str}
    model = embedder("conv4", 8, seed=0).eval()
    assert len(dml.evaluate(model, images, labels, **given).outcomes)
    assert not isinstance(next(model.parameters()), OnGPU), "it came back as it was"
    assert len(dml.evaluate(lambda found: found.flatten(1), images, labels, device="cuda", **given).outcomes)


def test_a_dataset_may_lie_there(toy_split: Split, gpu: torch.device) -> None:
    pixels = torch.from_numpy(toy_split.images).permute(0, 3, 1, 2) / 255
    dataset = TensorDataset(pixels.to("cuda"), torch.from_numpy(toy_split.labels).to("cuda"))
    found = load_images(dataset, None)
    assert np.array_equal(found.labels, toy_split.labels)
    assert np.allclose(found.pixels[:], toy_split.images)


def test_no_more_images_at_a_time_than_its_memory_holds(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    sizes: list[int] = []

    def model(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.flatten(1)

    embedding, images = Embedding(model, gpu), torch.rand(10, 3, 4, 4).to("cuda")
    expected = embedding(images.requires_grad_(True))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)  # so that two images took 400
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 600)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_100, 9_000))  # and 500 of what torch holds
    with bounded(embedding, 2):
        pass
    assert embedding.most == 4
    sizes.clear()
    found = embedding(images.requires_grad_(True))
    assert sizes == [4, 4, 2]
    assert torch.equal(found.cpu(), expected.cpu())


def test_full_memory_is_told(gpu: torch.device) -> None:
    """Such a model has gradients: it is not attacked as one that has none."""

    def model(images: torch.Tensor) -> torch.Tensor:
        if images.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.flatten(1)

    images = torch.rand(8, 3, 4, 4)
    with pytest.raises(ValueError, match="8 images with gradients do not fit on cuda:0"):
        dml.evaluate(model, images, torch.arange(8) // 2, device="cuda", limit=2, controls=(), report=str)
