"""Models, suites, files and data that once gave a wrong number, a traceback or half a sentence."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dml
from dml.__main__ import main
from dml.api.leaderboard import entry
from dml.data.base import Split
from tests.model_file import MODEL_FILE

NOISE = {"attacks": {"noise": {"draws": 3}}, "claims": False, "gate_tries": 1}
WEAK = {"attacks": {"soft_margin": {"steps": 2, "classes": 1, "target_steps": 1}}, "gate_tries": 2}


@pytest.fixture
def images(toy_split: Split) -> Tensor:
    return torch.from_numpy(toy_split.images).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def labels(toy_split: Split) -> Tensor:
    return torch.from_numpy(toy_split.labels)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).eval()


def evaluate(embed: Any, *given: Any, **settings: Any) -> Any:
    """An evaluation that says nothing; what it warns of stands in its notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dml.evaluate(embed, *given, **{"controls": (), "report": None, "eps": 0.02} | settings)


def test_attacks_without_gradients_run_as_asked_and_are_named(images: Tensor, labels: Tensor) -> None:
    model = linear()
    for norm in ("linf", "l2"):
        seen = evaluate(model, images, labels, suite=NOISE, norm=norm)
        blind = evaluate(lambda x: model(x).detach(), images, labels, suite=NOISE, norm=norm)
        np.testing.assert_array_equal(seen.outcomes["r1"], blind.outcomes["r1"])
        assert "attacks that need no gradient ran: noise" in blind.notes
    both = WEAK | {"attacks": WEAK["attacks"] | {"fine": {"attack": "noise", "draws": 4}}}
    other = evaluate(lambda x: model(x).detach(), images, labels, suite=both)
    assert "attacks that need no gradient ran: nes, square, fine" in other.notes


def test_an_attack_that_l2_leaves_out_is_named(images: Tensor, labels: Tensor) -> None:
    suite = {"attacks": {"square": {"tries": 3}, "pgd": {"steps": 2}}}
    result = evaluate(linear(), images, labels, suite=suite, norm="l2", eps=0.3)
    assert result.notes == ["left out, since they are for the l-inf ball alone: square"]


def test_binary_embeddings_are_told_of_their_ties(images: Tensor, labels: Tensor) -> None:
    model = linear()
    result = evaluate(lambda x: (model(x) > 0).float(), images, labels, suite=NOISE)
    told = [sentence.text for sentence in result.sentences()]
    assert "ties with a wrong one, which counts as a miss." in told[0]
    assert not any("check labels" in text for text in told)


def test_a_lead_over_a_control_that_may_be_chance_is_told_so(images: Tensor, labels: Tensor) -> None:
    result = dml.evaluate(
        linear(), images, labels, suite=WEAK, eps=0.001, limit=12, controls=("pixels_8",), report=None
    )
    rows = result.outcomes[result.outcomes["attack"] == "worst"]
    own = rows["model"] == "your model"
    for kept, doubt in (
        (8, ", not beyond chance."),
        (0, "."),
    ):  # McNemar's p of 4 to 0 is 0.125, of 12 to 0 below 0.001
        result.outcomes.loc[rows.index[own], "r1"] = 1
        result.outcomes.loc[rows.index[~own], "r1"] = [1] * kept + [0] * (12 - kept)
        result.__dict__.pop("summary", None)
        (told,) = [item.text for item in result.sentences() if "your model keeps" in item.text]
        assert told.endswith(f"of untrained pixels_8{doubt}")


def test_a_model_that_normalises_in_place_leaves_the_batch_alone(images: Tensor, labels: Tensor) -> None:
    images = images.contiguous()  # else a copy in another order goes to the model
    model, before = linear(), images.clone()

    def embed(x: Tensor) -> Tensor:
        return model(x.sub_(0.5).div_(0.25))

    for attack, settings in (("noise", {}), ("pgd", {"steps": 2})):
        found = dml.perturb(embed, images, labels, eps=0.02, attack=attack, **settings)
        assert torch.equal(images, before)
        expected = dml.perturb(lambda x: model((x - 0.5) / 0.25), images, labels, eps=0.02, attack=attack, **settings)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("act", [dml.embed, dml.perturb])
def test_outputs_of_a_wrong_shape_are_one_sentence(act: Callable[..., Any], images: Tensor, labels: Tensor) -> None:
    model = linear()
    for embed in (lambda x: model(x)[:, 0], lambda x: model(x)[:, :, None], lambda x: model(x)[:1]):
        with pytest.raises(ValueError, match=r"embed gives shape \(.*\) for \d images; it must be \(B, D\)"):
            act(embed, images, labels)
    with pytest.raises(ValueError, match="embed fails on"):
        act(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).eval(), images, labels)


def test_data_that_cannot_be_meant(images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all but black"):
        evaluate(linear(), (images > 0.5).to(torch.uint8), labels, suite=WEAK)
    with pytest.raises(ValueError, match="gives images without labels"):
        evaluate(linear(), TensorDataset(images), suite=WEAK)

    class OneHot(TensorDataset):
        targets = F.one_hot(labels, 6)

    assert evaluate(linear(), OneHot(images, labels), suite=WEAK).about["classes"] == 6
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="below the file"):
        evaluate(linear(), images, labels, suite=WEAK, folder=tmp_path / "file" / "inner")


def test_a_column_of_queries_goes_with_images_alone(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder, gallery = picture_folder(classes=3), picture_folder(classes=3, name="gallery")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{file},{number // 4},{number % 2}" for number, file in enumerate(files)]
    (folder / "labels.csv").write_text("\n".join(["path,label,query", *rows]))
    with pytest.raises(ValueError, match="divides queries from gallery: give that folder alone"):
        evaluate(linear(), queries=folder, gallery=gallery, suite=WEAK)


def test_weights_of_another_network_are_refused_with_the_reason(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save(state | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "deeper.pth")
    with pytest.raises(ValueError, match=r"layer1\.2\.conv1\.weight \[64, 64, 3, 3\].*they are of another network"):
        dml.load("torchvision:resnet18", weights=tmp_path / "deeper.pth")
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"conv1\.weight is \[64, 3, 3, 3\] there, and \[64, 3, 7, 7\] in the network"):
        dml.load("torchvision:resnet18", weights=tmp_path / "small.pth")
    deep = torchvision.models.convnext_tiny(num_classes=7).state_dict()  # whose head keeps a layer that embeds
    torch.save(deep, tmp_path / "convnext.pth")
    with pytest.warns(UserWarning, match=r"classifier\.2\.weight \[7, 768\].*give dimension 7"):
        dml.load("torchvision:convnext_tiny", weights=tmp_path / "convnext.pth")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"is nothing that torch\.save wrote"):
        dml.load("torchvision:resnet18", weights=tmp_path / "page.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"save module\.state_dict\(\) in its place"):
        dml.load("torchvision:resnet18", weights=tmp_path / "whole.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="it holds a list"):
        dml.load("torchvision:resnet18", weights=tmp_path / "list.pth")
    torch.save({"net": state, "epoch": 3}, tmp_path / "inside.pth")
    assert dml.load("torchvision:resnet18", weights=tmp_path / "inside.pth")


def test_an_entry_of_squeezed_squares_can_be_checked(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = picture_folder()
    for file in folder.rglob("*.png"):
        draw = np.random.default_rng(len(file.name)).integers(0, 255, (16, 24, 3), np.uint8)
        Image.blend(Image.open(file).convert("RGB").resize((24, 16)), Image.fromarray(draw), 0.3).save(file)
    (tmp_path / "mine.py").write_text(MODEL_FILE)
    model, report, board = f"{tmp_path}/mine.py:make", tmp_path / "report", tmp_path / "board"
    words = [str(folder), "--model", model, "--size", "16x16", "--eps", "0.05", "--limit", "8", "--no-controls"]
    assert main(["evaluate", *words, "--output", str(report)]) == 0
    told = ["--name", "mine", "--authors", "me", "--link", "https://example.org", "--data", "none"]
    told += ["--architecture", "linear", "--dataset", "pictures", "--model", model, "--images", str(folder)]
    assert main(["leaderboard", "add", str(report), *told, "--show-failing", "--folder", str(board)]) == 0
    (item,) = board.glob("mine-*.json")
    # The report's own images break nothing that survived in it.
    assert main(["leaderboard", "check", str(item), "--adversarial", str(report / "adversarial.npz"), "--by", "B"]) == 1
    assert "the entry stays as it is" in capsys.readouterr().out
    assert entry.read(item).lowered == ()


def test_an_l2_report_is_refused_as_one(
    images: Tensor, labels: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(linear(), images, labels, suite=WEAK, norm="l2", eps=0.3).save(tmp_path / "report")
    told = ["--name", "a", "--authors", "b", "--link", "https://example.org", "--data", "c", "--architecture", "d"]
    words = ["leaderboard", "add", str(tmp_path / "report"), *told, "--dataset", "e", "--folder", str(tmp_path)]
    assert main(words) == 1
    assert "holds an attack in the l2 ball" in capsys.readouterr().err
