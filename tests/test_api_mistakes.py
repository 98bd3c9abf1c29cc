"""What an outsider may pass to `dml.evaluate` by mistake or by habit, and what comes of it."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import dml
from dml.api import command, hugging_face, wrap
from dml.api.checks import answerable, check_module
from dml.api.images import splits
from dml.data.base import Split

WEAK = {"attacks": {"soft_margin": {"steps": 2, "classes": 1, "target_steps": 1}}, "gate_tries": 2}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(12) % 3


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6)).eval()


def evaluate(embed: Any, images: Any = None, labels: Any = None, **settings: Any) -> Any:
    return dml.evaluate(embed, images, labels, suite=WEAK, controls=(), report=lambda line: None, **settings)


def test_a_dataset_is_read_by_one_thread(images: np.ndarray, labels: np.ndarray) -> None:
    """Datasets of torch keep open files, whose position threads would share."""
    seen = set()

    class Dataset:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, row: int) -> tuple[np.ndarray, str]:
            seen.add(threading.get_ident())
            return images[row], f"class {labels[row]}"

    split, _ = splits(Dataset(), None, None, None, None)
    np.testing.assert_array_equal(split.images[np.arange(12)], images)
    assert seen == {threading.get_ident()}
    assert split.class_names == ["class 0", "class 1", "class 2"], "labels of any kind"


def test_queries_that_nothing_can_break_are_left_out() -> None:
    """All wrong items of the last two queries are of their group, and no item of another class is left."""
    values, groups = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 2, 3, 4, 0])
    gallery = Split(np.zeros((6, 2, 2, 3), np.uint8), values, ["a", "b"], groups)
    notes: list[str] = []
    np.testing.assert_array_equal(answerable(gallery, None, notes), np.arange(6))
    assert notes == []
    hidden = Split(gallery.images, np.array([0, 0, 1, 1, 1, 1]), ["a", "b"], np.array([0, 5, 1, 5, 2, 3]))
    # Query 2 meets items 0 and 1 as wrong ones; query 0 meets 2 to 5, and query 3 only item 0, since 1 is of its group.
    np.testing.assert_array_equal(answerable(hidden, None, notes), np.arange(6))
    asked = Split(gallery.images[:2], np.array([1, 1]), ["a", "b"], np.array([7, 8]))
    items = Split(gallery.images[:4], np.array([1, 1, 1, 0]), ["a", "b"], np.array([1, 2, 3, 8]))
    np.testing.assert_array_equal(answerable(items, asked, notes), [0])
    assert notes == ["1 of 2 images have no wrong answer in the gallery; they are not used as queries"]
    alone = Split(gallery.images[:3], np.array([1, 1, 1]), ["a", "b"], np.array([1, 2, 3]))
    other = Split(gallery.images[:2], np.array([1, 0]), ["a", "b"], np.array([7, 8]))
    with pytest.raises(ValueError, match="no image of another class for any query"):
        answerable(alone, other, [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0.0, 1, np.nan] * 4), "labels has a missing value"),
        (np.array(["a", None, "b"] * 4, object), "labels has a missing value"),
        (np.array(["a", 1, "b"] * 4, object), "labels hold int and str; give every image a number, or every image"),
    ],
)
def test_missing_labels_are_no_class(images: np.ndarray, values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splits(images, values, None, None, None)


def test_a_list_of_two_pairs_is_a_dataset(images: np.ndarray, labels: np.ndarray) -> None:
    pairs = [(image, int(label)) for image, label in zip(images[:2], labels[:2], strict=True)]
    gallery, queries = splits(None, None, pairs, (images, labels), None)
    np.testing.assert_array_equal(queries.images[np.arange(2)], images[:2])
    assert len(gallery) == 12


def test_wrapped_models_keep_their_mode() -> None:
    inner = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    inner[0].eval()
    assert dml.wrap(inner).training
    assert not inner[0].training
    assert not dml.wrap(linear()).training


def test_gradients_are_found_under_no_grad_and_missed_in_inference_mode(images: np.ndarray, labels: np.ndarray) -> None:
    with torch.no_grad():
        result = evaluate(linear(), images, labels, eps=0.1)
    assert result.cost["backward"] > 0
    with torch.device("meta"), pytest.raises(ValueError, match="new tensors go to meta by default"):
        dml.evaluate(lambda found: found.flatten(1), images, labels)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        evaluate(linear(), images, labels, eps=0.1)


def test_a_model_of_several_outputs_is_told_so(images: np.ndarray, labels: np.ndarray) -> None:
    model = linear()
    with pytest.raises(ValueError, match="embed gives a tuple; it must give one tensor"):
        evaluate(lambda batch: (model(batch), batch), images, labels, eps=0.1)


@pytest.mark.parametrize(("name", "width"), [("squeezenet1_1", 512), ("mobilenet_v3_small", 1024), ("vgg11", 4096)])
def test_the_classifier_goes_with_what_it_is_made_of(name: str, width: int, tmp_path: Path) -> None:
    from torchvision.models import get_model

    network = get_model(name, weights=None)
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    found = wrap.load(f"torchvision:{name}", file)
    with torch.no_grad():
        assert found(torch.rand(1, 3, 64, 64)).shape == (1, width)


class Processor(SimpleNamespace):
    """What transformers says about images."""


@pytest.mark.parametrize(
    ("processor", "side"),
    [
        (Processor(size={"height": 32, "width": 32}), 32),
        (Processor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True), 32),
        (Processor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=False), 40),
    ],
)
def test_the_side_of_a_processor(processor: Processor, side: int) -> None:
    assert hugging_face._side(processor, "a/b") == side


@pytest.mark.parametrize("size", [{"longest_edge": 9}, {"height": 4, "width": 8}])
def test_a_processor_of_other_shapes_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a/b takes images of size {size}, not of one side")):
        hugging_face._side(Processor(size=size), "a/b")


def test_no_images_are_no_crash() -> None:
    with pytest.raises(ValueError, match="there are no images"):
        evaluate(linear(), torch.empty(0, 3, 8, 8), np.array([], int), eps=0.1)


def test_a_folder_of_another_gradient_is_not_continued(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    """Outputs alone do not tell a model whose gradient was mended from the one before."""

    class Masked(nn.Module):
        def __init__(self, mended: bool) -> None:
            super().__init__()
            self.inner, self.mended = linear(), mended

        def forward(self, batch: Tensor) -> Tensor:
            coarse = (batch * 64).round() / 64
            return self.inner(batch + (coarse - batch).detach() if self.mended else coarse + 1e-6 * batch)

    torch.manual_seed(0)
    masked, mended = Masked(False).eval(), Masked(True).eval()
    mended.inner.load_state_dict(masked.inner.state_dict())
    first = evaluate(masked, images, labels, eps=0.1, folder=tmp_path)
    again = evaluate(masked, images, labels, eps=0.1, folder=tmp_path)
    assert again.about["key"] == first.about["key"]
    assert again.cost["forward"] < first.cost["forward"]
    assert evaluate(mended, images, labels, eps=0.1, folder=tmp_path).about["key"] != first.about["key"]


def test_a_folder_of_another_model_of_equal_embeddings_is_not_continued(
    images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    """One rounds pixels to levels that all these images have: it differs near them only."""
    torch.manual_seed(0)
    plain = linear()

    def rounds(batch: Tensor) -> Tensor:
        return plain(batch + ((batch * 85).round() / 85 - batch).detach())

    thirds = images // 3 * 3  # multiples of 1/85
    keys = {evaluate(embed, thirds, labels, eps=0.1, folder=tmp_path).about["key"] for embed in (plain.forward, rounds)}
    assert len(keys) == 2


@pytest.mark.filterwarnings("ignore")
def test_one_pixel_whose_gradient_is_no_number_does_not_make_a_black_box(
    images: np.ndarray, labels: np.ndarray
) -> None:
    """The square root of a pixel at 0 has an infinite derivative, and its product with 0 is not a number."""
    images[:, 0, 0] = 0
    inner = linear()

    def embed(batch: Tensor) -> Tensor:
        return inner(batch) + 0 * batch[:, :1, 0, 0].sqrt()

    assert evaluate(embed, images, labels, eps=0.1).about["gradients"]


@pytest.mark.parametrize(
    ("given", "radii"),
    [
        (np.float32(0.25), [0.25]),
        (torch.tensor(0.25), [0.25]),
        ("8/255", [8 / 255]),
        (["1/255", 0.25], [1 / 255, 0.25]),
        ([0.25, 0.25], [0.25]),
        (np.array([0.25, 0.5]), [0.25, 0.5]),
        (0, [0.0]),
    ],
)
def test_radii_of_any_kind(given: Any, radii: list[float], images: np.ndarray, labels: np.ndarray) -> None:
    found = evaluate(linear(), images, labels, eps=given, limit=2)
    assert sorted(found.summary["eps"].unique()) == pytest.approx(sorted(radii))


@pytest.mark.parametrize("given", ["wide", [None], object()])
def test_radii_that_are_no_numbers(given: Any, images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^eps is .*; give a number such as 8/255"):
        evaluate(linear(), images, labels, eps=given)


def test_a_device_that_is_not_there(images: np.ndarray, labels: np.ndarray) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="the model cannot be moved to cuda"):
        evaluate(linear(), images, labels, eps=0.1, device="cuda")
    with pytest.raises(ValueError, match="images cannot be put on cuda"):
        evaluate(lambda x: x.flatten(1), images, labels, eps=0.1, device="cuda")


def test_images_are_decoded_once_where_they_fit(
    images: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class Dataset:
        targets = labels

        def __len__(self) -> int:
            return 12

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            read.append(row)
            return images[row], int(labels[row])

    evaluate(linear(), Dataset(), eps=0.1)
    assert len(read) == 1 + 12 + 8 + 2 * 8, "eight for their labels, and twice to see whether they stay the same"
    monkeypatch.setattr("dml.api.loading.KEPT", 0)
    late = evaluate(linear(), Dataset(), eps=0.1)
    assert len(read) > 3 * 12
    assert late.about["gallery_sha256"] == evaluate(linear(), images, labels, eps=0.1).about["gallery_sha256"]


def test_one_control_by_its_name(images: np.ndarray, labels: np.ndarray) -> None:
    found = dml.evaluate(linear(), images, labels, suite=WEAK, eps=0.1, controls="pixels_8", report=lambda line: None)
    assert set(found.summary["model"]) == {"your model", "pixels_8"}


def test_queries_with_a_copy_in_the_gallery_are_told(images: np.ndarray, labels: np.ndarray) -> None:
    twice = np.concatenate([images[:10], images[:2]])  # two of them are there twice
    with pytest.warns(UserWarning, match="4 of 12 queries have a copy in the gallery"):
        evaluate(linear(), twice, np.concatenate([labels[:10], labels[:2]]))
    near = images[:3] + np.where(images[:3] < 128, 1, -1)  # as another compression would leave them
    other = np.concatenate([near, 255 - images[3:]]).astype(np.uint8)
    pairs = {"queries": (images, labels), "gallery": (other, labels)}
    found = evaluate(linear(), **pairs)
    assert [note for note in found.notes if "copy" in note] == [
        "3 of 12 queries have a copy in the gallery, which answers them; leave it out, or give it the query's group"
    ]
    found = evaluate(linear(), **pairs, groups=(np.arange(12), np.arange(12)))
    assert not any("copy" in note for note in found.notes)


def test_faint_images_are_no_copies_of_each_other(labels: np.ndarray) -> None:
    """Dots on black differ by less than two grey levels on average."""
    dots = np.zeros((12, 28, 28, 3), np.uint8)
    for place, image in enumerate(dots):
        image[2 * place : 2 * place + 2, 4:6] = 255
    found = evaluate(nn.Sequential(nn.Flatten(), nn.Linear(2352, 6)).eval(), dots, labels)
    assert not any("copy" in note for note in found.notes)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"device": "gpu"}, "device 'gpu' is none that torch knows; give cpu, cuda"),
        ({"limit": 2.5}, "limit is 2.5; it must be a whole number of queries"),
        ({"suite": ["quick"]}, r"suite is \['quick'\]; give the name of a suite"),
    ],
)
def test_arguments_of_another_kind_are_named(
    given: dict[str, Any], sentence: str, images: np.ndarray, labels: np.ndarray
) -> None:
    settings = {"suite": WEAK, "controls": (), "report": lambda line: None} | given
    with pytest.raises(ValueError, match=sentence):
        dml.evaluate(linear(), images, labels, **settings)


def test_none_is_silence_and_no_controls(
    images: np.ndarray, labels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dml.evaluate(linear(), images, labels, suite=WEAK, eps=0.1, controls=None, report=None)
    assert set(found.summary["model"]) == {"your model"}
    assert capsys.readouterr().out == ""
    assert repr(found) == str(found), "the last line of a cell shows the table"


@pytest.mark.parametrize(
    ("embed", "sentence"),
    [
        (lambda x: SimpleNamespace(embeddings=x), r"embed gives a SimpleNamespace; it must give a tensor \(B, D\)"),
        (lambda x: x.flatten(1)[:, :4].to(torch.complex64), "embed gives complex numbers; it must give real ones"),
        (lambda x: x.flatten(1)[:, :0], r"embed gives shape \(8, 0\) for 8 images; it must be \(B, D\)"),
    ],
)
def test_what_is_no_embedding(embed: Any, sentence: str, images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(embed, images, labels)


def test_files_where_folders_are_wanted(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match=r"folder is .*taken, a file; give a folder"):
        evaluate(linear(), images, labels, folder=tmp_path / "taken")
    found = evaluate(linear(), images, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"folder is .*taken, a file; give a folder"):
        found.save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_transform_that_cannot_be_called(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transform is a str; give a function from a PIL image to a tensor"):
        evaluate(linear(), tmp_path, transform="centre")


def test_a_module_is_wrapped_and_not_loaded() -> None:
    with pytest.raises(ValueError, match=r"loaded by its name, not from a Sequential; give .*file.py:function"):
        dml.load(linear())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"open_clip:ViT-B-32 is no model; .* or wrap one .*: dml.wrap\(module\)"):
        dml.load("open_clip:ViT-B-32")


def test_torchvision_models_want_normalised_images() -> None:
    network, told = (
        torchvision.models.squeezenet1_0(weights=None, num_classes=4).eval(),
        "torchvision trains its models",
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    cases = {network: True, dml.wrap(network): True, dml.wrap(network, mean, std): False, linear(): False}
    for given, noted in cases.items():
        notes: list[str] = []
        check_module(given, notes)
        assert any(note.startswith(told) for note in notes) == noted, given


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_a_model_that_fails_late_is_one_sentence_on_the_command_line(
    kind: type[Exception],
    begun: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(chosen: Any) -> int:
        if begun:
            (tmp_path / command.UNFINISHED).mkdir()
        raise kind("shapes do not match\nmore of it")

    monkeypatch.setattr(command, "_run", fail)
    assert command.main(["folder", "--model", "timm:x", "--output", str(tmp_path)]) == 1
    told = capsys.readouterr().err.removesuffix("; the same command continues\n" if begun else "\n")
    assert re.fullmatch(r"error: shapes do not match \(.*test_api_mistakes.py, line \d+\)", told)
