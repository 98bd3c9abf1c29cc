"""What people bring to `dml.evaluate`: folders of persons and products, models of faces, several outputs."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import dml
from dml.__main__ import main
from dml.api import loading
from dml.api.images import splits, training_data
from dml.data.base import Split
from dml.data.prepare import prepare
from dml.data.sources.folder import read_folder

SMALL = {"queries": 6, "claims": False, "attacks": {"margin": {"steps": 2, "first": 0}}, "gate_tries": 3}
COMMON: dict[str, Any] = {"eps": 0.05, "suite": SMALL, "controls": (), "report": lambda line: None}


def flat(images: Tensor) -> Tensor:
    return images.flatten(1) - 0.5


@pytest.fixture
def listed(picture_folder: Callable[..., Path]) -> tuple[Path, pd.DataFrame]:
    """A folder of 6 classes with a labels.csv in no order, and its rows."""
    folder = picture_folder(classes=6)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = pd.DataFrame({"path": files, "label": np.repeat(np.arange(6), 4), "group": np.tile([0, 0, 1, 1], 6)})
    rows = rows.sample(frac=1, random_state=0)
    rows.to_csv(folder / "labels.csv", index=False)
    return folder, rows


def test_labels_and_groups_beside_a_folder_are_refused(listed: tuple[Path, pd.DataFrame]) -> None:
    """Its images are read sorted, and the values would be in the order of the file."""
    folder, rows = listed
    with pytest.raises(ValueError, match=r"has labels: its sub-folders, or its labels\.csv; leave labels out"):
        dml.evaluate(flat, folder, rows["label"].to_numpy(), **COMMON)
    with pytest.raises(ValueError, match=r"groups of the images .* go into the column group of its labels\.csv"):
        dml.evaluate(flat, str(folder), groups=rows["group"], **COMMON)
    with pytest.raises(ValueError, match="column group"):
        dml.evaluate(flat, queries=folder, gallery=folder, groups=(rows["group"], rows["group"]), **COMMON)
    assert dml.evaluate(flat, folder, **COMMON).about["grouped"]


def test_outcomes_name_the_file_of_each_query(listed: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, rows = listed
    result = dml.evaluate(flat, folder, **COMMON)
    files = dict(zip(result.outcomes["query"], result.outcomes["file"], strict=True))
    sorted_rows = rows.sort_values(["label", "path"], ignore_index=True)
    assert files == {row: sorted_rows["path"][row] for row in files}
    for row, natural in zip(result.images.rows, result.images.images, strict=True):
        with Image.open(folder / files[row]) as image:
            np.testing.assert_allclose(natural.transpose(1, 2, 0), np.array(image) / 255, atol=1e-6)
    result.save(tmp_path / "report")
    assert pd.read_csv(tmp_path / "report" / "outcomes.csv")["file"].tolist() == result.outcomes["file"].tolist()
    rows.assign(query=[0, 1] * 12).to_csv(folder / "labels.csv", index=False)
    apart = dml.evaluate(flat, folder, **COMMON).outcomes
    asked = sorted_rows["path"][sorted_rows["path"].isin(rows["path"].iloc[1::2])].tolist()
    assert apart["file"].tolist() == [asked[row] for row in apart["query"]]


def test_classes_of_one_name_are_told_apart_by_their_labels(listed: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """As In-Shop's items of one category: places in the order of a folder mean nothing in another one."""
    folder, rows = listed
    rows = rows.assign(class_name="shirt", label=10 * rows["label"])
    rows.to_csv(folder / "labels.csv", index=False)
    asked = tmp_path / "asked"
    shutil.copytree(folder, asked)
    rows[rows["label"] >= 20].to_csv(asked / "labels.csv", index=False)
    items, query = splits(None, None, asked, folder, None)
    assert [items.class_names[label] for label in items.labels] == [str(10 * label) for label in np.repeat(range(6), 4)]
    assert {query.class_names[label] for label in query.labels} == {"20", "30", "40", "50"}
    found = dict(zip(items.files, items.labels, strict=True))
    assert [found[file] for file in query.files] == query.labels.tolist()


def test_of_a_folder_with_training_classes_the_others_are_attacked(listed: tuple[Path, pd.DataFrame]) -> None:
    """And the control that is fitted takes the training classes."""
    folder, rows = listed
    rows.assign(train=(rows["label"] % 2 == 0).astype(int)).to_csv(folder / "labels.csv", index=False)
    items, _ = splits(folder, None, None, None, None)
    assert set(items.class_names) == {"1", "3", "5"}
    assert len(items) == len(items.files) == 12
    with Image.open(folder / items.files[5]) as image:
        np.testing.assert_array_equal(items.images[5], np.array(image))
    rows.assign(train=(rows["label"] < 5).astype(int)).to_csv(folder / "labels.csv", index=False)
    for training in (None, folder):
        data = training_data(training, folder, (), None, None, [])
        assert [data.train.class_names[label] for label in data.train.classes] == ["0", "1", "2"]
        assert len(data.train) + len(data.validation) == 20
    rows.to_csv(folder / "labels.csv", index=False)
    assert training_data(None, folder, (), None, None, []) is None


@pytest.mark.parametrize("how", [{"quoting": csv.QUOTE_NONNUMERIC}, {"encoding": "utf-8-sig"}])
def test_training_classes_are_those_that_are_not_attacked(listed: tuple[Path, pd.DataFrame], how: dict) -> None:
    """However the table is written: the reader of the images and that of the training classes see the same."""
    folder, rows = listed
    rows = rows.assign(train=(rows["label"] < 4).astype(int))[["train", "path", "label"]]
    rows.to_csv(folder / "labels.csv", index=False, **how)
    attacked, data = splits(folder, None, None, None, None)[0], training_data(None, folder, (), None, None, [])
    assert (len(attacked), len(data.train) + len(data.validation)) == (8, 16)


def test_with_few_training_classes_a_folder_is_attacked_all_the_same(listed: tuple[Path, pd.DataFrame]) -> None:
    folder, rows = listed
    rows.assign(train=(rows["label"] < 2).astype(int)).to_csv(folder / "labels.csv", index=False)
    with pytest.warns(UserWarning, match=r"training has 2 classes; .*: no control is fitted"):
        found = dml.evaluate(flat, folder, **COMMON | {"controls": ("pixels_8", "pixels_linear"), "size": 8})
    assert set(found.summary["model"]) == {"your model", "pixels_8"}


def test_images_that_older_code_prepared_are_told(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    prepare(
        read_folder(picture_folder()), tmp_path / "out", name="toy", size=8, train_fraction=0.5, validation_fraction=0.4
    )
    about = json.loads((tmp_path / "out/about.json").read_text())
    (tmp_path / "out/about.json").write_text(json.dumps({key: about[key] for key in about if key != "height"}))
    with pytest.raises(ValueError, match=r"about\.json lacks 'height': older code prepared these images; remove"):
        dml.evaluate(flat, tmp_path / "out", **COMMON)


def test_memory_is_that_of_the_job(tmp_path: Path) -> None:
    """A scheduler gives a job less than the machine has, by a limit of its control group or of one above."""
    group, own = tmp_path / "groups" / "job" / "step", tmp_path / "own"
    group.mkdir(parents=True)
    own.write_text("0::/job/step\n")
    assert loading.memory(tmp_path / "groups", own) == loading.memory(own=tmp_path / "nowhere") > 2**20
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("4096\n")
    assert loading.memory(tmp_path / "groups", own) == 4096
    assert loading.memory(tmp_path / "elsewhere", own) > 4096


def test_images_that_would_fill_the_memory_are_not_kept(
    listed: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = listed
    monkeypatch.setattr("dml.api.evaluate.AT_ONCE", 2)
    monkeypatch.setattr("dml.api.evaluate.KEPT", 1)
    lines: list[str] = []
    result = dml.evaluate(flat, folder, **COMMON | {"report": lines.append})
    assert any("keeps the images of the first 2 queries" in line for line in lines)
    assert result.images.images.shape == result.images.adversarial.shape == (2, 3, 16, 20)
    asked = result.outcomes.drop_duplicates("query")["query"].tolist()
    assert len(asked) == 6
    assert result.images.rows.tolist() == asked[:2]
    result.save(tmp_path / "report")


def test_persons_are_higher_than_wide(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The whole image at this height and width; on the command line, too, and when a claim is checked."""
    folder, model = picture_folder(classes=6), tmp_path / "tall.py"
    result = dml.evaluate(flat, folder, size=(24, 8), **COMMON)
    assert result.about["shape"] == [24, 8]
    row, file = result.outcomes[["query", "file"]].iloc[0]
    with Image.open(folder / file) as image:
        whole = np.array(image.resize((8, 24), Image.Resampling.BICUBIC))
    natural = result.images.images[result.images.rows.tolist().index(row)]
    np.testing.assert_allclose(natural.transpose(1, 2, 0), whole / 255, atol=1e-6)

    model.write_text("def make():\n    return lambda images: images.flatten(1) - 0.5\n")
    words = ["--model", f"{model}:make", "--eps", "0.05", "--queries", "6", "--size", "24x8"]
    assert main(["evaluate", str(folder), *words, "--output", str(tmp_path / "report")]) == 0
    board = tmp_path / "board"
    about = ["--name", "mine", "--authors", "me", "--link", "https://a.b", "--data", "none", "--architecture", "pixels"]
    about += ["--dataset", "toys", "--images", str(folder), "--model", f"{model}:make", "--folder", str(board)]
    assert main(["leaderboard", "add", str(tmp_path / "report"), *about, "--show-failing"]) == 0
    (entry,) = board.glob("mine-*.json")
    claim = ["--adversarial", str(tmp_path / "report" / "adversarial.npz"), "--by", "me"]
    assert main(["leaderboard", "check", str(entry), *claim]) == 1, "nothing beyond what the report had"

    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), *words[:-1], "24 by 8"])
    assert "'24 by 8' is no size; give pixels, as in 224 or 256x128" in capsys.readouterr().err
    for size in ((24, 8, 3), (0, 8), "24x8", 2.5):
        with pytest.raises(ValueError, match=r"it must be a whole number of pixels, at least 1, or two of them: \("):
            dml.evaluate(flat, folder, size=size, **COMMON)
    assert dml.wrap(nn.Identity(), size=(4, 2))(torch.rand(1, 3, 8, 8)).shape == (1, 3, 4, 2)


def test_two_folders_on_the_command_line(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Queries and gallery, as re-identification and In-Shop have them."""
    asked, model = picture_folder(classes=6), tmp_path / "flat.py"
    items = shutil.copytree(asked, tmp_path / "items")
    for file in asked.glob("*/0.png"):
        file.unlink()
    model.write_text("def make():\n    return lambda images: images.flatten(1) - 0.5\n")
    words = ["--model", f"{model}:make", "--limit", "6", "--ranks", "3", "--size", "8", "--eps", "0.05"]
    words += ["--no-controls", "--output", str(tmp_path / "report")]
    assert main(["evaluate", str(asked), "--gallery", str(items), *words]) == 0
    about = json.loads((tmp_path / "report" / "result.json").read_text())["about"]
    count = len(list(items.glob("*/*")))
    assert about["apart"]
    assert (about["gallery"], about["queries"], about["all_queries"]) == (count, 6, len(list(asked.glob("*/*"))))
    assert "R@3 " in capsys.readouterr().out
    board = tmp_path / "board"
    who = ["--name", "mine", "--authors", "me", "--link", "https://a.b", "--data", "none", "--architecture", "pixels"]
    who += ["--dataset", "toys", "--images", str(asked), "--model", f"{model}:make", "--folder", str(board)]
    assert main(["leaderboard", "add", str(tmp_path / "report"), *who, "--show-failing"]) == 0
    claim = ["--adversarial", str(tmp_path / "report" / "adversarial.npz"), "--by", "me", "--gallery", str(items)]
    assert main(["leaderboard", "check", str(next(board.glob("mine-*.json"))), *claim]) == 1
    assert "No array breaks a query that survives" in capsys.readouterr().out, "nothing beyond what the report had"
    assert main(["evaluate", str(asked), "--gallery", str(items), *words[:-3], "--training", str(items)]) == 1
    assert "training is what is attacked" in capsys.readouterr().err


def test_groups_of_two_folders_are_matched_by_their_names(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A camera of both has one name, whatever its place among those of each folder."""
    asked, items = picture_folder(classes=3, images=2), tmp_path / "items"
    shutil.copytree(asked, items)
    for folder, cameras in ((asked, ["B", ""]), (items, ["A", "B"])):
        rows = [
            {"path": f"./class_{label:02d}/{copy}.png", "label": label, "group": cameras[copy]}
            for label in range(3)
            for copy in range(2)
        ]
        pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    gallery, queries = splits(None, None, asked, items, None)
    same = queries.groups[:, None] == gallery.groups
    own = (queries.labels[:, None] == gallery.labels) & np.tile([False, True], 3)
    assert (same == own * np.tile([True, False], 3)[:, None]).all(), "camera B alone, and no image without one"


def test_a_square_is_cut_out_of_a_larger_image(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As published figures of networks for ImageNet are measured: 256 pixels, of which the central 224."""
    folder, model, output = picture_folder(classes=6), tmp_path / "flat.py", tmp_path / "report"
    model.write_text("def make():\n    return lambda images: images.flatten(1) - 0.5\n")
    words = ["--model", f"{model}:make", "--queries", "6", "--size", "8", "--resize", "12", "--output", str(output)]
    assert main(["evaluate", str(folder), *words, "--eps", "0.05", "--no-controls"]) == 0
    stored, outcomes = np.load(output / "adversarial.npz"), pd.read_csv(output / "outcomes.csv")
    row, file = outcomes[["query", "file"]].iloc[0]
    with Image.open(folder / file) as image:
        assert image.size == (20, 16)
        square = np.array(image.resize((15, 12), Image.Resampling.BICUBIC))[2:10, 4:12]
    natural = stored["images"][stored["rows"].tolist().index(row)]
    np.testing.assert_allclose(natural.transpose(1, 2, 0), square / 255, atol=1e-6)
    about = ["--name", "flat", "--authors", "me", "--link", "https://a.b", "--data", "none", "--architecture", "pixels"]
    about += ["--dataset", "toys", "--folder", str(tmp_path / "board"), "--show-failing"]
    assert main(["leaderboard", "add", str(output), *about]) == 0
    claim = [str(next((tmp_path / "board").glob("*.json"))), "--adversarial", str(output / "adversarial.npz")]
    claim += ["--images", str(folder), "--model", f"{model}:make", "--by", "B. Breaker"]
    for words, same in ((["--resize", "12"], True), ([], False)):
        capsys.readouterr()
        assert main(["leaderboard", "check", *claim, *words]) == 1
        told = capsys.readouterr()
        assert ("No array breaks a query that survives" in told.out) == same, told


def test_a_folder_of_this_repository_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture_folder: Callable[..., Path]
) -> None:
    folder = picture_folder(classes=2)
    monkeypatch.setattr(loading, "ROOT", folder.parent)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert loading.found_at(folder.name) == folder
    found = [dml.evaluate(flat, place, **COMMON).about["gallery_sha256"] for place in (folder.name, folder)]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="training is what is attacked"):
        dml.evaluate(flat, folder.name, training=folder, **COMMON | {"controls": ("pixels_linear",)})
    (elsewhere / folder.name).mkdir()
    assert loading.found_at(folder.name) == Path(folder.name), "what is here comes first"
    with pytest.raises(ValueError, match="nowhere is not a folder; give one with a sub-folder per class"):
        loading.check_folder("nowhere")


def test_images_that_others_cannot_make_are_no_images_to_check_claims_with(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def halved(image: Image.Image) -> Image.Image:
        return image.resize((8, 8))

    folder = picture_folder(classes=6)
    dml.evaluate(flat, folder, transform=halved, **COMMON).save(tmp_path / "report")
    about = ["--name", "mine", "--authors", "me", "--link", "https://a.b", "--data", "none", "--architecture", "pixels"]
    about += ["--dataset", "toys", "--folder", str(tmp_path / "board"), "--show-failing"]
    assert main(["leaderboard", "add", str(tmp_path / "report"), *about, "--images", str(folder)]) == 1
    assert "the images went through a transform of yours" in capsys.readouterr().err
    assert main(["leaderboard", "add", str(tmp_path / "report"), *about]) == 0


def test_a_pair_of_images_and_labels_is_enough(toy_split: Split) -> None:
    pair, apart = (toy_split.images, toy_split.labels), dml.evaluate(flat, toy_split.images, toy_split.labels, **COMMON)
    pd.testing.assert_frame_equal(dml.evaluate(flat, pair, **COMMON).outcomes, apart.outcomes)


def test_training_images_are_not_those_attacked(toy_split: Split, picture_folder: Callable[..., Path]) -> None:
    pair = (toy_split.images, toy_split.labels)
    with pytest.raises(ValueError, match="training is what is attacked; give images of other classes"):
        dml.evaluate(flat, pair, training=pair, **COMMON | {"controls": ("pixels_linear",)})
    folder = picture_folder(classes=6)
    with pytest.raises(ValueError, match="training is what is attacked"):
        training_data(str(folder), folder / "class_00" / "..", (), None, None, [])
    assert training_data(picture_folder(classes=6, name="others"), folder, (), 8, None, []) is not None


def test_a_model_that_hardly_retrieves_is_called_so(toy_split: Split) -> None:
    """The controls find nearly all; a model that looks at noise, none."""
    torch.manual_seed(0)
    right = dml.evaluate(flat, toy_split.images, toy_split.labels, **COMMON | {"controls": ("pixels_8",)})
    assert "Natural R@1 is" not in str(right)
    wrong = torch.randperm(36, generator=torch.Generator().manual_seed(0)).numpy() % 6
    mixed = dml.evaluate(flat, toy_split.images, wrong, **COMMON | {"suite": SMALL | {"queries": 36}})
    assert "not beyond chance: check labels, order of channels, and normalisation." in " ".join(str(mixed).split())

    def blind(images: Tensor) -> Tensor:
        return torch.sin(1e4 * images.flatten(1)[:, :6])

    settings = COMMON | {"controls": ("pixels_8",), "suite": SMALL | {"queries": 36}}
    found = " ".join(str(dml.evaluate(blind, toy_split.images, toy_split.labels, **settings)).split())
    assert "of untrained pixels_8: check labels, order of channels, and normalisation." in found


def test_a_timm_model_inside_another_is_seen(toy_split: Split) -> None:
    trunk = timm.create_model("resnet10t", num_classes=0).eval()
    whole, settings = nn.Sequential(trunk, nn.Linear(512, 8)).eval(), COMMON | {"limit": 2}
    data = toy_split.images, toy_split.labels
    for model in (whole, dml.wrap(whole, size=32)):
        with pytest.warns(UserWarning, match=r"the timm model inside was trained on normalised .* std=\(0\.229, "):
            dml.evaluate(model, *data, **settings)
    config = trunk.pretrained_cfg
    assert not dml.evaluate(dml.wrap(whole, config["mean"], config["std"]), *data, **settings).notes


def test_a_model_of_faces() -> None:
    """Blue first, in [-1, 1], and the embedding one of several outputs."""

    class Faces(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": images.mean(), "embedding": images.flatten(1)}

    image = torch.rand(2, 3, 4, 4)
    model = dml.wrap(Faces(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), channels="bgr", output="embedding")
    torch.testing.assert_close(model(image), (2 * image[:, [2, 1, 0]] - 1).flatten(1))
    several = dml.wrap(lambda images: (images.sum(), images.flatten(1)), output=1)
    torch.testing.assert_close(several(image), image.flatten(1))
    with pytest.raises(ValueError, match="channels 'bgrr' is unknown; did you mean 'bgr'"):
        dml.wrap(Faces(), channels="bgrr")
    for given in ([image.flatten(1)], (image.flatten(1),), {"a": image.flatten(1)}):
        with pytest.raises(ValueError, match=r"embed gives a \w+; .*dml\.wrap\(model, output=\.\.\.\) takes one of"):
            dml.evaluate(lambda images, given=given: given, image.repeat(4, 1, 1, 1), [0, 1] * 4, **COMMON)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"image": 1}, "an item of the dataset is dict; it must be a pair of image and label"),
        (("a.png", 0), "an item of the dataset begins with str; it must be a pair"),
        ((3, np.zeros((4, 4, 3), np.uint8), 0), "an item of the dataset begins with int; it must be a pair"),
    ],
)
def test_items_of_a_dataset_that_are_no_pairs(item: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dml.evaluate(flat, [item] * 8, [0, 1] * 4, **COMMON)


def test_controls_that_do_not_fit_the_images_are_named(picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder(classes=6)
    common = COMMON | {"controls": ("pixels_8", "pixels_16", "pixels_linear", "soft_histogram")}
    with pytest.warns(UserWarning, match="24 x 8 pixels do not divide into the boxes of pixels_16, left out") as told:
        found = dml.evaluate(flat, folder, size=(24, 8), **common)
    assert len(told) == 1
    assert set(found.summary["model"]) == {"your model", "pixels_8", "soft_histogram"}
    with pytest.warns(UserWarning, match="16 x 2 pixels are too small for soft_histogram, left out as control"):
        found = dml.evaluate(flat, folder, size=(16, 2), **common | {"controls": "soft_histogram"})
    assert set(found.summary["model"]) == {"your model"}


@pytest.mark.parametrize(("similarity", "total"), [("cosine", 36), ("euclidean", 72)])
def test_embedding_a_gallery_says_how_far_it_is(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch, similarity: str, total: int
) -> None:
    monkeypatch.setattr("dml.api.embedding.EVERY", 0.0)
    monkeypatch.setattr("dml.retrieval.index.CHUNK", 12)
    lines: list[str] = []
    dml.evaluate(flat, (toy_split.images, toy_split.labels), similarity=similarity, **COMMON | {"report": lines.append})
    told = [line for line in lines if line.startswith("embedd")]
    assert told[0] == f"embedding {total} images"
    assert [line.split(", ")[0] for line in told[1:]] == [
        f"embedded {done}/{total} images" for done in range(12, total, 12)
    ]
    assert all(line.endswith("0:00 left") for line in told[1:])
