"""The cost of training: images per second of every recipe, and the share of the time in which the network waits for its pairs.

``python run.py bench --training`` trains each recipe for some steps from nothing (its weights are thrown away) and prints a table. The figures
are those of ``train.running.cost_of``: two images a pair, the median step, the first two steps left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "DeepRegistration")]
from cases import DATA  # noqa: E402
from table import machine  # noqa: E402

from DeepRegistrationLib.runtime import Runtime  # noqa: E402
from DeepRegistrationLib.train import loop  # noqa: E402
from DeepRegistrationLib.train.cohort import read_cohort  # noqa: E402
from DeepRegistrationLib.train.data import open_data  # noqa: E402
from DeepRegistrationLib.train.recipe import Request, find  # noqa: E402
from DeepRegistrationLib.train.running import cost_of  # noqa: E402

RUNS = (("general", 2, None), ("general", 3, None), ("unet", 2, "cohort2d-oasis"), ("unet", 3, "cohort3d-slab-labelled"))
"""Recipe, dimension, case of shared/data."""


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="bench --training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="*", metavar="RECIPE[:DIM]", help="of these only, for example unet:2")
    arguments = parser.parse_args(argv)
    rows = []
    for name, dim, case in RUNS:
        if case is not None and not (arguments.data / case).is_dir():
            sys.stderr.write(f"{name} on {case}: skipped, {arguments.data / case} is not there\n")
        elif not arguments.only or name in arguments.only or f"{name}:{dim}" in arguments.only:
            rows.append(measured(name, dim, case, arguments))
            sys.stderr.write(json.dumps(rows[-1]) + "\n")
    gpu = f" ({torch.cuda.get_device_name(arguments.device)})" if arguments.device.startswith("cuda") else ""
    sys.stdout.write(table(rows) + f"\n{json.dumps(machine())}, {arguments.threads} threads, device {arguments.device}{gpu}, {arguments.steps} steps each\n")
    return 0


def measured(name: str, dim: int, case: str | None, arguments) -> dict:
    """One row: the recipe, what it sees, and what a step costs."""
    recipe = find(name)
    data = None if case is None else open_data(read_cohort(arguments.data / case), 0, None, None, recipe.multiple)
    torch.manual_seed(0)
    plan = recipe.plan(Request(dim, 0, data, arguments.steps))
    settings = replace(plan.settings, checkpoint=10**9, validate=10**9)
    runtime = Runtime(arguments.device, threads=arguments.threads)
    shape = plan.draw(torch.Generator().manual_seed(1)).fixed.grid.size
    with tempfile.TemporaryDirectory() as folder, runtime.active():
        rows = loop.train(plan.network, plan.view, plan.objective, plan.draw, settings, Path(folder), runtime)
    return {"recipe": name, "pairs from": case or "synthetic", "voxels": " x ".join(map(str, shape)), "pairs a step": settings.pairs,
            "step s": statistics.median(row["seconds"] for row in rows[2:] or rows), **cost_of(rows, settings.pairs)}


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| recipe | pairs from | voxels | pairs a step | step s | images/s | waiting for pairs % |", "|---|---|---|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(f"| {row['recipe']} | {row['pairs from']} | {row['voxels']} | {row['pairs a step']} | {row['step s']:.2f} | "
                     f"{row['images_per_second']:.2f} | {100 * row['drawing']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
