"""Gates for models from outside: a gradient that is not that of the outputs is seen, a right one is not accused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dml
from dml.api.embedding import Embedding
from dml.api.gates import GRADIENT, UNLIKE, gradient_gate
from dml.api.leaderboard.reports import Told, entries
from dml.api.result import Result
from dml.api.similarity import Unit, search_over
from dml.data.base import Split
from dml.evaluation.gates import Gate

SMALL = {"attacks": {"soft_margin": {"steps": 2, "classes": 1, "target_steps": 1}}, "gate_tries": 2, "queries": 20}


class Changed(nn.Module):
    """A network behind something that may change the gradient, or the outputs."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten())
        self.before = before
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.before(images))


def rounded(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


def half_hidden(images: Tensor) -> Tensor:
    top, bottom = images.tensor_split(2, dim=2)
    return torch.cat([top, bottom.detach()], dim=2)


def negated(images: Tensor) -> Tensor:
    return 2 * images.detach() - images


def shuffled(images: Tensor) -> Tensor:
    """The outputs of the image, the gradient of its pixels in another order."""
    moved = images.flip((2, 3))
    return images.detach() + moved - moved.detach()


def gate(model: nn.Module, split: Split, similarity: str = "cosine", eps: float = 8 / 255) -> Gate:
    search = search_over(Embedding(model, torch.device("cpu")), split, None, similarity)
    return gradient_gate(search, np.arange(20), eps, 0)


RIGHT = {
    "as it is": lambda images: images,
    "clamped": lambda images: images.clamp(0.1, 0.9),
    "rounded to 8 bits, passed straight through": lambda images: images + (rounded(images) - images).detach(),
    "faint": lambda images: images * 1e-3,
}
WRONG = {"half hidden": half_hidden, "negated": negated, "of other pixels": shuffled, "none": rounded}


@pytest.mark.parametrize("before", RIGHT.values(), ids=RIGHT)
def test_a_right_gradient_is_not_accused(before: Callable[[Tensor], Tensor], toy_split: Split) -> None:
    found = gate(Changed(before), toy_split)
    assert found.passed
    assert found.measured < UNLIKE / 2


@pytest.mark.parametrize("before", WRONG.values(), ids=WRONG)
def test_a_wrong_gradient_is_seen(before: Callable[[Tensor], Tensor], toy_split: Split) -> None:
    assert not gate(Changed(before), toy_split).passed


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_a_linear_embedding_has_no_difference(similarity: str, toy_split: Split) -> None:
    """Differences of a linear function are its derivatives exactly, but for the length of the query's vector."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).eval()
    assert gate(linear, toy_split, similarity).measured < 0.01


def evaluate(before: Callable[[Tensor], Tensor], split: Split) -> Result:
    common = {"eps": [0.02, 0.05], "suite": SMALL, "controls": (), "report": lambda line: None}
    return dml.evaluate(Changed(before), split.images, split.labels, **common)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_queries_are_looked_at_along_more_directions(count: int, toy_split: Split) -> None:
    search = search_over(Embedding(Changed(half_hidden), torch.device("cpu")), toy_split, None, "cosine")
    found = [gradient_gate(search, np.arange(first, first + count), 8 / 255, 0) for first in range(10)]
    assert not any(gate.passed for gate in found)


@pytest.mark.parametrize("length", [0.0, 1e-7, 1e-3, 1e7])
def test_embeddings_along_one_axis_have_the_gradient_of_a_direction(length: float) -> None:
    """Nothing along the embedding itself, and for the zero vector something that an attack can follow."""
    embedding = torch.tensor([[length, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad((Unit(nn.Identity())(embedding) * torch.tensor([1.0, 2.0, 3.0])).sum(), embedding)
    if length:
        torch.testing.assert_close(gradient * length, torch.tensor([[0.0, 2.0, 3.0]]))
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_an_evaluation_says_so(toy_split: Split) -> None:
    found = evaluate(half_hidden, toy_split)
    assert GRADIENT in set(found.failed["gate"])
    assert f"{GRADIENT} at 0.05" in " ".join(str(found).split())
    gates = evaluate(RIGHT["as it is"], toy_split).gates
    of = gates[gates["gate"] == GRADIENT]
    assert of["eps"].tolist() == [0.02, 0.05]
    assert of["passed"].all()


def test_the_leaderboard_wants_the_gradient_checked(toy_split: Split, tmp_path: Path) -> None:
    found = evaluate(RIGHT["as it is"], toy_split)
    found.save(tmp_path)
    told = Told("a model", "somebody", "https://example.org", "toy", "two convolutions", "toy")
    assert len(entries(tmp_path, told, show_failing=True)) == 2
    file = tmp_path / "result.json"
    report = json.loads(file.read_text())
    report["gates"] = [row for row in report["gates"] if row["gate"] != GRADIENT]
    file.write_text(json.dumps(report))
    with pytest.raises(ValueError, match="gates do not check gradients; evaluate the model again"):
        entries(tmp_path, told, show_failing=True)


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-13, 1e-7, 1e7, 1e19, 1e30])
def test_cosine_similarity_has_no_scale(scale: float) -> None:
    """Neither the unit vectors nor the direction of the gradient change with the length of embeddings."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, bias=False)
    images = torch.rand(5, 6, requires_grad=True)
    weights = torch.randn(5, 4)

    def of(times: float) -> tuple[Tensor, Tensor]:
        unit = Unit(nn.Sequential(linear, Times(times)))(images)
        (gradient,) = torch.autograd.grad((unit * weights).sum(), images)
        return unit, gradient

    unit, gradient = of(scale)
    expected, direction = of(1.0)
    assert torch.allclose(unit, expected, atol=1e-5)
    assert F.cosine_similarity(gradient, direction, dim=1).min() > 1 - 1e-5


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor
