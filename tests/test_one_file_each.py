"""What ADDING.md promises: a new loss or defence is one file and one line in its table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dml.common.randomness import seeded_global
from dml.common.table import find
from dml.data.base import Split
from dml.defenses import DEFENSES
from dml.losses import LOSSES
from dml.losses.base import Loss
from dml.models.embedder import Embedder, build
from dml.retrieval.index import Search
from dml.training.checkpoint import Checkpoint
from dml.training.loop import History, fit
from dml.training.schedule import Schedule
from dml.training.selection import validator

PROXIES = '''
"""Cross-entropy over distances to one proxy per class (normalised softmax, Zhai and Wu 2019)."""

import torch
from torch import Tensor, nn

from dml.losses.base import BatchLoss


class Proxies(BatchLoss):
    def __init__(self, classes: int, dimension: int, *, scale: float = 16.0) -> None:
        super().__init__(classes, dimension)
        self.scale = scale
        self.proxies = nn.Parameter(torch.randn(classes, dimension))

    def forward(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> Tensor:
        similarity = queries @ nn.functional.normalize(self.proxies, dim=1).T
        return nn.functional.cross_entropy(self.scale * similarity, labels, reduction="none")
'''

SIMILARITIES = '''
"""Neighbourhood component analysis on the similarities of the batch (Goldberger et al. 2004)."""

import torch
from torch import Tensor

from dml.losses.base import BatchLoss, pairs


class Similarities(BatchLoss):
    def __init__(self, classes: int, dimension: int, *, temperature: float = 0.1) -> None:
        super().__init__(classes, dimension)
        self.temperature = temperature

    def forward(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> Tensor:
        same, other = pairs(labels, reference_labels, own)
        logits = queries @ reference.T / self.temperature
        every = logits.masked_fill(~(same | other), -torch.inf).logsumexp(1)
        return every - logits.masked_fill(~same, -torch.inf).logsumexp(1)
'''

DESTINATION = '''
"""Anchors perturbed by a radius that follows the last loss, and an epoch chosen late."""

import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.objectives.tuples import role_objective
from dml.attacks.optimisers.pgd import pgd
from dml.defenses.base import Defense
from dml.losses.base import TupleLoss
from dml.models.embedder import evaluating


class Destination(Defense):
    def __init__(self, eps: float = 0.03, ceiling: float = 0.2) -> None:
        super().__init__()
        self.eps, self.ceiling = eps, ceiling
        self.register_buffer("last", torch.tensor(ceiling))

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: TupleLoss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        embeddings = model(images)
        tuples = loss.mine(embeddings.detach(), labels, generator)
        _, positive, negative = tuples.pick(embeddings)
        radius = self.eps * float(1 - self.last.clamp(max=self.ceiling) / self.ceiling)
        with evaluating(model):
            objective = role_objective(model, "anchor", *tuples.pick(embeddings.detach()))
            given = {"steps": 1, "step_size": radius, "best": False, "generator": generator}
            perturbed = pgd(images[tuples.anchor], objective, Linf(radius), **given)
        values = loss(model(perturbed), positive, negative)
        self.last.copy_(values.detach().mean())
        return values

    def score(self, scores: dict[str, float]) -> float:
        return -scores["natural"]
'''

JOINTLY = '''
"""Anchors, positives and negatives perturbed together, in one attack on the loss of their tuples."""

import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.optimisers.pgd import pgd
from dml.defenses.base import Defense
from dml.losses.base import TupleLoss
from dml.models.embedder import evaluating


class Jointly(Defense):
    def __init__(self, eps: float = 0.03, steps: int = 2) -> None:
        super().__init__()
        self.eps, self.steps = eps, steps

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: TupleLoss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        tuples = loss.mine(model(images).detach(), labels, generator)
        with evaluating(model), evaluating(loss):
            perturbed = pgd(
                images[torch.cat(tuples)],
                lambda changed: loss(*model(changed).chunk(3)).repeat(3),
                Linf(self.eps),
                steps=self.steps,
                step_size=self.eps,
                best=False,
                generator=generator,
            )
        return loss(*model(perturbed).chunk(3))
'''


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str], str, str, str], None]:
    """A function that writes a module of a temporary package and adds its class to a table."""
    package = tmp_path / f"toys_of_{tmp_path.name}"  # another name in every test: Python keeps imported packages
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(table: dict[str, str], name: str, kind: str, source: str) -> None:
        (package / f"{name}.py").write_text(source)
        monkeypatch.setitem(table, name, f"{package.name}.{name}:{kind}")

    return add


def trained(
    split: Split,
    loss: tuple[str, dict[str, Any]],
    defense: tuple[str, dict[str, Any]],
    *,
    checkpoint: Checkpoint | None = None,
    validate: Callable[[Embedder], dict[str, float]] | None = None,
    epochs: int = 1,
) -> tuple[Embedder, Loss, History]:
    """Train for two steps per epoch with a loss and a defence by name, and check that the result can be evaluated."""
    model = build("conv4", 8, seed=0, statistics=split.statistics())
    with seeded_global(0, "loss"):
        made = find(LOSSES, loss[0], "loss")(6, 8, **loss[1])
    history = fit(
        model,
        split,
        made,
        find(DEFENSES, defense[0], "defense")(**defense[1]),
        Schedule(epochs=epochs, batches=2, classes=3, images_per_class=3, learning_rate=1e-2),
        seed=0,
        validate=validate or validator(split, queries=6, eps=0.03, steps=1, seed=0),
        checkpoint=checkpoint,
        report=lambda line: None,
        timing=lambda line: None,
    )
    r1 = Search.over(model, split).natural().r1.float().mean()
    if validate is None:
        assert float(r1) == history.epochs[history.chosen]["natural"], "what validation saw is what was kept"
    return model, made, history


TRIPLET = ("triplet", {"miner": "random"})
STANDARD = ("standard", {})
QUERY = ("robust", {"target": "query", "eps": 0.03, "steps": 1})


@pytest.mark.parametrize("defense", [STANDARD, QUERY, ("single_step", {})])
def test_a_loss_with_proxies_of_its_own(added: Callable, toy_split: Split, defense: tuple) -> None:
    added(LOSSES, "proxies", "Proxies", PROXIES)
    with seeded_global(0, "loss"):
        fresh = find(LOSSES, "proxies", "loss")(6, 8)
    _, loss, _ = trained(toy_split, ("proxies", {"scale": 8.0}), defense)
    assert not torch.equal(loss.proxies, fresh.proxies), "its proxies were trained"
    _, again, _ = trained(toy_split, ("proxies", {"scale": 8.0}), defense)
    assert torch.equal(loss.proxies, again.proxies)


@pytest.mark.parametrize("defense", [STANDARD, QUERY, ("single_step", {})])
def test_a_loss_on_the_similarities_of_the_batch(added: Callable, toy_split: Split, defense: tuple) -> None:
    added(LOSSES, "similarities", "Similarities", SIMILARITIES)
    model, _, history = trained(toy_split, ("similarities", {}), defense)
    other, _, _ = trained(toy_split, ("similarities", {"temperature": 1.0}), defense)
    assert history.epochs[0]["loss"] > 0
    assert not torch.equal(model.head.weight, other.head.weight)


@pytest.mark.parametrize("defense", [STANDARD, QUERY, ("single_step", {})])
@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "ProxyAnchorLoss"])
def test_a_loss_of_pytorch_metric_learning(toy_split: Split, defense: tuple, name: str) -> None:
    _, loss, history = trained(toy_split, ("pml", {"name": name, "alpha": 4}), defense)
    assert loss.loss.alpha == 4
    assert history.epochs[0]["loss"] > 0


def test_a_defence_with_state_over_epochs_and_its_own_selection(
    added: Callable, toy_split: Split, tmp_path: Path
) -> None:
    added(DEFENSES, "destination", "Destination", DESTINATION)
    calls: list[float] = []

    def validate(model: Embedder) -> dict[str, float]:
        calls.append(0.1 * len(calls))
        if stop_after is not None and len(calls) > stop_after:
            raise KeyboardInterrupt
        return {"natural": calls[-1]}

    stop_after = None
    whole, _, history = trained(toy_split, TRIPLET, ("destination", {}), validate=validate, epochs=3)
    assert history.chosen == 0, "it selects the lowest natural score"
    checkpoint = Checkpoint(tmp_path / "state.pt", "key")
    calls, stop_after = [], 1
    with pytest.raises(KeyboardInterrupt):
        trained(toy_split, TRIPLET, ("destination", {}), validate=validate, epochs=3, checkpoint=checkpoint)
    assert 0 < checkpoint.load()["defense"]["last"] != 0.2
    stop_after = None
    resumed, _, again = trained(
        toy_split, TRIPLET, ("destination", {}), validate=validate, epochs=3, checkpoint=checkpoint
    )
    assert [epoch["loss"] for epoch in again.epochs] == [epoch["loss"] for epoch in history.epochs]
    assert torch.equal(whole.head.weight, resumed.head.weight)


def test_a_defence_that_perturbs_all_three_roles(added: Callable, toy_split: Split) -> None:
    added(DEFENSES, "jointly", "Jointly", JOINTLY)
    jointly, _, history = trained(toy_split, TRIPLET, ("jointly", {"eps": 0.05}))
    clean, _, natural = trained(toy_split, TRIPLET, STANDARD)
    assert history.epochs[0]["loss"] > natural.epochs[0]["loss"], "its tuples are harder"
    assert not torch.equal(jointly.head.weight, clean.head.weight)


def test_a_misspelt_name_suggests_the_right_one() -> None:
    with pytest.raises(ValueError, match="defense 'robst' is unknown; did you mean 'robust'"):
        find(DEFENSES, "robst", "defense")
