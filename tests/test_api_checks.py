"""Each mistake that people make with `dml.evaluate` is answered by its sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dml
from dml.data.base import Split

SMALL = {"queries": 6, "claims": False, "attacks": {"margin": {"steps": 2, "first": 0}}, "gate_tries": 3}
BLACK_BOX = "is attacked by its outputs alone"


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).eval()


@pytest.fixture
def run(toy_split: Split) -> Callable[..., Any]:
    """`dml.evaluate` on the toy images, with few steps."""

    def evaluate(embed: Any, images: Any = None, labels: Any = None, **settings: Any) -> Any:
        if images is None and "gallery" not in settings:
            images = toy_split.images
        if labels is None and "gallery" not in settings:
            labels = toy_split.labels
        common = {"eps": 0.05, "suite": SMALL, "controls": (), "report": lambda line: None}
        return dml.evaluate(embed, images, labels, **{**common, **settings})

    return evaluate


@pytest.fixture
def floats(toy_split: Split) -> Tensor:
    return torch.from_numpy(toy_split.images).permute(0, 3, 1, 2) / 255


def test_training_mode(run: Callable[..., Any], model: nn.Module) -> None:
    with pytest.warns(UserWarning, match="is in training mode; it is evaluated in evaluation mode") as caught:
        result = run(model.train())
    assert caught[0].filename.endswith("test_api_checks.py"), "the warning points at the caller"
    assert model.training
    assert "Note: the model is in training mode" in " ".join(str(result).split())


def test_images_outside_the_range(run: Callable[..., Any], model: nn.Module, floats: Tensor) -> None:
    with pytest.raises(ValueError, match=r"they seem to be normalised; .* dml.wrap\(model, mean, std\)"):
        run(model, (floats - 0.5) / 0.25)
    with pytest.raises(ValueError, match=r"images reach from .* in 0 to 255; divide them by 255, or pass uint8"):
        run(model, floats * 255)
    with pytest.raises(ValueError, match=r"give uint8 from 0 to 255, or floats in \[0, 1\]"):
        run(model, (floats * 255).long())
    with pytest.raises(ValueError, match=r"they must be \(N, 3, H, W\): repeat the channel of grey ones"):
        run(model, floats[:, :1])


def test_a_timm_model_without_its_normalisation(run: Callable[..., Any], model: nn.Module) -> None:
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    with pytest.warns(UserWarning, match=r"dml.wrap\(model, mean=\(0.5, 0.5, 0.5\), std=\(0.2, 0.2, 0.2\)\)"):
        run(model)


def test_outputs_that_change(run: Callable[..., Any], model: nn.Module) -> None:
    sentence = "embeddings of the same images change between two calls"
    with pytest.raises(ValueError, match=sentence):
        run(lambda images: model(images + 0.1 * torch.rand_like(images)))
    batchnorm = nn.BatchNorm1d(8)  # in training mode inside a function, where it cannot be seen
    with pytest.raises(ValueError, match=sentence):
        run(lambda images: batchnorm(model(images)))
    with pytest.raises(ValueError, match="change with the size of the batch"):
        run(lambda images: model(images) if len(images) <= 8 else model(images).round(decimals=1))


def test_embeddings_that_are_no_numbers(run: Callable[..., Any], model: nn.Module, floats: Tensor) -> None:
    with pytest.raises(ValueError, match="8 of 8 embeddings hold NaN or infinity"):
        run(lambda images: model(images) / 0)
    dark = floats[7].mean()
    with pytest.raises(ValueError, match=r"of 36 gallery embeddings hold NaN or infinity"):
        run(lambda images: model(images) / ((images.mean((1, 2, 3)) - dark).abs() > 1e-6)[:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(run: Callable[..., Any], model: nn.Module, dtype: torch.dtype) -> None:
    with pytest.warns(UserWarning, match=f"the model computes in {dtype}; its gradients are coarse"):
        run(model.to(dtype))
    assert next(model.parameters()).dtype == dtype


def test_classes_of_one_image(run: Callable[..., Any], model: nn.Module, toy_split: Split) -> None:
    labels = toy_split.labels.copy()
    labels[3] = 77
    with pytest.warns(UserWarning, match="1 of 36 images are the only ones of their class; they are not used as"):
        result = run(model, labels=labels, limit=100)
    assert 3 not in set(result.outcomes["query"])
    assert result.about["queries"] == 35
    with pytest.raises(ValueError, match="no query has another image of its class in the gallery"):
        run(model, labels=np.arange(36))
    with pytest.raises(ValueError, match="all images are of one class"):
        run(model, labels=np.zeros(36))


def test_a_gallery_without_the_queries_class(run: Callable[..., Any], model: nn.Module, toy_split: Split) -> None:
    x, y = toy_split.images, toy_split.labels
    with pytest.warns(UserWarning, match="6 of 36 images have no image of their class in the gallery"):
        result = run(model, queries=(x, y), gallery=(x[6:], y[6:]), limit=100)
    assert result.about["queries"] == 30
    with pytest.raises(ValueError, match="no query has another image of its class"):
        run(model, queries=(x[:6], y[:6]), gallery=(x[6:], y[6:]))


def test_groups_that_hold_a_whole_class(run: Callable[..., Any], model: nn.Module, toy_split: Split) -> None:
    groups = np.arange(36)
    groups[:6] = 100
    with pytest.warns(UserWarning, match="6 of 36 images are the only ones of their class outside their group"):
        run(model, groups=groups)
    with pytest.raises(ValueError, match="there are 5 groups for 36 images"):
        run(model, groups=groups[:5])


def test_gradients_that_are_zero_or_blocked(run: Callable[..., Any], model: nn.Module) -> None:
    with pytest.warns(UserWarning, match=f"embed gives no gradients; it {BLACK_BOX}"):
        run(lambda images: model(images.detach()).detach())
    with pytest.warns(UserWarning, match=f"gradient does not reach the images; it {BLACK_BOX}"):
        run(lambda images: model(images.detach()))
    with pytest.warns(UserWarning, match=f"gradient is zero or not a number for every image looked at; it {BLACK_BOX}"):
        run(lambda images: model((images * 255).round() / 255))
    with pytest.warns(
        UserWarning, match=r"zero or not a number for \d of 8 images looked at; R@1 left may be too high"
    ):
        run(lambda images: model(torch.where(images.mean((1, 2, 3), True) > 0.5, images, images.detach())))


def test_a_model_that_sees_nothing(run: Callable[..., Any], model: nn.Module) -> None:
    with pytest.warns(UserWarning, match="embeds all of the first images alike"):
        run(lambda images: model(images * 0 + 1))


def test_wrong_arguments(run: Callable[..., Any], model: nn.Module, toy_split: Split, floats: Tensor) -> None:
    x, y = toy_split.images, toy_split.labels
    for sentence, settings in {
        "did you mean 'euclidean'": {"similarity": "euclidian"},
        "suite 'quik' is unknown; did you mean 'quick'": {"suite": "quik"},
        r"suite: attacks.margin key 'step' is unknown": {"suite": {"attacks": {"margin": {"step": 3}}}},
        r"eps is 8.0; pixels lie in \[0, 1\], so it must be at most 1: perhaps 8/255": {"eps": 8},
        "there are 5 labels for 36 images": {"labels": y[:5]},
        "give images and labels, or else queries=": {"queries": (x, y)},
        "perturbs gallery items, for which similarity must be cosine": {"suite": "poisoning", "similarity": "dot"},
        "size and transform are for folders and datasets": {"size": 8},
    }.items():
        with pytest.raises(ValueError, match=sentence):
            run(model, **settings)
    with pytest.raises(ValueError, match=r"embed fails on 8 images \(3, 16, 16\) in \[0, 1\] on cpu: mat1 and mat2"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(5, 8)).eval())
    with pytest.raises(ValueError, match="embed is a str; give a module or a function"):
        run("timm:resnet18")
    with pytest.raises(ValueError, match="bring them to one size"):
        run(model, queries=(x, y), gallery=(x[:, :8], y))


def test_a_transform_that_is_random(run: Callable[..., Any], model: nn.Module, floats: Tensor) -> None:
    class Noisy:
        targets = (0, 0, 1, 1)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            return torch.rand(3, 16, 16), self.targets[row]

    with pytest.raises(ValueError, match="another image each time; use the one for evaluation"):
        dml.evaluate(model, Noisy())


def test_folders(model: nn.Module, picture_folder: Callable[..., Path]) -> None:
    common = {"eps": 0.05, "suite": SMALL, "controls": (), "report": lambda line: None}
    folder = picture_folder()
    result = dml.evaluate(model, folder, size=16, **common)
    assert result.about["gallery"] == 32
    assert result.about["shape"] == [16, 16]
    assert set(result.images.labels) <= {f"class_{label:02d}" for label in range(8)}
    (folder / "class_00" / "0.png").rename(folder / "class_00" / "9.png")
    Image.new("RGB", (9, 9)).save(folder / "class_03" / "0.png")
    with pytest.raises(ValueError, match=r"class_03/0\.png has 9 x 9 pixels and the first image 16 x 20; give size"):
        dml.evaluate(lambda images: images.flatten(1), folder, **common)


def test_a_transform_of_a_folder(model: nn.Module, picture_folder: Callable[..., Path]) -> None:
    """Any function of a PIL image; here one that gives the pixels that a central square of the file has."""

    def square(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image))[:, 2:18]
        return pixels.permute(2, 0, 1) / 255

    common = {"eps": 0.05, "suite": SMALL, "controls": (), "report": lambda line: None}
    folder = picture_folder()
    found = dml.evaluate(model, str(folder), transform=square, **common)
    files = sorted(folder.rglob("*.png"))
    images = torch.stack([square(Image.open(file)) for file in files])
    wanted = dml.evaluate(model, images, [file.parent.name for file in files], **common)
    pd.testing.assert_frame_equal(found.outcomes.drop(columns="file"), wanted.outcomes)
    assert found.outcomes["file"].tolist() == [
        f"{files[row].parent.name}/{files[row].name}" for row in wanted.outcomes["query"]
    ]
    assert found.about["images_sha256"] == wanted.about["images_sha256"]
    with pytest.raises(ValueError, match="give size or transform, not both"):
        dml.evaluate(model, folder, transform=square, size=16, **common)
