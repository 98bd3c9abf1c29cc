"""Sources of raw images by the name that params.yaml uses. A new one is a file with a function, and a line here.

Each function takes the path of a file or folder, and further options by keyword, and returns a
:class:`dml.data.base.Source`.
"""

SOURCES: dict[str, str] = {
    "cars196": "dml.data.sources.cars196:read_cars196",
    "cub200": "dml.data.sources.cub200:read_cub200",
    "folder": "dml.data.sources.folder:read_folder",
    "glyphs": "dml.data.sources.glyphs:read_glyphs",
    "sop": "dml.data.sources.sop:read_sop",
    "tiny_imagenet": "dml.data.sources.tiny_imagenet:read_tiny_imagenet",
    "torchvision": "dml.data.sources.torchvision:read_torchvision",
}
