"""The linear metric: its certificate is sound, and training ends where the closed form says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import EPS, FIGURES, record, row

from dml.attacks.balls import L2, Linf
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.table import find
from dml.config.load import load as load_params
from dml.data.base import Dataset, Split
from dml.evaluation import CONTROLS, gates
from dml.evaluation.controls import PooledPixels, certificate
from dml.evaluation.linear_metric import RobustLinear
from dml.evaluation.suites.attacks import AttackSuite
from dml.models import linear_metric
from dml.models.linear_metric import Points, certified_margin, image, product, saturating
from dml.pipeline.digest import closure, control_digest
from dml.pipeline.stages import attack
from dml.reporting.sections import controls_section
from dml.reporting.spelling import control_kind, model_text
from dml.retrieval.index import Search


def noisy(seed: int, side: int = 8, classes: int = 4, each: int = 4, noise: float = 60, groups: bool = False) -> Split:
    draw = np.random.default_rng(seed)
    patterns = draw.integers(60, 195, (classes, 1, 1, 3)) + draw.integers(-20, 20, (classes, side, side, 3))
    images = np.repeat(patterns, each, axis=0) + draw.normal(0, noise, (classes * each, side, side, 3))
    labels = np.repeat(np.arange(classes), each)
    tracks = np.arange(len(labels)) // 2 if groups else None
    return Split(np.clip(images, 0, 255).astype(np.uint8), labels, [str(label) for label in range(classes)], tracks)


def random_metric(seed: int, side: int = 2) -> RobustLinear:
    size = 3 * side**2
    matrix = torch.eye(size) + 0.3 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return RobustLinear(side, matrix / torch.linalg.matrix_norm(matrix, 2))


def silent(line: str) -> None:
    """Progress is not looked at here."""


def test_similarity_ranks_as_the_distance_in_the_metric_does() -> None:
    model = random_metric(0, 4)
    images = torch.rand(30, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    found = model(images)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.norm(dim=1), torch.ones(30, dtype=torch.float64))
    mapped = model.pooled(images) @ model.matrix.T
    assert torch.equal((found @ found.T).argsort(1, descending=True), torch.cdist(mapped, mapped).argsort(1))


def test_with_the_identity_it_is_pooled_pixels() -> None:
    split = noisy(0, groups=True)
    plain, linear = Search.over(PooledPixels(4), split), Search.over(RobustLinear(4), split)
    assert torch.equal(plain.gallery.embeddings, linear.gallery.embeddings)
    rows, shares = np.arange(len(split)), []
    for norm, eps in [("linf", 0.0), ("linf", 0.02), ("linf", 0.05), ("l2", 0.1), ("l2", 0.3)]:
        safe = linear.model.certify(linear, rows, norm, eps)
        assert torch.equal(safe, certificate(plain, rows, norm, eps))
        shares.append(float(safe.double().mean()))
    assert 0 < min(shares) < max(shares) <= 1


def naive(model: RobustLinear, split: Split, q: int, norm: str, eps: float) -> float:
    """The best right item's lead after the worst perturbation, image by image, by the formula for distances."""
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).double() / 255
    mapped = model.pooled(images) @ model.matrix.T
    block = images.shape[2] // model.side
    groups = np.arange(len(split)) if split.groups is None else split.groups
    right = [n for n in range(len(split)) if split.labels[n] == split.labels[q] and groups[n] != groups[q]]
    wrong = [n for n in range(len(split)) if split.labels[n] != split.labels[q] and groups[n] != groups[q]]

    def left(p: int, n: int) -> float:
        spread = (model.matrix.T @ (mapped[n] - mapped[p])).repeat_interleave(block**2) / block**2
        lead = (mapped[q] - mapped[n]).square().sum() - (mapped[q] - mapped[p]).square().sum()
        return float(lead - 2 * eps * (spread.abs().sum() if norm == "linf" else spread.norm()))

    return max((min(left(p, n) for n in wrong) for p in right), default=-np.inf)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    eps=st.sampled_from([0.0, 0.02, 0.05]),
    norm=st.sampled_from(["linf", "l2"]),
    groups=st.booleans(),
)
def test_the_certificate_equals_brute_force(seed: int, eps: float, norm: str, groups: bool) -> None:
    model, split = random_metric(seed), noisy(seed, side=4, classes=3, groups=groups)
    eps = eps if norm == "linf" else 5 * eps
    found = model.certify(Search.over(model, split), np.arange(12), norm, eps)
    for place in range(12):
        lead = naive(model, split, place, norm, eps)
        if abs(lead) > 1e-4:  # the formula for Euclidean distances holds up to 1 / 1e3**2
            assert bool(found[place]) == (lead > 0)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), norm=st.sampled_from(["linf", "l2"]))
def test_no_perturbation_breaks_a_certified_query(seed: int, norm: str) -> None:
    """For each pair of a right and a wrong item the worst perturbation is known; then Auto-PGD, and the corners."""
    model, split = random_metric(seed), noisy(seed, side=4)
    search, rows = Search.over(model, split), np.arange(16)
    ball = Linf(0.03) if norm == "linf" else L2(0.1)
    safe = model.certify(search, rows, norm, ball.eps)
    images, queries = search.images(rows).double(), search.queries(rows)
    points = search.gallery.embeddings[:, :-1]
    for p in range(16):
        for n in range(0, 16, 3):
            # The gradient of the similarity to n less that to p, spread over the boxes of 2 x 2 pixels.
            pull = (model.matrix.T @ (points[n] - points[p])).view(1, 3, 2, 2)
            pull = pull.repeat_interleave(2, 2).repeat_interleave(2, 3)
            step = pull.sign() if norm == "linf" else pull / pull.norm().clamp_min(1e-30)
            assert (search.margin(images + ball.eps * step, queries)[safe] < 0).all()
    aim = margin_objective(model, queries, search.gallery)
    found = apgd(images, aim, ball, steps=20, generator=torch.Generator().manual_seed(seed))
    assert (search.margin(found, queries)[safe] < 0).all()
    corners = torch.randint(0, 2, (50, *images.shape), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    corners = corners if norm == "linf" else corners / corners.flatten(2).norm(dim=2)[..., None, None, None]
    for corner in corners:
        assert (search.margin(images + ball.eps * corner, queries)[safe] < 0).all()


def test_attacks_leave_no_less_than_is_certified() -> None:
    search = Search.over(random_metric(2, 4), noisy(2, classes=5, each=5, noise=70))
    suite = AttackSuite(
        25, (0.01, 0.03), {"margin": {"steps": 20}, "targeted": {"steps": 10, "classes": 4}}, True, True, 5
    )
    outcomes = suite.evaluate(search, np.arange(25), seed=0, report=silent).outcomes
    left = outcomes.pivot(index="query", columns=["attack", "eps"], values="r1")
    for eps in (0.01, 0.03):
        assert (left["worst", eps] >= left["certified", eps]).all()
        assert 0 < left["certified", eps].mean() < 1
    table = gates.check(search, suite, outcomes, seed=0, surrogates={}, report=silent).set_index("gate")
    assert table.loc[["certified queries that the attack broke"], "passed"].all()


@pytest.mark.parametrize("groups", [False, True])
def test_the_certified_margin_is_that_of_the_nearest_right_and_the_worst_wrong_item(groups: bool) -> None:
    split = noisy(3, side=2, groups=groups)
    draw = torch.Generator().manual_seed(0)
    factors = [torch.eye(n) + 0.2 * torch.randn(n, n, generator=draw) for n in (3, 2, 2)]
    matrix = torch.kron(factors[0], torch.kron(factors[1], factors[2]))
    points = PooledPixels(2).pooled(torch.from_numpy(split.images).permute(0, 3, 1, 2) / 255).float()
    torch.testing.assert_close(image(points, factors), points @ matrix.T)
    owners = torch.arange(16) if split.groups is None else torch.from_numpy(split.groups)
    found = certified_margin(factors, Points(points, torch.from_numpy(split.labels), owners), torch.arange(16), 0.02)
    mapped, tracks = points @ matrix.T, split.groups if groups else np.arange(16)
    for q in range(16):
        right = [n for n in range(16) if split.labels[n] == split.labels[q] and tracks[n] != tracks[q]]
        p = min(right, key=lambda n: float((mapped[q] - mapped[n]).square().sum()))
        worst = min(
            float((mapped[q] - mapped[n]).square().sum() - (mapped[q] - mapped[p]).square().sum())
            - 0.04 * float((matrix.T @ (mapped[n] - mapped[p])).abs().sum())
            for n in range(16)
            if split.labels[n] != split.labels[q]
        )
        assert float(found[q]) == pytest.approx(worst, abs=1e-4)


def test_the_loss_gives_up_hopeless_queries() -> None:
    margins = torch.tensor([-30.0, -1.0, 0.0, 1.0, 30.0], requires_grad=True)
    loss = saturating(margins, 1.0)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach()[[0, 2, 4]], torch.tensor([1.0, 0.5, 0.0]))
    pull = -margins.grad
    assert pull[2] == pull.max() == 0.25
    assert pull[[0, 4]].max() < 1e-9


def plain_colours(colours: list[tuple[int, int, int]], each: int = 3, labels: list[int] | None = None) -> Split:
    """Images of one colour, equal within a class."""
    images = np.repeat(np.array(colours, np.uint8), each, axis=0)[:, None, None].repeat(2, 1).repeat(2, 2)
    classes = np.repeat(np.arange(len(colours)) if labels is None else np.array(labels), each)
    return Split(images, classes, [str(label) for label in range(classes.max() + 1)])


# Two classes 18/255 apart in red and 8/255 in green. The query is as its right item, so with weights 1 and w the radius
# is (18^2 + w^2 8^2) / (2 (18 + w^2 8)) / 255: 7.46 with both features, 9 without green, and no metric reaches more.
# Two more pairs that lie apart are easier; a class of two images far from each other is hopeless.
PAIRS = [(60, 60, 60), (78, 68, 60), (200, 200, 60), (228, 208, 60), (150, 100, 240), (178, 108, 240)]
HELD_OUT = [(60, 160, 200), (78, 168, 200), (160, 60, 200), (178, 68, 200)]


def dataset(train: Split) -> Dataset:
    return Dataset(train, plain_colours(HELD_OUT), test=None)  # type: ignore[arg-type]  # a fit must not read it


@pytest.mark.parametrize("hopeless", [False, True])
def test_training_drops_the_feature_that_a_perturbation_overturns(hopeless: bool) -> None:
    train = plain_colours(PAIRS)
    if hopeless:
        far = plain_colours([(10, 240, 240), (240, 10, 240)], 1, [6, 6])
        train = Split(
            np.concatenate([train.images, far.images]), np.concatenate([train.labels, far.labels]), list("abcdefg")
        )
    data, told = dataset(train), []
    before = Search.over(RobustLinear(1), data.validation)
    rows = np.arange(len(data.validation))
    assert (before.natural().r1 == 1).all(), "both features together find every item"
    assert before.model.certify(before, rows, "linf", 7.4 / 255).all()
    assert not before.model.certify(before, rows, "linf", 7.5 / 255).any()
    model = RobustLinear.fit(data, 0, sides=[1], report=told.append)
    assert told[-1].endswith("certified R@1 on held-out classes 1.000")
    metric = model.matrix.T @ model.matrix
    assert metric[1, 1] / metric[0, 0] < 36 / 64, "the closed form's weight of green at which eps 8/255 is reached"
    after = Search.over(model, data.validation)
    assert model.certify(after, rows, "linf", EPS).all()
    assert not model.certify(after, rows, "linf", 9.001 / 255).any()


def test_without_a_perturbation_the_identity_stays() -> None:
    """It finds everything already, and only what is better on held-out classes replaces it."""
    model = RobustLinear.fit(dataset(plain_colours(PAIRS)), 0, sides=[1], eps=0.0, report=silent)
    assert torch.equal(model.matrix, torch.eye(3, dtype=torch.float64))


def test_fitting_is_deterministic_and_never_worse_than_pixels_on_held_out_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_metric, "STEPS", 40)
    data = Dataset(noisy(5, 16, 8, 6), noisy(6, 16, 4, 6), test=None)  # type: ignore[arg-type]
    fits = [RobustLinear.fit(data, seed, sides=(2, 5, 4), report=silent) for seed in (0, 0)]
    assert torch.equal(fits[0].matrix, fits[1].matrix)
    rows = np.arange(24)

    def share(model: PooledPixels) -> float:
        return float(model.certify(Search.over(model, data.validation), rows, "linf", EPS).double().mean())

    pixels = max(share(PooledPixels(side)) for side in (2, 4))
    assert share(fits[0]) >= pixels
    assert torch.linalg.matrix_norm(fits[0].matrix, 2) <= 1 + 1e-12


def test_the_spectral_norm_is_one_at_most() -> None:
    factors = [3 * torch.randn(n, n, generator=torch.Generator().manual_seed(n)) for n in (3, 4, 4)]
    assert 1 - 1e-9 < float(torch.linalg.matrix_norm(product(factors), 2)) <= 1


def test_what_cannot_be_fitted_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"images are 8 x 8; their sides must be multiples of one of \[3, 16\]"):
        RobustLinear.fit(Dataset(noisy(0), noisy(1), test=None), 0, sides=(3, 16))  # type: ignore[arg-type]
    alone = noisy(0, classes=4, each=1)
    with pytest.raises(ValueError, match="no training image has another of its class"):
        RobustLinear.fit(Dataset(alone, noisy(1), test=None), 0, sides=(2,))  # type: ignore[arg-type]


def test_a_control_under_attack_is_fitted_to_the_training_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_metric, "STEPS", 40)
    data = Dataset(noisy(5, 16, 8, 6), noisy(6, 16, 4, 6), noisy(7, 16, 4, 6))
    monkeypatch.setattr(attack, "open_data", lambda *_: data)
    settings = {"suites.quick.queries": 4}
    found = attack.open_target("glyphs", "none", "pixels_linear", 3, "quick", changes=settings).search
    wanted = RobustLinear.fit(replace(data, test=None), 3, report=silent)
    torch.testing.assert_close(found.model.matrix.cpu(), wanted.matrix)
    assert found.split is data.test


def test_a_fitted_control_is_not_called_untrained() -> None:
    fitted = {name for name in CONTROLS if hasattr(find(CONTROLS, name, "control"), "fit")}
    assert fitted == {name for name in CONTROLS if control_kind(name) == "fitted"} == {"pixels_linear"}
    assert control_kind("of_an_older_version") == "untrained"
    assert model_text("none", "pixels_linear") == "linear metric, fitted"
    assert model_text("none", "pixels_8") == "pixels 8, untrained"


def test_its_certificate_is_shown_as_that_of_pixels_is() -> None:
    rows = [row("none", 0.0, 320), row("certified", EPS, 40), row("worst", EPS, 60)]
    runs = [record("none", name, 0.8, 60, rows=rows) for name in ("pixels_8", "pixels_linear")]
    lines = controls_section(runs, FIGURES)
    shown = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines if line.startswith("|")}
    assert shown["linear metric"] == shown["pixels 8"]
    assert any("0.100 to 0.150" in cell for cell in shown["linear metric"])


def test_the_digest_of_the_control_covers_the_code_of_the_fit_and_the_data() -> None:
    module, _ = CONTROLS["pixels_linear"].split(":")
    assert {"dml.evaluation.linear_metric", "dml.models.linear_metric"} <= closure([module])
    recipe = load_params().recipe("glyphs")
    other = replace(recipe, data=replace(recipe.data, validation_fraction=0.3))
    assert control_digest(recipe, "pixels_linear") != control_digest(other, "pixels_linear")
    assert control_digest(recipe, "pixels_linear") != control_digest(recipe, "pixels_8")
