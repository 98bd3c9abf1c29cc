"""Robust distillation: what the student is told, and that its images move away from it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.defenses.distilled import Distilled, _projected
from dml.losses.normalized_softmax import NormalizedSoftmax
from dml.models.backbones.lite0_stages import efficientnet_lite0
from dml.models.embedder import build

IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 1])
LOSS = NormalizedSoftmax(2, 8)


class Fixed(nn.Module):
    """Gives the embeddings that it was made with, whatever the images."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)

    def forward(self, images: Tensor) -> Tensor:
        return self.embeddings + 0 * images.mean((1, 2, 3))[:, None]


def teacher(images: Tensor, side: int) -> Tensor:
    """The teacher's embeddings, by timm's own words for them."""
    network = efficientnet_lite0("imagenet").eval()
    large = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        features = network.global_pool(network.forward_features(2 * large - 1))
    return F.normalize(features - features.mean(0), dim=1)


def values(defense: Distilled, model: nn.Module) -> Tensor:
    return defense(model, IMAGES, LABELS, LOSS, torch.Generator().manual_seed(1))


def test_the_loss_is_the_squared_distance_from_the_teacher() -> None:
    wanted = teacher(IMAGES, 64)
    torch.testing.assert_close(values(Distilled(steps=1, side=64), Fixed(wanted)), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        values(Distilled(steps=1, side=64), Fixed(-wanted)), torch.full((5,), 4.0), atol=1e-4, rtol=0
    )


def test_another_dimension_learns_a_projection_that_keeps_angles() -> None:
    """Random directions keep the cosines of two embeddings up to 1 / sqrt(dimension)."""
    wanted = teacher(IMAGES, 96)
    projected = _projected(wanted, 512)
    assert projected.shape == (5, 512)
    assert torch.equal(projected, _projected(wanted, 512))
    torch.testing.assert_close(projected @ projected.T, wanted @ wanted.T, atol=4 / 512**0.5, rtol=0)
    torch.testing.assert_close(values(Distilled(steps=1), Fixed(projected)), torch.zeros(5), atol=1e-4, rtol=0)


def test_images_move_away_from_the_teacher_and_stay_in_the_ball() -> None:
    model = build("conv4", 32, seed=0).train()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    far = values(Distilled(eps=8 / 255, steps=5), model).mean()
    assert (seen[-1] - IMAGES).abs().max() <= 8 / 255 + 1e-6
    near = values(Distilled(eps=1e-6, steps=1), model).mean()
    assert far > near + 0.05


def test_labels_and_the_loss_take_no_part() -> None:
    first = values(Distilled(steps=1), build("conv4", 16, seed=0).train())
    other = Distilled(steps=1)(
        build("conv4", 16, seed=0).train(),
        IMAGES,
        LABELS.flip(0),
        NormalizedSoftmax(2, 16),
        torch.Generator().manual_seed(1),
    )
    assert torch.equal(first, other)


def test_checkpoints_do_not_hold_the_teacher() -> None:
    defense = Distilled(steps=1)
    values(defense, Fixed(teacher(IMAGES, 96)))
    assert set(defense.state_dict()) == {"_extra_state"}
    assert not list(defense.parameters())


def test_a_side_that_the_teacher_cannot_see_is_refused() -> None:
    with pytest.raises(ValueError, match="side is 16; it must be at least 32"):
        Distilled(side=16)
