"""The embedding model."""

from pathlib import Path

import pytest
import torch

from dml.models import BACKBONES, Embedder, build, evaluating, load_weights, save


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
        model = build("conv4", 8, seed=0, freeze_batchnorm=frozen).train()
        before = model.backbone[2].running_mean.clone()
        model(torch.rand(4, 3, 16, 16))
        assert torch.equal(before, model.backbone[2].running_mean) == frozen
        assert model.head.training


def test_evaluating_puts_every_mode_back() -> None:
    model = build("conv4", 8, seed=0, freeze_batchnorm=True).train()
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
