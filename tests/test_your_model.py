"""Chapter 7 from end to end: prepared images with a model of this repository, and a folder with a model from a file."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from dml.common.files import ROOT, write_json
from dml.data.base import load
from dml.data.prepare import prepare
from dml.data.sources.glyphs import read_glyphs
from dml.models import weights
from dml.models.embedder import build
from dml.pipeline import notebook

SMALL = {"queries": 8, "gate_tries": 5, "attacks": {"margin": {"steps": 4}}}
MODEL_FILE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).eval()
"""


def execute(place: Path, **parameters: object) -> tuple[str, list[str]]:
    """Run the chapter as the command line does; returns all that it shows as text, and the kinds of its figures."""
    target = place / "07.ipynb"
    parameters |= {"report": str(place / "report"), "suite": SMALL}
    notebook.run(ROOT / "notebooks/07_your_model.ipynb", target, parameters)
    outputs = [output for cell in nbformat.read(target, as_version=4).cells for output in cell.get("outputs", [])]
    kinds = [output.get("data", {}) for output in outputs]
    text = [output.get("text") or kind.get("text/plain", "") for output, kind in zip(outputs, kinds, strict=True)]
    assert (place / "report" / "report.html").exists()
    return "\n".join(text), [kind for shown in kinds for kind in shown if kind == "image/png"]


@pytest.fixture
def glyphs(tmp_path: Path) -> Path:
    """Two images of each symbol of the built-in dataset, prepared."""
    source = read_glyphs(ROOT / "data/glyphs/glyphs.json", images_per_class=2, size=32, seed=0)
    prepare(source, tmp_path / "data", name="glyphs", size=32, train_fraction=0.5, validation_fraction=0.2)
    return tmp_path / "data"


def test_prepared_images_and_a_model_of_this_repository(glyphs: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    weights.save(build("conv4", 16, seed=0, statistics=load(glyphs).test.statistics()), place / "weights.safetensors")
    write_json(place / "settings.json", {"settings": {"model": {"backbone": "conv4", "dimension": 16}}})
    told, figures = execute(tmp_path, model=str(place), data=str(glyphs), limit=40, eps=["2/255", "8/255"])
    assert "images reach from -1 to 1, so they seem to be normalised" in told, "the mistake and its sentence"
    assert "natural_r1" in told
    assert "At 8/255 your model keeps R@1" in told
    assert "broken by twice the steps" in told
    assert len(figures) == 2, "the curve, and fooled searches"
    assert f"wrote {tmp_path}/report/report.html" in told


def test_a_folder_and_a_model_from_a_file(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL_FILE)
    model = f"{tmp_path}/mine.py:make"
    told, figures = execute(tmp_path, model=model, folder=str(picture_folder()), size=16, limit=8, eps=["8/255"])
    assert "At 8/255 your model keeps R@1" in told
    assert figures


def test_a_folder_and_a_model_of_timm(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Its weights are a package of the environment."""
    model, folder = "timm:tf_efficientnet_lite0", str(picture_folder())
    told, figures = execute(tmp_path, model=model, folder=folder, size=32, limit=4, eps=["8/255"])
    assert "At 8/255 your model keeps R@1" in told
    assert figures
