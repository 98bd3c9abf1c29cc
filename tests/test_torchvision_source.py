"""The source `torchvision`: tiny archives in the official layouts, read without a network."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from dml.config.build.source import check_source
from dml.config.schema import Data
from dml.data.base import DatasetError, load
from dml.data.prepare import prepare
from dml.data.sources.torchvision import DATASETS, read_torchvision

CLASSES = 6
Files = dict[str, bytes]


def colour(label: int, number: int) -> tuple[int, int, int]:
    """The one colour of an image, by its class and number."""
    return 30 + 30 * label, 10 * number, 90


def encoded(label: int, number: int, format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 16), colour(label, number)).save(stream, format)
    return stream.getvalue()


def zipped(file: Path, files: Files) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def tarred(file: Path, files: Files) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def mat(**values: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, values)
    return stream.getvalue()


def gtsrb(folder: Path) -> None:
    """Training: two tracks of two frames per class; test: two images per class, from the last class to the first."""
    training = {
        f"GTSRB/Training/{label:05d}/{track:05d}_{frame:05d}.ppm": encoded(label, 2 * track + frame, "PPM")
        for label in range(CLASSES)
        for track in range(2)
        for frame in range(2)
    }
    training["GTSRB/Training/00000/GT-00000.csv"] = b"Filename;ClassId\n"
    order = [(label, number) for label in reversed(range(CLASSES)) for number in (4, 5)]
    lines = [f"{place:05d}.ppm;20;16;0;0;20;16;{label}" for place, (label, _) in enumerate(order)]
    test = {f"GTSRB/Final_Test/Images/{place:05d}.ppm": encoded(*key, "PPM") for place, key in enumerate(order)}
    truth = "\n".join(["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId", *lines])
    zipped(folder / "gtsrb/GTSRB-Training_fixed.zip", training)
    zipped(folder / "gtsrb/GTSRB_Final_Test_Images.zip", test)
    zipped(folder / "gtsrb/GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": truth.encode()})


def flowers(folder: Path) -> None:
    """Image n is number n // CLASSES of class n % CLASSES."""
    count = 6 * CLASSES
    images = {f"jpg/image_{n + 1:05d}.jpg": encoded(n % CLASSES, n // CLASSES, "JPEG") for n in range(count)}
    tarred(folder / "flowers-102/102flowers.tgz", images)
    numbers = np.arange(1, count + 1)
    (folder / "flowers-102/imagelabels.mat").write_bytes(mat(labels=(numbers - 1) % CLASSES + 1))
    parts = {"trnid": numbers[::3], "valid": numbers[1::3], "tstid": numbers[2::3]}
    (folder / "flowers-102/setid.mat").write_bytes(mat(**parts))


def pets(folder: Path) -> None:
    names = [(f"big_cat_{label}_{n}", label, n) for label in range(CLASSES) for n in range(6)]
    tarred(folder / "oxford-iiit-pet/images.tar.gz", {f"images/{k}.jpg": encoded(lb, n, "JPEG") for k, lb, n in names})
    lists = {
        f"annotations/{split}.txt": "".join(f"{k} {lb + 1} 1 1\n" for k, lb, n in names if n % 2 == odd).encode()
        for split, odd in (("trainval", 0), ("test", 1))
    }
    tarred(folder / "oxford-iiit-pet/annotations.tar.gz", lists)


def cifar(folder: Path) -> None:
    files = {}
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        keys = [(label, number) for number in numbers for label in range(CLASSES)]
        pixels = [np.repeat(np.array(colour(*key), np.uint8), 32 * 32) for key in keys]
        entry = {"data": np.stack(pixels), "fine_labels": [label for label, _ in keys]}
        files[f"cifar-100-python/{split}"] = pickle.dumps(entry)
    names = {"fine_label_names": [f"thing {label}" for label in range(CLASSES)]}
    files["cifar-100-python/meta"] = pickle.dumps(names)
    tarred(folder / "cifar-100-python.tar.gz", files)


LAYOUTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "GTSRB": (gtsrb, [f"class {label}" for label in range(CLASSES)]),
    "Flowers102": (flowers, datasets.Flowers102.classes[:CLASSES]),
    "OxfordIIITPet": (pets, [f"Big Cat {label}" for label in range(CLASSES)]),
    "CIFAR100": (cifar, [f"thing {label}" for label in range(CLASSES)]),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail; a file that is there passes for the published one, whatever its checksum."""

    def refuse(*given: object, **more: object) -> None:
        raise URLError("no network")

    for name in ("_urlretrieve", "_get_redirect_url"):
        monkeypatch.setattr(datasets.utils, name, refuse)
    for module in (datasets.utils, datasets.cifar, datasets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_official_splits_are_joined_and_sorted_by_label(name: str, tmp_path: Path) -> None:
    write, names = LAYOUTS[name]
    write(tmp_path / "raw")
    splits = ["train", "test"] if name == "GTSRB" else None
    source = read_torchvision(tmp_path / "raw", name=name, splits=splits)
    assert list(source.class_names) == list(names)
    assert source.labels.tolist() == sorted([*range(CLASSES)] * 6)
    assert source.train_classes is None
    seen = [source.read(row) for row in range(6 * CLASSES)]
    assert {image.mode for image in seen} == {"RGB"}
    found = np.array([np.asarray(image).mean((0, 1)) for image in seen]).reshape(CLASSES, 6, 3)
    for label in range(CLASSES):
        inside = found[label][np.argsort(found[label][:, 1])]
        np.testing.assert_allclose(inside, [colour(label, number) for number in range(6)], atol=3)

    prepare(source, tmp_path / "out", name=name, size=8, train_fraction=0.67, validation_fraction=0.5)
    data = load(tmp_path / "out")
    assert [split.classes.tolist() for split in (data.train, data.validation, data.test)] == [[0, 1], [2, 3], [4, 5]]


def test_a_digest_follows_the_images_and_the_splits_but_not_the_archives(tmp_path: Path) -> None:
    cifar(tmp_path / "raw")
    first = read_torchvision(tmp_path / "raw", name="CIFAR100").digest
    (tmp_path / "raw/cifar-100-python.tar.gz").unlink()
    assert read_torchvision(tmp_path / "raw", name="CIFAR100").digest == first
    assert read_torchvision(tmp_path / "raw", name="CIFAR100", splits=["test"]).digest != first
    file = tmp_path / "raw/cifar-100-python/test"
    entry = pickle.loads(file.read_bytes())
    entry["data"][0, 0] += 1
    file.write_bytes(pickle.dumps(entry))
    assert read_torchvision(tmp_path / "raw", name="CIFAR100").digest != first


def test_tracks_of_gtsrb_are_groups_and_its_test_images_are_left_out(tmp_path: Path) -> None:
    """Track 0 of one class is no group with track 0 of another."""
    gtsrb(tmp_path)
    source = read_torchvision(tmp_path, name="GTSRB")
    assert source.labels.tolist() == sorted([*range(CLASSES)] * 4)
    assert source.groups.tolist() == sorted([*range(2 * CLASSES)] * 2)
    both = read_torchvision(tmp_path, name="GTSRB", splits=["train", "test"])
    sizes = np.bincount(both.groups)
    assert sorted(sizes) == [1] * 2 * CLASSES + [2] * 2 * CLASSES
    for group in np.unique(both.groups):
        numbers = [np.asarray(both.read(int(row)))[0, 0, 1] // 10 for row in np.flatnonzero(both.groups == group)]
        assert sorted(numbers) in ([0, 1], [2, 3], [4], [5])


def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"lacks the split 'train' of Flowers102 .* \(URLError: .*no network"
    ) as caught:
        read_torchvision(tmp_path / "raw", name="Flowers102")
    assert "\n" not in str(caught.value)
    flowers(tmp_path / "raw")
    assert len(read_torchvision(tmp_path / "raw", name="Flowers102").labels) == 6 * CLASSES, "the files were put there"


def test_a_split_that_was_half_unpacked_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gtsrb(tmp_path)

    def stopped(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", stopped)
        with pytest.raises(KeyboardInterrupt):
            read_torchvision(tmp_path, name="GTSRB")
    with pytest.raises(DatasetError, match="left half unpacked; delete all but the archives there"):
        read_torchvision(tmp_path, name="GTSRB")
    (tmp_path / ".unpacking").unlink()
    assert len(read_torchvision(tmp_path, name="GTSRB").labels) == 4 * CLASSES


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pets(tmp_path)
    source = read_torchvision(tmp_path, name="OxfordIIITPet")
    (tmp_path / "oxford-iiit-pet/images/big_cat_0_0.jpg").write_text("no image")
    with pytest.raises(DatasetError, match="image 0 of OxfordIIITPet is no readable image"):
        source.read(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "Flowers"}, "name 'Flowers' is unknown; did you mean 'Flowers102'"),
        ({"name": "GTSRB", "splits": ["val"]}, "splits of GTSRB: 'val' is unknown; known: test, train"),
        ({"name": "GTSRB", "splits": []}, "splits is empty; GTSRB has train, test"),
    ],
)
def test_wrong_options(options: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        read_torchvision(tmp_path, **options)


def test_options_are_checked_before_anything_is_read() -> None:
    data = Data("torchvision", "data/cifar", 32, options={"name": "CIFAR100", "split": "train"})
    with pytest.raises(ValueError, match=r"data\.options key 'split' is unknown; did you mean 'splits'"):
        check_source(data, "data")


@pytest.mark.parametrize("name", DATASETS)
def test_the_table_names_what_torchvision_has(name: str, tmp_path: Path) -> None:
    """Without files each split is missing: no argument is wrong, and nothing is written."""
    for arguments in DATASETS[name].values():
        with pytest.raises((RuntimeError, FileNotFoundError)):
            getattr(datasets, name)(tmp_path, download=False, **arguments)
