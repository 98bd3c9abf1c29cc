"""Several processes find the model that one process finds, whatever the defence, loss and size of the batch."""

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dml.common import processes
from dml.common.files import ROOT
from dml.common.processes import leads
from dml.common.randomness import seeded_global
from dml.common.table import find
from dml.config.load import load
from dml.data.base import Split
from dml.defenses import DEFENSES
from dml.defenses.base import Defense
from dml.defenses.robust import Robust
from dml.defenses.standard import Standard
from dml.losses.base import Loss
from dml.losses.normalized_softmax import NormalizedSoftmax
from dml.losses.triplet import Triplet
from dml.models.embedder import build
from dml.models.weights import load_weights
from dml.pipeline.digest import training_digest
from dml.pipeline.stages.prepare import prepare
from dml.pipeline.stages.train import train
from dml.training.checkpoint import Checkpoint
from dml.training.distributed import sharing, sum_gradients
from dml.training.loop import fit
from dml.training.schedule import Schedule
from dml.training.selection import validator

# 15 images do not divide by two processes.
SCHEDULE = Schedule(epochs=1, batches=3, classes=5, images_per_class=3, learning_rate=1e-3, averaging=0.5, shift=1)
BUDGET = {"eps": 0.03, "steps": 2}


def budget(name: str) -> dict[str, float]:
    """What a defence takes of a small budget: one without an adversary takes nothing."""
    return {key: BUDGET[key] for key in inspect.signature(find(DEFENSES, name, "defense")).parameters if key in BUDGET}


CASES = [
    *((name, budget(name), Triplet, {"miner": "distance_weighted"}) for name in DEFENSES),
    ("hardness", {"steps": 1, "ics": 0.5}, Triplet, {"miner": "semi_hard"}),
    ("robust", {"steps": 1, "target": "query"}, NormalizedSoftmax, {}),  # a loss with parameters
]


class Exact(nn.Module):
    """Conv4 and a head in float64: the sign of a gradient, which the adversary follows, does not hang on rounding."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.inner = build("conv4", 8, seed=0, statistics=split.statistics()).double()

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.inner.head(self.inner.features(images.double())), dim=1)


class Dying(Standard):
    """Ends the first training in its second step, in every process."""

    left = 2

    def forward(self, *given: Any) -> Tensor:
        self.left -= 1
        if not self.left:
            raise InterruptedError
        return super().forward(*given)


class Broken(Standard):
    def forward(self, *given: Any) -> Tensor:
        return super().forward(*given) * float("nan")


def metric(kind: Callable[..., Loss], settings: dict[str, Any]) -> Loss:
    with seeded_global(0, "loss"):
        return kind(6, 8, **settings).double()


def trained(
    split: Split,
    defense: Defense,
    kind: Callable[..., Loss],
    settings: dict[str, Any],
    schedule: Schedule = SCHEDULE,
    **given: Any,
) -> list[Any]:
    """Weights, state of the loss and of the defence, and history of one training."""
    model, loss = Exact(split), metric(kind, settings)
    given |= {"validate": validator(split, queries=6, eps=0.03, steps=1, seed=0), "seed": 0}
    quiet = {"report": lambda line: None, "timing": lambda line: None}
    history = fit(model, split, loss, defense, schedule, **given, **quiet)
    states = [module.state_dict() for module in (model, loss, defense)]
    return [*states, history.epochs, history.chosen, history.embedded]


def one_image(split: Split) -> list[Tensor]:
    """Embedding, gradients and running statistics of a batch that leaves one of two processes without a row."""
    model = Exact(split)
    images = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).requires_grad_()
    with sharing(model):
        embedding = model(images)
    embedding[:, 0].sum().backward()
    sum_gradients(model, nn.Identity())
    gradients = [parameter.grad for parameter in model.parameters()]
    return [embedding.detach(), images.grad, *gradients, *model.buffers()]


def outcomes(split: Split) -> list[list[Any]]:
    """What is compared between one process and two."""
    cases = [(find(DEFENSES, name, "defense")(**settings), *loss) for name, settings, *loss in CASES]
    longer = trained(split, Robust(**BUDGET), Triplet, {"miner": "distance_weighted"}, replace(SCHEDULE, epochs=6))
    assert len({epoch["loss"] for epoch in longer[3]}) == 6, "a curve, not one point"
    return [one_image(split), *(trained(split, *case) for case in cases), longer]


def resumed(split: Split, checkpoint: Checkpoint) -> list[Any]:
    """A training that dies in its second step and goes on, in the place of the case ``standard``."""
    defense, *loss = Dying(), *CASES[0][2:]
    with suppress(InterruptedError):
        trained(split, defense, *loss, checkpoint=checkpoint, every=0.0)
    assert checkpoint.file.exists() == leads()
    return trained(split, Standard(), *loss, checkpoint=checkpoint)


def work(split: Split, folder: Path, report: Callable[[str], None], timing: Callable[[str], None]) -> None:
    """What each of two processes does; at last, training fails in both."""
    name = "leader" if leads() else "other"
    found = outcomes(split)
    torch.save(found, folder / f"{name}.pt")
    again = resumed(split, Checkpoint(folder / f"state of {name}.pt", "key"))
    assert all(torch.equal(*pair) for pair in zip(flat(found[1]), flat(again), strict=True))
    (report if leads() else timing)("done")
    loss = metric(Triplet, {"miner": "random"})
    fit(Exact(split), split, loss, Broken(), SCHEDULE, seed=0, validate=lambda model: {}, report=report)


def flat(value: Any) -> list[Tensor]:
    """All numbers of nested states, as tensors."""
    if isinstance(value, dict | list):
        return [tensor for item in (value.values() if isinstance(value, dict) else value) for tensor in flat(item)]
    return [torch.as_tensor(value, dtype=torch.float64)]


def test_two_processes_find_the_model_of_one(toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 all but alike; the two processes in every bit; and an error comes back as what it is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    told, timed = [], []
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        processes.launch(2, work, toy_split, tmp_path, report=told.append, timing=timed.append)
    assert told == timed == ["done"]
    leader, other = (torch.load(tmp_path / f"{name}.pt") for name in ("leader", "other"))
    assert {file.name for file in tmp_path.iterdir()} == {"leader.pt", "other.pt", "state of leader.pt"}
    expected = outcomes(toy_split)
    for name, mine, yours, whole in zip(
        ["one image", *(case[0] for case in CASES), "six epochs"], leader, other, expected, strict=True
    ):
        for first, second, third in zip(flat(mine), flat(yours), flat(whole), strict=True):
            assert torch.equal(first, second), name
            torch.testing.assert_close(first, third, rtol=1e-6, atol=1e-9, msg=name)


def stuck(place: Path, *, report: processes.Say, timing: processes.Say) -> None:
    """Say who this process is, and wait: the leader for the clock, others for the leader."""
    (place / f"{os.getpid()}.pid").touch()
    if processes.leads():
        time.sleep(600)
    dist.barrier()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes there")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Even if it is killed: they would train on, beside the same command that was started again."""
    code = (
        "from pathlib import Path; from dml.common.processes import launch; from test_distributed import stuck; "
        f"launch(2, stuck, Path({str(tmp_path)!r}), report=print, timing=print)"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    parent.kill()
    parent.wait()
    numbers = [file.stem for file in tmp_path.glob("*.pid")]
    until(lambda: not any(Path("/proc", number).exists() for number in numbers))


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Changes that make training on glyphs tiny, on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = "recipes.glyphs."
    return {
        recipe + "data.options": {"images_per_class": 4, "size": 32, "seed": 0},
        recipe + "schedule": {"epochs": 1, "batches": 2, "classes": 5, "images_per_class": 3, "learning_rate": 1e-4},
        recipe + "validation": {"queries": 10, "eps": 0.03, "steps": 1},
        recipe + "defenses.robust": {"eps": 0.03, "steps": 1},
        "run.suites": ["quick"],
        "suites.quick.queries": 10,
    }


def test_torchrun_and_devices_train_the_same_model(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One process, two that torchrun starts, and two that the training starts itself."""
    words = ["glyphs", "triplet", "robust"]
    prepare("glyphs", workspace=str(tmp_path), changes=tiny)
    capsys.readouterr()
    one = train(*words, 0, workspace=str(tmp_path), changes=tiny)
    lines = capsys.readouterr().out.splitlines()
    models = {"one": one.model}
    both = train(*words, 0, workspace=str(tmp_path), changes=tiny | {"run.devices": 2})
    models["devices"] = both.model
    told = capsys.readouterr().out.splitlines()
    assert told[0].replace(", in 2 processes", "") == lines[0]
    assert [line.split()[:2] for line in told] == [line.split()[:2] for line in lines]
    folder = tmp_path / "artifacts/models/glyphs/triplet-robust-0"
    history, settings = folder / "history.json", folder / "settings.json"
    kept, made_with = json.loads(history.read_text()), settings.read_bytes()
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dml", "train"]
    options = ["--workspace", str(tmp_path), "--changes", json.dumps(tiny)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*run, *words, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [line.split()[:2] for line in lines]
    models["torchrun"] = load_weights(build("conv4", 128, seed=1), folder / "weights.safetensors")
    again = json.loads(history.read_text())
    assert again["embedded"] == kept["embedded"] == one.history.embedded
    assert again["epochs"][0]["loss"] == pytest.approx(one.history.epochs[0]["loss"], abs=5e-3)
    assert settings.read_bytes() == made_with, "the number of processes is no setting of a model"
    models["start"] = build("conv4", 128, seed=0)
    vectors = {name: torch.cat([*map(torch.flatten, model.parameters())]).detach() for name, model in models.items()}
    moved = (vectors["one"] - vectors["start"]).norm()
    # Rounding turns the sign of a few gradients; float64 above shows that nothing else differs.
    assert (vectors["devices"] - vectors["one"]).norm() < 0.3 * moved
    assert torch.equal(vectors["devices"], vectors["torchrun"])


def test_devices_are_no_part_of_a_training() -> None:
    plain, shared = load(), load({"run.devices": "auto"})
    digests = {training_digest(params.recipe("glyphs"), "triplet", "robust") for params in (plain, shared)}
    assert (plain.run.devices, shared.run.devices, len(digests)) == (1, "auto", 1)
    with pytest.raises(ValueError, match=r"run\.devices is 0; it must be at least 1"):
        load({"run.devices": 0})


def test_how_many_processes_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, devices, expected in ((0, "auto", 1), (0, 3, 3), (2, "auto", 2), (2, 1, 1)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert processes.wanted(devices) == expected
    with pytest.raises(ValueError, match=r"run\.devices is 3; it must be at most 2, the GPUs of this machine"):
        processes.wanted(3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes.wanted(3) == 1, "torchrun has started them"


def test_one_of_several_processes_may_work_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    assert (processes.size(), processes.leads()) == (2, False)
    with processes.alone():
        assert (processes.size(), processes.leads()) == (1, True)
        assert processes.shared_out([1, 2, 3], str) == ["1", "2", "3"]
        assert processes.from_leader(lambda: "made") == "made"
    assert processes.size() == 2


@pytest.mark.parametrize(("error", "ended"), [(None, ["destroyed"]), (KeyError, ["aborted"])])
def test_after_an_error_no_process_waits_for_the_others(
    error: type[Exception] | None, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To destroy a group of NCCL means to wait for processes that wait for this one in another place."""
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: told.append(backend))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: told.append("destroyed"))
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", lambda: told.append("aborted"))
    with pytest.raises(error) if error else nullcontext(), processes._group("env://", 0, 2, 0):
        if error:
            raise error
    assert told == ["nccl", *ended]
