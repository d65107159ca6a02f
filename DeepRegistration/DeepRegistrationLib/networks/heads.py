"""From what a network says, in voxels of its lattice, to transforms in mm.

A network's displacement or velocity (B, dim, *S) has components (x, y, z) along the axes of the lattice, in voxels; its affine output
(B, parameters) is in the units of ``Affine.from_parameters`` with lengths in shares of the lattice's half diagonal. These functions
are the only place where voxels become millimetres.
"""

from __future__ import annotations

import torch

from ..geometry import Grid
from ..ops.sample import resample
from ..transforms import Affine, Displacement, Velocity


def displacement(voxels: torch.Tensor, grid: Grid) -> Displacement:
    """x -> x + u(x), u given in voxels of ``grid``."""
    return Displacement(to_millimetres(voxels, grid), grid)


def velocity(voxels: torch.Tensor, grid: Grid, steps: int | None = 7) -> Velocity:
    """The flow of a stationary velocity given in voxels of ``grid``; ``steps`` squarings."""
    return Velocity(to_millimetres(voxels, grid), grid, steps)


def affine(parameters: torch.Tensor, grid: Grid, kind: str = "affine") -> Affine:
    """A linear map about the centre of ``grid``; the first dim of ``parameters`` (B, P) are a shift in half diagonals."""
    half = float((grid.extent**2).sum() ** 0.5) / 2
    scaled = torch.cat([parameters[:, : grid.dim] * half, parameters[:, grid.dim :]], 1)
    return Affine.from_parameters(kind, scaled, torch.as_tensor(grid.centre, dtype=scaled.dtype))


def to_millimetres(voxels: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) voxels of ``grid`` along its axes -> mm in world axes."""
    matrix = torch.as_tensor(grid.matrix.copy(), dtype=voxels.dtype, device=voxels.device)
    return torch.einsum("ij,bj...->bi...", matrix, voxels)


def on_lattice(voxels: torch.Tensor, grid: Grid, finer: Grid) -> torch.Tensor:
    """A displacement in voxels of ``grid`` -> the same in voxels of ``finer``, a lattice of the same field of view and axes."""
    if grid.same_as(finer):
        return voxels
    ratio = torch.as_tensor(grid.spacing / finer.spacing, dtype=voxels.dtype, device=voxels.device)
    return resample(voxels, grid, finer) * ratio.reshape(1, -1, *[1] * grid.dim)
