"""The recipe of U-Nets that see a pair: VoxelMorph's objectives, on pairs drawn from a set of images.

    S(fixed, moving o T) + weight |grad u|^2 + label_weight (1 - Dice),    S = MSE / (2 noise^2) or LNCC, or for a probabilistic network
    MSE / (2 noise^2) + KL(velocity | smooth prior).

Every ordered pair of two images is drawn with equal probability; only the images are held, never the list of pairs. Balakrishnan et al.,
IEEE TMI 2019; Dalca et al., MedIA 2019.

An image that is read half way between its voxels is smoother than one that is read at them, and less noise is less cost: a network would
learn to shift everything by a part of a voxel. ``between_voxels`` draws where the fixed voxels lie, so that no shift is paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import InputError
from ..image import Image, Labels
from ..networks import heads
from ..problem import Pair
from ..terms import LNCC, MSE, Alignment, Diffusion, SoftDice, Term, VelocityPrior
from .data import Index, Seen, pair_of
from .loop import scored

SIMILARITIES = ("mse", "lncc")


@dataclass(frozen=True)
class UNetRecipe:
    """similarity 'mse' or 'lncc'; weight of the diffusion of the displacement; label_weight of soft Dice where pairs have labels (0: they are
    not looked at); window: radius mm of 'lncc'; noise: deviation of the images' noise as a share of their range, for 'mse' (Dalca et al.
    take 0.02 to 0.04); smoothness of the prior of a probabilistic network."""

    similarity: str = "lncc"
    weight: float = 1.0
    label_weight: float = 0.0
    window: float = 4.0
    noise: float = 0.1
    smoothness: float = 20.0


def objective(recipe: UNetRecipe, output: str = "displacement") -> Term:
    """The objective of a recipe for a network with this ``output``. InputError for an unknown similarity."""
    if recipe.similarity not in SIMILARITIES:
        raise InputError(f"similarity '{recipe.similarity}' was asked for; expected one of {', '.join(SIMILARITIES)}")
    same = LNCC(radius=recipe.window) if recipe.similarity == "lncc" else 1 / (2 * recipe.noise**2) * MSE()
    if output == "probabilistic":
        total = same + 1.0 * VelocityPrior(recipe.smoothness)
    elif output in heads.OUTPUTS:
        total = same + recipe.weight * Diffusion()
    else:
        total = 1.0 * same
    return total + recipe.label_weight * SoftDice() if recipe.label_weight > 0 else total


def view(network, pair) -> list[tuple[float, Alignment]]:
    """How the answer of a network with an ``output`` is scored, for ``loop.train``; while it trains, a probabilistic one is sampled. The network
    sees the moving image on the grid of the fixed one; its own grid may be finer, for the cost."""
    said = network(pair.fixed.data, pair.moving.at(pair.fixed.grid).data)
    samples = network.output == "probabilistic" and network.training
    transform = heads.transform(said, pair.fixed.grid, network.output, network.next_draw() if samples else None)
    return [(1.0, scored(pair, transform))]


def between_voxels(draw):
    """``draw`` with the fixed image read on its lattice moved by a random part of a voxel, at most half of one along every axis."""

    def drawn(generator: torch.Generator) -> Pair:
        pair = draw(generator)
        grid, shift = pair.fixed.grid, np.eye(pair.fixed.dim + 1)
        shift[:-1, -1] = grid.matrix @ (torch.rand(grid.dim, generator=generator).numpy() - 0.5)
        return replace(pair, fixed=pair.fixed.at(grid.moved(shift), fill=None))

    return drawn


def all_pairs(images: list[Image], labels: list[Labels] | None = None):
    """generator -> Pair of two different images that are in memory, for ``loop.train`` (files: ``data.Data``); all on one lattice.

    InputError where there are fewer than two, or another number of label maps.
    """
    if len(images) < 2:
        raise InputError(f"{len(images)} images were given to train on; at least two are needed")
    if labels is not None and len(labels) != len(images):
        raise InputError(f"{len(labels)} label maps and {len(images)} images were given; one label map for each image is needed")
    seen = [Seen(image, map_) for image, map_ in zip(images, labels or [None] * len(images))]
    index = Index(range(len(seen)))

    def draw(generator: torch.Generator) -> Pair:
        fixed, moving = index[int(torch.randint(len(index), (), generator=generator))]
        return pair_of(seen[fixed], seen[moving])

    return draw
