"""The robust start: its loss, its backbone, and the file that other recipes begin with."""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import normalize

from dml.config.load import load
from dml.data.base import Split
from dml.data.transforms import to_float
from dml.defenses.joint import Joint
from dml.losses.normalized_softmax import NormalizedSoftmax
from dml.models.backbones.grid4 import Grid4
from dml.models.backbones.grid13 import Grid13
from dml.models.backbones.grids import Grids
from dml.models.embedder import build
from dml.models.palette import Palette
from dml.models.shades import Shades
from dml.models.weights import WeightsError
from dml.pipeline import join, pretrain


def test_the_loss_is_the_cross_entropy_over_cosines(generator: torch.Generator) -> None:
    loss = NormalizedSoftmax(3, 4, temperature=0.1)
    points = normalize(torch.randn(5, 4, generator=generator), dim=1)
    labels = torch.tensor([0, 1, 2, 0, 1])
    proxies = next(loss.parameters())
    assert sorted(proxies.shape) == [3, 4]
    rows = proxies if proxies.shape[0] == 3 else proxies.T
    cosines = points @ normalize(rows, dim=1).T
    expected = -(cosines / 0.1).log_softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(loss.natural(points, labels, generator), expected)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0\.0; it must be above 0"):
        NormalizedSoftmax(3, 4, temperature=0.0)


def test_one_step_against_the_loss_is_fgsm_from_a_random_start(generator: torch.Generator) -> None:
    """Each image moves along the sign of its own gradient and stays in the ball."""
    model = build("grid4", 4, seed=0)
    before = copy.deepcopy(model).eval()  # the training pass moves BatchNorm's statistics
    images = 0.2 + 0.6 * torch.rand(6, 3, 32, 32, generator=generator)
    labels, loss = torch.arange(3).repeat(2), NormalizedSoftmax(3, 4)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    Joint(eps=0.03, steps=1, step_size=0.0375)(model, images, labels, loss, generator)
    start, perturbed = seen[0], seen[-1]
    probe = start.clone().requires_grad_(True)
    gradient = torch.autograd.grad(loss.natural(before(probe), labels, generator).sum(), probe)[0]
    wanted = torch.clamp(start + 0.0375 * gradient.sign() - images, -0.03, 0.03)
    torch.testing.assert_close(perturbed - images, wanted, atol=1e-6, rtol=0)


def test_features_keep_the_quarter_that_they_come_from() -> None:
    """A change in one corner reaches the cells of the other corners less than its own."""
    network = Grid4().eval()
    images = torch.zeros(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :8, :8] = 1.0
    with torch.no_grad():
        moved = (network(changed) - network(images)).view(256, 2, 2).abs().sum(0)
    assert moved[0, 0] > 0
    assert moved[1, 1] == 0


def test_grid13_halves_three_times_and_adds_to_what_it_has() -> None:
    """Blocks whose last convolutions are 0 pass values on; a change in one corner reaches its own cell most."""
    network = Grid13().eval()
    block = network.layers[3]
    nn.init.zeros_(block.convolutions[-1].weight)
    values = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(values), values)
    images = torch.zeros(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :8, :8] = 1.0
    with torch.no_grad():
        assert network.layers[:-2](images).shape == (1, 256, 8, 8)
        moved = (network(changed) - network(images)).view(256, 2, 2).abs().sum(0)
    assert moved[0, 0] > 2 * moved[1, 1]


def test_grids_stand_beside_the_same_metric_and_finer_colours() -> None:
    """Features of both networks, each as far away as the other, beside the metric that Grid4 has beside it."""
    split = _photographs(0)
    four, both = (build(name, 0, seed=3, options={"colours": 0.6}).eval() for name in ("grid4_linear", "grids_linear"))
    for model in (four, both):
        model.backbone.begin(split, seed=5)
    images = to_float(split.images)
    grids = both.backbone.grid
    with torch.no_grad():
        found, beside = both.features(images), four.features(images)
        features = [F.normalize(network((images - 0.5) / 0.25), dim=1) for network in (grids.grid4, grids.grid13)]
        shades = Shades()(2 * images - 1)
    assert both.dimension == found.shape[1] == 2048 + 768 + 12**3
    grid, metric, colours = found.split([2048, 768, 12**3], dim=1)
    torch.testing.assert_close(grid, torch.cat(features, 1) / 2**0.5)
    # The same up to scales, which the features give.
    torch.testing.assert_close(F.normalize(metric, dim=1), F.normalize(beside[:, 1024:1792], dim=1))
    torch.testing.assert_close(F.normalize(colours, dim=1), F.normalize(shades - shades.mean(0), dim=1))
    nearest = [torch.cdist(part, part).fill_diagonal_(torch.inf).min(1).values.median() for part in (colours, grid)]
    torch.testing.assert_close(nearest[0], 0.6 * nearest[1], atol=1e-5, rtol=1e-3)


def test_starts_of_both_networks_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {name: build(name, 8, seed=seed).eval() for seed, name in enumerate(("grid13", "grid4"))}
    files = [tmp_path / f"{name}.safetensors" for name in parts]
    for file, (name, model) in zip(files, parts.items(), strict=True):
        pretrain.export(model, {"of": name}, file)
    whole = tmp_path / "grids.safetensors"
    assert join.main(["grids", *map(str, files), str(whole)]) == 0
    grids = build("grids", 0, seed=9, start=str(whole)).backbone
    for file, name in zip(files, parts, strict=True):
        begun = build(name, 0, seed=5, start=str(file)).backbone.state_dict()
        for key, value in getattr(grids, name).state_dict().items():
            assert torch.equal(value, begun[key]), key
    about = json.loads(whole.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert {name: part["of"] for name, part in about["parts"].items()} == {name: name for name in parts}
    assert join.main(["grids", str(files[0]), str(whole)]) == 1
    assert "the files are those of ['grid13']; grids has ['grid13', 'grid4']" in capsys.readouterr().err


def test_a_file_of_weights_starts_the_backbone(tmp_path: Path) -> None:
    """As it was but for half precision of what convolves."""
    model = build("grid4", 8, seed=3).eval()
    pretrain.export(model, {"seed": 3}, tmp_path / "start.safetensors")
    again = build("grid4", 8, seed=4, start=str(tmp_path / "start.safetensors")).eval()
    for name, value in model.backbone.state_dict().items():
        read = again.backbone.state_dict()[name]
        assert read.dtype == value.dtype
        assert torch.equal(read, value.half().float() if value.dim() > 1 else value)
    assert (tmp_path / "start.safetensors").stat().st_size < 2.1 * sum(p.numel() for p in model.backbone.parameters())
    assert not torch.equal(model.head.weight, again.head.weight)
    about = json.loads((tmp_path / "start.json").read_text())
    assert about == {"sha256": hashlib.sha256((tmp_path / "start.safetensors").read_bytes()).hexdigest(), "seed": 3}


def _photographs(seed: int) -> Split:
    """Four classes of six images: a pattern of colours each, under noise."""
    draw = np.random.default_rng(seed)
    patterns = draw.integers(40, 215, (4, 1, 4, 4, 3)).repeat(8, 2).repeat(8, 3)
    images = patterns + draw.normal(0, 40, (4, 6, 32, 32, 3))
    labels = np.repeat(np.arange(4), 6)
    return Split(np.clip(images, 0, 255).astype(np.uint8).reshape(24, 32, 32, 3), labels, list("abcd"))


def test_a_linear_metric_stands_beside_the_features() -> None:
    """The squared distance is that of the unit features plus that of the pooled pixels in the metric."""
    split = _photographs(0)
    both, alone = build("grid4_linear", 0, seed=3).eval(), build("grid4", 0, seed=3).eval()
    both.backbone.begin(split, seed=5)
    both.backbone.grid.load_state_dict(alone.backbone.state_dict())
    images = to_float(split.images[[0, 6]])
    boxes = images.view(2, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1)
    with torch.no_grad():
        apart, features = both.features(images), F.normalize(alone.features(images), dim=1)
    mapped = (both.backbone.matrix @ (boxes[0] - boxes[1])).square().sum()
    wanted = (features[0] - features[1]).square().sum() + mapped
    torch.testing.assert_close((apart[0] - apart[1]).square().sum(), wanted)
    assert both.dimension == both(images).shape[1] == 1024 + 768


def test_colours_stand_beside_both() -> None:
    """The histogram adds its own squared distance, as far scaled as its weight says, and is not trained."""
    split = _photographs(0)
    plain, model = (build("grid4_linear", 0, seed=3, options={"colours": share}).eval() for share in (0, 0.6))
    for each in (plain, model):
        each.backbone.begin(split, seed=5)
    images = to_float(split.images)
    with torch.no_grad():
        found, without = model.features(images), plain.features(images)
        shades = Palette()(2 * images - 1)
    assert model.dimension == found.shape[1] == 1024 + 768 + 216
    torch.testing.assert_close(found[:, :1792], without)
    features, colours = torch.cdist(found[:, :1024], found[:, :1024]), torch.cdist(found[:, 1792:], found[:, 1792:])
    nearest = [apart.clone().fill_diagonal_(torch.inf).min(1).values.median() for apart in (colours, features)]
    torch.testing.assert_close(nearest[0], 0.6 * nearest[1], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(colours / colours[0, 9], (each := torch.cdist(shades, shades)) / each[0, 9])
    assert found[:, 1792:].mean(0).abs().max() < 1e-5
    assert {name.split(".")[1] for name, value in model.named_parameters() if value.requires_grad} == {"grid"}


def test_a_neighbour_is_as_far_in_the_metric_as_its_weight_says() -> None:
    split = _photographs(1)
    model = build("grid4_linear", 0, seed=3, options={"weight": 1.7})
    model.train()
    model.backbone.begin(split, seed=5)
    assert model.training
    assert model.backbone.training
    with torch.no_grad():
        found = model.eval().features(to_float(split.images))
    features, metric = torch.cdist(found[:, :1024], found[:, :1024]), torch.cdist(found[:, 1024:], found[:, 1024:])
    nearest = [apart.fill_diagonal_(torch.inf).min(1).values.median() for apart in (metric, features)]
    torch.testing.assert_close(nearest[0], 1.7 * nearest[1])
    assert found[:, 1024:].mean(0).abs().max() < 1e-4


def test_the_metric_is_fitted_once_and_not_trained() -> None:
    split = _photographs(2)
    models = [build("grid4_linear", 0, seed=seed) for seed in (0, 0)]
    for model in models:
        model.backbone.begin(split, seed=5)
    assert torch.equal(models[0].backbone.matrix, models[1].backbone.matrix)
    assert not torch.equal(models[0].backbone.matrix, torch.eye(768) * models[0].backbone.matrix[0, 0])
    assert {name.split(".")[1] for name, _ in models[0].named_parameters()} == {"grid"}
    saved = build("grid4_linear", 0, seed=9)
    saved.load_state_dict(models[0].state_dict())
    images = to_float(split.images[:2])
    assert torch.equal(saved.eval()(images), models[0].eval()(images))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    pretrain.export(build("conv4", 8, seed=0), {}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds no weights of grid4"):
        Grid4(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("name", ["grid4", "grids"])
def test_the_committed_starts_are_what_their_json_says(name: str) -> None:
    file = pretrain.ROOT / "pretrained" / f"{name}.safetensors"
    about = json.loads(file.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size < 8e6
    parts = about["parts"] if name == "grids" else {name: about}
    assert all(part["settings"]["model"]["backbone"] == each for each, part in parts.items())
    build(name, 0, seed=0, start=str(file))


def test_a_start_that_was_joined_has_the_weights_of_its_parts() -> None:
    """Of Grid4 the other file has them in full precision."""
    pretrained = pretrain.ROOT / "pretrained"
    about = json.loads((pretrained / "grids.json").read_text())
    alone = pretrained / "grid4.safetensors"
    assert about["parts"]["grid4"]["sha256"] == hashlib.sha256(alone.read_bytes()).hexdigest()
    both, one = Grids(str(pretrained / "grids.safetensors")), Grid4(str(alone))
    for name, value in one.state_dict().items():
        rounded = value.half().float() if value.dim() > 1 else value
        assert torch.equal(both.grid4.state_dict()[name], rounded), name


def test_recipes_begin_with_a_start_that_is_there() -> None:
    recipes = load().recipes.values()
    used = {recipe.model.weights for recipe in recipes if recipe.model.weights.endswith(".safetensors")}
    assert used == {"pretrained/grid4.safetensors", "pretrained/grids.safetensors"}


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tiny_imagenet", "normalized_softmax", "jont", "pretrained/x.safetensors"]
    assert pretrain.main(words) == 1
    assert "joint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pretrain.main([*words[:3], "pretrained/x.pt"])
    assert "must end in .safetensors" in capsys.readouterr().err


def test_only_a_backbone_that_reads_its_own_weights_can_be_a_start() -> None:
    assert pretrain.no_start(load().recipe("tiny_imagenet")) is None
    for recipe in ("glyphs", "flowers", "flowers_128"):
        assert "no recipe can begin with weights of" in str(pretrain.no_start(load().recipe(recipe)))
