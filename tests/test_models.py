"""The embedding model."""

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from matplotlib import cbook
from PIL import Image

from dml.models.embedder import (
    BACKBONES,
    Embedder,
    Palette,
    WeightsError,
    build,
    digest,
    efficientnet_lite0,
    evaluating,
    freeze_batchnorm,
    load_weights,
    pretrained_statistics,
    save,
)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_embeddings_have_unit_length(backbone: str) -> None:
    model = build(backbone, 16, seed=0).eval()
    embeddings = model(torch.rand(2, 3, 32, 32))
    assert embeddings.shape == (2, 16)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build("conv4", 8, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, third = build("conv4", 8, seed=5), build("conv4", 8, seed=6)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, third.head.weight)


def test_mean_and_std_are_part_of_the_model() -> None:
    plain = build("conv4", 8, seed=0).eval()
    inside = build("conv4", 8, seed=0, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    images = torch.rand(2, 3, 16, 16)
    shifted = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(inside(images), plain(shifted))


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    for frozen in (True, False):
        model = build("conv4", 8, seed=0).train()
        if frozen:
            freeze_batchnorm(model)
        before = model.backbone[2].running_mean.clone()
        model(torch.rand(4, 3, 16, 16))
        assert torch.equal(before, model.backbone[2].running_mean) == frozen
        assert model.head.training


def test_evaluating_puts_every_mode_back() -> None:
    model = build("conv4", 8, seed=0).train()
    freeze_batchnorm(model)
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_saved_weights_come_back(tmp_path: Path) -> None:
    model = build("conv4", 8, seed=0, mean=[0.1, 0.2, 0.3])
    save(model, tmp_path / "weights.safetensors")
    other = load_weights(Embedder("conv4", 8), tmp_path / "weights.safetensors")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.eval()(images), other(images))


def test_training_may_start_from_a_file_of_weights(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(weights=None)
    published = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save(published, tmp_path / "resnet18.pth")  # torchvision's first files lack these counters
    model = build("resnet18", 8, seed=0, weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(model.backbone.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    other = build("resnet18", 8, seed=1, weights=str(tmp_path / "resnet18.pth"))
    assert not torch.equal(model.head.weight, other.head.weight), "the head is new"


def test_the_pretrained_small_network_sees_what_is_in_a_photograph() -> None:
    """The weights come under other names; a layer in the wrong place would see nothing in the picture."""
    photo = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB").resize((224, 224))
    images = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float()[None] / 255
    model = build("lite0_stages", 8, seed=0, weights="imagenet", **pretrained_statistics("lite0_stages")).eval()
    whole = efficientnet_lite0("imagenet").eval()
    stages = []
    for block in whole.blocks[1:5]:
        block.register_forward_hook(lambda _, given, out: stages.append(out.mean((2, 3))))
    with torch.no_grad():
        normalised = (images - model.mean) / model.std
        classes, features = whole(normalised), model.backbone(normalised)
    assert classes.argmax() == 652, "a military uniform"
    normed = [(stage - stage.mean()) / (stage.var(correction=0) + 1e-5).sqrt() for stage in stages]
    torch.testing.assert_close(features, torch.cat(normed, 1))


def test_a_palette_divides_every_pixel_by_a_gaussian_among_its_colours() -> None:
    palette = Palette()
    pixels = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    level = [-1 + 0.4 * step for step in range(6)]
    colours = torch.tensor([(red, green, blue) for red in level for green in level for blue in level])
    means = F.avg_pool2d(pixels, 3).flatten(2).transpose(1, 2)  # (2, 4, 3)
    density = torch.exp(-(torch.cdist(means, colours) ** 2) / (2 * 0.2**2))  # 0.2: half the spacing
    expected = (density / density.sum(2, keepdim=True)).mean(1)
    torch.testing.assert_close(palette.shares(pixels), expected, atol=1e-5, rtol=1e-4)


def test_colours_stand_beside_what_the_stages_see() -> None:
    alone, both = (build(name, 8, seed=0, weights="imagenet").eval() for name in ("lite0_stages", "lite0_colours"))
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, features = alone.features(images), both.features(images)
    assert features.shape == (2, 256 + 216)
    torch.testing.assert_close(features[:, :256], seen)
    torch.testing.assert_close(features[:, 256:], both.backbone.palette(images))


def test_weights_that_cannot_be_had_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*words: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    torch.save(build("conv4", 8, seed=0).state_dict(), tmp_path / "conv4.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for weights, words in (
        ("imagenet", "cannot be downloaded .*no route to host.*data/weights/resnet18.pth, or to random"),
        (str(tmp_path / "none.pth"), "none.pth does not exist"),
        (str(tmp_path / "conv4.pth"), "holds no weights of resnet18"),
        (str(tmp_path / "text.pth"), "holds no weights of resnet18"),
    ):
        with pytest.raises(WeightsError, match=words) as caught:
            build("resnet18", 8, seed=0, weights=weights)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="conv4 starts from random"):
        build("conv4", 8, seed=0, weights="imagenet")
    with pytest.raises(ValueError, match="lite0_stages starts from random or imagenet"):
        build("lite0_stages", 8, seed=0, weights="some.pth")


def test_the_digest_names_the_weights() -> None:
    assert digest(build("conv4", 8, seed=0)) == digest(build("conv4", 8, seed=0))
    assert digest(build("conv4", 8, seed=0)) != digest(build("conv4", 8, seed=1))
