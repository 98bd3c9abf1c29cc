"""The training loop: one-cycle schedule, averaged weights, model selection, and checkpoints to resume from."""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dml.common.files import atomic
from dml.common.randomness import numpy_generator, torch_generator
from dml.data import Split
from dml.data.loading import training_batches
from dml.defenses import Defense
from dml.losses import TupleLoss
from dml.models import embedder as models
from dml.models.embedder import Embedder, device_of, freeze_batchnorm
from dml.training.schedule import Schedule

Scores = dict[str, float]


@dataclass
class History:
    """One entry an epoch: mean loss, validation scores, seconds; and the epoch whose weights were kept."""

    epochs: list[Scores] = field(default_factory=list)
    chosen: int = 0


def fit(
    model: Embedder,
    split: Split,
    tuple_loss: TupleLoss,
    defense: Defense,
    schedule: Schedule,
    *,
    seed: int,
    validate: Callable[[Embedder], Scores],
    select: str,
    checkpoint: Path,
    settings: object = None,
    report: Callable[[str], None] = print,
) -> History:
    """Train ``model`` in place and leave the weights of its best epoch in it.

    A killed training goes on from its last epoch when it is called again with the same settings, and ends with
    the same weights as one that was never killed.

    Args:
        model: trained in place, on the device it is on.
        split: the training images.
        tuple_loss: miner and loss.
        defense: batch -> losses to descend.
        schedule: epochs, batches and rates.
        seed: of the batches and of the defence's draws.
        validate: model -> scores on held-out training classes, higher is better; called after each epoch.
        select: the score that picks the epoch to keep; a later epoch wins a tie.
        checkpoint: file that the state is kept in while training runs.
        settings: whatever else the training depends on (those of the validation, say); if its ``repr`` changed, or
            a source file of this package, an old checkpoint is not resumed.
        report: receives a line an epoch.

    Returns:
        Loss and scores of each epoch, and which one was kept.

    Raises:
        DatasetError: the training images cannot fill a batch.
        FloatingPointError: the loss is no longer a finite number.
    """
    device = device_of(model)
    batches = schedule.batches or max(1, len(split) // (schedule.classes * schedule.images_per_class))
    method = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[schedule.optimizer]
    optimizer = method(model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    cycle = {
        "one_cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, schedule.learning_rate, total_steps=schedule.epochs * batches
        ),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    }[schedule.rate]()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.averaging), use_buffers=True)
    best = copy.deepcopy(model.state_dict())
    history = History()
    state = _State(model, averaged, optimizer, cycle)
    fingerprint = _fingerprint(schedule, seed, select, settings, defense, tuple_loss, split, model)
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if saved["fingerprint"] == fingerprint:
            state.restore(saved)
            best, history = saved["best"], History(**saved["history"])
            report(f"resumed after epoch {len(history.epochs)}")

    for epoch in range(len(history.epochs), schedule.epochs):
        start = time.perf_counter()
        generator = torch_generator(seed, "defense", epoch)
        draws = numpy_generator(seed, "batches", epoch)
        total = 0.0
        model.train()
        if schedule.freeze_batchnorm:
            freeze_batchnorm(model)
        for number, (images, labels) in enumerate(training_batches(split, schedule, batches, device, draws)):
            progress = (epoch + number / batches) / schedule.epochs
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bfloat16"):
                loss = defense(model, images, labels, tuple_loss, generator, progress).mean()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss became {value} in epoch {epoch + 1}; lower the learning rate")
            total += value
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cycle.step()
            averaged.update_parameters(model)
        scores = validate(averaged.module)
        history.epochs.append({"loss": total / batches, **scores, "seconds": time.perf_counter() - start})
        if scores[select] >= history.epochs[history.chosen][select]:
            history.chosen = epoch
            best = copy.deepcopy(averaged.module.state_dict())
        with atomic(checkpoint) as partial:
            torch.save({"fingerprint": fingerprint, "best": best, "history": asdict(history), **state.save()}, partial)
        report(_line(history, schedule.epochs))
    model.load_state_dict(best)
    model.eval()
    checkpoint.unlink(missing_ok=True)
    return history


def save(model: Embedder, history: History, folder: Path) -> None:
    """Write ``weights.safetensors`` and ``history.json`` to a folder, both or neither."""
    with atomic(folder) as partial:
        partial.mkdir()
        models.save(model, partial / "weights.safetensors")
        (partial / "history.json").write_text(json.dumps(asdict(history), indent=1) + "\n", encoding="utf-8")


def read_history(folder: Path) -> History:
    """The history that :func:`save` wrote."""
    return History(**json.loads((folder / "history.json").read_text(encoding="utf-8")))


@dataclass
class _State:
    """The parts of a training that a checkpoint holds."""

    model: nn.Module
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    cycle: torch.optim.lr_scheduler.LRScheduler

    def save(self) -> dict[str, dict]:
        return {name: part.state_dict() for name, part in vars(self).items()}

    def restore(self, saved: dict[str, dict]) -> None:
        for name, part in vars(self).items():
            part.load_state_dict(saved[name])


def _fingerprint(
    schedule: Schedule,
    seed: int,
    select: str,
    settings: object,
    defense: Defense,
    tuple_loss: TupleLoss,
    split: Split,
    model: Embedder,
) -> str:
    """Of all that a training depends on; a checkpoint of another training is not resumed."""
    plain = (schedule, seed, select, settings, defense, tuple_loss.cost, tuple_loss.mine.__name__)
    digest = hashlib.sha256(repr(plain).encode())
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    digest.update(split.labels.tobytes())
    digest.update(np.ascontiguousarray(split.images[:: max(1, len(split) // 64)]).tobytes())
    digest.update((repr(model) + models.digest(model)).encode())
    return digest.hexdigest()


def _line(history: History, epochs: int) -> str:
    last = history.epochs[-1]
    done = len(history.epochs)
    left = sum(epoch["seconds"] for epoch in history.epochs) / done * (epochs - done)
    scores = "  ".join(f"{name} {value:.3f}" for name, value in last.items() if name != "seconds")
    return f"epoch {done}/{epochs}  {scores}  {last['seconds']:.0f} s, {int(left // 60)}:{int(left % 60):02d} left"
