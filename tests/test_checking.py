"""`python -m dml check`: what is missing, and what this machine computes otherwise."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dml.__main__ import main
from dml.config.load import load
from dml.models.bfloat16 import computed
from dml.pipeline import checking, study

CPU = torch.device("cpu")
FLOAT32 = "is bfloat16, in which this processor does not compute; it takes float32, which rounds otherwise"


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="other flags")
def test_a_pc_with_avx_512_computes_in_bfloat16_and_an_older_one_does_not() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if {"avx512bw", "avx512vl", "avx512dq"} <= flags:
        assert computed(CPU)
    elif not flags & {"avx_ne_convert", "avx_vnni_int8"}:
        assert not computed(CPU)


def test_settings_that_take_float32_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    params = load()
    monkeypatch.setattr(checking, "computed", lambda device: False)
    assert checking.in_float32(params, ["glyphs", "flowers"], ["quick", "wide"]) == [
        f"recipes.flowers.schedule.precision {FLOAT32}",
        f"suites.wide.precision {FLOAT32}",
    ]
    monkeypatch.setattr(checking, "computed", lambda device: True)
    assert checking.in_float32(params, ["flowers"], ["wide"]) == []


def test_check_and_study_tell_what_takes_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "computed", lambda device: False)
    assert main(["check"]) == 0
    assert capsys.readouterr().err == "", "the default pipeline is in float32"
    monkeypatch.setattr(study, "run", lambda *given: 0)
    assert main(["study", "grid"]) == 0
    assert capsys.readouterr().err == f"recipes.glyphs_long.schedule.precision {FLOAT32}\n"
    short = load({"run.datasets": ["glyphs"], "recipes.glyphs.schedule.precision": "bfloat16"})
    monkeypatch.setattr(checking, "load", lambda: short)
    assert main(["check"]) == 0
    assert capsys.readouterr().err == f"recipes.glyphs.schedule.precision {FLOAT32}\n"


def test_images_that_are_missing_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "ROOT", tmp_path)
    assert main(["check"]) == 1
    sentence = "data/glyphs/glyphs.json does not exist; put the images of 'glyphs' there"
    assert capsys.readouterr().err == f"ParamsError: {sentence}\n"
    params = load()
    glyphs = replace(params.recipe("glyphs"), data=replace(params.recipe("glyphs").data, source="torchvision"))
    monkeypatch.setattr(checking, "load", lambda: replace(params, recipes=params.recipes | {"glyphs": glyphs}))
    assert main(["check"]) == 1
    assert "`python -m dml prepare glyphs` downloads the images of 'glyphs'" in capsys.readouterr().err


def test_a_defence_that_training_would_refuse_is_told_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the time of a batch, instead of after the standard trainings."""
    wrong = load({"recipes.glyphs.defenses.robust.target": "query"})
    monkeypatch.setattr(checking, "load", lambda: wrong)
    assert main(["check"]) == 1
    sentence = (
        "recipes.glyphs.defenses.robust does not go with the loss 'contrastive': target is 'query'; "
        "Contrastive costs tuples, so it must be 'positive', 'negative' or 'anchor'"
    )
    assert capsys.readouterr().err == f"ParamsError: {sentence}\n"
    wrong = load({"study.batch.losses": {"multi_similarity": ["standard", "robust_query", "amd"]}})
    monkeypatch.setattr(study, "load", lambda: wrong)
    monkeypatch.setattr(study, "run", lambda *given: pytest.fail("it must stop before"))
    assert main(["study", "batch"]) == 1
    sentence = "recipes.glyphs_long.defenses.amd does not go with the loss 'multi_similarity': "
    assert capsys.readouterr().err.startswith(f"ParamsError: {sentence}")
