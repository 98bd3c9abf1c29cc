"""Near duplicates: ratios by hand and by brute force, groups that leave every query something to find, the command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dml.data import commands, grouping
from dml.data.base import DatasetError, load
from dml.data.grouping import choose, components, find_groups, join, others, pairs, stranger_ratios
from dml.data.prepare import prepare
from dml.data.sources.folder import read_folder


def line(*places: float) -> np.ndarray:
    return np.array(places, dtype=float)[:, None]


def test_ratios_by_hand() -> None:
    """Classes 0 at 0 and 1, 1 at 4 and 10, 2 at 20."""
    points, labels = line(0, 1, 4, 10, 20), np.array([0, 0, 1, 1, 2])
    found = others(points, labels)
    assert found.item.tolist() == [2, 2, 1, 1, 3]
    assert found.near.tolist() == [4, 3, 3, 9, 10]
    assert found.third.tolist() == [20, 19, 16, 10, 19]
    linked, ratios = pairs(points, labels, 9)
    assert linked.tolist() == [[0, 1], [2, 3]]
    assert ratios.tolist() == [1 / 3, 6 / 3]
    assert pairs(points, labels, 2)[0].tolist() == [[0, 1]]
    # (0, 4): the third classes are 20 and 16 away; (1, 4), twice: 19, 16; (10, 1): 10, 19; (20, 10): 19, and 9 for 10.
    np.testing.assert_allclose(stranger_ratios(points, labels), [4 / 16, 3 / 16, 3 / 16, 9 / 10, 10 / 9])


def test_equal_images_are_twins_whatever_is_near_them() -> None:
    linked, ratios = pairs(line(5, 5, 5, 6), np.array([0, 0, 1, 1]), 0.5)
    assert linked.tolist() == [[0, 1]]
    assert ratios.tolist() == [0]


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_ratios_are_those_of_brute_force(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = np.sort(np.concatenate([np.arange(4), draw.integers(0, 4, 9)]))
    points = draw.normal(size=(13, 3))
    apart = np.linalg.norm(points[:, None] - points, axis=2)

    def near(row: int, *classes: int) -> float:
        return min(apart[row, other] for other in range(13) if labels[other] not in classes)

    linked, ratios = pairs(points, labels, np.inf)
    assert len(linked) == sum(labels[i] == labels[j] for i in range(13) for j in range(i))
    assert (np.diff(ratios) >= 0).all()
    for (i, j), ratio in zip(linked, ratios, strict=True):
        assert ratio == pytest.approx(apart[i, j] / min(near(i, labels[i]), near(j, labels[j])))
    for i, ratio in enumerate(stranger_ratios(points, labels)):
        j = next(other for other in range(13) if apart[i, other] == near(i, labels[i]))
        assert ratio == pytest.approx(apart[i, j] / min(near(i, labels[i], labels[j]), near(j, labels[i], labels[j])))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    points, labels = draw.normal(size=(40, 5)), np.repeat(np.arange(8), 5)
    whole = stranger_ratios(points, labels)
    monkeypatch.setattr(grouping, "AT_ONCE", 7)
    np.testing.assert_allclose(stranger_ratios(points, labels), whole)


def test_the_threshold_is_a_quantile_and_never_above_the_widest() -> None:
    draw = np.random.default_rng(0)
    points, labels = draw.normal(size=(300, 2)), np.repeat(np.arange(30), 10)
    ratios = stranger_ratios(points, labels)
    threshold = choose(points, labels)
    assert threshold < grouping.WIDEST
    assert (ratios < threshold).mean() == pytest.approx(grouping.STRANGERS, abs=1 / 300)
    corners = np.repeat(np.eye(3), 2, axis=0) + 1e-3 * draw.normal(size=(6, 3))
    assert choose(corners, np.repeat(np.arange(3), 2)) == grouping.WIDEST


def test_components_join_through_others() -> None:
    groups = components(6, np.array([[0, 1], [4, 1], [2, 5]]))
    assert groups[0] == groups[1] == groups[4]
    assert groups[2] == groups[5]
    assert len(np.unique(groups)) == 3
    assert len(np.unique(components(3, np.empty((0, 2), np.int64)))) == 3


def test_a_class_that_would_be_one_group_loses_its_widest_link() -> None:
    """Class 0 is the chain 0 - 1 - 2 - 3, whose middle link is the widest; (0, 2) is wider, but no part of the tree."""
    labels, everything = np.array([0, 0, 0, 0, 1, 1, 1]), np.ones(7, bool)
    linked = np.array([[0, 1], [1, 2], [2, 3], [0, 2], [4, 5]])
    groups, short = join(labels, linked, np.array([0.1, 0.5, 0.0, 0.6, 0.2]), everything, everything)
    assert short == [0]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert groups[4] == groups[5] != groups[6]
    assert sorted(np.unique(groups)) == list(range(4))


def test_queries_apart_from_the_gallery_keep_an_item_to_find() -> None:
    """One group would hold the query 0 and the whole gallery 1, 2; image 3 is a query of another group."""
    labels = np.zeros(4, np.int64)
    asked = np.array([True, False, False, True])
    groups, short = join(labels, np.array([[0, 1], [1, 2]]), np.array([0.3, 0.2]), asked, ~asked)
    assert short == [0]
    assert groups[1] == groups[2] != groups[0]


@pytest.fixture
def bursts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/shop: six classes of six images, of which the first three are one burst. Class 5 is a single burst."""
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    draw = np.random.default_rng(0)
    for label in range(6):
        place = tmp_path / "data/shop" / f"class {label}"
        place.mkdir(parents=True)
        burst = draw.integers(0, 255, (16, 16, 3))
        for number in range(6):
            pixels = (
                burst + draw.normal(0, 4, (16, 16, 3))
                if number < 3 or label == 5
                else draw.integers(0, 255, (16, 16, 3))
            )
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(place / f"{number}.png")
    return tmp_path / "data/shop"


def groups_of(folder: Path) -> list[list[str]]:
    table = pd.read_csv(folder / "labels.csv", keep_default_na=False)
    return [sorted(part["path"]) for value, part in table.groupby("group") if value]


def test_the_command_writes_a_table_and_a_page(
    bursts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_folder(bursts)
    assert commands.main(["group", "shop"]) == 0
    said = capsys.readouterr().out
    assert "7 groups of two or more images" in said
    assert "joined less, so that a query can find something: class 5" in said
    assert Image.open(tmp_path / "artifacts/groups/shop.png").width > 1000
    after = read_folder(bursts)
    assert after.class_names == before.class_names
    assert after.labels.tolist() == before.labels.tolist()
    assert np.array_equal(np.asarray(after.read(7)), np.asarray(before.read(7)))
    found = groups_of(bursts)
    for label in range(5):
        assert [f"class {label}/{number}.png" for number in range(3)] in found
    prepare(after, tmp_path / "out", name="shop", size=8, train_fraction=0.7, validation_fraction=0.5)
    assert len(np.unique(load(tmp_path / "out").test.groups)) == 4 + 2
    text = (bursts / "labels.csv").read_bytes()
    assert commands.main(["group", "shop"]) == 0, "its own groups are found anew"
    assert (bursts / "labels.csv").read_bytes() == text
    assert not list(tmp_path.rglob("*.partial"))


def test_a_table_keeps_its_rows_and_other_columns(bursts: Path) -> None:
    """Labels turn the order of the classes; the table is in no order, and has a column that nobody reads."""
    rows = [(f"class {c}/{n}.png", f"{5 - c:02d}", f"{c}, so to say", f"00{n}") for n in range(6) for c in range(6)]
    table = pd.DataFrame(rows, columns=["path", "label", "class_name", "shot"])
    table.to_csv(bursts / "labels.csv", index=False)
    assert commands.main(["group", "shop", "--threshold", "0.3", "--train-fraction", "0.6"]) == 0
    after = pd.read_csv(bursts / "labels.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(after[table.columns.to_list()], table)
    assert ["class 0/0.png", "class 0/1.png", "class 0/2.png"] in groups_of(bursts)


@pytest.mark.parametrize("write", [int, bool, float])
def test_training_classes_of_a_table_come_first(bursts: Path, write: type) -> None:
    """In whatever way the column says so; rows keep their groups."""
    rows = [(f"class {c}/{n}.png", c, write(c in (1, 3, 4, 5))) for n in range(6) for c in range(6)]
    pd.DataFrame(rows, columns=["path", "label", "train"]).to_csv(bursts / "labels.csv", index=False)
    assert commands.main(["group", "shop"]) == 0
    for label in range(5):
        assert [f"class {label}/{number}.png" for number in range(3)] in groups_of(bursts)


def test_other_groups_are_not_replaced(bursts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "path,label,group\n" + "".join(f"class {c}/{n}.png,{c},track {n // 2}\n" for c in range(6) for n in range(6))
    (bursts / "labels.csv").write_text(text)
    assert commands.main(["group", "shop"]) == 1
    assert "labels.csv has groups already; remove the column group" in capsys.readouterr().err
    assert (bursts / "labels.csv").read_text() == text


def test_what_cannot_be_grouped_is_one_sentence(bursts: Path, picture_folder: Callable[..., Path]) -> None:
    source = read_folder(bursts)
    with pytest.raises(DatasetError, match=r"threshold 9\.000 joins 6 of 6 classes into one group each; lower it"):
        find_groups(source, 0.5, 9.0)
    with pytest.raises(DatasetError, match=r"4 classes leave 2 for training and 2 for testing; .* needs three and two"):
        find_groups(read_folder(picture_folder(classes=4)), 0.5)
