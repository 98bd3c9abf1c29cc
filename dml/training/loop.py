"""The training loop: learning rates, averaged weights, selection of the epoch to keep, and state to resume from."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dml.common.processes import Say, from_leader, leads, to_nobody
from dml.common.randomness import numpy_generator, torch_generator
from dml.data.base import Split
from dml.data.loading import training_batches
from dml.defenses.base import Defense
from dml.losses.base import Loss
from dml.models import bfloat16
from dml.models.embedder import device_of, freeze_batchnorm
from dml.training import distributed
from dml.training.checkpoint import Checkpoint
from dml.training.schedule import Schedule

Scores = dict[str, float]
Tensors = tuple[Tensor, ...] | list[Tensor]


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
    keep_last: bool = False,
    checkpoint: Checkpoint | None = None,
    every: float = 60.0,
    report: Say = print,
    timing: Say = to_stderr,
) -> History:
    """Train ``model`` and ``loss`` in place and leave the weights of the kept epoch in them, in evaluation mode.

    A training killed at any moment resumes at its last saved step when it is called again with the same checkpoint, and
    ends with the same weights and the same report. A training that has finished returns at once. The checkpoint stays:
    the caller discards it when the weights are safe.

    In a process group of ``torch.distributed`` all processes call this function with the same arguments, share out the
    work (:mod:`dml.training.distributed`) and end with the same weights. One of them reports and saves.

    Args:
        model: on the device to train on.
        split: the training images, labels 0 to loss.classes - 1.
        loss: moved to the model's device; its parameters are trained too.
        defense: batch -> losses to minimise; it also scores each epoch, and a later epoch wins a tie.
        schedule: epochs, batches and rates.
        seed: of the batches and of the defence's draws.
        validate: averaged model -> scores on held-out training classes, after each epoch.
        keep_last: keep the last epoch, whatever the scores.
        checkpoint: where the state is kept; None keeps none.
        every: seconds after which the state is saved within an epoch. It is always saved at the end of one.
        report: receives one line per epoch, the same in every run.
        timing: receives what differs between runs: seconds, time left, and whether the training was resumed.

    Raises:
        DatasetError: the training images cannot fill a batch.
        ValueError: a label is beyond the classes of the loss, or the defence cannot work with the loss.
        FloatingPointError: the loss is no longer finite.
        RuntimeError: the processes of a group disagree about the loss.
    """
    if (last := int(split.labels.max())) >= loss.classes:
        raise ValueError(f"the training images have label {last}; the loss was built for {loss.classes} classes")
    device = device_of(model)
    distributed.align(model, loss.to(device), defense.to(device))
    training = _Training(model, loss, defense, schedule, schedule.steps(len(split)), seed)
    saved = from_leader(lambda: None if checkpoint is None else checkpoint.load())
    if not leads():
        checkpoint, report, timing = None, to_nobody, to_nobody
    if saved is not None:
        training.restore(saved)
        timing(f"resumed after {training.place()}")
    saver, history = _Saver(checkpoint, every), training.history
    for done in range(1, len(history.epochs) + 1):
        report(_line(history, done, schedule.epochs))
    while len(history.epochs) < schedule.epochs:
        for _ in training.steps(split):
            saver.step(training)
        averaged = training.averaged.module["model"]
        with distributed.sharing(averaged):
            scores = validate(averaged)
        training.judge(scores, keep_last)
        saver.save(training)
        report(_line(history, len(history.epochs), schedule.epochs))
        timing(_time_left(history, schedule.epochs))
    training.modules.load_state_dict(training.best)
    training.modules.eval()
    return history


class _Training:
    """The parts of a training, where it stands, and what happens to them in an epoch.

    Args:
        model, loss, defense, schedule, seed: see :func:`fit`.
        batches: gradient steps of an epoch.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, defense: Defense, schedule: Schedule, batches: int, seed: int
    ) -> None:
        self.schedule = schedule
        self.batches = batches
        self.seed = seed
        self.modules = nn.ModuleDict({"model": model, "loss": loss})
        self.defense = defense
        device, total = device_of(model), schedule.epochs * batches
        self.short = schedule.precision == "bfloat16" and bfloat16.computed(device)
        method = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[schedule.optimizer]
        rates = [schedule.learning_rate, schedule.loss_learning_rate or schedule.learning_rate]
        given = {"lr": rates[0], "weight_decay": schedule.weight_decay}
        # One kernel for all weights on a GPU. On a CPU that would round otherwise; `foreach` rounds as the plain loop.
        given["fused" if device.type == "cuda" else "foreach"] = True
        self.optimizer = method([{"params": [*part.parameters()]} for part in (model, loss)], **given)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        cycles = torch.optim.lr_scheduler
        self.cycle = {
            "one_cycle": lambda: cycles.OneCycleLR(self.optimizer, rates, total_steps=total),
            "constant": lambda: cycles.ConstantLR(self.optimizer, factor=1.0),
        }[schedule.rate]()
        self.averaged = AveragedModel(self.modules, multi_avg_fn=self._average, use_buffers=True)
        self.history = History()
        self.best, self.best_score = {}, -math.inf
        self._begin()

    def _begin(self) -> None:
        """Stand at the beginning of an epoch."""
        self.done, self.total = 0, 0.0  # steps of the epoch, and the sum of their losses
        self.generator = torch_generator(self.seed, "defense", len(self.history.epochs))
        self.began = time.perf_counter()

    def steps(self, split: Split) -> Iterator[None]:
        """Train from here to the end of the epoch; yields after each step, where the state may be saved."""
        model, schedule = self.modules["model"], self.schedule
        self.modules.train()
        self.defense.train()
        if schedule.freeze_batchnorm:
            freeze_batchnorm(model)
        drawn = training_batches(
            split,
            classes=schedule.classes,
            images_per_class=schedule.images_per_class,
            batches=self.batches,
            augmentation=schedule.augmentation,
            device=device_of(model),
            generator=numpy_generator(self.seed, "batches", len(self.history.epochs)),
        )

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.history.embedded += len(inputs[0])

        with distributed.sharing(model), closing(drawn), model.register_forward_pre_hook(count):
            for images, labels in islice(drawn, self.done, None):  # batches of the past are drawn again and left out
                self._step(images, labels)
                yield

    def _step(self, images: Tensor, labels: Tensor) -> None:
        """Take one gradient step."""
        model, loss = self.modules["model"], self.modules["loss"]
        epoch, device = len(self.history.epochs), images.device
        progress = (epoch + self.done / self.batches) / self.schedule.epochs
        with torch.autocast(device.type, torch.bfloat16, enabled=self.short):
            mean = self.defense(model, images, labels, loss, self.generator, progress).mean()
        self.optimizer.zero_grad(set_to_none=True)
        mean.backward()
        value = float(mean.detach())  # waits for a GPU, so it comes after the backward pass was handed over
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} in epoch {epoch + 1}; lower the learning rate")
        distributed.check_same(value, device)
        distributed.sum_gradients(model, loss)
        self.optimizer.step()
        self.cycle.step()
        self.averaged.update_parameters(self.modules)
        self.total += value
        self.done += 1

    def _average(self, averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        """Move averaged weights towards the current ones, in place."""
        steps = len(self.history.epochs) * self.batches + self.done
        get_ema_multi_avg_fn(self.schedule.decay(steps))(averaged, current, updates)

    def judge(self, scores: Scores, keep_last: bool) -> None:
        """Record an epoch, and keep its averaged weights, if none before scored higher or the last are wanted."""
        history = self.history
        history.epochs.append({"loss": self.total / self.batches, **scores})
        history.seconds.append(time.perf_counter() - self.began)
        score = self.defense.score(scores)
        if keep_last or not self.best or score >= self.best_score:
            history.chosen = len(history.epochs) - 1
            self.best_score = score
            self.best = copy.deepcopy(self.averaged.module.state_dict())
        self._begin()

    def place(self) -> str:
        """Say which was the last step or epoch."""
        epochs = len(self.history.epochs)
        return f"step {self.done}/{self.batches} of epoch {epochs + 1}" if self.done else f"epoch {epochs}"

    def state(self) -> dict[str, Any]:
        """Return all that a training needs to continue."""
        own = {name: getattr(self, name) for name in ("best", "best_score", "done", "total")}
        own["seconds"], own["generator"] = time.perf_counter() - self.began, self.generator.get_state()
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return own | parts | {"history": vars(self.history)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.history = History(**state["history"])
        self.best, self.best_score = state["best"], state["best_score"]
        self.done, self.total = state["done"], state["total"]
        self.generator.set_state(state["generator"])
        self.began = time.perf_counter() - state["seconds"]
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


class _Saver:
    """Saves a training from time to time.

    Args:
        checkpoint: where to; None saves nothing.
        every: seconds between two savings.
    """

    def __init__(self, checkpoint: Checkpoint | None, every: float) -> None:
        self.checkpoint = checkpoint
        self.every = every
        self.last = time.monotonic()

    def save(self, training: _Training) -> None:
        """Save now."""
        if self.checkpoint is not None:
            self.checkpoint.save(training.state())
            self.last = time.monotonic()

    def step(self, training: _Training) -> None:
        """Save if it is time."""
        if time.monotonic() - self.last >= self.every:
            self.save(training)


def _line(history: History, done: int, epochs: int) -> str:
    """Loss and scores of an epoch: nothing that differs between runs."""
    scores = "  ".join(f"{name} {value:.3f}" for name, value in history.epochs[done - 1].items())
    return f"epoch {done}/{epochs}  {scores}"


def _time_left(history: History, epochs: int) -> str:
    """Seconds of the last epoch, and minutes and seconds that the others will take at the mean pace."""
    done = len(history.seconds)
    left = sum(history.seconds) / done * (epochs - done)
    return f"{history.seconds[-1]:.0f} s, {int(left // 60)}:{int(left % 60):02d} left"
