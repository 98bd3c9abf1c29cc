"""torchvision's ResNets without their classifier."""

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from dml.models.backbones.base import WORDS, Backbone, Normalisation
from dml.models.weights import WeightsError, load_backbone


class ResNet(Backbone):
    """A ResNet (He et al. 2016) that starts at random, from torchvision's ImageNet weights, or from a file of them.

    Attributes:
        network_name: torchvision's name of the network.

    Raises:
        WeightsError: the weights cannot be downloaded, or the file holds others.
    """

    network_name: ClassVar[str]
    smallest = 32  # strides leave one value
    starts = ("random", "imagenet", "file")

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        from torchvision.models import get_model  # takes seconds to import

        name = self.network_name
        try:
            self.network = get_model(name, weights="IMAGENET1K_V1" if start == "imagenet" else None)
        except (OSError, RuntimeError) as error:  # no network, or a download that does not match its checksum
            raise WeightsError(
                f"the ImageNet weights of {name} cannot be downloaded ({' '.join(str(error).split())}); set weights to "
                f"a file of them, for example data/weights/{name}.pth, or to random to train from scratch"
            ) from error
        if start not in WORDS:
            load_backbone(self.network, Path(start), name, without="fc.")
        self.network.fc = nn.Identity()

    @classmethod
    def normalisation(cls, start: str) -> Normalisation | None:
        """That of ImageNet for pretrained weights; that of the training images from random ones."""
        return None if start == "random" else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of normalised images (B, 3, H, W)."""
        return self.network(images)
