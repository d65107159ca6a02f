"""gradicon: hollow triangles and circles, by networks with inverse consistency (ICON) or its gradient (GradICON), and by coordinate networks.

Two runs of the one training loop differ in the regularizer alone: same network (three U-Nets, each at twice the resolution of the one before), same
seed, so the same first weights and the same pairs in the same order, same rate and number of updates. Each weight is the one of a row of tries
(``WEIGHTS``; every factor is about 3) that leaves the least of the squared difference, of those whose maps fold by less than ``FOLDS_PERCENT`` of the
voxels when its training ends, both on pairs that are drawn for this choice alone. What both are asked for is the share of the squared difference
of other held-out pairs that is left. The time of an update is measured after the trainings, updates of both kinds in turn, so that a busy
moment of the machine meets both.

``--full`` trains every try, and both kinds on smaller and larger images with a network whose coarsest lattice is the same: GradICON's advantage grows
with the images. What keeps ICON's maps from folding is its weight per square pixel, and the same weight holds back motions of more pixels more.
(The authors of both compared them on hollow shapes of 128 pixels, in 60 passes of 16 batches: their notebook on triangles and circles.)

Claims: (a) GradICON gets to the share that ICON has after its last update in at most a fifth of ICON's time; its folds stay below 0.1 %.
(b) Coordinate networks on Fourier features and on hashed lattices bring the squared difference of a pair below 5 % of what it was,
with less than 0.5 % folds.

A run that was stopped goes on where it stopped when it is called again with the same ``--out``.
"""

from __future__ import annotations

import io
import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
from common import Experiment  # before the others: it says where the tests and the library are
from truths_shapes import hollow_pairs

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.method import find
from DeepRegistrationLib.networks.composition import MultiResolution
from DeepRegistrationLib.networks.heads import displacement
from DeepRegistrationLib.terms import MSE, Alignment, GradientInverseConsistency, InverseConsistency
from DeepRegistrationLib.train.loop import Cost, TrainingSettings, train
from DeepRegistrationLib.train.record import rows
from DeepRegistrationLib.train.resolutions import both_ways
from DeepRegistrationLib.transforms import Identity


@dataclass(frozen=True)
class Scale:
    """edge: of the images, pixels; resolutions: of the network; batch: pairs of an update."""

    edge: int
    resolutions: int
    batch: int

    @property
    def grid(self) -> Grid:
        return Grid.from_parts((self.edge, self.edge))

    def network(self) -> MultiResolution:
        return MultiResolution(2, self.resolutions, encoder=(8, 16), decoder=(16, 16), tail=(8,))


SCALE, OTHERS = Scale(64, 3, 8), (Scale(32, 2, 8), Scale(128, 4, 4))
FINE, SAMPLES = Grid.from_parts((64, 64)), 256
HELD = {"choice": (48, 98), "report": (24, 99)}
"""Number and seed of the held-out pairs on which weights are chosen, and of those that are reported."""
SETTINGS = TrainingSettings(steps=1000, rate=2e-3, validate=20, checkpoint=50)
WEIGHTS = {"icon": (0.01, 0.03, 0.1), "gradicon": (0.01, 0.03, 0.1)}
CHOSEN = {"icon": 0.03, "gradicon": 0.01}
FOLDS_PERCENT, COORDINATE_FOLDS_PERCENT, LEFT_PERCENT, SHARE_OF_TIME = 0.1, 0.5, 5.0, 0.2
PAIRS = ((1, "fourier"), (2, "fourier"), (1, "hash"))


def tie(kind: str):
    """The regularizer; the points of GradICON are drawn from one stream."""
    if kind == "icon":
        return InverseConsistency()
    return GradientInverseConsistency(SAMPLES, generator=torch.Generator().manual_seed(0))


def measured(pair, transform) -> dict[str, float]:
    """Squared difference that is left and folds, both in percent, mean over a batch of pairs."""
    alignment = Alignment(pair.fixed, pair.moving, transform)
    left = MSE()(alignment) / MSE()(Alignment(pair.fixed, pair.moving, Identity(2)))
    return {"left_percent": 100 * float(left.mean()), "folds_percent": 100 * float((alignment.determinant <= 0).float().mean())}


def trained(experiment: Experiment, kind: str, weight: float, scale: Scale = SCALE):
    """(network, its validations: the figures of the reported pairs, and with 'choice ' before them those of the others)."""
    held = {name: hollow_pairs(scale.grid, count, torch.Generator().manual_seed(seed)) for name, (count, seed) in HELD.items()}

    def validate(network):
        found = {name: measured(pair, displacement(network(pair.fixed.data, pair.moving.data), scale.grid)) for name, pair in held.items()}
        return {"score": -found["choice"]["left_percent"], **found["report"], **{f"choice {k}": v for k, v in found["choice"].items()}}

    torch.manual_seed(experiment.seed)
    network, folder = scale.network(), experiment.arguments.out / f"{scale.edge}" / f"{kind}-{weight:g}"
    with experiment.runtime.active():
        train(network, both_ways, MSE() + weight * tie(kind), lambda generator: hollow_pairs(scale.grid, scale.batch, generator), SETTINGS, folder,
              experiment.runtime, validate)
    return network.eval(), rows(folder, "validation")


def seconds_an_update(scale: Scale = SCALE, times: int = 25) -> dict[str, float]:
    """Kind -> median seconds of an update without what both have in common, the drawing of pairs and the step of Adam; the kinds in turn."""
    pair = hollow_pairs(scale.grid, scale.batch, torch.Generator().manual_seed(HELD["choice"][1]))
    costs = {kind: Cost(scale.network(), both_ways, MSE() + weight * tie(kind)) for kind, weight in CHOSEN.items()}
    found = {kind: [] for kind in costs}
    for _ in range(times):
        for kind, cost in costs.items():
            began = time.perf_counter()
            cost(pair).backward()
            found[kind].append(time.perf_counter() - began)
    return {kind: median(seconds) for kind, seconds in found.items()}


def networks(experiment: Experiment) -> dict:
    """(a); kind -> (network, validations)."""
    found, figures = compared(experiment, SCALE)
    if experiment.arguments.full:
        tries = [{"regularizer": kind, "weight": w, **trained(experiment, kind, w)[1][-1]} for kind in WEIGHTS for w in WEIGHTS[kind]]
        curve = found["gradicon"][1]
        experiment.figures["every weight"] = [{**t, "gradicon is there after updates": updates_to(t["left_percent"], curve)} for t in tries]
        experiment.figures["other sizes"] = {f"{scale.edge} pixels": compared(experiment, scale)[1] for scale in OTHERS}
    experiment.figures["networks"] = figures
    experiment.at_most("GradICON: share of ICON's time to what ICON reaches", figures["share of icon's time"], SHARE_OF_TIME)
    for kind in CHOSEN:
        experiment.at_most(f"{kind}: folds in percent at the end", figures[kind]["folds_percent"], FOLDS_PERCENT)
    return found


def compared(experiment: Experiment, scale: Scale) -> tuple[dict, dict]:
    """(kind -> (network, validations), figures) of both kinds with the chosen weights."""
    found = {kind: trained(experiment, kind, weight, scale) for kind, weight in CHOSEN.items()}
    with experiment.runtime.active():
        seconds = seconds_an_update(scale)
    figures = {kind: {"weight": CHOSEN[kind], "seconds an update": seconds[kind], **curve[-1],
                      "worst_folds_percent": max(row["folds_percent"] for row in curve)} for kind, (_, curve) in found.items()}
    reached = updates_to(figures["icon"]["left_percent"], found["gradicon"][1])
    figures["gradicon reaches icon's end after updates"] = reached
    figures["share of icon's time"] = reached * seconds["gradicon"] / (SETTINGS.steps * seconds["icon"])
    return found, figures


def updates_to(goal: float, curve: list[dict]) -> float:
    """The update of the first validation with no more than ``goal`` percent left; infinite where there is none."""
    return next((row["step"] for row in curve if row["left_percent"] <= goal), float("inf"))


def coordinates(experiment: Experiment) -> list:
    """(b); [(name, pair, transform)]."""
    found = []
    for seed, encoding in PAIRS:
        pair = hollow_pairs(FINE, 1, torch.Generator().manual_seed(seed))
        method = find("gradicon:aligned", {"encoding": encoding, "similarity": "mse", "weight": 0.1})
        result = method.run(pair, experiment.runtime)
        scores = {**measured(pair, result.transform), "wall_seconds": round(result.provenance["wall_seconds"], 2), **result.scalars}
        name = f"{encoding}, pair {seed}"
        experiment.figures[name] = scores
        experiment.at_most(f"{name}: squared difference left in percent", scores["left_percent"], LEFT_PERCENT)
        experiment.at_most(f"{name}: folds in percent", scores["folds_percent"], COORDINATE_FOLDS_PERCENT)
        found.append((name, pair, result.transform))
    return found


def picture(found: dict, fitted: list) -> bytes:
    """PNG: rows of fixed, moving, warped and the pulled-back grid; below, how much is left and how much folds over the updates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 15))
    FigureCanvasAgg(figure)
    shown = hollow_pairs(SCALE.grid, 3, torch.Generator().manual_seed(25))
    lines = []
    for k in range(2):
        pair = type(shown)(*(type(i)(i.data[k : k + 1], i.grid) for i in (shown.fixed, shown.moving)))
        for kind, (network, _) in found.items():
            with torch.no_grad():
                lines.append((f"{kind}, held-out pair", pair, displacement(network(pair.fixed.data, pair.moving.data), SCALE.grid)))
    lines += fitted
    axes = figure.subplots(len(lines) + 1, 4)
    for line, (name, pair, transform) in zip(axes, lines):
        _row(line, name, pair, transform)
    for place, key in ((axes[-1][0], "left_percent"), (axes[-1][2], "folds_percent")):
        for kind, (_, curve) in found.items():
            place.plot([row["step"] for row in curve], [row[key] for row in curve], label=kind)
        place.set_xlabel("update")
        place.set_title(key.replace("_", " in "), fontsize=9)
        place.legend(fontsize=7)
    for place in (axes[-1][1], axes[-1][3]):
        place.axis("off")
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=70)
    return stream.getvalue()


def _row(axes, name, pair, transform):
    alignment = Alignment(pair.fixed, pair.moving, transform)
    for place, image, title in zip(axes, (pair.fixed.data, pair.moving.data, alignment.warped), ("fixed", "moving", name)):
        place.imshow(image[0, 0].detach(), cmap="gray", vmin=0, vmax=1)
        place.set_title(title, fontsize=8)
    moved = alignment.moving_index[0].detach()
    axes[3].imshow(pair.fixed.data[0, 0], cmap="gray", vmin=0, vmax=2)
    for component, color in ((0, "#ffb000"), (1, "#35c9ff")):
        axes[3].contour(moved[..., component], levels=range(0, moved.shape[0], moved.shape[0] // 16), colors=color, linewidths=0.6)
    axes[3].set_title("grid of the moving image", fontsize=8)
    for place in axes:
        place.axis("off")


def main() -> int:
    experiment = Experiment("gradicon", __doc__, pair=False)
    found = networks(experiment)
    return experiment.finish(picture(found, coordinates(experiment)))


if __name__ == "__main__":
    sys.exit(main())
