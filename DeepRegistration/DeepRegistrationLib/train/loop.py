"""The one training loop: a network's parameters lower the expectation of an objective over pairs.

    minimise over p  E_pair [ sum_k weight_k objective(alignment_k(network_p, pair)) ]

by Adam (Kingma and Ba, ICLR 2015) with a rate that falls as half a cosine (Loshchilov and Hutter, ICLR 2017) and clipped gradients.
The objective is the one that per-pair optimisation and evaluation use (``terms``). ``draw(generator)`` gives the pair of a step;
its generator is seeded by (seed, step, process), so a run that is resumed from its checkpoint sees the pairs that it would
have seen and ends with the same numbers. Several processes: ``processes``; 16 bits: ``precision``; the log: ``record``.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import torch

from ..errors import Cancelled, ConvergenceError, InputError
from ..ops.native import concurrent
from ..runtime import Runtime
from ..terms import Alignment, Term
from . import checkpoint, precision, processes
from .ahead import drawn
from .checkpoint import BEST, CHECKPOINT, State
from .record import Record

CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class TrainingSettings:
    """steps: parameter updates; rate: first step length of Adam; pairs: drawn for each update, their gradients are averaged; clip:
    longest gradient (0: any); checkpoint: updates between checkpoints; validate: updates between validations; patience:
    validations without a better score after which training ends (0: never); warm_up: updates over which the rate rises; half: 16-bit
    arithmetic inside the network where a GPU is used."""

    steps: int = 1000
    rate: float = 1e-3
    pairs: int = 1
    clip: float = 1.0
    checkpoint: int = 100
    validate: int = 200
    patience: int = 0
    warm_up: int = 50
    half: bool = True


@dataclass(frozen=True)
class Watch:
    """What is looked at every ``settings.validate`` updates and at the end.

    validate(network) -> dict with 'score', higher is better: the parameters with the best score are kept as best.pt, and ``patience``
    counts from there. picture(network) -> PNG bytes, kept in pictures/. tensorboard: write its event files into tensorboard/ too.
    """

    validate: Callable | None = None
    picture: Callable | None = None
    tensorboard: bool = False


def train(network: torch.nn.Module, view: Callable, objective: Term, draw: Callable, settings: TrainingSettings, folder: Path,
          runtime: Runtime | None = None, validate: Callable | None = None, watch: Watch | None = None) -> list[dict]:
    """Train ``network`` in place and return one dict of figures per update; ``folder`` keeps the log and the checkpoints.

    view(network, pair) -> [(weight, Alignment)]: how the network's answer to a pair is scored. draw(generator) -> Pair.
    validate is short for ``watch`` = Watch(validate).
    Goes on from ``folder``/checkpoint.pt where there is one; InputError where that belongs to other settings, ConvergenceError
    where the cost is not finite, Cancelled (after a checkpoint).
    """
    runtime, watch = runtime or Runtime(), watch or Watch(validate)
    device = runtime.torch_device()
    if processes.world() > 1:
        runtime = replace(runtime, monitor=processes.Together(runtime.monitor, device))
    network.to(device).train()
    adam = torch.optim.Adam(network.parameters(), lr=settings.rate)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.wanted(settings.half, device))
    make(folder)
    run = _Run(network, Cost(precision.Half(network) if scaler.is_enabled() else network, view, objective), adam, scaler, settings, device, folder,
               runtime, watch, checkpoint.load(folder / CHECKPOINT, network, adam, scaler, settings, runtime.seed))
    runtime.monitor.check()
    try:
        rows = run.updates(draw)
    except (Cancelled, ConvergenceError):
        run.save()
        raise
    run.save()
    return rows


class Cost(torch.nn.Module):
    """The whole of what is differentiated as one module, Pair -> cost: whatever the network answers (dataclasses too) and however often the
    view asks it, distributed training sees one input and one number."""

    def __init__(self, network, view: Callable, objective: Term):
        super().__init__()
        self.network, self.view, self.objective = network, view, objective

    def forward(self, pair):
        return sum(weight * self.objective(alignment).mean() for weight, alignment in self.view(self.network, pair))


@dataclass(eq=False)
class _Run:
    """What the steps of one call of ``train`` share."""

    network: torch.nn.Module
    cost: Cost
    adam: torch.optim.Adam
    scaler: torch.amp.GradScaler
    settings: TrainingSettings
    device: torch.device
    folder: Path
    runtime: Runtime
    watch: Watch
    state: State

    def updates(self, draw) -> list[dict]:
        settings, state, monitor = self.settings, self.state, self.runtime.monitor
        self.model = processes.parallel(self.cost)
        first = processes.rank() == 0
        record = Record(self.folder, state.step, self.watch.tensorboard) if first else None
        numbers = range(state.step * settings.pairs, settings.steps * settings.pairs)
        pairs = drawn(draw, (pair_seed(self.runtime.seed, number) for number in numbers), drawing_threads(self.device))
        rows: list[dict] = []
        try:
            if self.due and state.looked < state.step:
                self.look(record)  # it was stopped after the update and before its look
            for _ in monitor.steps(0 if state.ended else settings.steps - state.step, "training"):
                figures = self.update(pairs)
                state.step += 1
                rows.append({"step": state.step, **figures})
                if first:
                    record.add(**rows[-1])
                monitor.log(**figures)
                if self.due:
                    self.look(record)
                if state.step % settings.checkpoint == 0 and first:
                    self.save()
                if state.ended:
                    break
        finally:
            pairs.close()
            if first:
                record.close()
        return rows

    @property
    def due(self) -> bool:
        """Is the network looked at after this update?"""
        return self.state.step > 0 and (self.state.step % self.settings.validate == 0 or self.state.step == self.settings.steps)

    def update(self, pairs) -> dict:
        """One update of the parameters; the figures of the step."""
        rate = rate_at(self.settings, self.state.step)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.zero_grad(set_to_none=True)
        began, drawing, total = time.perf_counter(), 0.0, 0.0
        for k in range(self.settings.pairs):
            start = time.perf_counter()
            pair = on_device(next(pairs), self.device)
            drawing += time.perf_counter() - start
            total += self.gradient(pair, last=k == self.settings.pairs - 1)
        self.scaler.unscale_(self.adam)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip if self.settings.clip > 0 else math.inf)
        self.scaler.step(self.adam)
        self.scaler.update()
        figures = {"rate": rate, "cost": processes.mean(total, self.device), "gradient": float(norm)}
        seconds = time.perf_counter() - began
        return {**figures, "seconds": seconds, "drawing": drawing / seconds}

    def gradient(self, pair, last: bool) -> float:
        """Add a pair's share to the gradient and return its share of the cost; the processes average theirs with the ``last`` one."""
        apart = nullcontext() if last or self.model is self.cost else self.model.no_sync()
        with apart:
            cost = self.model(pair) / self.settings.pairs
            value = float(cost.detach())
            if not math.isfinite(value):
                raise ConvergenceError(f"the training cost became {value} at step {self.state.step}; use a smaller rate, "
                                       "or look at the pairs for empty images")
            self.scaler.scale(cost).backward()
        return value

    def look(self, record: Record | None) -> None:
        """Validate, keep the best parameters and draw a picture, in the first process; whether training ends is agreed upon."""
        state, watch = self.state, self.watch
        if record is not None and (watch.validate or watch.picture):
            self.network.eval()
            with torch.no_grad():
                found = watch.validate(self.network) if watch.validate else None
                picture = watch.picture(self.network) if watch.picture else None
            self.network.train()
            if picture is not None:
                record.add_picture(state.step, picture)
            if found is not None:
                self.judge(found, record)
        state.looked = state.step
        state.best, state.best_step, state.ended = processes.shared((state.best, state.best_step, state.ended), self.device)

    def judge(self, found: dict, record: Record) -> None:
        """Note the figures of a validation, keep the parameters if they are the best so far, see whether patience has run out."""
        state, patience = self.state, self.settings.patience * self.settings.validate
        record.add_validation(step=state.step, **found)
        self.runtime.monitor.log(**{f"validation_{k}": v for k, v in found.items() if math.isfinite(v)})
        if found["score"] > state.best:
            state.best, state.best_step = found["score"], state.step
            checkpoint.write({"network": self.network.state_dict()}, self.folder / BEST)
        state.ended = bool(patience) and state.step - state.best_step >= patience

    def save(self) -> None:
        if processes.rank() == 0:
            checkpoint.save(self.folder / CHECKPOINT, self.network, self.adam, self.scaler, self.settings, self.state, self.runtime.seed)


def make(folder: Path) -> None:
    """Make the folder of a run. InputError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be written to ({error.strerror}); choose another one") from None


def drawing_threads(device: torch.device) -> int:
    """How many threads draw pairs ahead: several while an accelerator works, one beside a network on the CPU, none where processes share
    the cores or the compiled kernels must not run in two threads at once."""
    if device.type == "cpu":
        return int(CORES > 1 and processes.world() == 1 and concurrent())
    return min(8, max(2, CORES // 2)) if concurrent() else 0


def rate_at(settings: TrainingSettings, step: int) -> float:
    """The step length of Adam at update ``step``: a short rise, then half a cosine down to a fiftieth."""
    rise = min((step + 1) / max(settings.warm_up, 1), 1.0)
    return settings.rate * rise * (0.02 + 0.98 * (1 + math.cos(math.pi * step / settings.steps)) / 2)


def pair_seed(seed: int, number: int) -> int:
    """The seed of this process's pair ``number``; together the processes take the numbers that one process would take."""
    return (seed * 1_000_003 + number * processes.world() + processes.rank()) * 1_021


def pair_number(generator: torch.Generator, seed: int) -> int:
    """The number, over all processes, of the pair that ``generator`` was made for: for a ``draw`` that goes through its subjects in turn."""
    return generator.initial_seed() // 1_021 - seed * 1_000_003


def on_device(pair, device):
    """The pair with its tensors on ``device``."""
    if device.type == "cpu":
        return pair
    names = ("fixed", "moving", "fixed_labels", "moving_labels", "share")
    moved = {name: value.to(device) for name in names if (value := getattr(pair, name, None)) is not None}
    for name in ("fixed_points", "moving_points"):
        points = getattr(pair, name)
        if points is not None:
            weights = None if points.weights is None else points.weights.to(device)
            moved[name] = type(points)(points.positions.to(device), weights=weights)
    return type(pair)(**moved)


def scored(pair, forward, backward=None) -> Alignment:
    """The alignment of a pair under the transform ``forward``, with its labels and points, and the reverse one where ``backward`` is given."""
    guides = {"fixed_labels": pair.fixed_labels, "moving_labels": pair.moving_labels,
              "fixed_points": pair.fixed_points, "moving_points": pair.moving_points}
    alignment = Alignment(pair.fixed, pair.moving, forward, **guides)
    if backward is not None:
        swapped = {"fixed_labels": pair.moving_labels, "moving_labels": pair.fixed_labels,
                   "fixed_points": pair.moving_points, "moving_points": pair.fixed_points}
        alignment.reverse = Alignment(pair.moving, pair.fixed, backward, **swapped, reverse=alignment)
    return alignment
