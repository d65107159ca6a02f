"""What the tests of training share: a small network, pairs of blobs, and a run in one of several processes (``python trainings.py FOLDER STEPS``)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.networks.blocks import Convolution, chain, silent
from DeepRegistrationLib.networks.heads import displacement
from DeepRegistrationLib.ops.sample import index_points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Monitor, Runtime
from DeepRegistrationLib.terms import MSE, Diffusion
from DeepRegistrationLib.train.loop import TrainingSettings, scored, train

OBJECTIVE = 1.0 * MSE() + 0.01 * Diffusion()


@dataclass(frozen=True, eq=False)
class Said:
    """A network's answer that is no tensor."""

    voxels: torch.Tensor
    factor: int = 1


class Small(nn.Module):
    """Four convolutions; its answer is a dataclass in a list."""

    def __init__(self, dim: int = 2):
        super().__init__()
        self.body = nn.Sequential(*chain(dim, (2, 8, 8, 8)), silent(Convolution(dim, 8, dim)))

    def forward(self, fixed, moving):
        return [Said(self.body(torch.cat([fixed, moving], 1)))]


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def view(network, pair):
    return [(1.0, scored(pair, displacement(said.voxels, pair.fixed.grid))) for said in network(pair.fixed.data, pair.moving.data)]


def blobs(generator) -> Pair:
    """Two discs near the middle; 16 x 16 voxels."""
    grid = Grid.from_parts((16, 16))
    middles = 6.5 + 3 * torch.rand(2, 2, generator=generator)
    distances = [torch.linalg.vector_norm(index_points(grid) - middle, dim=-1)[None] for middle in middles]
    images = [Image((4.5 - d).sigmoid() + 0.01 * torch.rand(d.shape, generator=generator), grid) for d in distances]
    labels = [Labels((d < 4.5).to(torch.int32), grid) for d in distances]
    return Pair(*images, None, *labels)


class CancelAt(Monitor):
    """Cancels itself after ``step`` updates."""

    def __init__(self, step: int):
        super().__init__()
        self.left = step

    def log(self, **figures):
        if "cost" in figures:
            self.left -= 1
            if self.left == 0:
                self.cancel()


def settings(steps: int, **changes) -> TrainingSettings:
    return TrainingSettings(**{"steps": steps, "rate": 1e-2, "warm_up": 2, "clip": 0.5, **changes})


def run(folder: Path, steps: int, network=None, monitor=None, seed: int = 3, draw=blobs, watch=None, **changes) -> tuple[Small, list[dict]]:
    """Train on the CPU; (network, rows)."""
    network = network or small()
    runtime = Runtime("cpu", seed=seed, **({} if monitor is None else {"monitor": monitor}))
    return network, train(network, view, OBJECTIVE, draw, settings(steps, **changes), folder, runtime, watch=watch)


def main(folder: Path, steps: int, cancelled: bool) -> None:
    """One of several processes: trains, and writes its parameters as rank-N.pt. ``cancelled``: the second process stops after two updates."""
    from DeepRegistrationLib.errors import Cancelled
    from DeepRegistrationLib.train import processes

    torch.set_num_threads(1)
    with processes.joined("cpu"):
        network, monitor = small(seed=processes.rank()), CancelAt(2) if cancelled and processes.rank() == 0 else None
        try:
            run(folder / "run", steps, network, monitor)
        except Cancelled:
            (folder / f"cancelled-{processes.rank()}").touch()
        torch.save(network.state_dict(), folder / f"rank-{processes.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--cancel" in sys.argv)
