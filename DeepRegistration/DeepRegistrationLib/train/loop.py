"""The one training loop: a network's parameters lower the expectation of an objective over pairs.

    minimise over p  E_pair [ sum_k weight_k objective(alignment_k(network_p, pair)) ]

by Adam (Kingma and Ba, ICLR 2015) with a rate that falls as half a cosine (Loshchilov and Hutter, ICLR 2017) and clipped gradients.
The objective is the one that per-pair optimisation and evaluation use (``terms``). ``draw(generator)`` gives the pair of a step;
its generator is seeded by (seed, step, process), so a run that is resumed from its checkpoint sees the pairs that it would
have seen and ends with the same numbers.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable

import torch

from ..errors import ConvergenceError, InputError
from ..runtime import Runtime
from ..terms import Alignment, Term
from .record import Record

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainingSettings:
    """steps: parameter updates; rate: first step length of Adam; pairs: drawn for each update, their gradients are averaged; clip:
    longest gradient (0: any); checkpoint: updates between checkpoints; validate: updates between validations; patience:
    validations without a better score after which training ends (0: never); warm_up: updates over which the rate rises; half: 16-bit arithmetic where a GPU is used."""

    steps: int = 1000
    rate: float = 1e-3
    pairs: int = 1
    clip: float = 1.0
    checkpoint: int = 100
    validate: int = 200
    patience: int = 0
    warm_up: int = 50
    half: bool = True


@dataclass(eq=False)
class State:
    """What a checkpoint holds beside the parameters: updates done, the best score so far and its step."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0


def train(network: torch.nn.Module, view: Callable, objective: Term, draw: Callable, settings: TrainingSettings, folder: Path,
          runtime: Runtime | None = None, validate: Callable | None = None) -> list[dict]:
    """Train ``network`` in place and return one dict of figures per update; ``folder`` keeps the log and the checkpoints.

    view(network, pair) -> [(weight, Alignment)]: how the network's answer to a pair is scored. draw(generator) -> Pair.
    validate(network) -> dict with 'score', higher is better: the parameters with the best score are kept as best.pt.
    Goes on from ``folder``/checkpoint.pt where there is one; InputError where that belongs to other settings, ConvergenceError
    where the cost is not finite, Cancelled (after a checkpoint).
    """
    runtime = runtime or Runtime()
    device = runtime.torch_device()
    network.to(device).train()
    adam = torch.optim.Adam(network.parameters(), lr=settings.rate)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.half and device.type == "cuda")
    folder.mkdir(parents=True, exist_ok=True)
    state = _resumed(folder / CHECKPOINT, network, adam, settings)
    record = Record(folder, state.step)
    runtime.monitor.check()
    try:
        for _ in runtime.monitor.steps(settings.steps - state.step, "training"):
            rate = rate_at(settings, state.step)
            figures = _update(network, view, objective, draw, settings, runtime.seed, state.step, rate, adam, scaler, device)
            state.step += 1
            record.add(step=state.step, rate=rate, **figures)
            runtime.monitor.log(**figures)
            if validate is not None and (state.step % settings.validate == 0 or state.step == settings.steps):
                _validated(network, validate, state, record, folder, runtime)
                if settings.patience and state.step - state.best_step >= settings.patience * settings.validate:
                    break
            if state.step % settings.checkpoint == 0:
                save(folder / CHECKPOINT, network, adam, settings, state)
    finally:
        save(folder / CHECKPOINT, network, adam, settings, state)
        record.close()
    return record.rows


def rate_at(settings: TrainingSettings, step: int) -> float:
    """The step length of Adam at update ``step``: a short rise, then half a cosine down to a fiftieth."""
    rise = min((step + 1) / max(settings.warm_up, 1), 1.0)
    return settings.rate * rise * (0.02 + 0.98 * (1 + math.cos(math.pi * step / settings.steps)) / 2)


def _update(network, view, objective, draw, settings, seed, step, rate, adam, scaler, device):
    """One update of the parameters; the figures of the step."""
    for group in adam.param_groups:
        group["lr"] = rate
    adam.zero_grad(set_to_none=True)
    began, drawing, total = time.perf_counter(), 0.0, 0.0
    for k in range(settings.pairs):
        start = time.perf_counter()
        pair = on_device(draw(torch.Generator().manual_seed(pair_seed(seed, step * settings.pairs + k))), device)
        drawing += time.perf_counter() - start
        with torch.autocast(device.type, torch.float16, enabled=scaler.is_enabled()):
            parts = view(network, pair)
        cost = sum(weight * objective(alignment).mean() for weight, alignment in parts) / settings.pairs
        value = float(cost.detach())
        if not math.isfinite(value):
            raise ConvergenceError(f"the training cost became {value} at step {step}; use a smaller rate, or look at the pairs for empty images")
        scaler.scale(cost).backward()
        total += value
    scaler.unscale_(adam)
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip if settings.clip > 0 else math.inf)
    scaler.step(adam)
    scaler.update()
    seconds = time.perf_counter() - began
    return {"cost": total, "gradient": float(norm), "seconds": seconds, "drawing": drawing / seconds}


def pair_seed(seed: int, number: int) -> int:
    """The seed of the pair ``number`` of a run: different for every process of a distributed run."""
    rank = torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    return (seed * 1_000_003 + number) * 1_021 + rank


def on_device(pair, device):
    """The pair with its tensors on ``device``."""
    if device.type == "cpu":
        return pair
    moved = {name: value.to(device) for name in ("fixed", "moving", "fixed_labels", "moving_labels") if (value := getattr(pair, name)) is not None}
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


def _validated(network, validate, state, record, folder, runtime):
    network.eval()
    with torch.no_grad():
        found = validate(network)
    network.train()
    record.add_validation(step=state.step, **found)
    runtime.monitor.log(**{f"validation_{k}": v for k, v in found.items()})
    if found["score"] > state.best:
        state.best, state.best_step = found["score"], state.step
        _write({"network": network.state_dict()}, folder / "best.pt")


def save(path: Path, network, adam, settings, state: State) -> None:
    """Write a checkpoint: under another name first, so that a stop in the middle leaves the old one."""
    _write({"network": network.state_dict(), "adam": adam.state_dict(), "settings": asdict(settings), "state": asdict(state)}, path)


def _write(content, path):
    temporary = path.with_suffix(".part")
    torch.save(content, temporary)
    os.replace(temporary, path)


def _resumed(path, network, adam, settings) -> State:
    if not path.exists():
        return State()
    held = torch.load(path, map_location="cpu", weights_only=True)
    changed = [k for k, v in asdict(settings).items() if held["settings"].get(k) != v and k not in ("checkpoint", "patience", "validate")]
    if changed:
        raise InputError(f"{path} was made with other settings ({', '.join(changed)}); take the same, or another folder")
    try:
        network.load_state_dict(held["network"])
    except RuntimeError:
        raise InputError(f"{path} belongs to another network; give another folder") from None
    adam.load_state_dict(held["adam"])
    return State(**held["state"])
