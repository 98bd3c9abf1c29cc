"""Backbones by the name that params.yaml uses. A new one is a file with a class, and a line here."""

BACKBONES: dict[str, str] = {
    "conv4": "dml.models.backbones.conv4:Conv4",
    "grid13": "dml.models.backbones.grid13:Grid13",
    "grid4": "dml.models.backbones.grid4:Grid4",
    "grid4_linear": "dml.models.backbones.grid4_linear:Grid4Linear",
    "grids": "dml.models.backbones.grids:Grids",
    "grids_linear": "dml.models.backbones.grids_linear:GridsLinear",
    "lite0_stages": "dml.models.backbones.lite0_stages:Lite0Stages",
    "resnet18": "dml.models.backbones.resnet18:ResNet18",
    "resnet50": "dml.models.backbones.resnet50:ResNet50",
    "vgg16": "dml.models.backbones.vgg16:VGG16",
}
