"""Chapter 6: what a perturbation does to other tuples, trainings in a plane, and when an embedding has collapsed."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from made_records import EPS, FIGURES, record
from torch import Tensor, nn

from dml.config.load import load
from dml.data.base import Dataset, Split
from dml.defenses.joint import Joint
from dml.defenses.robust import Robust
from dml.evaluation import dependence, plane
from dml.evaluation.collapse import LEAST_RANK, diagnostics, why_collapsed
from dml.losses.miners.base import Tuples
from dml.losses.triplet import Triplet
from dml.models.embedder import build
from dml.pipeline import paths
from dml.pipeline.stages import dependence as chapter
from dml.reporting import dependence as draw
from dml.reporting import dependence_table, style
from dml.retrieval.gallery import Gallery
from dml.retrieval.index import Search

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
FIXED = Tuples(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([2, 1]))


class Unit(nn.Module):
    """Scales vectors to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8), Unit()).eval()


@pytest.fixture
def images() -> Tensor:
    return 0.2 + 0.6 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def gallery(points: Tensor, labels: Tensor) -> Gallery:
    return Gallery(F.normalize(points.double(), dim=1), labels)


def clusters(classes: int, dimension: int, spread: float) -> Gallery:
    """Classes about random centres of the sphere, as a healthy training leaves them."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(20)
    centres = F.normalize(torch.randn(classes, dimension, generator=draw), dim=1)
    return gallery(centres[labels] + spread * torch.randn(len(labels), dimension, generator=draw), labels)


@pytest.mark.parametrize(("classes", "dimension"), [(100, 128), (40, 128), (5, 128), (9, 2), (2, 64)])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
def test_healthy_classes_have_not_collapsed(classes: int, dimension: int, spread: float) -> None:
    """Few tight classes span few directions, however many dimensions there are."""
    assert why_collapsed(diagnostics(clusters(classes, dimension, spread))) == ""


def test_an_untrained_network_has_not_collapsed(toy_split: Split) -> None:
    """Its classes are wide, and close to each other; what training could have lost is still there."""
    start = build("conv4", 128, seed=0, statistics=toy_split.statistics())
    found = diagnostics(Search.over(start, toy_split).gallery)
    assert why_collapsed(found) == ""
    assert found["directions"] == 5, "six classes"


def test_one_line_and_one_point_have_collapsed() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(100).repeat_interleave(20)
    home, along = torch.randn(2, 128, generator=draw)
    noise = torch.randn(len(labels), 128, generator=draw)
    line = home + torch.linspace(-0.5, 0.5, 100)[labels][:, None] * along + 0.01 * noise
    assert why_collapsed(diagnostics(gallery(line, labels))).startswith("effective rank 1.")
    point = 100 * home + noise + 5 * torch.randn(100, 128, generator=draw)[labels]
    assert "classes are 0.0" in why_collapsed(diagnostics(gallery(point, labels)))
    assert why_collapsed(diagnostics(gallery(noise, labels))) == "", "no classes, but all directions"
    constant = home.expand(len(labels), 128)
    assert why_collapsed(diagnostics(gallery(constant, labels))) == "effective rank 1.0 of 99"


def test_one_item_a_class_has_no_distance_within_classes() -> None:
    items = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    found = diagnostics(gallery(items, torch.arange(200)))
    assert set(found) == {"effective_rank", "directions", "top_share", "inter"}
    assert why_collapsed(found) == ""


def test_the_rank_counts_directions_after_the_first() -> None:
    healthy = {"directions": 101.0, "inter": 1.0, "ratio": 0.4}
    limit = 1 + LEAST_RANK * 100
    assert why_collapsed(healthy | {"effective_rank": limit}) == ""
    assert why_collapsed(healthy | {"effective_rank": limit - 0.1}) == f"effective rank {limit - 0.1:.1f} of 101"
    assert why_collapsed(healthy | {"directions": 1.0, "effective_rank": 1.0}) == "", "two classes, one direction"


def test_robust_shows_a_perturbation_per_role_of_a_tuple(model: nn.Module, images: Tensor) -> None:
    loss = Triplet(3, 8, miner="random")
    found = dependence.perturb(Robust(0.1, 2, ["positive", "negative"]), model, images, LABELS, loss, seeded())
    assert set(found.images) == {"positive", "negative"}
    assert torch.equal(found.tuples.anchor, torch.arange(6))
    for role, moved in found.images.items():
        away = (moved - images[getattr(found.tuples, role)]).abs().amax((1, 2, 3))
        assert ((away > 0) & (away <= 0.1)).all(), "each from its own image"
        torch.testing.assert_close(found.embeddings[role], model(moved))
    assert not model._forward_hooks
    assert not model.training


@pytest.mark.parametrize("remine", ["none", "after", "each"])
def test_joint_shows_one_perturbation_per_image(model: nn.Module, images: Tensor, remine: str) -> None:
    loss = Triplet(3, 8, miner="semi_hard")
    found = dependence.perturb(Joint(0.3, 3, remine=remine), model, images, LABELS, loss, seeded())
    by_image: dict[int, Tensor] = {}
    for role, rows in found.tuples._asdict().items():
        for place, row in enumerate(rows.tolist()):
            same = by_image.setdefault(row, found.images[role][place])
            assert torch.equal(same, found.images[role][place])
            assert (same - images[row]).abs().max() <= 0.3
    clean = loss.mine(model(images).detach(), LABELS, seeded())
    unchanged = all(torch.equal(a, b) for a, b in zip(clean, found.tuples, strict=True))
    assert unchanged == (remine == "none"), "tuples that training uses"


def test_given_tuples_are_attacked(model: nn.Module, images: Tensor) -> None:
    loss = Triplet(3, 8, miner="random")
    for defense in (Robust(0.1, 1, "anchor"), Joint(0.1, 1)):
        assert dependence.perturb(defense, model, images, LABELS, loss, seeded(), FIXED).tuples == FIXED


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_changes_by_hand() -> None:
    """Embeddings on a line: anchors at 0 and 10, image 1 at 2 is positive of the first and negative of the second."""
    clean = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    tuples = Tuples(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([3, 1]))
    # d(a, p) - d(a, n) is 2 - 14 = -12 and 4 - 8 = -4; with a margin of 5 only the second costs something.
    loss = Triplet(2, 1, miner="random", margin=5.0)
    moved = {"positive": torch.tensor([[3.0], [13.0]])}
    found = dependence.changes(clean, tuples, moved, loss)
    # In place: tuple 1 is 3 - 14 = -11, still free; tuple 2 is 3 - 8 = -5: its loss falls from 1 to 0.
    assert found["rises"] == 0
    assert found["falls"] == 0.5
    assert found["change"] == pytest.approx(-0.5)
    assert found["own"] == pytest.approx((1 - 1) / 2)
    # Image 1 at 3 as the negative of tuple 2: 4 - 7 = -3, so +1. Image 3 at 13 as negative of tuple 1: 2 - 13, so +1.
    assert found["shared"] == pytest.approx(1)
    assert found["lowers"] == 0
    away = dependence.changes(clean, tuples, {"positive": torch.tensor([[1.0], [13.0]])}, loss)
    assert away["shared"] == pytest.approx((-1 + 1) / 2)
    assert away["lowers"] == 0.5, "image 1 lowers tuple 2, image 3 raises tuple 1"


def test_a_perturbation_may_meet_its_own_role_in_another_tuple() -> None:
    clean = torch.tensor([[0.0], [2.0], [10.0], [4.0]])
    tuples = Tuples(torch.tensor([0, 3]), torch.tensor([1, 1]), torch.tensor([2, 2]))
    moved = {"positive": torch.tensor([[2.5], [1.0]])}
    found = dependence.changes(clean, tuples, moved, Triplet(2, 1, miner="random"))
    assert found["own"] == pytest.approx((0.5 + 1) / 2)
    assert found["shared"] == pytest.approx((-0.5 - 1) / 2), "2.5 is nearer to 4, and 1 is nearer to 0"
    assert found["lowers"] == 1


def test_images_in_one_tuple_share_nothing() -> None:
    clean = torch.arange(3.0)[:, None]
    tuples = Tuples(*torch.tensor([[0], [1], [2]]))
    found = dependence.changes(clean, tuples, {"anchor": torch.ones(1, 1)}, Triplet(2, 1, miner="random"))
    assert np.isnan(found["shared"])
    assert np.isnan(found["lowers"])


def test_batches_give_a_row_per_adversary_and_role(model: nn.Module, images: Tensor) -> None:
    loss = Triplet(3, 8, miner="random")
    compared = dependence.adversaries(0.1, 2)
    found = dependence.batch_changes(model, [(images, LABELS), (images.flip(0), LABELS)], loss, compared, seed=0)
    names = ["robust, anchor", "robust, positive", "robust, negative", "robust, all roles"]
    names += ["joint", "joint, re-mined after", "joint, re-mined each step"]
    assert found["adversary"].tolist() == 2 * names
    again = dependence.batch_changes(model, [(images, LABELS)], loss, {"robust": Robust(0.1, 2, "anchor")}, seed=0)
    alone = again.drop(columns="adversary").iloc[0]
    pd.testing.assert_series_equal(alone, found.drop(columns="adversary").iloc[0], check_names=False)
    assert (found.loc[found["adversary"].str.startswith("robust"), "own"] > 0).all()


def test_means_have_intervals_over_batches() -> None:
    values = {name: [0.0, 1.0, 2.0, float("nan")] for name in dependence.MEASURED}
    table = pd.DataFrame({"adversary": ["a", "a", "a", "b"], **values})
    found = dependence.means(table, ["adversary"]).set_index("adversary")
    assert found.loc["a", "own"] == 1
    assert found.loc["a", "own_half"] == pytest.approx(4.3027 / 3**0.5, rel=1e-4), "t with two degrees of freedom"
    assert found.loc["b", ["own", "own_half"]].isna().all()


def test_occurrences_count_each_role(model: nn.Module, images: Tensor) -> None:
    watched = dependence.Watched(Triplet(3, 8, miner="random"), FIXED)
    found = dependence.occurrences(model, [(images, LABELS)] * 2, watched, seed=0)
    assert found.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]] * 2


def test_points_leave_room_for_a_robust_embedding(generator: torch.Generator) -> None:
    images, labels = plane.points(4, generator)
    assert labels.bincount().tolist() == [4] * 9
    apart = torch.cdist(images.flatten(1), images.flatten(1), p=float("inf"))
    same = labels[:, None] == labels
    assert apart[~same].min() > 2 * plane.EPS
    assert apart[same].max() < 2 * plane.EPS


def test_the_grid_fills_the_ball() -> None:
    found = plane.grid(torch.tensor([[0.5, 0.95]]).view(1, 2, 1, 1), 0.1, cells=3)
    assert found.shape == (1, 9, 2)
    torch.testing.assert_close(found[0, [0, 4, 8]], torch.tensor([[0.4, 0.85], [0.5, 0.95], [0.6, 1.0]]))


def test_the_worst_case_needs_every_point_to_be_right() -> None:
    angles = torch.tensor([0.0, 0.2, 1.5, 1.6])
    images = torch.stack([angles.cos(), angles.sin()], 1).view(4, 2, 1, 1).double()
    labels = torch.tensor([0, 0, 1, 1])
    home = images.view(4, 1, 2)
    reached = home.repeat(1, 3, 1)
    identity = nn.Flatten()
    assert plane.survivors(identity, images, labels, reached) == (1.0, 1.0)
    reached[0, 1] = home[2, 0]
    assert plane.survivors(identity, images, labels, reached) == (1.0, 0.75), "one point of one ball is enough"
    assert plane.survivors(identity, images, torch.tensor([0, 1, 0, 1]), reached)[0] == 0


def test_joint_training_collapses_in_the_plane_and_the_papers_does_not() -> None:
    made = plane.defenses()
    standard, robust, joint = (
        plane.train(name, made[name], seed=0) for name in ("standard", "robust, positive", "joint")
    )
    assert standard.natural == robust.natural == 1
    assert robust.worst > standard.worst + 0.2
    assert joint.collapsed
    assert joint.natural < 0.7
    assert not standard.collapsed + robust.collapsed
    assert np.mean(joint.losses[-20:]) == pytest.approx(plane.MARGIN, abs=0.02), "the loss of a constant embedding"
    assert np.mean(robust.losses[-20:]) < plane.MARGIN / 2
    again = plane.train("standard", made["standard"], seed=0)
    assert again.losses == standard.losses
    assert torch.equal(again.embeddings, standard.embeddings)


def test_an_image_is_pulled_two_ways() -> None:
    found = plane.two_ways()
    for made in (found.robust, found.joint):
        for role, moved in made.images.items():
            away = moved.flatten(1) - found.points[getattr(plane.PAIR, role)]
            assert away.abs().max() <= plane.EPS
    first, second, shared = found.shared.values()
    assert first[0] > 0 > first[1]
    assert second[1] > 0 > second[0]
    assert 0 < shared[0] < first[0]
    assert 0 < shared[1] < second[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "standard"}, ("–", "–", "–")),
        ({"name": "robust"}, ("positive", "one role of one tuple", "never")),
        (
            {"name": "shared", "defense": "robust", "scope": "image"},
            ("positive", "one role of all its tuples", "never"),
        ),
        (
            {"name": "robust_anchor", "defense": "robust", "target": "anchor"},
            ("anchor", "one role of one tuple", "never"),
        ),
        (
            {"name": "robust_all", "defense": "robust", "target": ["anchor", "negative"]},
            ("anchor, negative", "one role of one tuple", "never"),
        ),
        ({"name": "joint"}, ("anchor, positive, negative", "all tuples of the image", "never")),
        (
            {"name": "x", "defense": "joint", "targets": ["positive"], "remine": "each"},
            ("positive", "all tuples of the image", "at each step"),
        ),
    ],
)
def test_settings_are_told_as_they_are(settings: dict[str, Any], told: tuple[str, str, str]) -> None:
    assert dependence_table.described(settings) == told


def run(defense: str, survive: int = 100, seed: int = 0, rank: float = 12.0, **changes: Any) -> dict[str, Any]:
    """A record of the study."""
    kind = {"defense": defense.split("_")[0]} if "_" in defense else {}
    embedding = {"effective_rank": rank, "directions": 99.0, "inter": 1.0, "ratio": 0.4}
    settings = {"loss": {"name": "triplet"}, "defense": {"name": defense, **kind}}
    settings["suite"] = {"kind": "attacks", "eps": [EPS]}
    given = {"seed": seed, "dataset": "glyphs_long", "embedding": embedding, "settings": settings}
    return record("triplet", defense, 0.9, survive, "study", **(given | changes))


def test_the_table_shows_what_each_setting_achieves() -> None:
    runs = [run("standard", 20), run("robust", 200), run("robust", 100, seed=1), run("joint_each", 40, rank=2.0)]
    runs += [run("joint_each", 40, seed=1), run("joint", 30, embedding={})]
    header, _, *rows = dependence_table.settings_table(runs, EPS, FIGURES)[1:]
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in rows}
    assert header.count("|") == 9
    assert list(cells) == ["standard", "robust", "joint", "joint each"]
    assert cells["robust"][:3] == ["positive", "one role of one tuple", "never"]
    assert cells["robust"][4].startswith("**0.375** (0."), "300 of 800 queries of two trainings"
    assert cells["standard"][3].startswith("0.900 (0.88")
    assert cells["robust"][5:] == ["12.0", "no"]
    assert cells["joint"][5:] == ["–", "–"], "not measured"
    assert cells["joint each"][5:] == ["7.0", "1 of 2: effective rank 2.0 of 99"]
    assert "†" in cells["joint each"][4]


def test_what_else_differs_stands_behind_the_name() -> None:
    wide = {"name": "joint_20", "defense": "joint", "eps": 20 / 255}
    runs = [run("robust", 200), run("joint_20", 40)]
    runs[1]["settings"]["defense"] = wide
    rows = dependence_table.settings_table(runs, EPS, FIGURES)[3:]
    assert [row.split(" | ")[0] for row in rows] == ["| robust", "| joint 20 `{eps: 20/255}`"]


@pytest.mark.parametrize(("name", "own"), [("multi_similarity", {}), ("sharper", {"loss": "multi_similarity"})])
def test_a_loss_on_whole_queries_has_no_tuples(name: str, own: dict[str, str]) -> None:
    kinds = {"robust_query": 300, "robust_query_20": 200, "joint": 40}
    runs = [run(defense, survive) | {"loss": name} for defense, survive in kinds.items()]
    for found in runs:
        found["settings"]["loss"] = {"name": name} | own
    runs[1]["settings"]["defense"] = {"name": "robust_query_20", "defense": "robust", "eps": 20 / 255}
    rows = [row.strip("| ").split(" | ")[:4] for row in dependence_table.settings_table(runs, EPS, FIGURES)[3:]]
    assert sorted(rows) == [
        ["joint", "every image", "all queries", "–"],
        ["robust query", "each query", "nothing else", "–"],
        ["robust query 20 `{eps: 20/255}`", "each query", "nothing else", "–"],
    ]


def test_amd_moves_a_whole_tuple() -> None:
    told = ("anchor, positive, negative", "one tuple, all roles at once", "never")
    assert dependence_table.described({"name": "amd_20", "defense": "amd", "eps": 20 / 255}) == told


def test_what_is_missing_is_named() -> None:
    wanted = [(name, seed) for name in ("standard", "robust", "joint_each") for seed in (0, 1)]
    held = [run("standard"), run("standard", seed=1), run("robust")]
    assert dependence_table.missing(wanted, held, [run("joint_each", seed=1)]) == [
        "no record of robust with seed 1 yet: run `make study`",
        "no current record of joint_each yet: run `make study`",
    ]
    assert dependence_table.missing(wanted[:2], held, []) == []
    assert dependence_table.missing(wanted, [], []) == [
        "no record of standard, robust, joint_each yet: run `make study`"
    ]


def test_the_study_lists_tables_and_gaps_by_loss() -> None:
    losses = {"triplet": ["standard", "robust", "amd", "trades"], "contrastive": ["standard", "robust", "joint"]}
    losses["margin"] = ["standard", "robust", "robust_20"]  # one class: nothing to compare
    block = {"datasets": ["glyphs_long"], "losses": losses, "suite": "study", "seeds": [0]}
    params = load({"study": {"main": block}})
    other = run("robust") | {"suite": "quick"}
    lines = chapter.study_lines(params, [run("standard"), run("trades"), other], [])
    text = "\n".join(lines)
    assert "**glyphs_long, triplet loss, suite `study`, eps 8/255**" in text
    assert sum(line.startswith("| standard") for line in lines) == 1
    assert "trades" not in text, "no defence of this comparison"
    assert [line for line in lines if line.startswith("- ")] == [
        "- no record of robust, amd yet: run `make study`",
        "- no record of standard, robust, joint yet: run `make study`",
    ]
    assert "margin" not in text


def test_blocks_of_the_same_suite_share_a_table() -> None:
    common = {"datasets": ["glyphs_long"], "suite": "study"}
    several = common | {"losses": {"triplet": ["standard"]}, "seeds": [0, 1]}
    single = common | {"losses": {"triplet": ["robust", "joint"]}, "seeds": [0]}
    held = [run("standard"), run("standard", seed=1), run("robust")]
    lines = chapter.study_lines(load({"study": {"several": several, "single": single}}), held, [])
    assert sum(line.startswith("**glyphs_long, triplet loss") for line in lines) == 1
    assert [line[: line.index(" |", 2)] for line in lines if line.startswith(("| standard", "| robust"))] == [
        "| standard",
        "| robust",
    ]
    assert [line for line in lines if line.startswith("- ")] == ["- no record of joint yet: run `make study`"]


def trained(name: str, miner: str = "semi_hard", natural: float = 1.0, collapsed: str = "") -> plane.Trained:
    labels = torch.arange(3).repeat_interleave(2)
    points = F.normalize(torch.randn(6, 2, generator=seeded()), dim=1)
    return plane.Trained(name, miner, [0.3, 0.2], labels, points, points[:, None], natural, 0.5, collapsed)


def test_the_plane_has_a_circle_per_training_and_the_loss(tmp_path: Path) -> None:
    style.theme()
    runs = [trained(name) for name in ("a", "b", "c", "d", "e")] + [trained("f", natural=0.25, collapsed="one point")]
    figure = draw.plane(runs)
    *circles, loss = figure.axes
    assert [axes.get_title().split("\n")[0] for axes in circles] == ["a", "b", "c", "d", "e", "f"]
    assert circles[5].get_title().endswith("R@1 0.25, worst case 0.50")
    assert [bool(axes.texts) for axes in circles] == [False] * 5 + [True], "collapsed"
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [0.3, 0.25])
    assert loss.lines[-1].get_ydata()[0] == plane.MARGIN
    files = [style.save(draw.plane(runs), tmp_path / place, "plane") for place in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    plt.close("all")


def test_the_table_of_the_plane_counts_collapses() -> None:
    runs = [trained("a"), trained("a", natural=0.5, collapsed="one line"), trained("a", "random")]
    found = draw.plane_table(runs)
    assert found["miner"].tolist() == ["semi hard", "random"]
    assert found["natural R@1"].tolist() == ["0.75 (0.50 to 1.00)", "1.00 (1.00 to 1.00)"]
    assert found["collapsed"].tolist() == ["1 of 2", "0 of 1"]


def measured(models: tuple[str, ...] = ("untrained", "robust")) -> pd.DataFrame:
    numbers = dict.fromkeys([key for name in dependence.MEASURED for key in (name, f"{name}_half")], 0.25)
    return pd.DataFrame(
        [{"model": model, "adversary": name, **numbers} for model in models for name in ("x", "y", "z")]
    )


def test_the_figure_of_batches_shows_models_adversaries_and_roles() -> None:
    style.theme()
    counts = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 3], [1, 1, 0]])
    left, middle, right = draw.batches(counts, measured()).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["x", "y", "z"]
    assert len(middle.containers) == 2, "one per model"
    heights = {
        (round(bar.get_x() + bar.get_width() / 2), bar.get_height()) for bar in right.patches if bar.get_height()
    }
    assert heights == {(1, 0.25), (2, 0.5), (5, 0.25)}
    plt.close("all")


def test_batches_say_which_model_is_missing(toy_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*words: Any) -> None:
        raise FileNotFoundError(f"no model of {words[3]}")

    monkeypatch.setattr(chapter, "open_data", lambda *words: Dataset(toy_split, toy_split, toy_split))
    monkeypatch.setattr(chapter, "open_model", gone)
    found = chapter.in_batches("glyphs", 2, workspace="scratch")
    assert found.missing == ["no model of standard", "no model of robust"]
    assert set(found.means["model"]) == {"untrained"}
    assert found.counts.shape == (2 * 6 * 4, 3), "the six classes that there are"
    assert found.counts.sum() == 3 * len(found.counts), "every image is an anchor once"
    most = max(int(row.sum()) for row in found.counts)
    assert found.about == (
        "2 batches of 24 training images of glyphs, triplet loss. All adversaries take 2 steps within eps 8/255. Under "
        f"the last of the models an image stands in 3.0 tuples on average, and in {most} at most."
    )


def test_the_page_shows_figures_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    style.theme()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for name, figure in (("two_ways", draw.two_ways(plane.two_ways())), ("plane", draw.plane([trained("a")] * 6))):
        file = chapter.save(figure, name, ".")
        assert file == tmp_path / "results" / "dependence" / f"{name}.png"
        assert style.caption_of(file) == chapter.CAPTIONS[name]
    page = chapter.write_page(
        ".", draw.plane_table([trained("a")]), "Two batches.", draw.batch_table(measured()), ["", "the study"]
    )
    text = page.read_text()
    assert page.parent == file.parent
    assert all(f"({name}.png)" in text for name in chapter.CAPTIONS)
    assert "| robust | z | 0.250 ± 0.250 |" in text
    assert text.index(chapter.CAPTIONS["batches"]) < text.index("Two batches.") < text.index("Means over batches")
    assert text.endswith("the study\n")
