"""`dml.evaluate`: exact on linear models, equal to the pipeline, and the model left as it was."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dml
from dml.api import controls
from dml.api.embedding import Embedding, at_once
from dml.api.images import splits
from dml.api.report import page
from dml.api.similarity import search_over
from dml.api.summary import natural_scores
from dml.config.build.evaluation import suite as build_suite
from dml.data.base import Split
from dml.evaluation.controls import ColourHistogram
from dml.evaluation.engine import CHUNK
from dml.evaluation.statistics import wilson
from dml.models.embedder import build
from dml.retrieval.index import Search
from tests.conftest import LinearEmbedder

ATTACKS = {"margin": {"steps": 10}, "targeted": {"steps": 8, "classes": 7}}
LINEAR = {"queries": 100, "claims": False, "attacks": ATTACKS}
SMALL = {"queries": 12, "gate_tries": 5, "attacks": {"margin": {"steps": 6}, "targeted": {"steps": 4, "classes": 2}}}
SOFT = {"soft_margin": {"steps": 4, "classes": 2, "target_steps": 3}}
EPS = tuple(level / 255 for level in (1, 2, 4))


def silent(line: str) -> None:
    """Progress is not looked at here."""


def linear_images(each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Eight classes of images far enough from black and white that [0, 1] cuts no perturbation."""
    draw = np.random.default_rng(seed)
    patterns = np.random.default_rng(9).integers(100, 156, (8, 4, 4, 3)).repeat(each, axis=0)
    images = np.clip(patterns + draw.normal(0, 12, patterns.shape), 30, 225).astype(np.uint8)
    return images, np.arange(8).repeat(each)


def optimum(
    model: LinearEmbedder,
    query: np.ndarray,
    right: np.ndarray,
    wrong: np.ndarray,
    similarity: str,
    radii: tuple[float, ...] = EPS,
    dual: int = 1,
) -> np.ndarray:
    """The largest margin in each ball, in closed form: the margin to each wrong item is linear in the pixels.

    ``dual`` is the norm of the gradient that counts: 1 for l-inf balls, 2 for those of l2.
    """
    weight = model.weight.detach().numpy()

    def embedded(images: np.ndarray) -> np.ndarray:
        return (images.transpose(0, 3, 1, 2).reshape(len(images), -1) / 255) @ weight.T

    q, p, n = embedded(query[None])[0], embedded(right[None]), embedded(wrong)
    if similarity == "cosine":
        p, n = (items / np.linalg.norm(items, axis=1, keepdims=True) for items in (p, n))
    offset = (p**2).sum(1) / 2 - (n**2).sum(1) / 2 if similarity == "euclidean" else 0.0
    reach = np.linalg.norm((n - p) @ weight, ord=dual, axis=1)
    return np.array([((n - p) @ q + offset + eps * reach).max() for eps in radii])


def check(outcomes: pd.DataFrame, margins: dict[int, np.ndarray]) -> None:
    """Every query that is not exactly at the edge has the outcome that the optimum gives it."""
    found = outcomes[outcomes["attack"] == "worst"].pivot_table(index="query", columns="eps", values="r1")
    survives, optima = found.loc[list(margins)].to_numpy().astype(bool), np.stack(list(margins.values()))
    clear = np.abs(optima) > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(survives[clear], optima[clear] < 0)
    assert 0.1 < survives.mean() < 0.9, "some survive and some break"


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("case", ["one set", "apart", "groups"])
def test_linear_models_have_the_exact_outcome(similarity: str, case: str) -> None:
    model = LinearEmbedder(48, 24).eval()
    common = {"eps": EPS, "suite": LINEAR, "similarity": similarity, "controls": (), "report": silent}
    images, labels = linear_images(3 if case == "groups" else 2)
    if case == "apart":
        items, classes = images[::2], labels[::2]
        images, labels = images[1::2], labels[1::2]
        result = dml.evaluate(model, queries=(images, labels), gallery=(items, classes), **common)
        margins = {
            row: optimum(model, images[row], items[label], items[classes != label], similarity)
            for row, label in enumerate(labels)
        }
    else:
        # Of three images of a class, the first two are one group: each of them can only find the third.
        groups = np.arange(24) // 3 * 10 + np.arange(24) % 3 // 1.5 if case == "groups" else None
        result = dml.evaluate(model, images, labels, groups=groups, **common)
        rows = [row for row in range(len(images)) if case == "one set" or row % 3 < 2]
        margins = {
            row: optimum(
                model,
                images[row],
                images[row + 1 - 2 * (row % 2) if case == "one set" else row // 3 * 3 + 2],
                images[labels != labels[row]],
                similarity,
            )
            for row in rows
        }
    check(result.outcomes, margins)  # with groups, the third of each class has two right items and no closed form


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_reduced_similarities_rank_exactly(similarity: str) -> None:
    draw = torch.Generator().manual_seed(0)
    scales = torch.tensor([1e-3, 1.0, 30.0])[torch.arange(60) % 3, None]
    table = {"items": torch.randn(60, 5, generator=draw, dtype=torch.float64) * scales + 7}
    images = np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)

    def embed(given: Tensor) -> Tensor:
        return table["items"][(given[:, 0, 0, 0] * 255).round().long()]

    split = Split(images, np.arange(60) % 2, ["even", "odd"])
    search = search_over(Embedding(embed, torch.device("cpu")), split, None, similarity)
    found = search.query_embeddings @ search.gallery.embeddings.T
    a = table["items"]
    wanted = a @ a.T if similarity == "dot" else -torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist")
    np.testing.assert_array_equal(found.argsort(1).numpy(), wanted.argsort(1).numpy())
    for vectors in (search.query_embeddings, search.gallery.embeddings):
        np.testing.assert_allclose(vectors.norm(dim=1), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "attacks"), [("uint8", SMALL["attacks"]), ("float", SMALL["attacks"]), ("uint8", SOFT)]
)
def test_the_pipeline_gives_the_same_outcome(
    toy_split: Split, given: str, attacks: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random starts that differ by chunk: twelve queries are two chunks."""
    for module in ("dml.api.attack", "dml.evaluation.engine"):
        monkeypatch.setattr(f"{module}.chunk_size_for", lambda search: 7)
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    images = toy_split.images
    if given == "float":
        images = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    settings = SMALL | {"attacks": attacks, "claims": False}
    result = dml.evaluate(model, images, toy_split.labels, eps=(0.01, 0.05), suite=settings, controls=(), report=silent)
    search = Search.over(model, toy_split)
    suite = build_suite({"kind": "attacks", "eps": [0.01, 0.05], **settings})
    wanted = suite.evaluate(search, result.images.rows, seed=0, report=silent).outcomes
    keys = ["query", "attack", "eps"]
    found = result.outcomes[result.outcomes["attack"] != "map"].sort_values(keys)[wanted.columns]
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), wanted.sort_values(keys).reset_index(drop=True), check_dtype=False
    )


class Small(nn.Module):
    """A network with everything that has a state: BatchNorm, dropout, a frozen layer, a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten())
        self.head = nn.Linear(8 * 49, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net(images))


@pytest.mark.filterwarnings("ignore:the model is in training mode")
def test_the_model_comes_back_as_it_was(toy_split: Split) -> None:
    torch.manual_seed(0)
    model = Small().train()
    model.net[1].eval()
    model.net[0].weight.requires_grad_(False)
    model(torch.rand(4, 3, 16, 16)).sum().backward()
    state = copy.deepcopy(model.state_dict())
    gradients = {name: value.grad for name, value in model.named_parameters()}
    copies = {name: None if grad is None else grad.clone() for name, grad in gradients.items()}
    modes = [module.training for module in model.modules()]
    wanted = {name: value.requires_grad for name, value in model.named_parameters()}
    random = torch.get_rng_state()
    dml.evaluate(model, toy_split.images, toy_split.labels, eps=0.05, suite=SMALL, controls=(), report=silent)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert {name: value.requires_grad for name, value in model.named_parameters()} == wanted
    for name, value in model.named_parameters():
        assert value.grad is gradients[name]
        assert value.grad is None or torch.equal(value.grad, copies[name])
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_the_model_comes_back_after_an_error(toy_split: Split) -> None:
    model = Small().train()
    model.head = nn.Identity()
    model.net.append(nn.Unflatten(1, (8, 7, 7)))
    with pytest.raises(ValueError, match=r"embed gives shape \(8, 8, 7, 7\) for 8 images; it must be \(B, D\)"):
        dml.evaluate(model, toy_split.images, toy_split.labels, report=silent)
    assert model.training


@pytest.mark.filterwarnings("ignore:embed gives no gradients")
def test_a_function_without_gradients_is_a_black_box(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()

    def embed(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return model(images).numpy()

    small = {**SMALL, "queries": 6, "gate_tries": 20}
    result = dml.evaluate(embed, toy_split.images, toy_split.labels, eps=0.1, suite=small, controls=(), report=silent)
    assert set(result.outcomes["attack"]) == {"none", "noise", "worst"}
    assert result.cost["backward"] == 0
    assert result.gates.empty
    assert "black box" in str(result)
    assert "Gates were not run (the model gives no gradients)" in str(result)


def test_large_batches_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LinearEmbedder(3 * 4 * 4, 5)
    images = torch.rand(10, 3, 4, 4, dtype=torch.float64)

    def gradient() -> tuple[Tensor, Embedding]:
        embedding = Embedding(model, torch.device("cpu"))
        given = images.clone().requires_grad_(True)
        embedding(given).square().sum().backward(inputs=[given])
        return given.grad, embedding

    whole, counted = gradient()
    assert (counted.forwards, counted.backwards) == (10, 10)
    monkeypatch.setattr("dml.api.embedding.PIXELS", {"cpu": 3 * 16})
    parts, counted = gradient()
    torch.testing.assert_close(parts, whole)
    assert (counted.forwards, counted.backwards) == (20, 10), "each part is computed again for its gradient"


def test_l2_balls_have_the_exact_outcome(tmp_path: Path) -> None:
    model, radii = LinearEmbedder(48, 24).eval(), (0.02, 0.05, 0.1)
    images, labels = linear_images(2)
    given = {"suite": LINEAR, "similarity": "dot", "controls": (), "folder": tmp_path, "report": silent}
    result = dml.evaluate(model, images, labels, eps=radii, norm="l2", **given)
    margins = {
        row: optimum(
            model, images[row], images[row + 1 - 2 * (row % 2)], images[labels != labels[row]], "dot", radii, dual=2
        )
        for row in range(len(images))
    }
    check(result.outcomes, margins)
    moved = (result.images.adversarial - result.images.images).reshape(len(images), -1)
    assert np.linalg.norm(moved, axis=1).max() <= 0.1
    assert np.linalg.norm(moved, axis=1).max() > 0.09
    assert "seed 0, l2 ball" in str(result)
    assert "Gates were not run (they are for the l-inf ball)" in str(result)
    result.save(tmp_path / "report")
    assert dml.evaluate(model, images, labels, eps=radii, **given).about["key"] != result.about["key"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "; l2 ball; dot similarity" in page
    assert "/255" not in page.split("<h2>Settings")[0]
    own = {"norm": "l2", "suite": LINEAR | {"eps": [3.0]}}  # a usual radius of photographs
    assert dml.evaluate(model, images, labels, **given | own).outcomes["eps"].max() == 3
    for wrong in (
        {"norm": "l1"},
        {"norm": "l2"},
        {"norm": "l2", "eps": 0.5, "suite": "ranking"},
        {"norm": "l2", "eps": np.inf},
    ):
        with pytest.raises(ValueError, match=r"norm 'l1' is unknown|take a suite that is a list of attacks|eps is inf"):
            dml.evaluate(model, images, labels, **given | wrong)


def test_natural_scores_are_of_all_queries_that_have_an_answer(toy_split: Split) -> None:
    """As other evaluations tell them, so that a checkpoint can be compared with what is published of it."""
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    labels = toy_split.labels.copy()
    labels[0] = labels.max() + 1  # has no other image of its class
    with pytest.warns(UserWarning, match="1 of 36 images are the only ones of their class"):
        result = dml.evaluate(model, toy_split.images, labels, limit=5, eps=0, suite=SMALL, controls=(), report=silent)
    found = Search.over(model, Split(toy_split.images, labels, [])).query_embeddings.double()
    similarity = (found @ found.T).fill_diagonal_(-torch.inf)[1:]
    order = labels[similarity.argsort(1, descending=True).numpy()] == labels[1:, None]
    recall = {f"r{k}": pytest.approx(order[:, :k].any(1).mean()) for k in (1, 2, 4, 8)}
    natural = result.about["natural"]
    assert natural == {"queries": 35, **recall, "map_r": natural["map_r"]}
    shown = ", ".join(f"R@{k} {natural[f'r{k}']:.3f}" for k in (1, 2, 4, 8))
    assert f"natural, over all 35 queries: {shown}, MAP@R {natural['map_r']:.3f}" in str(result)
    assert result.to_dict()["about"]["natural"] == natural


def test_natural_scores_of_close_embeddings_are_those_of_the_table() -> None:
    """Embeddings so close that float32 orders some items otherwise than the exact ranking does."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 20
    images = torch.rand(20, 3, 8, 8, generator=generator)[labels] * 0.3
    images += 0.7 * torch.rand(400, 3, 8, 8, generator=generator)
    weights, middle = torch.randn(64, 192, generator=generator) / 14, torch.randn(64, generator=generator)

    def embed(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(middle + 0.02 * (x.flatten(1) - 0.5) @ weights.T, dim=1)

    suite = {"attacks": {"noise": {"draws": 1}}, "claims": False}
    result = dml.evaluate(embed, images, labels, suite=suite, eps=0.0, limit=400, controls=(), report=silent)
    natural, (row,) = result.about["natural"], result.summary.to_dict("records")
    assert {name: natural[name] for name in ("r1", "r2", "r4", "r8")} == pytest.approx(
        {name: row[f"natural_{name}"] for name in ("r1", "r2", "r4", "r8")}
    )


def test_no_other_attack_has_the_name_of_that_on_map_r(toy_split: Split) -> None:
    suite = {"attacks": {"map": {"attack": "margin", "steps": 2}}, "claims": False}
    with pytest.raises(ValueError, match=r"attacks\.map is the name of the attack on MAP@R; give this attack another"):
        dml.evaluate(nn.Flatten(), toy_split.images, toy_split.labels, suite=suite, eps=0.1, controls=())


def test_a_suite_that_cannot_be_aimed_at_any_model_is_told(toy_split: Split) -> None:
    with pytest.raises(ValueError, match="suite certified is of kind certified, for the records of this repository"):
        dml.evaluate(nn.Flatten(), toy_split.images, toy_split.labels, suite="certified", eps=0.1)


def test_each_attack_of_a_suite_whose_attacks_run_alone_is_told(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    suite = {"attacks": {"fgsm": {}, "pgd": {"steps": 2}}, "alone": True, "claims": False}
    result = dml.evaluate(model, toy_split.images, toy_split.labels, eps=0.03, suite=suite, controls=(), report=silent)
    found = result.by_attack.set_index("attack")
    assert set(found.index) == {"fgsm", "pgd", "worst", "map"}
    for name in ("fgsm", "pgd"):
        rows = result.outcomes[result.outcomes["attack"] == name]
        assert found.loc[name, "r1"] == rows["r1"].mean()
        assert found.loc[name, "r1_low"] <= rows["r1"].mean() < found.loc[name, "r1_high"]
        assert f"<td>{name}</td>" in page(result)
        assert re.search(rf"^{name} +0\.03 +{rows['r1'].mean():.3f} \(", str(result), re.MULTILINE)


def test_an_attack_that_cannot_run_is_told(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    rows = np.flatnonzero(toy_split.labels < 2)
    given = {"images": toy_split.images[rows], "labels": toy_split.labels[rows], "controls": (), "report": silent}
    suite = {"attacks": {"pgd": {"steps": 2}, "dlr": {"steps": 2}}, "claims": False}
    with pytest.warns(UserWarning, match="left out, since the gallery holds two classes: dlr"):
        result = dml.evaluate(model, suite=suite, eps=0.03, **given)
    assert "left out, since the gallery holds two classes: dlr" in result.notes
    with pytest.raises(ValueError, match="the attacks dlr need a gallery of three classes"):
        dml.evaluate(model, suite={"attacks": {"dlr": {}}, "claims": False}, eps=0.03, **given)
    images = torch.rand(4, 3, 16, 16)
    with pytest.raises(ValueError, match="the attack dlr needs three classes or more; there are two"):
        dml.perturb(model, images, torch.tensor([0, 0, 1, 1]), attack="dlr")


def test_embeddings_that_are_no_numbers_are_natural_misses(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    search = search_over(Embedding(model, torch.device("cpu")), toy_split, None, "cosine")
    search.gallery.embeddings[::2] = torch.nan
    assert search.query_embeddings[::2].isnan().all()
    found = natural_scores(search, np.arange(len(toy_split)), (2, 8, 30))
    assert found["r2"] <= found["r8"] <= found["r30"] <= 0.5


def test_square_is_for_the_l_inf_ball(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    given = {"norm": "l2", "eps": 0.5, "limit": 5, "controls": (), "report": silent}
    with pytest.raises(ValueError, match="norm is l2; take another attack than square"):
        dml.evaluate(model, toy_split.images, toy_split.labels, suite={"attacks": {"square": {"tries": 5}}}, **given)
    suite = {"attacks": {"square": {"tries": 5}, "nes": {"steps": 1}}}
    result = dml.evaluate(model, toy_split.images, toy_split.labels, suite=suite, **given)
    assert list(result.about["settings"]["attacks"]) == ["nes"]


def test_one_process_of_a_group_may_evaluate(toy_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait at a barrier, so nothing may be shared out to them."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    result = dml.evaluate(model, toy_split.images, toy_split.labels, eps=0.01, suite=SMALL, controls=(), report=silent)
    assert len(result.outcomes["query"].unique()) == result.about["queries"] == 12


def test_a_mirrored_array_is_taken(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    given = {"eps": 0, "suite": SMALL, "controls": (), "report": silent, "limit": 5}
    found = [
        dml.evaluate(model, images, toy_split.labels, **given).about["images_sha256"]
        for images in (toy_split.images[..., ::-1], toy_split.images[..., ::-1].copy())
    ]
    assert found[0] == found[1]


def test_other_ranks_are_told(toy_split: Split, tmp_path: Path) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    given = {"eps": 0.05, "suite": SMALL, "controls": (), "folder": tmp_path, "report": silent}
    usual = dml.evaluate(model, toy_split.images, toy_split.labels, **given)
    result = dml.evaluate(model, toy_split.images, toy_split.labels, ranks=(20, 4), **given)
    assert [name for name in result.summary if name in ("r2", "r4", "r8", "r20")] == ["r4", "r20"]
    assert result.summary["natural_r4"].equals(usual.summary["natural_r4"])
    assert "R@20 " in str(result)
    assert "R@8 " not in str(result)
    for ranks in ((1, 2), (2.5,), ("4",), 10, iter((2, 4))):
        with pytest.raises(ValueError, match="give whole numbers from 2 on"):
            dml.evaluate(model, toy_split.images, toy_split.labels, ranks=ranks, **given)


def test_ranks_and_map_are_those_of_the_images(toy_split: Split) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    result = dml.evaluate(model, toy_split.images, toy_split.labels, eps=0.05, suite=SMALL, report=silent)
    own = result.summary.set_index("model").loc["your model"]
    assert own["r1"] <= own["r2"] <= own["r4"] <= own["r8"]
    assert own["natural_r1"] <= own["natural_r8"]
    outcomes = result.outcomes[result.outcomes["model"] == "your model"]
    assert "map" in set(outcomes["attack"])
    worst, ranked = (outcomes[outcomes["attack"] == name]["map_r"].mean() for name in ("worst", "map"))
    assert own["map_r"] <= min(worst, ranked)
    for name, attack in (("natural_r2", "none"), ("r2", "worst"), ("r8", "worst")):
        hits = outcomes[outcomes["attack"] == attack][name.removeprefix("natural_")]
        assert (own[f"{name}_low"], own[f"{name}_high"]) == wilson(int(hits.sum()), 12)
    told = f"{own['map_r']:.3f} ({own['map_r_low']:.3f} to {own['map_r_high']:.3f})"
    assert re.search(rf"^MAP@R .* {re.escape(told)}$", str(result), re.MULTILINE)
    assert re.search(rf"^R@8 .* {own['r8']:.3f} \({own['r8_low']:.3f} to ", str(result), re.MULTILINE)
    controls = {"pixels_8", "pixels_16", "colour_histogram", "soft_histogram"}
    assert set(result.summary["model"]) == {"your model", *controls}
    queries = result.outcomes.groupby("model")["query"].unique().map(sorted)
    assert all(rows == queries.iloc[0] for rows in queries), "controls meet the same queries"
    assert all(len(line) <= 100 for line in str(result).splitlines())


@pytest.mark.parametrize("name", ["ranking", "poisoning", "paper"])
def test_other_suites_run(toy_split: Split, name: str) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()
    x, y = toy_split.images, toy_split.labels
    result = dml.evaluate(model, x, y, eps=0.05, suite=name, limit=4, controls=("pixels_8",), report=silent)
    assert set(result.summary["model"]) == {"your model", "pixels_8"}
    assert ("ERS" in result.scores) == (name == "ranking")
    assert bool(re.search("^R@2 ", str(result), re.MULTILINE)) == (name == "paper")
    own = result.outcomes["model"] == "your model"
    ahead = replace(result, outcomes=result.outcomes.assign(r1=own.astype(int)))
    assert "your model keeps R@1 1.000, more than the 0.000 of untrained pixels_8, not beyond chance" in str(ahead)
    assert ("r2_low" in result.summary) == (name == "paper")


def test_auto_runs_by_its_name(toy_split: Split) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    result = dml.evaluate(model, toy_split.images, toy_split.labels, suite="auto", limit=2, controls=(), report=silent)
    assert result.about["settings"]["queries"] == 2
    assert set(result.about["settings"]["attacks"]) == {"margin", "soft_margin", "square"}
    assert set(result.outcomes["attack"]) == {"none", "margin", "worst", "map"}
    assert len(result.gates)


def test_a_hundred_images_go_through_at_a_time_up_to_the_size_that_is_told() -> None:
    for device, side in (("cpu", 72), ("cuda", 289)):
        assert f"{side} x {side}" in dml.evaluate.__doc__
        at, above = (at_once((length, length), torch.device(device)) for length in (side, side + 1))
        assert at >= CHUNK > above


def test_pytorch_metric_learning_as_its_documentation_trains(toy_split: Split) -> None:
    from pytorch_metric_learning import losses, miners

    torch.manual_seed(0)
    images = torch.from_numpy(toy_split.images).permute(0, 3, 1, 2) / 255
    dataset = torch.utils.data.TensorDataset(images, torch.from_numpy(toy_split.labels))
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 8))
    miner, loss_func = miners.MultiSimilarityMiner(), losses.TripletMarginLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(5):
        for data, labels in torch.utils.data.DataLoader(dataset, batch_size=36, shuffle=True):
            optimizer.zero_grad()
            embeddings = model(data)
            hard_pairs = miner(embeddings, labels)
            loss = loss_func(embeddings, labels, hard_pairs)
            loss.backward()
            optimizer.step()
    with pytest.warns(UserWarning, match="the model is in training mode"):
        result = dml.evaluate(model, dataset, eps=0.02, suite=SMALL, controls=(), report=silent)
    assert model.training
    embedded = F.normalize(model(images), dim=1)
    nearest = (embedded @ embedded.T).fill_diagonal_(-2).argmax(1).numpy()
    right = toy_split.labels[nearest] == toy_split.labels
    assert result.summary["natural_r1"].iloc[0] == right[result.images.rows].mean()


def test_histograms_count_the_colours_of_large_images_after_averaging() -> None:
    """A control that looks at fewer pixels is attacked in less time; the perturbation is still one of all pixels."""
    images = torch.rand(6, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat_interleave(2)
    split, _ = splits(images, labels, None, None, None)
    notes: list[str] = []
    found = controls.controls(["pixels_8", "colour_histogram"], split, None, 0, print, notes)
    assert notes == ["colour_histogram looked at images averaged to at most 64 pixels a side"]
    whole = ColourHistogram()(F.adaptive_avg_pool2d(images, (64, 64)))
    assert torch.equal(found["colour_histogram"](images), whole)
    small, _ = splits(images[..., :64, :64], labels, None, None, None)
    (alone,) = controls.controls("colour_histogram", small, None, 0, print, notes).values()
    assert isinstance(alone, ColourHistogram)
