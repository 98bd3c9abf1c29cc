"""What `result.save` writes, resuming, and the command line."""

import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import dml
from dml.__main__ import main
from dml.api import attack
from dml.api.result import Result
from dml.data.base import Split
from dml.models.embedder import build
from tests.model_file import MODEL_FILE

SMALL = {"queries": 12, "gate_tries": 5, "attacks": {"margin": {"steps": 6}}}
EPS = (0.003, 0.01)


@pytest.fixture
def model(toy_split: Split) -> nn.Module:
    return build("conv4", 8, seed=0, statistics=toy_split.statistics()).eval()


def evaluate(model: nn.Module, split: Split, **settings: object) -> Result:
    """The toy images under a short suite."""
    common = {"eps": EPS, "suite": SMALL, "controls": ("pixels_8",), "report": lambda line: None}
    return dml.evaluate(model, split.images, split.labels, **{**common, **settings})


@pytest.fixture
def saved(model: nn.Module, toy_split: Split, tmp_path: Path) -> tuple[Result, Path]:
    result = evaluate(model, toy_split)
    assert result.save(tmp_path / "report") == tmp_path / "report" / "report.html"
    return result, tmp_path / "report"


def test_adversarial_images_lie_in_the_ball_and_fool(
    saved: tuple[Result, Path], model: nn.Module, toy_split: Split
) -> None:
    _, folder = saved
    with np.load(folder / "adversarial.npz", allow_pickle=False) as stored:
        rows, clean, moved, eps = (stored[name] for name in ("rows", "images", "adversarial", "eps"))
    assert eps == max(EPS)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(clean, toy_split.images[rows].transpose(0, 3, 1, 2) / np.float32(255))
    assert np.abs(moved.astype(np.float64) - clean).max() <= eps
    assert moved.min() >= 0
    assert moved.max() <= 1
    with torch.no_grad():
        items = model(torch.from_numpy(toy_split.images).permute(0, 3, 1, 2) / 255)
        similarity = model(torch.from_numpy(moved)) @ items.T
    similarity[torch.arange(len(rows)), torch.from_numpy(rows)] = -2
    survives = toy_split.labels[similarity.argmax(1).numpy()] == toy_split.labels[rows]
    outcomes = pd.read_csv(folder / "outcomes.csv")
    worst = outcomes[(outcomes["model"] == "your model") & (outcomes["attack"] == "worst")]
    told = worst[np.isclose(worst["eps"], eps)].set_index("query")["r1"].loc[rows]
    assert 0 < told.mean() < 1
    np.testing.assert_array_equal(survives, told.to_numpy().astype(bool))


def test_files_hold_the_result(saved: tuple[Result, Path]) -> None:
    result, folder = saved
    assert {file.name for file in folder.iterdir()} == {
        "result.json",
        "outcomes.csv",
        "adversarial.npz",
        "curve.png",
        "report.html",
    }
    stored = json.loads((folder / "result.json").read_text())
    assert stored["summary"] == result.to_dict()["summary"]
    assert {row["gate"] for row in stored["gates"]} == set(result.gates["gate"])
    assert len(stored["about"]["images_sha256"]) == 64
    assert "NaN" not in (folder / "result.json").read_text()


class Page(html.parser.HTMLParser):
    """Collects what a page refers to, and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See html.parser."""
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """See html.parser."""
        assert self.open.pop() == tag


def test_the_page_asks_nothing_of_the_network(saved: tuple[Result, Path]) -> None:
    result, folder = saved
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.references) == 1 + 5 * len(result.fooled)
    assert result.fooled
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"https?:|url\(|<script|@import", text)
    for sentence in result.sentences():
        assert html.escape(sentence.text) in text
    last = result.summary.iloc[-1]
    for name in ("r1", "map_r", "r4"):
        assert f"{last[name]:.3f}\n({last[f'{name}_low']:.3f} to {last[f'{name}_high']:.3f})</td>" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_a_browser(saved: tuple[Result, Path], tmp_path: Path, width: int) -> None:
    """The browser writes into the page how wide it is: nothing but tables may be wider than the window."""
    text = (saved[1] / "report.html").read_text(encoding="utf-8")
    script = "<script>document.title = document.documentElement.scrollWidth + '/' + innerWidth</script></body>"
    (tmp_path / "page.html").write_text(text.replace("</body>", script), encoding="utf-8")
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},800", "--dump-dom"]
    done = subprocess.run([*words, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=60)
    needed, window = map(int, re.search(r"<title>(\d+)/(\d+)</title>", done.stdout).groups())
    assert needed <= window


def test_names_are_escaped(model: nn.Module, toy_split: Split) -> None:
    from dml.api.report import page

    labels = np.array(["<script>alert(1)</script>", "b&b", "c", "d", "e", "f"])[toy_split.labels]
    result = evaluate(model, Split(toy_split.images, labels, []), controls=())
    assert "<script" not in page(result)


def test_a_killed_evaluation_continues(
    model: nn.Module, toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack, "chunk_size_for", lambda search: 5)
    whole = evaluate(model, toy_split)

    class Killed(Exception):
        """Stands for Ctrl-C."""

    def stop(line: str) -> None:
        if "attacked 10/12" in line:
            raise Killed

    with pytest.raises(Killed):
        evaluate(model, toy_split, folder=tmp_path, report=stop)
    calls: list[int] = []
    chunk = attack._chunk
    monkeypatch.setattr(attack, "_chunk", lambda *given: calls.append(len(given[3])) or chunk(*given))
    again = evaluate(model, toy_split, folder=tmp_path)
    assert calls == [2, 5, 5, 2], "the last chunk of the model, and the control"
    pd.testing.assert_frame_equal(again.outcomes, whole.outcomes)
    np.testing.assert_array_equal(again.images.adversarial, whole.images.adversarial)
    calls.clear()
    other = build("conv4", 8, seed=1, statistics=toy_split.statistics()).eval()
    evaluate(other, toy_split, folder=tmp_path, controls=())
    assert calls == [5, 5, 2], "another model begins anew"


def test_the_command(picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MODEL_FILE)
    folder, output = picture_folder(), tmp_path / "out"
    words = [str(folder), "--model", f"{tmp_path}/mine.py:make", "--size", "16", "--output", str(output)]
    assert main(["evaluate", *words, "--eps", "2/255", "--queries", "5", "--no-controls"]) == 0
    told = capsys.readouterr().out
    assert "your model: attacked 5/5 queries, R@1 left: " in told
    assert "2/255" in told
    assert (output / "report.html").exists()
    assert not (output / ".unfinished").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--eps", "eight"], "eps is ['eight']; give a number such as 8/255, or several"),
        (["--eps", "8"], "perhaps 8/255"),
        (["--suite", "quik"], "did you mean 'quick'"),
        (["--similarity", "cos"], "similarity 'cos' is unknown"),
        (["--model", "nowhere"], "nowhere is no model; give a folder with settings.json"),
        (["--model", "nowhere.py:make"], "nowhere.py does not exist; write file.py:function"),
        (["--model", "timm:nothing"], "timm has no model 'nothing'"),
        (["--size", "0"], "size is 0; it must be a whole number of pixels, at least 1"),
        (["--resize", "0"], "resize is 0; it takes a size that is one number and no larger"),
        (["--resize", "8"], "resize is 8; it takes a size that is one number and no larger, as in --size 224"),
        (["--resize", "30", "--size", "24x8"], "resize is 30; it takes a size that is one number"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    words: list[str], sentence: str, picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(MODEL_FILE)
    common = ["--model", f"{tmp_path}/mine.py:make", "--size", "16", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(picture_folder()), *common, *words]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(
    picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(MODEL_FILE)

    def stop(*given: object, **settings: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(attack, "_chunk", stop)
    words = [str(picture_folder()), "--model", f"{tmp_path}/mine.py:make", "--size", "16"]
    assert main(["evaluate", *words, "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "\nstopped before any query was finished\n"
