"""Controls: what they compare, and that their certificates hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dml.attacks.balls import L2, Linf
from dml.attacks.objectives.margin import margin_objective, targeted_objective
from dml.attacks.optimisers.apgd import apgd
from dml.attacks.optimisers.pgd import value_and_gradient
from dml.common.table import find
from dml.data.base import Split
from dml.evaluation import CONTROLS, gates
from dml.evaluation.controls import ColourHistogram, PooledPixels, SoftHistogram, certificate
from dml.evaluation.suites.attacks import AttackSuite
from dml.models.embedder import device_of
from dml.retrieval.index import Search

SUITE = {"margin": {"steps": 10}, "targeted": {"steps": 5, "classes": 3}}


def noisy_split(seed: int, classes: int, each: int, side: int, noise: float = 25, groups: bool = False) -> Split:
    draw = np.random.default_rng(seed)
    patterns = draw.integers(60, 195, (classes, 1, 1, 3)) + draw.integers(-20, 20, (classes, side, side, 3))
    images = np.repeat(patterns, each, axis=0) + draw.normal(0, noise, (classes * each, side, side, 3))
    labels = np.repeat(np.arange(classes), each)
    names = [f"class {label}" for label in range(classes)]
    return Split(
        np.clip(images, 0, 255).astype(np.uint8), labels, names, np.arange(len(labels)) // 2 if groups else None
    )


def silent(line: str) -> None:
    """Progress is not looked at here."""


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_control_is_an_embedder_of_unit_vectors_in_float64(name: str) -> None:
    model = find(CONTROLS, name, "control")()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = model(images)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4, dtype=torch.float64))
    value, gradient = value_and_gradient(lambda images: (model(images) * found[0]).sum(1), images)
    assert value.dtype == torch.float64
    assert (gradient[1:] != 0).flatten(1).any(1).all(), "an attack sees where to go"
    assert (gradient.dtype, gradient.shape) == (images.dtype, images.shape)


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_control_says_where_it_is(name: str) -> None:
    """Else it would stay on the CPU when the models beside it are on a GPU; what says so is no weight."""
    model = find(CONTROLS, name, "control")()
    assert device_of(model).type == "cpu"
    assert device_of(model.to("meta")).type == "meta"
    assert "place" not in model.state_dict()


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_control_is_attacked_by_the_same_suite_with_gates(name: str) -> None:
    search = Search.over(find(CONTROLS, name, "control")(), noisy_split(0, 4, 3, 16))
    suite = AttackSuite(12, (0.02, 0.5), SUITE, claims=True, gate_tries=5)
    outcomes = suite.evaluate(search, np.arange(12), seed=0, report=silent).outcomes
    r1 = outcomes.groupby(["attack", "eps"])["r1"].mean()
    assert r1["none", 0.0] > 0.5
    assert r1["worst", 0.5] <= r1["worst", 0.02]
    table = gates.check(search, suite, outcomes, seed=0, surrogates={}, report=silent).set_index("gate")
    assert table.loc[["float32 and exact ranking disagree"], "passed"].all()
    assert ("certified queries that the attack broke" in table.index) == name.startswith("pixels")


def test_pooled_pixels_rank_as_euclidean_distance_does() -> None:
    images = torch.rand(40, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = PooledPixels(8)(images)
    small = images.double().unfold(2, 4, 4).unfold(3, 6, 6).mean((4, 5)).flatten(1)
    apart = torch.cdist(small, small)
    assert torch.equal((found @ found.T).argsort(1, descending=True)[:, :10], apart.argsort(1)[:, :10])
    torch.testing.assert_close(2 - 2 * found @ found.T, apart.square() / 1e6, atol=1e-9, rtol=0)


def test_the_side_must_divide_that_of_the_images() -> None:
    with pytest.raises(ValueError, match="side is 5; it must divide the sides of the images, 16 and 32"):
        PooledPixels(5)(torch.rand(1, 3, 16, 32))


def naive(split: Split, side: int, eps: float, norm: str, row: int) -> float:
    """How far a query is from losing its certificate, by the formula for Euclidean distances and a plain loop."""
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).double() / 255
    block = images.shape[2] // side
    small = images.unfold(2, block, block).unfold(3, block, block).mean((4, 5)).flatten(1)
    groups = np.arange(len(split)) if split.groups is None else split.groups
    best = -np.inf
    for p in range(len(split)):
        if split.labels[p] != split.labels[row] or groups[p] == groups[row]:
            continue
        worst = np.inf
        for n in range(len(split)):
            if split.labels[n] == split.labels[row] or groups[n] == groups[row]:
                continue
            apart = small[n] - small[p]
            # P^T spreads each average over its box: block**2 pixels with a share of 1 / block**2 each.
            spread = apart.repeat_interleave(block**2) / block**2
            reach = 2 * eps * float(spread.abs().sum() if norm == "linf" else spread.norm())
            lead = float((small[row] - small[n]).square().sum() - (small[row] - small[p]).square().sum())
            worst = min(worst, lead - reach)
        best = max(best, worst)
    return best


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    eps=st.sampled_from([0.0, 0.02, 0.05, 0.1]),
    norm=st.sampled_from(["linf", "l2"]),
    groups=st.booleans(),
)
def test_the_certificate_equals_brute_force(seed: int, eps: float, norm: str, groups: bool) -> None:
    split = noisy_split(seed, 3, 4, 4, noise=60, groups=groups)
    search = Search.over(PooledPixels(2), split)
    found = certificate(search, np.arange(12), norm, eps * (1 if norm == "linf" else 5))
    for row in range(12):
        lead = naive(split, 2, eps * (1 if norm == "linf" else 5), norm, row)
        if abs(lead) > 1e-4:  # the formula for Euclidean distances holds up to 1 / 1e3**2
            assert bool(found[row]) == (lead > 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("apart", [False, True])
def test_no_attack_breaks_a_certified_query(norm: str, apart: bool) -> None:
    splits = [noisy_split(1, 5, 6, 8, noise=70)]
    if apart:
        whole = splits[0]
        splits = [Split(whole.images[part::2], whole.labels[part::2], whole.class_names) for part in (0, 1)]
    search = Search.over(PooledPixels(4), *splits)
    rows = np.arange(len(search))
    images, queries = search.images(rows), search.queries(rows)
    ball = Linf(0.03) if norm == "linf" else L2(0.15)
    safe = certificate(search, rows, norm, ball.eps)
    assert 0.1 < safe.double().mean() < 0.9
    survives = search.margin(images, queries) < 0
    assert survives[safe].all()
    objectives = [margin_objective(search.model, queries, search.gallery)]
    for label in range(5):
        target = torch.where(queries.labels == label, (label + 1) % 5, label)
        objectives.append(targeted_objective(search.model, queries, search.gallery, target))
    for place, objective in enumerate(objectives):
        found = apgd(images, objective, ball, steps=30, generator=torch.Generator().manual_seed(place))
        survives &= search.margin(found, queries) < 0
    assert survives[safe].all()
    assert survives.sum() < len(search), "the attack breaks others"


def test_the_certificate_is_tight_with_one_right_and_one_wrong_item() -> None:
    """Then the ranking is a half space: just inside the certified radius no image breaks, just outside one does."""
    draw = np.random.default_rng(3)
    images = draw.integers(100, 155, (3, 4, 4, 3)).astype(np.uint8)
    images[0] = (0.6 * images[1].astype(float) + 0.4 * images[2]).round()
    search = Search.over(PooledPixels(2), Split(images, np.array([0, 0, 1]), ["a", "b"]))
    low, high = 0.0, 0.5
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if bool(certificate(search, np.array([0]), "linf", middle)) else (low, middle)
    assert 0.001 < low < 0.2
    small = PooledPixels(2).pooled(search.images(np.arange(3)))
    sign = (small[2] - small[1]).sign().view(1, 3, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    queries = search.queries(np.array([0]))

    def margin(eps: float) -> Tensor:
        return search.margin(search.images(np.array([0])).double() + eps * sign, queries)

    assert margin(low * 0.999) < 0
    assert margin(low * 1.001) >= 0


def test_colour_histograms_compare_by_bhattacharyyas_coefficient() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0, :2] = 1.0  # a quarter red, the rest black
    images[1, 0, :4] = 0.99  # half of it in the same cell
    described = ColourHistogram()(images)
    assert described.shape == (2, 512)
    np.testing.assert_allclose(described[0] @ described[1], (0.25 * 0.5) ** 0.5 + (0.75 * 0.5) ** 0.5, rtol=1e-6)
    same = ColourHistogram()(images.clone().requires_grad_(True)).detach()
    torch.testing.assert_close(same, described, atol=1e-12, rtol=0)


def test_the_gradient_of_a_colour_histogram_leads_to_the_next_cell() -> None:
    """Two shades of grey, one just below a cell's border: a small step upwards makes the histograms equal."""
    model = ColourHistogram()
    dark, bright = torch.full((1, 3, 6, 6), 0.49), torch.full((1, 3, 6, 6), 0.51)
    with torch.no_grad():
        target = model(bright)
        assert float((model(dark) * target).sum()) == 0
    found = apgd(
        dark,
        lambda images: (model(images) * target).sum(1),
        Linf(0.02),
        steps=10,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        assert float((model(found) * target).sum()) == pytest.approx(1)


def test_a_soft_histogram_withstands_what_does_not_reach_another_colour() -> None:
    """Two colours a whole grid apart: no small perturbation takes an image to the other, half the range does."""
    images = np.full((8, 12, 12, 3), 51, dtype=np.uint8)
    images[4:] = 204
    search = Search.over(SoftHistogram(), Split(images, np.repeat([0, 1], 4), ["dark", "bright"]))
    suite = AttackSuite(8, (0.01, 0.5), SUITE)
    left = suite.evaluate(search, np.arange(8), seed=0, report=silent).outcomes.groupby(["attack", "eps"])["r1"].mean()
    assert (left["none", 0.0], left["worst", 0.01], left["worst", 0.5]) == (1, 1, 0)


def test_a_soft_histogram_is_the_same_for_a_mirrored_image() -> None:
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SoftHistogram()(images.flip(3)), SoftHistogram()(images))
