"""train: make a network by a recipe: from synthetic pairs, or from your own images.

DIR gets the weights (DIR.safetensors with their card), checkpoints, training.csv and validation.csv, a picture at every validation and
summary.json. Stopping (Ctrl-C) leaves a checkpoint and the weights so far; --resume goes on to the same numbers. Several processes:
torchrun --nproc-per-node 2 -m DeepRegistrationLib train RECIPE ...
"""

from __future__ import annotations

import json
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

from ..errors import Cancelled, InputError
from ..runtime import Runtime, Silent
from . import options
from .output import note, say


def add(commands) -> None:
    parser = commands.add_parser("train", help="make a network from synthetic pairs or from your images", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe of 'train list', which tells their parameters; 'general' needs no images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--data", type=Path, metavar="FOLDER|LIST", help="images to learn from: a folder, or a .csv or .json list with the columns "
                                                                         "image, labels, points, subject, split, or those of 'batch'")
    parser.add_argument("--labels", metavar="RULE", help="names of label maps in a folder, for example '{name}_seg' (default: the usual ones)")
    parser.add_argument("--dim", type=int, choices=(2, 3), help="dimension where the recipe needs no images (default: 3)")
    parser.add_argument("--steps", type=int, metavar="N", help="updates of the network (default: the recipe's)")
    options.add_settings(parser, "a parameter of the recipe")
    parser.add_argument("--spacing", type=numbers, default=(), metavar="MM", help="of the lattice, one number or x,y,z (default: the images' median)")
    parser.add_argument("--shape", type=sides, default=(), metavar="Z,Y,X", help="voxels of the lattice (default: what covers the median image)")
    parser.add_argument("--cache", type=float, default=2048.0, metavar="MIB", help="memory for images (default: %(default)s)")
    parser.add_argument("--init", default="", metavar="WEIGHTS", help="begin with these weights")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR; what is left away is taken from there")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's files (needs its package)")
    options.add_place(parser)
    parser.add_argument("--json", action="store_true", help="with 'list': all about the recipes as JSON, as the panel in 3D Slicer reads it")
    options.add_voice(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Train and tell what came of it. Raises InputError, ConvergenceError or Cancelled (after a checkpoint)."""
    from ..train import processes
    from ..train.running import ORDER, Order, carry_out

    if arguments.recipe == "list":
        say(json.dumps(catalogue(), indent=1, ensure_ascii=False, allow_nan=False) if arguments.json else listing())
        return
    if arguments.out is None:
        raise InputError("no folder for the run was given; name one by --out")
    order = Order(arguments.recipe, arguments.out, options.settings(arguments.set), arguments.data, arguments.labels, arguments.dim, arguments.steps,
                  arguments.seed, arguments.init, arguments.spacing, arguments.shape, arguments.cache, arguments.tensorboard, arguments.resume)
    with processes.joined(arguments.device) as device:
        monitor = options.monitor(arguments) if processes.rank() == 0 else Silent()
        try:
            with stoppable(monitor):
                summary = carry_out(order, Runtime(device, arguments.seed, arguments.threads, monitor=monitor))
        except Cancelled:
            if processes.rank() == 0 and (arguments.out / ORDER).exists():
                note(f"{arguments.out} keeps the checkpoint: 'train {arguments.recipe} --out {arguments.out} --resume' goes on from there")
            raise
    if summary and not (arguments.quiet or arguments.json_progress):
        tell(summary)


@contextmanager
def stoppable(monitor):
    """Ctrl-C and SIGTERM end the run after the present step, with a checkpoint; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict = {}

    def stop(number, frame):
        for each, handler in before.items():
            signal.signal(each, handler)
        note("stopping after this step; a checkpoint is written")
        monitor.cancel()

    before.update({number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(summary: dict) -> None:
    """The summary for people."""
    for remark in summary["remarks"]:
        note(f"set aside: {remark}")
    early = f" (of {summary['ordered']}: no validation was better for a while)" if summary["steps"] < summary["ordered"] else ""
    say(f"{summary['steps']} steps{early} of recipe {summary['recipe']} on {summary['device']}: cost {summary['cost']:.4g}, "
        f"{summary['images_per_second']:.3g} images/s, {100 * summary['drawing']:.1f} % of the time waiting for pairs")
    for name in ("validation", "test"):
        if summary[name]:
            say(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in summary[name].items() if value is not None))
    say(f"weights: {summary['weights']}")


def listing() -> str:
    """The recipes with their parameters."""
    from ..train.recipe import describe, registry
    from .catalogue import limits, shown

    lines = []
    for name, cls in registry().items():
        lines += [f"{name}: {cls.card.title}", f"  {cls.card.summary}; its weights are used by the method '{cls.card.method}'"]
        for p in describe(cls):
            lines.append(f"    {p.name} = {shown(p.default)}{f' {p.unit}' if p.unit else ''}{limits(p)}: {p.help}")
    return "\n".join(lines)


def catalogue() -> dict:
    """All recipes as JSON types, for programs that have no torch: {"recipes": [{"id", "title", "summary", "needs_data", "method", "dims",
    "parameters"}]}, parameters as in the catalogue of methods."""
    from ..train.recipe import describe, registry
    from .catalogue import jsonable, type_name

    return {"recipes": [{"id": name, **jsonable(vars(cls.card)),
                         "parameters": [jsonable({**vars(p), "type": type_name(p.type)}) for p in describe(cls)]} for name, cls in registry().items()]}


def numbers(text: str) -> tuple[float, ...]:
    """'2' or '1,1,2' -> numbers; ArgumentTypeError for anything else."""
    return tuple(options.number(part) for part in text.split(","))


def sides(text: str) -> tuple[int, ...]:
    """'96,96,64' -> whole numbers; ArgumentTypeError for anything else."""
    return tuple(options.whole(part) for part in text.split(","))
