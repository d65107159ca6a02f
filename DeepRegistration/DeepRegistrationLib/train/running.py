"""A training run from its order to its weights: what the command line and the panel ask for, done in one folder.

The folder gets ``order.json`` (the order, for going on), ``split.json`` (which image is for what), the checkpoints, the logs and the pictures of
``loop``, ``curves.png``, the weights under the folder's name (.safetensors) with their card (.json), and ``summary.json``.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ..errors import Cancelled, InputError
from ..evaluate import report
from ..networks import weights
from ..runtime import Runtime
from . import checkpoint, loop, processes, record
from .cohort import read_cohort
from .data import open_data
from .recipe import Plan, Request, find
from .validate import Validation

ORDER, SPLIT, SUMMARY = "order.json", "split.json", "summary.json"


@dataclass(frozen=True)
class Order:
    """What is to be trained: recipe and values of its parameters; out: the run's folder; data: a folder or a list, with the rule for label
    maps in a folder; dim (None: that of the data, or 3); steps (None: the recipe's); init: weights to begin with; spacing (mm) and shape (z, y, x)
    of the lattice ((): the medians of the data); cache_mib for images; resume: go on with the run in ``out``."""

    recipe: str
    out: Path
    values: dict = field(default_factory=dict)
    data: Path | None = None
    labels: str | None = None
    dim: int | None = None
    steps: int | None = None
    seed: int = 0
    init: str = ""
    spacing: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    cache_mib: float = 2048.0
    tensorboard: bool = False
    resume: bool = False

    def lasting(self) -> dict:
        """What has to be the same when the run is gone on with, ready for JSON."""
        held = {key: value for key, value in asdict(self).items() if key not in ("out", "resume", "tensorboard", "cache_mib")}
        held["data"] = None if self.data is None else str(Path(self.data).resolve())
        return json.loads(json.dumps(held))


def carry_out(order: Order, runtime: Runtime) -> dict:
    """Train as ordered and return the summary. InputError for an order that cannot be carried out (then nothing is written),
    ConvergenceError, or Cancelled after the checkpoint and the best weights so far are there."""
    monitor = runtime.monitor
    given = find(order.recipe, order.values).values()
    order = resumed(replace(order, values={key: given[key] for key in order.values}))
    recipe = find(order.recipe, order.values)
    with runtime.active():
        request, remarks = _request(order, recipe, monitor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(order.seed)
            plan = recipe.plan(request)
        device = runtime.torch_device()
        if order.init:
            _initialise(plan.network, order.init, runtime)
        alone = processes.world() == 1  # one of several that stopped by itself would leave the others waiting
        validation = None if plan.held_out is None else Validation(plan.held_out, plan.view, device, monitor if alone else None)
        watch = loop.Watch(validation, None if validation is None else validation.picture, order.tensorboard)
        processes.meet()
        _note(order, request.data)
        begun = 0.0 if plan.prepare is None else 0.5
        try:
            if plan.prepare is not None:
                plan.prepare(order.out, replace(runtime, seed=order.seed, monitor=monitor.part(0.0, begun)))
            whole = replace(runtime, seed=order.seed, monitor=monitor.part(begun, 1.0))
            loop.train(plan.network, plan.view, plan.objective, plan.draw, plan.settings, order.out, whole, watch=watch)
        except Cancelled:
            conclude(order, plan, device, remarks, "cancelled")
            raise
        return conclude(order, plan, device, remarks, "done")


def resumed(order: Order) -> Order:
    """The order, completed by the one that is noted in its folder where it goes on with that. InputError where both differ, and where the folder
    holds a run and nothing was said about going on."""
    path = order.out / ORDER
    if not path.exists():
        return order
    if not order.resume:
        raise InputError(f"{order.out} holds a training run already; go on with it by --resume, or give another folder")
    try:
        held = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise InputError(f"{path} cannot be read; give another folder") from None
    default, held_flat = _flat(Order(order.recipe, order.out).lasting()), _flat(held)
    asked = {key: value for key, value in _flat(order.lasting()).items() if key == "recipe" or value != default.get(key)}
    for key, value in asked.items():
        if held_flat.get(key) != value:
            raise InputError(f"the run in {order.out} has another {key} ({held_flat.get(key, 'the usual one')}, not {value}); leave it away, or give "
                             "another folder, where --init takes the weights of this run to go on from")
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in held.items()}
    known["data"] = None if known["data"] is None else Path(known["data"])
    return replace(order, **known)


def _flat(lasting: dict) -> dict:
    """What ``Order.lasting`` says, with the parameters of the recipe beside the rest."""
    return {**{key: value for key, value in lasting.items() if key != "values"}, **lasting["values"]}


def _request(order: Order, recipe, monitor) -> tuple[Request, tuple[str, ...]]:
    """The request for the recipe's plan, and remarks on the data."""
    if order.dim not in (None, *recipe.card.dims):
        raise InputError(f"dimension {order.dim} was asked for; recipe '{recipe.id}' knows {' and '.join(map(str, recipe.card.dims))}")
    if order.steps is not None and order.steps < 1:
        raise InputError(f"{order.steps} steps were asked for; at least one is needed")
    if not recipe.card.needs_data:
        if order.data is not None:
            raise InputError(f"recipe '{recipe.id}' makes its own pairs and {order.data} was given; leave the data away, or take another recipe")
        return Request(order.dim or 3, order.seed, None, order.steps), ()
    if order.data is None:
        raise InputError(f"recipe '{recipe.id}' learns from images and none were given; name a folder or a list (.csv, .json) by --data")
    data = open_data(read_cohort(order.data, order.labels), order.seed, order.spacing or None, order.shape or None, recipe.multiple, order.cache_mib,
                     monitor.part(0.0, 0.05))
    if order.dim not in (None, data.dim):
        raise InputError(f"dimension {order.dim} was asked for and the images in {order.data} are {data.dim}D; leave it away, or give other images")
    return Request(data.dim, order.seed, data, order.steps), data.remarks


def _initialise(network: torch.nn.Module, name: str, runtime: Runtime) -> None:
    """Give the network the parameters of a file of weights or of a known name. InputError where they do not fit."""
    if Path(name).suffix == ".pt" and Path(name).is_file():
        return checkpoint.initialise(network, Path(name))
    source, card = weights.load(name, runtime)
    try:
        network.load_state_dict(source.state_dict())
    except RuntimeError:
        raise InputError(f"the weights '{card.title}' belong to another network; give weights of this recipe with these parameters") from None


def _note(order: Order, data) -> None:
    """Write the order, and which image is in which split, before the first step."""
    if processes.rank() > 0:
        return
    loop.make(order.out)
    _write(order.out / ORDER, order.lasting())
    if data is not None:
        _write(order.out / SPLIT, {name: [str(data.scans.scans[k].image) for k in index.members] for name, index in data.indices.items()})


def _write(path: Path, value) -> None:
    """JSON under another name first, so that no half of it is ever read."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False), "utf-8")
    os.replace(partial, path)


def conclude(order: Order, plan: Plan, device: torch.device, remarks, ended: str) -> dict:
    """Write the weights with their card, the curves and the summary of what was done so far; the first process does, {} elsewhere and
    where no update was made."""
    rows = record.rows(order.out, "training")
    if processes.rank() > 0 or not rows:
        return {}
    best = order.out / checkpoint.BEST
    if plan.keep == "best" and best.exists():
        checkpoint.initialise(plan.network, best)
    done = f"{plan.card.training}; {len(rows)} steps were done, on {platform.processor() or platform.machine()}" + (
        f" and {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "")
    path = weights_of(order.out)
    card = weights.write(path, plan.network, replace(plan.card, training=done))
    validation = record.rows(order.out, "validation")
    summary = {"recipe": order.recipe, "ended": ended, "steps": len(rows), "ordered": plan.settings.steps, "cost": rows[-1]["cost"],
               **cost_of(rows, plan.settings.pairs), "validation": max(validation, key=lambda row: row["score"]) if validation else None, "test": None,
               "weights": str(path), "sha256": card.sha256, "device": str(device), "remarks": list(remarks)}
    if plan.test is not None and ended == "done":
        summary["test"] = Validation(plan.test, plan.view, device)(plan.network)
    if importlib.util.find_spec("matplotlib") is not None:
        (order.out / "curves.png").write_bytes(report.history_picture(rows))
    _write(order.out / SUMMARY, _plain(summary))
    return _plain(summary)


def weights_of(folder: Path) -> Path:
    """Where the weights of the run in ``folder`` are: they have its name, and their card must not be one of the other files."""
    name = folder.resolve().name
    return folder / f"{name}{'-weights' if f'{name}.json' in (ORDER, SPLIT, SUMMARY) else ''}.safetensors"


def cost_of(rows: list[dict], pairs: int) -> dict:
    """What a step costs: 'images_per_second' (two a pair), 'drawing', the share of the time in which pairs are waited for, 'seconds'. The
    first steps, in which memory is asked for and code is loaded, do not count where there are more."""
    counted = rows[2:] or rows
    seconds = sum(row["seconds"] for row in counted)
    return {"images_per_second": 2 * pairs * processes.world() / statistics.median(row["seconds"] for row in counted),
            "drawing": sum(row["drawing"] * row["seconds"] for row in counted) / seconds, "seconds": sum(row["seconds"] for row in rows)}


def _plain(value):
    """Strict JSON: what is not finite is None."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
