"""Small networks that are trained in seconds, for tests of methods that have no weights of their own. Phantoms only; the seeds are not those of
the tests."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import torch
import truths

from DeepRegistrationLib.engines.network_pair import seen
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.networks import weights
from DeepRegistrationLib.networks.unet import UNet
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.train.loop import TrainingSettings, train
from DeepRegistrationLib.train.unet import UNetRecipe, objective, view
from DeepRegistrationLib.transforms import Affine
from DeepRegistrationLib.transforms.base import Identity

FIRST_SEED = 1000
ARGUMENTS = {"encoder": [8, 16, 16], "decoder": [16, 16, 16], "tail": [8]}
STEPS, POOL = {2: 160, 3: 60}, {2: 160, 3: 48}
RECIPE = UNetRecipe("mse", weight=0.1, noise=0.1)


def card(dim: int, **changes) -> weights.WeightsCard:
    """The card of a network for phantoms of ``dim`` axes."""
    values = {"name": "", "title": f"phantoms in {dim}D, for tests", "file": "", "sha256": "", "size": 0, "licence": "Apache-2.0", "trained_on": "phantoms",
              "network": "UNet", "arguments": {"dim": dim, **ARGUMENTS}, "scaling": "none", **changes}
    return weights.WeightsCard(**values)


def phantom_pair(seed: int, grid: Grid) -> Pair:
    """A phantom and its exact warp by a shift of up to 4 mm, a small affine map and a small swirl."""
    shift = 8 * torch.rand(grid.dim, generator=torch.Generator().manual_seed(seed)) - 4
    truth = Affine.translation(shift.double()) @ truths.random_affine(seed, grid.dim, grid.centre, 0.03, 0.0) @ truths.random_swirl(seed, grid, angle=0.1)
    phantom = truths.Phantom(seed, grid)
    return Pair(phantom.image(grid, truth), phantom.image(grid.pad(3)))


@lru_cache(maxsize=None)
def small_unet(dim: int, output: str = "displacement") -> dict:
    """{'weights': file} of a U-Net that has seen phantoms like those of the contract's smallest truth."""
    torch.manual_seed(0)
    grid = Grid.from_parts((44, 48) if dim == 2 else (20, 22, 24), 1.0 if dim == 2 else 2.0)
    made = card(dim, arguments={"dim": dim, **ARGUMENTS, "output": output})
    network = UNet(**made.arguments)

    def shown(pair):
        return Pair(*seen(pair.fixed, pair.moving, Identity(dim), made, network.multiple))

    pool = [shown(phantom_pair(FIRST_SEED + k, grid)) for k in range(POOL[dim])]

    def draw(generator):
        return pool[int(torch.randint(len(pool), (), generator=generator))]

    folder = Path(tempfile.mkdtemp(prefix="trained-"))
    settings = TrainingSettings(STEPS[dim], rate=4e-3, pairs=4 if dim == 2 else 1, checkpoint=10000)
    train(network, view, objective(RECIPE, output), draw, settings, folder, Runtime("cpu", threads=1))
    weights.write(folder / f"phantoms-{dim}d.safetensors", network, made)
    return {"weights": str(folder / f"phantoms-{dim}d.safetensors")}
