"""ResNet-50 of torchvision."""

from dml.models.backbones.resnet import ResNet


class ResNet50(ResNet):
    """ResNet-50 without its classifier."""

    network_name = "resnet50"
    width = 2048
