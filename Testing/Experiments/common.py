"""What the experiments share: the pair and its scores, runs in a process of their own, claims, result.json and the picture.

The pair is brain3d-pair-2mm of the data folder (``shared/data`` beside the checkout; ``--full``: brain3d-pair-labelled, 1 mm). Without it a
generated phantom pair with labels takes its place, so that a fresh clone has the experiment too; result.json names which it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

TESTING = Path(__file__).resolve().parents[1]
LIBRARY = TESTING.parent / "DeepRegistration"
sys.path[:0] = [str(TESTING), str(TESTING / "Benchmarks"), str(LIBRARY)]
import truths  # noqa: E402
from bench import environment, timed  # noqa: E402
from cases import DATA  # noqa: E402
from peers import ENVIRONMENTS  # noqa: E402
from score import score  # noqa: E402

from DeepRegistrationLib.evaluate import metrics  # noqa: E402
from DeepRegistrationLib.image import Image, Labels  # noqa: E402
from DeepRegistrationLib.io import read_image, read_labels, write_image, write_labels  # noqa: E402
from DeepRegistrationLib.problem import Pair  # noqa: E402
from DeepRegistrationLib.result import warp  # noqa: E402
from DeepRegistrationLib.runtime import Runtime  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A pair with label maps for scoring; ``folder`` holds it as files for other tools; ``real`` False for the phantom."""

    name: str
    folder: Path
    fixed: Image
    moving: Image
    fixed_labels: Labels
    moving_labels: Labels
    values: list[int]
    real: bool

    def scores(self, transform) -> dict[str, float]:
        """Mean Dice, correlation and, over the foreground, share of folds in percent and SDlogJ of a map fixed -> moving mm."""
        warped = warp(self.moving, transform, self.fixed.grid)
        labels = warp(self.moving_labels, transform, self.fixed.grid)
        inside = self.fixed_labels.data > 0
        dice = np.nanmean(list(metrics.dice_per_label(self.fixed_labels, labels, self.values).values()))
        regular = metrics.jacobian_scores(transform, self.fixed.grid, inside)
        return {"dice": float(dice), "ncc": metrics.correlation(self.fixed.data, warped.data), "folds_percent": 100 * regular["folds"],
                "sdlogj": regular["sdlogj"]}

    @property
    def pair(self) -> Pair:
        return Pair(self.fixed, self.moving)

    def measured(self, command, out: Path, threads: int) -> dict:
        """``command`` as a process of its own: its wall seconds, and the scores of the transform that it left in ``out``."""
        out.mkdir(parents=True, exist_ok=True)
        status, _, wall = timed(command, environment(threads, True), out / "log.txt", 3600)
        if status:
            raise SystemExit(f"{command[1]} ended with status {status}; {out / 'log.txt'} says why")
        return {"wall_seconds": round(wall, 2), **{k: v for k, v in score(self.folder, out).items() if k in ("dice", "ncc", "folds_percent", "sdlogj")}}


def load(data: Path, out: Path, full: bool) -> Case:
    """The real pair of ``data``, or the phantom pair; its files and the manifest for ``score`` are left in ``out``/pair."""
    name = "brain3d-pair-labelled" if full else "brain3d-pair-2mm"
    if (data / name).is_dir():
        images = [read_image(data / name / f"{side}.nii.gz") for side in ("fixed", "moving")]
        labels = [read_labels(data / name / f"{side}_seg.nii.gz") for side in ("fixed", "moving")]
        values = [int(v) for v in json.loads((data / "brain3d-pair-labelled" / "structures30.json").read_text("utf-8"))]
    else:
        made = truths.known_pair(5, 3, (56, 60, 64))
        name, images, labels = "phantom", [made.fixed, made.moving], [made.fixed_labels, made.moving_labels]
        values = [v for v in labels[0].values() if v > 0]
        sys.stderr.write(f"no real data: {data} has no pair; the generated phantom takes its place\n")
    folder = out / "pair"
    folder.mkdir(parents=True, exist_ok=True)
    for side, image, map_ in zip(("fixed", "moving"), images, labels):
        write_image(image, folder / f"{side}.nii")
        write_labels(map_, folder / f"{side}_labels.nii.gz")
    write_labels(Labels((labels[0].data > 0).to(torch.int32), labels[0].grid), folder / "mask.nii.gz")
    manifest = {"fixed": "fixed.nii", "moving": "moving.nii", "mask": "mask.nii.gz", "values": values,
                "labels": ["fixed_labels.nii.gz", "moving_labels.nii.gz"]}
    (folder / "case.json").write_text(json.dumps(manifest), "utf-8")
    return Case(name, folder, *images, *labels, values, name != "phantom")


class Experiment:
    """Command line, claims and the written result of one experiment; one that makes its own images does without the ``pair``."""

    def __init__(self, name: str, description: str, pair: bool = True):
        parser = argparse.ArgumentParser(prog=f"experiment {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--out", type=Path, default=Path("experiment-out") / name, metavar="DIR")
        parser.add_argument("--full", action="store_true", help="the pair at 1 mm and full numbers of steps; takes longer")
        parser.add_argument("--threads", type=int, default=2, metavar="N")
        parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="folder of the real cases")
        parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="DIR", help="where the peers of the benchmark are installed")
        self.arguments = parser.parse_args()
        self.name, self.began = name, time.perf_counter()
        self.claims, self.figures, self.seed = [], {}, 0
        self.runtime = Runtime("cpu", self.seed, self.arguments.threads)
        self.arguments.out.mkdir(parents=True, exist_ok=True)
        self.case = load(self.arguments.data, self.arguments.out, self.arguments.full) if pair else None

    def at_least(self, what: str, value: float, bar: float) -> None:
        self._claim(what, value, bar, value >= bar)

    def at_most(self, what: str, value: float, bar: float) -> None:
        self._claim(what, value, bar, value <= bar)

    def _claim(self, what, value, bar, holds) -> None:
        self.claims.append({"name": what, "value": value, "bar": bar, "holds": bool(holds)})
        sys.stdout.write(f"{'holds' if holds else 'FAILS'}  {what}: {value:.4g} (bar {bar:.4g})\n")
        sys.stdout.flush()

    def register_command(self, method: str, out: Path) -> list[str]:
        """Our command line on the pair, without a linear stage (the pair is aligned), writing the transform alone."""
        return [sys.executable, "-m", "DeepRegistrationLib", "register", "--fixed", str(self.case.folder / "fixed.nii"), "--moving",
                str(self.case.folder / "moving.nii"), "--method", method, "--init", "header", "--device", "cpu", "--threads",
                str(self.arguments.threads), "--write", "transform", "--quiet", "--out", str(out)]

    def adapter_command(self, adapter: str, python: Path, out: Path) -> list[str]:
        """A peer's adapter of the benchmark on the pair, under the same conditions."""
        return [str(python), str(TESTING / "Benchmarks" / "adapters" / f"run_{adapter}.py"), "--fixed", str(self.case.folder / "fixed.nii"), "--moving",
                str(self.case.folder / "moving.nii"), "--out", str(out), "--stage", "none", "--contrast", "same", "--threads", str(self.arguments.threads)]

    def finish(self, picture: bytes) -> int:
        """Write picture.png and result.json; the exit status: 1 where a claim fails."""
        from DeepRegistrationLib import __version__

        (self.arguments.out / "picture.png").write_bytes(picture)
        record = {"experiment": self.name, "pair": self.case.name if self.case else "generated", "full": self.arguments.full,
                  "claims": self.claims, "figures": self.figures,
                  "seed": self.seed, "threads": self.arguments.threads, "wall_seconds": round(time.perf_counter() - self.began, 1),
                  "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
                  "versions": {"DeepRegistrationLib": __version__, "torch": torch.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}}
        (self.arguments.out / "result.json").write_text(json.dumps(record, indent=1), "utf-8")
        sys.stdout.write(f"{self.arguments.out / 'result.json'}: {sum(c['holds'] for c in self.claims)} of {len(self.claims)} claims hold\n")
        return 0 if all(c["holds"] for c in self.claims) else 1
