"""Datasets: the same bytes for the same recipe, and one sentence for whatever is wrong with a folder."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dml.api.loading import load as load_images
from dml.common.files import ROOT
from dml.data.base import Dataset, DatasetError, Source, Split, load, split_classes
from dml.data.prepare import prepare
from dml.data.sampling import attacked_rows, balanced_batches
from dml.data.sources.folder import read_folder
from dml.data.sources.glyphs import choose_symbols, read_glyphs
from dml.data.unpack import unpack

BILINEAR = Image.Resampling.BILINEAR
RAW_GLYPHS = ROOT / "data" / "glyphs" / "glyphs.json"


def prepared(folder: Path, target: Path, size: int = 8) -> Path:
    prepare(read_folder(folder), target, name="toy", size=size, train_fraction=0.5, validation_fraction=0.4)
    return target


def test_glyphs_are_the_same_for_the_same_seed() -> None:
    first, again, other = (read_glyphs(RAW_GLYPHS, images_per_class=2, size=32, seed=seed) for seed in (0, 0, 1))
    for row in (0, 1, 250, 399):
        image = np.asarray(first.read(row))
        assert image.shape == (32, 32, 3)
        assert np.array_equal(image, np.asarray(again.read(row)))
        assert not np.array_equal(image, np.asarray(other.read(row)))
    assert first.digest == again.digest != other.digest


def test_committed_glyphs_are_two_hundred_different_symbols() -> None:
    symbols = json.loads(RAW_GLYPHS.read_text(encoding="utf-8"))["symbols"]
    assert len(symbols) == len(set(symbols)) == 200
    # A symbol more or less is that of another version of Pillow, whose renderings differ a little.
    assert len(set(choose_symbols(25)) - set(symbols)) <= 3


def test_folder_of_class_folders(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = load(prepared(picture_folder(classes=10, images=3), tmp_path / "out"))
    assert [len(split.classes) for split in (data.train, data.validation, data.test)] == [3, 2, 5]
    assert data.test.images.shape == (15, 8, 8, 3)
    assert isinstance(data.test.images.pixels, np.memmap)
    assert data.test.labels.tolist() == sorted(list(range(5, 10)) * 3)
    assert data.test.class_names[7] == "class_07"
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["images"] == 30
    assert about["images_per_class"] == [3] * 10


def test_folder_with_a_table(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = picture_folder(classes=8, images=2)
    rows = [f"class_{c:02d}/{i}.png,{7 - c},name {7 - c}" for c in range(8) for i in range(2)]
    (folder / "labels.csv").write_text("path,label,class_name\n" + "\n".join(rows))
    source = read_folder(folder)
    assert source.class_names == [f"name {label}" for label in range(8)]
    assert source.labels.tolist() == sorted([*range(8)] * 2)
    assert np.array_equal(np.asarray(source.read(0)), np.asarray(Image.open(folder / "class_07" / "0.png")))


def test_spaces_after_commas_are_no_part_of_a_table(picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder(classes=2, images=2)
    rows = [f"class_{c:02d}/{i}.png, {c}, name {c}, 0{i}" for c in range(2) for i in range(2)]
    (folder / "labels.csv").write_text("path, label, class_name, group\n" + "\n".join(rows))
    source = read_folder(folder)
    assert source.class_names == ["name 0", "name 1"]
    assert source.groups.tolist() == [0, 1, 2, 3], "of four images, two in each class"
    loaded = load_images(folder, None)
    assert sorted(set(loaded.group_names)) == ["group 00", "group 01"], "the other reader, of names that folders share"


def test_grey_and_transparent_images_become_colour(picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder()
    Image.new("L", (20, 20), 128).save(folder / "class_00" / "0.png")
    Image.new("RGBA", (20, 20), (10, 20, 30, 128)).save(folder / "class_00" / "1.png")
    source = read_folder(folder)
    assert source.read(0).mode == source.read(1).mode == "RGB"


def test_preparing_twice_gives_the_same_bytes(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = picture_folder()
    first, second = prepared(folder, tmp_path / "a"), prepared(folder, tmp_path / "b")
    assert not (first / "groups.npy").exists()
    for name in ("images.bin", "index.npy", "labels.npy", "about.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_every_split_is_disjoint_and_has_two_classes() -> None:
    for classes in range(8, 300):
        splits = split_classes(classes, round(classes / 2), 0.2)
        edges = [edge for name in ("train", "validation", "test") for edge in splits[name]]
        assert edges == sorted(edges)
        assert edges[0] == 0
        assert edges[-1] == classes
        assert all(last - first >= 2 for first, last in splits.values())


def test_other_training_classes_are_held_out_without_preparing_again(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = prepared(picture_folder(classes=12), tmp_path / "a")
    before, after = load(folder), load(folder, validation_fraction=0.67)
    assert np.array_equal(after.test.labels, before.test.labels)
    assert before.validation.classes.tolist() == [4, 5]
    assert after.train.classes.tolist() == [0, 1]
    assert after.validation.classes.tolist() == [2, 3, 4, 5]
    assert np.array_equal(after.validation.images[-4:], before.validation.images[-4:])
    with pytest.raises(DatasetError, match="12 classes leave 1 for train"):
        load(folder, validation_fraction=0.9)


def test_where_no_class_is_held_out_all_train_and_some_are_watched(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = prepared(picture_folder(classes=20), tmp_path / "a")
    assert load(folder).held_out
    data = load(folder, validation_fraction=0)
    assert data.train.classes.tolist() == list(range(10))
    assert data.validation.classes.tolist() == [8, 9]
    assert not data.held_out
    rest = data.train.without(data.validation.classes)
    assert rest.classes.tolist() == list(range(8))
    assert np.array_equal(rest.images[:], data.train.images[: len(rest)])
    read = Split(data.train.images[:], data.train.labels, data.train.class_names, data.train.labels + 7)
    assert np.array_equal(read.without(np.array([0])).images, read.images[read.labels > 0])
    assert read.without(np.array([0])).groups.min() == 8


def missing(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()
    for place in folder.iterdir():
        place.rmdir()
    folder.rmdir()


def empty(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()


def one_class(folder: Path) -> None:
    for place in sorted(folder.iterdir())[1:]:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


def single_image(folder: Path) -> None:
    for file in sorted((folder / "class_03").iterdir())[1:]:
        file.unlink()


def text_file(folder: Path) -> None:
    (folder / "class_02" / "notes.txt").write_text("no image")


def text_called_jpg(folder: Path) -> None:
    (folder / "class_02" / "0.jpg").write_text("no image")


def truncated(folder: Path) -> None:
    file = folder / "class_02" / "0.png"
    file.write_bytes(file.read_bytes()[:100])


def table_without_label(folder: Path) -> None:
    (folder / "labels.csv").write_text("path,class\nclass_00/0.png,0\n")


def table_with_words(folder: Path) -> None:
    (folder / "labels.csv").write_text("path,label\nclass_00/0.png,cat\nclass_00/1.png,cat\n")


def table_with_missing_file(folder: Path) -> None:
    (folder / "labels.csv").write_text("path,label\nclass_00/0.png,0\nclass_00/none.png,0\n")


def table_that_leaves_the_folder(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes((folder / "class_00" / "0.png").read_bytes())
    (folder / "labels.csv").write_text("path,label\n../secret.png,0\nclass_00/0.png,0\n")


def table_with_a_file_twice(folder: Path) -> None:
    (folder / "labels.csv").write_text("path,label\nclass_00/0.png,0\nclass_00/0.png,0\n")


def table_of_nothing(folder: Path) -> None:
    (folder / "labels.csv").write_text("path,label\n")


def empty_table(folder: Path) -> None:
    (folder / "labels.csv").write_text("")


def table_with_a_query_that_is_neither(folder: Path) -> None:
    (folder / "labels.csv").write_text("path,label,query\nclass_00/0.png,0,1\nclass_00/1.png,0,2\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "is not a folder"),
        (empty, "holds no image"),
        (one_class, "single class 'class_00'"),
        (single_image, "class 'class_03' of toy has 1 image"),
        (text_file, r"notes\.txt is not an image"),
        (text_called_jpg, r"0\.jpg is no readable image"),
        (truncated, r"0\.png is no readable image"),
        (table_without_label, "lacks the column 'label'"),
        (table_with_words, "a label that is not an integer"),
        (table_with_missing_file, r"none\.png, which does not exist"),
        (table_that_leaves_the_folder, "which lies outside"),
        (table_with_a_file_twice, "twice"),
        (empty_table, "not a table"),
        (table_of_nothing, "lists no image"),
        (table_with_a_query_that_is_neither, "has the query '2'; the column must hold 1 for queries"),
    ],
)
def test_a_broken_folder_is_one_sentence_and_leaves_nothing(
    damage: Callable[[Path], None], words: str, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = picture_folder()
    damage(folder)
    with pytest.raises(DatasetError, match=words) as caught:
        prepared(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [place.name for place in tmp_path.iterdir() if "out" in place.name] == []


def test_too_few_classes_for_three_splits(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="every split needs two"):
        prepared(picture_folder(classes=4), tmp_path / "out")


def test_a_recipe_without_symbols(tmp_path: Path) -> None:
    (tmp_path / "glyphs.json").write_text("[]")
    with pytest.raises(DatasetError, match="a list named `symbols`"):
        read_glyphs(tmp_path / "glyphs.json", images_per_class=2, size=32, seed=0)


def test_only_the_centre_is_searched_and_all_is_trained_on(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The images are 24 by 20 pixels; the shorter side becomes 10, and the middle 6 by 6 are searched."""
    source = read_folder(picture_folder(size=20))
    prepare(source, tmp_path / "out", name="toy", size=10, crop=6, train_fraction=0.5, validation_fraction=0.4)
    data = load(tmp_path / "out")
    for split in (data.train, data.validation, data.test):
        assert split.images.shape == (len(split), 6, 6, 3)
        assert split.whole(1).shape == (10, 12, 3)
        assert np.array_equal(split.images[1], split.whole(1)[2:8, 3:9])
    resized = source.read(int(np.flatnonzero(source.labels == data.test.labels[0])[0])).resize((12, 10), BILINEAR)
    assert np.array_equal(data.test.whole(0), np.asarray(resized))


def test_persons_are_prepared_higher_than_wide(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    source, out = read_folder(folder := picture_folder()), tmp_path / "out"
    how = {"name": "toy", "size": 8, "height": 16, "train_fraction": 0.5, "validation_fraction": 0.4}
    prepare(source, out, **how)
    data = load(out)
    assert data.test.images.shape == (16, 16, 8, 3)
    with Image.open(folder / "class_04" / "0.png") as image:
        np.testing.assert_array_equal(data.test.images[0], np.asarray(image.resize((8, 16), BILINEAR)))
    with pytest.raises(ValueError, match="height is 16; with a crop it must be 0"):
        prepare(source, tmp_path / "no", **how, crop=4)


def test_images_are_chosen_like_rows_of_an_array(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    images = load(prepared(picture_folder(), tmp_path / "out")).train.images
    array = np.stack([images[row] for row in range(len(images))])
    mask = np.arange(len(images)) % 3 == 0
    for rows in (slice(2, 9, 3), [4, 0, 4], np.array([1, -1]), mask, slice(5, 5), -2, np.int64(3)):
        assert np.array_equal(images[rows], array[rows])
    assert images[:0].shape == array[:0].shape


def test_a_set_in_an_archive_becomes_a_folder(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = picture_folder(classes=8, images=2)
    rows = [f"class_{c:02d}/{i}.png,{c},name {c}" for c in range(8) for i in range(2)]
    (folder / "labels.csv").write_text("path,label,class_name\n" + "\n".join(rows))
    for format in ("tar", "gztar", "zip"):
        archive = Path(shutil.make_archive(str(tmp_path / format), format, tmp_path, folder.name))
        assert unpack(archive, tmp_path / "data" / format) == 16
        assert read_folder(tmp_path / "data" / format).digest == read_folder(folder).digest
        with pytest.raises(DatasetError, match="exists; remove it"):
            unpack(archive, tmp_path / "data" / format)
    assert sorted(place.name for place in (tmp_path / "data").iterdir()) == ["gztar", "tar", "zip"]


@pytest.mark.parametrize("ending", ["tar", "gztar", "zip"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("corrupt", "tar or zip archive|lists class_"),
        ("cut", "cannot be unpacked as a tar or zip archive"),
        ("text", "cannot be unpacked as a tar or zip archive"),
        ("no table", "holds 0 files labels.csv"),
        ("missing image", r"lists class_00/0.png, which does not exist"),
        ("leads out", r"has the path \.\./outside\.png, which leads out of it"),
    ],
)
def test_a_bad_archive_leaves_nothing(
    damage: str, words: str, ending: str, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = picture_folder(classes=8, images=2)
    if damage != "no table":
        rows = [f"class_{c:02d}/{i}.png,{c}" for c in range(8) for i in range(2)]
        (folder / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    if damage == "missing image":
        (folder / "class_00" / "0.png").unlink()
    archive = Path(shutil.make_archive(str(tmp_path / "set"), ending, tmp_path, folder.name))
    if damage == "cut":
        archive.write_bytes(archive.read_bytes()[:1500])
    if damage == "corrupt":
        content = bytearray(archive.read_bytes())
        place = len(content) // 3 if ending == "zip" else 200
        content[place : place + 60] = bytes(60)
        archive.write_bytes(content)
    if damage == "text":
        archive.write_text("not an archive")
    if damage == "leads out" and ending != "zip":
        with tarfile.open(archive, "w:gz" if ending == "gztar" else "w") as opened:
            opened.add(folder, folder.name)
            opened.addfile(tarfile.TarInfo("../outside.png"))
    elif damage == "leads out":
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr("../outside.png", b"")
    with pytest.raises(DatasetError, match=words):
        unpack(archive, tmp_path / "data" / "set")
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "data" / "outside.png").exists()


def test_statistics_are_those_of_the_pixels(toy_split: Split) -> None:
    found = toy_split.statistics()
    pixels = np.asarray(toy_split.images).reshape(-1, 3) / 255
    np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], pixels.std(0), rtol=1e-9)


def test_a_channel_that_is_the_same_everywhere_can_be_divided_by() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    images[..., 2] = 77
    found = Split(images, np.arange(4), list("abcd")).statistics()
    np.testing.assert_allclose(found["std"], [*(images[..., :2].reshape(-1, 2).std(0) / 255), 1.0])


def test_a_source_out_of_order_is_refused(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Splits are ranges of rows: training would see test classes."""
    source = read_folder(picture_folder())
    with pytest.raises(DatasetError, match="the source of toy gives images out of the order of their labels"):
        prepare(
            replace(source, labels=source.labels[::-1]),
            tmp_path / "out",
            name="toy",
            size=8,
            train_fraction=0.5,
            validation_fraction=0.4,
        )
    assert not list(tmp_path.glob("*out*"))


def write_table(folder: Path, columns: str, cells: Callable[[int, int], str], classes: int, images: int) -> Path:
    """A labels.csv of ``path,label`` and further columns, filled by (class, number of the image) -> text."""
    rows = [f"class_{c:02d}/{i}.png,{c},{cells(c, i)}" for c in range(classes) for i in range(images)]
    (folder / "labels.csv").write_text(f"path,label,{columns}\n" + "\n".join(rows))
    return folder


def test_groups_of_a_table_are_images_of_one_class_with_one_value(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Camera 01 of one class is no group with camera 01 of another; an empty value makes a group of one image."""
    folder = write_table(picture_folder(), "group", lambda c, i: ["01", "01", "1", ""][i], classes=8, images=4)
    source = read_folder(folder)
    assert source.groups.dtype == np.int64
    groups = source.groups.reshape(8, 4)
    assert (groups[:, 0] == groups[:, 1]).all()
    assert len(np.unique(groups)) == 8 * 3
    data = load(prepared(folder, tmp_path / "out"))
    assert data.queries is None
    for split in (data.train, data.validation, data.test):
        assert np.array_equal(split.groups, source.groups[np.isin(source.labels, split.classes)])


def test_a_class_of_one_group_is_trained_on_and_not_validated_on(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A query of such a class could find nothing."""
    folder = write_table(
        picture_folder(classes=12), "group", lambda c, i: "one" if c in (0, 4) else str(i // 2), classes=12, images=4
    )
    source = read_folder(folder)
    prepare(source, tmp_path / "out", name="toy", size=8, train_fraction=0.5, validation_fraction=0.5)
    data = load(tmp_path / "out")
    assert data.train.classes.tolist() == [0, 1, 2]
    assert data.validation.classes.tolist() == [3, 5]
    assert data.validation.groups.tolist() == [g for c in (3, 5) for g in source.groups[4 * c : 4 * c + 4]]
    with pytest.raises(DatasetError, match="toy: validation has 1 classes of two or more groups; it needs two"):
        load(tmp_path / "out", validation_fraction=0.4)


def apart(folder: Path, target: Path, cells: Callable[[int, int], str]) -> Dataset:
    write_table(folder, "query,group", cells, classes=8, images=4)
    return load(prepared(folder, target))


def test_a_table_may_say_which_classes_train(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Here the odd ones; the names of classes stay as they are written."""
    folder = write_table(
        picture_folder(), "class_name,train", lambda c, i: f"00{c},{int(c % 2 == 1 or c == 4)}", classes=8, images=4
    )
    data = load(prepared(folder, tmp_path / "out"))
    names = data.train.class_names
    assert names == ["001", "003", "004", "005", "007", "000", "002", "006"]
    assert [names[label] for label in data.test.classes] == ["000", "002", "006"]
    assert len(data.train) + len(data.validation) == 20
    for columns, cells, words in (
        ("train", lambda c, i: str(i % 2), "has images of label 0 in training and test; a class is in one"),
        ("train", lambda c, i: "1", "has no test class in its column train"),
        ("train", lambda c, i: "0", "has no training class in its column train"),
        ("train", lambda c, i: "yes" if (c, i) == (1, 2) else "1", "has the train 'yes'; the column must hold 1 for"),
        ("query", lambda c, i: "" if (c, i) == (1, 2) else "1", "has the query ''; the column must hold 1 for"),
    ):
        with pytest.raises(DatasetError, match=words):
            read_folder(write_table(folder, columns, cells, classes=8, images=4))


def test_queries_of_a_table_are_apart_from_the_gallery(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Training classes keep their images, whatever the column says of them."""
    folder = picture_folder()
    data = apart(folder, tmp_path / "out", lambda c, i: f"{int(i == 1)},{i}")
    assert data.queries.labels.tolist() == [4, 5, 6, 7]
    assert data.test.labels.tolist() == sorted([4, 5, 6, 7] * 3)
    assert len(data.train) + len(data.validation) == 16
    first = Image.open(folder / "class_04" / "1.png").crop((2, 0, 18, 16)).resize((8, 8), BILINEAR)
    np.testing.assert_allclose(data.queries.images[0], np.asarray(first), atol=12)
    whole = load(prepared(picture_folder(name="other"), tmp_path / "other"))
    assert np.array_equal(data.queries.images[:], whole.test.images[1::4])
    assert np.array_equal(data.test.images[:3], whole.test.images[[0, 2, 3]])
    assert not set(data.queries.groups) & set(data.test.groups), "each image forms its own group here"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (lambda c, i: f"1,{i}", "a query of class '4' of toy has no image of its class in the gallery outside"),
        (lambda c, i: f"{int(i == 0)},{'g' if c == 6 else i}", "query of class '6' of toy .* outside its group"),
        (lambda c, i: f"0,{i}", "toy has no query among its test classes"),
    ],
)
def test_a_query_that_could_find_nothing_is_refused_before_anything_is_written(
    cells: Callable[[int, int], str], words: str, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        apart(picture_folder(), tmp_path / "out", cells)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_a_class_of_the_gallery_alone_may_have_one_image(tmp_path: Path) -> None:
    """Distractors: items that are never right."""
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6])
    image = Image.new("RGB", (8, 8))

    def source(queries: np.ndarray | None) -> Source:
        names = [str(label) for label in range(7)]
        return Source(
            names, labels, lambda rows: ((row, lambda size: image) for row in rows.tolist()), "x", 4, queries=queries
        )

    asked = np.isin(np.arange(14), [8, 11])
    options = {"name": "toy", "size": 8, "train_fraction": 0.5, "validation_fraction": 0.5}
    prepare(source(asked), tmp_path / "out", **options)
    data = load(tmp_path / "out")
    assert data.queries.labels.tolist() == [4, 5]
    assert data.test.labels.tolist() == [4, 4, 5, 6]
    with pytest.raises(DatasetError, match="class '6' of toy has 1 image"):
        prepare(source(None), tmp_path / "both", **options)


def test_a_larger_suite_attacks_the_queries_of_a_smaller_one_first() -> None:
    few, many = attacked_rows(20, 500, 3), attacked_rows(300, 500, 3)
    assert np.array_equal(few, many[:20])
    assert len(set(many)) == 300
    assert few.tolist() != sorted(few), "a prefix of a sorted draw would hold low rows only"
    assert not np.array_equal(few, attacked_rows(20, 500, 4))
    assert sorted(attacked_rows(500, 500, 3)) == list(range(500))
    with pytest.raises(ValueError, match="501 queries are to be attacked; the test classes have 500"):
        attacked_rows(501, 500, 3)


def test_batches_are_balanced_and_hold_no_image_twice() -> None:
    labels = np.repeat(np.arange(7), 5)
    drawn = list(
        balanced_batches(labels, classes=3, images_per_class=4, batches=21, generator=np.random.default_rng(0))
    )
    seen = np.zeros(7, int)
    for rows in drawn:
        assert len(set(rows)) == 12
        classes, counts = np.unique(labels[rows], return_counts=True)
        assert counts.tolist() == [4] * 3
        seen[classes] += 1
    assert seen.tolist() == [9] * 7
    for few, words in ((8, "cannot be filled from 7 training classes"), (2, "training class 0 has 5")):
        with pytest.raises(DatasetError, match=words):
            next(balanced_batches(labels, classes=few, images_per_class=6, batches=1, generator=None))
