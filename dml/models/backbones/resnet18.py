"""ResNet-18 of torchvision."""

from dml.models.backbones.resnet import ResNet


class ResNet18(ResNet):
    """ResNet-18 without its classifier."""

    network_name = "resnet18"
    width = 512
