"""Dense maps: a displacement on a grid, and the flow of a stationary velocity on a grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..errors import ConvergenceError, InputError
from ..geometry import Grid
from ..ops import fields
from ..ops.sample import apply_matrix, resample
from .base import Transform


class Displacement(Transform):
    """T(x) = x + u(x) with ``displacement`` (B, dim, *S) mm on ``grid``; u falls to 0 within one voxel outside the lattice."""

    residual = 0.0

    def __init__(self, displacement: torch.Tensor, grid: Grid):
        if tuple(displacement.shape[1:]) != (grid.dim, *grid.shape):
            raise InputError(f"a displacement of shape {tuple(displacement.shape)} does not fit {grid}; (B, {grid.dim}, *{grid.shape}) is needed")
        self.displacement, self.grid, self.dim = displacement, grid, grid.dim

    def __call__(self, points):
        index = apply_matrix(self.grid.inverse_affine, points)
        return points + fields.sample_field(self.displacement, self.grid, index).movedim(1, -1)

    def field(self, grid, dtype=torch.float32, device="cpu"):
        u = self.displacement.to(device=device, dtype=dtype)
        return u if grid.same_as(self.grid) else resample(u, self.grid, grid, padding="zeros")

    def inverse(self, tolerance: float = 0.02):
        """The inverse on a padded lattice; ``residual`` is its largest error in mm. ConvergenceError above 1 voxel."""
        reach = fields.to_index_units(self.displacement.detach(), self.grid).abs().flatten(0, -2).max(0).values
        margin = [int(r) + 1 if n > 1 else 0 for r, n in zip(reach.ceil().tolist(), self.grid.size)]
        grid = self.grid.pad(margin)
        pad = [v for m in margin for v in (m, m)]
        w, residual = fields.invert(F.pad(self.displacement.detach(), pad), grid, tolerance)
        if residual > 2 * float(self.grid.spacing.max()):
            raise ConvergenceError(f"the field could not be inverted (residual {residual:.2f} mm): it folds; use more smoothing")
        result = Displacement(w, grid)
        result.residual = residual
        return result

    def with_zero_ring(self) -> "Displacement":
        """The same map on a lattice with a border of zeros, so that tools that clamp at the border and tools that return
        the identity there read the same function; a field that is already 0 on its border is returned as it is."""
        border = torch.zeros((), dtype=torch.bool)
        for axis in range(2, self.displacement.ndim):
            n = self.displacement.shape[axis]
            if n > 1:
                border = border | (self.displacement.select(axis, 0) != 0).any() | (self.displacement.select(axis, n - 1) != 0).any()
        if not bool(border):
            return self
        margin = [1 if n > 1 else 0 for n in self.grid.size]
        return Displacement(F.pad(self.displacement, [v for m in margin for v in (m, m)]), self.grid.pad(margin))

    def parameters(self):
        return (self.displacement,)

    def to(self, device=None, dtype=None):
        return Displacement(self.displacement.to(device=device, dtype=dtype), self.grid)


class Velocity(Transform):
    """Flow after unit time of the stationary ``velocity`` (B, dim, *S) mm on ``grid``: a diffeomorphism; the inverse flows back."""

    def __init__(self, velocity: torch.Tensor, grid: Grid, steps: int | None = None):
        self.velocity, self.grid, self.dim, self.steps = velocity, grid, grid.dim, steps
        self._displacement = None

    @property
    def dense(self) -> Displacement:
        """The flow as a displacement on the same grid, computed once."""
        if self._displacement is None:
            self._displacement = Displacement(fields.exp(self.velocity, self.grid, self.steps), self.grid)
        return self._displacement

    def __call__(self, points):
        return self.dense(points)

    def field(self, grid, dtype=torch.float32, device="cpu"):
        return self.dense.field(grid, dtype, device)

    def inverse(self):
        return Velocity(-self.velocity, self.grid, self.steps)

    def parameters(self):
        return (self.velocity,)

    def to(self, device=None, dtype=None):
        return Velocity(self.velocity.to(device=device, dtype=dtype), self.grid, self.steps)
