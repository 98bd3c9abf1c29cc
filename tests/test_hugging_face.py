"""`hf:`: models of transformers, made here from their configurations; skipped where the package is not installed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dml

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
SQUARE = {"height": 32, "width": 32}


def saved(folder: Path, model: torch.nn.Module, processor: object) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"hf:{folder}"


def vit(pooling: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.ViTModel(transformers.ViTConfig(**TINY, intermediate_size=64), add_pooling_layer=pooling).eval()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def unit(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("pooling", [True, False])
def test_a_tower_without_published_pooling_gives_its_first_token(
    pooling: bool, picture: np.ndarray, tmp_path: Path
) -> None:
    """transformers itself would pool with random numbers."""
    model, processor = vit(pooling), transformers.ViTImageProcessor(size=SQUARE)
    found = dml.load(saved(tmp_path, model, processor))
    with torch.no_grad():
        output = model(**processor(Image.fromarray(picture), return_tensors="pt"))
        expected = output.pooler_output if pooling else output.last_hidden_state[:, 0]
        torch.testing.assert_close(found(unit(picture)), expected, atol=1e-5, rtol=0)


def test_a_model_of_images_and_text_gives_what_it_compares(picture: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = {**TINY, "intermediate_size": 64}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=tower, projection_dim=24))
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    found = dml.load(saved(tmp_path, model.eval(), processor))
    with torch.no_grad():
        pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        torch.testing.assert_close(found(unit(picture)), expected, atol=1e-5, rtol=0)
    assert expected.shape == (1, 24)


def test_images_get_the_side_that_the_network_takes(tmp_path: Path) -> None:
    """Of a processor that enlarges images and cuts the middle out, the side of the middle."""
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**TINY))
    processor = transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE)
    found = dml.load(saved(tmp_path, model.eval(), processor))
    assert found.size == 32
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    found(images)[:, 0].sum().backward()
    assert (images.grad != 0).any()


def test_a_model_of_transformers_is_attacked(tmp_path: Path, toy_split: object) -> None:
    model = dml.load(saved(tmp_path, vit(True), transformers.ViTImageProcessor(size=SQUARE)))
    attacks = {"soft_margin": {"steps": 5, "classes": 1, "target_steps": 2}}
    result = dml.evaluate(
        model, toy_split.images, toy_split.labels, suite={"attacks": attacks, "gate_tries": 5}, eps=0.2, controls=()
    )
    left = result.outcomes[result.outcomes["attack"] == "worst"]["r1"].mean()
    assert left < result.outcomes[result.outcomes["attack"] == "none"]["r1"].mean()


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    name = saved(tmp_path, vit(True), transformers.ViTImageProcessor(size=SQUARE))
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state.pop(min(key for key in state if "layer" in key))
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no weights for .*layer.* they would be random numbers"):
        dml.load(name)
    with pytest.raises(ValueError, match="transformers cannot load"):
        dml.load(f"hf:{tmp_path}/none")
