"""The general network: synthetic pairs only (``train.general``); how the shipped one was made.

The network sees pairs that it has not seen in training, of other random shapes too, when it is validated; its last parameters are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...networks.pyramid import SymmetricPyramid
from ...networks.weights import WeightsCard
from .. import general
from ..recipe import Plan, Recipe, RecipeCard, Request, recipe
from ..synthesize import random_shapes, synthetic_pair

HELD_OUT = {2: 16, 3: 6}
APART = 7_919
"""Added to the seed of the shapes for validation."""


@recipe(RecipeCard(
    title="General network",
    summary="A network for images of any kind, from synthetic pairs and the MNI template; no images are needed",
    needs_data=False,
    method="general"))
@dataclass(frozen=True)
class General(Recipe):
    """Has no parameters: everything is in ``train.general``."""

    def plan(self, request: Request) -> Plan:
        dim = request.dim
        settings = general.SETTINGS[dim]
        settings = replace(settings, steps=settings.steps if request.steps is None else request.steps)
        network = SymmetricPyramid(dim)
        pool = general.sources(dim, torch.Generator().manual_seed(request.seed))
        card = WeightsCard("", f"General network, {dim}D", "", "", 0, "Apache-2.0", "synthetic pairs of random shapes and of the MNI152 template",
                           "SymmetricPyramid", {"dim": dim}, scaling="robust",
                           training=f"recipe general, {settings.steps} steps of {settings.pairs} pairs, seed {request.seed}")
        return Plan(network, general.view, general.OBJECTIVE, general.draw_from(dim, pool), settings, card, _unseen(dim, request.seed), keep="last")


def _unseen(dim: int, seed: int):
    """Pairs of shapes that training does not have, always the same ones; made when they are first asked for."""
    made: list = []

    def pairs():
        if not made:
            generator = torch.Generator().manual_seed(seed + APART)
            shapes = random_shapes(8, tuple(n + n // 2 for n in general.PAIRS[dim].shape), generator)
            made.extend(synthetic_pair(shapes, general.PAIRS[dim], generator) for _ in range(HELD_OUT[dim]))
        return made

    return pairs
