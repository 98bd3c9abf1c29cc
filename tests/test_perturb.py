"""`dml.perturb`: the optimum of a linear model, in the ball, and the model as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dml
from dml.attacks import ATTACKS

EPS = 0.04


class Lengths(nn.Module):
    """Embeddings of any length, as models of pytorch-metric-learning give them; BatchNorm shows the mode."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.layers(images).flatten(1)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Eight classes of four images that share a pattern."""
    draw = torch.Generator().manual_seed(1)
    patterns = torch.rand(8, 3, 12, 12, generator=draw).repeat_interleave(4, 0)
    noise = 0.1 * torch.randn(32, 3, 12, 12, generator=draw)
    return (patterns + noise).clamp(0, 1), torch.arange(8).repeat_interleave(4)


def right(model: nn.Module, queries: Tensor, items: Tensor, labels: Tensor, *, same: bool) -> Tensor:
    """Whether the nearest item is of the query's class; ``same`` leaves out the query itself."""
    with torch.no_grad():
        similarity = F.normalize(model(queries), dim=1) @ F.normalize(model(items), dim=1).T
    if same:
        similarity.fill_diagonal_(-2)
    return labels[similarity.argmax(1)] == labels


def test_queries_break_within_the_ball_and_the_model_stays_as_it_was(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = Lengths().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.layers[0].weight.grad = torch.ones_like(model.layers[0].weight)
    with torch.no_grad():  # as a caller may have it
        found = dml.perturb(model, images, labels, eps=EPS, steps=20, classes=3)
    assert (found - images).abs().max() <= EPS + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.layers[0].weight.grad, torch.ones_like(model.layers[0].weight))
    model.eval()
    kept, left = (right(model, queries, images, labels, same=True).sum() for queries in (images, found))
    assert left < kept / 2


def test_it_finds_the_optimum_of_a_linear_model() -> None:
    """Two items: a query breaks from the radius on at which the largest change of their difference reaches it."""
    torch.manual_seed(0)
    map_ = torch.randn(3 * 16, 4, dtype=torch.float64)

    def embed(images: Tensor) -> Tensor:
        return (images.double().flatten(1) - 0.5) @ map_

    query = torch.rand(1, 3, 4, 4).double() * 0.2 + 0.4
    items = F.normalize(torch.stack([embed(query)[0], -embed(query)[0] + torch.randn(4).double()]), dim=1)
    gap, change = embed(query)[0] @ (items[0] - items[1]), (map_ @ (items[0] - items[1])).abs().sum()
    radius = float(gap / change)
    labels, gallery = torch.tensor([0]), (items, torch.tensor([0, 1]))
    for factor, broken in ((0.98, False), (1.02, True)):
        found = dml.perturb(embed, query, labels, gallery=gallery, eps=factor * radius, steps=60, classes=0)
        assert bool(embed(found)[0] @ (items[1] - items[0]) >= 0) == broken


def test_the_length_of_embeddings_makes_no_difference(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    found = [dml.perturb(Lengths(factor), images, labels, eps=EPS, steps=5, classes=0) for factor in (1.0, 64.0)]
    assert torch.equal(*found)


def test_a_gallery_is_images_or_their_embeddings(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = Lengths().eval()
    queries, items = (images[::2], labels[::2]), (images[1::2], labels[1::2])
    given = {"eps": EPS, "steps": 5, "classes": 0}
    with torch.no_grad():
        embedded = model(items[0])
    first = dml.perturb(model, *queries, gallery=items, **given)
    assert torch.equal(first, dml.perturb(model, *queries, gallery=(embedded, items[1]), **given))
    precise = (embedded.double(), items[1].int())
    assert torch.equal(first, dml.perturb(model, *queries, gallery=precise, **given))
    assert not torch.equal(first, queries[0])


def test_inference_mode_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="forbids gradients; switch it off"):
        dml.perturb(Lengths(), *batch)


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"peer"}))
def test_every_attack_stays_in_its_ball(attack: str, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    found = dml.perturb(Lengths(), images, labels, eps=EPS, attack=attack)
    assert (found - images).abs().max() <= EPS + 1e-6
    assert not torch.equal(found, images)


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"peer", "square"}))
def test_every_attack_stays_in_an_l2_ball(attack: str, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    found = dml.perturb(Lengths(), images, labels, eps=1.5, norm="l2", attack=attack)
    assert (found - images).flatten(1).norm(dim=1).max() <= 1.5
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(found, images)


def test_a_radius_may_be_text(batch: tuple[Tensor, Tensor]) -> None:
    found = [dml.perturb(Lengths(), *batch, eps=eps, steps=2, classes=0) for eps in (8 / 255, "8/255")]
    assert torch.equal(*found)


def test_formats_that_a_training_computes_in_change_nothing(batch: tuple[Tensor, Tensor]) -> None:
    """An attack in bfloat16 would end on the first step: its scores hold three digits."""
    images, labels = batch
    given = {"eps": EPS, "steps": 5, "classes": 0}
    wanted = dml.perturb(Lengths(), images, labels, **given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dml.perturb(Lengths(), images, labels, **given), wanted)
    short = dml.perturb(Lengths(), images.bfloat16(), labels, **given)
    assert short.dtype == torch.float32
    assert EPS - 1e-3 < (short - images.bfloat16().float()).abs().max() <= EPS + 1e-6


class Detached(nn.Module):
    """Its weights have gradients, and images have none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.detach().flatten(1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"eps": 8}, r"eps is 8\.0; pixels lie in"),
        ({"norm": "l1"}, "norm 'l1' is unknown"),
        ({"norm": "l2", "eps": -1.0}, "eps is -1.0; it must be a number of at least 0"),
        ({"norm": "l2", "eps": float("nan")}, "eps is nan; it must be a number of at least 0"),
        ({"attack": "pdg"}, "attack 'pdg' is unknown; did you mean 'pgd'?"),
        ({"step": 3}, "soft_margin"),
        ({"images": 255 * torch.ones(2, 3, 4, 4)}, "images lie between 255 and 255; they must lie in"),
        ({"images": torch.ones(2, 3, 4, 4, dtype=torch.uint8)}, "images must be a float tensor"),
        ({"labels": torch.tensor([0])}, "labels must be a tensor of 2 whole numbers, one for each of images"),
        ({"labels": torch.tensor([0.2, 0.7])}, "labels must be a tensor of 2 whole numbers"),
        ({"eps": "8/2x5"}, "eps is '8/2x5'; give a number such as 8/255"),
        ({"norm": "l2", "attack": "square"}, "norm is l2; the attack square is for linf alone"),
        ({"gallery": torch.rand(4, 3, 4, 4)}, "gallery must be a pair: images or embeddings, and their labels"),
        (
            {"gallery": (torch.rand(4, 7), torch.tensor([0, 0, 1, 1]))},
            "the gallery's embeddings have 7 dimensions; embed gives 48",
        ),
        ({"labels": torch.tensor([0, 1])}, "a query of class 0 needs items of its class and of another in the batch"),
        ({"images": torch.empty(0, 3, 4, 4)}, "images must be a float tensor"),
        (
            {"embed": lambda images: images.detach().flatten(1)},
            "embed gives no gradients; take an attack that needs none",
        ),
        ({"embed": Detached()}, "embed gives no gradients; take an attack that needs none"),
        ({"embed": lambda images: images.flatten(1) / 0}, "2 of 2 embeddings hold NaN or infinity"),
    ],
)
def test_wrong_arguments_get_one_sentence(changes: dict[str, object], sentence: str) -> None:
    given = {"embed": nn.Flatten(), "images": torch.rand(2, 3, 4, 4), "labels": torch.tensor([0, 0])} | changes
    with pytest.raises(ValueError, match=sentence):
        dml.perturb(**given)
