"""Models, images and files as people have them, which `dml.evaluate` takes as they are meant."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_entries import made
from torch import Tensor, nn
from torch.utils.data import Dataset

import dml
from dml.api import pixels
from dml.api.images import splits
from dml.api.leaderboard import claims, page, plot, reports
from dml.api.leaderboard.reports import Told
from dml.api.result import Result
from dml.api.summary import summarise

WEAK = {"attacks": {"soft_margin": {"steps": 2, "classes": 1, "target_steps": 1}}, "gate_tries": 2}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(24) % 4


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(192, 6)

    def encode(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1))


def evaluate(embed: Any, images: Any = None, labels: Any = None, **settings: Any) -> Result:
    common = {"suite": WEAK, "controls": (), "report": lambda line: None, "eps": 0.05}
    return dml.evaluate(embed, images, labels, **(common | settings))


class Coarse(Dataset):
    """Fine labels beside the images, and coarse ones in the items, as with a ``target_transform`` of torchvision."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.targets = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row], self.targets[row] // 2


def test_the_labels_of_a_dataset_are_those_of_its_items(images: np.ndarray, labels: np.ndarray) -> None:
    split, _ = splits(Coarse(images, labels), None, None, None, None)
    np.testing.assert_array_equal(split.labels, labels // 2)


def test_a_camera_hides_images_of_the_same_class_alone(images: np.ndarray, labels: np.ndarray) -> None:
    """As in re-identification; by brute force."""
    cameras = np.arange(24) // 3 % 2
    model = Tower().eval()
    natural = evaluate(model.encode, images, labels, groups=cameras).summary["natural_r1"][0]
    with torch.no_grad():
        found = model.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    found = nn.functional.normalize(found.double(), dim=1)
    similarity = found @ found.T
    hidden = (labels[:, None] == labels) & (cameras[:, None] == cameras)
    similarity[torch.from_numpy(hidden)] = -2
    assert natural == (labels[similarity.argmax(1).numpy()] == labels).mean()
    pairs = evaluate(model.encode, images, labels, groups=labels * 2 + cameras)
    assert pairs.summary["natural_r1"][0] == natural, "groups of one class each say the same"


def test_queries_without_numbers_are_told_as_a_gallery_is(images: np.ndarray, labels: np.ndarray) -> None:
    dark = np.zeros_like(images[:4])

    def embed(x: Tensor) -> Tensor:
        return torch.where(x.flatten(1).amax(1, keepdim=True) > 0, x.flatten(1), torch.nan)

    with pytest.raises(ValueError, match="4 of 4 embeddings of queries hold NaN"):
        evaluate(embed, queries=(dark, labels[:4]), gallery=(images, labels))


def test_equal_scores_have_an_interval_all_the_same() -> None:
    rows = [{"model": "m", "query": q, "attack": "none", "eps": 0.0, "r1": 1.0, "map_r": 0.5} for q in range(10)]
    rows += [{"model": "m", "query": q, "attack": "worst", "eps": 0.1, "r1": 0.0, "map_r": 0.0} for q in range(10)]
    (row,) = summarise(pd.DataFrame(rows)).to_dict("records")
    assert row["map_r_low"] == 0
    assert row["map_r_high"] == pytest.approx(0.2775, abs=1e-4), "Wilson's, of none in ten"
    assert row["natural_map_r_low"] < 0.5 < row["natural_map_r_high"]


def test_a_mirror_that_comes_and_goes_is_seen(images: np.ndarray, labels: np.ndarray) -> None:
    draw = np.random.default_rng(0)

    class Mirrored(Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            image = images[row]
            return (image[:, ::-1].copy() if draw.random() < 0.5 else image), int(labels[row])

    for _ in range(20):
        with pytest.raises(ValueError, match="the transform gives another image each time"):
            splits(Mirrored(), None, None, None, None)


def test_the_cost_says_whether_the_call_continued_another(
    images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    model = Tower().eval()
    first = evaluate(model.encode, images, labels, folder=tmp_path / "kept")
    assert re.search(r"^Cost: \d", str(first), re.MULTILINE)
    again = evaluate(model.encode, images, labels, folder=tmp_path / "kept")
    assert again.cost["forward"] < first.cost["forward"]
    assert "Cost of the last call, which continued: " in str(again)
    page = again.save(tmp_path / "report").read_text(encoding="utf-8")
    assert "in the last call, which continued" in page


def test_a_claim_takes_the_method_that_was_evaluated(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    tower = Tower().eval()
    found = evaluate(tower.encode, images, labels)
    found.save(tmp_path / "report")
    told = Told("tower", "A. Author", "https://example.org", "none", "linear", "shapes")
    (entry,) = reports.entries(tmp_path / "report", told, show_failing=True)
    assert entry.settings["attacks"]["soft_margin"]["steps"] == 2, "what attacked it, since no suite has a name"
    claim = claims.Claim(np.array([0]), images[:1].transpose(0, 3, 1, 2) / np.float32(255), None, "a" * 64)
    split, asked = splits(images, labels, None, None, None)
    assert not claims.check(entry, claim, tower.encode, split, asked, by="B. Breaker").broken


def test_models_that_fail_on_single_images_or_backwards(images: np.ndarray, labels: np.ndarray) -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1)).eval()
    with pytest.raises(ValueError, match=r"embed gives shape \(6,\) for 1 images; it must be \(B, D\)"):
        evaluate(lambda x: pooled(x).squeeze(), images, labels)

    def picky(x: Tensor) -> Tensor:
        assert x.shape[-1] == 224
        return x.flatten(1)

    with pytest.raises(ValueError, match=r"embed fails on 8 images .*: (AssertionError|assert)"):
        evaluate(picky, images, labels)

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            raise NotImplementedError("no backward pass")

    with pytest.warns(UserWarning, match=r"fails where gradients are wanted \(no backward pass\)"):
        found = evaluate(lambda x: Forward.apply(x).flatten(1), images, labels)
    assert not found.about["gradients"]


def test_a_file_with_dataclasses_and_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("def flat(images):\n    return images.flatten(1)\n")
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_mine import flat\n"
    text += "\n@dataclass\nclass Made:\n    scale: float = 2.0\n\n    def __call__(self, images):\n"
    text += "        return self.scale * flat(images)\n\ndef make():\n    return Made()\n"
    (tmp_path / "mine.py").write_text(text)
    assert dml.load(f"{tmp_path}/mine.py:make")(torch.ones(2, 3, 4, 4)).shape == (2, 48)


@pytest.mark.parametrize(("lost", "named"), [("model", "model"), ("gates", "gates")])
def test_a_damaged_report_is_one_sentence(
    lost: str, named: str, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    evaluate(Tower().eval().encode, images, labels).save(tmp_path)
    if lost == "gates":
        report = json.loads((tmp_path / "result.json").read_text())
        del report["gates"]
        (tmp_path / "result.json").write_text(json.dumps(report))
    else:
        (tmp_path / "outcomes.csv").write_text("query,eps,attack,r1\n0,0.05,worst,1\n")
    with pytest.raises(ValueError, match=f"holds a damaged report: it lacks {named}; evaluate again"):
        reports.entries(tmp_path, Told("t", "a", "https://example.org", "none", "linear", "shapes"))


def test_numbers_of_numpy_and_radii_as_text(images: np.ndarray, labels: np.ndarray) -> None:
    found = evaluate(Tower().eval().encode, images, labels, limit=np.int64(5), eps=None, suite=WEAK | {"eps": "4/255"})
    assert (found.about["queries"], found.summary["eps"].tolist()) == (5, [4 / 255])
    overshot = torch.rand(24, 3, 8, 8) * 1.4 - 0.2
    with pytest.raises(ValueError, match=r"resized with overshoot; clip them to \[0, 1\]"):
        evaluate(Tower().eval().encode, overshot, labels)


def test_equals_share_a_rank_and_of_crowded_marks_in_the_plot_one_has_its_number() -> None:
    entries = [made(f"model {place}", kept=0, right=8) for place in range(8)] + [made("best", kept=6)]
    entries.sort(key=lambda entry: -entry.worst_case.r1.value)
    ranks = page._ranks(entries)
    assert sorted(ranks.values()) == [1, *[2] * 8]
    drawn = plot.plot(entries, ranks)
    assert drawn.count('class="mark"') == 9 + 2, "each entry, and the key"
    assert re.findall(r'class="number"[^>]*>(\d+)<', drawn) == ["1", "2"]


@pytest.mark.parametrize("first", [True, False])
def test_one_image_that_is_not_8_bit_keeps_all_as_floats(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "AT_ONCE", 4)
    whole = np.random.default_rng(1).integers(0, 256, (10, 3, 8, 6), np.uint8)
    images = torch.from_numpy(whole).float() / 255
    exact = pixels.stored(images)
    assert exact.dtype == np.uint8
    assert np.array_equal(exact, whole.transpose(0, 2, 3, 1))
    images[0 if first else -1, 0, 0, 0] = 0.3001
    kept = pixels.stored(images)
    assert kept.dtype == np.float32
    assert np.allclose(kept / 255, images.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1.2e-7)
