"""Join robust starts: write those of several networks as one, for a backbone that has the networks side by side.

    python -m dml join grids pretrained/grid4.safetensors artifacts/grid13.safetensors pretrained/grids.safetensors

Each file is named after its network. Beside the weights stands a JSON file with those of the parts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dml.common.files import ROOT
from dml.models.embedder import build
from dml.models.weights import load_backbone
from dml.pipeline.pretrain import export


def join(backbone: str, files: Sequence[Path], file: Path) -> None:
    """Write one start from several.

    Args:
        backbone: has each network as an attribute of its name.
        files: of :func:`dml.pipeline.pretrain.export`, named after their networks.
        file: to write.

    Raises:
        ValueError: the backbone is unknown, or its networks are others than those of the files.
        WeightsError: a file is missing or holds other weights.
        OSError: the JSON of a file cannot be read.
    """
    model = build(backbone, 0, seed=0)
    networks, parts = dict(model.backbone.named_children()), {each.stem: each for each in files}
    if set(parts) != set(networks):
        raise ValueError(f"the files are those of {sorted(parts)}; {backbone} has {sorted(networks)}")
    for name, network in networks.items():
        load_backbone(network, parts[name], name, without="head.")
    made = {name: json.loads(each.with_suffix(".json").read_text(encoding="utf-8")) for name, each in parts.items()}
    export(model, {"parts": made}, file)
    print(f"{file.name} holds the backbone {backbone}")


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml join", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backbone")
    parser.add_argument("files", type=Path, nargs="+", metavar="part", help="a file that pretrain wrote")
    parser.add_argument("file", type=Path, help="to write, for example pretrained/grids.safetensors")
    chosen = parser.parse_args(arguments)
    if chosen.file.suffix != ".safetensors":
        parser.error(f"{chosen.file} must end in .safetensors")
    try:
        join(chosen.backbone, [ROOT / part for part in chosen.files], ROOT / chosen.file)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
