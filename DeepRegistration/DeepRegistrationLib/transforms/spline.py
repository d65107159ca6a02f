"""Free-form deformation: a cubic B-spline of control-point displacements. Rueckert et al., IEEE TMI 1999."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..ops import spline
from ..ops.sample import apply_matrix
from .base import Transform, cache_key
from .dense import Displacement


class BSpline(Transform):
    """``control`` (B, dim, *K) mm at control points that start one step before the corner of ``grid`` and cover it.

    ``step`` (dim,) distance of control points in voxels of ``grid``, in (x, y, z). Outside the grid the map is clamped
    to 0 as every field is.
    """

    def __init__(self, control: torch.Tensor, grid: Grid, step):
        self.grid, self.dim, self.step = grid, grid.dim, tuple(float(s) for s in step)
        if len(self.step) != grid.dim or not min(self.step) > 0:
            raise InputError(f"control points {self.step} voxels apart were asked for; {grid.dim} positive distances are needed")
        expected = self.control_shape(grid, self.step)
        if tuple(control.shape[1:]) != (grid.dim, *expected):
            raise InputError(f"control points of shape {tuple(control.shape)} were given; (B, {grid.dim}, {expected}) is needed for {grid}")
        self.control = control
        self._cached = None

    @staticmethod
    def control_shape(grid: Grid, step) -> tuple[int, ...]:
        """(z, y, x) number of control points for ``step`` voxels."""
        return tuple(1 if n == 1 else int(np.ceil((n - 1) / s)) + 3 for n, s in zip(grid.size, step))[::-1]

    @classmethod
    def zeros(cls, grid: Grid, spacing, batch: int = 1, dtype=torch.float32, device="cpu") -> "BSpline":
        """The identity with control points about ``spacing`` mm apart."""
        step = np.maximum(np.broadcast_to(np.asarray(spacing, float), (grid.dim,)) / grid.spacing, 1.0)
        return cls(torch.zeros(batch, grid.dim, *cls.control_shape(grid, step), dtype=dtype, device=device), grid, step)

    @property
    def dense(self) -> Displacement:
        """The spline at every voxel of its grid, computed once for every state of the control points."""
        key = cache_key(self.control)
        if self._cached is None or self._cached[0] != key:
            matrices = [np.ones((1, 1)) if n == 1 else spline.upsampling_matrix(n, k, -s, s)
                        for n, k, s in zip(self.grid.size, self.control.shape[:1:-1], self.step)]
            self._cached = key, Displacement(spline.tensor_product(self.control, matrices), self.grid)
        return self._cached[1]

    def __call__(self, points):
        index = apply_matrix(self.grid.inverse_affine, points)
        step = torch.tensor(self.step, dtype=points.dtype, device=points.device)
        single = torch.tensor([n == 1 for n in self.grid.size], device=points.device)
        control_index = torch.where(single, torch.zeros_like(index), index / step + 1)
        size = torch.tensor(self.grid.size, dtype=points.dtype, device=points.device)
        weight = (1 - torch.relu(torch.maximum(-index, index - (size - 1)))).clamp_min(0).prod(-1, keepdim=True)
        return points + weight * spline.cubic_sample(self.control, control_index).movedim(1, -1)

    def field(self, grid, dtype=torch.float32, device="cpu"):
        if grid.same_as(self.grid):
            return self.dense.field(grid, dtype, device)
        return super().field(grid, dtype, device)

    def inverse(self):
        return self.dense.inverse()

    def parameters(self):
        return (self.control,)

    def to(self, device=None, dtype=None):
        return BSpline(self.control.to(device=device, dtype=dtype), self.grid, self.step)
