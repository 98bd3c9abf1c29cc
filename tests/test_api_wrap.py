"""`dml.wrap` and `dml.load`: models that people have."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import dml
from dml.__main__ import main
from dml.api import embedding
from dml.api.embedding import lent, weights_sha256
from dml.common.files import write_json
from dml.data.base import Split
from dml.models import weights
from dml.models.embedder import build


def test_wrap_normalises_and_resizes_inside() -> None:
    wrapped = dml.wrap(nn.Identity(), mean=(0.5, 0.25, 0), std=(0.5, 0.25, 1))
    images = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([0.5, 0.25, 0]).view(3, 1, 1), torch.tensor([0.5, 0.25, 1]).view(3, 1, 1)
    assert torch.equal(wrapped(images), (images - mean) / std)
    sized = dml.wrap(nn.Identity(), size=2)(images.requires_grad_(True))
    assert sized.shape == (2, 3, 2, 2)
    sized.sum().backward()
    assert (images.grad != 0).any()
    with pytest.raises(ValueError, match=r"mean is \(123.7, 116.3, 103.5\); give three numbers in \[0, 1\]"):
        dml.wrap(nn.Identity(), mean=(123.7, 116.3, 103.5))
    with pytest.raises(ValueError, match="std is"):
        dml.wrap(nn.Identity(), std=(1, 1, 0))
    with pytest.raises(ValueError, match=r"mean is 0\.5; give three numbers"):
        dml.wrap(nn.Identity(), mean=0.5)
    with pytest.raises(ValueError, match=r"std is .*; give three numbers"):
        dml.wrap(nn.Identity(), std=("a", 1, 1))
    with pytest.raises(ValueError, match="size is '8'; it must be a whole number of pixels"):
        dml.wrap(nn.Identity(), size="8")
    with pytest.raises(ValueError, match="module is a str; give a module"):
        dml.wrap("conv4")


def test_wrap_takes_a_function() -> None:
    images = torch.rand(2, 3, 4, 4)
    wrapped = dml.wrap(lambda normalised: normalised.flatten(1), mean=(0.5, 0.5, 0.5))
    assert torch.equal(wrapped(images), (images - 0.5).flatten(1))
    assert not wrapped.training, "a function has no mode"


def test_a_wrapped_function_stays_on_the_cpu_and_a_module_goes_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, moved = torch.device("cuda"), []
    monkeypatch.setattr(embedding, "best_device", lambda: gpu)
    monkeypatch.setattr(embedding, "_move", lambda given, device: moved.append(device))
    for given, device, expected in [
        (dml.wrap(lambda images: images.flatten(1)), None, torch.device("cpu")),
        (dml.wrap(lambda images: images.flatten(1)), "cuda", gpu),
        (dml.wrap(nn.Linear(2, 2)), None, gpu),
    ]:
        with lent(given, device) as place:
            assert place == moved.pop() == expected


class TwoTowers(nn.Module):
    """As image-text models are: embeddings come from a method, and forward wants text too."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 8))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.tower(images)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_method_counts_as_its_module() -> None:
    towers, images = TwoTowers(), torch.rand(12, 3, 8, 8)
    options = {"labels": torch.arange(12) % 3, "eps": 8 / 255, "controls": (), "report": lambda line: None}
    with pytest.warns(UserWarning, match="the model is in training mode; it is evaluated in evaluation mode"):
        found = dml.evaluate(towers.encode_image, images, **options)
    assert towers.tower.training, "it comes back as it was"
    assert found.about["weights_sha256"] is not None
    with pytest.warns(UserWarning, match="training mode"):
        alike = dml.evaluate(dml.wrap(towers.encode_image), images, **options)
    pd.testing.assert_frame_equal(found.outcomes, alike.outcomes)
    direct = dml.evaluate(towers.tower.eval(), images, **options)
    pd.testing.assert_frame_equal(found.outcomes, direct.outcomes)


def test_a_model_in_distributed_training_is_attacked_without_its_wrapper(tmp_path: Path) -> None:
    """The wrapper sends buffers to the other processes at each call, and they call another number of times."""
    meeting = (tmp_path / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        inner = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 8))
        trained = nn.parallel.DistributedDataParallel(inner)
        images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 3
        with mock.patch.object(trained, "forward", side_effect=AssertionError):
            assert dml.perturb(trained, images, labels, eps=0.1).shape == images.shape
        assert trained.training
        assert inner.training
    finally:
        torch.distributed.destroy_process_group()


def _wrapped(network: nn.Module) -> dict[str, Any]:
    """A network's weights as trainings leave them."""
    plain = network.state_dict()
    parallel = nn.DataParallel(network).state_dict()
    compiled = {f"_orig_mod.{key}": value for key, value in plain.items()}
    return {
        "timm.pth": {"epoch": 3, "arch": "test_resnet", "state_dict": plain},
        "parallel.pth": parallel,
        "lightning.ckpt": {"epoch": 3, "state_dict": {f"model.{key}": value for key, value in parallel.items()}},
        "compiled.pth": {"model": compiled, "optimizer": {"state": {}}},
        "parallel.safetensors": parallel,
    }


def test_weights_are_read_whatever_a_training_put_around_them(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=0).eval()
    images = torch.rand(2, 3, 32, 32)
    config = network.pretrained_cfg
    wanted = dml.wrap(network, config["mean"], config["std"])(images)
    for name, held in _wrapped(network).items():
        save_file(held, tmp_path / name) if name.endswith(".safetensors") else torch.save(held, tmp_path / name)
        assert torch.equal(dml.load("timm:test_resnet", tmp_path / name)(images), wanted), name
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"{tmp_path}/timm.pth holds no weights of test_vit"):
        dml.load("timm:test_vit", tmp_path / "timm.pth")
    torch.save({"state_dict": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty\.pth holds no weights of test_resnet"):
        dml.load("timm:test_resnet", tmp_path / "empty.pth")
    assert {file.name for file in tmp_path.iterdir()} == before | {"empty.pth"}


def test_load_reads_a_model_of_this_repository(tmp_path: Path) -> None:
    model = build("conv4", 16, seed=3)
    weights.save(model, tmp_path / "weights.safetensors")
    write_json(tmp_path / "settings.json", {"settings": {"model": {"backbone": "conv4", "dimension": 16}}})
    found = dml.load(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert not found.training
    assert torch.equal(found(images), model.eval()(images))
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no model of this repository"):
        dml.load(tmp_path)
    with pytest.raises(ValueError, match="weights goes with timm: and torchvision: models"):
        dml.load(tmp_path, weights="file.pth")


def test_timm_needs_no_network_for_the_packaged_weights(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import timm

    from dml.models.backbones.lite0_stages import efficientnet_lite0

    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: object) -> nn.Module:
        if pretrained:
            raise OSError("no network")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    model = dml.load("timm:tf_efficientnet_lite0")
    images = torch.rand(1, 3, 64, 64)
    network = efficientnet_lite0("imagenet").eval()
    wanted = network.forward_head(network.forward_features(images * 2 - 1), pre_logits=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images), wanted)
    with pytest.raises(ValueError, match=r"weights of resnet18 cannot be downloaded \(OSError\); give weights"):
        dml.load("timm:resnet18")
    suite = {"queries": 4, "gate_tries": 2, "claims": False, "attacks": {"margin": {"steps": 2, "first": 0}}}
    larger = toy_split.images.repeat(4, axis=1).repeat(4, axis=2)
    result = dml.evaluate(model, larger, toy_split.labels, eps=8 / 255, suite=suite, report=lambda line: None)
    assert "your model" in str(result)
    assert result.notes == []
    result.save(tmp_path)


@pytest.mark.parametrize("name", ["junk.pth", "junk.safetensors"])
def test_a_file_that_holds_no_weights(name: str, tmp_path: Path) -> None:
    for junk in (b"", b"junk", bytes(range(256)), b"\x80\x02}q\x00."):
        (tmp_path / name).write_bytes(junk)
        with pytest.raises(ValueError, match=name):
            dml.load("timm:resnet18", tmp_path / name)


def test_weights_of_a_file_must_fit(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    network = resnet18()
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    model = dml.load("torchvision:resnet18", tmp_path / "whole.pth")
    images = torch.rand(1, 3, 32, 32)
    network.fc = nn.Identity()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = network.eval()((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(model(images), wanted)
    save_file({"conv1.weight": network.conv1.weight.data}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="holds no weights of resnet18: it lacks"):
        dml.load("torchvision:resnet18", tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        dml.load("torchvision:resnet18", tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="torchvision has no classifier 'resnet19'"):
        dml.load("torchvision:resnet19")


def test_the_command_takes_a_timm_model_with_weights_of_a_file(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    network.reset_classifier(0)
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    model = dml.load("timm:test_resnet", tmp_path / "mine.pth")
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.eval()((images - mean) / std))
    assert model.notes == (
        "pixels are normalised as the published weights of test_resnet want it, mean 0.5 0.5 0.5 and std 0.5 0.5 0.5; "
        "give mean and std if these weights were trained with others",
    )
    words = ["--model", "timm:test_resnet", "--weights", str(tmp_path / "mine.pth"), "--size", "32", "--eps", "1/255"]
    words += ["--queries", "2", "--no-controls", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(picture_folder(classes=3, images=3)), *words]) == 0
    assert "your model" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told["about"]["weights_sha256"] == weights_sha256(model)
    assert told["notes"] == list(model.notes)


def test_hugging_face_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="hf: needs the package transformers"):
        dml.load("hf:google/vit")


def test_a_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def make():\n    return lambda images: images.flatten(1)\n")
    assert dml.load(f"{file}:make")(torch.ones(2, 3, 4, 4)).shape == (2, 48)
    with pytest.raises(ValueError, match="has no function 'other'; it must return the model"):
        dml.load(f"{file}:other")
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def make(:\n", r"mine.py cannot be imported: SyntaxError: "),
        (
            "import no_such_module\n",
            r"mine.py cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("def make(size):\n    return size\n", r"make\(\) of .*mine.py returns no model: TypeError: .* 'size'"),
    ],
)
def test_a_file_that_gives_no_model(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=told):
        dml.load(f"{file}:make")


def test_wrapped_models_keep_their_metric() -> None:
    model = build("conv4", 8, seed=0).eval()
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(dml.wrap(model)(images), model(images))
    assert F.cosine_similarity(model(images), dml.wrap(model)(images)).min() > 0.999


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dml.nothing


def test_a_head_that_the_network_has_no_place_for_is_told(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The features before it are another model; ImageNet's own classifier is left out without a word."""
    from torchvision.models import resnet18

    network = resnet18()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(network.state_dict(), tmp_path / "published.pth")
        dml.load("torchvision:resnet18", tmp_path / "published.pth")
    network.fc = nn.Linear(512, 128)
    inner = {f"model.{key}": value for key, value in network.state_dict().items()}
    for name, held in (("plain", network.state_dict()), ("whole", {"state_dict": inner})):
        torch.save(held, tmp_path / f"{name}.pth")
        with pytest.warns(UserWarning, match=rf"{name}\.pth has fc\.weight \[128, 512\], which resnet18 without"):
            dml.load("torchvision:resnet18", tmp_path / f"{name}.pth")
    words = ["--model", "torchvision:resnet18", "--weights", str(tmp_path / "whole.pth"), "--size", "32"]
    words += ["--eps", "1/255", "--queries", "2", "--no-controls", "--output", str(tmp_path / "out")]
    folder = str(picture_folder(classes=3, images=3))
    assert main(["evaluate", folder, *words]) == 0
    assert "Note: " in capsys.readouterr().out
    assert "fc.weight" in json.loads((tmp_path / "out" / "result.json").read_text())["notes"][0]
    images = torch.rand(2, 3, 32, 32)
    inner = {f"resnet.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": inner}, tmp_path / "head.pth")
    model = dml.load("torchvision:resnet18", tmp_path / "head.pth", dimension=128)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.eval()((images - model.mean) / model.std))
    assert main(["evaluate", folder, *words, "--dimension", "128"]) == 0
    assert not json.loads((tmp_path / "out" / "result.json").read_text())["notes"]


def test_weights_trained_with_another_normalisation(tmp_path: Path) -> None:
    """timm's transformers want .5; whoever trains one further may have taken ImageNet's mean."""
    from timm import create_model

    network, images = create_model("test_vit", num_classes=0).eval(), torch.rand(2, 3, 160, 160)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = dml.load("timm:test_vit", tmp_path / "mine.pth", mean=mean, std=std)
    assert model.notes == ()
    with torch.no_grad():
        torch.testing.assert_close(model(images), dml.wrap(network, mean, std)(images))
    for given in ({"mean": mean}, {"std": std}):
        with pytest.raises(ValueError, match="mean and std are those that weights of one's own were trained with"):
            dml.load("timm:test_vit", tmp_path / "mine.pth", **given)
    with pytest.raises(ValueError, match="give all three"):
        dml.load("timm:test_vit", mean=mean, std=std)


def test_the_embedding_of_a_timm_model_with_a_head(tmp_path: Path) -> None:
    from timm import create_model

    network = create_model("test_resnet", num_classes=16)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    model, images = dml.load("timm:test_resnet", tmp_path / "mine.pth", dimension=16), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.eval()((images - model.mean) / model.std))
    for name, file in (("timm:test_resnet", None), (tmp_path, tmp_path / "mine.pth")):
        with pytest.raises(ValueError, match="dimension is that of a layer in the weights of a timm"):
            dml.load(name, file, dimension=16)
    for dimension in (0, "16"):
        with pytest.raises(ValueError, match="it must be a whole number, at least 1"):
            dml.load("timm:test_resnet", tmp_path / "mine.pth", dimension=dimension)
    torch.save(network.state_dict() | {"temperature": torch.tensor(0.1)}, tmp_path / "scaled.pth")
    with pytest.warns(UserWarning, match=r"temperature \[\], which test_resnet has no place for: it is left out"):
        dml.load("timm:test_resnet", tmp_path / "scaled.pth", dimension=16)
    with pytest.warns(UserWarning, match="which test_resnet without its classifier has no place for"):
        dml.load("timm:test_resnet", tmp_path / "scaled.pth")
