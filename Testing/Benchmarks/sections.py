"""How stiff a map between neighboring stained sections should be: the error on generated pairs with a known displacement.

    python Testing/Benchmarks/sections.py [--pairs 5]

prints the mean error in pixels within the tissue (``truths_sections``) after the affine start and under the preset 'histology' of
instance-optimisation with several smoothings of steps and field, which is what the preset was chosen by. About 20 s of one core a pair.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

TESTING = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTING), str(TESTING.parent / "DeepRegistration")]
from truths_sections import sections  # noqa: E402

from DeepRegistrationLib.method import find  # noqa: E402
from DeepRegistrationLib.problem import Pair  # noqa: E402
from DeepRegistrationLib.runtime import Runtime  # noqa: E402

STIFFNESS = ((1.0, 0.6), (1.7, 0.8), (2.5, 1.5), (3.5, 2.0))
"""(fluid, elastic) in voxels; the third is the preset's."""
SIMILARITIES = ("lncc", "ngf")


def errors(seed: int) -> list[float]:
    """Of the affine start, then of every similarity with every stiffness."""
    fixed, moving, u, tissue = sections(seed)
    points = torch.as_tensor(fixed.grid.points()).reshape(1, -1, 2)
    truth, inside = points + torch.as_tensor(u[::-1].copy()).reshape(2, -1).T, torch.as_tensor(tissue.ravel())
    pair, runtime = Pair(fixed, moving), Runtime("cpu")
    start = find("affine").run(pair, runtime).transform
    maps = [start] + [find("instance-optimisation:histology", {"similarity": kind, "fluid": fluid, "elastic": elastic})
                      .run(Pair(fixed, moving, start), runtime).transform for kind in SIMILARITIES for fluid, elastic in STIFFNESS]
    return [float((each(points) - truth).norm(dim=-1)[0, inside].mean()) for each in maps]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="sections.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args(argv)
    heads = ["pair", "affine"] + [f"{kind} {fluid}, {elastic}" for kind in SIMILARITIES for fluid, elastic in STIFFNESS]
    rows = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    rows += [[str(seed), *(f"{error:.2f}" for error in errors(seed))] for seed in range(1, arguments.pairs + 1)]
    sys.stdout.write("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
