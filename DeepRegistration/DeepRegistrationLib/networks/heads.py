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
from ..transforms.base import Transform
from ..transforms.linear import KINDS
from ..transforms.sampled import SampledVelocity

OUTPUTS = ("displacement", "velocity", "probabilistic")
"""What a dense network may say: a displacement, a stationary velocity, or the mean and the log-variance of a velocity."""
SQUARINGS = 7


def channels_of(output: str, dim: int) -> int:
    """Channels of a dense network's answer of a kind of ``OUTPUTS``."""
    return 2 * dim if output == "probabilistic" else dim


def transform(said: torch.Tensor, grid: Grid, output: str, seed: int | None = None) -> Transform:
    """What a network whose ``output`` is a kind of ``OUTPUTS`` or of ``Affine`` said about images on ``grid``, as a transform in mm.

    said (B, C, *S) on the lattice of ``grid`` or a coarser one of the same field of view; (B, P) for a linear kind. A probabilistic answer
    is sampled with ``seed`` (training), or gives the flow of its mean where there is none. ValueError for another kind.
    """
    if output in KINDS:
        return affine(said, grid, output)
    if output not in OUTPUTS:
        raise ValueError(f"output '{output}' of a network; expected one of {', '.join((*OUTPUTS, *KINDS))}")
    grid = said_on(said, grid)
    if output == "displacement":
        return displacement(said, grid)
    if output == "velocity":
        return velocity(said, grid, SQUARINGS)
    mean, log_variance = said.chunk(2, 1)
    return velocity(mean, grid, SQUARINGS) if seed is None else sampled_velocity(mean, log_variance, grid, seed)


def said_on(said: torch.Tensor, grid: Grid) -> Grid:
    """The lattice of an answer (B, C, *S) about images on ``grid``: ``grid`` itself or blocks of its voxels."""
    if tuple(said.shape[2:]) == grid.shape:
        return grid
    return grid.resample(grid.extent / [float(n) for n in said.shape[:1:-1]])


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
    return Affine.from_parameters(kind, scaled, torch.as_tensor(grid.centre, dtype=scaled.dtype, device=scaled.device))


def sampled_velocity(mean: torch.Tensor, log_variance: torch.Tensor, grid: Grid, seed: int) -> SampledVelocity:
    """The flow of one velocity drawn from a network's distribution, both (B, dim, *S) in voxels of ``grid``; same seed, same velocity."""
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
    drawn = mean + (log_variance / 2).exp() * noise
    return SampledVelocity(to_millimetres(drawn, grid), grid, mean, log_variance, SQUARINGS)


def deviation(log_variance: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) log-variance in voxels squared of ``grid`` -> (B, 1, *S) root of the summed variances of a velocity, mm."""
    spacing = torch.as_tensor(grid.spacing.copy(), dtype=log_variance.dtype, device=log_variance.device)
    return (log_variance.exp() * spacing.square().reshape(1, -1, *[1] * grid.dim)).sum(1, keepdim=True).sqrt()


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
