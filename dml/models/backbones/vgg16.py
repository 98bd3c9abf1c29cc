"""torchvision's VGG-16 with the last layers of VisualPhishNet."""

from pathlib import Path

from torch import Tensor, nn

from dml.models.backbones.base import WORDS, Backbone, Normalisation
from dml.models.weights import WeightsError, load_backbone

NAME = "vgg16"


class VGG16(Backbone):
    """The convolutions of VGG-16, one more convolution, and the maximum over the image (B, 512).

    These are, in order, after VisualPhishNet (Abdelnabi et al. 2020):

    - the 13 convolutions of VGG-16 with ReLU and their five poolings (Simonyan and Zisserman 2015), without BatchNorm,
      average pooling and classifier: torchvision's ``features``, (B, 512, H / 32, W / 32);
    - a 5x5 convolution to 512 channels with ReLU;
    - the maximum of each channel over the image.

    The added convolution is padded by 2, unlike that of VisualPhishNet, so that an image of 32 pixels leaves one value.
    It is drawn at random from every start. VisualPhishNet starts from the ImageNet weights of Keras; ``imagenet`` are
    those of torchvision, and a file holds weights under torchvision's names, with or without a classifier.

    Raises:
        WeightsError: the weights cannot be downloaded, or the file holds others.
    """

    width = 512
    smallest = 32  # five poolings leave one value
    starts = ("random", "imagenet", "file")

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        from torchvision.models import vgg  # takes seconds to import

        # Building the whole network would draw 120 million weights of a classifier that is not used.
        self.features = vgg.make_layers(vgg.cfgs["D"])
        self.added = nn.Sequential(nn.Conv2d(512, self.width, 5, padding=2), nn.ReLU())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # as torchvision does; with torch's default, biases drown the image
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        named = nn.ModuleDict({"features": self.features})  # as the layers are called in files of weights
        if start == "imagenet":
            try:
                stored = vgg.VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
            except (OSError, RuntimeError) as error:  # no network, or a download that does not match its checksum
                raise WeightsError(
                    f"the ImageNet weights of {NAME} cannot be downloaded ({' '.join(str(error).split())}); set "
                    f"weights to a file of them, for example data/weights/{NAME}.pth, or to random to train from "
                    "scratch"
                ) from error
            named.load_state_dict({key: stored[key] for key in named.state_dict()})
        if start not in WORDS:
            load_backbone(named, Path(start), NAME, without="classifier.")

    @classmethod
    def normalisation(cls, start: str) -> Normalisation | None:
        """That of ImageNet for pretrained weights; that of the training images from random ones."""
        return None if start == "random" else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of normalised images (B, 3, H, W)."""
        return self.added(self.features(images)).amax((2, 3))  # AdaptiveMaxPool2d's gradient is not repeatable on a GPU
