"""The VGG-16 backbone: its layers, what it wants of images, and where its weights come from."""

import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from dml.common.table import find
from dml.models.backbones import BACKBONES
from dml.models.backbones.base import check_start
from dml.models.backbones.vgg16 import VGG16
from dml.models.embedder import build
from dml.models.weights import WeightsError, load_weights, save

STATISTICS = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def backbone() -> VGG16:
    torch.manual_seed(0)
    return VGG16().eval()


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Weights under torchvision's names, with a small part of a classifier."""
    torch.manual_seed(1)
    with torch.device("meta"):  # takes no time and no memory
        network = torchvision.models.vgg16()
    features = {key: value for key, value in network.state_dict().items() if key.startswith("features.")}
    drawn = {key: 0.05 * torch.randn(value.shape) for key, value in features.items()}
    return drawn | {"classifier.6.bias": torch.zeros(1000)}


def images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 40), (64, 96)])
def test_features_of_images_of_any_size(height: int, width: int, backbone: VGG16) -> None:
    with torch.no_grad():
        assert backbone(images(2, height, width)).shape == (2, 512)
    assert (backbone.width, backbone.smallest) == (512, 32)
    assert find(BACKBONES, "vgg16", "backbone") is VGG16


def test_images_below_the_smallest_side_leave_nothing(backbone: VGG16) -> None:
    with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
        backbone(images(1, 31, 31))


def test_it_is_vgg16_a_convolution_and_the_maximum(backbone: VGG16) -> None:
    """Computed layer by layer from the paper's table (configuration D), without a module of torchvision."""
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6 + [512]
    assert [layer.kernel_size for layer in layers] == [(3, 3)] * 13 + [(5, 5)]
    assert not any(isinstance(layer, nn.Linear | nn.BatchNorm2d | nn.Dropout) for layer in backbone.modules())
    values = images(2, 64, 96)
    with torch.no_grad():
        for number, layer in enumerate(layers[:13], start=1):
            values = F.conv2d(values, layer.weight, layer.bias, padding=1).relu()
            if number in (2, 4, 7, 10, 13):
                values = F.max_pool2d(values, 2)
        assert values.shape == (2, 512, 2, 3)
        values = F.conv2d(values, layers[13].weight, layers[13].bias, padding=2).relu()
        expected = torch.stack([image.flatten(1).max(1).values for image in values])
        torch.testing.assert_close(backbone(images(2, 64, 96)), expected)


def test_initial_weights_are_drawn_as_torchvision_draws_them(backbone: VGG16) -> None:
    """Normal, with the variance 2 / fan-out (He et al. 2015), and no bias: the added convolution as well."""
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert (layer.bias == 0).all()


def test_an_untrained_network_tells_images_apart() -> None:
    """With torch's default initial weights the biases drown the image: embeddings lie 0.000002 apart."""
    model = build("vgg16", 128, seed=0, statistics={"mean": [0.5] * 3, "std": [0.29] * 3})
    patterns = F.interpolate(images(8, 4, 4), size=(32, 32))
    with torch.no_grad():
        assert torch.pdist(model(patterns)).mean() > 0.03


def test_the_gradient_reaches_every_pixel_and_every_layer() -> None:
    model = build("vgg16", 8, seed=0).train()
    given = images().requires_grad_(True)
    model(given)[:, 0].sum().backward()
    assert (given.grad.abs().sum(1) > 0).float().mean() > 0.99
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.backbone.parameters())


def test_what_its_images_are_normalised_by(published: dict[str, Tensor], tmp_path: Path) -> None:
    assert VGG16.normalisation("random") is None
    assert VGG16.normalisation("imagenet") == VGG16.normalisation("file.pth") == (IMAGENET["mean"], IMAGENET["std"])
    torch.save(published, tmp_path / "vgg16.pth")
    for start, wanted in (("random", STATISTICS), (str(tmp_path / "vgg16.pth"), IMAGENET)):
        model = build("vgg16", 8, seed=0, start=start, statistics=STATISTICS)
        for name, values in wanted.items():
            assert getattr(model, name).flatten().tolist() == pytest.approx(values)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("vgg16", 8, seed=5)
    torch.manual_seed(2)
    second, third = build("vgg16", 8, seed=5), build("vgg16", 8, seed=6)
    assert torch.equal(first(images()), second(images()))
    assert not torch.equal(first(images()), third(images()))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("classifier", [True, False])
def test_training_may_start_from_a_file(
    suffix: str, classifier: bool, published: dict[str, Tensor], tmp_path: Path
) -> None:
    """The convolutions of VGG-16 come from the file, with or without a classifier; the layers after are new."""
    file = tmp_path / f"vgg16.{suffix}"
    stored = {key: value for key, value in published.items() if classifier or key.startswith("features.")}
    (save_file if suffix == "safetensors" else torch.save)(stored, file)
    first, second = (build("vgg16", 8, seed=seed, start=str(file)).backbone for seed in (0, 1))
    for key, value in published.items():
        if key.startswith("features."):
            assert torch.equal(first.state_dict()[key], value), key
    assert not torch.equal(first.added[0].weight, second.added[0].weight)


def test_saved_weights_come_back(tmp_path: Path) -> None:
    model = build("vgg16", 8, seed=0, statistics=STATISTICS)
    save(model, tmp_path / "weights.safetensors")
    other = load_weights(build("vgg16", 8, seed=1), tmp_path / "weights.safetensors")
    assert torch.equal(model.eval()(images()), other(images()))


def test_imagenet_weights_are_those_of_torchvision(
    published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, **options: object) -> dict[str, Tensor]:
        asked.append((url.split("/")[-1], options["check_hash"]))
        return published

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    state = VGG16("imagenet").state_dict()
    assert asked == [("vgg16-397923af.pth", True)]
    assert all(torch.equal(state[key], value) for key, value in published.items() if key.startswith("features."))


def test_weights_that_cannot_be_used_are_one_sentence(
    published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*words: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    torch.save(build("conv4", 8, seed=0).state_dict(), tmp_path / "conv4.pth")
    torch.save({k: v for k, v in published.items() if k != "features.28.bias"}, tmp_path / "part.pth")
    torch.save(published | {"features.0.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for start, words in (
        ("imagenet", "weights of vgg16 cannot be downloaded .*no route to host.*data/weights/vgg16.pth, or to random"),
        ("imagenett", "imagenett does not exist; put the published weights of vgg16 there"),
        (str(tmp_path / "conv4.pth"), "holds no weights of vgg16: it lacks features.0.bias"),
        (str(tmp_path / "part.pth"), "holds no weights of vgg16: it lacks features.28.bias"),
        (str(tmp_path / "other.pth"), "holds no weights of vgg16"),
        (str(tmp_path / "text.pth"), "holds no weights of vgg16"),
    ):
        with pytest.raises(WeightsError, match=words) as caught:
            build("vgg16", 8, seed=0, start=start)
        assert "\n" not in str(caught.value)


def test_every_start_is_accepted() -> None:
    for start in ("random", "imagenet", "data/weights/vgg16.pth"):
        check_start("vgg16", VGG16, start)
