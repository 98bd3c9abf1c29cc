"""The embedding model, its backbones, and their weights."""

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from matplotlib import cbook
from PIL import Image
from torch import nn

from dml.common.table import find
from dml.models.backbones import BACKBONES
from dml.models.backbones.base import WORDS, Backbone, check_start
from dml.models.backbones.lite0_stages import efficientnet_lite0
from dml.models.embedder import build, device_of, evaluating, freeze_batchnorm
from dml.models.palette import Palette
from dml.models.shades import Shades
from dml.models.weights import WeightsError, digest, load_weights, save

STATISTICS = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_embeddings_have_unit_length(name: str) -> None:
    model = build(name, 16, seed=0).eval()
    for side in (model.backbone.smallest, 40):
        embeddings = model(torch.rand(2, 3, side, side))
        assert embeddings.shape == (2, 16)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert model.features(torch.rand(2, 3, 32, 32)).shape == (2, model.backbone.width)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_backbone_states_all_that_is_asked_of_it(name: str) -> None:
    kind: type[Backbone] = find(BACKBONES, name, "backbone")
    assert issubclass(kind, Backbone)
    assert set(kind.starts) <= {*WORDS, "file"}
    for start in ("random", "imagenet", "weights.pth"):
        if (start if start in WORDS else "file") in kind.starts:
            check_start(name, kind, start)
        else:
            with pytest.raises(ValueError, match=f"weights is '{start}'; {name} starts from random"):
                check_start(name, kind, start)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build("conv4", 8, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, third = build("conv4", 8, seed=5), build("conv4", 8, seed=6)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, third.head.weight)


def test_the_same_seed_gives_the_same_weights_as_ever() -> None:
    """The sum of all initial weights, which depends on the order in which layers are initialised."""
    known = {"conv4": 310.913449, "resnet18": 4904.679833, "lite0_stages": 8481.557655}
    for name, total in known.items():
        model = build(name, 8, seed=0)
        found = sum(float(weight.detach().double().sum()) for weight in model.parameters())
        assert found == pytest.approx(total, abs=1e-4), name


def test_mean_and_std_are_part_of_the_model() -> None:
    plain = build("conv4", 8, seed=0).eval()
    inside = build("conv4", 8, seed=0, statistics=STATISTICS).eval()
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(inside(images), plain((images - mean) / std))


@pytest.mark.parametrize(
    ("name", "start", "mean"),
    [
        ("conv4", "random", STATISTICS["mean"]),
        ("resnet18", "random", STATISTICS["mean"]),
        ("lite0_stages", "random", [0.5] * 3),
        ("grid4_linear", "random", [0.5] * 3),
        ("lite0_stages", "imagenet", [0.5] * 3),
    ],
)
def test_a_backbone_gets_the_range_of_values_that_it_wants(name: str, start: str, mean: list[float]) -> None:
    """Published weights and the robust start want theirs, whatever the training images."""
    model = build(name, 8, seed=0, start=start, statistics=STATISTICS)
    assert model.mean.flatten().tolist() == pytest.approx(mean)


def test_pretrained_resnets_want_the_statistics_of_imagenet() -> None:
    kind: type[Backbone] = find(BACKBONES, "resnet50", "backbone")
    assert (
        kind.normalisation("imagenet")
        == kind.normalisation("file.pth")
        == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    assert kind.normalisation("random") is None


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    for frozen in (True, False):
        model = build("conv4", 8, seed=0).train()
        if frozen:
            freeze_batchnorm(model)
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        before = norm.running_mean.clone()
        model(torch.rand(4, 3, 16, 16))
        assert torch.equal(before, norm.running_mean) == frozen
        assert model.head.training


def test_evaluating_restores_every_mode() -> None:
    model = build("conv4", 8, seed=0).train()
    freeze_batchnorm(model)
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_the_device_of_a_model_without_parameters() -> None:
    model = nn.Module()
    assert device_of(model) == torch.device("cpu")
    model.register_buffer("scale", torch.ones(1, device="meta"))
    assert device_of(model) == torch.device("meta")


def test_saved_weights_come_back(tmp_path: Path) -> None:
    model = build("conv4", 8, seed=0, statistics=STATISTICS)
    save(model, tmp_path / "weights.safetensors")
    other = load_weights(build("conv4", 8, seed=1), tmp_path / "weights.safetensors")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.eval()(images), other(images))


def test_training_may_start_from_a_file_of_weights(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(weights=None)
    published = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save(published, tmp_path / "resnet18.pth")  # torchvision's first files lack these counters
    first, second = (build("resnet18", 8, seed=seed, start=str(tmp_path / "resnet18.pth")) for seed in (0, 1))
    assert torch.equal(first.backbone.network.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert not torch.equal(first.head.weight, second.head.weight), "the head is new"


def test_the_pretrained_small_network_recognises_a_photograph() -> None:
    """The weights come under other names; a layer in the wrong place would recognise nothing."""
    photo = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB").resize((224, 224))
    images = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float()[None] / 255
    model = build("lite0_stages", 8, seed=0, start="imagenet").eval()
    whole = efficientnet_lite0("imagenet").eval()
    stages = []
    for block in whole.blocks[1:5]:
        block.register_forward_hook(lambda _, given, out: stages.append(out.mean((2, 3))))
    with torch.no_grad():
        classes, features = whole(2 * images - 1), model.features(images)
    assert classes.argmax() == 652, "a military uniform"
    normed = [(stage - stage.mean()) / (stage.var(correction=0) + 1e-5).sqrt() for stage in stages]
    torch.testing.assert_close(features, torch.cat(normed, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("histogram", "levels"), [(Palette(), 6), (Shades(5), 5)], ids=["palette", "shades"])
def test_a_histogram_divides_every_pixel_by_a_gaussian_among_its_colours(
    histogram: Palette | Shades, levels: int
) -> None:
    pixels = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spacing = 2 / (levels - 1)
    level = [-1 + spacing * step for step in range(levels)]
    colours = torch.tensor([(red, green, blue) for red in level for green in level for blue in level])
    means = F.avg_pool2d(pixels, histogram.pooled).flatten(2).transpose(1, 2)
    density = torch.exp(-(torch.cdist(means, colours) ** 2) / (2 * (spacing / 2) ** 2))
    expected = (density / density.sum(2, keepdim=True)).mean(1)
    torch.testing.assert_close(histogram.shares(pixels), expected, atol=1e-5, rtol=1e-4)
    assert histogram(pixels).shape == (6, histogram.width)


def test_weights_that_cannot_be_used_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*words: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    torch.save(build("conv4", 8, seed=0).state_dict(), tmp_path / "conv4.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for start, words in (
        ("imagenet", "cannot be downloaded .*no route to host.*data/weights/resnet18.pth, or to random"),
        (str(tmp_path / "none.pth"), "none.pth does not exist"),
        (str(tmp_path / "conv4.pth"), "holds no weights of resnet18"),
        (str(tmp_path / "text.pth"), "holds no weights of resnet18"),
    ):
        with pytest.raises(WeightsError, match=words) as caught:
            build("resnet18", 8, seed=0, start=start)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="conv4 starts from random"):
        build("conv4", 8, seed=0, start="imagenet")
    with pytest.raises(ValueError, match="lite0_stages starts from random or imagenet"):
        build("lite0_stages", 8, seed=0, start="some.pth")
    with pytest.raises(ValueError, match="backbone 'resnet8' is unknown; did you mean 'resnet18'"):
        build("resnet8", 8, seed=0)


def test_the_digest_identifies_the_weights() -> None:
    assert digest(build("conv4", 8, seed=0)) == digest(build("conv4", 8, seed=0))
    assert digest(build("conv4", 8, seed=0)) != digest(build("conv4", 8, seed=1))
