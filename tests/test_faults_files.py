"""Full disks, damaged files and folders that cannot be written: recovery, or one sentence, and nothing lost."""

import errno
import gc
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from made_records import record
from safetensors import SafetensorError
from test_resume import train
from torch import Tensor, nn

import dml
from dml.__main__ import main
from dml.api import attack, pixels
from dml.api.result import Result
from dml.common.files import read_columns, write_columns, write_json
from dml.config.schema import Data
from dml.data import base, prepare
from dml.data.base import Split
from dml.data.sources.folder import read_folder
from dml.defenses.hardness import Hardness
from dml.models import weights
from dml.models.embedder import build
from dml.models.weights import WeightsError, load_backbone
from dml.pipeline import paths, stored
from dml.pipeline.digest import data_settings
from dml.reporting import records, tables
from dml.training.checkpoint import Checkpoint

FULL = (OSError, RuntimeError, SafetensorError)  # what Python, torch and safetensors raise


@contextmanager
def full_disk(allowed: int) -> Iterator[None]:
    """No file may grow beyond ``allowed`` bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_record(file: Path, count: int) -> None:
    """Write a record of a run, large or small."""
    made = record("triplet", "robust", 0.5, 1)
    records.write(file, made | {"survival": {"0.031373": "1" * count}}, {})


WRITERS: dict[str, Callable[[Path, int], None]] = {  # each writes a file of about this many numbers
    "checkpoint": lambda file, count: Checkpoint(file, "key").save({"weight": torch.ones(count)}),
    "weights": lambda file, count: weights.save(nn.Linear(count, 1), file),
    "json": lambda file, count: write_json(file, list(range(count))),
    "chunk": lambda file, count: write_columns(file, pd.DataFrame({"r1": np.arange(count)})),
    "record": write_record,
    "metrics.csv": lambda file, count: tables.write_metrics(pd.DataFrame({"r1": np.arange(count) / 7}), file),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "made.json"
    WRITERS[kind](file, 10)
    before = {place.name: place.read_bytes() for place in tmp_path.iterdir()}
    with full_disk(8_000), pytest.raises(FULL) as caught:
        WRITERS[kind](file, 50_000)
    assert "\n" not in str(caught.value)
    assert {place.name: place.read_bytes() for place in tmp_path.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB in memory; only root can have one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_without_space_leaves_the_old_file(kind: str, small_disk: Path) -> None:
    file = small_disk / "made.json"
    WRITERS[kind](file, 10)
    before = {place.name: place.read_bytes() for place in small_disk.iterdir()}
    with pytest.raises(FULL, match=r"^[^\n]+$"):
        WRITERS[kind](file, 70_000)
    assert {place.name: place.read_bytes() for place in small_disk.iterdir()} == before
    gc.collect()  # the error's traceback holds the removed file open
    WRITERS[kind](file, 20)
    assert file.read_bytes() != before[file.name], "there is space again"


@pytest.mark.parametrize("kind", WRITERS)
def test_results_on_a_disk_that_is_read_only_stay(kind: str, small_disk: Path) -> None:
    file = small_disk / "made.json"
    WRITERS[kind](file, 10)
    before = {place.name: place.read_bytes() for place in small_disk.iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"^[^\n]*Read-only file system[^\n]*made"):
        WRITERS[kind](file, 20)
    assert {place.name: place.read_bytes() for place in small_disk.iterdir()} == before


def test_a_preparation_without_space_leaves_the_old_one(picture_folder: Callable[..., Path], small_disk: Path) -> None:
    place, enough = small_disk / "out", read_folder(picture_folder())
    prepare.prepare(enough, place, **OPTIONS)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    large = read_folder(picture_folder(images=12, name="more"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        prepare.prepare(large, place, **OPTIONS)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


OPTIONS = {"name": "toy", "size": 16, "train_fraction": 0.5, "validation_fraction": 0.4}


def test_a_preparation_on_a_full_disk_leaves_the_old_one_and_continues(
    picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up in the middle of the images, then at the last one; in the end nothing differs."""
    monkeypatch.setattr(prepare, "NOTED", 4)
    source, place = read_folder(picture_folder()), tmp_path / "out"

    def held() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in place.iterdir()}

    prepare.prepare(source, place, **OPTIONS)
    before = held()
    for allowed in (10_000, 24_000):
        with full_disk(allowed), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            prepare.prepare(source, place, **OPTIONS)
        assert held() == before
    prepare.prepare(source, place, **OPTIONS)
    assert held() == before
    assert {file.name for file in tmp_path.iterdir()} == {"out", "pictures"}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A trained model as the pipeline keeps it."""
    folder = tmp_path / "artifacts" / "models" / "toy" / "triplet-robust-0"
    weights.save(build("conv4", 8, seed=0), folder / "weights.safetensors")
    settings = {"model": {"backbone": "conv4", "dimension": 8}}
    write_json(
        folder / "settings.json",
        {"settings": settings, "digest": "d", "weights": weights.digest(build("conv4", 8, seed=0))},
    )
    write_json(folder / "history.json", {"chosen": 1, "embedded": 70})
    return folder


def half(file: Path) -> None:
    """Cut a file in half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights.safetensors", half),
        ("weights.safetensors", lambda file: file.write_bytes(b"")),
        ("weights.safetensors", lambda file: torch.save(build("conv4", 8, seed=0).state_dict(), file)),
        ("weights.safetensors", lambda file: weights.save(build("conv4", 8, seed=1), file)),
        ("weights.safetensors", lambda file: flipped(file.stat().st_size // 2)(file)),
        ("weights.safetensors", lambda file: flipped(file.stat().st_size - 1)(file)),
        ("weights.safetensors", lambda file: weights.save(build("conv4", 9, seed=0), file)),
        ("weights.safetensors", lambda file: weights.save(build("grid4", 8, seed=0), file)),
        ("settings.json", half),
        ("settings.json", lambda file: write_json(file, [])),
        ("settings.json", lambda file: write_json(file, {"settings": {}})),
        ("history.json", lambda file: write_json(file, {"chosen": 0})),
    ],
)
def test_a_damaged_model_is_one_sentence(name: str, damage: Callable[[Path], None], model_folder: Path) -> None:
    assert stored.open_folder(model_folder).epoch_kept == 2
    damage(model_folder / name)
    with pytest.raises(stored.DamagedError, match=r"triplet-robust-0 is damaged \(.*\); remove it and train") as caught:
        stored.open_folder(model_folder)
    assert "\n" not in str(caught.value)
    if name != "history.json":  # which dml.load does not read
        with pytest.raises(ValueError, match="triplet-robust-0 holds no model of this repository") as caught:
            dml.load(model_folder)
        assert "\n" not in str(caught.value)


def test_damaged_images_are_one_sentence(
    picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (paths, stored):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    recipe = SimpleNamespace(data=Data("folder", "data/toy", 16))
    place = tmp_path / paths.data_dir("toy")
    prepare.prepare(read_folder(picture_folder()), place, **OPTIONS)
    write_json(place / "settings.json", {"settings": data_settings(recipe.data)})
    assert len(stored.open_data("toy", recipe, ".").test) == 16
    for name in ("images.bin", "index.npy", "labels.npy", "about.json"):
        kept = (place / name).read_bytes()
        half(place / name)
        with pytest.raises(stored.DamagedError, match=r"toy is damaged \(.*\); remove it and prepare") as caught:
            stored.open_data("toy", recipe, ".")
        assert "\n" not in str(caught.value)
        (place / name).write_bytes(kept)
    write_json(place / "settings.json", {"settings": data_settings(recipe.data) | {"code": "older"}})
    with pytest.raises(
        FileNotFoundError, match=r"toy was made with other settings: code is older, not \w+\): run noteb"
    ):
        stored.open_data("toy", recipe, ".")
    half(place / "settings.json")
    with pytest.raises(FileNotFoundError, match=r"artifacts/data/toy/settings.json is damaged\): run notebook 01_data"):
        stored.open_data("toy", recipe, ".")


class Touch:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    evil = Touch(tmp_path / "touched")
    torch.save(evil, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth holds no weights of conv4") as caught:
        load_backbone(build("conv4", 8, seed=0).backbone, tmp_path / "evil.pth", "conv4", without="\0")
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "evil.npz", r1=np.array([evil], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_columns(tmp_path / "evil.npz")
    np.save(tmp_path / "index.npy", np.array([evil], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        base._optional(tmp_path / "index.npy")
    assert not (tmp_path / "touched").exists()


def test_empty_weights_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty.pth holds no weights of resnet18: it is cut short"):
        dml.load("torchvision:resnet18", tmp_path / "empty.pth")


def flipped(place: int) -> Callable[[Path], None]:
    """A damage that changes one bit of a file."""

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[place] ^= 4
        file.write_bytes(content)

    return flip


def without_last_column(file: Path) -> None:
    """A single changed bit in the zip's directory can hide its last entries: this makes the comment of one longer."""
    content = file.read_bytes()
    flipped(content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02")) + 33)(file)


def test_a_damaged_chunk_of_an_evaluation_is_attacked_again(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lines = build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval(), []
    suite = {"queries": 8, "claims": False, "attacks": {"margin": {"steps": 4}}}
    monkeypatch.setattr(attack, "chunk_size_for", lambda search: 4)

    def evaluate() -> Result:
        settings = {"suite": suite, "eps": 0.01, "controls": (), "folder": tmp_path, "report": lines.append}
        return dml.evaluate(model, toy_split.images, toy_split.labels, **settings)

    whole = evaluate()
    (chunk, *_) = sorted(tmp_path.rglob("0000000"))
    for name, damage in (
        ("outcomes.npz", half),
        ("outcomes.npz", without_last_column),
        ("images.npz", half),
        ("images.npz", flipped(1000)),
        ("images.npz", Path.unlink),
    ):
        lines.clear()
        damage(chunk / name)
        again = evaluate()
        assert f"{chunk} is damaged; its queries are attacked again" in lines
        pd.testing.assert_frame_equal(again.outcomes, whole.outcomes)
        np.testing.assert_array_equal(again.images.adversarial, whole.images.adversarial)
    lines.clear()
    evaluate()
    assert not any("damaged" in line for line in lines)


def test_a_loss_that_is_no_number_leaves_the_state_before_it(toy_split: Split, tmp_path: Path) -> None:
    """Its cause gone, the training continues there, and ends as if there had been none."""
    whole, history, lines = train(toy_split, Hardness(steps=1))
    checkpoint, steps = Checkpoint(tmp_path / "state.pt", "key"), iter(range(99))
    faulty = Hardness(steps=1)

    def spoil(module: nn.Module, given: tuple, losses: Tensor) -> Tensor:
        return losses * float("nan") if next(steps) == 5 else losses

    faulty.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 2; lower the learning rate"):
        train(toy_split, faulty, checkpoint=checkpoint, every=0.0)
    resumed, again, told = train(toy_split, Hardness(steps=1), checkpoint=checkpoint, every=0.0)
    assert all(torch.equal(first, second) for first, second in zip(whole, resumed, strict=True))
    assert (again, told) == (history, lines)


def test_images_that_are_no_numbers_are_one_sentence() -> None:
    images = torch.rand(3, 3, 8, 8)
    images[1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"images reach from nan to nan, .*; pass them in") as caught:
        pixels.stored(images)
    assert "\n" not in str(caught.value)


def test_results_that_cannot_be_written_are_one_sentence(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where a folder should be: root may write into folders that are read-only."""
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OSError, match="results"):
        records.write(tmp_path / "results" / "runs" / "quick.json", record("triplet", "robust", 0.5, 1), {})
    (tmp_path / "mine.py").write_text("def make():\n    return lambda images: images.flatten(1)\n")
    words = [str(picture_folder()), "--model", f"{tmp_path}/mine.py:make", "--size", "16", "--no-controls"]
    assert main(["evaluate", *words, "--queries", "4", "--output", str(tmp_path / "results")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: folder is ")
    assert "results" in told
    assert told.count("\n") == 1
    assert (tmp_path / "results").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_read_only_folder_keeps_its_files(tmp_path: Path) -> None:
    write_json(tmp_path / "kept.json", 1)
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match=r"kept\.json"):
        write_json(tmp_path / "kept.json", 2)
    tmp_path.chmod(0o755)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["1\n"]
