"""The certificate: sound where the truth is known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dml.data.base import Split
from dml.evaluation.suites.certified import Certified, certified_radius, class_votes
from dml.models.embedder import build
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.index import Search


class Line(nn.Module):
    """Images -> (<w, x> - b, 1): with items (-1, 1) and (1, 1) the nearest is told by the side of a hyperplane."""

    def __init__(self, weight: Tensor, bound: float) -> None:
        super().__init__()
        self.weight, self.bound = nn.Parameter(weight), bound

    def forward(self, images: Tensor) -> Tensor:
        side = images.flatten(1) @ self.weight - self.bound
        return torch.stack([side, torch.ones_like(side)], dim=1)


@pytest.fixture
def line(generator: torch.Generator) -> Line:
    weight = torch.randn(48, generator=generator)
    return Line(weight, float(weight.sum()) / 2)


def test_no_certified_query_is_broken_inside_its_radius(line: Line, generator: torch.Generator) -> None:
    """Noise is symmetric, so the smoothed search decides by the same hyperplane as the search itself: the true radius
    is the distance to it. 10,000 tries for each query, of all lengths up to the certified one, and the worst direction.
    """
    images = torch.rand(20, 3, 4, 4, generator=generator)
    true_side = line(images)[:, 0]
    gallery = Gallery(torch.tensor([[-1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    queries = Queries((true_side > 0).long(), torch.full((20,), -1), torch.full((20,), -1))
    with torch.no_grad():
        radius = certified_radius(line, images, queries, gallery, 0.2, 500, 0.001, generator)
    distance = true_side.detach().abs() / line.weight.detach().norm()
    assert (radius[radius > 0] <= distance[radius > 0]).all()
    assert (radius > 0).float().mean() > 0.7, "most of them are certified at all"
    assert radius.max() > 0.2
    for row in (radius > 0).nonzero().flatten().tolist():
        direction = torch.randn(10_000, 48, generator=generator)
        direction[0] = -true_side[row].detach().sign() * line.weight.detach()
        length = torch.rand(10_000, 1, generator=generator)
        length[0] = 1
        tries = images[row].flatten() + direction / direction.norm(dim=1, keepdim=True) * length * radius[row]
        with torch.no_grad():
            side = line(tries)[:, 0]
        assert (side.sign() == true_side[row].sign()).all()


def test_a_wrong_answer_is_never_certified(line: Line, generator: torch.Generator) -> None:
    images = torch.rand(10, 3, 4, 4, generator=generator)
    gallery = Gallery(torch.tensor([[-1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    queries = Queries((line(images)[:, 0] <= 0).long(), torch.full((10,), -1), torch.full((10,), -1))
    with torch.no_grad():
        radius = certified_radius(line, images, queries, gallery, 1e-4, 100, 0.001, generator)
    assert (radius == -1).all()


def test_votes_are_of_the_nearest_other_item(generator: torch.Generator) -> None:
    model = build("conv4", 8, seed=0)
    images = torch.rand(6, 3, 16, 16, generator=generator)
    with torch.no_grad():
        gallery = Gallery(model.eval()(images), torch.tensor([4, 4, 7, 7, 9, 9]))
    queries = Queries(gallery.labels, torch.arange(6), torch.arange(6))
    votes = class_votes(model, images, queries, gallery, 1e-6, 20, generator)
    similarity = (gallery.embeddings @ gallery.embeddings.T).fill_diagonal_(-2)
    expected = torch.searchsorted(torch.tensor([4, 7, 9]), gallery.labels[similarity.argmax(1)])
    assert torch.equal(votes.argmax(1), expected)
    assert (votes.sum(1) == 20).all()
    gallery = Gallery(gallery.embeddings, gallery.labels, torch.tensor([0, 1, 0, 1, 2, 3]))
    votes = class_votes(
        model, images, Queries(gallery.labels, gallery.groups, torch.arange(6)), gallery, 1e-6, 20, generator
    )
    similarity.masked_fill_(gallery.groups == gallery.groups[:, None], -2)
    expected = torch.searchsorted(torch.tensor([4, 7, 9]), gallery.labels[similarity.argmax(1)])
    assert torch.equal(votes.argmax(1), expected), "items of the query's group have no vote"


def test_the_suite_certifies_less_than_attacks_leave(toy_split: Split) -> None:
    search = Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), toy_split)
    suite = Certified(queries=6, eps=(0.0, 0.05, 2.0), sigma=0.05, samples=60, steps=3, draws=2)
    found = suite.evaluate(search, np.arange(6), seed=0, report=lambda line: None)
    assert set(found.outcomes["attack"]) == {"none", "certified", "smoothed", "base"}
    assert set(found.outcomes["norm"]) == {"l2"}
    left = found.outcomes.pivot_table(index="query", columns=["attack", "eps"], values="r1")
    for eps in (0.0, 0.05):
        assert (left[("certified", eps)] <= left[("smoothed", eps)]).all()
    assert 0.05 < suite.largest_radius < 2
    assert ("certified", 2.0) not in left, "of which so few samples can say nothing"
    assert ("smoothed", 2.0) in left
    with pytest.raises(ValueError, match="sigma is 0"):
        Certified(queries=1, eps=(0.1,), sigma=0)


def test_queries_apart_from_the_gallery_with_groups(toy_split: Split) -> None:
    groups = np.arange(36) // 4
    halves = [
        Split(toy_split.images[part::2], toy_split.labels[part::2], toy_split.class_names, groups[part::2])
        for part in (0, 1)
    ]
    search = Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), *halves)
    suite = Certified(queries=6, eps=(0.0,), sigma=1e-6, samples=60, steps=2, draws=1)
    rows = np.array([9, 1, 16, 4, 12, 7])
    outcomes = suite.evaluate(search, rows, seed=0, report=lambda line: None).outcomes
    natural = search.natural().r1.numpy()[rows]
    for _, table in outcomes.groupby("attack"):
        np.testing.assert_array_equal(table["r1"], natural, err_msg="hardly any noise, and nothing moves at eps 0")
