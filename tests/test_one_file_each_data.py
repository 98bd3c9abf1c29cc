"""A new dataset, with queries and groups, or a new backbone is one file and one line in its table."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dml.common.table import find
from dml.config.build.model import check_model
from dml.config.build.source import check_source, source
from dml.config.schema import Data, Model
from dml.data.base import Dataset, Split, load
from dml.data.prepare import prepare
from dml.data.sources import SOURCES
from dml.defenses.standard import Standard
from dml.evaluation.suites.attacks import AttackSuite
from dml.losses.triplet import Triplet
from dml.models.backbones import BACKBONES
from dml.models.embedder import Embedder, build
from dml.retrieval.gallery import Matches
from dml.retrieval.index import Search
from dml.retrieval.metrics import ranking
from dml.training.loop import fit
from dml.training.schedule import Schedule
from dml.training.selection import validator

SHOP = '''
"""A shop: eight garments, each photographed by two customers (queries) and six times in the shop (gallery)."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from dml.data.base import Source

PER_CLASS = 8  # images; those of even numbers are of one shooting, those of odd numbers of another


def garment(label: int, number: int, wanted: int) -> Image.Image:
    draw = np.random.default_rng([label, number])
    colour = np.random.default_rng(label).integers(60, 195, 3)
    return Image.fromarray(np.clip(colour + draw.normal(0, 20, (12, 10, 3)), 0, 255).astype(np.uint8))


def read_shop(folder: Path, *, classes: int = 8) -> Source:
    labels = np.repeat(np.arange(classes), PER_CLASS)
    number = np.tile(np.arange(PER_CLASS), classes)
    return Source(
        class_names=[f"garment {label}" for label in range(classes)],
        labels=labels,
        tasks=lambda rows: ((row, functools.partial(garment, labels[row], number[row])) for row in rows.tolist()),
        digest=f"shop of {classes}",
        groups=2 * labels + number % 2,
        queries=number < 2,
    )
'''

BLOCKS = '''
"""Mean colours of 4 x 4 blocks, which want pixels in [-2, 2]."""

from torch import Tensor, nn

from dml.models.backbones.base import Backbone, Normalisation


class Blocks(Backbone):
    width = 24
    smallest = 20
    starts = ("random", "file")

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        self.pool, self.mix = nn.AdaptiveAvgPool2d(4), nn.Linear(48, self.width)

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        return [0.5] * 3, [0.25] * 3

    def forward(self, images: Tensor) -> Tensor:
        assert images.min() >= -2
        assert images.max() <= 2
        return self.mix(self.pool(images).flatten(1)).relu()
'''


def silent(line: str) -> None:
    """Progress is not looked at here."""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str], str, str, str], None]:
    """A function that writes a module of a temporary package and adds its object to a table."""
    package = tmp_path / f"toys_of_{tmp_path.name}"  # another name in every test: Python keeps imported packages
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(table: dict[str, str], name: str, item: str, text: str) -> None:
        (package / f"{name}.py").write_text(text)
        monkeypatch.setitem(table, name, f"{package.name}.{name}:{item}")

    return add


@pytest.fixture
def shop(added: Callable[..., None], tmp_path: Path) -> Dataset:
    """The toy shop as the pipeline prepares and opens it."""
    added(SOURCES, "shop", "read_shop", SHOP)
    data = Data(source="shop", path="data/shop", size=16, options={"classes": 12}, validation_fraction=0.5)
    check_source(data, "recipes.shop.data")
    prepare(source(data), tmp_path / "out", name="shop", size=data.size, train_fraction=0.5, validation_fraction=0.5)
    return load(tmp_path / "out")


def test_a_dataset_with_queries_apart_and_groups(shop: Dataset) -> None:
    assert shop.queries is not None
    assert shop.train.classes.tolist() == [0, 1, 2]
    assert len(shop.train) == 3 * 8, "all images of training classes are trained on"
    assert len(shop.validation) == 3 * 8
    assert (len(shop.queries), len(shop.test)) == (6 * 2, 6 * 6)

    search = Search.over(build("conv4", 8, seed=0), shop.test, shop.queries)
    assert len(search) == 12
    assert search.gallery.embeddings.shape == (36, 8)
    rows = np.arange(12)
    queries = search.queries(rows)
    assert (queries.own == -1).all()

    matches = Matches.of(queries, search.gallery)
    assert matches.right.sum(1).tolist() == [3] * 12, "the items of the other shooting"
    assert matches.ignored.sum(1).tolist() == [3] * 12, "those of the query's own shooting"
    first = ranking(search.query_embeddings, queries, search.gallery, 1).squeeze(1)
    assert not matches.ignored[torch.arange(12), first].any()

    survives = search.margin(search.images(rows), queries) < 0
    natural = search.natural()
    assert torch.equal(survives, natural.r1)
    assert torch.equal(natural.r1, queries.labels == search.gallery.labels[first])
    assert natural.r1.float().mean() > 0.5, "the colours tell the garments apart"


def fitted(model: Embedder, split: Split, held_out: Split) -> Embedder:
    """Train for two steps."""
    fit(
        model,
        split,
        Triplet(int(split.labels.max()) + 1, 8, miner="random"),
        Standard(),
        Schedule(epochs=1, batches=2, classes=3, images_per_class=3, learning_rate=1e-2),
        seed=0,
        validate=validator(held_out, queries=6, eps=0.03, steps=1, seed=0),
        checkpoint=None,
        report=silent,
        timing=silent,
    )
    return model


def test_a_model_is_trained_and_attacked_on_it(shop: Dataset) -> None:
    fresh = build("conv4", 8, seed=0)
    model = fitted(build("conv4", 8, seed=0), shop.train, shop.validation)
    assert not torch.equal(model.head.weight, fresh.head.weight)
    search, rows = Search.over(model, shop.test, shop.queries), np.arange(12)
    suite = AttackSuite(12, (0.02, 0.5), {"margin": {"steps": 3}})
    outcomes = suite.evaluate(search, rows, seed=0, report=silent).outcomes
    left = outcomes[outcomes["attack"].isin(["none", "worst"])].groupby("eps")["r1"].mean()
    assert left[0.0] == search.natural().r1.float().mean()
    assert left[0.5] < left[0.02] <= left[0.0]


def test_copies_of_a_query_in_its_own_group_change_nothing(shop: Dataset) -> None:
    model, row = build("conv4", 8, seed=0), np.array([5])
    copied = shop.test.images[:]
    copied[shop.test.groups == shop.queries.groups[5]] = shop.queries.images[5]

    def margin(images: np.ndarray, groups: bool) -> float:
        gallery, asked = (
            replace(split, groups=split.groups if groups else None)
            for split in (replace(shop.test, images=images), shop.queries)
        )
        search = Search.over(model, gallery, asked)
        return float(search.margin(search.images(row), search.queries(row)))

    assert margin(copied, groups=True) == pytest.approx(margin(shop.test.images[:], groups=True), abs=1e-6)
    assert margin(copied, groups=False) < margin(copied, groups=True) - 1e-5


def test_a_backbone_with_a_range_of_values_and_a_smallest_image(added: Callable[..., None], toy_split: Split) -> None:
    added(BACKBONES, "blocks", "Blocks", BLOCKS)
    data = {"source": "folder", "path": "data/toy"}
    check_model(Model("blocks", 8), Data(**data, size=20), "recipes.toy")
    with pytest.raises(ValueError, match=r"recipes\.toy.* is 19; it must be at least 20"):
        check_model(Model("blocks", 8), Data(**data, size=19), "recipes.toy")
    with pytest.raises(ValueError, match="blocks starts from random or a file"):
        check_model(Model("blocks", 8, weights="imagenet"), Data(**data, size=20), "recipes.toy")

    model = build("blocks", 8, seed=0, statistics=toy_split.statistics())
    assert model.mean.flatten().tolist() == [0.5] * 3
    assert model.std.flatten().tolist() == [0.25] * 3
    assert model.features(torch.rand(2, 3, 20, 20)).shape == (2, find(BACKBONES, "blocks", "backbone").width)
    assert torch.equal(model.head.weight, build("blocks", 8, seed=0).head.weight)
    assert float(Search.over(model, toy_split).natural().r1.float().mean()) > 0.8

    fresh = model.backbone.mix.weight.detach().clone()
    assert not torch.equal(fitted(model, toy_split, toy_split).backbone.mix.weight, fresh), "it is trained"
