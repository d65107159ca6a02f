"""icon-atlas: atlases and registration networks that are trained together, and what the report left open.

Cohorts: digits (scikit-learn, sixty threes at 32 x 32), cohort2d-oasis (20 people, 2 mm), cohort3d-slab-labelled (8 people, 4 mm). Without the
data folder a cohort of warped phantoms stands in for the last two. Each training is a run of the method 'icon-atlas:network' with its
centering off, so that the mean displacement is that which the training leaves.

The three questions of the report, on the brain slices for MSE and LNCC: does the atlas follow the whole objective or the similarity
alone, does it begin at random or at the mean, is the squared mean displacement penalized. The table says for each of the 16: similarity
(correlation of atlas and subjects), mean displacement, gradient energy of the atlas over that of the cohort (1: as sharp; more: drift or
wobble), folds.

Claims: (a) on digits and on the slabs in 3D the penalty brings the mean displacement below 10 % of its value without. (b) The LNCC atlas with
penalty and mean start, which follows the whole objective (trained longest; the report: extra long) or the similarity, has a gradient
energy within 25 % of the cohort's. (c) Registration of the
labelled pair through an atlas of the two (A -> atlas -> B; images alone make it) is at most 0.01 mean Dice below direct registration by the
same method. Beside it: two slabs through an atlas of the six others.

A run that was stopped goes on where it stopped when it is called again with the same ``--out``. ``--full``: 1200 steps, 1 mm pair.
"""

from __future__ import annotations

import io
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from common import Experiment  # before the others: it says where the tests and the library are

import truths
from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image, read_labels
from DeepRegistrationLib.method import find
from DeepRegistrationLib.problem import Group, Pair, Subject
from DeepRegistrationLib.result import bridge, warp
from DeepRegistrationLib.runtime import Runtime

PENALTY = {"digits": 3000.0, "slices": 3000.0, "slabs": 40000.0}
"""Weights of the squared mean displacement; the slabs move by smaller shares of their longest edge, the unit of the penalty."""
DIGIT, DIGITS = 3, 60
BASE = {"linear": "none", "centering": 0.0, "outliers": 0.0, "width": 8, "batch": 4}
COHORTS = {"digits": {"resolutions": 1, "batch": 8, "rate": 2e-3}, "slices": {}, "slabs": {"resolutions": 1, "batch": 2}}
STEPS = {"digits": 300, "slices": 200, "slabs": 100}
FULL, LONG = 1200, 800
SLICE_SPACING, SLAB_SPACING = 2.0, 4.0


@dataclass(frozen=True)
class Training:
    """One run: ``values`` of the method for a cohort of ``COHORTS``."""

    cohort: str
    similarity: str
    objective: str
    start: str
    penalty: float
    steps: int

    @property
    def name(self) -> str:
        return f"{self.cohort}-{self.similarity}-{self.objective}-{self.start}-{self.penalty:g}-{self.steps}"

    @property
    def values(self) -> dict:
        return {**BASE, **COHORTS[self.cohort], "similarity": self.similarity, "objective": self.objective, "start": self.start,
                "displacement": self.penalty, "steps": self.steps}


# --------------------------------------------------------------------------------------------------------------- cohorts


def digits() -> Group:
    """Threes, read between their 8 x 8 pixels by cubic splines at 32 x 32."""
    from sklearn.datasets import load_digits

    held, coarse, fine = load_digits(), Grid.from_parts((8, 8), 4.0, [1.5, 1.5]), Grid.from_parts((32, 32))
    images = [Image(torch.as_tensor(a).float()[None, None] / 16, coarse).at(fine, "cubic", None) for a in held.images[held.target == DIGIT][:DIGITS]]
    return Group(tuple(Subject(f"digit{k:02d}", image) for k, image in enumerate(images)))


def folder_of(data: Path, name: str, pattern: str, spacing: float, shape: tuple[int, ...]) -> Group:
    """The images of a case at about ``spacing`` mm; warped phantoms of ``shape`` where it is not there."""
    paths = sorted((data / name).glob(pattern)) if (data / name).is_dir() else []
    if paths:
        return Group(tuple(Subject(path.name.split(".")[0], read_image(path).smoothed_to(spacing)) for path in paths))
    grid = Grid.from_parts(shape, spacing)
    phantom = truths.Phantom(3, grid)
    return Group(tuple(Subject(f"phantom{k}", phantom.image(grid, truths.random_diffeomorphism(k, grid, 0.3, 0.3))) for k in range(8)))


def cohort(name: str, data: Path) -> Group:
    if name == "digits":
        return digits()
    if name == "slices":
        return folder_of(data, "cohort2d-oasis", "*.png", SLICE_SPACING, (64, 64))
    return folder_of(data, "cohort3d-slab-labelled", "subj??.nii.gz", SLAB_SPACING, (40, 12, 40))


# -------------------------------------------------------------------------------------------------------------- trainings


def trained(training: Training, data: Path, out: Path) -> dict:
    """Figures of one training, with the atlas (*S) under 'atlas'; it goes on in ``out`` where it stopped."""
    runtime = Runtime("cpu", 0, 1, work=out / training.name)
    result = find("icon-atlas:network", training.values).run(cohort(training.cohort, data), runtime)
    row = result.history[-1]
    return {"cohort": training.cohort, "similarity term": training.similarity, "atlas follows": training.objective, "start": training.start,
            "penalty": training.penalty, "steps": training.steps, "similarity": row["similarity"], "mean displacement mm": row["mean_displacement"],
            "gradient energy over the cohort's": row["gradient_energy"] / row["cohort_gradient_energy"], "folds percent": 100 * row["folds"],
            "atlas": result.atlas.data[0, 0].numpy()}


def trainings(full: bool) -> list[Training]:
    """Digits and slabs with and without penalty, the sixteen answers on slices, and one of them trained longer."""
    steps = {name: FULL if full else count for name, count in STEPS.items()}
    words = [("digits", "mse", "whole", "mean"), ("digits", "lncc", "whole", "mean"), ("slabs", "mse", "whole", "mean"),
             *product(("slices",), ("mse", "lncc"), ("whole", "similarity"), ("random", "mean"))]
    made = [Training(*each, p, steps[each[0]]) for each in words for p in (0.0, PENALTY[each[0]])]
    return [*made, Training("slices", "lncc", "whole", "mean", PENALTY["slices"], FULL if full else LONG)]


def all_trained(experiment: Experiment) -> list[dict]:
    """The figures of all trainings, two at a time."""
    orders, arguments = trainings(experiment.arguments.full), experiment.arguments
    with ProcessPoolExecutor(max(1, arguments.threads), get_context("spawn")) as pool:
        found = list(pool.map(trained, orders, [arguments.data] * len(orders), [arguments.out / "runs"] * len(orders)))
    experiment.figures["trainings"] = [{key: value for key, value in each.items() if key != "atlas"} for each in found]
    claim(experiment, found)
    return found


def claim(experiment: Experiment, found: list[dict]) -> None:
    """What the penalty does to the mean displacement (``found`` has pairs without and with it), and to the gradient energy of the last one."""
    for without, with_ in zip(found[:-1:2], found[1:-1:2]):
        name = f"{with_['cohort']}, {with_['similarity term']}, {with_['atlas follows']}, {with_['start']}"
        share = with_["mean displacement mm"] / without["mean displacement mm"]
        experiment.figures.setdefault("mean displacement with the penalty over that without", {})[name] = share
        if with_["cohort"] != "slices":
            experiment.at_most(f"{name}: mean displacement with the penalty, as a share of that without", share, 0.1)
    chosen = next(f for f in found if (f["cohort"], f["similarity term"], f["atlas follows"], f["start"], f["penalty"])
                  == ("slices", "lncc", "similarity", "mean", PENALTY["slices"]))
    for what, f in (("whole, trained longest", found[-1]), ("similarity", chosen)):
        energy = abs(f["gradient energy over the cohort's"] - 1)
        experiment.at_most(f"slices, lncc, mean start, penalty, atlas follows {what}: |gradient energy over the cohort's - 1|", energy, 0.25)


# ----------------------------------------------------------------------------------------------------------------- bridge


def kept(experiment: Experiment, name: str) -> Runtime:
    """A runtime whose atlas goes on where it stopped."""
    return replace(experiment.runtime, work=experiment.arguments.out / "runs" / name)


def bridged(experiment: Experiment) -> None:
    """The labelled pair directly and through an atlas of the two."""
    case, runtime = experiment.case, experiment.runtime
    direct = find("instance-optimisation", {"start": "none"}).run(case.pair, runtime)
    group = Group((Subject("fixed", case.fixed), Subject("moving", case.moving)))
    built = find("icon-atlas:aligned", {"factors": (2.0, 1.0, 1.0)}).run(group, kept(experiment, "pair"))
    scores = {"direct": case.scores(direct.transform), "through the atlas": case.scores(built.bridge("fixed", "moving"))}
    experiment.figures["pair"] = scores
    experiment.at_least("labelled pair: Dice through the atlas minus Dice directly", scores["through the atlas"]["dice"] - scores["direct"]["dice"], -0.01)


def held_out_slabs(experiment: Experiment) -> None:
    """Two slabs through an atlas of the six others, and directly; mean Dice of four tissues."""
    folder = experiment.arguments.data / "cohort3d-slab-labelled"
    if not folder.is_dir():
        return
    paths = sorted(folder.glob("subj??.nii.gz"))
    images = {path.name.split(".")[0]: read_image(path) for path in paths}
    labels = {name: read_labels(folder / f"{name}_seg.nii.gz") for name in images}
    one, other, *rest = images
    method, runtime = find("icon-atlas:aligned", {"factors": (2.0, 1.0)}), experiment.runtime
    atlas = method.run(Group(tuple(Subject(name, images[name]) for name in rest)), kept(experiment, "six-slabs")).atlas
    with runtime.active():
        maps = {name: method.carry(atlas, images[name], runtime) for name in (one, other)}
    direct = find("instance-optimisation", {"start": "none"}).run(Pair(images[one], images[other]), runtime).transform
    found = {}
    for name, transform in (("direct", direct), ("through the atlas of six others", bridge(maps[one], maps[other]))):
        warped = warp(labels[other], transform, images[one].grid)
        found[name] = float(np.nanmean(list(metrics.dice_per_label(labels[one], warped, [1, 2, 3, 4]).values())))
    experiment.figures["two slabs, Dice"] = found


# ---------------------------------------------------------------------------------------------------------------- picture


def picture(experiment: Experiment, found: list[dict]) -> bytes:
    """PNG: the atlases of all trainings beside a subject of each cohort."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 14))
    FigureCanvasAgg(figure)
    axes = figure.subplots(5, 6).ravel()
    for axis in axes:
        axis.axis("off")
    data = experiment.arguments.data
    shown = [(f"a subject: {name}", cohort(name, data).subjects[0].image.data[0, 0].numpy()) for name in COHORTS]
    for f in found:
        energy = f["gradient energy over the cohort's"]
        text = f"{f['cohort']} {f['similarity term']}, {f['atlas follows']}, {f['start']}, p {f['penalty']:g}"
        shown.append((f"{text}\nmean u {f['mean displacement mm']:.3f} mm, energy {energy:.2f}", f["atlas"]))
    for axis, (text, values) in zip(axes, shown):
        flat = values if values.ndim == 2 else values[:, values.shape[1] // 2] if values.shape[1] < values.shape[0] else values[values.shape[0] // 2]
        low, high = np.quantile(flat, [0.01, 0.995])
        axis.imshow(flat, cmap="gray", vmin=low, vmax=high)
        axis.set_title(text, fontsize=7)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=75)
    return stream.getvalue()


def main() -> int:
    experiment = Experiment("icon-atlas", __doc__)
    found = all_trained(experiment)
    bridged(experiment)
    held_out_slabs(experiment)
    return experiment.finish(picture(experiment, found))


if __name__ == "__main__":
    sys.exit(main())
