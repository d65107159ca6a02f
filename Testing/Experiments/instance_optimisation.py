"""instance-optimisation: per-pair refinement by any parameterisation, watched and cancelled at every iteration.

Claims: (a) greedy, displacement, velocity and bspline each raise similarity and Dice, with less than 0.05 % folds; (b) every iteration
shows its transform, and a run that is cancelled ends before its next iteration with a better map than none; (c) the default preset
reaches the Dice of diffeomorphic demons (SimpleITK) minus 0.005 in no more than its wall time, alternately in the same run, from process
start to written transform. The bar speaks of real pairs: on the generated phantom the figures of both are recorded, nothing is claimed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from common import Experiment  # before the others: it says where the library is

from DeepRegistrationLib.errors import Cancelled
from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.evaluate.report import overlay_picture
from DeepRegistrationLib.method import find
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import Monitor, Runtime
from DeepRegistrationLib.transforms import Identity

MODELS = ("greedy", "displacement", "velocity", "bspline")
DICE_MARGIN, FOLDS_PERCENT = 0.005, 0.05


class Watcher(Monitor):
    """Counts previews, keeps every tenth, cancels at the preview number ``stop`` and counts the iterations that begin after that."""

    wants_preview = True

    def __init__(self, stop: int = 0):
        super().__init__()
        self.stop, self.shown, self.kept, self.begun_after = stop, 0, [], 0

    def preview(self, transform):
        super().preview(transform)
        if self.shown % 10 == 0:
            self.kept.append(transform)
        self.shown += 1
        if self.shown == self.stop:
            self.cancel()

    def progress(self, share, text, step=0, steps=0):
        self.begun_after += self.cancelled


def settings(model: str, full: bool) -> dict:
    """The pair is aligned, so there is no linear start; gradient models take their first two levels unless all is asked for."""
    short = {} if full or model == "greedy" else {"iterations": (40, 30, 0, 0)}
    return {"start": "none", "model": model, **short}


def parameterisations(experiment: Experiment):
    """(a); returns the transform of the default model."""
    case, found = experiment.case, {}
    before = case.scores(Identity(3))
    experiment.figures["before"] = before
    for model in MODELS:
        result = find("instance-optimisation", settings(model, experiment.arguments.full)).run(case.pair, experiment.runtime)
        after = case.scores(result.transform)
        experiment.figures[model] = {**after, "wall_seconds": round(result.provenance["wall_seconds"], 2)}
        experiment.at_least(f"{model}: gain of correlation", after["ncc"] - before["ncc"], 0.01)
        experiment.at_least(f"{model}: gain of Dice", after["dice"] - before["dice"], 0.01)
        experiment.at_most(f"{model}: folds in percent", after["folds_percent"], FOLDS_PERCENT)
        found[model] = result.transform
    return found["greedy"]


def watching(experiment: Experiment) -> None:
    """(b)."""
    case = experiment.case
    watcher = Watcher()
    result = find("instance-optimisation", {"start": "none"}).run(case.pair, Runtime("cpu", 0, experiment.arguments.threads, monitor=watcher))
    experiment.at_least("live view: previews for each iteration", watcher.shown / len(result.history), 1.0)
    curve = [metrics.correlation(case.fixed.data, warp(case.moving, t, case.fixed.grid).data) for t in watcher.kept]
    experiment.figures["correlation of every tenth preview"] = curve
    experiment.at_least("live view: correlation of the last kept preview over the first", curve[-1] - curve[0], 0.0)
    for model in MODELS:
        watcher = Watcher(stop=8)
        try:
            find("instance-optimisation", settings(model, False)).run(case.pair, Runtime("cpu", 0, experiment.arguments.threads, monitor=watcher))
            begun, gain = 1e9, -1.0
        except Cancelled as stopped:
            begun, gain = watcher.begun_after, case.scores(stopped.best_so_far)["ncc"] - experiment.figures["before"]["ncc"]
        experiment.at_most(f"{model}, cancelled: iterations begun after the request", begun, 0)
        experiment.at_least(f"{model}, cancelled: gain of correlation of what is handed back", gain, 0.0)


def against_demons(experiment: Experiment) -> None:
    """(c)."""
    case, folder, rows = experiment.case, experiment.arguments.out, {"ours": [], "demons": []}
    commands = {"ours": experiment.register_command("instance-optimisation", folder / "ours"),
                "demons": experiment.adapter_command("demons", Path(sys.executable), folder / "demons")}
    for order in (("ours", "demons"), ("demons", "ours"), ("ours", "demons")):
        for name in order:
            rows[name].append(case.measured(commands[name], folder / name, experiment.arguments.threads))
    experiment.figures["own process"] = rows
    if not case.real:
        return
    dice, wall = ({name: median(r[key] for r in runs) for name, runs in rows.items()} for key in ("dice", "wall_seconds"))
    experiment.at_least("default preset: Dice (bar: demons - 0.005)", dice["ours"], dice["demons"] - DICE_MARGIN)
    experiment.at_most("default preset: wall seconds (bar: demons)", wall["ours"], wall["demons"])


def main() -> int:
    experiment = Experiment("instance-optimisation", __doc__)
    transform = parameterisations(experiment)
    watching(experiment)
    against_demons(experiment)
    case = experiment.case
    before, after = (warp(case.moving, t, case.fixed.grid) for t in (Identity(3), transform))
    return experiment.finish(overlay_picture(case.fixed, before, after))


if __name__ == "__main__":
    sys.exit(main())
