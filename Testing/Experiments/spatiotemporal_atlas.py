"""spatiotemporal-atlas: an atlas over age of growing shapes whose mean at every age is known.

Cohort (``truths_growth``): 3D textured bodies of 32^3 voxels of 2 mm that grow by a quarter to two thirds along their axes from 8 to 12 weeks and twist;
ten subjects of each of five ages, five pairs of twins with opposite deformations, noise; four more of each age are held out. Runs of the method:

* one iteration for each groupwise weight 0, 1, 10, 100 (the table of the text), on 24^3 voxels: folds, groupwise loss, similarity loss; on held-out
  subjects too, where the mean is over the four of an age. By the network alone, as in the text; with the weight 1 also with three times the steps.
* the method to the end with its usual weight, and with the generator network, both with the refinement of every subject's map.

Claims: (a) folds below 1 % in all runs, also on held-out subjects. (b) The groupwise loss falls as its weight goes 0, 1, 10, 100. (c) At every age the root
mean square difference of the atlas from the true mean shape (intensities as the method scales them) is below that of the voxelwise median. Beside
these: the same for the generator, overlap of the consensus of the labels with the true body against that of the voxelwise majority, volume and
length over age against the truth, both also with the true maps, and how far the maps that were found are from those.

A run that was stopped goes on where it stopped when it is called again with the same ``--out``. ``--full``: 32^3 and 40^3 voxels, twice the steps.
"""

from __future__ import annotations

import io
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from common import Experiment  # before the others: it says where the tests and the library are

from truths_growth import Growth
from DeepRegistrationLib.engines import growth as measured
from DeepRegistrationLib.engines.ages import Ages, medians
from DeepRegistrationLib.engines.channels import limits_of, normalised
from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import Runtime, Silent

AGES, EACH, HELD_OUT = (8.0, 9.0, 10.0, 11.0, 12.0), 10, 4
WEIGHTS = (0.0, 1.0, 10.0, 100.0)
STRENGTH, NOISE = 0.4, 0.02
BASE = {"linear": "none", "width": 8, "rate": 5e-3, "batch": 8, "window": 6.0, "steps": 60}
RUNS = {**{f"weight {w:g}": {"group": w, "iterations": 1, "steps": 80, "refinement": (0, 0, 0)} for w in WEIGHTS},
        "network alone": {"iterations": 1, "steps": 240, "refinement": (0, 0, 0)}, "to the end": {"iterations": 3, "change": 0.0},
        "generator": {"model": "generator", "smoothness": 0.1, "steps": 120}}
SMALL = tuple(name for name in RUNS if name.startswith(("weight", "network")))
"""Runs on fewer voxels."""
FOLDS = 1.0


def cohort(full: bool, small: bool = False):
    """(growth, group in the cohort, group held out, true maps of the first)."""
    side = (32 if full else 24) if small else (40 if full else 32)
    growth = Growth(Grid.from_parts((side,) * 3, 64 / side))
    (group, maps), (held_out, _) = (growth.cohort(AGES, each, seed, STRENGTH, labels=True, noise=NOISE) for each, seed in ((EACH, 0), (HELD_OUT, 500)))
    return growth, group, held_out, maps


def run(name: str, full: bool, out: Path) -> dict:
    """Figures of one run of the method, with 'atlases' (K, *S) and 'growth'; it goes on in ``out`` where it stopped."""
    growth, group, held_out, maps = cohort(full, name in SMALL)
    values = {**BASE, **RUNS[name]}
    values["steps"] *= 2 if full else 1
    method, runtime = find("spatiotemporal-atlas", values), Runtime("cpu", 0, 1, work=out / name.replace(" ", "-"))
    result = method.run(group, runtime)
    last = result.history[-1]
    figures = {"folds percent": 100 * last["folds"], "groupwise loss": last["group_loss"], "similarity loss": last["similarity_loss"],
               "similarity": last["similarity"], "iterations": len(result.history), "template change": last["template_change"],
               **unseen(method, result, held_out, runtime), **against_true_maps(result, growth, group, maps)}
    return {"name": name, "figures": figures, "atlases": result.atlases, "growth": result.growth, "labels": result.labels,
            "mean displacement mm": {row["age"]: row["mean_displacement"] for row in result.growth}}


def unseen(method, result, held_out, runtime) -> dict:
    """Folds, groupwise loss (voxel^2) and similarity on subjects that the network was not trained on."""
    folds, losses, alike = [], [], []
    with runtime.active():
        for age, atlas in zip(result.ages, result.atlases):
            found = []
            for subject in (s for s in held_out.subjects if s.covariate == age):
                transform = method.carry(atlas, subject.image, runtime, result.files["network.safetensors"])
                found.append(transform.field(atlas.grid) / float(atlas.grid.spacing[0]))
                folds.append(100 * metrics.jacobian_scores(transform, atlas.grid)["folds"])
                alike.append(metrics.correlation(atlas.data, warp(normalised(subject.image), transform, atlas.grid).data))
            losses.append(float(torch.cat(found).mean(0).square().mean()))
    return {"held out: folds percent": float(np.mean(folds)), "held out: groupwise loss": float(np.mean(losses)), "held out: similarity": float(np.mean(alike))}


def against_true_maps(result, growth: Growth, group, maps) -> dict:
    """Root mean squares in the body, mm: how far the true maps move, and how far those that were found are from them."""
    moved, apart = [], []
    for subject, true in zip(group.subjects, maps):
        body = growth.inside(subject.covariate).data[0] > 0
        wanted, found = (each.field(growth.grid)[0][:, body[0]] for each in (true, result.transform_of(subject.name)))
        moved.append(float(wanted.square().sum(0).mean().sqrt()))
        apart.append(float((found - wanted).square().sum(0).mean().sqrt()))
    return {"true maps move mm": float(np.mean(moved)), "maps are off by mm": float(np.mean(apart))}


# ------------------------------------------------------------------------------------------------------------------ truth


def truth_of(growth: Growth, group) -> list[Image]:
    """The true mean shapes, scaled as the subjects of their age are on average."""
    limits = {s.name: limits_of(s.image) for s in group.subjects}
    return [normalised(growth.mean(age), tuple(np.mean([limits[s.name] for s in group.subjects if s.covariate == age], 0))) for age in AGES]


def medians_of(group) -> list[Image]:
    ages = Ages.of([s.covariate for s in group.subjects])
    grid = group.subjects[0].image.grid
    return [Image(one[None], grid) for one in medians([normalised(s.image).data for s in group.subjects], ages.basis(ages.known), Silent())]


def majorities(group) -> list[torch.Tensor]:
    """What at least half of the bodies of an age cover, where they lie."""
    return [torch.stack([s.labels.data for s in group.subjects if s.covariate == age]).float().mean(0) >= 0.5 for age in AGES]


def by_true_maps(growth: Growth, group, maps) -> list[torch.Tensor]:
    """(1, 1, *S) of every age: the share of the bodies that cover a voxel where the true maps put them."""
    seen = {age: [] for age in AGES}
    for subject, true in zip(group.subjects, maps):
        seen[subject.covariate].append(warp(subject.labels, true, growth.grid).data > 0)
    return [torch.stack(each).float().mean(0) for each in seen.values()]


def difference(image, truth) -> float:
    return float((image.data - truth.data).square().mean().sqrt())


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def compare(experiment: Experiment, found: dict, growth: Growth, group, maps) -> tuple[list[Image], list[Image]]:
    """The claims and the figures against the truth; (truth, medians)."""
    truth, median, counted, mapped = truth_of(growth, group), medians_of(group), majorities(group), by_true_maps(growth, group, maps)
    table, voxel = [], float(np.prod(growth.grid.spacing))
    for k, age in enumerate(AGES):
        body = growth.inside(age).data > 0
        row = {"age": age, "median": difference(median[k], truth[k]), "overlap of the majority": overlap(counted[k], body),
               "volume of the majority": float(counted[k].sum()) * voxel, "overlap with the true maps": overlap(mapped[k] >= 0.5, body),
               "volume with the true maps": float(mapped[k].sum()) * voxel, "true volume": float(body.sum()) * voxel,
               "true length": measured.length(body, growth.grid)}
        for name in ("to the end", "generator"):
            one = found[name]
            row |= {name: difference(one["atlases"][k], truth[k]), f"{name}: overlap": overlap(list(one["labels"].values())[k].data > 0, body),
                    f"{name}: volume": one["growth"][k]["volume_1"], f"{name}: length": one["growth"][k]["length_1"]}
        table.append(row)
        experiment.at_most(f"age {age:g}: error of the atlas to the true mean shape over that of the voxelwise median", row["to the end"] / row["median"], 1.0)
    experiment.figures["against the truth"] = table
    return truth, median


def claim(experiment: Experiment, found: dict) -> None:
    for name, one in found.items():
        experiment.figures[name] = one["figures"] | {"mean displacement mm": one["mean displacement mm"]}
        worst = max(one["figures"]["folds percent"], one["figures"]["held out: folds percent"])
        experiment.at_most(f"{name}: folds, percent", worst, FOLDS)
    losses = [found[f"weight {w:g}"]["figures"]["groupwise loss"] for w in WEIGHTS]
    for before, after, weight, other in zip(losses, losses[1:], WEIGHTS, WEIGHTS[1:]):
        experiment.at_most(f"groupwise loss with the weight {other:g} over that with {weight:g}", after / before, 1.0)


# ---------------------------------------------------------------------------------------------------------------- picture


def picture(truth, median, found: dict, table: list[dict]) -> bytes:
    """PNG: middle slices of truth, median, atlas and generator over age, and the curves of volume and length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 11))
    FigureCanvasAgg(figure)
    rows = {"true mean shape": truth, "voxelwise median": median, "atlas": found["to the end"]["atlases"], "generator": found["generator"]["atlases"]}
    for r, (name, images) in enumerate(rows.items()):
        for k, (age, image) in enumerate(zip(AGES, images)):
            axes = figure.add_axes((0.03 + 0.19 * k, 0.79 - 0.185 * r, 0.18, 0.165))
            axes.imshow(image.data[0, 0, image.grid.shape[0] // 2], cmap="gray", vmin=0, vmax=1)
            axes.axis("off")
            key = {"voxelwise median": "median", "atlas": "to the end"}.get(name, name)
            error = f", rms {table[k][key]:.3f}" if key in table[k] else ""
            axes.set_title(f"{name}, {age:g} weeks{error}", fontsize=7)
    for k, (what, unit) in enumerate((("volume", "mm^3"), ("length", "mm"))):
        axes = figure.add_axes((0.09 + 0.5 * k, 0.05, 0.38, 0.15))
        axes.plot(AGES, [row[f"true {what}"] for row in table], "k-", label="truth")
        axes.plot(AGES, [row[f"to the end: {what}"] for row in table], "o", label="atlas")
        axes.plot(AGES, [row[f"generator: {what}"] for row in table], "x", label="generator")
        axes.set_xlabel("weeks")
        axes.set_ylabel(f"{what} of the body, {unit}")
        axes.legend(fontsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    return stream.getvalue()


def main() -> int:
    experiment = Experiment("spatiotemporal-atlas", __doc__, pair=False)
    full, threads = experiment.arguments.full, max(1, experiment.arguments.threads)
    with ProcessPoolExecutor(threads, get_context("spawn")) as pool:
        found = {one["name"]: one for one in pool.map(run, RUNS, [full] * len(RUNS), [experiment.arguments.out / "runs"] * len(RUNS))}
    growth, group, _, maps = cohort(full)
    claim(experiment, found)
    truth, median = compare(experiment, found, growth, group, maps)
    return experiment.finish(picture(truth, median, found, experiment.figures["against the truth"]))


if __name__ == "__main__":
    sys.exit(main())
