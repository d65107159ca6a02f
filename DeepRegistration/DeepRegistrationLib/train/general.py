"""The recipe of the general network: synthetic pairs only, one half of random shapes, one half of the MNI template.

Every step of the network is scored alone, by how far points are from where the known map takes them, in voxels of the step's level.
"""

from __future__ import annotations

import torch

from ..networks.heads import displacement
from ..networks.pyramid import SymmetricPyramid
from ..terms import LandmarkDistance
from .loop import TrainingSettings, scored
from .synthesize import Source, Synthesis, random_shapes, synthetic_pair
from .template import template_sources

OBJECTIVE = 1.0 * LandmarkDistance(squared=False)
LEVELS, STEPS = 3, (3, 2, 2)
SHAPES = 48
SETTINGS = {3: TrainingSettings(steps=3000, rate=4e-4, checkpoint=50, half=False), 2: TrainingSettings(steps=2000, rate=4e-4, pairs=2)}
PAIRS = {3: Synthesis(), 2: Synthesis(shape=(96, 96), widths=(20.0, 9.0, 4.0), motions=(6.0, 3.0, 1.0))}


def view(network: SymmetricPyramid, pair):
    """[(weight, Alignment)] of the map after every step, with its reverse."""
    grid, parts = pair.fixed.grid, []
    for maps in network(pair.fixed.data, pair.moving.data, LEVELS, STEPS):
        level = grid.resample(grid.spacing * maps.factor)
        parts.append((1.0 / maps.factor, scored(pair, displacement(maps.forward, level), displacement(maps.backward, level))))
    return parts


def sources(dim: int, generator: torch.Generator) -> list[Source]:
    """Random shapes, and the template as often."""
    shape = tuple(n + n // 2 for n in PAIRS[dim].shape)
    template = template_sources(dim)
    return random_shapes(SHAPES, shape, generator) + template * max(SHAPES // len(template), 1)


def draw_from(dim: int, pool: list[Source]):
    """generator -> synthetic pair, for ``loop.train``."""
    return lambda generator: synthetic_pair(pool, PAIRS[dim], generator)
