"""Dense maps: a displacement on a grid, and the flow of a stationary velocity on a grid."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import ConvergenceError, InputError
from ..geometry import Grid
from ..ops import fields
from ..ops.sample import apply_matrix, index_points, resample
from .base import Transform, cache_key


STEEP = 0.5
"""Voxels a voxel; at 1 a map may fold."""


class Displacement(Transform):
    """T(x) = x + u(x) with ``displacement`` (B, dim, *S) mm on ``grid``; u falls to 0 within one voxel outside the lattice."""

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

    def inverse(self, tolerance: float | None = None):
        """The inverse on a lattice that also holds all points that the map reaches; ``residual`` is its largest error in mm.

        tolerance mm (default 0.02 of the smallest voxel edge). The inverse undoes the map of the points on the lattice, without
        a border of zeros to which u falls steeply, and may fold.
        ConvergenceError where u is not finite, reaches absurdly far or folds by more than 2 voxels.
        """
        grid = self._reached(self.displacement.detach())
        undone = self.without_zero_ring() if self._falls_to_ring() else self
        tolerance = 0.02 * float(self.grid.spacing.min()) if tolerance is None else tolerance
        w, residual = fields.invert(undone.displacement.detach(), undone.grid, tolerance, target=grid)
        if residual > 2 * float(self.grid.spacing.max()):
            raise ConvergenceError(f"the field could not be inverted (residual {residual:.2f} mm): it folds; use more smoothing")
        result = Displacement(w, grid)
        result.residual = residual
        return result

    def _reached(self, u):
        """The grid, enlarged to hold every point that a voxel centre is moved to."""
        if not bool(torch.isfinite(u).all()):
            raise ConvergenceError("the field holds NaN or infinite displacements and has no inverse; look for what made them")
        index = (index_points(self.grid, dtype=u.dtype, device=u.device) + fields.to_index_units(u, self.grid)).flatten(0, -2)
        size = np.array(self.grid.size)
        lower = np.minimum(np.floor(index.amin(0).cpu().numpy() + 1e-3), 0)
        upper = np.maximum(np.ceil(index.amax(0).cpu().numpy() - 1e-3) + 1, size)
        if np.prod(upper - lower) > 64 * max(np.prod(size.astype(float)), 1000):
            raise ConvergenceError(f"the field moves points up to {float(u.abs().max()):.0f} mm, many times the size of {self.grid}; "
                                   "check its unit and put the linear part into an affine transform")
        return self.grid if (lower == 0).all() and (upper == size).all() else self.grid.crop(lower, upper)

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

    def without_zero_ring(self) -> "Displacement":
        """The same vectors on the lattice without a border of zeros, where it has one: the lattice before ``with_zero_ring``."""
        if self.with_zero_ring() is not self:
            return self
        margin = [1 if n > 2 else 0 for n in self.grid.size]
        inner = (slice(m, n - m) for m, n in zip(margin[::-1], self.grid.shape))
        return Displacement(self.displacement[(..., *inner)], self.grid.pad([-m for m in margin]))

    def _falls_to_ring(self) -> bool:
        """True where u changes by more than ``STEEP`` of a voxel from the border of zeros, if there is one, to its neighbors."""
        body = self.without_zero_ring()
        index = fields.to_index_units(body.displacement.detach(), body.grid).abs()
        faces = [index.select(axis, k) for axis, n in enumerate(body.grid.shape, 1) if n > 1 for k in (0, n - 1)]
        return body is not self and any(float(face.max()) > STEEP for face in faces)

    def parameters(self):
        return (self.displacement,)

    def to(self, device=None, dtype=None):
        return Displacement(self.displacement.to(device=device, dtype=dtype), self.grid)


class Velocity(Transform):
    """Flow after unit time of the stationary ``velocity`` (B, dim, *S) mm on ``grid``: a diffeomorphism; the inverse flows back."""

    def __init__(self, velocity: torch.Tensor, grid: Grid, steps: int | None = None):
        self.velocity, self.grid, self.dim, self.steps = velocity, grid, grid.dim, steps
        if tuple(velocity.shape[1:]) != (grid.dim, *grid.shape):
            raise InputError(f"a velocity of shape {tuple(velocity.shape)} does not fit {grid}; (B, {grid.dim}, *{grid.shape}) is needed")
        self._cached = None

    @property
    def dense(self) -> Displacement:
        """The flow as a displacement on the same grid, computed once for every state of the velocity."""
        key = cache_key(self.velocity)
        if self._cached is None or self._cached[0] != key:
            self._cached = key, Displacement(fields.exp(self.velocity, self.grid, self.steps), self.grid)
        return self._cached[1]

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
