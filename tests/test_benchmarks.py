"""The benchmarks: miniature archives in the official layouts, complete and broken, from fetching to attacking."""

import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from dml.config.build import training
from dml.config.build.model import start
from dml.config.load import load as load_params
from dml.config.load import preset as preset_changes
from dml.config.schema import Recipe
from dml.data import commands
from dml.data.base import DatasetError, Source, load
from dml.data.benchmarks import BENCHMARKS
from dml.data.prepare import prepare
from dml.data.sources import SOURCES
from dml.data.sources.benchmark import Benchmark, Remote
from dml.data.sources.cars196 import CARS196, read_cars196
from dml.data.sources.cub200 import CUB200, read_cub200
from dml.data.sources.sop import SOP, read_sop
from dml.data.sources.tiny_imagenet import read_tiny_imagenet
from dml.evaluation.suites.attacks import AttackSuite
from dml.retrieval.index import Search
from dml.training.loop import fit
from dml.training.selection import validator

COUNTS = (4, 16, 4, 16)  # classes and images of both halves
Files = dict[str, bytes]


def jpeg(label: int, copy: int, mode: str = "RGB", **options: object) -> bytes:
    """An image whose colour identifies its class."""
    draw = np.random.default_rng(100 * label + copy)
    pixels = np.clip(np.array([30 * label, 255 - 30 * label, 90]) + draw.normal(0, 8, (24, 30, 3)), 0, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def cub(root: str = "CUB_200_2011") -> Files:
    names = [f"{label + 1:03d}.Bird_{label}/Bird_{label}_{copy}.jpg" for label in range(8) for copy in range(4)]
    files = {f"{root}/images/{name}": jpeg(place // 4, place % 4) for place, name in enumerate(names)}
    files[f"{root}/images/{names[0]}"] = jpeg(0, 0, "L")
    files[f"{root}/images/{names[1]}"] = jpeg(0, 1, "CMYK")
    files[f"{root}/images.txt"] = "".join(f"{n} {name}\n" for n, name in enumerate(names, 1)).encode()
    files[f"{root}/image_class_labels.txt"] = "".join(f"{n + 1} {n // 4 + 1}\n" for n in range(32)).encode()
    files[f"{root}/classes.txt"] = "".join(f"{n + 1} {n + 1:03d}.Bird_{n}\n" for n in range(8)).encode()
    return files


def sop() -> Files:
    files, lists = {}, {"train": "image_id class_id super_class_id path\n"}
    lists["test"] = lists["train"]
    for place in range(32):
        number, copy = place // 4 + 1, place % 4
        path = f"{'bicycle' if number % 2 else 'coffee_maker'}_final/{1000 + number}_{copy}.JPG"
        files[f"Stanford_Online_Products/{path}"] = jpeg(number - 1, copy)
        lists["train" if number <= 4 else "test"] += f"{place + 1} {number} 1 {path}\n"
    for half, text in lists.items():
        files[f"Stanford_Online_Products/Ebay_{half}.txt"] = text.encode()
    return files


def annotations(paths: list[str], labels: list[int], key: str, **more: object) -> bytes:
    rows = np.zeros(len(paths), dtype=[(key, object), ("bbox_x1", object), ("class", object)])
    rows[key], rows["class"] = paths, labels
    stream = io.BytesIO()
    savemat(stream, {"annotations": rows, **more})
    return stream.getvalue()


NAMES = np.array([f"Make Model {n}" for n in range(8)], dtype=object)


def cars_whole() -> tuple[dict[str, Files], Files]:
    paths = [f"car_ims/{place + 1:06d}.jpg" for place in range(32)]
    files = {path: jpeg(place // 4, place % 4) for place, path in enumerate(paths)}
    notes = annotations(paths, [place // 4 + 1 for place in range(32)], "relative_im_path", class_names=NAMES)
    return {"car_ims.tgz": files}, {"cars_annos.mat": notes}


def cars_halves() -> tuple[dict[str, Files], Files]:
    """Even copies in one archive, odd ones in the other: both hold images of all classes."""
    archives: dict[str, Files] = {"cars_train.tgz": {}, "cars_test.tgz": {}}
    listed: dict[str, list] = {"train": [], "test": []}
    for place in range(32):
        half = ("train", "test")[place % 2]
        name = f"{place // 2 + 1:05d}.jpg"
        archives[f"cars_{half}.tgz"][f"cars_{half}/{name}"] = jpeg(place // 4, place % 4)
        listed[half].append((name, place // 4 + 1))
    notes = {half: annotations([n for n, _ in rows], [c for _, c in rows], "fname") for half, rows in listed.items()}
    meta = io.BytesIO()
    savemat(meta, {"class_names": NAMES})
    archives["car_devkit.tgz"] = {
        "devkit/cars_train_annos.mat": notes["train"],
        "devkit/cars_meta.mat": meta.getvalue(),
    }
    return archives, {"cars_test_annos_withlabels.mat": notes["test"]}


def pack(file: Path, files: Files) -> None:
    """Write files as an archive of the kind that the ending names, or as a folder."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif file.suffix == ".tgz":
        with tarfile.open(file, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (file.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (file.parent / name).write_bytes(content)


def place_cub(folder: Path, ending: str = ".tgz", files: Files | None = None) -> Source:
    pack(folder / f"CUB_200_2011{ending}", files or cub())
    return read_cub200(folder, counts=COUNTS)


def place_sop(folder: Path, ending: str = ".zip") -> Source:
    pack(folder / f"Stanford_Online_Products{ending}", sop())
    return read_sop(folder, counts=COUNTS)


def place_cars(folder: Path, layout: Callable = cars_whole) -> Source:
    archives, files = layout()
    for name, content in archives.items():
        pack(folder / name, content)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return read_cars196(folder, counts=COUNTS)


PLACES: dict[str, Callable[[Path], Source]] = {
    "cub tgz": place_cub,
    "cub zip": lambda folder: place_cub(folder, ".zip"),
    "cub folder": lambda folder: place_cub(folder, ""),
    "sop zip": place_sop,
    "sop folder": lambda folder: place_sop(folder, ""),
    "cars whole": place_cars,
    "cars halves": lambda folder: place_cars(folder, cars_halves),
}


HALVES = {"train_fraction": 0.5, "validation_fraction": 0.5}


def prepared(source: Source, target: Path, size: int = 16) -> Path:
    prepare(source, target, name="mini", size=size, **HALVES)
    return target


@pytest.mark.parametrize("layout", sorted(PLACES))
def test_every_layout_gives_the_same_images(layout: str, tmp_path: Path) -> None:
    data = load(prepared(PLACES[layout](tmp_path), tmp_path / "out"))
    assert data.test.labels.tolist() == sorted([*range(4, 8)] * 4)
    assert len(data.train) + len(data.validation) == 16
    for label in range(4, 8):
        own = data.test.images[data.test.labels == label].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(own, [30 * label, 255 - 30 * label, 90], atol=6)


def settings(preset: str, dataset: str) -> Recipe:
    """A preset as published, but for random weights, few classes and two steps."""
    changes = preset_changes(preset, dataset) | {
        f"recipes.{dataset}.model.weights": "random",
        f"recipes.{dataset}.schedule.epochs": 1,
        f"recipes.{dataset}.schedule.batches": 2,
        f"recipes.{dataset}.schedule.classes": 2,
    }
    return load_params(changes).recipe(dataset)


@pytest.mark.parametrize(
    ("preset", "dataset", "layout"),
    [("paper", "cub200", "cub tgz"), ("field", "sop", "sop zip"), ("field", "cars196", "cars halves")],
)
def test_two_steps_from_the_archive_to_an_attacked_model(
    preset: str, dataset: str, layout: str, tmp_path: Path
) -> None:
    """What runs on the day that the real archive is there."""
    recipe = settings(preset, dataset)
    prepare(PLACES[layout](tmp_path), tmp_path / "out", name=dataset, size=256, crop=recipe.data.crop, **HALVES)
    data = load(tmp_path / "out")
    assert recipe.schedules["robust"].optimizer == "adam"
    assert recipe.schedules["robust"].crop == recipe.data.crop == 224
    loss, defense = {"cub200": ("contrastive", "standard"), "sop": ("triplet", "robust")}.get(
        dataset, ("triplet", "single_step")
    )
    model = start(recipe.model, data.train, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = fit(
        model,
        data.train,
        training.loss(loss, recipe.losses[loss], classes=4, dimension=model.dimension),
        training.defense(defense, recipe.defenses[defense]),
        recipe.schedules[defense],
        seed=0,
        validate=validator(data.validation, queries=2, eps=recipe.validation.eps, steps=1, seed=0),
        report=lambda line: None,
        timing=lambda line: None,
    )
    assert np.isfinite(history.epochs[0]["loss"])
    after = model.state_dict()
    assert not torch.equal(after["head.weight"], before["head.weight"])
    frozen = [name for name in after if name.endswith("running_mean")]
    assert frozen
    assert all(torch.equal(after[name], before[name]) for name in frozen), "BatchNorm stays as it was"
    search = Search.over(model, data.test)
    suite = AttackSuite(queries=2, eps=(0.1,), attacks={"margin": {"steps": 1}})
    found = suite.evaluate(search, np.arange(2), seed=0, report=lambda line: None).outcomes
    assert {"none", "margin", "worst"} <= set(found["attack"])


def test_names_and_counts_are_the_published_ones(tmp_path: Path) -> None:
    assert place_cub(tmp_path).class_names[:2] == ["Bird 0", "Bird 1"]
    assert place_sop(tmp_path).class_names[:2] == ["bicycle 1", "coffee maker 2"]
    assert place_cars(tmp_path).class_names[7] == "Make Model 7"
    assert (CUB200.counts, CARS196.counts, SOP.counts) == (
        (100, 5_864, 100, 5_924),
        (98, 8_054, 98, 8_131),
        (11_318, 59_551, 11_316, 60_502),
    )


def test_grey_and_cmyk_images_become_colour_and_stay_unturned(tmp_path: Path) -> None:
    files = cub()
    turned = Image.Exif()
    turned[0x0112] = 6
    files["CUB_200_2011/images/001.Bird_0/Bird_0_2.jpg"] = jpeg(0, 2, exif=turned)
    source = place_cub(tmp_path, files=files)
    assert [source.read(row).mode for row in range(3)] == ["RGB"] * 3
    assert source.read(2).size == (30, 24), "the published protocol does not apply EXIF rotation"


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    files = cub()
    stream = io.BytesIO()
    Image.new("RGB", (800, 600), (200, 40, 40)).save(stream, "JPEG")
    files["CUB_200_2011/images/001.Bird_0/Bird_0_2.jpg"] = stream.getvalue()
    ((_, make),) = place_cub(tmp_path, files=files).tasks(np.array([2]))
    assert make(64).size == (200, 150), "the smallest with at least 128 pixels on its shorter side"
    assert make(400).size == (800, 600)


def without(files: Files, name: str) -> Files:
    return {key: content for key, content in files.items() if not key.endswith(name)}


def edited(files: Files, name: str, old: str, new: str) -> Files:
    return {
        key: content.replace(old.encode(), new.encode(), 1) if key.endswith(name) else content
        for key, content in files.items()
    }


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda files: without(files, "Bird_5_2.jpg"), "lacks CUB_200_2011/images/006.Bird_5/Bird_5_2.jpg"),
        (lambda files: without(files, "classes.txt"), "lacks CUB_200_2011/classes.txt"),
        (
            lambda files: files | {"CUB_200_2011/images/003.Bird_2/Bird_2_1.jpg": b"no image"},
            "Bird_2_1.jpg is no readable image",
        ),
        (lambda files: {"../evil.txt": b"x", **files}, "has the path ../evil.txt, which leads out"),
        (lambda files: {"/evil.txt": b"x", **files}, "has the path /evil.txt, which leads out"),
        (lambda files: edited(files, "labels.txt", "1 1\n", "1 2\n"), "has label 2 in image_class_labels.txt"),
        (lambda files: edited(files, "labels.txt", "1 1\n", ""), "do not list the same images"),
        (lambda files: edited(files, "images.txt", "1 001", "one 001"), "lines of a number and a word"),
    ],
)
def test_a_broken_archive_is_one_sentence_and_leaves_nothing(
    damage: Callable[[Files], Files], words: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DatasetError, match=words) as caught:
        prepared(place_cub(tmp_path / "data", files=damage(cub())), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [place.name for place in tmp_path.iterdir()] == ["data"]
    assert [place.name for place in (tmp_path / "data").iterdir()] == ["CUB_200_2011.tgz"]


@pytest.mark.parametrize("place", [place_cub, place_sop])
def test_a_truncated_archive_is_one_sentence(place: Callable[[Path], Source], tmp_path: Path) -> None:
    place(tmp_path)
    (archive,) = tmp_path.iterdir()
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    reader = read_cub200 if place is place_cub else read_sop
    with pytest.raises(DatasetError, match=r"is damaged or cut short|is incomplete"):
        prepared(reader(tmp_path, counts=COUNTS), tmp_path / "out")


def test_other_counts_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    place_cub(tmp_path)
    with pytest.raises(DatasetError, match="should have 100 classes with 5,864 images and 100 classes with 5,924"):
        read_cub200(tmp_path)


@pytest.mark.parametrize("reader", [read_cub200, read_cars196, read_sop])
def test_an_empty_folder_says_what_to_do(reader: Callable[[Path], Source], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"`python -m dml datasets fetch (cub200|cars196|sop)`"):
        reader(tmp_path)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat"),
        ("car_devkit.tgz", "car_devkit.tgz"),
        ("cars_test.tgz", "cars_test.tgz"),
    ],
)
def test_each_part_of_cars_is_missed_by_name(lost: str, words: str, tmp_path: Path) -> None:
    place_cars(tmp_path, cars_halves)
    (tmp_path / lost).unlink()
    with pytest.raises(DatasetError, match=words):
        read_cars196(tmp_path, counts=COUNTS)


def test_annotations_in_another_format(tmp_path: Path) -> None:
    place_cars(tmp_path)
    (tmp_path / "cars_annos.mat").write_bytes(b"no matrix")
    with pytest.raises(DatasetError, match="no annotations in MATLAB's format"):
        read_cars196(tmp_path, counts=COUNTS)


def test_a_class_in_both_halves_is_refused(tmp_path: Path) -> None:
    files = edited(sop(), "Ebay_test.txt", "17 5 ", "17 4 ")
    pack(tmp_path / "Stanford_Online_Products.zip", files)
    with pytest.raises(DatasetError, match=r"class 4 is in Ebay_train\.txt and in Ebay_test\.txt"):
        read_sop(tmp_path, counts=COUNTS)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_killed_preparation_continues(
    parallel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("dml.data.prepare.NOTED", 5)
    monkeypatch.setattr("dml.data.prepare.WAITING", 0)  # images are written as soon as they are read
    source = place_cub(tmp_path)
    expected = prepared(source, tmp_path / "whole")
    read: list[int] = []

    def watched(stop: int | None) -> Source:
        def tasks(rows: np.ndarray) -> Iterator:
            for number, (row, make) in enumerate(source.tasks(rows)):
                if number == stop:
                    raise KeyboardInterrupt
                read.append(row)
                yield row, make

        return Source(source.class_names, source.labels, tasks, source.digest, source.train_classes, parallel)

    with pytest.raises(KeyboardInterrupt):
        prepared(watched(17), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    read.clear()
    prepared(watched(None), tmp_path / "out")
    assert len(read) == 32 - 15, "saved images are not read again"
    assert "continues after 15 of 32 images" in capsys.readouterr().out
    for name in ("images.bin", "index.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (expected / name).read_bytes()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["CUB_200_2011.tgz", "out", "whole"]


def test_a_preparation_that_lost_images_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file shorter than its index says, as a power failure may leave it."""
    monkeypatch.setattr("dml.data.prepare.NOTED", 1)
    source = place_cub(tmp_path)
    expected = (prepared(source, tmp_path / "whole") / "images.bin").read_bytes()

    def cut(rows: np.ndarray) -> Iterator:
        tasks = source.tasks(rows)
        yield from (next(tasks) for _ in range(9))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(Source(source.class_names, source.labels, cut, source.digest, 4), tmp_path / "out")
    (unfinished,) = tmp_path.glob(".out.partial/images.bin")
    unfinished.write_bytes(unfinished.read_bytes()[:-100])
    assert (prepared(source, tmp_path / "out") / "images.bin").read_bytes() == expected


def test_a_source_that_changed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("dml.data.prepare.NOTED", 1)
    source = place_cub(tmp_path)

    def cut(rows: np.ndarray) -> Iterator:
        yield next(iter(source.tasks(rows)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(Source(source.class_names, source.labels, cut, "another", 4), tmp_path / "out")
    prepared(source, tmp_path / "out")
    assert "the source or its size has changed" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    expected = prepared(source, tmp_path / "out")
    assert load(expected).test.images.shape == (16, 16, 16, 3)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one content, from any byte on; cuts the first answer short if told to."""

    content, cut = b"", 0

    def do_GET(self) -> None:
        first = int(self.headers.get("Range", "bytes=0-")[6:-1])
        body = self.content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: Handler.cut or None])
        Handler.cut = 0

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/mini.tgz"
        served.shutdown()


def mini(url: str | None, content: bytes) -> Benchmark:
    remote = Remote("CUB_200_2011.tgz", url, f"sha256:{hashlib.sha256(content).hexdigest()}", "1 kB")
    return Benchmark("cub200", COUNTS, (remote,), "ask a friend", "For tests.")


def test_fetch_continues_after_a_cut_and_keeps_no_wrong_file(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(commands, "BLOCK", 256)
    pack(tmp_path / "source.tgz", cub())
    Handler.content = (tmp_path / "source.tgz").read_bytes()
    Handler.cut = len(Handler.content) // 2
    folder = tmp_path / "data"
    with pytest.raises(DatasetError, match="try again, the download continues"):
        commands.fetch(mini(server, Handler.content), folder)
    (partial,) = folder.iterdir()
    assert partial.name.endswith(".partial")
    assert 0 < partial.stat().st_size < len(Handler.content)
    assert commands.fetch(mini(server, Handler.content), folder)
    assert [place.name for place in folder.iterdir()] == ["CUB_200_2011.tgz"]
    assert (folder / "CUB_200_2011.tgz").read_bytes() == Handler.content
    assert commands.fetch(mini(server, Handler.content), folder), "a complete file is not fetched again"
    assert "CUB_200_2011.tgz exists" in capsys.readouterr().out
    (folder / "CUB_200_2011.tgz").unlink()
    with pytest.raises(DatasetError, match="another file than the published one"):
        commands.fetch(mini(server, b"something else"), folder)
    assert list(folder.iterdir()) == []


def test_fetch_says_where_to_find_files_that_are_not_served(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert not commands.fetch(mini(None, b""), tmp_path / "data")
    assert f"put CUB_200_2011.tgz into {tmp_path / 'data'}: ask a friend" in capsys.readouterr().out


def test_check_says_what_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert not commands.check("cub200", tmp_path)
    assert "holds no CUB_200_2011.tgz" in capsys.readouterr().out
    place_cub(tmp_path)
    assert commands.check("cub200", tmp_path, counts=COUNTS)
    assert "cub200: complete, 32 images of 8 classes (4 for training)" in capsys.readouterr().out
    pack(tmp_path / "CUB_200_2011.tgz", without(cub(), "Bird_7_3.jpg"))
    assert not commands.check("cub200", tmp_path, counts=COUNTS)
    assert "lacks CUB_200_2011/images/008.Bird_7/Bird_7_3.jpg" in capsys.readouterr().out


def test_a_bad_archive_of_images_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert commands.main(["unpack", "nowhere.tar", "toy"]) == 1
    assert (
        capsys.readouterr().err == "DatasetError: nowhere.tar does not exist; give the path of a tar or zip archive\n"
    )


def test_each_benchmark_is_a_source_of_the_same_name() -> None:
    assert set(BENCHMARKS) <= set(SOURCES)
    assert list(BENCHMARKS) == ["cub200", "cars196", "sop", "tiny_imagenet"]


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        commands.main(["fetch", "cub"])
    assert "'cub' is no benchmark; known: cub200, cars196, sop, tiny_imagenet" in capsys.readouterr().err


def tiny_imagenet() -> Files:
    numbers = ["n02", "n01", "n04", "n03"]
    files = {
        f"tiny-imagenet-200/train/{number}/images/{number}_{copy}.JPEG": jpeg(int(number[1:]), copy)
        for number in numbers
        for copy in range(3)
    }
    files["tiny-imagenet-200/val/images/val_0.JPEG"] = jpeg(1, 9)
    files["tiny-imagenet-200/wnids.txt"] = "".join(f"{number}\n" for number in numbers).encode()
    files["tiny-imagenet-200/words.txt"] = b"n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn03\ttoad\nn04\tnewt\n"
    return files


def test_tiny_imagenet_is_its_training_images_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    pack(tmp_path / "tiny-imagenet-200.zip", tiny_imagenet())
    read = read_tiny_imagenet(tmp_path, counts=(2, 6, 2, 6), images=3)
    assert read.class_names == ["goldfish, Carassius auratus", "bullfrog", "toad", "newt"]
    assert read.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert read.train_classes == 2
    for row, task in read.tasks(np.arange(12)):
        red = np.asarray(task(16))[..., 0].mean()
        assert red == pytest.approx(30 * (read.labels[row] + 1), abs=8)


def test_tiny_imagenet_may_be_a_part_that_a_table_lists(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(DatasetError, match=r"holds no tiny-imagenet-200\.zip, .*datasets fetch tiny_imagenet"):
        read_tiny_imagenet(tmp_path)
    for label in range(6):
        (tmp_path / f"{label}.jpg").write_bytes(jpeg(label, 0))
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{label}.jpg,{label}\n" for label in range(6)))
    assert read_tiny_imagenet(tmp_path).labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert commands.check("tiny_imagenet", tmp_path)
    assert "tiny_imagenet: complete, 6 images of 6 classes (2 for training)" in capsys.readouterr().out
    (tmp_path / "3.jpg").write_bytes(jpeg(3, 0)[:200])
    assert not commands.check("tiny_imagenet", tmp_path)
    assert "3.jpg" in capsys.readouterr().out


def test_tiny_imagenet_that_lacks_images_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "tiny-imagenet-200.zip", without(tiny_imagenet(), "n03_2.JPEG"))
    read = read_tiny_imagenet(tmp_path, counts=(2, 6, 2, 6), images=3)
    with pytest.raises(DatasetError, match=r"lacks tiny-imagenet-200/train/n03/images/n03_2\.JPEG"):
        list(read.tasks(np.arange(12)))
    with pytest.raises(DatasetError, match="should have 196 classes with 98,000 images"):
        read_tiny_imagenet(tmp_path)
