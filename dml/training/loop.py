"""The training loop: learning rates, averaged weights, selection of the epoch to keep, and state to resume from."""

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dml.common.randomness import numpy_generator, torch_generator
from dml.data.base import Split
from dml.data.loading import training_batches
from dml.defenses.base import Defense
from dml.losses.base import Loss
from dml.models.embedder import device_of, freeze_batchnorm
from dml.training.checkpoint import Checkpoint
from dml.training.schedule import Schedule

Scores = dict[str, float]


@dataclass
class History:
    """What happened in each epoch.

    Attributes:
        epochs: mean ``loss`` and validation scores, one entry per epoch.
        chosen: the epoch whose weights were kept, counted from 0.
        embedded: images that the model embedded, those of the defence's adversary included: what training costs,
            whatever the machine.
        seconds: of each epoch. They differ from run to run and take no part in a comparison.
    """

    epochs: list[Scores] = field(default_factory=list)
    chosen: int = 0
    embedded: int = 0
    seconds: list[float] = field(default_factory=list, compare=False)


def to_stderr(line: str) -> None:
    """Print a line to the standard error stream."""
    print(line, file=sys.stderr, flush=True)


def fit(
    model: nn.Module,
    split: Split,
    loss: Loss,
    defense: Defense,
    schedule: Schedule,
    *,
    seed: int,
    validate: Callable[[nn.Module], Scores],
    checkpoint: Checkpoint | None = None,
    report: Callable[[str], None] = print,
    timing: Callable[[str], None] = to_stderr,
) -> History:
    """Train ``model`` and ``loss`` in place and leave the weights of the best epoch in them, in evaluation mode.

    A killed training resumes after its last epoch when it is called again with the same checkpoint, and ends with the
    same weights and the same report. A training that has finished returns at once. The checkpoint stays: the caller
    discards it when the weights are safe.

    Args:
        model: on the device to train on.
        split: the training images, labels 0 to loss.classes - 1.
        loss: moved to the model's device; its parameters are trained too.
        defense: batch -> losses to minimise; it also scores each epoch, and a later epoch wins a tie.
        schedule: epochs, batches and rates.
        seed: of the batches and of the defence's draws.
        validate: averaged model -> scores on held-out training classes, after each epoch.
        checkpoint: where the state is kept; None keeps none.
        report: receives one line per epoch, the same in every run.
        timing: receives what differs between runs: seconds, time left, and whether the training was resumed.

    Raises:
        DatasetError: the training images cannot fill a batch.
        ValueError: a label is beyond the classes of the loss, or the defence cannot work with the loss.
        FloatingPointError: the loss is no longer finite.
    """
    if (last := int(split.labels.max())) >= loss.classes:
        raise ValueError(f"the training images have label {last}; the loss was built for {loss.classes} classes")
    device, batches = device_of(model), schedule.steps(len(split))
    training = _Training(model, loss.to(device), defense.to(device), schedule, schedule.epochs * batches)
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        training.restore(saved)
    history = training.history
    if history.epochs:
        timing(f"resumed after epoch {len(history.epochs)}")
    for done in range(1, len(history.epochs) + 1):
        report(_line(history, done, schedule.epochs))
    for epoch in range(len(history.epochs), schedule.epochs):
        start = time.perf_counter()
        mean = training.epoch(split, epoch, batches, seed)
        training.judge(epoch, mean, validate(training.averaged.module["model"]))
        history.seconds.append(time.perf_counter() - start)
        if checkpoint is not None:
            checkpoint.save(training.state())
        report(_line(history, epoch + 1, schedule.epochs))
        timing(_time_left(history, schedule.epochs))
    training.modules.load_state_dict(training.best)
    training.modules.eval()
    return history


class _Training:
    """The parts of a training and what happens to them in an epoch.

    Args:
        model, loss, defense, schedule: see :func:`fit`.
        steps: gradient steps of the whole training.
    """

    def __init__(self, model: nn.Module, loss: Loss, defense: Defense, schedule: Schedule, steps: int) -> None:
        self.schedule = schedule
        self.modules = nn.ModuleDict({"model": model, "loss": loss})
        self.defense = defense
        method = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[schedule.optimizer]
        parameters = self.modules.parameters()
        self.optimizer = method(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        rates = torch.optim.lr_scheduler
        self.cycle = {
            "one_cycle": lambda: rates.OneCycleLR(self.optimizer, schedule.learning_rate, total_steps=steps),
            "constant": lambda: rates.ConstantLR(self.optimizer, factor=1.0),
        }[schedule.rate]()
        average = get_ema_multi_avg_fn(schedule.averaging)
        self.averaged = AveragedModel(self.modules, multi_avg_fn=average, use_buffers=True)
        self.history = History()
        self.best: dict[str, Any] = {}
        self.best_score = -math.inf

    def epoch(self, split: Split, epoch: int, batches: int, seed: int) -> float:
        """Train for one epoch and return its mean loss."""
        schedule, model = self.schedule, self.modules["model"]
        device = device_of(model)
        generator = torch_generator(seed, "defense", epoch)
        self.modules.train()
        self.defense.train()
        if schedule.freeze_batchnorm:
            freeze_batchnorm(model)
        drawn = training_batches(
            split,
            classes=schedule.classes,
            images_per_class=schedule.images_per_class,
            batches=batches,
            augmentation=schedule.augmentation,
            device=device,
            generator=numpy_generator(seed, "batches", epoch),
        )
        total = 0.0

        def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.history.embedded += len(inputs[0])

        counting = model.register_forward_pre_hook(count)
        for number, (images, labels) in enumerate(drawn):
            progress = (epoch + number / batches) / schedule.epochs
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bfloat16"):
                losses = self.defense(model, images, labels, self.modules["loss"], generator, progress)
                loss = losses.mean()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss became {value} in epoch {epoch + 1}; lower the learning rate")
            total += value
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.cycle.step()
            self.averaged.update_parameters(self.modules)
        counting.remove()
        return total / batches

    def judge(self, epoch: int, mean: float, scores: Scores) -> None:
        """Record an epoch, and keep its averaged weights if none before scored higher."""
        self.history.epochs.append({"loss": mean, **scores})
        score = self.defense.score(scores)
        if not self.best or score >= self.best_score:
            self.history.chosen = epoch
            self.best_score = score
            self.best = copy.deepcopy(self.averaged.module.state_dict())

    def state(self) -> dict[str, Any]:
        """Return all that a training needs to continue."""
        own = {"history": vars(self.history), "best": self.best, "best_score": self.best_score}
        return own | {name: part.state_dict() for name, part in self._parts().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.history = History(**state["history"])
        self.best, self.best_score = state["best"], state["best_score"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "modules": self.modules,
            "defense": self.defense,
            "averaged": self.averaged,
            "optimizer": self.optimizer,
            "cycle": self.cycle,
        }


def _line(history: History, done: int, epochs: int) -> str:
    """Loss and scores of an epoch: nothing that differs between runs."""
    scores = "  ".join(f"{name} {value:.3f}" for name, value in history.epochs[done - 1].items())
    return f"epoch {done}/{epochs}  {scores}"


def _time_left(history: History, epochs: int) -> str:
    """Seconds of the last epoch, and minutes and seconds that the others will take at the mean pace."""
    done = len(history.seconds)
    left = sum(history.seconds) / done * (epochs - done)
    return f"{history.seconds[-1]:.0f} s, {int(left // 60)}:{int(left % 60):02d} left"
