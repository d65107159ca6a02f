"""convex-discrete: exhaustive search with convex regularisation, then refinement; for displacements that descent cannot follow.

Claims: (a) a known deformation of a phantom, a shift of 14 mm and a diffeomorphism on top, is recovered to a mean error of at most one
voxel (2 mm) inside the body from the headers alone, with less than 0.05 % folds; the default method, given the same task without a linear
start, is recorded beside it. (b) On the pair Dice rises, with less than 0.05 % folds. (c) Where the peer's environment is installed
(``run.py bench --install --peer convexadam``) and the pair is real: the Dice of convexAdam, within 0.005, in no more than its wall time,
alternately in the same run, from process start to written transform.
"""

from __future__ import annotations

import sys
from statistics import median

import torch
from common import Experiment  # before the others: it says where the tests, the benchmark and the library are
from peers import python_of

import truths

from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.evaluate.report import overlay_picture
from DeepRegistrationLib.method import find
from DeepRegistrationLib.ops.sample import world_points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.transforms import Affine, Identity

VOXEL, SHIFT, FOLDS_PERCENT, DICE_MARGIN = 2.0, (9.0, -8.0, 7.0), 0.05, 0.005


def large_deformation(seed: int):
    """(request, true map fixed -> moving mm, body mask (1, 1, *S)): a phantom of 2 mm and its exact warp."""
    grid = truths.random_grid(seed, 3, (56, 60, 64), spacing=(VOXEL,) * 3, oblique=False, reach=100.0)
    truth = Affine.translation(SHIFT) @ truths.random_diffeomorphism(seed, grid, 0.4, 0.4)
    phantom = truths.Phantom(seed, grid)
    return Pair(phantom.image(grid, truth), phantom.image(grid.pad(10))), truth, phantom.label_map(grid, truth).data > 0


def error(transform, truth, body, grid) -> float:
    """Mean distance in mm between two maps inside the body."""
    points = world_points(grid, torch.float64)[body[:, 0]][None]
    return float(torch.linalg.vector_norm(transform(points) - truth(points), dim=-1).mean())


def recovery(experiment: Experiment) -> None:
    """(a)."""
    problem, truth, body = large_deformation(11)
    grid = problem.fixed.grid
    figures = {"before": error(Identity(3), truth, body, grid)}
    for method, values in (("convex-discrete:aligned", {}), ("instance-optimisation", {"start": "none"})):
        result = find(method, values).run(problem, experiment.runtime)
        figures[method] = error(result.transform, truth, body, grid)
        figures[f"{method}, seconds"] = round(result.provenance["wall_seconds"], 2)
        if method.startswith("convex"):
            folds = 100 * metrics.jacobian_scores(result.transform, grid, body)["folds"]
    experiment.figures["large deformation, mean error in mm"] = figures
    experiment.at_most("large deformation: mean error in mm (bar: one voxel)", figures["convex-discrete:aligned"], VOXEL)
    experiment.at_most("large deformation: folds in percent", folds, FOLDS_PERCENT)


def on_the_pair(experiment: Experiment):
    """(b); returns the transform."""
    case = experiment.case
    result = find("convex-discrete:aligned").run(case.pair, experiment.runtime)
    before, after = case.scores(Identity(3)), case.scores(result.transform)
    experiment.figures["pair"] = {"before": before, "after": after, "wall_seconds": round(result.provenance["wall_seconds"], 2)}
    experiment.at_least("pair: gain of Dice", after["dice"] - before["dice"], 0.01)
    experiment.at_most("pair: folds in percent", after["folds_percent"], FOLDS_PERCENT)
    return result.transform


def against_convexadam(experiment: Experiment) -> None:
    """(c)."""
    case, folder, threads = experiment.case, experiment.arguments.out, experiment.arguments.threads
    python = python_of("torch", experiment.arguments.environments)
    if not (python.exists() and case.real):
        experiment.figures["convexAdam"] = "not compared: " + ("the phantom is not its kind of image" if python.exists() else "not installed")
        return
    commands = {"ours": experiment.register_command("convex-discrete:aligned", folder / "ours"),
                "convexadam": experiment.adapter_command("convexadam", python, folder / "convexadam")}
    rows = {name: [] for name in commands}
    for order in (("ours", "convexadam"), ("convexadam", "ours")):
        for name in order:
            rows[name].append(case.measured(commands[name], folder / name, threads))
    experiment.figures["own process"] = rows
    dice, wall = ({name: median(r[key] for r in runs) for name, runs in rows.items()} for key in ("dice", "wall_seconds"))
    experiment.at_least("pair: Dice (bar: convexAdam - 0.005)", dice["ours"], dice["convexadam"] - DICE_MARGIN)
    experiment.at_most("pair: wall seconds (bar: convexAdam)", wall["ours"], wall["convexadam"])


def main() -> int:
    experiment = Experiment("convex-discrete", __doc__)
    recovery(experiment)
    transform = on_the_pair(experiment)
    against_convexadam(experiment)
    case = experiment.case
    before, after = (warp(case.moving, t, case.fixed.grid) for t in (Identity(3), transform))
    return experiment.finish(overlay_picture(case.fixed, before, after))


if __name__ == "__main__":
    sys.exit(main())
