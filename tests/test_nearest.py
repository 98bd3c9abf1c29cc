"""The nearest-neighbour defence: its cost by hand, its adversary by brute force, and whom it leaves out."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dml.defenses.nearest import Nearest
from dml.losses.triplet import Triplet

LABELS = torch.tensor([0, 0, 1, 1, 2])
EPS = 0.1


class Circle(nn.Module):
    """The image's first pixel is an angle; the model remembers the images of its training passes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        angle = self.scale * images[:, 0, 0, 0]
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def batch() -> Tensor:
    images = torch.full((5, 3, 1, 1), 0.5)
    images[:, 0, 0, 0] = torch.tensor([0.20, 0.30, 0.60, 0.75, 0.95])
    return images


def losses(model: Circle, generator: torch.Generator, **settings: float) -> Tensor:
    loss = Triplet(3, 2, miner="random")
    return Nearest(**{"eps": EPS, "steps": 5, **settings})(model, batch(), LABELS, loss, generator)


def test_the_cost_is_that_of_soft_neighbours_by_hand(generator: torch.Generator) -> None:
    model = Circle().train()
    found = losses(model, generator, eps=0.0, temperature=0.5)
    angles = (3 * batch()[:, 0, 0, 0]).tolist()
    for query in range(4):  # the fifth has no other image of its class, and costs nothing
        odds = {True: 0.0, False: 0.0}
        for other in range(5):
            if other != query:
                same = bool(LABELS[other] == LABELS[query])
                odds[same] += math.exp(math.cos(angles[query] - angles[other]) / 0.5)
        assert found[query].item() == pytest.approx(math.log(1 + odds[False] / odds[True]), rel=1e-5)
    assert len(found) == 4


def test_the_adversary_moves_each_query_towards_its_nearest_wrong_image(generator: torch.Generator) -> None:
    """On a circle: a query between two classes is best moved by the whole radius, towards the wrong side."""
    model = Circle().train()
    losses(model, generator, steps=20)
    clean, perturbed = model.seen[0], model.seen[1]
    moved = (perturbed - clean[:4])[:, 0, 0, 0]
    torch.testing.assert_close(moved, torch.tensor([EPS, EPS, -EPS, EPS]), atol=1e-6, rtol=0)
    assert (perturbed - clean[:4]).abs().max() <= EPS


def test_a_perturbed_query_costs_more_and_the_gradient_reaches_both_sides(generator: torch.Generator) -> None:
    model = Circle().train()
    attacked, clean = losses(model, generator), losses(Circle().train(), generator, eps=0.0)
    assert (attacked > clean).all()
    attacked.mean().backward()
    assert model.scale.grad.abs() > 0
    assert model.training


def test_the_metric_loss_is_added_with_its_weight() -> None:
    draws = [torch.Generator().manual_seed(3) for _ in range(3)]
    none, half, one = (losses(Circle().train(), draw, natural=w) for draw, w in zip(draws, (0, 0.5, 1), strict=True))
    torch.testing.assert_close(one - none, 2 * (half - none))
    assert (one > none).all()
    assert torch.unique((one - none).round(decimals=5)).numel() == 1, "its mean, for every query"


def test_embeddings_under_autocast_are_compared_in_full_precision(generator: torch.Generator) -> None:
    """Neighbours on the sphere that bfloat16 cannot tell apart."""

    class Close(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return normalize(torch.tensor([1.0, 0.0]) + 1e-3 * images[:, :2, 0, 0], dim=1)

    loss = Triplet(3, 2, miner="random")
    defense, images = Nearest(eps=0.0, steps=1, temperature=1e-6), batch()
    plain = defense(Close().train(), images, LABELS, loss, generator)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(defense(Close().train(), images, LABELS, loss, generator), plain)


def test_a_batch_of_one_class_is_refused(generator: torch.Generator) -> None:
    loss, images = Triplet(3, 2, miner="random"), batch()
    with pytest.raises(ValueError, match="the batch has no tuple; it needs two images of a class, and one of another"):
        Nearest(eps=0.0, steps=1)(Circle(), images, torch.zeros_like(LABELS), loss, generator)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"natural": -1.0}, "natural is -1.0; it must be at least 0"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
    ],
)
def test_wrong_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nearest(**settings)
