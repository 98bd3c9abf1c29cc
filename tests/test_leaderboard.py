"""Entries of the leaderboard, and claims on linear models, whose worst images are known in closed form."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import dml
from dml.__main__ import main
from dml.api.embedding import weights_sha256
from dml.api.gates import GRADIENT
from dml.api.images import splits
from dml.api.leaderboard import claims, reports
from dml.api.leaderboard import entry as entries
from dml.common.files import ROOT, write_json
from dml.data.base import load
from dml.data.prepare import prepare
from dml.data.sources.folder import read_folder
from dml.evaluation.statistics import wilson
from dml.models import weights
from dml.models.embedder import build
from tests.conftest import LinearEmbedder
from tests.made_entries import made, values

EPS = 3 / 255
QUERIES = 14  # of 16 images
WEAK = {"queries": QUERIES, "claims": False, "attacks": {"noise": {"draws": 1}}}
MODEL = "from tests.conftest import LinearEmbedder\n\ndef make():\n    return LinearEmbedder(48, 24, {seed}).eval()\n"
TURNED = """from tests.conftest import LinearEmbedder

class Turned(LinearEmbedder):
    def forward(self, images):
        return super().forward(images.flip(1) * images)

def make():
    return Turned(48, 24).eval()
"""  # the same weights with something else around them


class Board(NamedTuple):
    """A leaderboard with one weakly attacked linear model, and the best image against each query.

    Attributes:
        add, check: run the command with further words; they return its exit status.
        file: of the entry.
        rows: numbers of the attacked queries.
        natural, best: (16, 3, 4, 4) float32: the images, and those of the largest margin in the ball.
        breaks: (16,) bool: whether that margin is above 0.
    """

    folder: Path
    add: Callable[..., int]
    check: Callable[..., int]
    file: Path
    rows: np.ndarray
    natural: np.ndarray
    best: np.ndarray
    breaks: np.ndarray

    def entry(self) -> entries.Entry:
        """The entry as it is now."""
        return entries.read(self.file)

    def survivors(self) -> np.ndarray:
        """Numbers of the queries that the entry counts as surviving."""
        return np.sort(self.rows)[[digit == "1" for digit in self.entry().survived]]


def optima(natural: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image of the largest margin in each ball, and that margin: it is linear in the pixels for each wrong item."""
    weight = LinearEmbedder(48, 24).weight.detach().numpy()
    embedded = natural.astype(np.float64).reshape(len(natural), -1) @ weight.T
    items = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    best, margins = np.empty_like(natural), np.empty(len(natural))
    for row, label in enumerate(labels):
        (right,) = (other for other in np.flatnonzero(labels == label) if other != row)
        differences = items[labels != label] - items[right]
        directions = differences @ weight
        reached = differences @ embedded[row] + EPS * np.abs(directions).sum(1)
        best[row] = natural[row] + np.float32(EPS) * np.sign(directions[reached.argmax()]).reshape(3, 4, 4)
        margins[row] = reached.max()
    return best, margins


def images_folder(place: Path, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Eight classes of two pictures each, far enough from black and white; returns them with their labels."""
    patterns = np.random.default_rng(9).integers(100, 156, (8, 4, 4, 3)).repeat(2, axis=0)
    noisy = patterns + np.random.default_rng(seed).normal(0, 12, patterns.shape)
    images = np.clip(noisy, 30, 225).astype(np.uint8)
    for row, image in enumerate(images):
        (place / f"class_{row // 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"class_{row // 2}" / f"{row % 2}.png")
    return images, np.arange(16) // 2


class Evaluated(NamedTuple):
    """A report on a weakly attacked linear model, made once.

    Attributes:
        folder: with ``images``, ``linear.py`` and ``report``.
        rows: numbers of the attacked queries.
        natural, best, breaks: see :class:`Board`.
    """

    folder: Path
    rows: np.ndarray
    natural: np.ndarray
    best: np.ndarray
    breaks: np.ndarray


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluated")
    images, labels = images_folder(folder / "images")
    (folder / "linear.py").write_text(MODEL.format(seed=0))
    model = dml.load(f"{folder}/linear.py:make")
    common = {"eps": EPS, "suite": WEAK, "controls": ("soft_histogram",), "report": lambda line: None}
    told = dml.evaluate(model, folder / "images", **common)
    told.save(folder / "report")
    natural = np.float32(1 / 255) * images.transpose(0, 3, 1, 2).astype(np.float32)
    best, margins = optima(natural, labels)
    assert (np.abs(margins) > 1e-4).all(), "no query is at the edge"
    return Evaluated(folder, told.images.rows, natural, best, margins > 0)


@pytest.fixture
def board(evaluated: Evaluated, tmp_path: Path) -> Board:
    report, folder = tmp_path / "report", tmp_path / "board"
    shutil.copytree(evaluated.folder / "report", report)

    def add(*words: str) -> int:
        common = ["--name", "Linear, 24", "--authors", "A. Author", "--link", "https://example.org", "--data", "none"]
        common += ["--architecture", "linear", "--dataset", "shapes", "--folder", str(folder)]
        common += ["--model", f"{evaluated.folder}/linear.py:make", "--images", str(evaluated.folder / "images")]
        return main(["leaderboard", "add", str(report), *common, *words])

    file = folder / "linear_24-shapes-3_255.json"

    def check(*words: str, **arrays: np.ndarray) -> int:
        np.savez(tmp_path / "arrays.npz", **arrays)
        common = [str(file), "--adversarial", str(tmp_path / "arrays.npz"), "--by", "B. Breaker"]
        return main(["leaderboard", "check", *common, *words])

    assert add("--show-failing") == 0
    return Board(folder, add, check, file, *evaluated[1:])


def test_the_best_images_lower_an_entry_to_the_known_optimum(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    before = board.entry()
    mine = board.rows[board.breaks[board.rows]]
    newly = np.intersect1d(mine, board.survivors())
    assert 0 < len(newly) < before.survived.count("1"), "the weak attack left some, and some are robust"
    assert board.check(rows=board.rows, adversarial=board.best[board.rows]) == 0
    after = board.entry()
    wanted = before.survived.count("1") - len(newly)
    assert after.worst_case.r1.value == wanted / QUERIES
    np.testing.assert_array_equal(np.isin(board.survivors(), newly), False)
    (claim,) = after.lowered
    assert (claim.by, claim.queries, claim.before) == ("B. Breaker", len(newly), before.worst_case.r1.value)
    assert claim.file_sha256 == hashlib.sha256((board.file.parents[1] / "arrays.npz").read_bytes()).hexdigest()
    told = capsys.readouterr().out
    assert f"R@1 left {before.worst_case.r1.value:.3f} -> {wanted / QUERIES:.3f} at 3/255, by B. Breaker" in told
    assert "do not fool the model" in told, "the robust ones are named"
    for page in ("README.md", "index.html"):
        assert "lowered from" in (board.folder / page).read_text(encoding="utf-8")
    content = board.file.read_bytes()
    assert board.check(rows=newly, adversarial=board.best[newly]) == 1, "the same claim again"
    assert "counts as broken already" in capsys.readouterr().out
    assert board.file.read_bytes() == content
    assert board.add("--show-failing") == 1, "the same report does not undo the claim"
    assert "it differs in worst_case, survived, lowered" in capsys.readouterr().err


def far(board: Board, row: int) -> np.ndarray:
    """Slightly outside the ball."""
    return board.natural[row] + 1.01 * (board.best[row] - board.natural[row])


def bright(board: Board, row: int) -> np.ndarray:
    """One pixel above white."""
    image = board.best[row].copy()
    image[0, 0, 0] = 1.001
    return image


def empty(board: Board, row: int) -> np.ndarray:
    """One pixel is no number."""
    image = board.best[row].copy()
    image[0, 0, 0] = np.nan
    return image


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (far, "leave the l-inf ball around their query"),
        (bright, "leave [0, 1]"),
        (empty, "hold NaN or infinity"),
        (lambda board, row: board.natural[row], "do not fool the model, whose nearest item is of the right class"),
        (lambda board, row: board.best[row][:, :3], "have another shape than their query, (3, 4, 4)"),
    ],
)
def test_each_condition_is_named(
    make: Callable[[Board, int], np.ndarray], sentence: str, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    row = np.intersect1d(board.rows[board.breaks[board.rows]], board.survivors())[:1]
    content = board.file.read_bytes()
    assert board.check(rows=row, adversarial=make(board, int(row[0]))[None]) == 1
    assert f"Arrays that {sentence}: 0 (query {row[0]}).\n" in capsys.readouterr().out
    assert board.file.read_bytes() == content


def test_arrays_of_other_queries_are_named(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    (left_out, *_) = np.setdiff1d(np.arange(16), board.rows)
    first, second = np.intersect1d(board.rows[board.breaks[board.rows]], board.survivors())[:2]
    rows = np.array([left_out, first, second])
    images = board.natural[[left_out, second, second]]
    assert board.check(rows=rows, adversarial=board.best[rows], images=images) == 0
    told = capsys.readouterr().out
    assert f"Arrays that belong to no attacked query: 0 (query {left_out})." in told
    assert f"Arrays that began with another image than the query that was evaluated: 1 (query {first})." in told
    assert board.entry().lowered[0].queries == 1, "the third counts"


def test_rounding_leaves_the_ball_but_is_not_ranked(board: Board) -> None:
    row = np.intersect1d(board.rows[board.breaks[board.rows]], board.survivors())[:1]
    assert board.check(rows=row, adversarial=board.best[row] + np.float32(5e-7)) == 0


def test_another_model_or_other_images_are_refused(
    board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {"rows": board.rows, "adversarial": board.best[board.rows]}
    (tmp_path / "other.py").write_text(MODEL.format(seed=1))
    assert board.check("--model", f"{tmp_path}/other.py:make", **arrays) == 1
    assert "the model has other weights than 'Linear, 24' (SHA-256 " in capsys.readouterr().err
    images_folder(tmp_path / "others", seed=1)
    assert board.check("--images", str(tmp_path / "others"), **arrays) == 1
    assert "the images are not those evaluated: 'Linear, 24' has 14 queries with SHA-256" in capsys.readouterr().err
    (tmp_path / "turned.py").write_text(TURNED)
    assert board.check("--model", f"{tmp_path}/turned.py:make", **arrays) == 1
    assert "the model is not the one evaluated: its natural R@1 is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"rows": np.arange(2)}, "lacks the array 'adversarial'"),
        ({"rows": np.arange(2) / 2, "adversarial": np.zeros((2, 3, 4, 4))}, "rows is float64 (2,); it must hold one"),
        ({"rows": np.arange(2), "adversarial": np.zeros((1, 3, 4, 4))}, "it must hold floats (2, 3, H, W) in [0, 1]"),
        ({"rows": np.arange(2), "adversarial": np.zeros((2, 3, 4, 4), np.uint8)}, "adversarial is uint8"),
    ],
)
def test_files_of_other_arrays_are_refused(
    arrays: dict[str, np.ndarray], sentence: str, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    assert board.check(**arrays) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_control_comes_with_the_report_and_is_checked_without_a_model(
    board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = board.folder / "soft_histogram-shapes-3_255.json"
    control = entries.read(file)
    assert (control.control, control.gates.word, control.weights_sha256) == (True, "not run", None)
    np.savez(tmp_path / "arrays.npz", rows=board.rows[:1], adversarial=board.natural[board.rows[:1]])
    words = ["--adversarial", str(tmp_path / "arrays.npz"), "--by", "B. Breaker"]
    assert main(["leaderboard", "check", str(file), *words]) == 1
    assert "No array breaks a query that survives; the entry stays as it is." in capsys.readouterr().out


def test_of_a_control_the_strongest_attack_stays(board: Board) -> None:
    """A weakly attacked control would look too robust beside every later model."""
    file = board.folder / "soft_histogram-shapes-3_255.json"
    control = entries.read(file)
    low, high = wilson(0, QUERIES)
    broken = {"r1": {"value": 0.0, "low": low, "high": high}, "map_r": control.worst_case.map_r.model_dump()}
    lower = control.model_dump(mode="json") | {"survived": "0" * QUERIES, "worst_case": broken}
    stronger = entries.validated(lower, "stronger")
    assert control.worst_case.r1.value > 0
    assert entries.join([stronger], board.folder) == [file]
    assert entries.read(file) == stronger
    assert entries.join([control], board.folder) == []
    assert entries.read(file) == stronger


def test_claims_stay_when_a_stronger_attack_replaces_a_control(tmp_path: Path) -> None:
    """And so do the queries that they broke, which the new attack may have missed."""
    first = made("pixels_8", kept=4, control=True, weights_sha256=None)
    claim = {"by": "B. Breaker", "queries": 1, "before": first.worst_case.r1.value, "file_sha256": "0" * 64}
    held = first.model_copy(update={"lowered": (entries.Lowered(**claim),)})
    entries.write(held, tmp_path)
    stronger = made("pixels_8", kept=3, control=True, weights_sha256=None)
    turned = stronger.model_copy(update={"survived": stronger.survived[::-1]})
    (file,) = entries.join([turned], tmp_path)
    found = entries.read(file)
    assert found.lowered == held.lowered
    assert found.survived == "".join(map(min, held.survived, turned.survived))
    assert found.worst_case.r1.value == found.survived.count("1") / found.queries < stronger.worst_case.r1.value


def test_datasets_of_nearly_one_name_do_not_share_a_file(tmp_path: Path) -> None:
    """A control of other images would replace the one that is there, or be dropped for it."""
    control = made("pixels_8", kept=4, control=True, weights_sha256=None)
    entries.write(control, tmp_path)
    for kept in (3, 5):
        other = made("pixels_8", kept=kept, control=True, weights_sha256=None, dataset="Shapes", images_sha256="c" * 64)
        with pytest.raises(ValueError, match="holds an entry of the dataset 'shapes', and 'Shapes' would have"):
            entries.join([other], tmp_path)
    assert entries.read_all(tmp_path) == [control]


def test_radius_zero_of_a_report_is_no_entry(board: Board, tmp_path: Path) -> None:
    report = json.loads((tmp_path / "report" / "result.json").read_text())
    natural = [row | {"eps": 0.0} for row in report["summary"]]
    write_json(tmp_path / "report" / "result.json", report | {"summary": [*natural, *report["summary"]]})
    before = sorted(path.name for path in board.folder.iterdir())
    assert board.add("--name", "Linear, 24", "--show-failing") == 0
    assert sorted(path.name for path in board.folder.iterdir()) == before


def test_a_report_is_refused_unless_its_gates_hold(board: Board, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert board.add() == 1
    assert "at 3/255 no gate was run, so R@1 left may be too high" in capsys.readouterr().err
    report = json.loads((tmp_path / "report" / "result.json").read_text())
    gate = {"gate": "broken by twice the steps", "eps": EPS, "measured": 0.5, "limit": 0.1, "passed": False}
    held = gate | {"gate": GRADIENT, "passed": True}
    write_json(tmp_path / "report" / "result.json", report | {"gates": [gate, held]})
    assert board.add("--name", "other") == 1
    assert "at 3/255 1 of 2 gates fail (broken by twice the steps)" in capsys.readouterr().err
    assert board.add("--name", "other", "--show-failing") == 0
    shown = entries.read(board.folder / "other-shapes-3_255.json")
    assert shown.gates.word == "fail"
    assert "broken by twice the steps" in (board.folder / "index.html").read_text()
    write_json(tmp_path / "report" / "result.json", report | {"gates": [held]})
    assert board.add("--name", "held") == 0


def test_gates_about_every_radius_count_at_each_also_where_their_radius_was_attacked() -> None:
    gate = {"gate": "R@1 left at eps 0.5", "eps": 0.5, "measured": 0.2, "limit": 0.0, "passed": False}
    other = {"gate": "broken by random noise", "eps": 0.02, "measured": 0.0, "limit": 0.1, "passed": True}
    assert reports._gates([gate, other, other | {"eps": EPS}], EPS) == {"run": 2, "failed": ["R@1 left at eps 0.5"]}


def test_a_model_is_not_replaced_by_a_control_of_its_name(tmp_path: Path) -> None:
    entries.join([made("pixels_8", kept=5)], tmp_path)
    with pytest.raises(ValueError, match=r"holds another entry of this name: it differs in .*control"):
        entries.join([made("pixels_8", kept=3, control=True, weights_sha256=None)], tmp_path)


def test_a_model_and_a_control_of_one_report_do_not_share_a_file(tmp_path: Path) -> None:
    control = made("pixels_8", kept=3, control=True, weights_sha256=None)
    with pytest.raises(ValueError, match=r"pixels_8-shapes-8_255\.json would hold two entries of the report; choose"):
        entries.join([made("Pixels 8", kept=5), control], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", np.lib.format.MAGIC_PREFIX + b"\x01\x00\x08\x00{'a: 1}  "])
def test_a_file_of_arrays_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "arrays.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"arrays\.npz cannot be read as an npz file"):
        claims.read(tmp_path / "arrays.npz")


def test_an_attack_in_another_ball_is_no_entry(
    board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((tmp_path / "report" / "result.json").read_text())
    write_json(tmp_path / "report" / "result.json", report | {"about": report["about"] | {"norm": "l2"}})
    assert board.add("--name", "other", "--show-failing") == 1
    assert "an attack in the l2 ball; the leaderboard has the l-inf ball" in capsys.readouterr().err


@pytest.mark.parametrize("report", ["[]", '{"about": {"weights_sha256": null}, "summary": [{"map_r_low": 0}]}'])
def test_a_report_that_is_none_is_named(report: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(report)
    (tmp_path / "outcomes.csv").write_text("query\n0\n")
    with pytest.raises(ValueError, match=r"holds no report|holds a report of an older version"):
        reports._read(tmp_path)


def test_a_report_damaged_in_a_row_is_told(board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((tmp_path / "report" / "result.json").read_text())
    kindless = report | {"about": report["about"] | {"settings": {}}}
    rowless = report | {"summary": [report["summary"][0], {"model": "your model"}]}
    for damaged, key in ((kindless, "kind"), (rowless, "eps")):
        write_json(tmp_path / "report" / "result.json", damaged)
        assert board.add("--name", "other", "--show-failing") == 1
        told = capsys.readouterr().err
        assert f"report holds a damaged report: '{key}' is missing or wrong; evaluate again" in told


def test_a_claim_is_about_the_gallery_that_was_searched(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    held = json.loads(board.file.read_text())
    write_json(board.file, held | {"gallery_sha256": "d" * 64})
    assert board.check(rows=board.rows[:1], adversarial=board.best[board.rows[:1]]) == 1
    assert "the gallery is not the one searched" in capsys.readouterr().err


def test_a_different_entry_of_the_same_name_is_refused(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    content = board.file.read_bytes()
    assert board.add("--show-failing") == 0, "the same entry again"
    assert board.file.read_bytes() == content
    assert board.add("--show-failing", "--architecture", "another") == 1
    assert (
        "linear_24-shapes-3_255.json holds another entry of this name: it differs in architecture; choose another"
        in capsys.readouterr().err
    )
    assert board.file.read_bytes() == content


def test_entries_of_a_dataset_have_the_same_queries(tmp_path: Path) -> None:
    entries.join([made()], tmp_path)
    with pytest.raises(
        ValueError, match=r"'other' has images_sha256 cccccccccccc..., and 'mine' on shapes has bbbbbbbbb"
    ):
        entries.join([made("other", images_sha256="c" * 64)], tmp_path)
    entries.join([made("other", images_sha256="c" * 64, dataset="others")], tmp_path)
    assert [entry.name for entry in entries.read_all(tmp_path)] == ["other", "mine"]


def test_a_report_of_several_radii_joins_whole_or_not_at_all(tmp_path: Path) -> None:
    entries.join([made(eps=0.02)], tmp_path)
    with pytest.raises(ValueError, match=r"mine-shapes-0\.02\.json holds another entry"):
        entries.join([made(eps=0.01), made(eps=0.02, kept=3)], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine-shapes-0.02.json"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": " "}, "made.json: name is ' ': String should have at least 1 character"),
        (
            {"link": "javascript:alert(1)"},
            "link is 'javascript:alert(1)': it must be an address that begins with https",
        ),
        ({"link": "../../etc"}, "it must be an address that begins with https://, or a file of this repository"),
        ({"norm": "l2"}, "norm is 'l2': Input should be 'linf'"),
        ({"eps": 8}, "eps is 8: Input should be less than or equal to 1"),
        ({"images_sha256": "abc"}, "images_sha256 is 'abc': it must be a SHA-256: 64 hexadecimal digits"),
        ({"gates": {"run": -1, "failed": []}}, "gates.run is -1: Input should be greater than or equal to 0"),
        ({"survived": "1111"}, "made.json: survived has 4 digits for 10 queries"),
        ({"survived": "1111100000"}, "worst_case.r1 is 0.4, but 5 of 10 queries survive by `survived`"),
        ({"right": 3}, "worst_case.r1 is 0.400, above the natural 0.300"),
        ({"rank": 1}, "made.json has the key rank, which no entry has"),
        ({"natural": {"r1": {"value": 2, "low": 0, "high": 1}}}, "natural.r1.value is 2: Input should be less than"),
        (
            {"natural": {"r1": {"value": 0.5, "low": 0.6, "high": 1}}},
            "natural.r1: the interval 0.600 to 1.000 does not",
        ),
    ],
)
def test_a_wrong_entry_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the sentence is looked at
        made(**changes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_intervals_and_missing_keys_are_looked_at(tmp_path: Path) -> None:
    given = values()
    given["natural"]["r1"]["low"] = 0.7
    with pytest.raises(ValueError, match=r"the interval of natural\.r1 is not Wilson's, 0\.490162 to 0\.943318"):
        entries.validated(given, "made.json")
    with pytest.raises(ValueError, match=r"made\.json lacks the key norm"):
        entries.validated({key: value for key, value in values().items() if key != "norm"}, "made.json")
    write_json(tmp_path / "x.json", values())
    with pytest.raises(ValueError, match=r"x\.json must be named mine-shapes-8_255\.json"):
        entries.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json cannot be read as JSON"):
        entries.read(tmp_path / "x.json")


def test_weights_have_the_digest_that_records_have() -> None:
    model = build("conv4", 8, seed=0, statistics={"mean": [0.5] * 3, "std": [0.2] * 3})
    assert weights_sha256(model) == weights.digest(model)
    assert len(weights_sha256(model.bfloat16())) == 64
    assert weights_sha256(lambda images: images.flatten(1)) is None
    assert weights_sha256(torch.nn.Flatten()) is None


def test_a_prepared_dataset_gives_its_test_classes(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    halves = {"train_fraction": 0.5, "validation_fraction": 0.5}
    prepare(read_folder(picture_folder()), tmp_path / "out", name="toy", size=16, **halves)
    wanted = load(tmp_path / "out").test
    found, asked = splits(tmp_path / "out", None, None, None, None)
    assert asked is None
    np.testing.assert_array_equal(found.images[:], wanted.images[:])
    np.testing.assert_array_equal(found.labels, wanted.labels)
    with pytest.raises(ValueError, match="is prepared, with labels, groups and size; leave these arguments out"):
        splits(tmp_path / "out", None, None, None, None, size=8)


def test_the_entries_of_this_repository_are_valid_and_shown() -> None:
    from dml.api.leaderboard import page

    folder = ROOT / "results" / "leaderboard"
    found = entries.read_all(folder)
    assert found
    assert (folder / "README.md").read_text(encoding="utf-8") == page.markdown(found)
    assert (folder / "index.html").read_text(encoding="utf-8") == page.html(found)
    assert all("://" in entry.link or (ROOT / entry.link).exists() for entry in found)


def test_published_weights_are_those_of_their_entries() -> None:
    found = entries.read_all(ROOT / "results" / "leaderboard")
    published = [entry for entry in found if (entry.model or "").startswith("pretrained/")]
    assert published
    for entry in published:
        assert weights_sha256(dml.load(entry.model)) == entry.weights_sha256
