"""Small inputs of terms: random values and phantoms in float64."""

from __future__ import annotations

import torch
from truths import Phantom, random_grid

from DeepRegistrationLib.geometry import Grid

SMALL = {2: (7, 9), 3: (6, 5, 7)}
"""Shapes of lattices by dimension, small enough for derivatives by differences."""


def values(seed: int, *shape: int) -> torch.Tensor:
    """Uniform in 0 to 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def phantom(dim: int, seed: int = 3) -> tuple[Phantom, Grid]:
    """A phantom and an oblique, anisotropic lattice that shows it."""
    grid = random_grid(seed, dim, (26, 28, 30)[-dim:], spacing=(1.5, 2.0, 2.4)[:dim], reach=50)
    return Phantom(seed, grid), grid
