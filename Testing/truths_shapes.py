"""Hollow triangles and circles: images whose outlines alone say how to register them, drawn from a generator."""

from __future__ import annotations

import math

import torch

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.ops.sample import world_points
from DeepRegistrationLib.problem import Pair


def hollow(grid: Grid, count: int, generator: torch.Generator) -> Image:
    """``count`` outlines (count, 1, *S) in [0, 1] on a square ``grid``: a circle or a triangle of random place, size and turn each."""
    edge = float(grid.extent.max())
    drawn = torch.rand(count, 5, generator=generator)
    centre = torch.tensor(grid.centre, dtype=torch.float32) + (drawn[:, :2] - 0.5) * 0.2 * edge
    radius, turn, triangle = (0.2 + 0.15 * drawn[:, 2]) * edge, 2 * math.pi * drawn[:, 3], drawn[:, 4] < 0.5
    offset = world_points(grid).reshape(1, -1, 2) - centre[:, None]
    circle = offset.norm(dim=-1) - radius[:, None]
    angles = turn[:, None] + torch.arange(3) * 2 * math.pi / 3
    normals = torch.stack([angles.cos(), angles.sin()], -1)
    sides = torch.einsum("bnd,bkd->bnk", offset, normals).amax(-1) - 0.6 * radius[:, None]
    distance = torch.where(triangle[:, None], sides, circle).abs()
    data = torch.sigmoid((0.03 * edge - distance) / (0.008 * edge))
    return Image(data.reshape(count, 1, *grid.shape), grid, name="hollow shapes")


def hollow_pairs(grid: Grid, count: int, generator: torch.Generator) -> Pair:
    """A batch of ``count`` pairs of hollow shapes."""
    return Pair(hollow(grid, count, generator), hollow(grid, count, generator))
