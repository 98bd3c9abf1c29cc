"""The programs in benchmarks/: each runs at a tiny size, prints its table and returns finite ratios."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import report, retrieval, throughput
from dml.attacks.queries.peer import INSTALLED
from dml.common.files import write_json
from dml.data.prepare import prepare
from dml.data.sources.folder import read_folder
from dml.models import weights
from dml.models.bfloat16 import computed
from dml.models.embedder import best_device, build


def ratios(name: str, words: str = "") -> dict[str, float]:
    """Run a benchmark in this process; its tiny size is that of the quick report."""
    return importlib.import_module(f"benchmarks.{name}").main([*report.QUICK[name].split(), *words.split()])


def finite(found: dict[str, float]) -> bool:
    return bool(found) and all(math.isfinite(ratio) and ratio > 0 for ratio in found.values())


def test_robust_step(capsys: pytest.CaptureFixture[str]) -> None:
    found = ratios("robust_step")
    assert finite(found)
    assert [name.split(", ", 2)[2] for name in found] == [
        "pgd, k=2 / floor",
        "standard / floor",
        "robust, k=1 / floor",
        "robust, k=2 / floor",
    ]
    told = capsys.readouterr().out
    assert "conv4, 8 images of 16 px" in told
    assert "two batches: k (F + B_in) + 2 (F + B)" in told
    assert "one batch: k (F + B_in) + (F + B)" in told


def test_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    found = ratios("training_step")
    assert finite(found)
    cases = ["standard, float32", "robust, k=1, float32"]
    cases += [case.replace("float32", "bfloat16") for case in cases] if computed(best_device()) else []
    wanted = [f"conv4, 16 px, {case} / {reference}" for case in cases for reference in ("floor", "eager")]
    assert list(found) == wanted
    assert "eager F + B_in" in capsys.readouterr().out


def test_whole_training(capsys: pytest.CaptureFixture[str]) -> None:
    found = ratios("whole_training")
    assert finite(found)
    assert list(found) == ["glyphs, robust / standard", "glyphs, single_step / standard"]
    assert "glyphs, triplet: an epoch of 2 steps" in capsys.readouterr().out


def test_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    found = ratios("throughput")
    assert finite(found)
    wanted = ["float32, step / floor", "bfloat16, step / floor", "bfloat16 / float32"]
    assert [name.removeprefix("conv4, 16 px, ") for name in found] == wanted
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert all(float(row[-4]) > 0 and float(row[-1].rstrip("%")) > 0 for row in rows), "images a second, of the peak"


def test_throughput_of_ways_that_are_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def fails(images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler\nat all")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    found = ratios("throughput", "--others")
    assert "conv4, 16 px, bfloat16, may not repeat / float32" in found
    assert not any("compiled" in name for name in found)
    assert "not compiled: no compiler\n" in capsys.readouterr().out


def test_formats_keep_cudnn() -> None:
    model, images = build("conv4", 8, seed=0), torch.rand(8, 3, 16, 16)
    for repeats in (True, False):
        with throughput.Format(model, images, False, repeats)._algorithms():
            chosen = torch.backends.cudnn
            assert (chosen.enabled, chosen.deterministic, chosen.benchmark) == (True, repeats, not repeats)


@pytest.mark.skipif(not INSTALLED, reason="needs adversarial-library")
def test_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    found = ratios("attacks")
    assert finite(found)
    assert {"apgd on the margin / bare loop", "pgd, last point / adv-lib pgd", "apgd / adv-lib apgd"} <= set(found)
    told = capsys.readouterr().out
    assert ("torchattacks is not installed" in told) != ("torchattacks apgd" in told)
    items, gallery, queries, added = told.splitlines()[-1].replace(",", "").split()
    assert (items, gallery, queries) == ("2000", "1", "4")
    assert float(added) > 0


def test_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert finite(ratios("evaluate"))
    assert torch.get_num_threads() == threads == 1
    items, gallery, added, beyond = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert (items, gallery) == (200, 0)
    assert added >= beyond > 0


def test_memory() -> None:
    found = ratios("memory")
    assert list(found) == [f"conv4, 16 px, {kind}, keeps / returns" for kind in ("standard", "robust, k=4")]


def test_beside(capsys: pytest.CaptureFixture[str]) -> None:
    found = ratios("beside")
    assert finite(found)
    assert list(found) == [f"conv4, 16 px, {policy}, beside / alone" for policy in ("spinning", "sleeping")]
    assert "1 busy beside them" in capsys.readouterr().out


def test_retrieval_finds_what_its_peers_find(capsys: pytest.CaptureFixture[str]) -> None:
    assert finite(ratios("retrieval"))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("300x32")]
    assert [row[1] for row in rows][:3] == ["ours", "bare", "pml"]
    assert all(0 < float(row[-3]) < 1 for row in rows), "R@1"
    assert all(float(row[-1]) < 1e-6 for row in rows), "differences"


def test_a_bare_search_by_hand() -> None:
    """Four points of a circle: 0 and 10 degrees of one class, 4 and 100 of the other."""
    angles = torch.tensor([0.0, 10.0, 4.0, 100.0]).deg2rad()
    embeddings, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1])
    # R is 1 for all. 0 finds 4, 10 finds 4, 4 finds 0, 100 finds 10: none is right.
    assert retrieval.bare(embeddings, labels) == retrieval.ours(embeddings, labels) == [0, 0, 0]
    # With a fifth of class 0 at -1 degrees R is 2: 0 finds -1, then 4; 10 finds 4, then 0; -1 finds 0, then 4.
    angles = torch.tensor([0.0, 10.0, 4.0, 100.0, -1.0]).deg2rad()
    embeddings, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1, 0])
    by_hand = [2 / 5, (1 / 2 + 1 / 2 + 1 / 2) / 5, (1 / 2 + 1 / 4 + 1 / 2) / 5]
    for search in (retrieval.bare, retrieval.ours):
        np.testing.assert_allclose(search(embeddings, labels), by_hand)


def test_precision(picture_folder: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, place = tmp_path / "data", tmp_path / "triplet-robust-0"
    prepare(read_folder(picture_folder()), data, name="toy", size=16, train_fraction=0.5, validation_fraction=0.4)
    weights.save(model := build("conv4", 8, seed=0), place / "weights.safetensors")
    settings = {"settings": {"model": {"backbone": "conv4", "dimension": 8}}, "weights": weights.digest(model)}
    write_json(place / "settings.json", settings | {"digest": "d"})
    assert finite(ratios("precision", f"--models {place} --data {data}"))
    assert "triplet-robust-0" in capsys.readouterr().out


def test_loading_and_preparing() -> None:
    assert list(ratios("prepare")) == ["time per image, ours / plain loop"]
    assert finite(ratios("loading"))


def test_the_report_holds_text_machine_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "NEEDED", Path("no models"))
    report.main(["robust_step", "precision", "--quick", "--output", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {f"benchmarks.{kind}" for kind in ("json", "md", "png", "svg")}
    text = (tmp_path / "benchmarks.md").read_text()
    for words in (
        f"- torch: {torch.__version__}\n",
        "- processor: ",
        "A quick run at tiny sizes",
        "![Time relative to a reference, one bar per comparison](benchmarks.png)",
        "## robust_step\n\nWhat a robust training step costs",
        "conv4, 8 images of 16 px",
        "Not run: no models does not exist; `make repro` makes it.",
    ):
        assert words in text
    assert "wrote" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        report.main(["speed"])
    told = capsys.readouterr().err
    assert "'speed' is no benchmark; known: robust_step, training_step, whole_training, throughput, " in told


def test_the_report_keeps_what_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "NEEDED", Path("no models"))
    about = {"processor": "another one"}
    other, old = (report.Measured(text, {f"{text} / floor": 1.5}, about) for text in ("as it was", "out of date"))
    kept = {"quick": True, "benchmarks": {"loading": other._asdict(), "precision": old._asdict()}}
    write_json(tmp_path / "benchmarks.json", kept)
    report.main(["precision", "--quick", "--output", str(tmp_path)])
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.index("Not run: no models") < text.index("as it was"), "in the order of a whole report"
    assert "Of this section: processor another one.\n\n```\nas it was\n```" in text
    assert "out of date" not in text
    assert report.measured_before(tmp_path / "benchmarks.json", quick=True)["loading"] == other
    assert report.measured_before(tmp_path / "benchmarks.json", quick=False) == {}, "of other sizes"


def test_every_benchmark_is_in_the_report() -> None:
    folder = Path(report.__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - {"dry_run", "measure", "report", "strength"} == set(
        report.QUICK
    )
